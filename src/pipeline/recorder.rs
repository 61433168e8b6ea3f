//! Between the checkpoint and the statuses: what is going to be confirmed is written down first.
//!
//! Where walgate's own tables may be used, the row `walgate.gateway` is written before the status that it covers; so a slot
//! that is further than its row was moved by somebody else. Where they may not, the flush LSN is passed on as it is.
//!
//! It also takes [marks](Mark), and knows which of them the checkpoint has passed: the catalog watch lets them count, when it
//! has found everything in order after that. They belong to one connection: marks
//! that were not passed when it was lost prove nothing, because a server that has crashed hands out the same transaction
//! numbers again.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::{
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_postgres::Client;
use walgate_sink::Lsn;

use crate::{
    checkpoint::{Checkpoint, CheckpointStatus},
    control::{Bounds, Mark, gateway},
    telemetry::failpoint,
};

/// Time between two records of what was settled, at the least.
const LEAST_GAP: Duration = Duration::from_millis(200);
/// Where only keepalives brought progress: at once for so much WAL; after a time for less; and not at all for so little
/// that it may be the record itself, or an idle server would never rest.
const KEEPALIVES_STEP: u64 = 16 << 20;
const KEEPALIVES_GAP: Duration = Duration::from_secs(5);
const LITTLE: u64 = 64 << 10;
/// Where the flush LSN is passed on as it is: it changes thousands of times a second, and is told a few times.
const PASS_GAP: Duration = Duration::from_millis(5);
/// Time between two marks.
const MARK_EVERY: Duration = Duration::from_secs(2);
/// Marks that wait to be passed: with more of them, every other one is given up.
const MARKS: usize = 64;
/// Time that a statement may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after one that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Where it is written down.
pub struct Book {
    /// The SQL connection that stands beside the stream.
    pub client: Arc<Client>,
    /// The slot.
    pub slot: String,
    /// Our term.
    pub term: i64,
    /// Marks that are taken on that connection hold for the stream.
    pub marks_hold: bool,
}

/// Writes down, and passes on, until it is [finished](Recorder::finish) or dropped.
pub struct Recorder {
    finish: Option<oneshot::Sender<Instant>>,
    task: JoinHandle<()>,
    lost: watch::Receiver<bool>,
}

impl Recorder {
    /// Begins. `confirmed` is what the statuses tell; `passed` gets the newest mark that is behind the checkpoint; the mark of
    /// `bounds` counts, and is written down.
    pub fn spawn(
        book: Option<Book>,
        checkpoint: Checkpoint,
        confirmed: watch::Sender<Lsn>,
        passed: watch::Sender<Option<Mark>>,
        bounds: watch::Receiver<Option<Bounds>>,
    ) -> Self {
        let (finish, finishing) = oneshot::channel();
        let lost_sender = watch::Sender::new(false);
        let lost = lost_sender.subscribe();
        let task = Writer { checkpoint, confirmed, passed, bounds, lost: lost_sender, marks: Marks::default() };
        let task = tokio::spawn(async move {
            match book {
                Some(book) => task.write(book, finishing).await,
                None => task.pass_on(finishing).await,
            }
        });
        Recorder { finish: Some(finish), task, lost }
    }

    /// Waits until another process has begun a term: the slot is not ours any more.
    pub async fn lost(&mut self) {
        if self.lost.wait_for(|lost| *lost).await.is_err() {
            std::future::pending().await
        }
    }

    /// Writes down what is settled now, and passes it on for the last time.
    pub async fn finish(mut self, deadline: Instant) {
        if let Some(finish) = self.finish.take() {
            let _ = finish.send(deadline);
        }
        let _ = timeout_at(deadline, &mut self.task).await;
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Writer {
    checkpoint: Checkpoint,
    confirmed: watch::Sender<Lsn>,
    passed: watch::Sender<Option<Mark>>,
    bounds: watch::Receiver<Option<Bounds>>,
    lost: watch::Sender<bool>,
    marks: Marks,
}

impl Writer {
    async fn pass_on(self, mut finishing: oneshot::Receiver<Instant>) {
        let mut flush = self.checkpoint.subscribe();
        loop {
            self.confirmed.send_replace(*flush.borrow_and_update());
            let next = Instant::now() + PASS_GAP;
            let changed = async {
                let _ = flush.changed().await;
                sleep_until(next).await;
            };
            tokio::select! {
                _ = &mut finishing => break,
                () = changed => {}
            }
        }
        self.confirmed.send_replace(self.checkpoint.snapshot().flush_lsn);
    }

    async fn write(mut self, book: Book, mut finishing: oneshot::Receiver<Instant>) {
        let mut flush = self.checkpoint.subscribe();
        let mut pace = Pace::default();
        let mut next_mark = Instant::now();
        let mut not_before = Instant::now();
        loop {
            flush.mark_unchanged();
            let now = Instant::now();
            if book.marks_hold && next_mark <= now {
                next_mark = now + MARK_EVERY;
                match timeout(PATIENCE, gateway::take_mark(&book.client)).await {
                    Ok(Ok(mark)) => self.marks.push(mark),
                    Ok(Err(error)) => tracing::debug!(%error, "no mark"),
                    Err(_) => tracing::debug!("no mark: no answer"),
                }
                continue;
            }
            let status = self.checkpoint.snapshot();
            if let Some(mark) = self.marks.passed(status.flush_lsn) {
                self.passed.send_replace(Some(mark));
            }
            let counts = self.bounds.borrow_and_update().and_then(|bounds| bounds.mark).map(|mark| mark.lsn);
            let due = pace.due(now, &status, counts).map(|due| due.max(not_before));
            if due.is_some_and(|due| due <= now) {
                match self.record(&book, &mut pace, status.flush_lsn).await {
                    Recorded::Yes => {}
                    Recorded::Later => not_before = Instant::now() + RETRY,
                    Recorded::Never => return,
                }
                continue;
            }
            let soon = due.is_some_and(|due| due <= now + RETRY);
            let wake = due.into_iter().chain(book.marks_hold.then_some(next_mark)).min();
            tokio::select! {
                _ = &mut finishing => break,
                // It changes thousands of times a second: of no interest where something is due soon anyway.
                _ = flush.changed(), if !soon => {}
                Ok(()) = self.bounds.changed() => {}
                () = async { match wake { Some(wake) => sleep_until(wake).await, None => std::future::pending().await } } => {}
            }
        }
        let last = self.checkpoint.snapshot().flush_lsn;
        if last > pace.recorded {
            let _ = self.record(&book, &mut pace, last).await;
        }
    }

    async fn record(&mut self, book: &Book, pace: &mut Pace, flush: Lsn) -> Recorded {
        let mark = self.bounds.borrow().and_then(|bounds| bounds.mark);
        failpoint("record.before");
        let written = timeout(PATIENCE, gateway::record(&book.client, &book.slot, book.term, flush, mark));
        let written = written.await;
        failpoint("record.after");
        match written {
            Ok(Ok(true)) => {
                *pace =
                    Pace { recorded: flush, mark: mark.map_or(pace.mark, |mark| mark.lsn), at: Some(Instant::now()) };
                self.confirmed.send_replace(flush);
                Recorded::Yes
            }
            Ok(Ok(false)) => {
                self.lost.send_replace(true);
                Recorded::Never
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "nothing is confirmed to PostgreSQL until that is written");
                Recorded::Later
            }
            Err(_) => {
                tracing::warn!(
                    seconds = PATIENCE.as_secs(),
                    "walgate.gateway could not be written in time: nothing is confirmed to PostgreSQL until it is"
                );
                Recorded::Later
            }
        }
    }
}

enum Recorded {
    Yes,
    /// Not now.
    Later,
    /// The slot is another's.
    Never,
}

/// When something is to be written down. No clock.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    recorded: Lsn,
    /// The newest mark that is written down.
    mark: Lsn,
    at: Option<Instant>,
}

impl Pace {
    /// `mark`: the newest one that counts.
    fn due(&self, now: Instant, status: &CheckpointStatus, mark: Option<Lsn>) -> Option<Instant> {
        let Some(at) = self.at else { return Some(now) };
        let keepalives = status.flush_lsn.bytes_since(self.recorded);
        // The first mark behind what was settled last: a recovery then knows that all of it was.
        let tells = mark.is_some_and(|mark| mark >= status.settled_lsn && self.mark < status.settled_lsn);
        if status.settled_lsn > self.recorded || keepalives >= KEEPALIVES_STEP || tells {
            Some(at + LEAST_GAP)
        } else {
            (keepalives >= LITTLE).then_some(at + KEEPALIVES_GAP)
        }
    }
}

/// Marks that the checkpoint has not passed, oldest first.
#[derive(Default)]
struct Marks(VecDeque<Mark>);

impl Marks {
    fn push(&mut self, mark: Mark) {
        if self.0.len() >= MARKS {
            let mut keep = false;
            self.0.retain(|_| {
                keep = !keep;
                keep
            });
        }
        self.0.push_back(mark);
    }

    /// Takes out those that are behind this LSN, and returns the newest of them.
    fn passed(&mut self, flush: Lsn) -> Option<Mark> {
        let mut newest = None;
        while let Some(mark) = self.0.pop_front_if(|mark| mark.lsn <= flush) {
            newest = Some(mark);
        }
        newest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(flush: u64, settled: u64) -> CheckpointStatus {
        let mut status = Checkpoint::new(Lsn(flush)).snapshot();
        status.settled_lsn = Lsn(settled);
        status
    }

    #[test]
    fn what_is_settled_is_written_soon_and_keepalives_seldom() {
        let start = Instant::now();
        let pace = Pace { recorded: Lsn(100), mark: Lsn(90), at: Some(start) };
        let due = |status| pace.due(start, &status, Some(Lsn(99))).map(|due| due - start);
        assert_eq!(due(at(100, 100)), None);
        assert_eq!(due(at(200, 200)), Some(LEAST_GAP));
        assert_eq!(due(at(99 + LITTLE, 100)), None, "what is written here is WAL too");
        assert_eq!(due(at(100 + LITTLE, 100)), Some(KEEPALIVES_GAP));
        assert_eq!(due(at(100 + KEEPALIVES_STEP, 100)), Some(LEAST_GAP));
        let first = Pace::default();
        assert_eq!(first.due(start, &at(100, 100), None), Some(start), "the first tells that the slot is ours");
        let tells = |mark| pace.due(start, &at(100, 100), Some(Lsn(mark))).is_some();
        assert_eq!((tells(99), tells(100)), (false, true), "a mark behind what was settled last");
        let told = Pace { mark: Lsn(100), ..pace };
        assert_eq!(told.due(start, &at(100, 100), Some(Lsn(120))), None, "once");
    }

    #[test]
    fn marks_are_passed_in_order_and_bounded() {
        let mut marks = Marks::default();
        let mark = |n| Mark { xmin: n, lsn: Lsn(n * 10) };
        for n in 1..=10_000 {
            marks.push(mark(n));
        }
        assert!(marks.0.len() <= MARKS + 1);
        assert_eq!(marks.passed(Lsn(9)), None);
        assert_eq!(marks.passed(Lsn(10)), Some(mark(1)), "the oldest stays");
        assert_eq!(marks.passed(Lsn(100_000)), Some(mark(10_000)), "and the newest is there");
        assert_eq!(marks.passed(Lsn(100_000)), None);
    }

    #[tokio::test]
    async fn without_a_book_everything_is_passed_on() {
        let checkpoint = Checkpoint::new(Lsn(7));
        let confirmed = watch::Sender::new(Lsn::ZERO);
        let mut told = confirmed.subscribe();
        let recorder =
            Recorder::spawn(None, checkpoint.clone(), confirmed, watch::Sender::new(None), watch::channel(None).1);
        told.wait_for(|lsn| *lsn == Lsn(7)).await.unwrap();
        checkpoint.with(|ring| ring.keepalive(Lsn(9)));
        told.wait_for(|lsn| *lsn == Lsn(9)).await.unwrap();
        checkpoint.with(|ring| ring.keepalive(Lsn(11)));
        recorder.finish(Instant::now() + Duration::from_secs(20)).await;
        assert_eq!(*told.borrow(), Lsn(11));
    }
}
