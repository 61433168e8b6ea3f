//! Watches how much of the WAL budget the slot uses, shows it, and says when that changes.

use std::{sync::Arc, time::Instant};

use tokio::{sync::watch, task::JoinHandle};

use super::StatusBoard;
use crate::{
    config::WalBudget,
    control::{Bound, Level, SlotReport, WalMeter, WalUse},
};

/// The task that looks. It ends when this is dropped.
pub struct BudgetWatch {
    level: watch::Receiver<Level>,
    task: JoinHandle<()>,
}

impl BudgetWatch {
    /// Measures each new look at the slots, and leaves it on the board.
    pub fn spawn(
        mut slots: watch::Receiver<Option<Arc<SlotReport>>>,
        budget: &WalBudget,
        board: StatusBoard,
    ) -> BudgetWatch {
        let mut meter = WalMeter::new(budget);
        let mut journal = Journal::default();
        let (sender, level) = watch::channel(Level::Calm);
        let task = tokio::spawn(async move {
            // The session's end is ours.
            while slots.changed().await.is_ok() {
                let Some(report) = slots.borrow_and_update().clone() else { continue };
                let seen = meter.look(Instant::now(), &report);
                board.wal_use(seen.clone());
                journal.note(&seen, || board.wal_holder());
                sender.send_if_modified(|level| std::mem::replace(level, seen.level) != seen.level);
            }
        });
        BudgetWatch { level, task }
    }

    /// The level, and a signal at each change of it. Whoever can let go of WAL acts on this: nothing else is done about
    /// it here.
    #[must_use]
    pub fn level(&self) -> watch::Receiver<Level> {
        self.level.clone()
    }
}

impl Drop for BudgetWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writes a line at each change of the level, and one when the slot is lost.
#[derive(Default)]
struct Journal {
    level: Level,
    lost: bool,
}

impl Journal {
    fn note(&mut self, seen: &WalUse, holder: impl FnOnce() -> String) {
        let before = std::mem::replace(&mut self.level, seen.level);
        let was_lost = std::mem::replace(&mut self.lost, seen.lost);
        if seen.lost {
            if !was_lost {
                let holder = holder();
                tracing::error!(
                    holder,
                    "the slot is lost: PostgreSQL has removed WAL that it needed. What was not delivered is in the outbox \
                     table only: stop walgate, drop the slot, make a new one, and send those rows by other means"
                );
            }
            return;
        }
        if before == seen.level {
            return;
        }
        let budget = seen.level.as_str();
        let used = seen.used_ratio.map(percent);
        let (bytes, bound) = (seen.bytes, seen.bound.map(Bound::as_str));
        let left = time_left(seen.seconds_left);
        if seen.level < before {
            tracing::info!(
                budget,
                before = before.as_str(),
                used,
                bytes,
                bound,
                left,
                "the slot uses less of its WAL budget again"
            );
            return;
        }
        let holder = holder();
        match seen.level {
            Level::Calm => {}
            Level::Warn => tracing::warn!(
                budget,
                used,
                bytes,
                bound,
                left,
                holder,
                "the WAL that PostgreSQL keeps for the slot fills its budget: {}",
                advice(seen.bound)
            ),
            Level::Act => tracing::error!(
                budget,
                used,
                bytes,
                bound,
                left,
                holder,
                "most of the slot's WAL budget is used: {}",
                advice(seen.bound)
            ),
            Level::Last => tracing::error!(
                budget,
                used,
                bytes,
                bound,
                left,
                holder,
                "the slot's WAL budget is as good as used up: {}",
                advice(seen.bound)
            ),
        }
    }
}

/// What to do, and what comes of not doing it.
fn advice(bound: Option<Bound>) -> &'static str {
    match bound {
        Some(Bound::Configured) => {
            "mend what holds it, before the server's disk is full; or make room there, and raise wal_budget.bytes"
        }
        Some(Bound::Server) | None => {
            "mend what holds it, before PostgreSQL gives the slot up, and with it every event that was not delivered; or \
             make room on the server's disk, and raise max_slot_wal_keep_size there (a reload is enough)"
        }
    }
}

fn percent(ratio: f64) -> String {
    format!("{:.1}%", ratio * 100.0)
}

/// For people, to the second below an hour and to the minute above it.
fn time_left(seconds: Option<f64>) -> String {
    const YEAR: f64 = 365.0 * 86400.0;
    let Some(seconds) = seconds else { return "unknown".to_owned() };
    if seconds > YEAR {
        return "more than a year".to_owned();
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a year")]
    let whole = seconds.max(0.0) as u64;
    let told = if whole < 3600 { whole } else { whole / 60 * 60 };
    humantime::format_duration(std::time::Duration::from_secs(told)).to_string()
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::control::slot::WalStatus;

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

    fn seen(level: Level, hundredths: u8, left: Option<f64>) -> WalUse {
        WalUse {
            bytes: Some(1 << 26),
            bound: Some(Bound::Server),
            used_ratio: Some(f64::from(hundredths) / 100.0),
            level,
            seconds_left: left,
            bytes_per_second: None,
            lost: false,
        }
    }

    fn lines(uses: &[WalUse]) -> Vec<String> {
        let log = Log::default();
        let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).without_time().finish();
        let mut journal = Journal::default();
        tracing::subscriber::with_default(subscriber, || {
            uses.iter().for_each(|seen| journal.note(seen, || "sink `partner` holds the checkpoint".to_owned()));
        });
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn each_change_of_the_level_is_told_once_and_with_what_to_do() {
        let lost = WalUse { lost: true, ..seen(Level::Last, 100, Some(0.0)) };
        let configured = WalUse { bound: Some(Bound::Configured), ..seen(Level::Act, 77, Some(4000.0)) };
        insta::assert_snapshot!(
            lines(&[
                seen(Level::Calm, 10, None),
                seen(Level::Warn, 52, Some(59.9)),
                seen(Level::Warn, 60, Some(30.0)),
                configured.clone(),
                configured,
                seen(Level::Last, 91, None),
                seen(Level::Warn, 50, Some(f64::MAX)),
                seen(Level::Calm, 3, None),
                seen(Level::Last, 99, Some(0.0)),
                lost.clone(),
                lost,
            ])
            .join("\n")
        );
    }

    #[tokio::test]
    async fn the_level_is_given_out_with_each_change_and_shown() {
        let identity = crate::pipeline::Identity {
            version: "0",
            slot: "s".into(),
            publication: "p".into(),
            table: "t".into(),
            server: "here".into(),
        };
        let board = StatusBoard::new(identity, 1, std::time::Duration::from_secs(1), crate::metrics::Metrics::new());
        let slots = watch::Sender::new(None);
        let budget = BudgetWatch::spawn(slots.subscribe(), &WalBudget::default(), board.clone());
        let mut level = budget.level();
        let report = |used, safe| Some(Arc::new(SlotReport::sample(Some(used), Some(safe), WalStatus::Reserved)));
        for (used, safe, expected) in [(80, 20, Level::Act), (95, 5, Level::Last), (10, 90, Level::Calm)] {
            slots.send_replace(report(used, safe));
            assert_eq!(*level.wait_for(|level| *level == expected).await.unwrap(), expected);
            let shown = board.status().wal_budget.unwrap();
            assert_eq!((shown.level, shown.bytes), (expected, Some(100)));
        }
        assert!(board.metrics(crate::metrics::Format::OpenMetrics).contains("walgate_wal_budget_ratio 0.1\n"));
        drop(budget);
        assert!(level.changed().await.is_err(), "the task ends with its watch");
    }
}
