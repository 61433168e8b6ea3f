//! What the rest of walgate holds of a lane.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::{sync::Notify, time::Instant};
use walgate_sink::{DynSink, Reading, Timestamp};

use super::{Finished, Lane, LaneStatus, Work};
use crate::control::parking::Filter;

/// Gives work to a lane and asks how it is. A clone is another handle of the same lane.
#[derive(Clone)]
pub struct LaneHandle(pub(super) Arc<Shared>);

/// What the handles and the runner share.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    core: Mutex<Core>,
    /// Wakes the runner.
    pub(super) wake: Notify,
    /// Turns of the runner's loop so far.
    turns: AtomicU64,
    /// The runner's loop has ended.
    ended: AtomicBool,
    /// The sink, while it is there.
    sink: Mutex<Option<Weak<dyn DynSink>>>,
    /// What was decided from outside, and is to be settled by the runner.
    pub(super) decided: Mutex<Vec<Finished>>,
    /// Requests that are done.
    pub(super) revived: Mutex<Vec<(i64, u64)>>,
}

pub(super) struct Core {
    pub(super) lane: Lane,
    /// The runner waits, and wants to be woken once so many deliveries are available.
    pub(super) parked: Option<usize>,
}

impl Shared {
    pub(super) fn new(name: Arc<str>, lane: Lane) -> Self {
        Shared {
            name,
            core: Mutex::new(Core { lane, parked: None }),
            wake: Notify::new(),
            turns: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            sink: Mutex::default(),
            decided: Mutex::default(),
            revived: Mutex::default(),
        }
    }

    /// The runner's loop has made a turn.
    pub(super) fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// The sink is there.
    pub(super) fn connected(&self, sink: &Arc<dyn DynSink>) {
        *self.sink.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(sink));
    }

    /// The runner's loop is over.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Whether the runner is to be woken: it waits, and there is what it waits for. True once for each wait, so that
    /// pushes to a lane that is awake or busy cost no wake-up.
    fn unpark(&mut self) -> bool {
        let Some(wanted) = self.parked else { return false };
        let wake = self.lane.available() >= wanted || self.lane.has_invalid() || self.lane.wants_chore();
        if wake {
            self.parked = None;
        }
        wake
    }
}

impl LaneHandle {
    /// The sink's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// Takes in a delivery. Those of one ordering key come in the order of their events.
    pub fn push(&self, work: Work) {
        self.push_all([work]);
    }

    /// Takes in deliveries, in order, under one lock.
    pub fn push_all(&self, work: impl IntoIterator<Item = Work>) {
        let mut core = self.0.lock();
        for work in work {
            core.lane.push(work);
        }
        let wake = core.unpark();
        drop(core);
        if wake {
            self.0.wake.notify_one();
        }
    }

    /// Sends nothing to the sink, or goes on.
    pub fn pause(&self, paused: bool) {
        self.0.lock().lane.pause(paused, Instant::now().into_std());
        self.nudge();
    }

    /// See [`Lane::doze`].
    pub fn doze(&self, dormant: bool) {
        self.0.lock().lane.doze(dormant);
        self.nudge();
    }

    /// PostgreSQL keeps more WAL than the budget allows, or no longer does.
    pub fn press(&self, pressed: bool) {
        self.0.lock().lane.press(pressed);
        self.nudge();
    }

    /// Whether an operator has paused it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.0.lock().lane.paused
    }

    /// See [`Lane::give_up`]. How many deliveries are given up now; what is in flight is not.
    #[must_use]
    pub fn give_up(&self) -> usize {
        let (count, finished) = self.0.lock().lane.give_up();
        self.0.decided.lock().unwrap_or_else(PoisonError::into_inner).push(finished);
        self.nudge();
        count
    }

    /// See [`Lane::sacrifice`].
    pub fn sacrifice(&self, sacrificed: bool) {
        self.0.lock().lane.sacrifice(sacrificed);
        self.nudge();
    }

    /// Leaves out an event that holds its key. Whether there is such an event.
    #[must_use]
    pub fn skip(&self, event_id: &str) -> bool {
        let finished = self.0.lock().lane.skip(event_id, Instant::now().into_std());
        let Some(finished) = finished else { return false };
        self.0.decided.lock().unwrap_or_else(PoisonError::into_inner).push(finished);
        self.nudge();
        true
    }

    /// Dead letters are to be attempted again; see [`Lane::revive`]. The answer is among [`LaneHandle::revived`].
    pub fn revive(&self, request: i64, filter: Filter, before: i64, run: String) {
        self.0.lock().lane.revive(request, filter, before, run);
        self.nudge();
    }

    /// So many dead letters of the sink were deleted.
    pub fn letters_deleted(&self, rows: u64) {
        self.0.lock().lane.letters_deleted(rows);
    }

    /// So many dead letters of the sink were put there by somebody else.
    pub fn letters_added(&self, rows: u64) {
        self.0.lock().lane.letters_added(rows);
    }

    /// Takes the answers that there are: numbers of requests, and how many dead letters are attempted again.
    #[must_use]
    pub fn revived(&self) -> Vec<(i64, u64)> {
        std::mem::take(&mut *self.0.revived.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another lane has settled what it was given of this one's rows.
    pub(super) fn rows_settled(&self, rows: impl IntoIterator<Item = i64>) {
        let mut core = self.0.lock();
        for row in rows {
            core.lane.row_settled(row);
        }
        drop(core);
        self.nudge();
    }

    /// Makes the lane's task take a turn, whether there is something to do or not.
    pub fn nudge(&self) {
        self.0.wake.notify_one();
    }

    /// Turns that the lane's task has taken. If a [nudge](LaneHandle::nudge) does not move it, the task hangs: a sink
    /// blocks its thread, or the runtime runs nothing any more.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.0.turns.load(Ordering::Relaxed)
    }

    /// Whether the lane has stopped, and takes no turns any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }

    /// Deliveries that are not settled.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.0.lock().lane.unsettled()
    }

    /// See [`Lane::holds_live`].
    #[must_use]
    pub fn holds_live(&self) -> bool {
        self.0.lock().lane.holds_live()
    }

    /// What the sink has counted itself; empty while it is not there.
    #[must_use]
    pub fn readings(&self) -> Vec<Reading> {
        let sink = self.0.sink.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Weak::upgrade);
        sink.map(|sink| sink.readings()).unwrap_or_default()
    }

    /// How the lane is. To be asked every second, not every event.
    #[must_use]
    pub fn status(&self) -> LaneStatus {
        self.0.lock().lane.status(Instant::now().into_std(), Timestamp::now())
    }
}
