//! How long to wait, and who waits.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{policy::LONGEST_PAUSE, work::Item};

/// The pause after `failures` earlier failures: `base * 2^failures`, at most `cap`, of which `jitter` (from 0 to 1)
/// takes off up to half.
#[must_use]
pub(super) fn delay(base: Duration, cap: Duration, failures: u32, jitter: f64) -> Duration {
    let full = base.saturating_mul(1 << failures.min(31)).min(cap).min(LONGEST_PAUSE);
    let jitter = if jitter.is_nan() { 1.0 } else { jitter.clamp(0.0, 1.0) };
    full.mul_f64(0.5 + jitter / 2.0)
}

/// Deliveries that wait for their next attempt, by time. Insertion and removal are O(log n).
#[derive(Debug, Default)]
pub(super) struct Backoffs {
    waiting: BTreeMap<(Instant, u64), Waiting>,
    /// Number of the next entry: it keeps entries of one moment apart, in order.
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    item: Item,
    /// The sink asked not to be bothered before this time.
    not_before: Instant,
    /// It failed because the sink as a whole does not work: it need not wait once the sink does.
    outage: bool,
}

impl Backoffs {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        self.waiting.values().map(|waiting| &waiting.item)
    }

    /// The item waits until `due`. After an outage it may go earlier, but not before `not_before`.
    pub(super) fn insert(&mut self, item: Item, due: Instant, not_before: Instant, outage: bool) {
        let key = (due.max(not_before), self.next);
        self.next += 1;
        self.waiting.insert(key, Waiting { item, not_before, outage });
    }

    /// Takes out every delivery that `leaves` says so of.
    pub(super) fn take_out(&mut self, leaves: impl Fn(&Item) -> bool) -> Vec<Item> {
        self.waiting.extract_if(.., |_, waiting| leaves(&waiting.item)).map(|(_, waiting)| waiting.item).collect()
    }

    /// When the first one is due.
    pub(super) fn first_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// Takes one whose time has come. `forget`: where an outage made it wait, its backoff starts afresh.
    pub(super) fn pop_due(&mut self, now: Instant, forget: bool) -> Option<Item> {
        let first = self.waiting.first_entry()?;
        if first.key().0 > now {
            return None;
        }
        let Waiting { mut item, outage, .. } = first.remove();
        if forget && outage {
            item.failures = 0;
        }
        Some(item)
    }

    /// When the first one may be tried to find out whether the outage is over.
    pub(super) fn first_trial(&self) -> Option<Instant> {
        let trial =
            |(key, waiting): (&(Instant, u64), &Waiting)| if waiting.outage { waiting.not_before } else { key.0 };
        self.waiting.iter().map(trial).min()
    }

    /// Takes one to find out whether the outage is over.
    pub(super) fn pop_trial(&mut self, now: Instant) -> Option<Item> {
        let may_go = |(_, waiting): &(&(Instant, u64), &Waiting)| waiting.outage && waiting.not_before <= now;
        let key = self.waiting.iter().find(may_go).map(|(key, _)| *key)?;
        let mut item = self.waiting.remove(&key)?.item;
        item.failures = 0;
        Some(item)
    }

    /// The outage is over: takes those that it kept waiting, oldest event first, with their backoff forgotten. Where
    /// the sink asked for a pause of its own, it is kept.
    pub(super) fn release_outage(&mut self, now: Instant) -> Vec<Item> {
        let held: Vec<_> =
            self.waiting.extract_if(.., |_, waiting| waiting.outage).map(|(_, waiting)| waiting).collect();
        let mut released = Vec::with_capacity(held.len());
        for Waiting { mut item, not_before, .. } in held {
            item.failures = 0;
            if not_before <= now {
                released.push(item);
            } else {
                self.insert(item, not_before, not_before, false);
            }
        }
        released.sort_by_key(Item::position);
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_its_cap_and_jitter_takes_off_up_to_half() {
        let (base, cap) = (Duration::from_millis(100), Duration::from_secs(60));
        let full: Vec<_> = (0..12).map(|n| delay(base, cap, n, 1.0).as_millis()).collect();
        assert_eq!(full, [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000]);
        assert_eq!(delay(base, cap, 3, 0.0).as_millis(), 400);
        assert_eq!(delay(base, cap, 3, 0.5).as_millis(), 600);
    }

    #[test]
    fn no_input_overflows() {
        for jitter in [f64::NAN, f64::INFINITY, -1.0, 2.0] {
            assert!(delay(Duration::MAX, Duration::MAX, u32::MAX, jitter) <= LONGEST_PAUSE);
            assert_eq!(delay(Duration::ZERO, Duration::MAX, u32::MAX, jitter), Duration::ZERO);
        }
    }
}
