//! The witness on the NATS link: a proxy that reads the text protocol in both directions. What was published, and when
//! the stream's acknowledgement passed, is read here, and not from walgate.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

use http::HeaderMap;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::clock::{self, Tick};
use super::proxy::{Proxy, Tap};
use super::receiver::{Receipt, hex};

#[derive(Default)]
struct Log {
    /// As a receiver keeps them: `answered` is 200 with a PubAck, and 503 with any other answer.
    receipts: Vec<Receipt>,
    /// Receipts that no answer was seen of, by connection and reply subject.
    waiting: HashMap<(u64, String), usize>,
    settled: HashMap<String, Tick>,
    duplicates: usize,
    garbled: usize,
}

/// See the module. It is a [`Proxy`] too: cut, delay, drop replies and so on.
pub struct NatsWitness {
    proxy: Proxy,
    log: Arc<Mutex<Log>>,
}

impl Deref for NatsWitness {
    type Target = Proxy;

    fn deref(&self) -> &Proxy {
        &self.proxy
    }
}

impl NatsWitness {
    /// A witness in front of a server's port. TLS is not read.
    pub fn on(port: u16) -> NatsWitness {
        let log = Arc::<Mutex<Log>>::default();
        let shared = log.clone();
        let proxy = Proxy::with_taps(port, move |connection| {
            let tap =
                |requests| ProtocolTap { connection, requests, buffer: Vec::new(), lost: false, log: shared.clone() };
            (Box::new(tap(true)), Box::new(tap(false)))
        });
        NatsWitness { proxy, log }
    }

    /// What was published, in the order in which it left walgate, repeats included.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.log().receipts.clone()
    }

    /// Publishes that have left walgate, repeats included.
    pub fn count(&self) -> usize {
        self.log().receipts.len()
    }

    /// When each event's first acknowledgement passed.
    pub fn all_settled(&self) -> HashMap<String, Tick> {
        self.log().settled.clone()
    }

    /// When the event's first acknowledgement passed.
    pub fn settled(&self, id: &str) -> Option<Tick> {
        self.log().settled.get(id).copied()
    }

    /// Different events that were acknowledged.
    pub fn settled_count(&self) -> usize {
        self.log().settled.len()
    }

    /// Publishes without an answer, over connections that may be gone.
    pub fn unanswered(&self) -> usize {
        self.log().waiting.len()
    }

    /// Acknowledgements that said "duplicate".
    pub fn duplicates(&self) -> usize {
        self.log().duplicates
    }

    /// Connections whose protocol could not be followed to the end, as when replies were dropped in the middle of one.
    pub fn garbled(&self) -> usize {
        self.log().garbled
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("the NATS witness's log")
    }
}

struct ProtocolTap {
    connection: u64,
    requests: bool,
    buffer: Vec<u8>,
    lost: bool,
    log: Arc<Mutex<Log>>,
}

impl Tap for ProtocolTap {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        // Whole pieces before they are written: nobody can act on an answer before its tick.
        out.extend_from_slice(bytes);
        if self.lost {
            return;
        }
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(length) = self.operation(at) {
            at += length;
        }
        self.buffer.drain(..at);
    }
}

impl ProtocolTap {
    /// Records the operation at a place, if it is there whole; its length.
    fn operation(&mut self, at: usize) -> Option<usize> {
        let rest = &self.buffer[at..];
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let size = |word: Option<&&str>| word.and_then(|word| word.parse::<usize>().ok());
        let (headers, total) = match words.first() {
            Some(&("PUB" | "MSG")) => (Some(0), size(words.last())),
            Some(&("HPUB" | "HMSG")) => (size(words.get(words.len().wrapping_sub(2))), size(words.last())),
            Some(&("INFO" | "CONNECT" | "PING" | "PONG" | "SUB" | "UNSUB" | "+OK" | "-ERR")) => return Some(end + 2),
            _ => (None, None),
        };
        let (Some(headers), Some(total)) = (headers, total) else {
            self.lost = true;
            self.log.lock().expect("the NATS witness's log").garbled += 1;
            return None;
        };
        let body = rest.get(end + 2..end + 2 + total)?;
        rest.get(end + 2 + total..end + 4 + total)?;
        let (headers, payload) = body.split_at(headers.min(total));
        if self.requests {
            self.published(&words, headers, payload);
        } else {
            self.answered(&words, payload);
        }
        Some(end + 4 + total)
    }

    fn published(&self, words: &[&str], headers: &[u8], payload: &[u8]) {
        let headers = String::from_utf8_lossy(headers);
        // Requests to JetStream's API carry no event.
        let Some(id) = headers.split("\r\n").find_map(|line| line.strip_prefix("id: ")) else { return };
        let reply = words.get(2).filter(|_| words.len() == 5).map(ToString::to_string);
        let mut log = self.log.lock().expect("the NATS witness's log");
        let index = log.receipts.len();
        log.receipts.push(Receipt {
            tick: clock::tick(),
            at: clock::now(),
            connection: self.connection,
            request: index as u64,
            id: id.to_owned(),
            method: words[0].to_owned(),
            path: words.get(1).copied().unwrap_or_default().to_owned(),
            headers: HeaderMap::new(),
            body: Vec::new(),
            hash: hex(&Sha256::digest(payload)),
            answered: None,
        });
        if let Some(reply) = reply {
            log.waiting.insert((self.connection, reply), index);
        }
    }

    fn answered(&self, words: &[&str], payload: &[u8]) {
        let Some(subject) = words.get(1) else { return };
        let mut log = self.log.lock().expect("the NATS witness's log");
        let Some(index) = log.waiting.remove(&(self.connection, (*subject).to_owned())) else { return };
        let tick = clock::tick();
        // PubAck: {"stream": ..., "seq": ..., "duplicate": ...}, or {"error": ...}; without a stream only a status.
        let answer: Value = serde_json::from_slice(payload).unwrap_or_default();
        let acknowledged = answer["error"].is_null() && answer["seq"].as_u64().is_some_and(|sequence| sequence > 0);
        log.receipts[index].answered = Some((tick, if acknowledged { 200 } else { 503 }));
        if acknowledged {
            log.duplicates += usize::from(answer["duplicate"] == true);
            let id = log.receipts[index].id.clone();
            log.settled.entry(id).or_insert(tick);
        }
    }
}
