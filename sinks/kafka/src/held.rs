//! What librdkafka holds: each record once, whoever waits for it.
//!
//! A record never expires in librdkafka. So when the time of an attempt is over, the record is still on its way, and
//! when the same delivery comes again it must not be queued a second time: its next attempt takes the place of the last
//! one, and waits for the same report. What was acknowledged while nobody waited is kept for the attempt that comes.
//!
//! Pure: no clock, no client.

use std::collections::{HashMap, VecDeque};

use walgate_sink::{ByteString, Delivery, Position};

/// Acknowledgements without an asker that are kept; beyond it the oldest is forgotten, and its record can be repeated.
const MAX_KEPT: usize = 16_384;

/// Which delivery a record is: the same in every attempt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    position: (u64, u32),
    dedup_id: ByteString,
}

impl Identity {
    pub(crate) fn of(delivery: &Delivery) -> Self {
        let Position { commit_lsn, ordinal } = delivery.event.position;
        Identity { position: (commit_lsn.0, ordinal), dedup_id: delivery.dedup_id.clone() }
    }
}

/// Who waits for a record: the number of an attempt, and the delivery's place in its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) attempt: u64,
    pub(crate) index: usize,
}

/// What is to be done about a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It is to be queued under this sequence number.
    Queue(u64),
    /// librdkafka holds it: the waiter is told.
    Held,
    /// It was acknowledged meanwhile.
    Acknowledged,
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    waiter: Option<Waiter>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Held {
    next: u64,
    flying: HashMap<u64, Entry>,
    sequences: HashMap<Identity, u64>,
    /// Acknowledged while nobody waited, with the number that tells which of two the queue below means.
    kept: HashMap<Identity, u64>,
    order: VecDeque<(u64, Identity)>,
}

impl Held {
    /// A delivery that an attempt wants delivered.
    pub(crate) fn take(&mut self, identity: Identity, waiter: Waiter) -> Taken {
        if self.kept.remove(&identity).is_some() {
            return Taken::Acknowledged;
        }
        if let Some(entry) = self.sequences.get(&identity).and_then(|sequence| self.flying.get_mut(sequence)) {
            entry.waiter = Some(waiter);
            return Taken::Held;
        }
        let sequence = self.next;
        self.next += 1;
        self.sequences.insert(identity.clone(), sequence);
        self.flying.insert(sequence, Entry { identity, waiter: Some(waiter) });
        Taken::Queue(sequence)
    }

    /// The record was not queued after all.
    pub(crate) fn unqueued(&mut self, sequence: u64) {
        if let Some(entry) = self.flying.remove(&sequence) {
            self.sequences.remove(&entry.identity);
        }
    }

    /// The report of a record has come; who waits for it. A report on a record that is not held changes nothing.
    pub(crate) fn settle(&mut self, sequence: u64, acknowledged: bool) -> Option<Waiter> {
        let Entry { identity, waiter } = self.flying.remove(&sequence)?;
        self.sequences.remove(&identity);
        if waiter.is_none() && acknowledged {
            self.keep(sequence, identity);
        }
        waiter
    }

    fn keep(&mut self, sequence: u64, identity: Identity) {
        self.kept.insert(identity.clone(), sequence);
        self.order.push_back((sequence, identity));
        while self.order.len() > MAX_KEPT {
            if let Some((sequence, identity)) = self.order.pop_front()
                && self.kept.get(&identity) == Some(&sequence)
            {
                self.kept.remove(&identity);
            }
        }
        if self.kept.is_empty() {
            self.order.clear();
        }
    }

    /// An attempt is over: nobody waits any more for what it waited for.
    pub(crate) fn leave(&mut self, attempt: u64) {
        for entry in self.flying.values_mut() {
            if entry.waiter.is_some_and(|waiter| waiter.attempt == attempt) {
                entry.waiter = None;
            }
        }
    }

    /// Records that librdkafka holds.
    pub(crate) fn len(&self) -> usize {
        self.flying.len()
    }

    /// The client has gone with all that it held: who waited for something.
    pub(crate) fn drain(&mut self) -> Vec<Waiter> {
        self.sequences.clear();
        self.flying.drain().filter_map(|(_, entry)| entry.waiter).collect()
    }
}

#[cfg(test)]
mod tests;
