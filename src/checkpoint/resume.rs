//! What to skip of the stream that a server sends again.

use std::hash::{DefaultHasher, Hasher};

use walgate_sink::{Lsn, Position};

/// What to do with a transaction that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum BeginVerdict {
    /// Take it: the ring begins it.
    New,
    /// It is the one that was open when the connection was lost. The ring has it already and must not begin it again.
    Continue,
    /// It was taken and closed before. Its rows and its Commit will be skipped as well.
    Skip,
    /// Commit LSNs do not ascend, the transaction before it has no Commit, or the one that was left open was not sent
    /// again: not the history that was received before.
    OutOfOrder,
}

/// What to do with a row of the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum RowVerdict {
    /// Take it, at this position. From here on it counts as taken.
    Track(Position),
    /// It was taken before.
    Skip,
    /// The transaction differs from what was taken of it before the reconnect: another row, or none of the outbox,
    /// stands where the last one was. Abandon it in the ring and reconnect: all of it is taken again, which may repeat
    /// events and loses none.
    Mismatch,
    /// No transaction has begun, or the stream was found out of order before.
    OutOfOrder,
}

/// What to do with a Commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum CommitVerdict {
    /// The ring closes the transaction with this Commit's `end_lsn`.
    Close,
    /// It ends a transaction that was skipped.
    Skip,
    /// The transaction ended before the last row that was taken of it: as [`RowVerdict::Mismatch`].
    Mismatch,
    /// It is not the Commit of the transaction that began, or it ends before it starts, or the stream was found out of
    /// order before.
    OutOfOrder,
}

/// Finds, after a reconnect, what of the stream was taken already: the transactions that were closed, and the rows of
/// the one that was open, up to the last one taken.
///
/// Pure. A row costs a comparison and a copy of a short id. Every row message of the stream passes through it, routed
/// or not, because a row is known by its number in its transaction.
#[derive(Clone, Debug)]
pub struct Resume {
    /// Every transaction whose commit record starts before this was taken and closed, by this process or, at the
    /// start, by an earlier one. The rule by which the server itself skips what a slot has confirmed.
    taken_to: Lsn,
    /// The transaction that has begun, was taken and is not closed. It outlives the connection.
    open: Option<OpenTransaction>,
    /// Where this connection's stream stands.
    place: Place,
    /// Number of the next row message in the stream's transaction.
    next_ordinal: u32,
    /// The connection has not sent anything new yet.
    catching_up: bool,
    /// Commit LSN of the last transaction that this connection sent again.
    resent: Option<Lsn>,
    last_position: Option<Position>,
}

#[derive(Clone, Copy, Debug)]
struct OpenTransaction {
    commit_lsn: Lsn,
    /// The last row that was taken of it.
    last: Option<(u32, IdMark)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Between,
    /// In the open transaction, past the last row that was taken before the reconnect.
    Taking,
    /// In the open transaction, at or before that row.
    Repeating,
    /// In a transaction that was closed before.
    Skipping(Lsn),
    /// The open transaction differs, or was given up; nothing of this connection is taken any more. It is forgotten
    /// with the verdict that says so, not before, so that the ring abandons it at the same time.
    Mismatched,
    /// The stream is out of order; nothing of this connection is taken any more.
    Lost,
}

impl Resume {
    /// Nothing taken yet. `confirmed` is the slot's confirmed flush LSN at the start: what commits before it was
    /// settled by an earlier process, and is skipped if a crashed server sends it again.
    #[must_use]
    pub fn new(confirmed: Lsn) -> Self {
        Resume {
            taken_to: confirmed,
            open: None,
            place: Place::Between,
            next_ordinal: 0,
            catching_up: true,
            resent: None,
            last_position: None,
        }
    }

    /// A new connection: its stream begins at the slot's confirmed LSN, wherever that is by now.
    pub fn on_connect(&mut self) {
        self.place = Place::Between;
        self.next_ordinal = 0;
        self.catching_up = true;
        self.resent = None;
    }

    /// A transaction begins; `commit_lsn` is `final_lsn` of its Begin.
    pub fn begin(&mut self, commit_lsn: Lsn) -> BeginVerdict {
        if self.place != Place::Between {
            return self.out_of_order(BeginVerdict::OutOfOrder);
        }
        self.next_ordinal = 0;
        if commit_lsn < self.taken_to {
            if !self.catching_up || self.resent.is_some_and(|resent| commit_lsn <= resent) {
                return self.out_of_order(BeginVerdict::OutOfOrder);
            }
            self.resent = Some(commit_lsn);
            self.place = Place::Skipping(commit_lsn);
            return BeginVerdict::Skip;
        }
        match self.open {
            Some(open) if open.commit_lsn == commit_lsn => {
                self.catching_up = false;
                self.place = if open.last.is_some() { Place::Repeating } else { Place::Taking };
                BeginVerdict::Continue
            }
            Some(_) => self.out_of_order(BeginVerdict::OutOfOrder),
            None => {
                self.catching_up = false;
                self.place = Place::Taking;
                self.open = Some(OpenTransaction { commit_lsn, last: None });
                BeginVerdict::New
            }
        }
    }

    /// A row of the outbox with its id.
    pub fn row(&mut self, id: &[u8]) -> RowVerdict {
        match (self.place, &mut self.open) {
            (Place::Taking, Some(open)) => {
                let position = Position { commit_lsn: open.commit_lsn, ordinal: self.next_ordinal };
                open.last = Some((self.next_ordinal, IdMark::of(id)));
                self.last_position = Some(position);
                self.count_row();
                RowVerdict::Track(position)
            }
            (Place::Repeating, Some(OpenTransaction { last: Some((last, mark)), .. })) => {
                if self.next_ordinal == *last {
                    if *mark != IdMark::of(id) {
                        self.give_up();
                        return RowVerdict::Mismatch;
                    }
                    self.place = Place::Taking;
                }
                self.count_row();
                RowVerdict::Skip
            }
            (Place::Skipping(_), _) => RowVerdict::Skip,
            (Place::Mismatched, _) => {
                self.give_up();
                RowVerdict::Mismatch
            }
            _ => self.out_of_order(RowVerdict::OutOfOrder),
        }
    }

    /// A row message (insert, update or delete) of another table, or one of the outbox that is no event. It counts in
    /// the ordinal. Where it stands in the place of the last row taken, the next verdict is `Mismatch`.
    pub fn other_row(&mut self) {
        match (self.place, &self.open) {
            (Place::Repeating, Some(OpenTransaction { last: Some((last, _)), .. })) if self.next_ordinal == *last => {
                self.place = Place::Mismatched;
            }
            (Place::Taking | Place::Repeating, _) => self.count_row(),
            (Place::Between, _) => self.place = Place::Lost,
            (Place::Skipping(_) | Place::Mismatched | Place::Lost, _) => {}
        }
    }

    /// The transaction ends; `commit_lsn` and `end_lsn` are those of its Commit.
    pub fn commit(&mut self, commit_lsn: Lsn, end_lsn: Lsn) -> CommitVerdict {
        match (self.place, &self.open) {
            (Place::Skipping(skipped), _) if skipped == commit_lsn => {
                self.place = Place::Between;
                CommitVerdict::Skip
            }
            (Place::Taking, Some(open)) if open.commit_lsn == commit_lsn && commit_lsn < end_lsn => {
                self.taken_to = end_lsn;
                self.open = None;
                self.place = Place::Between;
                CommitVerdict::Close
            }
            (Place::Mismatched, _) => {
                self.give_up();
                CommitVerdict::Mismatch
            }
            (Place::Repeating, Some(open)) if open.commit_lsn == commit_lsn => {
                self.give_up();
                CommitVerdict::Mismatch
            }
            _ => self.out_of_order(CommitVerdict::OutOfOrder),
        }
    }

    /// Forgets the open transaction, so that all of it is taken again after the next reconnect. Until then nothing of
    /// this connection is taken. It goes with [`Ring::abandon`](super::Ring::abandon).
    pub fn abandon(&mut self) {
        self.give_up();
    }

    /// The stream stands between two transactions: only there does a keepalive's LSN say that all before it was sent
    /// whole.
    #[must_use]
    pub fn between_transactions(&self) -> bool {
        self.place == Place::Between
    }

    /// Where the last row that was taken stands.
    #[must_use]
    pub fn last_position(&self) -> Option<Position> {
        self.last_position
    }

    /// Commit end of the last transaction that was taken and closed; at the start, the slot's confirmed LSN.
    #[must_use]
    pub fn taken_to(&self) -> Lsn {
        self.taken_to
    }

    /// Commit LSN of the transaction that was taken in part and is not closed.
    #[must_use]
    pub fn open_transaction(&self) -> Option<Lsn> {
        self.open.map(|open| open.commit_lsn)
    }

    /// A transaction of 2^32 rows keeps the last number; resuming in it finds a mismatch, and takes it again.
    fn count_row(&mut self) {
        self.next_ordinal = self.next_ordinal.saturating_add(1);
    }

    fn give_up(&mut self) {
        self.open = None;
        self.place = Place::Mismatched;
    }

    fn out_of_order<V>(&mut self, verdict: V) -> V {
        if self.place != Place::Mismatched {
            self.place = Place::Lost;
        }
        verdict
    }
}

/// Bytes of an id that are kept as they are: every UUID and number, and most other ids.
const KEPT: usize = 48;

/// Enough of a row's id to know it again, in bounded memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct IdMark {
    length: usize,
    start: [u8; KEPT],
    /// Of the whole id, where it is longer than what is kept.
    hash: u64,
}

impl IdMark {
    fn of(id: &[u8]) -> Self {
        let mut mark = IdMark { length: id.len(), start: [0; KEPT], hash: 0 };
        let kept = id.len().min(KEPT);
        mark.start[..kept].copy_from_slice(&id[..kept]);
        if id.len() > KEPT {
            let mut hasher = DefaultHasher::new();
            hasher.write(id);
            mark.hash = hasher.finish();
        }
        mark
    }
}
