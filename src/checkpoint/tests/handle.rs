//! The shared handle: no wake-up is lost, and the published LSN only rises.

use std::{
    num::NonZeroU32,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::sync::mpsc;
use walgate_sink::Lsn;

use super::super::{Checkpoint, Ring, Settled, Ticket};
use super::{deliveries, lsn};

/// Counts how often it is woken.
#[derive(Default)]
struct Alarm(AtomicUsize);

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Alarm {
    fn rang(&self) -> bool {
        self.0.swap(0, Ordering::SeqCst) > 0
    }
}

/// A checkpoint with one closed transaction of three events of 10 bytes.
fn three_events() -> (Checkpoint, Vec<Ticket>) {
    let checkpoint = Checkpoint::new(lsn(100));
    let tickets = checkpoint.with(|ring| {
        ring.begin(lsn(200));
        let tickets = (0..3).map(|_| ring.track(NonZeroU32::MIN, 10)).collect();
        ring.commit(lsn(210));
        tickets
    });
    (checkpoint, tickets)
}

#[test]
fn wait_for_room_is_woken_when_bytes_go_down() {
    let (checkpoint, tickets) = three_events();
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(alarm.clone());
    let mut context = Context::from_waker(&waker);
    let mut room = pin!(checkpoint.wait_for_room(20));
    assert_eq!(room.as_mut().poll(&mut context), Poll::Pending);
    assert!(!alarm.rang());
    checkpoint.settle_all([tickets[0]]);
    assert!(alarm.rang());
    assert_eq!(room.as_mut().poll(&mut context), Poll::Pending, "20 of 20 bytes are no room");
    checkpoint.settle_all([tickets[1]]);
    assert!(alarm.rang(), "a second wake-up after one in vain");
    assert_eq!(room.as_mut().poll(&mut context), Poll::Ready(()));
}

#[test]
fn wait_for_room_sees_a_change_between_two_polls() {
    let (checkpoint, tickets) = three_events();
    let mut context = Context::from_waker(Waker::noop());
    let mut room = pin!(checkpoint.wait_for_room(30));
    assert_eq!(room.as_mut().poll(&mut context), Poll::Pending);
    checkpoint.settle_all(tickets);
    assert_eq!(room.as_mut().poll(&mut context), Poll::Ready(()));
}

#[test]
fn wait_for_room_does_not_wait_where_there_is_room() {
    let (checkpoint, tickets) = three_events();
    let mut context = Context::from_waker(Waker::noop());
    assert_eq!(pin!(checkpoint.wait_for_room(31)).poll(&mut context), Poll::Ready(()));
    let mut none = pin!(checkpoint.wait_for_room(0));
    assert_eq!(none.as_mut().poll(&mut context), Poll::Pending);
    checkpoint.settle_all(tickets);
    assert_eq!(none.poll(&mut context), Poll::Ready(()), "a limit of 0 waits until nothing is unsettled");
}

#[test]
fn a_partly_settled_event_makes_no_room() {
    let checkpoint = Checkpoint::new(Lsn::ZERO);
    let event = checkpoint.with(|ring| {
        ring.begin(lsn(100));
        ring.track(deliveries(2), 10)
    });
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(alarm.clone());
    let mut context = Context::from_waker(&waker);
    let mut room = pin!(checkpoint.wait_for_room(10));
    assert_eq!(room.as_mut().poll(&mut context), Poll::Pending);
    assert_eq!(checkpoint.settle_all([event]), 0);
    assert!(!alarm.rang());
    assert_eq!(checkpoint.settle_all([event, event]), 1, "the third of two deliveries is stale");
    assert!(alarm.rang());
    assert_eq!(room.poll(&mut context), Poll::Ready(()));
}

#[test]
fn wait_idle_is_woken_by_settle_commit_and_abandon() {
    let changes: [fn(&mut Ring); 2] = [|ring| ring.commit(lsn(110)), Ring::abandon];
    for close in changes {
        let checkpoint = Checkpoint::new(Lsn::ZERO);
        let alarm = Arc::new(Alarm::default());
        let waker = Waker::from(alarm.clone());
        let mut context = Context::from_waker(&waker);
        assert_eq!(pin!(checkpoint.wait_idle()).poll(&mut context), Poll::Ready(()));

        let event = checkpoint.with(|ring| {
            ring.begin(lsn(100));
            ring.track(NonZeroU32::MIN, 0)
        });
        let mut idle = pin!(checkpoint.wait_idle());
        assert_eq!(idle.as_mut().poll(&mut context), Poll::Pending);
        checkpoint.settle_all([event]);
        assert_eq!(idle.as_mut().poll(&mut context), Poll::Pending, "a transaction is open");
        alarm.rang();
        checkpoint.with(close);
        assert!(alarm.rang());
        assert_eq!(idle.poll(&mut context), Poll::Ready(()));
    }
    // An event of no bytes in a closed transaction: only idleness tells.
    let checkpoint = Checkpoint::new(Lsn::ZERO);
    let event = checkpoint.with(|ring| {
        ring.begin(lsn(100));
        let event = ring.track(NonZeroU32::MIN, 0);
        ring.commit(lsn(110));
        event
    });
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(alarm.clone());
    let mut idle = pin!(checkpoint.wait_idle());
    assert_eq!(idle.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
    checkpoint.settle_all([event]);
    assert!(alarm.rang());
}

#[test]
fn every_waiter_is_woken() {
    let (checkpoint, tickets) = three_events();
    let alarms: [Arc<Alarm>; 2] = Default::default();
    let wakers = alarms.clone().map(Waker::from);
    let mut room = pin!(checkpoint.wait_for_room(30));
    let mut idle = pin!(checkpoint.wait_idle());
    assert_eq!(room.as_mut().poll(&mut Context::from_waker(&wakers[0])), Poll::Pending);
    assert_eq!(idle.as_mut().poll(&mut Context::from_waker(&wakers[1])), Poll::Pending);
    checkpoint.settle_all(tickets);
    assert!(alarms.iter().all(|alarm| alarm.rang()));
}

#[test]
fn the_flush_lsn_is_published_only_when_it_rises() {
    let (checkpoint, tickets) = three_events();
    let mut flush = checkpoint.subscribe();
    assert_eq!(*flush.borrow_and_update(), lsn(100));
    checkpoint.settle_all(tickets[..2].iter().copied());
    checkpoint.with(|ring| ring.keepalive(lsn(500)));
    assert!(!flush.has_changed().unwrap());
    checkpoint.settle_all([tickets[2]]);
    assert!(flush.has_changed().unwrap());
    assert_eq!(*flush.borrow_and_update(), lsn(210));
    checkpoint.with(|ring| ring.keepalive(lsn(200)));
    assert!(!flush.has_changed().unwrap(), "a keepalive behind it");
    checkpoint.with(|ring| ring.keepalive(lsn(300)));
    assert_eq!(*flush.borrow_and_update(), lsn(300));
}

#[test]
fn snapshot_shows_the_ring() {
    let (checkpoint, tickets) = three_events();
    checkpoint.settle_all([tickets[0]]);
    checkpoint.with(|ring| ring.begin(lsn(300)));
    let status = checkpoint.snapshot();
    assert_eq!((status.flush_lsn, status.received_lsn), (lsn(100), lsn(210)));
    assert_eq!((status.unsettled_events, status.unsettled_bytes, status.peak_bytes), (2, 20, 30));
    assert_eq!((status.transactions, status.in_transaction), (2, true));
    assert_eq!(status.oldest_unsettled, Some(lsn(200)));
}

#[test]
fn a_panic_under_the_lock_does_not_stop_the_others() {
    let (checkpoint, tickets) = three_events();
    let other = checkpoint.clone();
    let panicked = std::thread::spawn(move || other.with(|_| panic!("planted"))).join();
    assert!(panicked.is_err());
    assert_eq!(checkpoint.settle_all(tickets), 0);
    assert_eq!(checkpoint.snapshot().flush_lsn, lsn(210));
}

#[test]
fn a_change_right_after_the_look_is_not_lost() {
    // The change comes when the waiter has looked in vain, and has not begun to wait.
    let checkpoint = Checkpoint::new(Lsn::ZERO);
    let looks = AtomicUsize::new(0);
    let mut waiter = pin!(checkpoint.wait_until(|_| {
        let first = looks.fetch_add(1, Ordering::SeqCst) == 0;
        if first {
            checkpoint.wake();
        }
        !first
    }));
    assert_eq!(waiter.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(()));
    assert_eq!(looks.load(Ordering::SeqCst), 2);
}

/// The deadline is no measure: without it a lost wake-up would hang instead of fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_wake_up_is_lost_between_threads() {
    let done = tokio::time::timeout(Duration::from_secs(60), intake_and_settlers()).await;
    assert!(done.is_ok(), "somebody waits for ever");
}

/// One intake and three settling tasks, with room for very few events.
async fn intake_and_settlers() {
    const EVENTS: u64 = 20_000;
    const LIMIT: u64 = 3;
    let checkpoint = Checkpoint::new(Lsn::ZERO);

    let mut published = checkpoint.subscribe();
    let watcher = tokio::spawn(async move {
        let mut last = *published.borrow_and_update();
        while last < lsn(EVENTS * 10 + 5) {
            published.changed().await.unwrap();
            let now = *published.borrow_and_update();
            assert!(last < now, "{now} after {last}");
            last = now;
        }
    });

    let (senders, settlers): (Vec<_>, Vec<_>) = (0..3)
        .map(|_| {
            let (sender, mut tickets) = mpsc::unbounded_channel::<Ticket>();
            let checkpoint = checkpoint.clone();
            let settler = tokio::spawn(async move {
                let mut batch = Vec::new();
                while tickets.recv_many(&mut batch, 16).await > 0 {
                    assert_eq!(checkpoint.settle_all(batch.drain(..)), 0);
                }
            });
            (sender, settler)
        })
        .unzip();

    for number in 1..=EVENTS {
        checkpoint.wait_for_room(LIMIT).await;
        let count = 1 + (number % 3) as usize;
        let ticket = checkpoint.with(|ring| {
            ring.begin(lsn(number * 10));
            let ticket = ring.track(deliveries(count as u32), 1);
            ring.commit(lsn(number * 10 + 5));
            ticket
        });
        for sender in &senders[..count] {
            sender.send(ticket).unwrap();
        }
    }
    checkpoint.wait_idle().await;
    watcher.await.unwrap();
    drop(senders);
    for settler in settlers {
        settler.await.unwrap();
    }
    let status = checkpoint.snapshot();
    assert_eq!((status.flush_lsn, status.unsettled_events), (lsn(EVENTS * 10 + 5), 0));
    assert!(status.peak_bytes <= LIMIT, "{} bytes with a limit of {LIMIT}", status.peak_bytes);
    let settled_again = checkpoint.with(|ring| {
        ring.begin(lsn(EVENTS * 20));
        let ticket = ring.track(NonZeroU32::MIN, 1);
        (ring.settle(ticket), ring.settle(ticket))
    });
    assert_eq!(settled_again, (Settled::EventDone, Settled::Stale));
}
