//! `delivery.rate_limit`: a bucket of deliveries. Pure.

use std::time::{Duration, Instant};

use crate::config::Rate;

/// A token bucket over deliveries. It holds one second's worth, at least one delivery, and is full at the start.
///
/// Nothing is rounded: a nanosecond adds `count` units, and a delivery costs a period's worth of nanoseconds. So no
/// delivery is ever given or lost by rounding, at any rate: in any stretch of time that begins now, at most
/// `burst + elapsed * count / period` deliveries go out.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    /// Units that a nanosecond adds.
    count: u128,
    /// Units that a delivery costs.
    cost: u128,
    /// The most units that it holds.
    most: u128,
    units: u128,
    /// Up to when units were added; `None`: it has never been looked into, and is full.
    filled: Option<Instant>,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Self {
        let count = u128::from(rate.count().get());
        let cost = rate.period().as_nanos().max(1);
        let most = (count * Duration::from_secs(1).as_nanos()).max(cost);
        Bucket { count, cost, most, units: most, filled: None }
    }

    /// How many deliveries may go out now.
    pub(super) fn available(&mut self, now: Instant) -> usize {
        self.fill(now);
        usize::try_from(self.units / self.cost).unwrap_or(usize::MAX)
    }

    /// So many deliveries go out, no more than are [available](Bucket::available).
    pub(super) fn take(&mut self, deliveries: usize) {
        self.units = self.units.saturating_sub(self.cost.saturating_mul(deliveries as u128));
    }

    /// When the next delivery may go out; `None`: now.
    pub(super) fn next(&self, now: Instant) -> Option<Instant> {
        let filled = self.filled?;
        let missing = self.cost.checked_sub(self.units).filter(|missing| *missing > 0)?;
        let wait = u64::try_from(missing.div_ceil(self.count)).unwrap_or(u64::MAX);
        Some(filled + Duration::from_nanos(wait)).filter(|at| *at > now)
    }

    fn fill(&mut self, now: Instant) {
        let filled = *self.filled.get_or_insert(now);
        // A clock that stands or goes back adds nothing.
        let passed = now.saturating_duration_since(filled).as_nanos();
        if passed > 0 {
            self.units = passed.saturating_mul(self.count).saturating_add(self.units).min(self.most);
            self.filled = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn bucket(rate: &str) -> Bucket {
        Bucket::new(rate.parse().unwrap())
    }

    #[test]
    fn a_second_s_worth_goes_out_at_once_and_then_one_after_another() {
        let (mut bucket, start) = (bucket("500/s"), Instant::now());
        assert_eq!((bucket.available(start), bucket.next(start)), (500, None));
        bucket.take(500);
        assert_eq!(bucket.available(start), 0);
        assert_eq!(bucket.next(start), Some(start + Duration::from_millis(2)));
        assert_eq!(bucket.available(start + Duration::from_millis(2)), 1);
        assert_eq!(bucket.available(start + Duration::from_secs(3600)), 500, "no more than a second's worth is saved");
    }

    #[test]
    fn a_slow_rate_lets_one_go_at_a_time() {
        let (mut bucket, start) = (bucket("10/m"), Instant::now());
        assert_eq!(bucket.available(start), 1);
        bucket.take(1);
        let next = bucket.next(start).unwrap();
        assert_eq!(next - start, Duration::from_secs(6));
        assert_eq!(bucket.available(next - Duration::from_nanos(1)), 0);
        assert_eq!((bucket.available(next), bucket.next(next)), (1, None));
    }

    #[test]
    fn a_clock_that_goes_back_changes_nothing() {
        let (mut bucket, start) = (bucket("1/h"), Instant::now() + Duration::from_secs(60));
        bucket.available(start);
        bucket.take(1);
        assert_eq!(bucket.available(start - Duration::from_secs(30)), 0);
        assert_eq!(bucket.available(start + Duration::from_secs(3600)), 1);
    }

    fn rate() -> impl Strategy<Value = Rate> {
        (prop_oneof![1u32..20, 1u32..=u32::MAX], 0usize..3)
            .prop_map(|(count, unit)| format!("{count}/{}", ["s", "m", "h"][unit]).parse().unwrap())
    }

    proptest! {
        /// Whatever is asked for and whenever: never more than the rate and one second's worth.
        #[test]
        fn the_rate_is_never_passed(rate in rate(), steps in vec((0u64..5_000_000_000, 0usize..1_000), 1..100)) {
            let mut bucket = Bucket::new(rate);
            let start = Instant::now();
            let (mut now, mut sent) = (start, 0u128);
            for (nanos, wanted) in steps {
                now += Duration::from_nanos(nanos);
                let taken = wanted.min(bucket.available(now));
                bucket.take(taken);
                sent += taken as u128;
                prop_assert!(sent <= allowed(rate, now - start), "{sent} after {:?}", now - start);
                if let Some(next) = bucket.next(now) {
                    prop_assert!(next > now);
                    let mut later = bucket.clone();
                    prop_assert_eq!(later.available(next - Duration::from_nanos(1)), 0);
                    prop_assert!(later.available(next) >= 1, "it may go when it was said");
                } else {
                    prop_assert!(bucket.available(now) >= 1);
                }
            }
        }

        /// Whoever always wants more gets all that the rate allows.
        #[test]
        fn the_rate_is_reached(rate in rate(), rounds in 1usize..100) {
            let mut bucket = Bucket::new(rate);
            let start = Instant::now();
            let (mut now, mut sent) = (start, 0u128);
            for _ in 0..rounds {
                let taken = bucket.available(now);
                bucket.take(taken);
                sent += taken as u128;
                now = bucket.next(now).unwrap();
            }
            sent += bucket.available(now) as u128;
            prop_assert!(sent + 1 >= allowed(rate, now - start), "{sent} after {:?}", now - start);
        }
    }

    fn allowed(rate: Rate, elapsed: Duration) -> u128 {
        let (count, period) = (u128::from(rate.count().get()), rate.period().as_nanos());
        let burst = (count * 1_000_000_000).max(period);
        (burst + elapsed.as_nanos() * count) / period
    }
}
