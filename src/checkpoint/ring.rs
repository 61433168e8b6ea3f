//! The low-water mark: from settled deliveries to the flush LSN.

use std::num::NonZeroU32;

use walgate_sink::Lsn;

use super::{
    events::{Events, Outcome, Ticket},
    transactions::Transactions,
};

/// What [`Ring::settle`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The event's last delivery: the event is settled.
    EventDone,
    /// The event waits for other deliveries.
    Pending,
    /// The event was settled before. Nothing changed.
    Stale,
}

/// The transactions that are open or have unsettled events, in commit order, and the flush LSN.
///
/// Pure: no IO, no clock. Every call is O(1), and a steady state allocates nothing. Closed and settled transactions
/// behind an unsettled one merge into it, so that the ring is never longer than the transactions with unsettled
/// events, and the open one.
///
/// LSNs are expected to ascend, which [`Resume`](super::Resume) sees to. No sequence of calls panics or lets the flush
/// LSN fall.
#[derive(Clone, Debug)]
pub struct Ring {
    transactions: Transactions,
    events: Events,
    /// The newest transaction is open.
    open: bool,
    /// An event was tracked in the newest transaction.
    tracked: bool,
    flush: Lsn,
    /// What of it was confirmed by transactions with events, keepalives and the rest aside.
    settled: Lsn,
    received: Lsn,
    unsettled_events: u64,
    unsettled_bytes: u64,
    peak_bytes: u64,
}

impl Ring {
    /// An empty ring over a slot whose confirmed flush LSN is `confirmed`.
    #[must_use]
    pub fn new(confirmed: Lsn) -> Self {
        Ring {
            transactions: Transactions::new(),
            events: Events::new(),
            open: false,
            tracked: false,
            flush: confirmed,
            settled: confirmed,
            received: confirmed,
            unsettled_events: 0,
            unsettled_bytes: 0,
            peak_bytes: 0,
        }
    }

    /// Begins again over what the slot has confirmed by now, and holds nothing. What is settled stays so: the flush LSN
    /// does not fall. Tickets of before are stale.
    pub fn restart(&mut self, confirmed: Lsn) {
        let flush = self.flush.max(confirmed);
        let mut events = std::mem::replace(&mut self.events, Events::new());
        events.clear();
        *self = Ring { events, peak_bytes: self.peak_bytes, ..Ring::new(flush) };
    }

    /// Opens the transaction whose commit record starts at `commit_lsn` (`final_lsn` of its Begin). One that is still
    /// open is abandoned.
    pub fn begin(&mut self, commit_lsn: Lsn) {
        self.abandon();
        self.transactions.push(commit_lsn);
        (self.open, self.tracked) = (true, false);
    }

    /// Takes in an event of the open transaction. `bytes` is the memory that it holds; it counts once, however many
    /// deliveries there are.
    ///
    /// With no transaction open the event gets one of its own, which stays open: the flush LSN holds.
    pub fn track(&mut self, deliveries: NonZeroU32, bytes: u64) -> Ticket {
        if !self.open {
            self.begin(self.received);
        }
        let slot = self.transactions.last();
        if let Some(transaction) = self.transactions.get_mut(slot) {
            transaction.unsettled += 1;
        }
        self.tracked = true;
        self.unsettled_events += 1;
        self.unsettled_bytes = self.unsettled_bytes.saturating_add(bytes);
        self.peak_bytes = self.peak_bytes.max(self.unsettled_bytes);
        self.events.insert(slot, deliveries, bytes)
    }

    /// Closes the open transaction; `end` is its commit end (`end_lsn` of its Commit). If it has no unsettled events
    /// and nothing is before it, the flush LSN is `end` at once.
    pub fn commit(&mut self, end: Lsn) {
        self.received = self.received.max(end);
        self.close(Some(end));
    }

    /// Closes the open transaction without an end: its events, once settled, confirm nothing, because the server will
    /// send it again. Until then they hold what comes behind it. Without an open transaction nothing happens.
    pub fn abandon(&mut self) {
        self.close(None);
    }

    /// Takes in the WAL end of a keepalive. It is confirmed only when nothing is unsettled and no transaction is open.
    pub fn keepalive(&mut self, wal_end: Lsn) {
        self.received = self.received.max(wal_end);
        if self.is_idle() {
            self.advance(wal_end);
        }
    }

    /// Settles one delivery of the ticket's event.
    pub fn settle(&mut self, ticket: Ticket) -> Settled {
        let (slot, bytes) = match self.events.settle(ticket) {
            Outcome::Stale => return Settled::Stale,
            Outcome::Pending => return Settled::Pending,
            Outcome::Done { transaction, bytes } => (transaction, bytes),
        };
        debug_assert!(self.unsettled_events > 0, "an event that was not counted");
        self.unsettled_events = self.unsettled_events.saturating_sub(1);
        self.unsettled_bytes = self.unsettled_bytes.saturating_sub(bytes);
        let open = self.open && slot == self.transactions.last();
        if let Some(transaction) = self.transactions.get_mut(slot) {
            debug_assert!(transaction.unsettled > 0, "an event of a settled transaction");
            transaction.unsettled = transaction.unsettled.saturating_sub(1);
            if transaction.unsettled == 0 && !open {
                self.release(slot);
                self.settled = self.flush;
            }
        }
        Settled::EventDone
    }

    /// The LSN to confirm to the server: everything before it is settled.
    #[must_use]
    pub fn flush_lsn(&self) -> Lsn {
        self.flush
    }

    /// How far transactions with events have brought the flush LSN: beyond it, keepalives and transactions without
    /// events have.
    #[must_use]
    pub fn settled_lsn(&self) -> Lsn {
        self.settled
    }

    /// The furthest commit end or keepalive that was taken in.
    #[must_use]
    pub fn received_lsn(&self) -> Lsn {
        self.received
    }

    /// Events with unsettled deliveries.
    #[must_use]
    pub fn unsettled_events(&self) -> u64 {
        self.unsettled_events
    }

    /// Bytes of the events with unsettled deliveries.
    #[must_use]
    pub fn unsettled_bytes(&self) -> u64 {
        self.unsettled_bytes
    }

    /// The most bytes that were ever unsettled at once.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.peak_bytes
    }

    /// Length of the ring: transactions that have unsettled events or are open.
    #[must_use]
    pub fn transactions(&self) -> usize {
        self.transactions.len()
    }

    /// A transaction is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Nothing is unsettled and no transaction is open.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.transactions.len() == 0
    }

    /// Start of the commit record of the oldest transaction with unsettled events: what holds the flush LSN.
    #[must_use]
    pub fn oldest_unsettled(&self) -> Option<Lsn> {
        self.transactions.first().filter(|oldest| oldest.unsettled > 0).map(|oldest| oldest.commit_lsn)
    }

    /// Closes the open transaction, which gives its end, or nothing beyond what the one before it gives.
    fn close(&mut self, end: Option<Lsn>) {
        if !self.open {
            return;
        }
        self.open = false;
        let slot = self.transactions.last();
        let Some(&transaction) = self.transactions.get(slot) else { return };
        let before = self.transactions.get(transaction.previous).map_or(self.flush, |previous| previous.through);
        let through = end.map_or(before, |end| end.max(before));
        if let Some(closed) = self.transactions.get_mut(slot) {
            closed.through = through;
        }
        if transaction.unsettled == 0 {
            self.release(slot);
            if self.tracked {
                self.settled = self.flush;
            }
        }
    }

    /// Takes a closed and settled transaction out. What it gives goes to the one before it, or, where there is none,
    /// is confirmed.
    fn release(&mut self, slot: u32) {
        let Some(released) = self.transactions.remove(slot) else { return };
        debug_assert!(released.unsettled == 0, "a transaction with unsettled events was released");
        match self.transactions.get_mut(released.previous) {
            Some(previous) => previous.through = previous.through.max(released.through),
            None => self.advance(released.through),
        }
    }

    /// Confirms up to `to`; never back.
    fn advance(&mut self, to: Lsn) {
        let before = self.flush;
        self.flush = before.max(to);
        debug_assert!(
            self.transactions
                .first()
                .is_none_or(|oldest| self.flush <= oldest.commit_lsn || oldest.commit_lsn < before),
            "the flush LSN passed an unsettled transaction"
        );
        debug_assert!(
            self.transactions.first().is_none_or(|oldest| oldest.unsettled > 0 || self.open),
            "a closed and settled transaction stayed in the ring"
        );
    }
}

#[cfg(test)]
impl Ring {
    /// What the ring holds, oldest first: commit LSN, unsettled events, and what it gives (`None`: it is open).
    pub(super) fn shape(&self) -> Vec<(Lsn, u64, Option<Lsn>)> {
        let walk = self.transactions.walk();
        let open = |index: usize| self.open && index + 1 == walk.len();
        let shape = |(index, (_, entry)): (usize, &(u32, super::transactions::Transaction))| {
            (entry.commit_lsn, entry.unsettled, (!open(index)).then_some(entry.through))
        };
        walk.iter().enumerate().map(shape).collect()
    }

    /// Slots of the two slabs, used or free.
    pub(super) fn slots(&self) -> (usize, usize) {
        (self.transactions.slots(), self.events.slots())
    }

    /// Walks over everything and fails where the parts disagree.
    pub(super) fn check(&self) {
        let walk = self.transactions.walk();
        let (mut events, mut bytes) = (0, 0u64);
        let mut by_slot = std::collections::HashMap::<u32, u64>::new();
        for (transaction, size) in self.events.walk() {
            events += 1;
            bytes += size;
            *by_slot.entry(transaction).or_default() += 1;
        }
        assert_eq!((events, bytes), (self.unsettled_events, self.unsettled_bytes), "events and their bytes");
        assert!(self.peak_bytes >= self.unsettled_bytes);
        assert!(self.flush <= self.received, "confirmed {} beyond what was received, {}", self.flush, self.received);
        let mut given = self.flush;
        for (index, (slot, transaction)) in walk.iter().enumerate() {
            let open = self.open && index + 1 == walk.len();
            assert_eq!(by_slot.remove(slot).unwrap_or(0), transaction.unsettled, "events of slot {slot}");
            assert!(open || transaction.unsettled > 0, "a closed and settled transaction stayed in the ring");
            if !open {
                assert!(given <= transaction.through || index == 0, "what transactions give does not fall");
                given = transaction.through;
            }
        }
        assert!(by_slot.is_empty(), "events without a transaction");
        assert!(!self.open || !walk.is_empty(), "open, without a transaction");
    }
}
