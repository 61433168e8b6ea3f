//! PostgreSQL's protocol, as far as a witness on the wire needs it: framing, replication messages and pgoutput
//! version 1. Sources: "Message Formats", "Streaming Replication Protocol" and "Logical Replication Message Formats"
//! in PostgreSQL's documentation.

use super::lsn::Lsn;

/// Cuts whole messages out of a byte stream.
#[derive(Default)]
pub struct Framer {
    buffer: Vec<u8>,
    /// Before the first typed message a client sends untyped ones: length and code.
    untyped: bool,
}

impl Framer {
    pub fn client() -> Framer {
        Framer { buffer: Vec::new(), untyped: true }
    }

    pub fn server() -> Framer {
        Framer::default()
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// After the startup message a client's messages carry a type.
    pub fn typed_from_now(&mut self) {
        self.untyped = false;
    }

    pub fn is_untyped(&self) -> bool {
        self.untyped
    }

    /// Everything that has not been taken: for a stream that is not understood any further.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.buffer)
    }

    /// Takes all whole messages, each with its header.
    pub fn messages(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let mut at = 0;
        while let Some(length) = whole(&self.buffer[at..], self.untyped) {
            messages.push(self.buffer[at..at + length].to_vec());
            at += length;
            if self.untyped {
                // One at a time: what follows may be typed.
                break;
            }
        }
        self.buffer.drain(..at);
        messages
    }
}

fn whole(bytes: &[u8], untyped: bool) -> Option<usize> {
    let header = usize::from(!untyped);
    let length = u32::from_be_bytes(bytes.get(header..header + 4)?.try_into().ok()?) as usize;
    let total = header + length;
    (length >= 4 && bytes.len() >= total).then_some(total)
}

/// What a client's first, untyped message is.
#[derive(Debug, PartialEq, Eq)]
pub enum First {
    /// A question that the server answers with one byte.
    Encryption,
    Startup {
        /// Whether the connection asks for `replication=database`.
        replication: bool,
    },
    Cancel,
}

pub fn first(message: &[u8]) -> First {
    match read_u32(message, 4) {
        Some(80_877_103 | 80_877_104) => First::Encryption,
        Some(80_877_102) => First::Cancel,
        _ => {
            let words: Vec<&[u8]> = message.get(8..).unwrap_or_default().split(|byte| *byte == 0).collect();
            let replication = words.chunks(2).any(|pair| pair == [&b"replication"[..], &b"database"[..]]);
            First::Startup { replication }
        }
    }
}

/// What a client says on a replication connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Query(String),
    Status { write: Lsn, flush: Lsn, apply: Lsn, reply: bool },
    CopyDone,
    Terminate,
    Other,
}

pub fn client_message(message: &[u8]) -> Said {
    match (message.first(), message.get(5)) {
        (Some(b'Q'), _) => {
            let text = message.get(5..message.len().saturating_sub(1)).unwrap_or_default();
            Said::Query(String::from_utf8_lossy(text).into_owned())
        }
        (Some(b'd'), Some(b'r')) => {
            match (read_lsn(message, 6), read_lsn(message, 14), read_lsn(message, 22), message.get(38)) {
                (Some(write), Some(flush), Some(apply), Some(reply)) => {
                    Said::Status { write, flush, apply, reply: *reply != 0 }
                }
                _ => Said::Other,
            }
        }
        (Some(b'c'), _) => Said::CopyDone,
        (Some(b'X'), _) => Said::Terminate,
        _ => Said::Other,
    }
}

/// What a server says on a replication connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Keepalive {
        wal_end: Lsn,
        reply: bool,
    },
    Wal {
        start: Lsn,
        end: Lsn,
        change: Change,
    },
    /// A server's error: SQLSTATE and text.
    Error {
        code: String,
        message: String,
    },
    CopyDone,
    Other,
}

/// A pgoutput message.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    Begin {
        commit_lsn: Lsn,
    },
    Commit {
        commit_lsn: Lsn,
        end: Lsn,
    },
    Relation {
        name: String,
    },
    /// A new row; its first column, as text.
    Insert {
        id: String,
    },
    Other(u8),
}

pub fn server_message(message: &[u8]) -> Heard {
    match (message.first(), message.get(5)) {
        (Some(b'd'), Some(b'k')) => match (read_lsn(message, 6), message.get(22)) {
            (Some(wal_end), Some(reply)) => Heard::Keepalive { wal_end, reply: *reply != 0 },
            _ => Heard::Other,
        },
        (Some(b'd'), Some(b'w')) => match (read_lsn(message, 6), read_lsn(message, 14), message.get(30..)) {
            (Some(start), Some(end), Some(body)) => {
                Heard::Wal { start, end, change: change(body).unwrap_or(Change::Other(b'?')) }
            }
            _ => Heard::Other,
        },
        (Some(b'E'), _) => {
            let field = |wanted: u8| {
                let fields = message.get(5..).unwrap_or_default().split(|byte| *byte == 0);
                let mut found = fields.filter_map(|field| field.split_first()).filter(|(kind, _)| **kind == wanted);
                found.next().map(|(_, text)| String::from_utf8_lossy(text).into_owned()).unwrap_or_default()
            };
            Heard::Error { code: field(b'C'), message: field(b'M') }
        }
        (Some(b'c'), _) => Heard::CopyDone,
        _ => Heard::Other,
    }
}

fn change(body: &[u8]) -> Option<Change> {
    Some(match body.first()? {
        b'B' => Change::Begin { commit_lsn: read_lsn(body, 1)? },
        b'C' => Change::Commit { commit_lsn: read_lsn(body, 2)?, end: read_lsn(body, 10)? },
        b'R' => {
            // Oid, namespace, name.
            let mut words = body.get(5..)?.split(|byte| *byte == 0);
            let (_, name) = (words.next()?, words.next()?);
            Change::Relation { name: String::from_utf8_lossy(name).into_owned() }
        }
        b'I' => {
            // Oid, 'N', number of columns, then for each: kind, length, value.
            let id = match body.get(8)? {
                b't' => {
                    let length = read_u32(body, 9)? as usize;
                    String::from_utf8_lossy(body.get(13..13 + length)?).into_owned()
                }
                _ => String::new(),
            };
            Change::Insert { id }
        }
        other => Change::Other(*other),
    })
}

/// A keepalive as the server would send it.
pub fn keepalive(wal_end: Lsn, reply: bool) -> Vec<u8> {
    let mut message = vec![b'd'];
    message.extend(22u32.to_be_bytes());
    message.push(b'k');
    message.extend(wal_end.0.to_be_bytes());
    message.extend(0i64.to_be_bytes());
    message.push(u8::from(reply));
    message
}

/// Overwrites start and end of an XLogData message, as a server does whose position "goes back".
pub fn set_wal_positions(message: &mut [u8], position: Lsn) {
    if message.first() == Some(&b'd') && message.get(5) == Some(&b'w') && message.len() >= 30 {
        message[6..14].copy_from_slice(&position.0.to_be_bytes());
        message[14..22].copy_from_slice(&position.0.to_be_bytes());
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read_lsn(bytes: &[u8], at: usize) -> Option<Lsn> {
    Some(Lsn(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?)))
}
