//! What became of every delivery of a batch.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The outcome of every delivery of one batch, marked as it becomes known.
///
/// All start [`Outcome::Unknown`]. A mark survives a dropped future: what was acknowledged before a timeout stays
/// acknowledged. A delivery that is still unknown at the end is sent again, so forgetting a mark can repeat an event
/// and never lose one. The first mark of a delivery counts; later ones are ignored.
#[derive(Clone, Debug)]
pub struct DeliveryReport {
    outcomes: Arc<Mutex<Vec<Outcome>>>,
}

/// What is known of one delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing is known: it may have arrived or not. It is sent again.
    #[default]
    Unknown,
    /// The sink has it durably, by the broker's own word.
    Acknowledged {
        /// The broker said that it had this dedup id already, and stored nothing new.
        duplicate: bool,
    },
    /// This delivery can never be accepted, however often it is sent.
    Rejected(Rejection),
    /// It was not accepted, for a reason that may pass. It is sent again.
    Failed(Failure),
}

/// Why a delivery can never be accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// The class, a label of metrics.
    pub reason: RejectReason,
    /// One sentence for the operator; no payload, no secret.
    pub message: String,
}

/// Classes of rejections: few, so that they can be labels of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectReason {
    /// Larger than the sink takes.
    TooLarge,
    /// The address is illegal in the sink's grammar, or empty.
    InvalidTarget,
    /// The address is legal, and nothing is there.
    UnknownTarget,
    /// A header, key or payload that the sink cannot carry.
    InvalidEvent,
    /// The receiver looked at the event and said no.
    Refused,
}

impl RejectReason {
    /// The label: lower-case words with underscores.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            RejectReason::TooLarge => "too_large",
            RejectReason::InvalidTarget => "invalid_target",
            RejectReason::UnknownTarget => "unknown_target",
            RejectReason::InvalidEvent => "invalid_event",
            RejectReason::Refused => "refused",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a delivery was not accepted this time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Decides how long the lane waits before the next attempt.
    pub kind: FailureKind,
    /// One sentence for the operator: what failed, where and why; no payload, no secret.
    pub message: String,
    /// The earliest moment at which the sink wants to be asked again, from now; the lane bounds it.
    pub retry_after: Option<Duration>,
}

/// Classes of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// No connection, or it broke: tried again within a second, so that recovery is quick.
    Connection,
    /// No answer in time; the delivery may have arrived.
    Timeout,
    /// The sink asks for less.
    Throttled,
    /// The sink answers that it cannot at present (5xx, nack, overflow).
    Unavailable,
    /// The sink cannot work until somebody mends it (credentials, missing topic): it is down, and probed slowly.
    Fatal,
    /// The receiver has gone for good by its own decision (a closed pipe): the gateway stops in order.
    Closed,
}

impl FailureKind {
    /// The label: one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FailureKind::Connection => "connection",
            FailureKind::Timeout => "timeout",
            FailureKind::Throttled => "throttled",
            FailureKind::Unavailable => "unavailable",
            FailureKind::Fatal => "fatal",
            FailureKind::Closed => "closed",
        }
    }
}

impl Failure {
    /// A failure of this class without a wish for the time of the next attempt.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Failure { kind, message: message.into(), retry_after: None }
    }

    /// Sets [`Failure::retry_after`].
    #[must_use]
    pub fn with_retry_after(mut self, wait: Option<Duration>) -> Self {
        self.retry_after = wait;
        self
    }
}

impl Rejection {
    /// A rejection of this class.
    #[must_use]
    pub fn new(reason: RejectReason, message: impl Into<String>) -> Self {
        Rejection { reason, message: message.into() }
    }
}

impl DeliveryReport {
    /// A report on `len` deliveries, all of them unknown.
    #[must_use]
    pub fn new(len: usize) -> Self {
        DeliveryReport { outcomes: Arc::new(Mutex::new(vec![Outcome::Unknown; len])) }
    }

    /// The sink has delivery `index` durably.
    pub fn acknowledged(&self, index: usize) {
        self.mark(index, Outcome::Acknowledged { duplicate: false });
    }

    /// The sink had delivery `index` already, by its dedup id.
    pub fn duplicate(&self, index: usize) {
        self.mark(index, Outcome::Acknowledged { duplicate: true });
    }

    /// Delivery `index` can never be accepted.
    pub fn rejected(&self, index: usize, rejection: Rejection) {
        self.mark(index, Outcome::Rejected(rejection));
    }

    /// Delivery `index` was not accepted this time.
    pub fn failed(&self, index: usize, failure: Failure) {
        self.mark(index, Outcome::Failed(failure));
    }

    /// The sink has every delivery that is still unknown, durably.
    pub fn acknowledge_rest(&self) {
        for outcome in self.lock().iter_mut().filter(|outcome| **outcome == Outcome::Unknown) {
            *outcome = Outcome::Acknowledged { duplicate: false };
        }
    }

    /// Every delivery that is still unknown failed, for this one cause.
    pub fn fail_rest(&self, failure: &Failure) {
        for outcome in self.lock().iter_mut().filter(|outcome| **outcome == Outcome::Unknown) {
            *outcome = Outcome::Failed(failure.clone());
        }
    }

    /// Sets the outcome of delivery `index`, unless it has one or there is no such delivery.
    pub fn mark(&self, index: usize, outcome: Outcome) {
        if let Some(known @ Outcome::Unknown) = self.lock().get_mut(index) {
            *known = outcome;
        }
    }

    /// The outcomes as they stand, in the order of the batch.
    #[must_use]
    pub fn outcomes(&self) -> Vec<Outcome> {
        self.lock().clone()
    }

    /// Takes the outcomes as they stand; marks that come later are ignored.
    #[must_use]
    pub fn take(&self) -> Vec<Outcome> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Outcome>> {
        self.outcomes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mark_counts() {
        let report = DeliveryReport::new(3);
        report.acknowledged(0);
        report.failed(0, Failure::new(FailureKind::Timeout, "late"));
        report.acknowledged(7);
        report.fail_rest(&Failure::new(FailureKind::Connection, "broken"));
        let outcomes = report.take();
        assert_eq!(outcomes[0], Outcome::Acknowledged { duplicate: false });
        assert!(outcomes[1..].iter().all(|outcome| matches!(outcome, Outcome::Failed(_))));
        report.acknowledged(1);
        assert!(report.outcomes().is_empty(), "marks after the end are ignored");
    }
}
