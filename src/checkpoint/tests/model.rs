//! The ring as it would be written with no care for speed: it keeps every transaction for ever, and works every answer
//! out from the beginning.

use std::num::NonZeroU32;

use walgate_sink::Lsn;

use super::super::{Ring, Settled};

#[derive(Clone, Debug)]
pub(super) struct Model {
    started_at: Lsn,
    transactions: Vec<Transaction>,
    /// Keepalives that came while nothing was unsettled or open.
    idle_keepalives: Vec<Lsn>,
    received: Lsn,
    peak_bytes: u64,
}

#[derive(Clone, Debug)]
struct Transaction {
    commit_lsn: Lsn,
    open: bool,
    /// `None`: open or abandoned.
    end: Option<Lsn>,
    events: Vec<Event>,
}

#[derive(Clone, Debug)]
struct Event {
    remaining: u32,
    bytes: u64,
}

/// Which event of which transaction, both in the order of their calls.
pub(super) type EventNumber = (usize, usize);

impl Transaction {
    fn is_settled(&self) -> bool {
        self.events.iter().all(|event| event.remaining == 0)
    }
}

impl Model {
    pub(super) fn new(confirmed: Lsn) -> Self {
        Model {
            started_at: confirmed,
            transactions: Vec::new(),
            idle_keepalives: Vec::new(),
            received: confirmed,
            peak_bytes: 0,
        }
    }

    pub(super) fn begin(&mut self, commit_lsn: Lsn) {
        self.abandon();
        self.transactions.push(Transaction { commit_lsn, open: true, end: None, events: Vec::new() });
    }

    pub(super) fn track(&mut self, deliveries: NonZeroU32, bytes: u64) -> EventNumber {
        let transaction = self.transactions.len() - 1;
        let events = &mut self.transactions[transaction].events;
        events.push(Event { remaining: deliveries.get(), bytes });
        let number = (transaction, events.len() - 1);
        self.peak_bytes = self.peak_bytes.max(self.unsettled_bytes());
        number
    }

    pub(super) fn commit(&mut self, end: Lsn) {
        self.received = self.received.max(end);
        if let Some(open) = self.transactions.iter_mut().find(|transaction| transaction.open) {
            open.open = false;
            open.end = Some(end);
        }
    }

    pub(super) fn abandon(&mut self) {
        self.transactions.iter_mut().for_each(|transaction| transaction.open = false);
    }

    pub(super) fn keepalive(&mut self, wal_end: Lsn) {
        self.received = self.received.max(wal_end);
        if self.is_idle() {
            self.idle_keepalives.push(wal_end);
        }
    }

    pub(super) fn settle(&mut self, (transaction, event): EventNumber) -> Settled {
        let event = &mut self.transactions[transaction].events[event];
        match event.remaining {
            0 => Settled::Stale,
            1 => {
                event.remaining = 0;
                Settled::EventDone
            }
            _ => {
                event.remaining -= 1;
                Settled::Pending
            }
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.transactions.iter().any(|transaction| transaction.open)
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.is_open() && self.unsettled_events() == 0
    }

    /// Commit ends of the closed transactions of which all events, and those of all earlier ones, are settled.
    fn settled_ends(&self) -> impl Iterator<Item = Lsn> + '_ {
        self.transactions
            .iter()
            .take_while(|transaction| !transaction.open && transaction.is_settled())
            .filter_map(|transaction| transaction.end)
    }

    /// Everything that may be confirmed.
    fn confirmable(&self) -> impl Iterator<Item = Lsn> + '_ {
        std::iter::once(self.started_at).chain(self.settled_ends()).chain(self.idle_keepalives.iter().copied())
    }

    pub(super) fn flush_lsn(&self) -> Lsn {
        self.confirmable().max().unwrap()
    }

    fn unsettled(&self) -> impl Iterator<Item = &Event> {
        self.transactions.iter().flat_map(|transaction| &transaction.events).filter(|event| event.remaining > 0)
    }

    fn unsettled_events(&self) -> u64 {
        self.unsettled().count() as u64
    }

    fn unsettled_bytes(&self) -> u64 {
        self.unsettled().map(|event| event.bytes).sum()
    }

    /// Fails where the ring answers anything else than this model, or breaks a rule.
    pub(super) fn compare(&self, ring: &Ring) {
        ring.check();
        let flush = ring.flush_lsn();
        let held: Vec<_> = self.transactions.iter().filter(|one| one.open || !one.is_settled()).collect();
        for transaction in &held {
            let commit_lsn = transaction.commit_lsn;
            assert!(flush <= commit_lsn, "{flush} is beyond the unsettled transaction {commit_lsn}");
        }
        assert!(self.confirmable().any(|lsn| lsn == flush), "{flush} is no commit end of a settled prefix");
        assert_eq!(flush, self.flush_lsn(), "flush LSN");
        assert_eq!(ring.received_lsn(), self.received, "received LSN");
        assert_eq!(ring.unsettled_events(), self.unsettled_events(), "unsettled events");
        assert_eq!(ring.unsettled_bytes(), self.unsettled_bytes(), "unsettled bytes");
        assert_eq!(ring.peak_bytes(), self.peak_bytes, "peak bytes");
        assert_eq!(ring.is_open(), self.is_open(), "open");
        assert_eq!(ring.is_idle(), self.is_idle(), "idle");
        assert_eq!(ring.transactions(), held.len(), "length of the ring");
        let oldest = held.iter().find(|one| !one.is_settled()).map(|one| one.commit_lsn);
        assert_eq!(ring.oldest_unsettled(), oldest, "oldest unsettled transaction");
    }
}
