//! Log lines and metrics of one lane.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use walgate_sink::Timestamp;

use super::{
    metrics::{DeliveryOutcome, Observer},
    work::{Acknowledged, Attempt, Finished, Note},
};
use crate::telemetry::{Gates, clip, sentence};

/// Writes down what happens. Events that are left out or held get a line each, whatever their number, because that
/// line is all that is left of them; of anything else [`Gates`] let fewer and fewer lines through, each of which counts
/// those it stands for. The end of an outage is told if its beginning was.
pub(super) struct Journal {
    sink: Arc<str>,
    observer: Arc<dyn Observer>,
    gates: Gates,
    /// The log says that the sink is down.
    told_down: bool,
    /// The log says that it is parking, or that the tables cannot be used.
    told_parking: bool,
    told_store: bool,
}

impl Journal {
    pub(super) fn new(sink: Arc<str>, observer: Arc<dyn Observer>) -> Self {
        Journal { sink, observer, gates: Gates::default(), told_down: false, told_parking: false, told_store: false }
    }

    pub(super) fn observer(&self) -> &dyn Observer {
        &*self.observer
    }

    /// The sink was made, and may be used.
    pub(super) fn connected(&self) {
        self.observer.sink_up(true);
        tracing::info!(sink = %self.sink, "sink set up");
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
        for same in finished.parked.chunk_by(|a, b| a == b) {
            let Some(route) = same.first() else { continue };
            self.observer.delivered(*route, DeliveryOutcome::Parked, same.len() as u64);
        }
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
        // Events of one transaction are as old as each other.
        let ages: Vec<_> = acknowledged
            .chunk_by(|a, b| a.committed_at == b.committed_at)
            .filter_map(|same| {
                let micros = wall.0.saturating_sub(same.first()?.committed_at.0);
                Some((Duration::from_micros(u64::try_from(micros).unwrap_or(0)), same.len() as u64))
            })
            .collect();
        self.observer.commit_to_ack(&ages);
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
                    attempt = number, kind = kind.as_str(), next_retry = text(*delay), suppressed, error = sentence(error),
                    "delivery failed, it will be tried again");
            }
            Note::Skipped { attempt, rejection } => {
                self.observer.delivered(attempt.route, DeliveryOutcome::Skipped, 1);
                self.observer.rejected(rejection.reason);
                let Attempt { event_id, position, route, number } = attempt;
                tracing::warn!(sink = %self.sink, route, event_id = clip(event_id), lsn = %position.commit_lsn,
                    attempt = number, reason = %rejection.reason, error = sentence(&rejection.message),
                    "event rejected and left out, because on_reject is skip: this sink will never get it");
            }
            Note::Halted { attempt, rejection } => {
                self.observer.delivered(attempt.route, DeliveryOutcome::Halted, 1);
                self.observer.rejected(rejection.reason);
                let Attempt { event_id, position, route, number } = attempt;
                tracing::error!(sink = %self.sink, route, event_id = clip(event_id), lsn = %position.commit_lsn,
                    attempt = number, reason = %rejection.reason, error = sentence(&rejection.message),
                    "event rejected: it, the events behind it of its key, and the checkpoint are held; make the sink \
                     accept it and restart, or leave it out with `walgate skip` (which needs the tables of `walgate init`); on_reject: dead_letter or skip goes on by itself");
            }
            Note::DeadLettered { attempt, reason, message, to } => {
                self.observer.delivered(attempt.route, DeliveryOutcome::DeadLettered, 1);
                self.observer.dead_lettered(reason);
                let Attempt { event_id, position, route, number } = attempt;
                if let Some(to) = to {
                    tracing::warn!(sink = %self.sink, route, event_id = clip(event_id), lsn = %position.commit_lsn,
                        attempt = number, reason, to = %to, error = sentence(message.as_deref().unwrap_or_default()),
                        "event is a dead letter: it goes to the sink of dead_letter_to, and the checkpoint waits for that one");
                    return;
                }
                let Some(message) = message else {
                    tracing::warn!(sink = %self.sink, route, event_id = clip(event_id), lsn = %position.commit_lsn,
                        attempt = number, reason,
                        "event is a dead letter: walgate.dead_letters keeps which event it was and why, without its \
                         payload, because dead_letters.payload is omit; it is never sent again");
                    return;
                };
                tracing::warn!(sink = %self.sink, route, event_id = clip(event_id), lsn = %position.commit_lsn,
                    attempt = number, reason, error = sentence(message),
                    "event is a dead letter: it is kept in walgate.dead_letters and not attempted again; \
                     `walgate dlq retry` sends it once more");
            }
            Note::KeyParked { attempt, halted, error } => {
                let cause = if *halted { "key_halted" } else { "key_parked" };
                let Some(suppressed) = self.open(cause, now) else { return };
                let Attempt { event_id, position, route, number } = attempt;
                let then = if *halted {
                    "until somebody decides: `walgate skip` leaves it out, a restart tries it again"
                } else {
                    "and is tried again from there"
                };
                tracing::warn!(sink = %self.sink, route, event_id = clip(event_id), lsn = %position.commit_lsn,
                    attempt = number, suppressed, error = sentence(error),
                    "event parked with its key, {then}; the other keys, and the checkpoint, go on");
            }
            Note::KeyReleased { .. } => {
                let Some(suppressed) = self.open("key_released", now) else { return };
                tracing::info!(sink = %self.sink, suppressed, "everything that was parked of a key is delivered");
            }
            Note::ParkingBegan { why } => {
                let Some(suppressed) = self.open("parking", now) else { return };
                self.told_parking = true;
                tracing::warn!(sink = %self.sink, suppressed, reason = sentence(why),
                    "parking: what the sink is owed goes to walgate.parked, and is delivered in order from there;                      the other sinks, and the checkpoint, go on");
            }
            Note::ParkingEnded { parked, lasted } => {
                if !std::mem::take(&mut self.told_parking) {
                    return;
                }
                tracing::info!(sink = %self.sink, parked, lasted = text(*lasted),
                    "parking is over: everything that was parked is delivered or on its way, live events follow");
            }
            Note::ParkingFull { rows, bytes } => {
                let Some(suppressed) = self.open("parking_full", now) else { return };
                tracing::error!(sink = %self.sink, rows, bytes, suppressed,
                    "walgate.parked holds as much of this sink as `limits.parked` allows: what comes now is held, and                      the checkpoint with it, until the sink takes some of it");
            }
            Note::StoreFailed { error, delay } => {
                let Some(suppressed) = self.open("store", now) else { return };
                self.told_store = true;
                tracing::error!(sink = %self.sink, next_attempt = text(*delay), suppressed, error = sentence(error),
                    "walgate's own tables cannot be used: what was to be written there is held, and the checkpoint                      with it");
            }
            Note::StoreWorks => {
                if std::mem::take(&mut self.told_store) {
                    tracing::info!(sink = %self.sink, "walgate's own tables can be used again");
                }
            }
            Note::SinkDown { cause, error, delay } => {
                self.observer.sink_up(false);
                let Some(suppressed) = self.open("down", now) else { return };
                self.told_down = true;
                tracing::error!(sink = %self.sink, cause = cause.as_str(), next_probe = text(*delay), suppressed, error = sentence(error),
                    "sink down: nothing is sent to it until it works again");
            }
            Note::ProbeFailed { error, delay } => {
                let Some(suppressed) = self.open("probe", now) else { return };
                self.told_down = true;
                tracing::warn!(sink = %self.sink, next_probe = text(*delay), suppressed, error = sentence(error), "sink still down");
            }
            Note::SinkUp { outage } => {
                self.observer.sink_up(true);
                if !std::mem::take(&mut self.told_down) {
                    return;
                }
                tracing::info!(sink = %self.sink, outage = text(*outage), "sink up again");
            }
            Note::SinkClosed { error } => {
                self.observer.sink_up(false);
                tracing::warn!(sink = %self.sink, error = sentence(error), "the sink's receiver has gone for good: stopping");
            }
        }
    }

    fn open(&mut self, cause: &'static str, now: Instant) -> Option<u64> {
        self.gates.open(cause, now)
    }
}

/// Whole milliseconds.
fn text(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    humantime::format_duration(Duration::from_millis(millis)).to_string()
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use tracing_subscriber::fmt::MakeWriter;
    use walgate_sink::{FailureKind, Position};

    use super::*;
    use crate::lane::Outage;

    /// Keeps what is logged.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Log {
        type Writer = Log;

        fn make_writer(&'a self) -> Log {
            self.clone()
        }
    }

    /// The lines that are written while `work` runs, without their times.
    fn lines(work: impl FnOnce(&mut Journal)) -> Vec<String> {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).without_time().finish();
        tracing::subscriber::with_default(subscriber, || work(&mut Journal::new("bus".into(), Arc::new(()))));
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn retry(event_id: &str, kind: FailureKind) -> Note {
        let attempt = Attempt { event_id: event_id.into(), position: Position::default(), route: 0, number: 3 };
        Note::Retry { attempt, kind, error: "planted\nfailure".into(), delay: Duration::from_secs(1) }
    }

    #[test]
    fn a_failing_sink_is_told_at_once_and_then_now_and_then() {
        let start = Instant::now();
        let lines = lines(|journal| {
            for n in 0..100_000u64 {
                let kind = if n % 2 == 0 { FailureKind::Timeout } else { FailureKind::Connection };
                journal.notes(&[retry(&n.to_string(), kind)], start + Duration::from_millis(n));
            }
        });
        // 100 s: at 0, 1, 3, 7, 15, 31 and 63 s, for each cause.
        assert_eq!(lines.len(), 14, "{lines:#?}");
        assert!(lines[0].contains("event_id=\"0\"") && lines[0].contains("suppressed=0"), "{}", lines[0]);
        assert!(lines[1].contains("kind=\"connection\""), "another cause is told at once as well: {}", lines[1]);
        assert!(lines[2].contains("suppressed=499"), "{}", lines[2]);
    }

    #[test]
    fn a_sink_that_flaps_does_not_fill_the_log_and_the_end_of_an_outage_is_told_if_its_beginning_was() {
        let start = Instant::now();
        let (down, up) = (
            Note::SinkDown { cause: Outage::Unreachable, error: "away".into(), delay: Duration::ZERO },
            Note::SinkUp { outage: Duration::from_millis(50) },
        );
        let lines = lines(|journal| {
            for n in 0..1000u64 {
                journal.notes(std::slice::from_ref(&down), start + Duration::from_millis(n * 100));
                journal.notes(std::slice::from_ref(&up), start + Duration::from_millis(n * 100 + 50));
            }
        });
        let words: Vec<_> = lines.iter().map(|line| line.contains("up again")).collect();
        assert_eq!(words, [false, true].repeat(7), "{lines:#?}");
    }

    #[test]
    fn x15_nothing_of_an_event_or_an_answer_breaks_its_line() {
        let id = format!("id\u{1b}[2J\r\n{}", "x".repeat(100_000));
        let lines = lines(|journal| journal.notes(&[retry(&id, FailureKind::Timeout)], Instant::now()));
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].len() < 1000 && !lines[0].contains('\u{1b}'), "{}", lines[0]);
    }
}
