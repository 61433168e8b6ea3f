//! What goes into a lane and what comes out.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytestring::ByteString;
use walgate_sink::{Batch, Delivery, FailureKind, Position, Rejection, Timestamp};

use crate::{
    checkpoint::Ticket,
    control::parking::{Attempted, HoldKey, KEPT_ERRORS},
};

/// What a delivery that is done settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Debt {
    /// It came from the stream: a ticket at the checkpoint.
    Stream(Ticket),
    /// It came from `walgate.parked`: the row with this number is deleted.
    Parked {
        /// The row's number.
        row: i64,
        /// In the table, it waits for its key; else for its sink.
        held: bool,
    },
    /// It is a dead letter of another sink, and was in that one's `walgate.parked`: that lane is told, and deletes its row.
    Handed {
        /// The other lane's number in the [`Exchange`](super::Exchange).
        lane: u64,
        /// The row's number.
        row: i64,
    },
}

impl Debt {
    /// It is not in this lane's table: memory is all that this lane has of it.
    pub(super) fn is_live(self) -> bool {
        !matches!(self, Debt::Parked { .. })
    }
}

impl From<Ticket> for Debt {
    fn from(ticket: Ticket) -> Self {
        Debt::Stream(ticket)
    }
}

/// One delivery that the lane must settle.
#[derive(Clone, Debug)]
pub struct Work {
    /// What is delivered. Its attempt number is the lane's to set.
    pub delivery: Delivery,
    /// Settled once when this delivery is.
    pub debt: Debt,
    /// Number of the route that asked for it: a label of metrics.
    pub route: u16,
    /// The router could not render a legal target: it is rejected, when its turn comes, without being sent.
    pub invalid: Option<Rejection>,
}

/// Names one batch in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlightId(pub(super) u64);

/// A batch that is to be delivered now. Whatever becomes of it, [`Lane::finish`](super::Lane::finish) is called.
#[derive(Debug)]
pub struct Flight {
    /// Its name.
    pub id: FlightId,
    /// The deliveries, each with the number of its attempt.
    pub batch: Batch,
}

/// What follows from outcomes.
#[derive(Debug, Default)]
pub struct Finished {
    /// To be settled at the checkpoint, once for each entry.
    pub settled: Vec<Ticket>,
    /// Rows of other lanes that are done: the number of the lane in the [`Exchange`](super::Exchange), and of the row.
    pub rows: Vec<(u64, i64)>,
    /// What the sink has taken, for metrics.
    pub acknowledged: Vec<Acknowledged>,
    /// What is in the table of parked deliveries now, for metrics: numbers of routes.
    pub parked: Vec<u16>,
    /// Requests that are done: their numbers, and how many dead letters are attempted again.
    pub revived: Vec<(i64, u64)>,
    /// What else is worth a log line or a metric.
    pub notes: Vec<Note>,
}

/// A delivery that the sink has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Number of its route.
    pub route: u16,
    /// The broker had it already.
    pub duplicate: bool,
    /// When its event was committed.
    pub committed_at: Timestamp,
}

/// Which attempt a [`Note`] speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The event's identity.
    pub event_id: ByteString,
    /// Its place in the order of commits.
    pub position: Position,
    /// Number of the route.
    pub route: u16,
    /// Number of the attempt, from 1; 0: it was never sent.
    pub number: u32,
}

/// Something that happened in a lane, for log lines and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// An attempt failed; there will be another.
    Retry {
        /// Which one.
        attempt: Attempt,
        /// The class of the failure.
        kind: FailureKind,
        /// Why, in the sink's words.
        error: String,
        /// The next attempt is not made before this much time has passed.
        delay: Duration,
    },
    /// A rejected event was left out, as `on_reject: skip` says. It is settled.
    Skipped {
        /// Which one.
        attempt: Attempt,
        /// Why.
        rejection: Rejection,
    },
    /// A rejected event and everything behind it of its key are held, as `on_reject: halt` says.
    Halted {
        /// Which one.
        attempt: Attempt,
        /// Why.
        rejection: Rejection,
    },
    /// An event is in the table of dead letters: it is settled, and not attempted again unless somebody asks for it. Or it
    /// was handed to the sink that gets dead letters instead: it is settled once that one has it.
    DeadLettered {
        /// Which one.
        attempt: Attempt,
        /// The class: that of its rejection, or `max_attempts`, `max_age`, `unrouted`, `sacrificed`.
        reason: &'static str,
        /// Why, in a sentence; none: it is not to be kept, nor is the event itself.
        message: Option<String>,
        /// The sink that it was handed to; none: it is in the table.
        to: Option<Arc<str>>,
    },
    /// An event and everything behind it of its key go to the table of parked deliveries; the rest of the sink goes on.
    KeyParked {
        /// The event that everything of its key waits for.
        attempt: Attempt,
        /// Nobody attempts it again until somebody asks for it (`on_reject: park_key`).
        halted: bool,
        /// Why, in the sink's words.
        error: String,
    },
    /// Everything that was parked of a key is delivered.
    KeyReleased {
        /// What it waited for.
        key: HoldKey,
    },
    /// What the sink owes goes to the table of parked deliveries from now on.
    ParkingBegan {
        /// Why, in a sentence.
        why: String,
    },
    /// Everything that was parked is delivered, or on its way, and the sink takes live traffic again.
    ParkingEnded {
        /// Deliveries that were written into the table meanwhile.
        parked: u64,
        /// How long it lasted.
        lasted: Duration,
    },
    /// The table is as full as the configuration allows: what comes now is held, and the checkpoint with it.
    ParkingFull {
        /// Rows in it.
        rows: u64,
        /// Bytes of their events.
        bytes: u64,
    },
    /// walgate's own tables cannot be written or read at present: what was to be written is held.
    StoreFailed {
        /// Why.
        error: String,
        /// Time to the next attempt.
        delay: Duration,
    },
    /// They can be written and read again.
    StoreWorks,
    /// The sink as a whole does not work: nothing is sent until a probe succeeds.
    SinkDown {
        /// How that showed.
        cause: Outage,
        /// Why, in the sink's words.
        error: String,
        /// Time to the first probe.
        delay: Duration,
    },
    /// The sink still does not work.
    ProbeFailed {
        /// Why, in the sink's words.
        error: String,
        /// Time to the next probe.
        delay: Duration,
    },
    /// The sink works again.
    SinkUp {
        /// How long it did not.
        outage: Duration,
    },
    /// The receiver has gone for good by its own decision: the gateway is to stop in order.
    SinkClosed {
        /// Why, in the sink's words.
        error: String,
    },
}

/// How it showed that a sink as a whole does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    /// It said that somebody has to mend it.
    Fatal,
    /// It could not be reached, several times in a row.
    Unreachable,
    /// It rejected event after event, and took none.
    Rejections,
    /// For a long time every attempt failed, whatever it answered.
    Failing,
}

impl Outage {
    /// A word for logs and status.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outage::Fatal => "fatal",
            Outage::Unreachable => "unreachable",
            Outage::Rejections => "rejections",
            Outage::Failing => "failing",
        }
    }
}

/// Work with what the lane remembers of its attempts.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) work: Work,
    /// Attempts that were made.
    pub(super) attempts: u32,
    /// Failures that its backoff has grown by; an outage that is over is forgotten.
    pub(super) failures: u32,
    /// The lane's count of successes when this delivery last failed as [`FailureKind::Fatal`].
    pub(super) fatal_at: Option<u64>,
    /// What went wrong so far; most deliveries have none.
    pub(super) history: Option<Box<History>>,
}

/// The attempts of one delivery that failed.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// Since when it has failed, in this process.
    pub(super) since: Instant,
    /// The newest of them, oldest first.
    pub(super) errors: VecDeque<Attempted>,
}

impl History {
    pub(super) fn new(since: Instant) -> Self {
        History { since, errors: VecDeque::new() }
    }

    pub(super) fn add(&mut self, attempted: Attempted) {
        if self.errors.len() >= KEPT_ERRORS {
            self.errors.pop_front();
        }
        self.errors.push_back(attempted);
    }
}

impl Item {
    pub(super) fn new(work: Work) -> Self {
        Item { work, attempts: 0, failures: 0, fatal_at: None, history: None }
    }

    pub(super) fn position(&self) -> Position {
        self.work.delivery.event.position
    }

    pub(super) fn key(&self) -> Option<&ByteString> {
        self.work.delivery.ordering_key.as_ref()
    }

    /// It came from the stream or from another lane, not from this lane's table.
    pub(super) fn is_live(&self) -> bool {
        self.work.is_live()
    }

    /// Names the latest attempt.
    pub(super) fn attempt(&self) -> Attempt {
        let event = &self.work.delivery.event;
        Attempt { event_id: event.id.clone(), position: event.position, route: self.work.route, number: self.attempts }
    }
}

impl Work {
    /// It came from the stream or from another lane, not from this lane's table.
    pub(super) fn is_live(&self) -> bool {
        self.debt.is_live()
    }
}
