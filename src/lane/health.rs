//! Whether the sink as a whole works. Pure.
//!
//! ```text
//!                outage                     probe due                 check passes
//!        Up ----------------> Down ----------------------> Checking ----------------> Trial
//!        ^                     ^                               |                        |  |
//!        |                     |         check fails           |                        |  |
//!        |                     +-------------------------------+     the trial fails    |  |
//!        |                     +--------------------------------------------------------+  |
//!        |                            the trial is taken, or rejected on its own           |
//!        +---------------------------------------------------------------------------------+
//! ```
//!
//! - **Up -> Down**: an [`Outage`]; or the sink could not be made at the start.
//! - **Down -> Checking**: the pause is over. Nothing is sent in either state.
//! - **Checking -> Down**: the check fails. The next pause is longer.
//! - **Checking -> Trial**: the check passes. It cannot see everything (a 401 answers only a delivery), so a single
//!   delivery goes out, and nothing else until its outcome is known.
//! - **Trial -> Up**: the sink took it, or rejected that event alone. What the outage held back is released at once.
//! - **Trial -> Down**: anything else. The next pause is longer.
//! - **any -> Closed**: the receiver has gone for good. Nothing is sent any more.
//!
//! Outcomes of batches that were sent before the outage are taken in, but move nothing while it lasts: they say how
//! the sink was. Pauses double from `initial` up to `connection_max`, so that a sink that comes back is in use within
//! about a second; where somebody has to mend it (fatal, rejections), from `fatal_initial` up to `max`.

use std::time::{Duration, Instant};

use walgate_sink::{Failure, FailureKind, Outcome, Rejection, SinkError, SinkErrorKind};

use super::{
    backoff::delay,
    policy::LanePolicy,
    work::{FlightId, Outage},
};

/// The state of the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Up,
    Down { probe_at: Instant },
    Checking,
    Trial { flight: Option<FlightId> },
    Closed,
}

/// What may be sent at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    Batches,
    Trial,
    Nothing,
}

/// What changed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    Down { cause: Outage, error: String, delay: Duration },
    StillDown { error: String, delay: Duration },
    Up { outage: Duration },
    Closed { error: String },
}

/// What the outcomes of one batch say about the sink as a whole.
#[derive(Debug, Default)]
pub(super) struct Evidence {
    pub(super) acknowledged: u32,
    rejected: u32,
    /// Failures without any answer: the connection, or time.
    silent: u32,
    /// Answers that are not a success.
    answered: u32,
    /// No outcome at all.
    unknown: u32,
    connection: bool,
    /// Someone has to mend the sink, and not only what concerns one delivery.
    fatal: bool,
    closed: bool,
    retry_after: Duration,
    error: String,
    /// How telling `error` is: the most telling one is kept.
    rank: u8,
}

impl Evidence {
    /// Takes in one outcome. `alone`: a fatal failure would concern this delivery alone.
    pub(super) fn add(&mut self, outcome: &Outcome, alone: bool) {
        match outcome {
            Outcome::Acknowledged { .. } => self.acknowledged += 1,
            Outcome::Rejected(rejection) => self.rejection(rejection),
            Outcome::Failed(failure) => self.failure(failure, alone),
            _ => self.unknown += 1,
        }
    }

    fn rejection(&mut self, rejection: &Rejection) {
        self.rejected += 1;
        self.tell(1, &rejection.message);
    }

    fn failure(&mut self, failure: &Failure, alone: bool) {
        let rank = match failure.kind {
            FailureKind::Connection => {
                self.silent += 1;
                self.connection = true;
                3
            }
            FailureKind::Timeout => {
                self.silent += 1;
                2
            }
            FailureKind::Fatal => {
                self.answered += 1;
                self.fatal |= !alone;
                4
            }
            FailureKind::Closed => {
                self.closed = true;
                5
            }
            // Throttled, unavailable, and what a later SDK may add: there was an answer.
            _ => {
                self.answered += 1;
                2
            }
        };
        self.retry_after = self.retry_after.max(failure.retry_after.unwrap_or_default());
        self.tell(rank, &failure.message);
    }

    fn tell(&mut self, rank: u8, error: &str) {
        if rank > self.rank {
            self.rank = rank;
            error.clone_into(&mut self.error);
        }
    }
}

#[derive(Debug)]
pub(super) struct Health {
    state: State,
    /// Rejections since the last success.
    rejections: u32,
    /// Failures without any answer since the last answer of any kind.
    silent: u32,
    /// Batches of which something was taken. A number to compare with, nothing more.
    successes: u64,
    /// The outage that lasts: its cause, and since when.
    outage: Option<(Outage, Instant)>,
    /// Pauses of this outage so far, of the present length of pauses.
    pauses: u32,
    slow: bool,
    /// Since when there were failures and no success, whatever they answered; and how many.
    struggling: Option<Instant>,
    struggles: u32,
}

/// When a sink that answers, and takes nothing, counts as down: where its deliveries can be parked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// After so long.
    pub(super) after: Duration,
    /// As soon as several attempts have failed: it holds too much.
    pub(super) none: bool,
}

impl Health {
    pub(super) fn new() -> Self {
        Health {
            state: State::Up,
            rejections: 0,
            silent: 0,
            successes: 0,
            outage: None,
            pauses: 0,
            slow: false,
            struggling: None,
            struggles: 0,
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    pub(super) fn outage(&self) -> Option<(Outage, Instant)> {
        self.outage
    }

    pub(super) fn successes(&self) -> u64 {
        self.successes
    }

    pub(super) fn permit(&self) -> Permit {
        match self.state {
            State::Up => Permit::Batches,
            State::Trial { flight: None } => Permit::Trial,
            State::Down { .. } | State::Checking | State::Trial { flight: Some(_) } | State::Closed => Permit::Nothing,
        }
    }

    /// The trial has been sent.
    pub(super) fn trial_sent(&mut self, id: FlightId) {
        if let State::Trial { flight } = &mut self.state {
            *flight = Some(id);
        }
    }

    /// Whether a failure of now comes from the sink as a whole, rather than from its delivery.
    pub(super) fn in_outage(&self, policy: &LanePolicy) -> bool {
        self.state != State::Up || self.is_silent(policy)
    }

    /// Whether several failures in a row came without any answer.
    pub(super) fn is_silent(&self, policy: &LanePolicy) -> bool {
        self.silent >= policy.unreachable_after
    }

    /// Whether rejections of now come from the sink as a whole, rather than from their events.
    pub(super) fn rejects_everything(&self, policy: &LanePolicy) -> bool {
        self.rejections >= policy.rejections
    }

    /// A probe is due.
    pub(super) fn probe_due(&self, now: Instant) -> bool {
        matches!(self.state, State::Down { probe_at } if probe_at <= now)
    }

    /// Down -> Checking, if a probe is due.
    pub(super) fn start_probe(&mut self, now: Instant) -> bool {
        let due = self.probe_due(now);
        if due {
            self.state = State::Checking;
        }
        due
    }

    /// Takes in what a probe found (Checking -> Trial | Down), or an attempt to make the sink (Up -> Down).
    pub(super) fn probed(
        &mut self,
        result: Result<(), SinkError>,
        policy: &LanePolicy,
        now: Instant,
        jitter: f64,
    ) -> Option<Change> {
        match (self.state, result) {
            (State::Checking, Ok(())) => {
                self.state = State::Trial { flight: None };
                None
            }
            (State::Checking | State::Up, Err(error)) => {
                let fatal = error.kind == SinkErrorKind::Fatal;
                let cause = if fatal { Outage::Fatal } else { Outage::Unreachable };
                Some(self.down(cause, error.message, Duration::ZERO, policy, now, jitter))
            }
            _ => None,
        }
    }

    /// Takes in what the outcomes of batch `id` say.
    pub(super) fn judge(
        &mut self,
        id: FlightId,
        evidence: Evidence,
        policy: &LanePolicy,
        patience: Option<Patience>,
        now: Instant,
        jitter: f64,
    ) -> Option<Change> {
        self.count(&evidence, now);
        if evidence.closed {
            let newly = self.state != State::Closed;
            self.state = State::Closed;
            return newly.then_some(Change::Closed { error: evidence.error });
        }
        let cause = if evidence.fatal {
            Some(Outage::Fatal)
        } else if self.rejects_everything(policy) {
            Some(Outage::Rejections)
        } else if evidence.connection && self.is_silent(policy) {
            Some(Outage::Unreachable)
        } else if patience.is_some_and(|patience| self.struggles_too_long(patience, policy, now)) {
            Some(Outage::Failing)
        } else {
            None
        };
        match (self.state, cause) {
            (State::Up, Some(cause)) => {
                Some(self.down(cause, evidence.error, evidence.retry_after, policy, now, jitter))
            }
            (State::Trial { flight: Some(trial) }, cause) if trial == id => {
                let answered = evidence.acknowledged > 0 || evidence.rejected > 0;
                if answered && cause.is_none() {
                    return Some(self.up(now));
                }
                let cause = cause.unwrap_or(Outage::Unreachable);
                Some(self.down(cause, evidence.error, evidence.retry_after, policy, now, jitter))
            }
            _ => None,
        }
    }

    fn struggles_too_long(&self, patience: Patience, policy: &LanePolicy, now: Instant) -> bool {
        let Some(since) = self.struggling else { return false };
        now.saturating_duration_since(since) >= patience.after
            || (patience.none && self.struggles >= policy.unreachable_after)
    }

    fn count(&mut self, evidence: &Evidence, now: Instant) {
        if evidence.acknowledged > 0 || evidence.rejected > 0 {
            (self.struggling, self.struggles) = (None, 0);
        } else if evidence.silent + evidence.answered + evidence.unknown > 0 {
            self.struggling.get_or_insert(now);
            self.struggles = self.struggles.saturating_add(1);
        }
        if evidence.acknowledged > 0 {
            // A batch of which the sink took something: what it rejected of it, it rejected on its own account.
            self.successes += 1;
            self.rejections = 0;
            self.silent = 0;
            return;
        }
        self.rejections = self.rejections.saturating_add(evidence.rejected);
        if evidence.answered > 0 || evidence.rejected > 0 {
            self.silent = 0;
        } else {
            self.silent = self.silent.saturating_add(evidence.silent);
        }
    }

    /// any -> Down. In an outage that lasts, the next pause is longer.
    fn down(
        &mut self,
        cause: Outage,
        error: String,
        retry_after: Duration,
        policy: &LanePolicy,
        now: Instant,
        jitter: f64,
    ) -> Change {
        let slow = !matches!(cause, Outage::Unreachable | Outage::Failing);
        if slow != self.slow {
            self.slow = slow;
            self.pauses = 0;
        }
        let pause = if slow {
            delay(policy.fatal_initial, policy.max, self.pauses, jitter)
        } else {
            delay(policy.initial, policy.connection_max, self.pauses, jitter)
        };
        let delay = pause.max(policy.bounded(retry_after));
        self.pauses = self.pauses.saturating_add(1);
        self.state = State::Down { probe_at: now + delay };
        match self.outage.replace((cause, now)) {
            Some((_, since)) => {
                self.outage = Some((cause, since));
                Change::StillDown { error, delay }
            }
            None => Change::Down { cause, error, delay },
        }
    }

    /// Trial -> Up.
    fn up(&mut self, now: Instant) -> Change {
        (self.struggling, self.struggles) = (None, 0);
        self.state = State::Up;
        self.pauses = 0;
        let since = self.outage.take().map_or(now, |(_, since)| since);
        Change::Up { outage: now.saturating_duration_since(since) }
    }
}
