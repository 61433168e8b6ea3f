//! The witness on the Kafka link: a proxy that reads Produce requests and their answers, by hand. What was produced,
//! and when the broker acknowledged it, is read here, and not from walgate.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::kafka_records::{self, Cursor};
use super::kafka_wire::Code;
use super::link_log::LinkLog;
use super::proxy::{Proxy, Tap};

const PRODUCE: i16 = 0;
/// From this version on lengths are varints, and tagged fields may follow.
const FLEXIBLE: i16 = 9;
/// What is there already, under the same number of the same producer, is acknowledged too.
const DUPLICATE_SEQUENCE_NUMBER: Code = Code(46);

/// The requests of one connection that were not answered yet: version, and numbers in the log.
type Waiting = Arc<Mutex<HashMap<i32, (i16, Vec<usize>)>>>;

/// A proxy in front of a broker's port; `log` gets what it sees. TLS is not read, nor is what was compressed.
pub fn proxy(port: u16, log: &LinkLog) -> Proxy {
    let log = log.clone();
    Proxy::with_taps(port, move |connection| {
        let waiting = Waiting::default();
        let tap = |requests| ProtocolTap {
            connection,
            requests,
            buffer: Vec::new(),
            lost: false,
            waiting: waiting.clone(),
            log: log.clone(),
        };
        (Box::new(tap(true)), Box::new(tap(false)))
    })
}

struct ProtocolTap {
    connection: u64,
    requests: bool,
    buffer: Vec<u8>,
    lost: bool,
    waiting: Waiting,
    log: LinkLog,
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
        while let Some(head) = self.buffer.get(at..at + 4) {
            let size = u32::from_be_bytes(head.try_into().expect("four bytes")) as usize;
            let Some(message) = self.buffer.get(at + 4..at + 4 + size) else { break };
            let read = if self.requests { self.request(message) } else { self.answer(message) };
            if read.is_none() {
                self.lost = true;
                self.log.lose_track();
                return;
            }
            at += 4 + size;
        }
        self.buffer.drain(..at);
    }
}

impl ProtocolTap {
    /// `None` where it is nothing that walgate should send.
    fn request(&self, message: &[u8]) -> Option<()> {
        let mut head = Cursor(message);
        let (api, version, correlation) = (head.i16(), head.i16(), head.i32());
        if api != PRODUCE {
            return Some(());
        }
        let flexible = version >= FLEXIBLE;
        // The client's name; fields; the producer has no transactions.
        let name = head.i16().max(0) as usize;
        head.take(name);
        skip_fields(&mut head, flexible);
        skip_text(&mut head, flexible);
        // All replicas must have it, else an answer is no acknowledgement.
        let (acks, _) = (head.i16(), head.i32());
        let topics = count(&mut head, flexible);
        skip_text(&mut head, flexible);
        let partitions = count(&mut head, flexible);
        if (acks, topics, partitions) != (-1, 1, 1) {
            return None;
        }
        let partition = head.i32();
        let length = if flexible { unsigned(&mut head) - 1 } else { head.i32() as usize };
        let decoded = kafka_records::decode(partition, head.take(length));
        let sent = |record: &kafka_records::Record| {
            self.log.sent(self.connection, record.id(), record.value.as_deref().unwrap_or_default())
        };
        let sent = decoded.records.iter().map(sent).collect();
        self.waiting.lock().expect("the waiting requests").insert(correlation, (version, sent));
        Some(())
    }

    fn answer(&self, message: &[u8]) -> Option<()> {
        let mut head = Cursor(message);
        let waiting = self.waiting.lock().expect("the waiting requests").remove(&head.i32());
        let Some((version, sent)) = waiting else { return Some(()) };
        let flexible = version >= FLEXIBLE;
        skip_fields(&mut head, flexible);
        let topics = count(&mut head, flexible);
        skip_text(&mut head, flexible);
        let partitions = count(&mut head, flexible);
        if (topics, partitions) != (1, 1) {
            return None;
        }
        head.i32();
        let code = Code(head.i16());
        for index in sent {
            self.log.answered(index, [Code::NONE, DUPLICATE_SEQUENCE_NUMBER].contains(&code));
        }
        Some(())
    }
}

/// Seven bits in a byte, the lowest first.
fn unsigned(head: &mut Cursor<'_>) -> usize {
    let mut value = 0;
    for shift in (0..28).step_by(7) {
        let byte = head.i8() as u8;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("a length of more than four bytes");
}

/// The length of an array; lengths that are varints are one more, so that 0 can be null.
fn count(head: &mut Cursor<'_>, flexible: bool) -> usize {
    if flexible { unsigned(head).saturating_sub(1) } else { head.i32().max(0) as usize }
}

fn skip_text(head: &mut Cursor<'_>, flexible: bool) {
    let length = if flexible { unsigned(head).saturating_sub(1) } else { head.i16().max(0) as usize };
    head.take(length);
}

fn skip_fields(head: &mut Cursor<'_>, flexible: bool) {
    if !flexible {
        return;
    }
    for _ in 0..unsigned(head) {
        unsigned(head);
        let length = unsigned(head);
        head.take(length);
    }
}
