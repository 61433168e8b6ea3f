//! The keyed queue: whose turn it is.

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use bytestring::ByteString;
use walgate_sink::Position;

use super::work::{Item, Work};

/// An empty queue keeps at most this many places.
const KEPT_PLACES: usize = 1024;

/// Ready deliveries, and a queue for each busy key. Pure; every operation is O(1) amortized.
///
/// A key is *busy* while an event of it, its *head*, has an unsettled delivery. Only deliveries of the head are ever
/// ready, so two events of a key cannot be in flight together. A key that is not busy leaves no trace.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Had a turn before, or waited behind their key: older than what is ready, and so served first.
    urgent: VecDeque<Item>,
    /// Their first turn, in the order of commits.
    ready: VecDeque<Item>,
    /// It is their turn, and they cannot be sent.
    invalid: VecDeque<Item>,
    keys: HashMap<ByteString, Busy>,
    /// Deliveries behind the heads of their keys.
    behind: usize,
    /// Keys that are halted; deliveries without a key count each.
    halted: usize,
}

#[derive(Debug)]
struct Busy {
    head: Position,
    /// Unsettled deliveries of the head. Never 0.
    open: u32,
    /// A delivery of the head is held for good.
    halted: bool,
    /// Deliveries of later events, in order.
    behind: VecDeque<Work>,
}

impl Queue {
    /// Takes in a delivery: it is ready, or behind its key.
    pub(super) fn push(&mut self, work: Work) {
        let head = work.delivery.event.position;
        if let Some(key) = &work.delivery.ordering_key {
            match self.keys.entry(key.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(Busy { head, open: 1, halted: false, behind: VecDeque::new() });
                }
                Entry::Occupied(mut entry) => {
                    let busy = entry.get_mut();
                    if busy.head != head || !busy.behind.is_empty() {
                        if busy.behind.is_empty() {
                            // Many keys with one event behind are common: no room for four at once.
                            busy.behind.reserve_exact(1);
                        }
                        busy.behind.push_back(work);
                        self.behind += 1;
                        return;
                    }
                    // Another target of the head: there is no order between the deliveries of one event.
                    busy.open += 1;
                }
            }
        }
        let list = if work.invalid.is_some() { &mut self.invalid } else { &mut self.ready };
        list.push_back(Item::new(work));
    }

    /// A delivery that is to be tried again. Its key is still busy with it.
    pub(super) fn again(&mut self, item: Item) {
        self.urgent.push_back(item);
    }

    /// The next delivery to send. `fresh`: prefer those that were never tried.
    pub(super) fn pop(&mut self, fresh: bool) -> Option<Item> {
        let (first, second) =
            if fresh { (&mut self.ready, &mut self.urgent) } else { (&mut self.urgent, &mut self.ready) };
        first.pop_front().or_else(|| second.pop_front())
    }

    /// What [`Queue::pop`] would give.
    pub(super) fn peek(&self, fresh: bool) -> Option<&Item> {
        let (first, second) = if fresh { (&self.ready, &self.urgent) } else { (&self.urgent, &self.ready) };
        first.front().or_else(|| second.front())
    }

    /// The next delivery that cannot be sent.
    pub(super) fn pop_invalid(&mut self) -> Option<Item> {
        self.invalid.pop_front()
    }

    /// A delivery of the head of this key is settled. With the last one the key's next event has its turn.
    pub(super) fn settled(&mut self, key: Option<&ByteString>) {
        let Some(busy) = key.and_then(|key| self.keys.get_mut(key)) else { return };
        busy.open = busy.open.saturating_sub(1);
        if busy.open > 0 {
            return;
        }
        let Some(next) = busy.behind.pop_front() else {
            if let Some(key) = key {
                self.keys.remove(key);
            }
            return;
        };
        busy.head = next.delivery.event.position;
        let mut turn = Some(next);
        while let Some(work) = turn {
            busy.open += 1;
            self.behind -= 1;
            let list = if work.invalid.is_some() { &mut self.invalid } else { &mut self.urgent };
            list.push_back(Item::new(work));
            turn = busy.behind.pop_front_if(|work| work.delivery.event.position == busy.head);
        }
    }

    /// A delivery of the head of this key is held for good.
    pub(super) fn halt(&mut self, key: Option<&ByteString>) {
        let newly = match key.and_then(|key| self.keys.get_mut(key)) {
            Some(busy) => !std::mem::replace(&mut busy.halted, true),
            None => true,
        };
        self.halted += usize::from(newly);
    }

    /// Deliveries that can be sent.
    pub(super) fn ready(&self) -> usize {
        self.urgent.len() + self.ready.len()
    }

    /// Deliveries that wait for the decision about rejected ones.
    pub(super) fn invalid(&self) -> usize {
        self.invalid.len()
    }

    /// All deliveries in here.
    pub(super) fn len(&self) -> usize {
        self.ready() + self.invalid() + self.behind
    }

    /// Busy keys.
    #[cfg(test)]
    pub(super) fn busy_keys(&self) -> usize {
        self.keys.len()
    }

    /// Halted keys; deliveries without a key count each.
    pub(super) fn halted(&self) -> usize {
        self.halted
    }

    /// Candidates for the oldest delivery in here. What has not had a turn stands in the order of commits, so that
    /// the first one of such a list is enough.
    pub(super) fn oldest(&self) -> impl Iterator<Item = &Work> {
        let turns = self.urgent.iter().chain(&self.invalid).chain(self.ready.front()).map(|item| &item.work);
        turns.chain(self.keys.values().filter_map(|busy| busy.behind.front()))
    }

    /// Gives back memory of a burst that is over.
    pub(super) fn shrink(&mut self) {
        for list in [&mut self.urgent, &mut self.ready, &mut self.invalid] {
            list.shrink_to(KEPT_PLACES);
        }
        self.keys.shrink_to(KEPT_PLACES);
    }
}
