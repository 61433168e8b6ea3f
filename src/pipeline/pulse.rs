//! Whether the gateway still lives: not whether its process is there, but whether its tasks answer.

use std::{
    future::{Future, poll_fn},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::time::{Instant, sleep};

use super::StatusBoard;
use crate::lane::LaneHandle;

/// Pause between two looks whether everything has answered.
const LOOK: Duration = Duration::from_millis(20);

/// The pulse of one task. A task that waits, for an event, for a sink or for room, has one: it answers when it is
/// nudged. One that is blocked, or goes round in circles without ever yielding, has none. A clone is the same pulse.
#[derive(Clone, Default)]
pub struct Pulse(Arc<Heart>);

#[derive(Default)]
struct Heart {
    beats: AtomicU64,
    waker: AtomicWaker,
}

impl Pulse {
    /// The same work, with this pulse.
    pub fn of<W: Future>(&self, work: W) -> impl Future<Output = W::Output> + use<W> {
        let heart = Arc::clone(&self.0);
        let mut work = Box::pin(work);
        poll_fn(move |context| {
            // Registered before the work is polled: a nudge in between is not lost.
            heart.waker.register(context.waker());
            heart.beats.fetch_add(1, Ordering::Relaxed);
            work.as_mut().poll(context)
        })
    }

    fn nudge(&self) {
        self.0.waker.wake();
    }

    fn beats(&self) -> u64 {
        self.0.beats.load(Ordering::Relaxed)
    }
}

/// Asks the task with this pulse and every lane to show that they run, and waits until all of them have.
///
/// # Errors
/// Who has not within this time.
pub async fn is_alive(pulse: &Pulse, board: &StatusBoard, within: Duration) -> Result<(), String> {
    let deadline = Instant::now() + within;
    let mut gateway = Some(pulse.beats());
    let mut lanes: Vec<(LaneHandle, u64)> =
        board.lanes().into_iter().map(|lane| (lane.handle.clone(), lane.handle.turns())).collect();
    pulse.nudge();
    lanes.iter().for_each(|(lane, _)| lane.nudge());
    loop {
        gateway = gateway.filter(|before| pulse.beats() == *before);
        // A lane that has ended is the gateway's to see.
        lanes.retain(|(lane, before)| lane.turns() == *before && !lane.has_ended());
        if gateway.is_none() && lanes.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let lanes = lanes.iter().map(|(lane, _)| format!("the lane of sink `{}`", lane.name()));
            let silent: Vec<String> = gateway.map(|_| "the gateway".to_owned()).into_iter().chain(lanes).collect();
            return Err(silent.join(", "));
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::{
        checkpoint::Checkpoint,
        lane::{LaneSettings, SinkSource},
        metrics::Metrics,
        pipeline::{Identity, LanePlan, Lanes},
    };
    use walgate_sink::{Batch, Capabilities, DeliveryReport, Lsn, Sink, SinkError};

    const SECOND: Duration = Duration::from_secs(1);

    struct Idle;

    impl Sink for Idle {
        async fn deliver(&self, _: &Batch, _: &DeliveryReport) {}
        async fn check(&self) -> Result<(), SinkError> {
            Ok(())
        }
        async fn close(&self) {}
        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }
    }

    fn board() -> StatusBoard {
        let text = String::new;
        let identity = Identity { version: "0", slot: text(), publication: text(), table: text(), server: text() };
        StatusBoard::new(identity, 1, SECOND, Metrics::new())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_waits_lives_and_who_is_blocked_does_not() {
        let (board, pulse) = (board(), Pulse::default());
        let checkpoint = Checkpoint::new(Lsn(1));
        let plan = LanePlan {
            name: "bus".into(),
            shelf: "bus".into(),
            kind: "idle".into(),
            required: true,
            source: SinkSource::connected(Arc::new(Idle)),
            settings: LaneSettings::default(),
            store: None,
            observer: Arc::new(()),
            fingerprint: String::new(),
        };
        let (lanes, _endings) = Lanes::start(vec![plan], &checkpoint);
        board.set_lanes(checkpoint, lanes.named());
        let (block, blocked) = mpsc::channel::<mpsc::Receiver<()>>();
        let (blocked, wait) = (std::sync::Mutex::new(blocked), tokio::sync::Notify::new());
        let wait = Arc::new(wait);
        let go = Arc::clone(&wait);
        let task = tokio::spawn(pulse.of(async move {
            // Idle; then blocked until the test lets go; then idle again.
            go.notified().await;
            let until = blocked.lock().unwrap().recv().unwrap();
            let _ = until.recv();
            std::future::pending::<()>().await;
        }));
        for _ in 0..3 {
            assert_eq!(is_alive(&pulse, &board, 30 * SECOND).await, Ok(()), "it waits");
        }
        let (release, until) = mpsc::channel();
        wait.notify_one();
        block.send(until).unwrap();
        // The nudge may still come before the task blocks.
        let silent = loop {
            if let Err(silent) = is_alive(&pulse, &board, SECOND / 10).await {
                break silent;
            }
        };
        assert_eq!(silent, "the gateway");
        release.send(()).unwrap();
        assert_eq!(is_alive(&pulse, &board, 30 * SECOND).await, Ok(()), "it waits again");
        task.abort();
    }
}
