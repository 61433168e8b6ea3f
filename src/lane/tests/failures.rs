//! Attempts, pauses, and what the status tells of them.

use walgate_sink::FailureKind;

use super::*;

/// The pause after each of `attempts` failures of one event.
fn pauses(bench: &mut Bench, outcome: &Outcome, attempts: usize) -> Vec<u128> {
    bench.push("a");
    let mut pauses = Vec::new();
    for attempt in 1..=attempts {
        let flight = bench.take().expect("due");
        assert_eq!(flight.batch[0].attempt as usize, attempt);
        let finished = bench.finish(&flight, vec![outcome.clone()]);
        let [Note::Retry { delay, .. }] = finished.notes.as_slice() else { panic!("{:?}", finished.notes) };
        let delay = *delay;
        pauses.push(delay.as_millis());
        assert_eq!(bench.until_wakeup(), Some(delay));
        bench.advance(delay - Duration::from_nanos(1));
        assert_eq!(bench.sent(), [""; 0], "not before its time");
        bench.advance(Duration::from_nanos(1));
    }
    pauses
}

#[test]
fn pauses_double_up_to_a_minute_and_jitter_takes_off_up_to_half() {
    let full = [100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000];
    for kind in [FailureKind::Timeout, FailureKind::Throttled, FailureKind::Unavailable] {
        assert_eq!(pauses(&mut Bench::new(), &failed(kind), 12), full);
    }
    let mut bench = Bench::new();
    bench.jitter = 0.0;
    assert_eq!(pauses(&mut bench, &Outcome::Unknown, 4), [50, 100, 200, 400]);
}

#[test]
fn pauses_of_a_lost_connection_end_at_one_second() {
    let mut bench = Bench::with(|policy| policy.unreachable_after = 100);
    assert_eq!(pauses(&mut bench, &failed(FailureKind::Connection), 6), [100, 200, 400, 800, 1000, 1000]);
}

#[test]
fn a_wished_pause_is_kept_within_bounds() {
    let second = SECOND.as_millis();
    let wish = |seconds| retry_after(FailureKind::Throttled, seconds * SECOND);
    assert_eq!(pauses(&mut Bench::new(), &wish(7), 2), [7 * second, 7 * second]);
    assert_eq!(pauses(&mut Bench::new(), &wish(86400), 1), [60 * second]);
    assert_eq!(pauses(&mut Bench::new(), &retry_after(FailureKind::Timeout, Duration::MAX), 1), [60 * second]);
    assert_eq!(pauses(&mut Bench::new(), &wish(0), 2), [100, 200], "a short wish does not shorten the pause");
}

#[test]
fn the_next_event_of_a_key_starts_afresh() {
    let mut bench = Bench::new();
    bench.push("a");
    bench.push("a");
    for _ in 0..4 {
        bench.round(&failed(FailureKind::Unavailable));
        bench.advance(60 * SECOND);
    }
    bench.round(&ACK);
    let flight = bench.take().unwrap();
    assert_eq!(flight.batch[0].attempt, 1);
    bench.finish(&flight, vec![failed(FailureKind::Unavailable)]);
    assert_eq!(bench.until_wakeup(), Some(Duration::from_millis(100)));
}

#[test]
fn any_configured_pause_is_safe() {
    let mut bench = Bench::with(|policy| {
        policy.initial = Duration::MAX;
        policy.max = Duration::MAX;
        policy.connection_max = Duration::MAX;
        policy.fatal_initial = Duration::MAX;
    });
    for outcome in [retry_after(FailureKind::Unavailable, Duration::MAX), failed(FailureKind::Fatal)] {
        bench.push("");
        bench.round(&outcome);
        assert!(bench.until_wakeup().is_some());
    }
}

#[test]
fn the_status_tells_what_holds_the_checkpoint_and_why() {
    let mut bench = Bench::new();
    assert_eq!(bench.state(), LaneState::Up);
    for key in ["a", "a", "b"] {
        bench.push(key);
    }
    let flight = bench.take().unwrap();
    bench.advance(2 * SECOND);
    bench.finish(&flight, vec![failed(FailureKind::Unavailable), ACK]);
    bench.advance(Duration::from_millis(40));
    let status = bench.status();
    assert_eq!((status.state, status.queued, status.backing_off, status.in_flight), (LaneState::Retrying, 1, 1, 0));
    assert_eq!(status.stalled_seconds, 0.04);
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["state"], "retrying");
    assert_eq!(
        json["oldest"],
        serde_json::json!({"event_id": "1", "position": "0/A#0", "committed_at": "1970-01-01T00:00:00.000000Z"})
    );
    assert_eq!(
        json["last_error"],
        serde_json::json!({"message": "planned failure", "kind": "unavailable", "at": "1970-01-01T00:00:02.000000Z",
            "event_id": "1", "attempt": 1, "next_retry_seconds": 0.06})
    );
}

#[test]
fn the_status_shows_no_more_than_the_beginning_of_a_hostile_id() {
    let mut bench = Bench::new();
    let mut work = bench.event("a", 1).remove(0);
    work.delivery.event.id = format!("\u{1b}[31m{}", "x".repeat(1_000_000)).into();
    bench.lane.push(work);
    let id = bench.status().oldest.unwrap().event_id;
    assert!(id.starts_with("\\u{1b}[31mxx") && id.len() < 300, "{id}");
}

#[test]
fn a_rate_limits_deliveries_and_their_repeats() {
    let mut bench = Bench::with(|policy| policy.rate_limit = Some("2/s".parse().unwrap()));
    (0..6).for_each(|n| bench.push(&format!("{n}")));
    let flight = bench.take().unwrap();
    assert_eq!(flight.batch.len(), 2, "one second's worth");
    assert!(bench.take().is_none());
    assert_eq!((bench.until_wakeup(), bench.state()), (Some(Duration::from_millis(500)), LaneState::Limited));
    assert!(bench.status().rate_limited);
    bench.finish(&flight, vec![failed(FailureKind::Unavailable), ACK]);
    bench.advance(Duration::from_millis(500));
    assert_eq!(bench.sent(), ["1"], "the repeat first, for the one place that there is");
    assert!(bench.take().is_none());
    bench.advance(Duration::from_millis(700));
    assert_eq!(bench.sent(), ["3"]);
    bench.advance(Duration::from_secs(3600));
    assert_eq!(bench.sent(), ["4", "5"], "no more than a second's worth was saved");
}

#[test]
fn a_sink_at_its_rate_is_not_stuck() {
    let mut bench = Bench::with(|policy| policy.rate_limit = Some("1/h".parse().unwrap()));
    (0..3).for_each(|_| bench.push(""));
    bench.round(&ACK);
    bench.advance(Duration::from_secs(1800));
    assert_eq!((bench.state(), bench.status().stalled_seconds), (LaneState::Limited, 0.0));
    bench.advance(Duration::from_secs(1800));
    let flight = bench.take().unwrap();
    bench.advance(Duration::from_secs(90));
    assert!(bench.status().stalled_seconds >= 90.0, "this one gets no answer");
    bench.finish(&flight, vec![ACK]);
    assert_eq!(bench.state(), LaneState::Limited);
}

#[test]
fn a_trial_counts_too() {
    let mut bench = Bench::with(|policy| policy.rate_limit = Some("1/m".parse().unwrap()));
    bench.push("");
    bench.round(&failed(FailureKind::Fatal));
    bench.advance(SECOND);
    assert_eq!(bench.probe(Ok(())), []);
    assert!(bench.take().is_none());
    bench.advance(bench.until_wakeup().unwrap());
    assert_eq!(bench.now - bench.start, Duration::from_secs(60));
    assert_eq!(bench.sent(), ["1"]);
}
