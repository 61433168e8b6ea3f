//! The ring's transactions: a doubly linked list over a slab, so that any one is removed at once and a steady state
//! allocates nothing.

use walgate_sink::Lsn;

/// No slot: the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// A transaction that is open, or closed with unsettled events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transaction {
    /// Start of its commit record.
    pub(super) commit_lsn: Lsn,
    /// Its events that are not settled.
    pub(super) unsettled: u64,
    /// Once it is closed: how far the flush LSN goes when it and all before it are settled. Its own commit end, or
    /// that of the last transaction in the run of closed and settled ones directly behind it.
    pub(super) through: Lsn,
    /// The one before it in commit order, or [`NONE`].
    pub(super) previous: u32,
    /// The one behind it, or [`NONE`]; in a free entry, the next free slot.
    pub(super) next: u32,
}

/// Transactions in commit order. A slot is good from `push` to `remove`; an event's transaction has unsettled events
/// and is therefore in the list, so that slots need no generation.
#[derive(Clone, Debug)]
pub(super) struct Transactions {
    entries: Vec<Transaction>,
    free: u32,
    first: u32,
    last: u32,
    len: usize,
}

impl Transactions {
    pub(super) fn new() -> Self {
        Transactions { entries: Vec::new(), free: NONE, first: NONE, last: NONE, len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The slot of the newest, or [`NONE`].
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    pub(super) fn first(&self) -> Option<&Transaction> {
        self.get(self.first)
    }

    pub(super) fn get(&self, slot: u32) -> Option<&Transaction> {
        self.entries.get(slot as usize)
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Transaction> {
        self.entries.get_mut(slot as usize)
    }

    /// Appends a transaction without events. All but the newest have unsettled events, and those are fewer than
    /// [`NONE`]: there is always a slot.
    pub(super) fn push(&mut self, commit_lsn: Lsn) {
        let transaction = Transaction { commit_lsn, unsettled: 0, through: Lsn::ZERO, previous: self.last, next: NONE };
        let slot = match self.entries.get_mut(self.free as usize) {
            Some(entry) => {
                let slot = self.free;
                self.free = entry.next;
                *entry = transaction;
                slot
            }
            None => {
                let slot = u32::try_from(self.entries.len()).unwrap_or(NONE);
                self.entries.push(transaction);
                slot
            }
        };
        match self.get_mut(self.last) {
            Some(last) => last.next = slot,
            None => self.first = slot,
        }
        self.last = slot;
        self.len += 1;
    }

    /// Takes a transaction out, and returns it as it was.
    pub(super) fn remove(&mut self, slot: u32) -> Option<Transaction> {
        let removed = *self.get(slot)?;
        match self.get_mut(removed.previous) {
            Some(previous) => previous.next = removed.next,
            None => self.first = removed.next,
        }
        match self.get_mut(removed.next) {
            Some(next) => next.previous = removed.previous,
            None => self.last = removed.previous,
        }
        let free = self.free;
        self.get_mut(slot)?.next = free;
        self.free = slot;
        self.len -= 1;
        Some(removed)
    }

    /// Slots ever used: the longest that the list was.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.entries.len()
    }

    /// Slots and transactions from the oldest to the newest; fails on a broken link.
    #[cfg(test)]
    pub(super) fn walk(&self) -> Vec<(u32, Transaction)> {
        let mut found = Vec::new();
        let (mut previous, mut slot) = (NONE, self.first);
        while slot != NONE {
            let transaction = self.entries[slot as usize];
            assert_eq!(transaction.previous, previous, "the link back from slot {slot}");
            assert!(found.len() < self.len, "more entries than the list counts");
            found.push((slot, transaction));
            (previous, slot) = (slot, transaction.next);
        }
        assert_eq!(self.last, previous);
        assert_eq!(self.len, found.len());
        found
    }
}
