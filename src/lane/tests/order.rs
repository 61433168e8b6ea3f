//! Order per key, and that each delivery is settled once.

use walgate_sink::FailureKind;

use super::*;

#[test]
fn an_event_waits_until_the_one_before_it_of_its_key_is_settled() {
    let mut bench = Bench::new();
    for key in ["a", "a", "b", "a", ""] {
        bench.push(key);
    }
    let first = bench.take().unwrap();
    assert_eq!(names(&first), ["1", "3", "5"], "one event of each key, and what has no key");
    assert_eq!(bench.sent(), [""; 0], "the rest waits");
    bench.finish(&first, vec![ACK; 3]);
    assert_eq!(bench.round(&ACK), ["2"]);
    assert_eq!(bench.round(&ACK), ["4"]);
    assert_eq!(bench.ring.unsettled_events(), 0);
}

/// The planted bug "retry out of order": a failed event that goes behind the later ones of its key.
#[test]
fn a_retry_goes_out_before_the_next_event_of_its_key() {
    for outcome in [failed(FailureKind::Timeout), failed(FailureKind::Connection), Outcome::Unknown] {
        let mut bench = Bench::new();
        for _ in 0..3 {
            bench.push("a");
        }
        assert_eq!(bench.round(&outcome), ["1"]);
        assert_eq!(bench.sent(), [""; 0], "nothing of the key passes while it backs off");
        bench.advance(SECOND);
        assert_eq!(bench.round(&outcome), ["1"], "the same event again");
        bench.advance(SECOND);
        assert_eq!([bench.round(&ACK), bench.round(&ACK), bench.round(&ACK)], [["1"], ["2"], ["3"]]);
    }
}

/// The planted bug "settle on send".
#[test]
fn nothing_is_settled_before_its_outcome_is_known() {
    let mut bench = Bench::new();
    bench.push("a");
    bench.push("b");
    let flight = bench.take().unwrap();
    assert_eq!(bench.ring.unsettled_events(), 2, "sent is not settled");
    let finished = bench.finish(&flight, vec![ACK, failed(FailureKind::Timeout)]);
    assert_eq!(finished.settled.len(), 1);
    assert_eq!(bench.ring.unsettled_events(), 1, "failed is not settled");
    bench.advance(SECOND);
    assert_eq!(bench.round(&ACK), ["2"]);
    assert_eq!(bench.ring.unsettled_events(), 0);
}

#[test]
fn another_key_does_not_wait() {
    let mut bench = Bench::new();
    bench.push("bad");
    bench.push("bad");
    for attempt in 0..50 {
        bench.advance(60 * SECOND);
        assert_eq!(bench.round(&failed(FailureKind::Unavailable)), ["1"]);
        bench.push("good");
        assert_eq!(bench.round(&ACK), [format!("{}", attempt + 3)]);
    }
    assert_eq!(bench.status().backing_off, 1);
}

#[test]
fn deliveries_of_one_event_fly_together_and_the_next_event_waits_for_all() {
    let mut bench = Bench::new();
    bench.push_to("a", 3);
    bench.push_to("a", 2);
    let one = bench.lane.take(bench.now, 2, usize::MAX).unwrap();
    let two = bench.take().unwrap();
    assert_eq!([names(&one), names(&two)].concat(), ["1", "1.1", "1.2"], "in one batch, or in two at once");
    bench.finish(&two, vec![ACK]);
    bench.finish(&one, vec![ACK, failed(FailureKind::Unavailable)]);
    assert_eq!(bench.sent(), [""; 0], "one delivery of the event is open");
    bench.advance(SECOND);
    assert_eq!(bench.round(&ACK), ["1.1"], "only what failed is sent again");
    assert_eq!(bench.round(&ACK), ["2", "2.1"]);
    assert_eq!(bench.ring.unsettled_events(), 0);
}

#[test]
fn a_delivery_joins_its_event_and_never_an_earlier_one() {
    let mut bench = Bench::new();
    let (first, second) = (bench.event("a", 2), bench.event("a", 2));
    let mut works = first.into_iter().chain(second);
    bench.lane.push(works.next().unwrap());
    assert_eq!(bench.sent(), ["1"]);
    bench.lane.push(works.next().unwrap());
    assert_eq!(bench.sent(), ["1.1"], "its event is in flight");
    bench.lane.push(works.next().unwrap());
    bench.lane.push(works.next().unwrap());
    assert_eq!(bench.sent(), [""; 0]);
}

#[test]
fn a_skipped_event_frees_its_key() {
    let mut bench = Bench::skipping();
    bench.push("a");
    bench.push("a");
    let flight = bench.take().unwrap();
    let finished = bench.finish(&flight, vec![rejected()]);
    let [Note::Skipped { attempt, .. }] = finished.notes.as_slice() else { panic!("{:?}", finished.notes) };
    assert_eq!((attempt.event_id.to_string(), attempt.number, attempt.route), ("1".to_owned(), 1, 7));
    assert_eq!(finished.settled.len(), 1);
    assert_eq!(bench.round(&ACK), ["2"]);
}

#[test]
fn a_halted_event_holds_its_key_and_the_checkpoint_and_nothing_else() {
    let mut bench = Bench::new();
    bench.push_to("a", 2);
    for key in ["a", "b", ""] {
        bench.push(key);
    }
    let flight = bench.take().unwrap();
    assert_eq!(names(&flight), ["1", "1.1", "3", "4"]);
    let finished = bench.finish(&flight, vec![rejected(), rejected(), ACK, rejected()]);
    assert_eq!(finished.notes.iter().filter(|note| matches!(note, Note::Halted { .. })).count(), 3);
    assert_eq!(finished.settled.len(), 1);
    bench.push("b");
    bench.push("a");
    assert_eq!(bench.round(&ACK), ["5"]);
    bench.advance(3600 * SECOND);
    assert_eq!(bench.sent(), [""; 0]);
    let status = bench.status();
    assert_eq!((status.state, status.halted, status.unsettled), (LaneState::Halted, 2, 5), "one key, and one without");
    assert_eq!(status.oldest.unwrap().event_id, "1");
    assert_eq!(bench.ring.unsettled_events(), 4);
}

#[test]
fn an_event_that_cannot_be_sent_is_decided_in_its_turn() {
    let mut bench = Bench::skipping();
    bench.push("a");
    bench.push_invalid("a");
    bench.push_invalid("a");
    bench.push("a");
    bench.push_invalid("");
    assert_eq!(bench.decide().settled.len(), 1, "only what has no key");
    let flight = bench.take().unwrap();
    assert!(!bench.lane.has_invalid(), "the first event is not settled");
    bench.finish(&flight, vec![ACK]);
    assert!(bench.lane.has_invalid());
    assert_eq!(bench.sent(), [""; 0], "the last one waits for the decisions");
    let decided = bench.decide();
    assert_eq!(decided.settled.len(), 2, "the second gives the third its turn");
    assert!(matches!(&decided.notes[0], Note::Skipped { attempt, .. } if attempt.number == 0), "never sent");
    assert_eq!(bench.round(&ACK), ["4"]);

    let mut bench = Bench::new();
    bench.push_invalid("a");
    bench.push("a");
    assert!(matches!(bench.decide().notes.as_slice(), [Note::Halted { .. }]));
    assert_eq!(bench.sent(), [""; 0], "halted");
}

#[test]
fn an_event_that_cannot_be_sent_does_not_pass_a_retry() {
    let mut bench = Bench::skipping();
    bench.push("a");
    bench.push_invalid("a");
    bench.round(&failed(FailureKind::Timeout));
    assert!(!bench.lane.has_invalid());
    bench.advance(SECOND);
    bench.round(&ACK);
    assert_eq!(bench.decide().settled.len(), 1);
}

#[test]
fn a_batch_keeps_to_its_limits() {
    let mut bench = Bench::new();
    for _ in 0..6 {
        bench.push("");
    }
    let mut large = bench.event("", 1).remove(0);
    large.delivery.event.payload = Some(vec![0; 1000].into());
    bench.lane.push(large);
    bench.push("");
    let now = bench.now;
    let size = bench.event("", 1)[0].delivery.event.size();
    let mut take = |max, bytes| bench.lane.take(now, max, bytes).map(|flight| names(&flight)).unwrap_or_default();
    assert_eq!(take(2, 100 * size), ["1", "2"], "deliveries");
    assert_eq!(take(100, 3 * size), ["3", "4", "5"], "bytes");
    assert_eq!(take(100, 3 * size), ["6"], "the next one does not fit, and is not passed by");
    assert_eq!(take(100, 3 * size), ["7"], "too large for any batch: alone");
    assert_eq!(take(0, 0), ["8"], "at least one");
    assert_eq!(take(100, 100 * size), [""; 0]);
}

#[test]
fn a_batch_that_is_not_in_flight_is_ignored() {
    let mut bench = Bench::new();
    bench.push("a");
    let flight = bench.take().unwrap();
    bench.finish(&flight, vec![ACK]);
    let again = bench.finish(&flight, vec![ACK]);
    assert!(again.settled.is_empty() && again.notes.is_empty());
    assert_eq!(bench.status().unsettled, 0);
}

#[test]
fn a_missing_outcome_is_unknown_and_a_surplus_one_is_ignored() {
    let mut bench = Bench::new();
    bench.push("a");
    bench.push("b");
    let flight = bench.take().unwrap();
    assert_eq!(bench.finish(&flight, vec![ACK]).settled.len(), 1);
    bench.advance(SECOND);
    let flight = bench.take().unwrap();
    assert_eq!((names(&flight), flight.batch[0].attempt), (vec!["2".to_owned()], 2));
    assert_eq!(bench.finish(&flight, vec![ACK; 5]).settled.len(), 1);
}

#[test]
fn a_settled_key_leaves_no_trace() {
    let mut bench = Bench::skipping();
    for number in 0..5000 {
        bench.push(&format!("key {}", number % 1700));
    }
    assert_eq!(bench.lane.traces().0, 1700);
    while bench.lane.unsettled() > 0 {
        bench.round(&ACK);
    }
    assert_eq!(bench.lane.traces(), (0, 0, 0));
    assert_eq!(bench.status().oldest, None);
}
