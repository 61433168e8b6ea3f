//! Consumers of a FIFO queue of SQS: they take messages out while they come, and remember the order. (ministack looks
//! through the whole queue at each call: one that is left to grow is slow.)

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::oracle::Kept;
use crate::support::receiver::hash_of;
use crate::support::sqs::{Server, Stored};
use crate::support::wait::within;

/// As many as keep up with one sink.
const CONSUMERS: usize = 8;
/// How long an empty queue, or one that is paused, is left alone.
const REST: Duration = Duration::from_millis(50);

struct Shared {
    server: Arc<Server>,
    url: String,
    /// The messages of a group are in their order: one is remembered before the next is handed out.
    taken: Mutex<Vec<Kept>>,
    /// Read by a consumer for as long as its requests take.
    turn: RwLock<()>,
    paused: AtomicBool,
    ended: AtomicBool,
}

/// See the module.
pub struct Tasks {
    shared: Arc<Shared>,
    consumers: Vec<JoinHandle<()>>,
}

impl Tasks {
    pub fn take_from(server: &Arc<Server>, queue: &str) -> Tasks {
        let shared = Arc::new(Shared {
            server: server.clone(),
            url: server.url(queue),
            taken: Mutex::default(),
            turn: RwLock::default(),
            paused: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let consumer = || {
            let shared = shared.clone();
            std::thread::spawn(move || shared.consume())
        };
        Tasks { consumers: (0..CONSUMERS).map(|_| consumer()).collect(), shared }
    }

    /// Ends what is under way, and then does this: the server may be gone or silent until [`Tasks::go_on`].
    pub fn pause(&self, then: impl FnOnce()) {
        self.shared.paused.store(true, Ordering::SeqCst);
        let _turn = self.shared.turn.write().unwrap_or_else(PoisonError::into_inner);
        then();
    }

    pub fn go_on(&self) {
        self.shared.paused.store(false, Ordering::SeqCst);
    }

    /// All that the queue has held until now.
    #[track_caller]
    pub fn all(&self) -> Vec<Kept> {
        assert!(self.consumers.iter().all(|consumer| !consumer.is_finished()), "a consumer has failed");
        self.pause(|| while self.shared.take() {});
        self.go_on();
        self.shared.taken().clone()
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for consumer in self.consumers.drain(..) {
            let _ = consumer.join();
        }
    }
}

impl Shared {
    fn consume(&self) {
        while !self.ended.load(Ordering::SeqCst) {
            let turn = self.turn.read().unwrap_or_else(PoisonError::into_inner);
            let any = !self.paused.load(Ordering::SeqCst) && self.take();
            drop(turn);
            if !any {
                within(REST, || self.ended.load(Ordering::SeqCst));
            }
        }
    }

    /// Whether there was anything.
    fn take(&self) -> bool {
        self.server.take_some(&self.url, |some| self.taken().extend(some.iter().map(kept)))
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Kept>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kept(message: &Stored) -> Kept {
    Kept {
        id: message.id().to_owned(),
        key: message.attribute("walgate-key").map(str::to_owned),
        hash: hash_of(&message.body),
    }
}
