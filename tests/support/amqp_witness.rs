//! The witness on the RabbitMQ link: a proxy that reads AMQP 0-9-1 in both directions, by hand. What was published, and
//! when the node confirmed it, is read here, and not from walgate.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use super::amqp_wire::{self, Stored};
use super::link_log::LinkLog;
use super::proxy::{Proxy, Tap};

const HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// Type, channel and length in front of a frame's body; one byte behind it.
const HEAD: usize = 7;

const CHANNEL_OPEN: (u16, u16) = (20, 10);
const CONFIRM_SELECT: (u16, u16) = (85, 10);
const PUBLISH: (u16, u16) = (60, 40);
const RETURN: (u16, u16) = (60, 50);
const ACK: (u16, u16) = (60, 80);
const NACK: (u16, u16) = (60, 120);

/// What a connection's two directions know of one of its channels.
#[derive(Default)]
struct Channel {
    /// The number that the next publish has in confirms.
    next: u64,
    /// The message that is being sent, and the one that is being returned.
    published: Option<Partial>,
    returned: Option<Partial>,
    /// By their numbers in confirms: those in the log, with the event's id.
    waiting: BTreeMap<u64, (usize, String)>,
    /// What no queue took: the confirm that follows is no success.
    unroutable: HashSet<String>,
}

/// A message whose header, or whose body, is not there whole.
#[derive(Default)]
struct Partial {
    message: Option<(usize, Stored)>,
}

type Channels = Arc<Mutex<HashMap<u16, Channel>>>;

/// A proxy in front of a node's port; `log` gets what it sees. TLS is not read.
pub fn proxy(port: u16, log: &LinkLog) -> Proxy {
    let log = log.clone();
    Proxy::with_taps(port, move |connection| {
        let channels = Channels::default();
        let tap = |requests| ProtocolTap {
            connection,
            requests,
            begun: !requests,
            buffer: Vec::new(),
            lost: false,
            channels: channels.clone(),
            log: log.clone(),
        };
        (Box::new(tap(true)), Box::new(tap(false)))
    })
}

struct ProtocolTap {
    connection: u64,
    requests: bool,
    /// Whether the protocol's header has passed, which only the client sends.
    begun: bool,
    buffer: Vec<u8>,
    lost: bool,
    channels: Channels,
    log: LinkLog,
}

impl Tap for ProtocolTap {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        // Whole pieces before they are written: nobody can act on a confirm before its tick.
        out.extend_from_slice(bytes);
        if self.lost {
            return;
        }
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        if !self.begun {
            if self.buffer.len() < HEADER.len() {
                return;
            }
            (self.begun, at) = (true, HEADER.len());
            self.lost = !self.buffer.starts_with(HEADER);
        }
        while let Some(head) = self.buffer.get(at..at + HEAD).filter(|_| !self.lost) {
            let (kind, channel) = (head[0], u16::from_be_bytes([head[1], head[2]]));
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let Some(body) = self.buffer.get(at + HEAD..at + HEAD + size + 1) else { break };
            let (Some((0xce, body)), true) = (body.split_last(), matches!(kind, 1 | 2 | 3 | 8)) else {
                self.lost = true;
                break;
            };
            self.frame(kind, channel, body);
            at += HEAD + size + 1;
        }
        if self.lost {
            self.log.lose_track();
            return;
        }
        self.buffer.drain(..at);
    }
}

impl ProtocolTap {
    fn frame(&self, kind: u8, number: u16, body: &[u8]) {
        let mut channels = self.channels.lock().expect("the channels");
        let channel = channels.entry(number).or_default();
        if kind == 1 {
            let method = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
            self.method(channel, (method(0), method(2)), &body[4..]);
            return;
        }
        let partial = if self.requests { &mut channel.published } else { &mut channel.returned };
        let Some(partial) = partial else { return };
        match (kind, &mut partial.message) {
            (2, message) => *message = Some(amqp_wire::content_header(body)),
            (3, Some((_, message))) => message.data.extend_from_slice(body),
            _ => return,
        }
        let Some((size, message)) = &partial.message else { return };
        if message.data.len() < *size {
            return;
        }
        let id = message.id().to_owned();
        if self.requests {
            let index = self.log.sent(self.connection, &id, &message.data);
            channel.waiting.insert(channel.next, (index, id));
            channel.next += 1;
            channel.published = None;
        } else {
            channel.unroutable.insert(id);
            channel.returned = None;
        }
    }

    fn method(&self, channel: &mut Channel, method: (u16, u16), arguments: &[u8]) {
        match method {
            CHANNEL_OPEN => *channel = Channel::default(),
            CONFIRM_SELECT => channel.next = 1,
            PUBLISH => channel.published = Some(Partial::default()),
            RETURN => channel.returned = Some(Partial::default()),
            ACK | NACK if !self.requests => {
                let tag = u64::from_be_bytes(arguments[..8].try_into().expect("eight bytes"));
                let later = channel.waiting.split_off(&(tag + 1));
                let mut answered = std::mem::replace(&mut channel.waiting, later);
                if arguments[8] & 1 == 0 {
                    // That one alone.
                    let others = answered.split_off(&tag);
                    channel.waiting.append(&mut answered);
                    answered = others;
                }
                for (index, id) in answered.into_values() {
                    let routed = !channel.unroutable.remove(&id);
                    self.log.answered(index, method == ACK && routed);
                }
            }
            _ => {}
        }
    }
}
