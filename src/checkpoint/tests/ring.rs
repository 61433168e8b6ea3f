//! Named cases of the ring.

use std::num::NonZeroU32;

use walgate_sink::Lsn;

use super::super::{Ring, Settled, Ticket};
use super::{deliveries, lsn};

const ONE: NonZeroU32 = NonZeroU32::MIN;

/// A transaction of so many events of one delivery and one byte.
fn transaction(ring: &mut Ring, commit_lsn: u64, end: u64, events: usize) -> Vec<Ticket> {
    ring.begin(lsn(commit_lsn));
    let tickets = (0..events).map(|_| ring.track(ONE, 1)).collect();
    ring.commit(lsn(end));
    ring.check();
    tickets
}

fn settle(ring: &mut Ring, tickets: &[Ticket]) {
    for ticket in tickets {
        assert_eq!(ring.settle(*ticket), Settled::EventDone);
        ring.check();
    }
}

#[test]
fn flush_is_exactly_the_commit_end() {
    // The next commit record starts at the end of the one before: a byte more would lose it (T5).
    let mut ring = Ring::new(lsn(100));
    let first = transaction(&mut ring, 200, 250, 1);
    let second = transaction(&mut ring, 250, 300, 1);
    assert_eq!(ring.flush_lsn(), lsn(100));
    settle(&mut ring, &first);
    assert_eq!(ring.flush_lsn(), lsn(250));
    settle(&mut ring, &second);
    assert_eq!(ring.flush_lsn(), lsn(300));
}

#[test]
fn flush_waits_for_the_oldest_unsettled_transaction() {
    let mut ring = Ring::new(Lsn::ZERO);
    let first = transaction(&mut ring, 100, 110, 1);
    let second = transaction(&mut ring, 200, 210, 1);
    let third = transaction(&mut ring, 300, 310, 1);
    settle(&mut ring, &third);
    assert_eq!(ring.flush_lsn(), Lsn::ZERO);
    settle(&mut ring, &first);
    assert_eq!(ring.flush_lsn(), lsn(110));
    settle(&mut ring, &second);
    assert_eq!(ring.flush_lsn(), lsn(310));
    assert!(ring.is_idle());
}

#[test]
fn flush_waits_for_every_row_of_a_transaction() {
    let mut ring = Ring::new(Lsn::ZERO);
    let rows = transaction(&mut ring, 100, 110, 3);
    settle(&mut ring, &rows[..2]);
    assert_eq!(ring.flush_lsn(), Lsn::ZERO);
    assert_eq!(ring.unsettled_events(), 1);
    settle(&mut ring, &rows[2..]);
    assert_eq!(ring.flush_lsn(), lsn(110));
}

#[test]
fn flush_waits_for_the_commit_of_a_settled_transaction() {
    let mut ring = Ring::new(Lsn::ZERO);
    ring.begin(lsn(100));
    for _ in 0..3 {
        let row = ring.track(ONE, 1);
        settle(&mut ring, &[row]);
        assert_eq!(ring.flush_lsn(), Lsn::ZERO);
        assert_eq!(ring.transactions(), 1);
    }
    ring.commit(lsn(110));
    assert_eq!(ring.flush_lsn(), lsn(110));
    assert!(ring.is_idle());
}

#[test]
fn an_event_settles_with_its_last_delivery() {
    let mut ring = Ring::new(Lsn::ZERO);
    ring.begin(lsn(100));
    let event = ring.track(deliveries(10), 7);
    ring.commit(lsn(110));
    for _ in 0..9 {
        assert_eq!(ring.settle(event), Settled::Pending);
        assert_eq!((ring.flush_lsn(), ring.unsettled_bytes()), (Lsn::ZERO, 7));
    }
    assert_eq!(ring.settle(event), Settled::EventDone);
    assert_eq!((ring.flush_lsn(), ring.unsettled_bytes()), (lsn(110), 0));
}

#[test]
fn a_transaction_without_events_is_confirmed_at_once() {
    let mut ring = Ring::new(Lsn::ZERO);
    transaction(&mut ring, 100, 110, 0);
    assert_eq!(ring.flush_lsn(), lsn(110));
    assert!(ring.is_idle());
}

#[test]
fn a_transaction_without_events_waits_for_the_one_before() {
    let mut ring = Ring::new(Lsn::ZERO);
    let first = transaction(&mut ring, 100, 110, 1);
    transaction(&mut ring, 200, 210, 0);
    assert_eq!((ring.flush_lsn(), ring.transactions()), (Lsn::ZERO, 1));
    settle(&mut ring, &first);
    assert_eq!(ring.flush_lsn(), lsn(210));
}

#[test]
fn keepalive_is_confirmed_when_idle() {
    let mut ring = Ring::new(lsn(100));
    ring.keepalive(lsn(500));
    assert_eq!((ring.flush_lsn(), ring.received_lsn()), (lsn(500), lsn(500)));
}

#[test]
fn keepalive_is_not_confirmed_while_events_are_unsettled() {
    // S34.
    let mut ring = Ring::new(lsn(100));
    let rows = transaction(&mut ring, 200, 210, 1);
    ring.keepalive(lsn(500));
    assert_eq!((ring.flush_lsn(), ring.received_lsn()), (lsn(100), lsn(500)));
    settle(&mut ring, &rows);
    assert_eq!(ring.flush_lsn(), lsn(210), "an old keepalive is not remembered");
    ring.keepalive(lsn(500));
    assert_eq!(ring.flush_lsn(), lsn(500));
}

#[test]
fn keepalive_is_not_confirmed_inside_a_transaction() {
    // S34: nothing is unsettled, and yet the rest of the transaction may be owed.
    let mut ring = Ring::new(lsn(100));
    ring.begin(lsn(200));
    ring.keepalive(lsn(500));
    assert_eq!(ring.flush_lsn(), lsn(100));
    let row = ring.track(ONE, 1);
    settle(&mut ring, &[row]);
    ring.keepalive(lsn(500));
    assert_eq!((ring.flush_lsn(), ring.received_lsn()), (lsn(100), lsn(500)));
    ring.commit(lsn(210));
    assert_eq!(ring.flush_lsn(), lsn(210));
}

#[test]
fn keepalive_behind_the_flush_lsn_changes_nothing() {
    // S35, T6: a position of 0/0, or one that goes back.
    let mut ring = Ring::new(lsn(100));
    transaction(&mut ring, 200, 210, 0);
    for back in [0, 1, 209] {
        ring.keepalive(lsn(back));
        assert_eq!((ring.flush_lsn(), ring.received_lsn()), (lsn(210), lsn(210)));
    }
}

#[test]
fn flush_never_falls() {
    // A commit end of 0/0, or behind what was confirmed.
    let mut ring = Ring::new(lsn(100));
    for end in [0, 50, 100] {
        let rows = transaction(&mut ring, 200, end, 1);
        settle(&mut ring, &rows);
        assert_eq!((ring.flush_lsn(), ring.received_lsn()), (lsn(100), lsn(100)));
    }
}

#[test]
fn abandoned_transaction_confirms_nothing() {
    let mut ring = Ring::new(lsn(100));
    ring.begin(lsn(200));
    let row = ring.track(ONE, 1);
    ring.abandon();
    assert_eq!((ring.is_open(), ring.is_idle()), (false, false));
    settle(&mut ring, &[row]);
    assert_eq!(ring.flush_lsn(), lsn(100));
    assert!(ring.is_idle());

    ring.begin(lsn(200));
    ring.abandon();
    assert_eq!(ring.flush_lsn(), lsn(100));
    assert!(ring.is_idle());
}

#[test]
fn abandoned_transaction_holds_its_repetition_until_it_is_settled() {
    let mut ring = Ring::new(lsn(100));
    let before = transaction(&mut ring, 150, 160, 1);
    ring.begin(lsn(200));
    let first_time = ring.track(ONE, 1);
    ring.abandon();
    let second_time = transaction(&mut ring, 200, 210, 2);
    settle(&mut ring, &second_time);
    assert_eq!((ring.flush_lsn(), ring.transactions()), (lsn(100), 2));
    settle(&mut ring, &before);
    assert_eq!(ring.flush_lsn(), lsn(160));
    settle(&mut ring, &[first_time]);
    assert_eq!(ring.flush_lsn(), lsn(210));
}

#[test]
fn begin_abandons_a_transaction_that_is_still_open() {
    let mut ring = Ring::new(lsn(100));
    ring.begin(lsn(200));
    let lost = ring.track(ONE, 1);
    let rows = transaction(&mut ring, 300, 310, 1);
    settle(&mut ring, &rows);
    assert_eq!(ring.flush_lsn(), lsn(100));
    settle(&mut ring, &[lost]);
    assert_eq!(ring.flush_lsn(), lsn(310));

    ring.begin(lsn(400));
    ring.begin(lsn(500));
    assert_eq!((ring.transactions(), ring.flush_lsn()), (1, lsn(310)), "one without events leaves at once");
    ring.check();
}

#[test]
fn an_event_outside_a_transaction_holds_the_flush_lsn() {
    let mut ring = Ring::new(lsn(100));
    let stray = ring.track(ONE, 1);
    settle(&mut ring, &[stray]);
    ring.keepalive(lsn(500));
    assert_eq!(ring.flush_lsn(), lsn(100));
    ring.commit(lsn(600));
    assert_eq!(ring.flush_lsn(), lsn(600));
    ring.commit(lsn(700));
    assert_eq!((ring.flush_lsn(), ring.received_lsn()), (lsn(600), lsn(700)), "no transaction was open");
}

#[test]
fn a_stale_ticket_changes_nothing() {
    let mut ring = Ring::new(Lsn::ZERO);
    let old = transaction(&mut ring, 100, 110, 1);
    settle(&mut ring, &old);
    assert_eq!(ring.settle(old[0]), Settled::Stale, "its slot is free");
    let new = transaction(&mut ring, 200, 210, 1);
    assert_eq!(ring.settle(old[0]), Settled::Stale, "its slot serves another event");
    assert_eq!((ring.unsettled_events(), ring.flush_lsn()), (1, lsn(110)));
    assert_eq!(Ring::new(Lsn::ZERO).settle(new[0]), Settled::Stale, "a ring without events");
    settle(&mut ring, &new);
    assert_eq!(ring.flush_lsn(), lsn(210));
}

#[test]
fn settled_transactions_merge_into_the_one_before() {
    // One stuck event, and a long run behind it: neither the ring nor its slabs grow.
    let mut ring = Ring::new(Lsn::ZERO);
    let stuck = transaction(&mut ring, 100, 110, 1);
    for number in 2..10_000 {
        ring.begin(lsn(number * 100));
        let row = ring.track(ONE, 1);
        ring.commit(lsn(number * 100 + 10));
        assert_eq!(ring.settle(row), Settled::EventDone);
        assert_eq!((ring.transactions(), ring.flush_lsn()), (1, Lsn::ZERO));
    }
    ring.check();
    assert_eq!(ring.slots(), (2, 2));
    settle(&mut ring, &stuck);
    assert_eq!(ring.flush_lsn(), lsn(999_910));
}

#[test]
fn a_merge_in_the_middle_keeps_order() {
    let mut ring = Ring::new(Lsn::ZERO);
    let rows: Vec<_> = (1..=5).map(|number| transaction(&mut ring, number * 100, number * 100 + 10, 1)).collect();
    for settled in [2, 1, 3] {
        settle(&mut ring, &rows[settled]);
        assert_eq!(ring.flush_lsn(), Lsn::ZERO);
    }
    assert_eq!(ring.shape(), vec![(lsn(100), 1, Some(lsn(410))), (lsn(500), 1, Some(lsn(510)))]);
    settle(&mut ring, &rows[0]);
    assert_eq!((ring.flush_lsn(), ring.oldest_unsettled()), (lsn(410), Some(lsn(500))));
    settle(&mut ring, &rows[4]);
    assert_eq!(ring.flush_lsn(), lsn(510));
}

#[test]
fn bytes_count_once_for_an_event() {
    let mut ring = Ring::new(Lsn::ZERO);
    ring.begin(lsn(100));
    let large = ring.track(deliveries(2), 1000);
    let small = ring.track(deliveries(1), 10);
    assert_eq!((ring.unsettled_events(), ring.unsettled_bytes(), ring.peak_bytes()), (2, 1010, 1010));
    assert_eq!(ring.settle(large), Settled::Pending);
    assert_eq!(ring.unsettled_bytes(), 1010);
    assert_eq!(ring.settle(large), Settled::EventDone);
    assert_eq!((ring.unsettled_bytes(), ring.peak_bytes()), (10, 1010));
    assert_eq!(ring.settle(small), Settled::EventDone);
    assert_eq!((ring.unsettled_bytes(), ring.peak_bytes()), (0, 1010));
}

#[test]
fn oldest_unsettled_names_what_holds_the_flush_lsn() {
    let mut ring = Ring::new(Lsn::ZERO);
    assert_eq!(ring.oldest_unsettled(), None);
    ring.begin(lsn(100));
    assert_eq!(ring.oldest_unsettled(), None, "open, and nothing of it unsettled");
    let row = ring.track(ONE, 1);
    assert_eq!(ring.oldest_unsettled(), Some(lsn(100)));
    ring.commit(lsn(110));
    let next = transaction(&mut ring, 200, 210, 1);
    settle(&mut ring, &[row]);
    assert_eq!(ring.oldest_unsettled(), Some(lsn(200)));
    settle(&mut ring, &next);
    assert_eq!(ring.oldest_unsettled(), None);
}
