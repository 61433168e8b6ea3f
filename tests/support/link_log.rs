//! What the witnesses on the links of Kafka, RabbitMQ and SQS keep: what left walgate, and when the broker's own
//! acknowledgement of it passed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use sha2::{Digest, Sha256};

use super::clock::{self, Tick};
use super::receiver::{Receipt, hex};

#[derive(Default)]
struct Log {
    receipts: Vec<Receipt>,
    settled: HashMap<String, Tick>,
    garbled: usize,
}

/// See the module. Clones share what they keep.
#[derive(Clone, Default)]
pub struct LinkLog(Arc<Mutex<Log>>);

impl LinkLog {
    /// An event leaves walgate; its number, for [`LinkLog::answered`].
    pub fn sent(&self, connection: u64, id: &str, payload: &[u8]) -> usize {
        let hash = hex(&Sha256::digest(payload));
        let mut log = self.log();
        let index = log.receipts.len();
        log.receipts.push(Receipt {
            tick: clock::tick(),
            at: clock::now(),
            connection,
            request: index as u64,
            id: id.to_owned(),
            method: String::new(),
            path: String::new(),
            headers: HeaderMap::new(),
            body: Vec::new(),
            hash,
            answered: None,
        });
        index
    }

    /// The broker's answer to it, before walgate can have read it.
    pub fn answered(&self, index: usize, acknowledged: bool) {
        let mut log = self.log();
        let tick = clock::tick();
        log.receipts[index].answered = Some((tick, if acknowledged { 200 } else { 503 }));
        if acknowledged {
            let id = log.receipts[index].id.clone();
            log.settled.entry(id).or_insert(tick);
        }
    }

    /// A connection's protocol cannot be followed any further.
    pub fn lose_track(&self) {
        self.log().garbled += 1;
    }

    /// What was sent, in the order in which it left walgate, repeats included; `answered` is 200 where the broker
    /// acknowledged it, and 503 where it answered anything else.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.log().receipts.clone()
    }

    /// Events that have left walgate, repeats included.
    pub fn count(&self) -> usize {
        self.log().receipts.len()
    }

    /// When each event's first acknowledgement passed.
    pub fn all_settled(&self) -> HashMap<String, Tick> {
        self.log().settled.clone()
    }

    /// Different events that were acknowledged.
    pub fn settled_count(&self) -> usize {
        self.log().settled.len()
    }

    /// Connections whose protocol could not be followed to the end.
    pub fn garbled(&self) -> usize {
        self.log().garbled
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
