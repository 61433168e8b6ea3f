//! One order for everything that the test process sees: the proxies' and the receivers' logs carry ticks of the same
//! counter, so that "before" and "after" mean something across them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A moment in the order of what this process saw.
pub type Tick = u64;

static TICKS: AtomicU64 = AtomicU64::new(0);
static START: OnceLock<Instant> = OnceLock::new();

/// The next tick.
pub fn tick() -> Tick {
    TICKS.fetch_add(1, Ordering::SeqCst) + 1
}

/// Time since the first call in this process; monotonic.
pub fn now() -> Duration {
    START.get_or_init(Instant::now).elapsed()
}
