//! What the server is told: how far the stream was received, and how far it may forget.
//!
//! A thread of its own with a timer of its own, so that the server is answered however blocked everything else is.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use tokio::sync::{Notify, watch};
use walgate_sink::Lsn;

use super::wire::{self, Status};
use crate::{postgres::Link, telemetry::failpoint};

/// The least time between two statuses. A server that shuts down asks again as soon as it is answered.
const LEAST_GAP: Duration = Duration::from_millis(10);
/// While there is progress a status goes out so often.
const PROGRESS_GAP: Duration = Duration::from_secs(1);
/// Without progress, and where `wal_sender_timeout` does not ask for more.
const LONGEST_GAP: Duration = Duration::from_secs(10);

/// Tells the status writer to report, and what it has reported. Clones share one connection.
#[derive(Clone, Debug)]
pub struct Feedback(pub(super) Arc<Progress>);

impl Feedback {
    /// Sends a status as soon as it can be: within 10 ms of the last one.
    pub fn reply_now(&self) {
        self.0.reply_now();
    }

    /// The flush LSN that the server was told last on this connection; `0/0` before the first.
    #[must_use]
    pub fn last_reported(&self) -> Lsn {
        Lsn(self.0.reported.load(Ordering::Acquire))
    }

    /// The highest position that the stream has shown on this connection.
    #[must_use]
    pub fn received(&self) -> Lsn {
        Lsn(self.0.received.load(Ordering::Acquire))
    }
}

/// What the reader, the writer and the owner of a stream share.
#[derive(Debug, Default)]
pub(super) struct Progress {
    received: AtomicU64,
    /// The highest position of data, without keepalives.
    data: AtomicU64,
    reported: AtomicU64,
    reply: AtomicBool,
    probe: AtomicBool,
    finish: AtomicBool,
    stop: AtomicBool,
    wake: Notify,
}

impl Progress {
    /// Something was read.
    pub(super) fn note(&self, data: Lsn, wal_end: Lsn) {
        self.data.fetch_max(data.0, Ordering::AcqRel);
        self.received.fetch_max(wal_end.max(data).0, Ordering::AcqRel);
    }

    /// A status is wanted.
    pub(super) fn reply_now(&self) {
        self.poke(&self.reply);
    }

    /// The server shall say something, to show that it lives.
    pub(super) fn probe(&self) {
        self.poke(&self.probe);
    }

    /// A last status, then the end of our side of the stream.
    pub(super) fn finish(&self) {
        self.poke(&self.finish);
    }

    /// Nothing more is to be sent.
    pub(super) fn stop(&self) {
        self.poke(&self.stop);
    }

    fn poke(&self, flag: &AtomicBool) {
        flag.store(true, Ordering::Release);
        self.wake.notify_one();
    }
}

/// When the next status is due. No clock, no I/O.
#[derive(Debug)]
struct Schedule {
    sent_at: Instant,
    flush: Lsn,
    received: Lsn,
    longest_gap: Duration,
}

impl Schedule {
    fn new(now: Instant, wal_sender_timeout: Option<Duration>) -> Self {
        let longest_gap = wal_sender_timeout.map_or(LONGEST_GAP, |timeout| LONGEST_GAP.min(timeout.mul_f64(0.6)));
        Schedule { sent_at: now, flush: Lsn::ZERO, received: Lsn::ZERO, longest_gap }
    }

    /// `asked`: the server, or somebody here, wants one.
    fn due(&self, flush: Lsn, received: Lsn, data: Lsn, asked: bool) -> Instant {
        // Everything that came is done with, and the server has not been told. Keepalives alone can wait a second.
        let empty = flush >= data && data > self.flush;
        let gap = if asked || empty {
            LEAST_GAP
        } else if flush > self.flush || received > self.received || wants_keepalive(flush, received, data) {
            PROGRESS_GAP
        } else {
            LONGEST_GAP
        };
        self.sent_at + gap.min(self.longest_gap)
    }

    fn sent(&mut self, now: Instant, flush: Lsn, received: Lsn) {
        (self.sent_at, self.flush, self.received) = (now, flush, received);
    }
}

/// A keepalive came while something was unsettled, and what it showed was not confirmed. The server sends the next one
/// by itself only after half of `wal_sender_timeout`: until then the slot would hold WAL that nobody needs. So it is
/// asked for one, once everything is settled.
fn wants_keepalive(flush: Lsn, received: Lsn, data: Lsn) -> bool {
    flush >= data && received > flush
}

/// Starts the thread.
pub(super) fn spawn(
    link: Link,
    progress: Arc<Progress>,
    flush: watch::Receiver<Lsn>,
    wal_sender_timeout: Option<Duration>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let schedule = Schedule::new(Instant::now(), wal_sender_timeout);
    std::thread::Builder::new().name("walgate-status".into()).spawn(move || {
        let writer = Writer { link, progress, flush, schedule };
        if let Err(error) = runtime.block_on(writer.run()) {
            // The reader finds out why, and reports it.
            tracing::debug!(%error, "cannot send a status to postgresql");
        }
    })?;
    Ok(())
}

struct Writer {
    link: Link,
    progress: Arc<Progress>,
    flush: watch::Receiver<Lsn>,
    schedule: Schedule,
}

impl Writer {
    async fn run(mut self) -> io::Result<()> {
        let mut publishing = true;
        loop {
            if self.progress.stop.load(Ordering::Acquire) {
                return Ok(());
            }
            if self.progress.finish.load(Ordering::Acquire) {
                return self.finish();
            }
            let asked = self.progress.reply.load(Ordering::Acquire) || self.progress.probe.load(Ordering::Acquire);
            let (flush, received, data) = self.state();
            let due = self.schedule.due(flush, received, data, asked);
            let now = Instant::now();
            if due <= now {
                self.send()?;
                continue;
            }
            // What is confirmed changes thousands of times a second: it is looked at no oftener than it can be told.
            let look = due.min(now + LEAST_GAP);
            tokio::select! {
                biased;
                () = self.progress.wake.notified() => {}
                () = tokio::time::sleep_until(due.into()) => {}
                changed = async {
                    tokio::time::sleep_until(look.into()).await;
                    self.flush.changed().await
                }, if publishing => publishing = changed.is_ok(),
            }
        }
    }

    /// Confirmed, received and received data. The first never falls on a connection, and the second is never behind it.
    fn state(&mut self) -> (Lsn, Lsn, Lsn) {
        let flush = (*self.flush.borrow_and_update()).max(self.schedule.flush);
        let received = Lsn(self.progress.received.load(Ordering::Acquire)).max(flush);
        (flush, received, Lsn(self.progress.data.load(Ordering::Acquire)))
    }

    fn send(&mut self) -> io::Result<()> {
        // Cleared before the state is read: who asks after this gets another status.
        self.progress.reply.store(false, Ordering::Release);
        let probe = self.progress.probe.swap(false, Ordering::AcqRel);
        let (flush, received, data) = self.state();
        let reply_requested = probe || wants_keepalive(flush, received, data);
        let status = Status { write: received, flush, clock: wire::clock(), reply_requested };
        failpoint("status.before");
        self.link.write_all(&status.encode())?;
        failpoint("status.after");
        self.schedule.sent(Instant::now(), flush, received);
        self.progress.reported.store(flush.0, Ordering::Release);
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        self.send()?;
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        self.link.write_all(&message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_due_when_it_helps() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, Some(Duration::from_secs(60)));
        let ms = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(schedule.due(Lsn(0), Lsn(0), Lsn(0), false), ms(10_000), "nothing new");
        assert_eq!(schedule.due(Lsn(0), Lsn(0), Lsn(0), true), ms(10), "asked");
        assert_eq!(schedule.due(Lsn(0), Lsn(9), Lsn(9), false), ms(1000), "received");
        assert_eq!(schedule.due(Lsn(5), Lsn(9), Lsn(9), false), ms(1000), "some confirmed");
        assert_eq!(schedule.due(Lsn(9), Lsn(9), Lsn(9), false), ms(10), "all confirmed");
        assert_eq!(schedule.due(Lsn(9), Lsn(9), Lsn(0), false), ms(1000), "keepalives only");
        assert_eq!(schedule.due(Lsn(5), Lsn(9), Lsn(5), false), ms(10), "all data confirmed, a keepalive not");
        schedule.sent(ms(100), Lsn(5), Lsn(9));
        assert_eq!(schedule.due(Lsn(5), Lsn(9), Lsn(5), false), ms(1100), "and the server is asked for another");
        schedule.sent(ms(100), Lsn(9), Lsn(9));
        assert_eq!(schedule.due(Lsn(9), Lsn(9), Lsn(9), false), ms(10_100), "told");
        assert_eq!(schedule.due(Lsn(12), Lsn(12), Lsn(9), false), ms(1100), "keepalives since");
    }

    #[test]
    fn the_server_never_waits_longer_than_its_timeout_allows() {
        let start = Instant::now();
        for (timeout, longest) in [(Some(2000), 1200), (Some(500), 300), (Some(60_000), 10_000), (None, 10_000)] {
            let schedule = Schedule::new(start, timeout.map(Duration::from_millis));
            let due = schedule.due(Lsn(0), Lsn(0), Lsn(0), false);
            assert!(due <= start + Duration::from_millis(longest), "{timeout:?}");
            let due = schedule.due(Lsn(1), Lsn(3), Lsn(3), false);
            assert!(due <= start + Duration::from_millis(longest.min(1000)), "{timeout:?}");
        }
    }
}
