//! The witness on the SQS link: a proxy that reads HTTP/1.1 and SQS's JSON in both directions, by hand. What was sent,
//! and when its entry came back as successful, is read here, and not from walgate.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::link_log::LinkLog;
use super::proxy::{Proxy, Tap};

/// The requests of one connection that were not answered yet, in their order: entries by their ids in the request, with
/// their numbers in the log. Of other calls than `SendMessageBatch` there are none.
type Waiting = Arc<Mutex<VecDeque<Vec<(String, usize)>>>>;

/// A proxy in front of a server's port; `log` gets what it sees. TLS is not read.
pub fn proxy(port: u16, log: &LinkLog) -> Proxy {
    let log = log.clone();
    Proxy::with_taps(port, move |connection| {
        let waiting = Waiting::default();
        let tap = |requests| HttpTap {
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

struct HttpTap {
    connection: u64,
    requests: bool,
    buffer: Vec<u8>,
    lost: bool,
    waiting: Waiting,
    log: LinkLog,
}

impl Tap for HttpTap {
    fn pass(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        // Whole pieces before they are written: nobody can act on an answer before its tick.
        out.extend_from_slice(bytes);
        if self.lost {
            return;
        }
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(length) = self.message(at) {
            at += length;
        }
        if self.lost {
            self.log.lose_track();
        }
        self.buffer.drain(..at);
    }
}

impl HttpTap {
    /// Records the message at a place, if it is there whole; its length.
    fn message(&mut self, at: usize) -> Option<usize> {
        let rest = &self.buffer[at..];
        let end = rest.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
        let head = String::from_utf8_lossy(&rest[..end]).into_owned();
        let field = |name: &str| {
            let mut fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
            fields.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
        };
        // Neither side chunks; an answer without a length has no body.
        let length = field("content-length").map_or(Some(0), |length| length.parse::<usize>().ok());
        let (Some(length), None) = (length, field("transfer-encoding")) else {
            self.lost = true;
            return None;
        };
        let body = serde_json::from_slice(rest.get(end..end + length)?).unwrap_or_default();
        if self.requests {
            let sends = field("x-amz-target").is_some_and(|target| target.ends_with(".SendMessageBatch"));
            let sent = if sends { self.sent(&body) } else { Vec::new() };
            self.waiting.lock().expect("the waiting requests").push_back(sent);
        } else {
            let success = head.split(' ').nth(1) == Some("200");
            self.answered(&body, success);
        }
        Some(end + length)
    }

    fn sent(&self, body: &Value) -> Vec<(String, usize)> {
        let entries = body["Entries"].as_array().into_iter().flatten();
        let sent = entries.map(|entry| {
            let text = |value: &Value| value.as_str().map(str::to_owned).expect("a text");
            let id = text(&entry["MessageAttributes"]["id"]["StringValue"]);
            let index = self.log.sent(self.connection, &id, text(&entry["MessageBody"]).as_bytes());
            (text(&entry["Id"]), index)
        });
        sent.collect()
    }

    fn answered(&self, body: &Value, success: bool) {
        let Some(sent) = self.waiting.lock().expect("the waiting requests").pop_front() else { return };
        let successful: Vec<&str> =
            body["Successful"].as_array().into_iter().flatten().filter_map(|entry| entry["Id"].as_str()).collect();
        for (id, index) in sent {
            self.log.answered(index, success && successful.contains(&id.as_str()));
        }
    }
}
