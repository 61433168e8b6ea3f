//! Deaths of walgate and of PostgreSQL while rows are cleaned up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Yard;
use crate::support::oracle;
use crate::support::postgres::{Options, Postgres};
use crate::support::receiver::Receiver;
use crate::support::wait::{DEADLINE, eventually, within};
use crate::support::walgate::{Setup, Walgate};
use crate::workload::Stream;

const BUSY: &str = "mode: delete, retain: 0s, pause: 0ms, batch: 100";

/// Writers with savepoints, rollbacks, prepared transactions and asynchronous commits; six kills of walgate, and two of
/// PostgreSQL. Nothing that was not acknowledged is deleted, all that was committed arrives, and the outbox is empty.
#[test]
fn p1_s1_kills_during_clean_up_touch_no_unsettled_row() {
    let server = Postgres::start(Options::default());
    let yard = Yard::on(&server);
    yard.database.sql(&format!("ALTER DATABASE {} SET synchronous_commit = off", yard.database.name));
    let setup = yard.setup(BUSY);
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    yard.wait_begun(&mut walgate);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let (yard, stop) = (&yard, &stop);
            let stream = Stream { name, keys: 20, batch: 12, prepared: true };
            scope.spawn(move || {
                let goes_on = |at| {
                    let room = || stop.load(Ordering::SeqCst) || at < yard.clerk.receiver.settled_count() / 2 + 300;
                    within(DEADLINE, room) && !stop.load(Ordering::SeqCst)
                };
                stream.write(&yard.database, 0, goes_on);
            });
        }
        for round in 0..8 {
            let before = yard.clerk.receiver.settled_count();
            walgate.eventually("events flow", || yard.clerk.receiver.settled_count() > before + 200);
            if round % 4 == 3 {
                server.kill9();
                server.start_again();
                // It finds its way by itself.
                continue;
            }
            walgate.kill9();
            yard.clerk.receiver.wait_until_deserted();
            yard.assert_clean(&walgate);
            walgate = Walgate::run_file(&setup, &file);
        }
        stop.store(true, Ordering::SeqCst);
    });
    for gid in yard.database.sql("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()") {
        yard.database.sql(&format!("ROLLBACK PREPARED '{}'", gid[0].clone().expect("a name")));
    }
    let committed = oracle::ledger(&yard.database);
    walgate.eventually("all arrive", || {
        let settled = yard.clerk.receiver.all_settled();
        committed.iter().all(|event| settled.contains_key(&event.id))
    });
    yard.wait_rows(&mut walgate, 0);
    let repeats = oracle::assert_reconciled(&committed, &yard.clerk.receiver.receipts());
    eprintln!("clean-up under kills: {} events, {repeats} repeats", committed.len());
    yard.assert_clean(&walgate);
}

/// A hundred thousand rows under inserts, nothing retained: everything is delivered, and the table is empty.
#[test]
fn a_hundred_thousand_rows_come_and_go() {
    let yard = Yard::new();
    yard.database.sql("DROP TRIGGER only_settled ON outbox_events");
    let receiver = Receiver::batches();
    let url = receiver.url();
    let setup = Setup::of(&yard.database)
        .keyed()
        .sink(&format!(
            "hook: {{ webhook: {{ url: {url:?}, secret: {:?}, mode: batch }}, delivery: {{ timeout: 15s, concurrency: 4, batch: 500 }} }}",
            crate::support::receiver::SECRET
        ))
        .sink("nothing: { discard: {} }")
        .route("order.*", "hook")
        .route("push", "nothing")
        .more("cleanup: { mode: delete, retain: 0s, pause: 10ms, batch: 2000 }");
    let mut walgate = Walgate::run(&setup);
    yard.wait_begun(&mut walgate);
    let mut largest = 0;
    for part in 0..50 {
        yard.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, payload) SELECT 'order.created', \
             jsonb_build_object('i', {part} * 2000 + i) FROM generate_series(1, 2000) i"
        ));
        largest = largest.max(yard.rows());
        if part == 20 {
            // The rest comes while rows go.
            yard.wait(&mut walgate, "some have gone", || yard.rows() < 42_000);
        }
    }
    eventually(Duration::from_secs(60), "everything is delivered", || receiver.distinct() >= 100_000);
    yard.wait_rows(&mut walgate, 0);
    assert_eq!(receiver.distinct(), 100_000);
    assert_eq!(walgate.metric("walgate_cleanup_rows_total", &["mode=\"delete\""]), Some(100_000.0));
    assert_eq!(walgate.metric("walgate_cleanup_errors_total", &[]), Some(0.0), "{}", walgate.said());
    eprintln!("100000 rows; {largest} of them at once");
}

/// SIGKILL before and after a round: what it has deleted is gone, what it has not is found again.
#[cfg(debug_assertions)]
#[test]
fn p1_kills_around_a_round_leave_nothing_behind() {
    let yard = Yard::new();
    let setup = yard.setup(BUSY);
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    yard.wait_begun(&mut walgate);
    walgate.kill9();
    for point in ["cleanup.before:2", "cleanup.after:1"] {
        yard.insert_many(300);
        let setup = setup.clone().env("WALGATE_FAILPOINT", point);
        let mut walgate = Walgate::run_file(&setup, &file);
        let mut push = std::time::Instant::now();
        within(DEADLINE, || {
            if push.elapsed() > Duration::from_millis(400) {
                push = std::time::Instant::now();
                yard.database.sql(super::PUSH);
            }
            walgate.has_ended()
        });
        assert!(walgate.has_ended(), "{point} was not reached");
        yard.assert_clean(&walgate);
    }
    let mut walgate = Walgate::run_file(&setup, &file);
    yard.wait_rows(&mut walgate, 0);
    walgate.eventually("all arrive", || yard.clerk.receiver.settled_count() == 600);
    yard.assert_clean(&walgate);
}
