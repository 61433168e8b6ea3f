//! Places where a debug build kills its own process when the environment says so, for tests of what a crash just there
//! leaves behind. A release build has nothing of it.

/// Passes the place `name`: the process is killed by SIGKILL where `WALGATE_FAILPOINT` is this name, or `name:n` and this
/// is the n-th time that it is passed.
#[cfg(debug_assertions)]
pub fn failpoint(name: &str) {
    armed::pass(name);
}

/// Nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn failpoint(_: &str) {}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    };

    /// The one place that is armed.
    #[derive(Debug)]
    pub(super) struct Armed {
        name: String,
        /// The pass that kills, from 1.
        at: u64,
        passed: AtomicU64,
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();

    pub(super) fn pass(name: &str) {
        let armed = ARMED.get_or_init(|| Armed::read(&std::env::var("WALGATE_FAILPOINT").ok()?));
        if armed.as_ref().is_some_and(|armed| armed.is_due(name)) {
            tracing::warn!(failpoint = name, "killed by its own failpoint");
            #[cfg(feature = "demo")]
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // Without that library, or were the signal not to come.
            std::process::abort();
        }
    }

    impl Armed {
        pub(super) fn read(text: &str) -> Option<Self> {
            let (name, at) = match text.rsplit_once(':') {
                Some((name, at)) => (name, at.parse().ok()?),
                None => (text, 1),
            };
            (!name.is_empty()).then(|| Armed { name: name.to_owned(), at, passed: AtomicU64::new(0) })
        }

        /// Counts this pass, if it is one.
        pub(super) fn is_due(&self, name: &str) -> bool {
            self.name == name && self.passed.fetch_add(1, Ordering::Relaxed) + 1 == self.at
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::armed::Armed;

    #[test]
    fn the_nth_pass_of_the_armed_place_is_due() {
        let armed = Armed::read("park.before:3").unwrap();
        let due: Vec<bool> = (0..4).map(|_| armed.is_due("park.after") || armed.is_due("park.before")).collect();
        assert_eq!(due, [false, false, true, false]);
        assert!(Armed::read("park.before").unwrap().is_due("park.before"), "the first where no number is given");
        assert!(Armed::read("").is_none() && Armed::read("a:b").is_none());
    }
}
