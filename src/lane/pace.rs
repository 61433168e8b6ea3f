//! How many batches may be in flight at once: fewer while the sink asks for less. Pure.

use walgate_sink::{FailureKind, Outcome};

use super::work::FlightId;

/// Additive increase, multiplicative decrease, as TCP does: a batch in which something was throttled or timed out halves
/// what may be in flight, one without adds a little, so that after as many batches as may be in flight there is room for
/// one more. Never less than one, never more than the sink's own concurrency.
#[derive(Debug)]
pub(super) struct Pace {
    /// `None`: nothing was ever throttled, and the sink's own concurrency holds.
    limit: Option<f64>,
    /// Batches before this one were sent before the last decrease, and say nothing new.
    since: FlightId,
}

impl Pace {
    pub(super) fn new() -> Self {
        Pace { limit: None, since: FlightId(0) }
    }

    /// Of `most` places, those that may be taken.
    pub(super) fn places(&self, most: usize) -> usize {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to a number of batches")]
        self.limit.map_or(most, |limit| most.min(limit as usize)).max(1)
    }

    /// Takes in what became of batch `id`; `flying` batches were in flight with it, itself included, and `next` will be
    /// sent next.
    pub(super) fn judge(&mut self, id: FlightId, outcomes: &[Outcome], flying: usize, next: FlightId) {
        let slow = |outcome: &Outcome| match outcome {
            Outcome::Failed(failure) => matches!(failure.kind, FailureKind::Throttled | FailureKind::Timeout),
            _ => false,
        };
        #[allow(clippy::cast_precision_loss, reason = "a number of batches")]
        let flying = flying as f64;
        if outcomes.iter().any(slow) {
            if id >= self.since {
                let now = self.limit.unwrap_or(flying).min(flying.max(1.0));
                self.limit = Some((now / 2.0).max(1.0));
                self.since = next;
            }
        } else if let Some(limit) = &mut self.limit {
            *limit += 1.0 / *limit;
            // Far beyond any concurrency: it is as if nothing had been.
            if *limit > 4096.0 {
                self.limit = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use walgate_sink::Failure;

    use super::*;

    const ACK: Outcome = Outcome::Acknowledged { duplicate: false };

    fn failed(kind: FailureKind) -> Outcome {
        Outcome::Failed(Failure::new(kind, "planned"))
    }

    #[test]
    fn throttling_halves_it_once_for_all_that_was_in_flight_and_successes_bring_it_back() {
        let mut pace = Pace::new();
        assert_eq!(pace.places(16), 16);
        for id in 0..16 {
            pace.judge(FlightId(id), &[ACK, failed(FailureKind::Throttled)], 16, FlightId(16));
        }
        assert_eq!(pace.places(16), 8, "they were all sent before it was known");
        pace.judge(FlightId(16), &[failed(FailureKind::Timeout)], 8, FlightId(24));
        assert_eq!(pace.places(16), 4);
        // One more after as many batches as there are places.
        for id in 24..28 {
            pace.judge(FlightId(id), &[ACK], 4, FlightId(id + 4));
        }
        assert_eq!(pace.places(16), 4 + usize::from(pace.limit.unwrap() >= 5.0));
        for id in 28..400 {
            pace.judge(FlightId(id), &[ACK], 4, FlightId(id + 4));
        }
        assert_eq!(pace.places(16), 16);
    }

    #[test]
    fn it_never_stops_and_other_failures_do_not_count() {
        let mut pace = Pace::new();
        for id in 0..100 {
            pace.judge(FlightId(id), &[failed(FailureKind::Throttled)], 1, FlightId(id + 1));
        }
        assert_eq!(pace.places(16), 1);
        let mut pace = Pace::new();
        pace.judge(FlightId(0), &[failed(FailureKind::Connection), failed(FailureKind::Unavailable)], 8, FlightId(8));
        assert_eq!(pace.places(16), 16);
    }
}
