//! Log lines and metrics of one lane.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use walgate_sink::Timestamp;

use super::{
    metrics::{DeliveryOutcome, Observer},
    status::clip,
    work::{Acknowledged, Attempt, Finished, Note},
};

/// Of one cause, at most one line in this time.
const QUIET: Duration = Duration::from_secs(1);

/// Writes down what happens. Events that are left out or held get a line each, whatever their number, because that
/// line is all that is left of them; of anything else there is one line a second, which counts those it stands for.
pub(super) struct Journal {
    sink: Arc<str>,
    observer: Arc<dyn Observer>,
    gates: HashMap<&'static str, Gate>,
}

#[derive(Default)]
struct Gate {
    last: Option<Instant>,
    suppressed: u64,
}

impl Gate {
    /// Whether a line may be written now; then also how many were not, since the last one.
    fn open(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < QUIET) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

impl Journal {
    pub(super) fn new(sink: Arc<str>, observer: Arc<dyn Observer>) -> Self {
        Journal { sink, observer, gates: HashMap::new() }
    }

    pub(super) fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// The sink was made, and may be used.
    pub(super) fn connected(&self) {
        self.observer.sink_up(true);
        tracing::info!(sink = %self.sink, "sink ready");
    }

    /// The sink broke its contract.
    pub(super) fn broken(&mut self, cause: &'static str, now: Instant) {
        if let Some(suppressed) = self.open(cause, now) {
            tracing::error!(sink = %self.sink, suppressed, cause,
                "the sink did not return from a batch: what it had not marked is sent again; this is a fault in the sink");
        }
    }

    /// Measures and logs all of this.
    pub(super) fn finished(&mut self, finished: &Finished, now: Instant) {
        self.acknowledged(&finished.acknowledged);
        self.notes(&finished.notes, now);
    }

    fn acknowledged(&self, acknowledged: &[Acknowledged]) {
        if acknowledged.is_empty() {
            return;
        }
        for same in acknowledged.chunk_by(|a, b| (a.route, a.duplicate) == (b.route, b.duplicate)) {
            let Some(first) = same.first() else { continue };
            let outcome = if first.duplicate { DeliveryOutcome::Duplicate } else { DeliveryOutcome::Acknowledged };
            self.observer.delivered(first.route, outcome, same.len() as u64);
        }
        let wall = Timestamp::now();
        for delivery in acknowledged {
            let micros = wall.0.saturating_sub(delivery.committed_at.0);
            self.observer.commit_to_ack(Duration::from_micros(u64::try_from(micros).unwrap_or(0)));
        }
    }

    /// Measures and logs these notes.
    pub(super) fn notes(&mut self, notes: &[Note], now: Instant) {
        for note in notes {
            self.note(note, now);
        }
    }

    fn note(&mut self, note: &Note, now: Instant) {
        match note {
            Note::Retry { attempt, kind, error, delay } => {
                self.observer.retries(1);
                let Some(suppressed) = self.open(kind.as_str(), now) else { return };
                let Attempt { event_id, position, route, number } = attempt;
                tracing::warn!(sink = %self.sink, route, event_id = clip(event_id), lsn = %position.commit_lsn,
                    attempt = number, kind = kind.as_str(), next_retry = text(*delay), suppressed, error,
                    "delivery failed, it will be tried again");
            }
            Note::Skipped { attempt, rejection } => {
                self.observer.delivered(attempt.route, DeliveryOutcome::Skipped, 1);
                self.observer.rejected(rejection.reason);
                let Attempt { event_id, position, route, number } = attempt;
                tracing::warn!(sink = %self.sink, route, event_id = clip(event_id), lsn = %position.commit_lsn,
                    attempt = number, reason = %rejection.reason, error = %rejection,
                    "event rejected and left out, because on_reject is skip: this sink will never get it");
            }
            Note::Halted { attempt, rejection } => {
                self.observer.delivered(attempt.route, DeliveryOutcome::Halted, 1);
                self.observer.rejected(rejection.reason);
                let Attempt { event_id, position, route, number } = attempt;
                tracing::error!(sink = %self.sink, route, event_id = clip(event_id), lsn = %position.commit_lsn,
                    attempt = number, reason = %rejection.reason, error = %rejection,
                    "event rejected: it, the events behind it of its key, and the checkpoint are held; make the sink \
                     accept it and restart, or set on_reject: skip for this sink to go on without it");
            }
            Note::SinkDown { cause, error, delay } => {
                self.observer.sink_up(false);
                tracing::error!(sink = %self.sink, cause = cause.as_str(), next_probe = text(*delay), error,
                    "sink down: nothing is sent to it until it works again");
            }
            Note::ProbeFailed { error, delay } => {
                let Some(suppressed) = self.open("probe", now) else { return };
                tracing::warn!(sink = %self.sink, next_probe = text(*delay), suppressed, error, "sink still down");
            }
            Note::SinkUp { outage } => {
                self.observer.sink_up(true);
                tracing::info!(sink = %self.sink, outage = text(*outage), "sink up again");
            }
            Note::SinkClosed { error } => {
                self.observer.sink_up(false);
                tracing::warn!(sink = %self.sink, error, "the sink's receiver has gone for good: stopping");
            }
        }
    }

    fn open(&mut self, cause: &'static str, now: Instant) -> Option<u64> {
        self.gates.entry(cause).or_default().open(now)
    }
}

/// Whole milliseconds.
fn text(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_counts_the_ones_it_stands_for() {
        let (mut gate, start) = (Gate::default(), Instant::now());
        let lines: Vec<_> =
            [0, 10, 999, 1000, 1001, 5000].map(|ms| gate.open(start + Duration::from_millis(ms))).into();
        assert_eq!(lines, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
