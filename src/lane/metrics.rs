//! What a lane measures.

use std::time::Duration;

use walgate_sink::RejectReason;

/// What became of a delivery, as a label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryOutcome {
    /// The sink has it.
    Acknowledged,
    /// The sink had it already.
    Duplicate,
    /// It was rejected and left out.
    Skipped,
    /// It was rejected and is held, with its key.
    Halted,
    /// It is in the table of parked deliveries: owed still, and settled.
    Parked,
    /// It is a dead letter.
    DeadLettered,
}

impl DeliveryOutcome {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            DeliveryOutcome::Acknowledged => "acknowledged",
            DeliveryOutcome::Duplicate => "duplicate",
            DeliveryOutcome::Skipped => "skipped",
            DeliveryOutcome::Halted => "halted",
            DeliveryOutcome::Parked => "parked",
            DeliveryOutcome::DeadLettered => "dead_lettered",
        }
    }
}

/// Told what happens in the lane of one sink, as it happens. Called from the lane's task: to be quick and not to block.
pub trait Observer: Send + Sync {
    /// So many deliveries of a route came to this outcome.
    fn delivered(&self, route: u16, outcome: DeliveryOutcome, count: u64) {
        let _ = (route, outcome, count);
    }
    /// An event was rejected for this reason, and skipped or halted.
    fn rejected(&self, reason: RejectReason) {
        let _ = reason;
    }
    /// A delivery became a dead letter, for a reason of this class.
    fn dead_lettered(&self, reason: &'static str) {
        let _ = reason;
    }
    /// So many attempts failed and will be made again.
    fn retries(&self, count: u64) {
        let _ = count;
    }
    /// The sink returned from a batch after this time.
    fn delivery_seconds(&self, took: Duration) {
        let _ = took;
    }
    /// Events were acknowledged so long after their commits: each duration so many times. Once for each batch.
    fn commit_to_ack(&self, ages: &[(Duration, u64)]) {
        let _ = ages;
    }
    /// So many deliveries are in flight now.
    fn in_flight(&self, deliveries: usize) {
        let _ = deliveries;
    }
    /// The sink works, or does not.
    fn sink_up(&self, up: bool) {
        let _ = up;
    }
}

/// Measures nothing.
impl Observer for () {}
