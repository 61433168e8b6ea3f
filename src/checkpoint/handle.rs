//! The ring as the intake and the lanes share it.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use tokio::sync::{Notify, watch};
use walgate_sink::Lsn;

use super::{Ring, Settled, Ticket};

/// The shared ring: one short lock per batch, a `watch` of the flush LSN, and a wake-up for the intake when there is
/// room again. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    flush: watch::Sender<Lsn>,
    /// Bytes went down, or nothing is unsettled and open any more.
    relieved: Notify,
}

/// The ring at one moment, for status and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointStatus {
    /// What is confirmed to the server.
    pub flush_lsn: Lsn,
    /// How far transactions with events have brought it.
    #[serde(skip)]
    pub settled_lsn: Lsn,
    /// The furthest commit end or keepalive that was taken in.
    pub received_lsn: Lsn,
    /// Events with unsettled deliveries.
    pub unsettled_events: u64,
    /// Their bytes.
    pub unsettled_bytes: u64,
    /// The most bytes that were ever unsettled at once.
    pub peak_bytes: u64,
    /// Transactions that have unsettled events or are open.
    pub transactions: usize,
    /// Start of the commit record of the transaction that holds the flush LSN.
    pub oldest_unsettled: Option<Lsn>,
    /// A transaction is open: its Commit has not been read.
    pub in_transaction: bool,
}

impl Checkpoint {
    /// An empty ring over a slot whose confirmed flush LSN is `confirmed`.
    #[must_use]
    pub fn new(confirmed: Lsn) -> Self {
        let shared = Shared {
            ring: Mutex::new(Ring::new(confirmed)),
            flush: watch::Sender::new(confirmed),
            relieved: Notify::new(),
        };
        Checkpoint { shared: Arc::new(shared) }
    }

    /// Runs `change` on the ring under its lock, then publishes the flush LSN if it rose and wakes whoever waits if
    /// there is more room. `change` must be short, and must not use this checkpoint.
    pub fn with<R>(&self, change: impl FnOnce(&mut Ring) -> R) -> R {
        let (result, flush, relieved) = {
            let mut ring = self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner);
            let (bytes, idle) = (ring.unsettled_bytes(), ring.is_idle());
            let result = change(&mut ring);
            let relieved = ring.unsettled_bytes() < bytes || (ring.is_idle() && !idle);
            (result, ring.flush_lsn(), relieved)
        };
        // Outside the lock two callers may come here in either order: only a higher LSN is published.
        self.shared.flush.send_if_modified(|published| {
            let rose = *published < flush;
            *published = flush.max(*published);
            rose
        });
        if relieved {
            self.shared.relieved.notify_waiters();
        }
        result
    }

    /// Settles one delivery for each ticket, under one lock. Returns how many tickets were stale: none, unless a
    /// delivery was settled twice.
    pub fn settle_all(&self, tickets: impl IntoIterator<Item = Ticket>) -> usize {
        self.with(|ring| tickets.into_iter().filter(|ticket| ring.settle(*ticket) == Settled::Stale).count())
    }

    /// Waits until less than `limit_bytes` are unsettled. With a limit of 0, until nothing is.
    ///
    /// Cancel safe. Waiting before each event keeps the unsettled bytes below the limit plus one event.
    pub async fn wait_for_room(&self, limit_bytes: u64) {
        self.wait_until(|ring| ring.unsettled_bytes() < limit_bytes.max(1)).await;
    }

    /// Waits until nothing is unsettled and no transaction is open. Cancel safe.
    pub async fn wait_idle(&self) {
        self.wait_until(Ring::is_idle).await;
    }

    /// The flush LSN as it rises.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Lsn> {
        self.shared.flush.subscribe()
    }

    /// The ring at this moment.
    #[must_use]
    pub fn snapshot(&self) -> CheckpointStatus {
        self.read(|ring| CheckpointStatus {
            flush_lsn: ring.flush_lsn(),
            settled_lsn: ring.settled_lsn(),
            received_lsn: ring.received_lsn(),
            unsettled_events: ring.unsettled_events(),
            unsettled_bytes: ring.unsettled_bytes(),
            peak_bytes: ring.peak_bytes(),
            transactions: ring.transactions(),
            oldest_unsettled: ring.oldest_unsettled(),
            in_transaction: ring.is_open(),
        })
    }

    fn read<R>(&self, look: impl FnOnce(&Ring) -> R) -> R {
        look(&self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) async fn wait_until(&self, reached: impl Fn(&Ring) -> bool) {
        loop {
            // Made before the look: it is woken by every change that comes after it.
            let relieved = self.shared.relieved.notified();
            if self.read(&reached) {
                return;
            }
            relieved.await;
        }
    }
}

#[cfg(test)]
impl Checkpoint {
    /// Wakes whoever waits, as a change does.
    pub(super) fn wake(&self) {
        self.shared.relieved.notify_waiters();
    }
}
