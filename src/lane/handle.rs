//! What the rest of walgate holds of a lane.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{sync::Notify, time::Instant};
use walgate_sink::Timestamp;

use super::{Lane, LaneStatus, Work};

/// Gives work to a lane and asks how it is. A clone is another handle of the same lane.
#[derive(Clone)]
pub struct LaneHandle(pub(super) Arc<Shared>);

/// What the handles and the runner share.
pub(super) struct Shared {
    pub(super) name: Arc<str>,
    core: Mutex<Core>,
    /// Wakes the runner.
    pub(super) wake: Notify,
}

pub(super) struct Core {
    pub(super) lane: Lane,
    /// The runner waits, and wants to be woken once so many deliveries are available.
    pub(super) parked: Option<usize>,
}

impl Shared {
    pub(super) fn new(name: Arc<str>, lane: Lane) -> Self {
        Shared { name, core: Mutex::new(Core { lane, parked: None }), wake: Notify::new() }
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
        let wake = self.lane.available() >= wanted || self.lane.has_invalid();
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

    /// Deliveries that are not settled.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.0.lock().lane.unsettled()
    }

    /// How the lane is. To be asked every second, not every event.
    #[must_use]
    pub fn status(&self) -> LaneStatus {
        self.0.lock().lane.status(Instant::now().into_std(), Timestamp::now())
    }
}
