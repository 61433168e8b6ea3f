//! S3, S29, S45: restarts in a row, long transactions that overlap, bytes that are no protocol.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::rig::Rig;
use crate::support::oracle;
use crate::support::pgwire::{Change, Heard};
use crate::support::wait::{DEADLINE, within};
use crate::workload::Stream;

/// What follows is the number of a way to break a message of the stream.
const WAYS: usize = 10;

#[test]
fn s3_postgresql_is_restarted_twenty_times_in_every_way() {
    let rig = Rig::alone();
    let mut walgate = rig.run();
    let stop = AtomicBool::new(false);
    let stream = Stream { name: "s3", keys: 30, batch: 10, prepared: true };
    std::thread::scope(|scope| {
        let (rig, stop) = (&rig, &stop);
        scope.spawn(move || {
            let far = |at: usize| at > rig.receiver.settled_count() + 3_000;
            let goes_on = |at| {
                within(DEADLINE, || stop.load(Ordering::SeqCst) || !far(at));
                !stop.load(Ordering::SeqCst)
            };
            stream.write(&rig.database, 0, goes_on);
        });
        for round in 0..20 {
            let before = rig.receiver.settled_count();
            walgate.eventually("events arrive", || rig.receiver.settled_count() > before);
            let server = &rig.database.server;
            match round % 3 {
                0 => server.stop_immediate(),
                // A smart shutdown waits for walgate's session; who means it follows it with a fast one.
                1 => server.stop_smart_then_fast(Duration::from_millis(200), DEADLINE),
                _ => drop(server.stop_fast(DEADLINE)),
            }
            server.start_again();
        }
        stop.store(true, Ordering::SeqCst);
    });
    let committed = oracle::ledger(&rig.database);
    walgate.eventually("all events arrive", || committed.iter().all(|event| rig.receiver.has(&event.id)));
    let last = rig.witness.log().commits.iter().map(|commit| commit.end).max().expect("commits");
    walgate.eventually("everything is confirmed", || rig.witness.flush() >= last);
    oracle::assert_reconciled(&committed, &rig.receiver.receipts());
    rig.assert_wire();
    assert!(!walgate.has_ended(), "it has reconnected by itself");
}

#[test]
fn s29_long_transactions_that_overlap_come_in_the_order_of_their_commits() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    let (early, late) = (rig.database.client(), rig.database.client());
    let rows = |name: &str, from: usize| {
        format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
             SELECT 'order.created', 'k' || i % 20, jsonb_build_object('of', '{name}', 'i', i) \
             FROM generate_series({from}, {from} + 499) i"
        )
    };
    early.run("BEGIN");
    late.run("BEGIN");
    for part in 0..4 {
        early.run(&rows("early", part * 500));
        late.run(&rows("late", part * 500));
    }
    late.run("COMMIT");
    rig.wait_settled(&mut walgate, 2000);
    let of = |name: &str| rig.receiver.receipts().iter().filter(|receipt| receipt.text().contains(name)).count();
    assert_eq!((of("late"), of("early")), (2000, 0), "what is open is not there");
    early.run("COMMIT");
    rig.wait_settled(&mut walgate, 4000);
    let last = rig.insert("last");
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(rig.assert_all(), 0, "each once");
}

/// Breaks a message of the stream (`d`, length, `w`, three positions of 8 bytes, and then pgoutput's own bytes) in the
/// given way; false where that way is not for this message.
fn break_message(message: &mut Vec<u8>, change: &Change, way: usize) -> bool {
    const BODY: usize = 30;
    let set_length = |message: &mut Vec<u8>| {
        let length = u32::try_from(message.len() - 1).expect("a length");
        message[1..5].copy_from_slice(&length.to_be_bytes());
    };
    let insert = matches!(change, Change::Insert { .. });
    match way {
        0 => message[BODY] ^= 0x80,
        1 => {
            message.truncate(BODY + (message.len() - BODY) / 2);
            set_length(message);
        }
        2 => message[1..5].copy_from_slice(&u32::MAX.to_be_bytes()),
        3 => message[1..5].copy_from_slice(&3_u32.to_be_bytes()),
        4 => message[1..5].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes()),
        5 => message[0] = b'?',
        6 => message[5] = b'?',
        // `I`, relation, `N`, number of columns, kind and length of the first.
        7 if insert => message[BODY + 6..BODY + 8].copy_from_slice(&u16::MAX.to_be_bytes()),
        8 if insert => message[BODY + 9..BODY + 13].copy_from_slice(&0x7fff_ffff_u32.to_be_bytes()),
        9 if insert => message[BODY + 1..BODY + 5].copy_from_slice(&0xdead_beef_u32.to_be_bytes()),
        _ => return false,
    }
    true
}

#[test]
fn s45_bytes_that_are_no_protocol_are_refused_and_the_stream_is_taken_up_again() {
    let rig = Rig::new();
    // The numbers of messages that are broken follow from this.
    let random = Mutex::new(fastrand::Rng::with_seed(45));
    let broken = Arc::new(AtomicUsize::new(0));
    let (counted, mut pause) = (Arc::clone(&broken), 20);
    rig.witness.edit(move |heard, message| {
        let Heard::Wal { change, .. } = heard else { return Vec::new() };
        pause = usize::saturating_sub(pause, 1);
        let done = counted.load(Ordering::SeqCst);
        if pause == 0 && done < 3 * WAYS && break_message(message, change, done % WAYS) {
            counted.fetch_add(1, Ordering::SeqCst);
            pause = random.lock().expect("the generator").usize(20..60);
        }
        Vec::new()
    });
    let mut walgate = rig.run();
    let mut written = 0;
    while broken.load(Ordering::SeqCst) < 3 * WAYS {
        rig.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
             SELECT 'order.created', 'k' || i % 9, jsonb_build_object('i', i) FROM generate_series({written}, {written} + 49) i"
        ));
        written += 50;
        walgate.eventually("the events arrive all the same", || rig.receiver.settled_count() >= written);
    }
    let last = rig.insert("last");
    rig.wait_confirmed(&mut walgate, &last);
    rig.assert_all();
    assert!(!walgate.has_ended() && !walgate.stderr().contains("panicked"), "{}", walgate.said());
    let peak = walgate.peak_memory_kib();
    assert!(peak < 64 * 1024, "{peak} KiB were resident");
    assert!(rig.witness.log().starts.len() > 3 * WAYS / 2, "the premise: it was noticed");
}
