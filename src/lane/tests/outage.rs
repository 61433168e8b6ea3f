//! The sink as a whole: down, probed, tried, up again.

use walgate_sink::{FailureKind, SinkError};

use super::*;
use crate::lane::Outage;

/// A lane that `outcome` has taken down: events 1 to `events`, of one key each.
fn down(outcome: &Outcome, events: usize) -> Bench {
    let mut bench = Bench::skipping();
    for number in 0..events {
        bench.push(&format!("key {number}"));
    }
    bench.round(outcome);
    assert_eq!(bench.state(), LaneState::Down);
    bench
}

/// Waits for the probe, which passes.
fn pass(bench: &mut Bench) {
    bench.advance(bench.until_wakeup().expect("a probe is planned"));
    assert_eq!(bench.probe(Ok(())), []);
    assert_eq!(bench.state(), LaneState::Probing);
}

#[test]
fn several_lost_connections_in_a_row_take_the_sink_down() {
    let mut bench = Bench::new();
    bench.push("a");
    for _ in 0..4 {
        assert_eq!(bench.round(&failed(FailureKind::Connection)), ["1"]);
        bench.advance(SECOND);
    }
    assert_eq!(bench.state(), LaneState::Retrying);
    let flight = bench.take().unwrap();
    let notes = bench.finish(&flight, vec![failed(FailureKind::Connection)]).notes;
    assert!(matches!(notes.last(), Some(Note::SinkDown { cause: Outage::Unreachable, .. })), "{notes:?}");
    bench.push("b");
    bench.advance(3600 * SECOND);
    assert_eq!(bench.sent(), [""; 0], "nothing goes out while it is down");
    assert_eq!((bench.status().outage, bench.status().outage_seconds), (Some("unreachable"), Some(3600.0)));
}

#[test]
fn an_answer_of_any_kind_breaks_the_row_of_lost_connections() {
    for answer in [ACK, failed(FailureKind::Unavailable), failed(FailureKind::Throttled)] {
        let mut bench = Bench::new();
        for outcome in std::iter::repeat_n(failed(FailureKind::Connection), 4).chain([answer]).cycle().take(20) {
            bench.push("");
            bench.advance(60 * SECOND);
            let flight = bench.lane.take(bench.now, 1, usize::MAX).unwrap();
            bench.finish(&flight, vec![outcome]);
        }
        assert_ne!(bench.state(), LaneState::Down);
    }
}

#[test]
fn timeouts_alone_do_not_take_the_sink_down() {
    let mut bench = Bench::new();
    bench.push("slow");
    for _ in 0..20 {
        assert_eq!(bench.round(&failed(FailureKind::Timeout)), ["1"]);
        bench.advance(60 * SECOND);
    }
    bench.push("b");
    assert_eq!(bench.sent(), ["1", "2"]);
}

#[test]
fn a_success_ends_the_waiting_that_silence_has_caused() {
    let mut bench = Bench::new();
    bench.push("a");
    for _ in 0..12 {
        bench.round(&failed(FailureKind::Timeout));
        bench.advance(60 * SECOND);
    }
    bench.round(&failed(FailureKind::Timeout));
    bench.push("b");
    assert_eq!(bench.round(&ACK), ["2"]);
    assert_eq!(bench.round(&ACK), ["1"], "at once, not in a minute");
}

#[test]
fn a_fatal_failure_takes_the_sink_down_at_once() {
    let bench = down(&failed(FailureKind::Fatal), 3);
    assert_eq!(bench.until_wakeup(), Some(SECOND));
    assert_eq!(bench.status().outage, Some("fatal"));
    assert_eq!(bench.status().last_error.unwrap().kind, "fatal");
}

#[test]
fn probes_of_an_unreachable_sink_are_never_more_than_a_second_apart() {
    let mut bench = down(&failed(FailureKind::Connection), 5);
    let mut pauses = Vec::new();
    for _ in 0..6 {
        pauses.push(bench.until_wakeup().unwrap().as_millis());
        bench.advance(bench.until_wakeup().unwrap());
        let notes = bench.probe(Err(SinkError::retryable("connection refused")));
        assert!(matches!(notes.as_slice(), [Note::ProbeFailed { .. }]), "{notes:?}");
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
    assert_eq!(bench.status().last_error.unwrap().message, "connection refused");
}

#[test]
fn probes_of_a_sink_that_somebody_has_to_mend_get_slower_up_to_a_minute() {
    let mut bench = down(&failed(FailureKind::Fatal), 1);
    let mut pauses = Vec::new();
    // The check passes each time: it cannot see a 401. The trial can.
    for _ in 0..8 {
        pauses.push(bench.until_wakeup().unwrap().as_secs());
        pass(&mut bench);
        assert_eq!(bench.round(&failed(FailureKind::Fatal)), ["1"]);
        assert_eq!(bench.state(), LaneState::Down);
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
}

#[test]
fn a_probe_is_started_once_and_only_when_due() {
    let mut bench = down(&failed(FailureKind::Fatal), 1);
    assert!(!bench.lane.start_probe(bench.now));
    bench.advance(SECOND);
    assert!(bench.lane.probe_due(bench.now));
    assert!(bench.lane.start_probe(bench.now));
    assert!(!bench.lane.start_probe(bench.now));
    assert_eq!(bench.until_wakeup(), None);
    bench.lane.probed(Ok(()), bench.now, &mut || 1.0);
    bench.lane.probed(Err(SinkError::fatal("late")), bench.now, &mut || 1.0);
    assert_eq!(bench.state(), LaneState::Probing, "an answer that nobody waits for moves nothing");
}

#[test]
fn one_delivery_goes_out_first_and_when_it_is_taken_everything_is_released() {
    let mut bench = down(&failed(FailureKind::Connection), 20);
    pass(&mut bench);
    let trial = bench.take().unwrap();
    assert_eq!(trial.batch.len(), 1);
    assert!(bench.take().is_none(), "nothing else while the trial is out");
    let notes = bench.finish(&trial, vec![ACK]).notes;
    assert!(matches!(notes.as_slice(), [Note::SinkUp { .. }]), "{notes:?}");
    let rest = bench.take().unwrap();
    let attempts: Vec<_> = rest.batch.iter().map(|delivery| delivery.attempt).collect();
    assert_eq!(attempts, [2; 19], "all at once");
    let mut order: Vec<u64> = names(&rest).iter().map(|name| name.parse().unwrap()).collect();
    assert!(order.is_sorted(), "oldest first: {order:?}");
    order.dedup();
    assert_eq!(order.len(), 19);
    bench.finish(&rest, vec![ACK; 19]);
    assert_eq!((bench.state(), bench.ring.unsettled_events()), (LaneState::Up, 0));
}

#[test]
fn the_end_of_an_outage_cuts_a_long_pause_short() {
    let mut bench = Bench::new();
    bench.push("a");
    for _ in 0..11 {
        bench.round(&failed(FailureKind::Unavailable));
        bench.advance(60 * SECOND);
    }
    assert_eq!(bench.round(&failed(FailureKind::Fatal)), ["1"], "its pause would be a minute");
    bench.push("b");
    pass(&mut bench);
    assert_eq!(bench.round(&ACK), ["2"]);
    assert_eq!(bench.round(&ACK), ["1"], "at once");
}

#[test]
fn the_backoff_of_an_outage_is_forgotten_after_it() {
    let mut bench = down(&failed(FailureKind::Fatal), 2);
    for _ in 0..5 {
        pass(&mut bench);
        bench.round(&failed(FailureKind::Fatal));
    }
    pass(&mut bench);
    bench.round(&ACK);
    let flight = bench.take().unwrap();
    bench.finish(&flight, vec![failed(FailureKind::Unavailable)]);
    assert_eq!(bench.until_wakeup(), Some(Duration::from_millis(100)));
}

#[test]
fn the_end_of_an_outage_does_not_cut_short_what_the_sink_asked_for() {
    let mut bench = Bench::new();
    bench.push("a");
    bench.push("b");
    let flight = bench.take().unwrap();
    let wish = retry_after(FailureKind::Throttled, 30 * SECOND);
    bench.finish(&flight, vec![wish, failed(FailureKind::Fatal)]);
    assert_eq!(bench.until_wakeup(), Some(30 * SECOND), "the probe waits too");
    let mut bench = Bench::new();
    bench.push("a");
    bench.push("b");
    let (one, two) = (bench.lane.take(bench.now, 1, 9).unwrap(), bench.lane.take(bench.now, 1, 9).unwrap());
    bench.finish(&one, vec![failed(FailureKind::Fatal)]);
    bench.finish(&two, vec![retry_after(FailureKind::Throttled, 30 * SECOND)]);
    pass(&mut bench);
    assert_eq!(bench.round(&ACK), ["1"]);
    assert_eq!(bench.state(), LaneState::Retrying);
    assert_eq!(bench.sent(), [""; 0]);
    assert_eq!(bench.until_wakeup(), Some(29 * SECOND));
    bench.advance(29 * SECOND);
    assert_eq!(bench.sent(), ["2"]);
}

#[test]
fn a_trial_waits_for_what_the_sink_asked_for() {
    let mut bench = down(&retry_after(FailureKind::Fatal, 20 * SECOND), 1);
    assert_eq!(bench.until_wakeup(), Some(20 * SECOND));
    pass(&mut bench);
    assert_eq!(bench.round(&retry_after(FailureKind::Unavailable, 40 * SECOND)), ["1"]);
    assert_eq!(bench.until_wakeup(), Some(40 * SECOND));
}

#[test]
fn one_bad_delivery_is_not_every_trial() {
    let mut bench = down(&failed(FailureKind::Connection), 5);
    let mut tried = Vec::new();
    for _ in 0..8 {
        pass(&mut bench);
        tried.extend(bench.round(&failed(FailureKind::Timeout)));
        if tried.len() == 4 {
            bench.push("fresh");
        }
    }
    assert_eq!(tried[4], "6", "a delivery that was never tried goes first: {tried:?}");
    tried.sort();
    tried.dedup();
    assert!(tried.len() >= 5, "{tried:?}");
}

#[test]
fn a_delivery_that_fails_fatally_while_others_pass_waits_alone() {
    let mut bench = Bench::new();
    bench.push("missing topic");
    assert_eq!(bench.round(&failed(FailureKind::Fatal)), ["1"]);
    bench.push("good");
    pass(&mut bench);
    assert_eq!(bench.round(&ACK), ["2"]);
    assert_eq!(bench.round(&failed(FailureKind::Fatal)), ["1"], "released, and fails again");
    assert_eq!(bench.state(), LaneState::Retrying, "but others pass: the sink is up");
    bench.push("good");
    assert_eq!(bench.round(&ACK), ["3"]);
    bench.advance(SECOND);
    assert_eq!(bench.round(&failed(FailureKind::Fatal)), ["1"]);
    assert_eq!(bench.state(), LaneState::Retrying);
    bench.advance(60 * SECOND);
    bench.round(&failed(FailureKind::Fatal));
    assert_eq!(bench.state(), LaneState::Down, "twice in a row, and nothing passed in between");
}

#[test]
fn a_fatal_failure_in_a_batch_of_which_something_was_taken_concerns_its_delivery() {
    let mut bench = Bench::new();
    bench.push("a");
    bench.push("b");
    let flight = bench.take().unwrap();
    bench.finish(&flight, vec![ACK, failed(FailureKind::Fatal)]);
    assert_eq!(bench.state(), LaneState::Retrying);
}

#[test]
fn many_rejections_in_a_row_are_an_outage_and_skip_nothing() {
    let mut bench = Bench::skipping();
    for _ in 0..24 {
        bench.push("a");
        assert_eq!(bench.round(&rejected()).len(), 1);
    }
    assert_eq!(bench.ring.unsettled_events(), 0, "each one was decided on its own");
    bench.push("a");
    let flight = bench.take().unwrap();
    let notes = bench.finish(&flight, vec![rejected()]).notes;
    assert!(
        matches!(notes.as_slice(), [Note::Retry { .. }, Note::SinkDown { cause: Outage::Rejections, .. }]),
        "{notes:?}"
    );
    assert_eq!(bench.ring.unsettled_events(), 1, "the 25th is kept");
    pass(&mut bench);
    assert_eq!(bench.round(&rejected()), ["25"], "so is the trial");
    assert_eq!((bench.state(), bench.ring.unsettled_events()), (LaneState::Down, 1));
    assert_eq!(bench.until_wakeup(), Some(2 * SECOND));
    pass(&mut bench);
    bench.round(&ACK);
    assert_eq!((bench.state(), bench.ring.unsettled_events()), (LaneState::Up, 0));
}

#[test]
fn a_batch_that_is_rejected_whole_is_kept_whole() {
    let bench = down(&rejected(), 30);
    assert_eq!(bench.ring.unsettled_events(), 30);
    assert_eq!(bench.status().backing_off, 30);
}

#[test]
fn a_success_in_the_batch_makes_its_rejections_the_events_own() {
    let mut bench = Bench::skipping();
    for _ in 0..100 {
        bench.push("");
    }
    let flight = bench.take().unwrap();
    let mut outcomes = vec![rejected(); 99];
    outcomes.push(ACK);
    bench.finish(&flight, outcomes);
    assert_eq!((bench.state(), bench.ring.unsettled_events()), (LaneState::Up, 0));
}

#[test]
fn a_trial_that_is_rejected_on_its_own_shows_that_the_sink_works() {
    let mut bench = down(&failed(FailureKind::Fatal), 2);
    pass(&mut bench);
    assert_eq!(bench.round(&rejected()).len(), 1);
    assert_ne!(bench.state(), LaneState::Down);
    assert_eq!(bench.ring.unsettled_events(), 1, "skipped, as configured");
}

#[test]
fn batches_from_before_the_outage_are_taken_in_and_move_nothing() {
    let mut bench = Bench::skipping();
    for key in ["a", "b", "c"] {
        bench.push(key);
    }
    let mut take = || bench.lane.take(bench.now, 1, 9).unwrap();
    let (one, two, three) = (take(), take(), take());
    bench.finish(&one, vec![failed(FailureKind::Fatal)]);
    let pause = bench.until_wakeup();
    assert_eq!(bench.finish(&two, vec![ACK]).settled.len(), 1);
    bench.finish(&three, vec![failed(FailureKind::Fatal)]);
    assert_eq!((bench.state(), bench.until_wakeup()), (LaneState::Down, pause));
    pass(&mut bench);
    bench.round(&ACK);
    assert_eq!(bench.sent().len(), 1, "what failed meanwhile is released too");
}

#[test]
fn a_sink_that_cannot_be_made_is_down_from_the_start() {
    let mut bench = Bench::new();
    bench.push("a");
    let notes = bench.lane.probed(Err(SinkError::fatal("no such file")), bench.now, &mut || 1.0);
    assert!(matches!(notes.as_slice(), [Note::SinkDown { cause: Outage::Fatal, .. }]), "{notes:?}");
    pass(&mut bench);
    assert_eq!(bench.round(&ACK), ["1"]);
    assert_eq!(bench.state(), LaneState::Up);
}

#[test]
fn a_receiver_that_has_gone_for_good_ends_the_lane() {
    let mut bench = Bench::new();
    bench.push("a");
    bench.push("b");
    let (one, two) = (bench.lane.take(bench.now, 1, 9).unwrap(), bench.lane.take(bench.now, 1, 9).unwrap());
    let notes = bench.finish(&one, vec![failed(FailureKind::Closed)]).notes;
    assert!(matches!(notes.last(), Some(Note::SinkClosed { .. })), "{notes:?}");
    let notes = bench.finish(&two, vec![failed(FailureKind::Closed)]).notes;
    assert!(!notes.iter().any(|note| matches!(note, Note::SinkClosed { .. })), "said once");
    bench.advance(3600 * SECOND);
    assert_eq!((bench.sent().len(), bench.until_wakeup(), bench.state()), (0, None, LaneState::Closed));
    assert_eq!(bench.ring.unsettled_events(), 2, "nothing is lost: it is unsettled");
}
