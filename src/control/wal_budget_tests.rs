//! Looks at a slot, by hand and at random.

use proptest::{collection::vec, prelude::*};
use walgate_sink::ByteSize;

use super::*;

const MIB: u64 = 1 << 20;

fn config(bytes: Option<u64>) -> WalBudget {
    WalBudget { bytes: bytes.map(ByteSize), ..WalBudget::default() }
}

fn kept(retained: u64, safe: i64) -> SlotReport {
    SlotReport::sample(Some(retained), Some(safe), WalStatus::Reserved)
}

/// Levels at these parts of a server's budget of 100 MiB, one after the other.
fn levels(meter: &mut WalMeter, hundredths: &[u64]) -> Vec<Level> {
    let start = Instant::now();
    let level = |part: &u64| {
        let safe = 100 * MIB as i64 - (part * MIB) as i64;
        meter.look(start, &kept(part * MIB, safe)).level
    };
    hundredths.iter().map(level).collect()
}

#[test]
fn levels_begin_where_the_configuration_says_and_end_five_points_below() {
    use Level::{Act, Calm, Last, Warn};
    let mut meter = WalMeter::new(&config(None));
    assert_eq!(levels(&mut meter, &[0, 49, 50, 74, 75, 89, 90, 100]), [Calm, Calm, Warn, Warn, Act, Act, Last, Last]);
    assert_eq!(levels(&mut meter, &[90, 85, 84, 85, 70, 69, 45, 44]), [Last, Last, Act, Act, Act, Warn, Warn, Calm]);
    assert_eq!(levels(&mut meter, &[95, 10, 95, 46, 44]), [Last, Calm, Last, Warn, Calm], "steps may be skipped");
}

#[test]
fn a_level_that_begins_low_can_be_left() {
    let low = WalBudget { warn: Percent::new(2), act: Percent::new(3), last: Percent::new(4), ..config(None) };
    let mut meter = WalMeter::new(&low);
    assert_eq!(levels(&mut meter, &[4, 2, 1, 0]), [Level::Last, Level::Last, Level::Warn, Level::Calm]);
}

#[test]
fn the_smaller_budget_counts() {
    let now = Instant::now();
    for (configured, retained, safe, bytes, bound) in [
        (None, 10, Some(30), Some(40), Some(Bound::Server)),
        (Some(20), 10, Some(30), Some(20), Some(Bound::Configured)),
        (Some(50), 10, Some(30), Some(40), Some(Bound::Server)),
        (Some(50), 10, None, Some(50), Some(Bound::Configured)),
        (Some(50), 60, Some(-10), Some(50), Some(Bound::Server)),
        (None, 10, None, None, None),
    ] {
        let mut meter = WalMeter::new(&config(configured.map(|bytes: u64| bytes * MIB)));
        let safe = safe.map(|safe: i64| safe * MIB as i64);
        let seen = meter.look(now, &SlotReport::sample(Some(retained * MIB), safe, WalStatus::Extended));
        assert_eq!((seen.bytes, seen.bound), (bytes.map(|bytes: u64| bytes * MIB), bound), "{seen:?}");
        assert_eq!(seen.used_ratio, bytes.map(|bytes| retained as f64 / bytes as f64));
        assert!(!seen.lost);
    }
}

#[test]
fn what_the_server_says_of_its_end_goes_before_numbers() {
    let now = Instant::now();
    let mut meter = WalMeter::new(&config(None));
    // PostgreSQL 14 to 18: over the limit, and still there until the next checkpoint.
    let seen = meter.look(now, &SlotReport::sample(Some(80 * MIB), Some(-8 * MIB as i64), WalStatus::Unreserved));
    assert_eq!((seen.level, seen.seconds_left, seen.lost), (Level::Last, Some(0.0), false));
    assert_eq!(seen.used_ratio, Some(80.0 / 72.0));
    // Without a limit it cannot be, and is taken at its word.
    assert_eq!(meter.look(now, &SlotReport::sample(Some(MIB), None, WalStatus::Unreserved)).level, Level::Last);
    // It has moved on while the server looked.
    assert_eq!(
        meter.look(now, &SlotReport::sample(Some(MIB), Some(70 * MIB as i64), WalStatus::Unreserved)).level,
        Level::Calm
    );
    // Lost: nothing is kept, and nothing is said to be safe.
    let seen = meter.look(now, &SlotReport::sample(None, None, WalStatus::Lost));
    assert_eq!((seen.level, seen.used_ratio, seen.seconds_left), (Level::Last, Some(1.0), Some(0.0)));
    assert!(seen.lost && seen.bytes.is_none());
    // PostgreSQL 17: invalidated while somebody still reads it.
    let mut report = kept(MIB, 70 * MIB as i64);
    report.slot.as_mut().unwrap().invalidation_reason = Some("idle_timeout".into());
    assert!(meter.look(now, &report).lost);
}

#[test]
fn what_is_not_known_changes_no_level() {
    let now = Instant::now();
    let mut meter = WalMeter::new(&config(None));
    assert_eq!(meter.look(now, &kept(80 * MIB, 20 * MIB as i64)).level, Level::Act);
    let gone = SlotReport { slot: None, ..kept(0, 0) };
    for report in [gone, SlotReport::sample(None, None, WalStatus::Reserved)] {
        assert_eq!(meter.look(now, &report), WalUse { level: Level::Act, ..WalUse::default() });
    }
    // The limit was taken away: there is no level any more.
    assert_eq!(meter.look(now, &SlotReport::sample(Some(80 * MIB), None, WalStatus::Extended)).level, Level::Calm);
}

#[test]
fn growth_says_how_long_is_left() {
    let start = Instant::now();
    let mut meter = WalMeter::new(&config(Some(1000 * MIB)));
    let mut look = |seconds: u64, mib: u64| {
        let seen = meter.look(
            start + Duration::from_secs(seconds),
            &SlotReport::sample(Some(mib * MIB), None, WalStatus::Extended),
        );
        (seen.bytes_per_second.map(|rate| rate / MIB as f64), seen.seconds_left)
    };
    assert_eq!(look(0, 100), (None, None));
    assert_eq!(look(2, 104), (None, None), "too soon to tell");
    assert_eq!(look(10, 120), (Some(2.0), Some(440.0)));
    assert_eq!(look(100, 300), (Some(2.0), Some(350.0)));
    // It stands, and then lets go.
    assert_eq!(look(200, 300), (Some(1.0), Some(700.0)));
    assert_eq!(look(250, 100), (Some(0.0), None));
    assert_eq!(look(300, 40), (Some(-0.2), None));
    // Only the last minutes count.
    assert_eq!(look(600, 340), (Some(1.0), Some(660.0)));
    // Nothing was seen for an hour.
    assert_eq!(look(4200, 400), (None, None));
    assert_eq!(look(4210, 1000), (Some(60.0), Some(0.0)), "all of it is used");
}

#[derive(Clone, Copy, Debug)]
struct Look {
    millis: u64,
    retained: Option<u64>,
    safe: Option<i64>,
    status: WalStatus,
}

fn any_look() -> impl Strategy<Value = Look> {
    let status = prop_oneof![
        6 => Just(WalStatus::Reserved),
        3 => Just(WalStatus::Extended),
        2 => Just(WalStatus::Unreserved),
        1 => Just(WalStatus::Lost),
        1 => Just(WalStatus::Unknown),
    ];
    let bytes = prop_oneof![8 => 0u64..2000, 1 => Just(u64::MAX), 1 => any::<u64>()];
    let safe = prop_oneof![8 => -200i64..2000, 1 => Just(i64::MIN), 1 => any::<i64>()];
    let seconds = prop_oneof![4 => 0u64..5_000, 1 => 0u64..1_000_000];
    (seconds, proptest::option::weighted(0.9, bytes), proptest::option::weighted(0.7, safe), status)
        .prop_map(|(millis, retained, safe, status)| Look { millis, retained, safe, status })
}

fn any_budget() -> impl Strategy<Value = WalBudget> {
    let parts = (1u8..99, 1u8..99, 1u8..99).prop_filter_map("ascending", |(a, b, c)| {
        let (warn, act) = (a, a.saturating_add(b));
        let last = act.saturating_add(c);
        (last <= 100).then_some([warn, act, last].map(Percent::new))
    });
    (proptest::option::of(1u64..2000), parts).prop_map(|(bytes, [warn, act, last])| WalBudget {
        bytes: bytes.map(ByteSize),
        warn,
        act,
        last,
        ..WalBudget::default()
    })
}

proptest! {
    #[test]
    fn whatever_is_seen_the_numbers_make_sense(budget in any_budget(), looks in vec(any_look(), 1..60)) {
        let mut meter = WalMeter::new(&budget);
        let mut at = Instant::now();
        let mut before = Level::Calm;
        for look in looks {
            at += Duration::from_millis(look.millis);
            let seen = meter.look(at, &SlotReport::sample(look.retained, look.safe, look.status));
            prop_assert!(seen.used_ratio.is_none_or(|ratio| ratio.is_finite() && ratio >= 0.0));
            prop_assert!(seen.seconds_left.is_none_or(|left| left.is_finite() && left >= 0.0));
            prop_assert!(seen.bytes_per_second.is_none_or(f64::is_finite));
            prop_assert_eq!(seen.bytes.is_some(), seen.bound.is_some());
            // A budget is never more than what was configured, nor than what the server leaves.
            if let Some(bytes) = seen.bytes {
                prop_assert!(budget.bytes.is_none_or(|most| bytes <= most.0));
            }
            if seen.lost {
                prop_assert!(look.status == WalStatus::Lost);
                prop_assert_eq!((seen.level, seen.used_ratio), (Level::Last, Some(1.0)));
            } else if let (Some(used), Some(bytes)) = (look.retained, seen.bytes) {
                // By hand: the level that the part alone would give is never missed, and a level is held for five points at
                // the most.
                let part = |part: Percent, off: u128| {
                    let from = u128::from(part.get()) * 10 - off.min(u128::from(part.get()) * 5);
                    u128::from(used) * 1000 >= u128::from(bytes) * from
                };
                let by = |off: u128| match () {
                    () if part(budget.last, off) => Level::Last,
                    () if part(budget.act, off) => Level::Act,
                    () if part(budget.warn, off) => Level::Warn,
                    () => Level::Calm,
                };
                let unreserved = look.status == WalStatus::Unreserved && look.safe.is_none_or(|safe| safe <= 0);
                if unreserved {
                    prop_assert_eq!(seen.level, Level::Last);
                } else {
                    prop_assert_eq!(seen.level, by(0).max(before.min(by(50))));
                }
                prop_assert!((seen.seconds_left == Some(0.0)) == (used >= bytes) || seen.seconds_left.is_none());
                prop_assert!(seen.seconds_left.is_none() || used >= bytes || seen.bytes_per_second > Some(0.0));
            } else if look.retained.is_none() {
                prop_assert_eq!(seen.level, before);
            }
            before = seen.level;
            prop_assert!(meter.kept.len() <= 301, "{}", meter.kept.len());
        }
    }

    #[test]
    fn a_slot_that_trembles_does_not_flap(around in 20u64..95, shakes in vec(0u64..5, 50)) {
        let mut meter = WalMeter::new(&config(Some(100 * MIB)));
        let at = Instant::now();
        let mut changes = 0;
        let mut before = None;
        for shake in shakes {
            let report = SlotReport::sample(Some((around + shake) * MIB), None, WalStatus::Extended);
            let level = meter.look(at, &report).level;
            changes += u32::from(before.is_some_and(|before| before != level));
            before = Some(level);
        }
        prop_assert!(changes <= 1, "{} changes", changes);
    }
}
