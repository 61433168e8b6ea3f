//! The messages of a replication stream: what the server wraps into CopyData, and what it is sent back.
//!
//! <https://www.postgresql.org/docs/current/protocol-replication.html>

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use walgate_sink::Lsn;

/// Tag and length of every message of the protocol.
pub(super) const HEADER: usize = 5;
/// Kind, two LSNs and the server's clock, before the body of XLogData.
const XLOG_DATA: usize = 25;
/// Kind, LSN, the server's clock and the reply flag.
const KEEPALIVE: usize = 18;
/// A Standby Status Update in its CopyData.
pub(super) const STATUS: usize = HEADER + 34;
/// 2000-01-01, from which PostgreSQL counts microseconds, in seconds from 1970-01-01.
const POSTGRES_EPOCH: Duration = Duration::from_secs(946_684_800);

/// What the server wraps into one CopyData message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A message of the output plugin.
    XLogData {
        /// Position that the message belongs to: `0/0` for a Relation, a commit's end for a Commit. It identifies nothing.
        wal_start: Lsn,
        /// End of WAL on the server, as far as it says so here; with logical decoding the same as `wal_start`.
        wal_end: Lsn,
        /// The plugin's message: a slice of the chunk.
        body: Bytes,
    },
    /// The server's sign of life.
    Keepalive {
        /// Everything before this position was sent or needs no sending. In stream order with the frames before it.
        wal_end: Lsn,
        /// The server's clock, in microseconds from 2000-01-01.
        server_clock: i64,
        /// The server wants a status at once. The reader sees to that.
        reply_requested: bool,
    },
}

/// A frame is not what the protocol says. The connection cannot be trusted any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Neither XLogData nor a keepalive.
    #[error("replication frame of unknown kind {0:#04x}")]
    Kind(u8),
    /// Too short, or too long, for what it says it is.
    #[error("replication frame {kind} of {length} bytes has the wrong length")]
    Length {
        /// Which frame.
        kind: &'static str,
        /// How many bytes it has.
        length: usize,
    },
    /// A message's length cannot be.
    #[error("protocol message with tag {tag:#04x} announces an impossible length of {length}")]
    Announced {
        /// The message's tag.
        tag: u8,
        /// The length, as it stood there.
        length: u32,
    },
    /// A message that has no place in a stream.
    #[error("protocol message with tag {tag:#04x} is not expected in a replication stream")]
    Tag {
        /// The message's tag.
        tag: u8,
    },
}

/// Whole CopyData messages, one after another, as they came.
#[derive(Clone, Debug)]
pub struct Chunk(pub(super) Bytes);

impl Chunk {
    /// A chunk of such messages: for tests, and for replaying a recording.
    #[must_use]
    pub fn new(messages: Bytes) -> Self {
        Chunk(messages)
    }

    /// Its size in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The frames in it. The iterator ends after the first error.
    #[must_use]
    pub fn frames(&self) -> Frames {
        Frames { rest: self.0.clone() }
    }
}

/// Iterator over the frames of a chunk; bodies are slices of it, nothing is copied.
#[derive(Clone, Debug)]
pub struct Frames {
    rest: Bytes,
}

impl Iterator for Frames {
    type Item = Result<Frame, WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let frame = match peek(&self.rest) {
            Ok(Some(Message { tag: b'd', length })) if length <= self.rest.len() => {
                decode(&self.rest.split_to(length).slice(HEADER..))
            }
            Ok(Some(Message { tag, .. })) if tag != b'd' => Err(WireError::Tag { tag }),
            Ok(_) => Err(WireError::Length { kind: "CopyData", length: self.rest.len() }),
            Err(error) => Err(error),
        };
        if frame.is_err() {
            self.rest.clear();
        }
        Some(frame)
    }
}

/// A message's tag, and its length with the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub tag: u8,
    pub length: usize,
}

/// Reads a message's header; `None` while it is not all there. The length says how long the message claims to be.
pub(super) fn peek(bytes: &[u8]) -> Result<Option<Message>, WireError> {
    let [tag, a, b, c, d, ..] = *bytes else { return Ok(None) };
    let length = u32::from_be_bytes([a, b, c, d]);
    // The length counts itself. PostgreSQL's own limit is 1 GiB.
    if !(4..=1 << 30).contains(&length) {
        return Err(WireError::Announced { tag, length });
    }
    Ok(Some(Message { tag, length: length as usize + 1 }))
}

/// Decodes what stands in a CopyData message.
///
/// # Errors
/// Where it is neither XLogData nor a keepalive, or has the wrong length.
pub fn decode(payload: &Bytes) -> Result<Frame, WireError> {
    match payload.first() {
        Some(b'w') => match (number(payload, 1), number(payload, 9)) {
            (Some(wal_start), Some(wal_end)) if payload.len() >= XLOG_DATA => Ok(Frame::XLogData {
                wal_start: Lsn(wal_start),
                wal_end: Lsn(wal_end),
                body: payload.slice(XLOG_DATA..),
            }),
            _ => Err(WireError::Length { kind: "XLogData", length: payload.len() }),
        },
        Some(b'k') => match (number(payload, 1), number(payload, 9), payload.get(17)) {
            (Some(wal_end), Some(clock), Some(reply)) if payload.len() == KEEPALIVE => Ok(Frame::Keepalive {
                wal_end: Lsn(wal_end),
                server_clock: clock.cast_signed(),
                reply_requested: *reply != 0,
            }),
            _ => Err(WireError::Length { kind: "keepalive", length: payload.len() }),
        },
        Some(kind) => Err(WireError::Kind(*kind)),
        None => Err(WireError::Length { kind: "CopyData", length: 0 }),
    }
}

/// What the reader itself needs of a frame, without slicing: how far the server has got, and whether it waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Glance {
    pub data: Lsn,
    pub wal_end: Lsn,
    pub reply_requested: bool,
}

/// Looks at what stands in a CopyData message; malformed frames say nothing here, the decoder reports them.
pub(super) fn glance(payload: &[u8]) -> Glance {
    let lsn = |at| Lsn(number(payload, at).unwrap_or_default());
    match payload.first() {
        Some(b'w') => Glance { data: lsn(1), wal_end: lsn(9).max(lsn(1)), reply_requested: false },
        Some(b'k') => {
            Glance { data: Lsn::ZERO, wal_end: lsn(1), reply_requested: payload.get(17).is_some_and(|flag| *flag != 0) }
        }
        _ => Glance::default(),
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk::<8>().map(|bytes| u64::from_be_bytes(*bytes))
}

/// A Standby Status Update: how far the stream was received, and how far it is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Received.
    pub write: Lsn,
    /// Confirmed: the slot may forget what lies before. `0/0` confirms nothing.
    pub flush: Lsn,
    /// Our clock, in microseconds from 2000-01-01.
    pub clock: i64,
    /// The server shall send a keepalive at once.
    pub reply_requested: bool,
}

impl Status {
    /// The update as a CopyData message. Flush and apply are the same here.
    #[must_use]
    pub fn encode(&self) -> [u8; STATUS] {
        let mut message = [0; STATUS];
        message[0] = b'd';
        message[1..5].copy_from_slice(&(STATUS as u32 - 1).to_be_bytes());
        message[5] = b'r';
        for (at, value) in [(6, self.write.0), (14, self.flush.0), (22, self.flush.0), (30, self.clock.cast_unsigned())]
        {
            message[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        message[38] = self.reply_requested.into();
        message
    }

    /// Reads one that was encoded: for a server of tests, and for recordings.
    #[must_use]
    pub fn decode(message: &[u8]) -> Option<Self> {
        let message: &[u8; STATUS] = message.try_into().ok()?;
        if message[0] != b'd' || message[5] != b'r' {
            return None;
        }
        Some(Status {
            write: Lsn(number(message, 6)?),
            flush: Lsn(number(message, 14)?),
            clock: number(message, 30)?.cast_signed(),
            reply_requested: message[38] != 0,
        })
    }
}

/// Microseconds from 2000-01-01 to now.
pub(super) fn clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH + POSTGRES_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn copy_data(payload: &[u8]) -> Vec<u8> {
        let mut message = vec![b'd'];
        message.extend((payload.len() as u32 + 4).to_be_bytes());
        message.extend(payload);
        message
    }

    #[test]
    fn a_status_has_the_layout_of_the_protocol() {
        let status = Status { write: Lsn(0x0102), flush: Lsn(0x03), clock: 4, reply_requested: true };
        let bytes = status.encode();
        let mut payload = vec![b'r'];
        for value in [0x0102u64, 3, 3, 4] {
            payload.extend(value.to_be_bytes());
        }
        payload.push(1);
        assert_eq!(bytes.as_slice(), copy_data(&payload));
        assert_eq!(Status::decode(&bytes), Some(status));
        assert_eq!(Status::decode(&bytes[1..]), None);
    }

    #[test]
    fn frames_of_the_wrong_length_are_errors() {
        for (payload, expected) in [
            (&b""[..], WireError::Length { kind: "CopyData", length: 0 }),
            (b"w", WireError::Length { kind: "XLogData", length: 1 }),
            (&[b'w'; 24], WireError::Length { kind: "XLogData", length: 24 }),
            (&[b'k'; 17], WireError::Length { kind: "keepalive", length: 17 }),
            (&[b'k'; 19], WireError::Length { kind: "keepalive", length: 19 }),
            (b"x", WireError::Kind(b'x')),
        ] {
            assert_eq!(decode(&Bytes::copy_from_slice(payload)), Err(expected));
        }
    }

    #[test]
    fn a_chunk_ends_at_its_first_error() {
        let mut bytes = copy_data(&[b'w'; 25]);
        bytes.extend(copy_data(b"x"));
        bytes.extend(copy_data(&[b'w'; 25]));
        let frames: Vec<_> = Chunk::new(bytes.into()).frames().collect();
        assert!(matches!(frames.as_slice(), [Ok(_), Err(WireError::Kind(b'x'))]), "{frames:?}");
        for (bytes, expected) in [
            (&b"d\0\0"[..], WireError::Length { kind: "CopyData", length: 3 }),
            (b"d\0\0\0\x09w", WireError::Length { kind: "CopyData", length: 6 }),
            (b"d\0\0\0\x03", WireError::Announced { tag: b'd', length: 3 }),
            (b"d\xFF\xFF\xFF\xFF", WireError::Announced { tag: b'd', length: u32::MAX }),
            (b"E\0\0\0\x04", WireError::Tag { tag: b'E' }),
        ] {
            let frames: Vec<_> = Chunk::new(Bytes::copy_from_slice(bytes)).frames().collect();
            assert_eq!(frames, [Err(expected)]);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Chunk::new(bytes.clone().into()).frames().count();
            let _ = decode(&Bytes::from(bytes.clone()));
            let _ = glance(&bytes);
            let _ = Status::decode(&bytes);
        }

        #[test]
        fn frames_come_back_as_they_were_sent(
            frames in prop::collection::vec((any::<bool>(), any::<u64>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..40)), 0..20)
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (data, first, second, body) in frames {
                let mut payload = vec![if data { b'w' } else { b'k' }];
                payload.extend(first.to_be_bytes());
                payload.extend(second.to_be_bytes());
                if data {
                    payload.extend(0u64.to_be_bytes());
                    payload.extend(&body);
                    expected.push(Frame::XLogData { wal_start: Lsn(first), wal_end: Lsn(second), body: body.into() });
                } else {
                    payload.push(body.len() as u8 & 1);
                    expected.push(Frame::Keepalive {
                        wal_end: Lsn(first), server_clock: second.cast_signed(), reply_requested: body.len() & 1 == 1,
                    });
                }
                bytes.extend(copy_data(&payload));
            }
            let decoded: Result<Vec<_>, _> = Chunk::new(bytes.into()).frames().collect();
            prop_assert_eq!(decoded.unwrap(), expected);
        }
    }
}
