//! The one place that sleeps: waiting for a condition, with a deadline.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Generous: two cores may be shared with a compiler. No test waits this long unless it fails.
pub const DEADLINE: Duration = Duration::from_secs(60);

const PAUSE: Duration = Duration::from_millis(5);

/// Polls until the condition holds; fails the test with `what` when it does not within the deadline.
#[track_caller]
pub fn eventually(deadline: Duration, what: &str, condition: impl FnMut() -> bool) {
    assert!(within(deadline, condition), "not within {deadline:?}: {what}");
}

/// Polls until there is a value; fails the test with `what` when there is none within the deadline.
#[track_caller]
pub fn eventually_some<T>(deadline: Duration, what: &str, mut value: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    eventually(deadline, what, || {
        found = value();
        found.is_some()
    });
    found.expect("a value when the condition held")
}

/// Polls until the condition holds or the deadline has passed; says which.
pub fn within(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets time pass in which something must *not* happen; the only honest use of a sleep.
pub fn watch_for(period: Duration) {
    std::thread::sleep(period);
}

/// A loopback port on which nobody listens, and which this process gives out once only.
///
/// It lies below the ports that the kernel gives to outgoing connections, so that it stays free while its server is
/// being restarted.
pub fn free_port() -> u16 {
    const FIRST: u16 = 15000;
    const COUNT: u16 = 17000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = (std::process::id().wrapping_mul(613) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let port = FIRST + (offset + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}
