//! A simulated server with a slot, and what a gateway must make of its stream, written naively: the reference of the
//! random histories.

use std::collections::BTreeSet;

use proptest::sample::Index;
use walgate_sink::{Lsn, Position};

use super::super::{BeginVerdict, CommitVerdict, RowVerdict, Settled};
use super::model::{EventNumber, Model};
use super::{deliveries, lsn};

/// A position that no honest server is at.
const AHEAD: u64 = 1_000_000;

#[derive(Clone, Debug)]
pub(super) enum Row {
    /// A row of the outbox; with no deliveries, no rule routes it.
    Outbox {
        id: u32,
        deliveries: u32,
        bytes: u64,
    },
    OtherTable,
}

#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub(super) commit_lsn: Lsn,
    pub(super) end_lsn: Lsn,
    pub(super) rows: Vec<Row>,
}

/// What a transaction's last taken row turns into.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    AnotherId,
    AnotherTable,
    Gone,
}

#[derive(Clone, Debug)]
pub(super) enum Transition {
    /// An application commits; the record starts `gap` behind the WAL's end and is `length` long. `None`: a row of
    /// another table; else deliveries and bytes.
    Commit {
        gap: u64,
        length: u64,
        rows: Vec<Option<(u32, u64)>>,
    },
    /// The gateway reads so many messages.
    Receive(usize),
    /// A keepalive: honest where the gateway believes it, far ahead where it must not.
    Keepalive {
        drift: u64,
    },
    Settle(Index),
    SettleEverything,
    SettleAgain(Index),
    /// The gateway sends a status.
    Report,
    /// The server makes the slot's position durable.
    Persist,
    /// The connection is lost; with `crash` the slot goes back to its durable position.
    Reconnect {
        crash: bool,
    },
    /// The open transaction looks different after a reconnect.
    ReconnectChanged(Change),
    /// The gateway starts anew, with nothing but the slot.
    Restart {
        crash: bool,
    },
}

/// What happened in a step, in order, with the right answers.
#[derive(Clone, Debug)]
pub(super) enum Happened {
    Begin { commit_lsn: Lsn, verdict: BeginVerdict },
    Row { id: u32, deliveries: u32, bytes: u64, verdict: RowVerdict },
    OtherRow,
    Commit { commit_lsn: Lsn, end_lsn: Lsn, verdict: CommitVerdict },
    Keepalive { wal_end: Lsn, between_transactions: bool },
    Settle { event: usize, settled: Settled },
    Abandoned,
    Connected,
    Restarted { confirmed: Lsn },
}

/// An event that the gateway's current process tracks, or tracked.
#[derive(Clone, Debug)]
struct Tracked {
    number: EventNumber,
    id: u32,
    remaining: u32,
}

#[derive(Clone, Debug)]
pub(super) struct World {
    log: Vec<Committed>,
    wal_end: u64,
    next_id: u32,
    slot: Lsn,
    durable: Lsn,
    /// The transaction that the server sends next or is sending, and in the latter case the next row.
    at: (usize, Option<usize>),

    pub(super) model: Model,
    started_at: Lsn,
    /// Commit LSNs of the transactions that this process closed.
    closed: BTreeSet<Lsn>,
    /// Every row that this process took, in order, without those of transactions that it gave up.
    taken: Vec<(Lsn, u32, u32)>,
    open: Option<Lsn>,
    mismatched: bool,
    events: Vec<Tracked>,

    /// Ids settled by any process.
    settled: BTreeSet<u32>,
    pub(super) happened: Vec<Happened>,
}

impl World {
    pub(super) fn new(confirmed: Lsn) -> Self {
        World {
            log: Vec::new(),
            wal_end: confirmed.0,
            next_id: 0,
            slot: confirmed,
            durable: confirmed,
            at: (0, None),
            model: Model::new(confirmed),
            started_at: confirmed,
            closed: BTreeSet::new(),
            taken: Vec::new(),
            open: None,
            mismatched: false,
            events: Vec::new(),
            settled: BTreeSet::new(),
            happened: Vec::new(),
        }
    }

    pub(super) fn apply(&mut self, transition: &Transition) {
        self.happened.clear();
        match transition {
            Transition::Commit { gap, length, rows } => self.commit(*gap, *length, rows),
            Transition::Receive(count) => (0..*count).for_each(|_| self.receive()),
            Transition::Keepalive { drift } => self.keepalive(*drift),
            Transition::Settle(index) => {
                let unsettled = self.with_remaining(|remaining| remaining > 0);
                if !unsettled.is_empty() {
                    self.settle(*index.get(&unsettled));
                }
            }
            Transition::SettleEverything => {
                for event in self.with_remaining(|remaining| remaining > 0).into_iter().rev() {
                    for _ in 0..self.events[event].remaining {
                        self.settle(event);
                    }
                }
            }
            Transition::SettleAgain(index) => {
                let gone = self.with_remaining(|remaining| remaining == 0);
                if !gone.is_empty() {
                    self.settle(*index.get(&gone));
                }
            }
            Transition::Report => self.slot = self.slot.max(self.model.flush_lsn()),
            Transition::Persist => self.durable = self.slot,
            Transition::Reconnect { crash } => self.connect(*crash),
            Transition::ReconnectChanged(change) => self.change(*change),
            Transition::Restart { crash } => self.restart(*crash),
        }
    }

    /// The first transaction with a routed row that nobody has settled: no process may confirm beyond its commit
    /// record, whether it was received or not.
    pub(super) fn first_owed(&self) -> Option<Lsn> {
        let owed = |row: &Row| match row {
            Row::Outbox { id, deliveries, .. } => *deliveries > 0 && !self.settled.contains(id),
            Row::OtherTable => false,
        };
        self.log.iter().find(|transaction| transaction.rows.iter().any(owed)).map(|owed| owed.commit_lsn)
    }

    pub(super) fn everything_was_sent(&self) -> bool {
        self.at.0 == self.log.len()
    }

    pub(super) fn last_end(&self) -> Option<Lsn> {
        self.log.last().map(|transaction| transaction.end_lsn)
    }

    pub(super) fn last_taken(&self) -> Option<(Lsn, u32)> {
        self.taken.last().map(|(commit_lsn, ordinal, _)| (*commit_lsn, *ordinal))
    }

    pub(super) fn open_transaction(&self) -> Option<Lsn> {
        self.open
    }

    fn new_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    fn commit(&mut self, gap: u64, length: u64, rows: &[Option<(u32, u64)>]) {
        let rows = rows
            .iter()
            .map(|row| match row {
                Some((deliveries, bytes)) => Row::Outbox { id: self.new_id(), deliveries: *deliveries, bytes: *bytes },
                None => Row::OtherTable,
            })
            .collect();
        let commit_lsn = self.wal_end + gap;
        self.wal_end = commit_lsn + length;
        self.log.push(Committed { commit_lsn: lsn(commit_lsn), end_lsn: lsn(self.wal_end), rows });
    }

    fn receive(&mut self) {
        let Some(transaction) = self.log.get(self.at.0).cloned() else { return };
        match self.at.1 {
            None => {
                self.at.1 = Some(0);
                self.receive_begin(transaction.commit_lsn);
            }
            Some(row) if row < transaction.rows.len() => {
                self.at.1 = Some(row + 1);
                self.receive_row(transaction.commit_lsn, row as u32, &transaction.rows[row]);
            }
            Some(_) => {
                self.at = (self.at.0 + 1, None);
                self.receive_commit(&transaction);
            }
        }
    }

    fn is_closed(&self, commit_lsn: Lsn) -> bool {
        commit_lsn < self.started_at || self.closed.contains(&commit_lsn)
    }

    fn last_of(&self, transaction: Lsn) -> Option<(u32, u32)> {
        let last = self.taken.iter().rfind(|(commit_lsn, ..)| *commit_lsn == transaction);
        last.map(|(_, ordinal, id)| (*ordinal, *id))
    }

    fn receive_begin(&mut self, commit_lsn: Lsn) {
        let verdict = if self.is_closed(commit_lsn) {
            BeginVerdict::Skip
        } else if self.open == Some(commit_lsn) {
            BeginVerdict::Continue
        } else {
            assert_eq!(self.open, None, "the simulated server forgot a transaction");
            self.open = Some(commit_lsn);
            self.model.begin(commit_lsn);
            BeginVerdict::New
        };
        self.happened.push(Happened::Begin { commit_lsn, verdict });
    }

    fn receive_row(&mut self, commit_lsn: Lsn, ordinal: u32, row: &Row) {
        let last = self.last_of(commit_lsn).filter(|_| !self.is_closed(commit_lsn));
        let Row::Outbox { id, deliveries: count, bytes } = *row else {
            self.mismatched |= last.is_some_and(|(last, _)| last == ordinal);
            self.happened.push(Happened::OtherRow);
            return;
        };
        let verdict = if self.is_closed(commit_lsn) {
            RowVerdict::Skip
        } else {
            match last {
                _ if self.mismatched => RowVerdict::Mismatch,
                Some((last, last_id)) if ordinal == last && id != last_id => RowVerdict::Mismatch,
                Some((last, _)) if ordinal <= last => RowVerdict::Skip,
                _ => RowVerdict::Track(Position { commit_lsn, ordinal }),
            }
        };
        self.happened.push(Happened::Row { id, deliveries: count, bytes, verdict });
        match verdict {
            RowVerdict::Mismatch => self.give_up(commit_lsn),
            RowVerdict::Track(_) => {
                self.taken.push((commit_lsn, ordinal, id));
                if count > 0 {
                    let number = self.model.track(deliveries(count), bytes);
                    self.events.push(Tracked { number, id, remaining: count });
                }
            }
            _ => {}
        }
    }

    fn receive_commit(&mut self, transaction: &Committed) {
        let &Committed { commit_lsn, end_lsn, .. } = transaction;
        let rows = transaction.rows.len() as u32;
        let verdict = if self.is_closed(commit_lsn) {
            CommitVerdict::Skip
        } else if self.mismatched || self.last_of(commit_lsn).is_some_and(|(last, _)| last >= rows) {
            CommitVerdict::Mismatch
        } else {
            CommitVerdict::Close
        };
        self.happened.push(Happened::Commit { commit_lsn, end_lsn, verdict });
        match verdict {
            CommitVerdict::Mismatch => self.give_up(commit_lsn),
            CommitVerdict::Close => {
                self.closed.insert(commit_lsn);
                self.open = None;
                self.model.commit(end_lsn);
            }
            _ => {}
        }
    }

    fn give_up(&mut self, commit_lsn: Lsn) {
        self.taken.retain(|(taken, ..)| *taken != commit_lsn);
        self.open = None;
        self.model.abandon();
        self.happened.push(Happened::Abandoned);
        self.connect(false);
    }

    fn keepalive(&mut self, drift: u64) {
        let between_transactions = self.at.1.is_none();
        let wal_end = if !self.model.is_idle() || !between_transactions {
            lsn(self.wal_end + AHEAD)
        } else if let Some(next) = self.log.get(self.at.0) {
            next.commit_lsn
        } else {
            self.wal_end += drift;
            lsn(self.wal_end)
        };
        // Inside a transaction that is skipped only the intake knows better, and does not tell the ring.
        if between_transactions || self.model.is_open() {
            self.model.keepalive(wal_end);
        }
        self.happened.push(Happened::Keepalive { wal_end, between_transactions });
    }

    fn with_remaining(&self, condition: impl Fn(u32) -> bool) -> Vec<usize> {
        (0..self.events.len()).filter(|event| condition(self.events[*event].remaining)).collect()
    }

    fn settle(&mut self, event: usize) {
        let tracked = &mut self.events[event];
        let settled = self.model.settle(tracked.number);
        tracked.remaining = tracked.remaining.saturating_sub(1);
        if settled == Settled::EventDone {
            self.settled.insert(tracked.id);
        }
        self.happened.push(Happened::Settle { event, settled });
    }

    /// The server's own rule: it sends what commits at or behind the slot's position.
    fn connect(&mut self, crash: bool) {
        if crash {
            self.slot = self.durable;
        }
        let first = self.log.iter().position(|transaction| transaction.commit_lsn >= self.slot);
        self.at = (first.unwrap_or(self.log.len()), None);
        self.mismatched = false;
        self.happened.push(Happened::Connected);
    }

    fn change(&mut self, change: Change) {
        let Some(open) = self.open else { return };
        let Some((last, _)) = self.last_of(open) else { return };
        let id = self.new_id();
        if let Some(transaction) = self.log.iter_mut().find(|transaction| transaction.commit_lsn == open) {
            // It may have changed before.
            match (change, transaction.rows.get_mut(last as usize)) {
                (Change::AnotherId, Some(Row::Outbox { id: changed, .. })) => *changed = id,
                (Change::AnotherTable, Some(row)) => *row = Row::OtherTable,
                (Change::Gone, _) => transaction.rows.truncate(last as usize),
                (_, None) | (_, Some(Row::OtherTable)) => {}
            }
        }
        self.connect(false);
    }

    fn restart(&mut self, crash: bool) {
        if crash {
            self.slot = self.durable;
        }
        self.model = Model::new(self.slot);
        self.started_at = self.slot;
        self.closed.clear();
        self.taken.clear();
        self.events.clear();
        self.open = None;
        self.happened.push(Happened::Restarted { confirmed: self.slot });
        self.connect(false);
    }
}
