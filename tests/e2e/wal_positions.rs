//! T1 to T6: what a position in the WAL says, and what it does not. Each was a mistake in some other product.

use crate::rig::Rig;
use crate::support::lsn::Lsn;
use crate::support::pgwire::{self, Change, Heard};
use crate::support::wait::watch_for;
use crate::support::walgate::Walgate;

/// A payload that does not compress.
const RANDOM_100_KIB: &str =
    "SELECT jsonb_build_object('pad', string_agg(md5(random()::text), '')) FROM generate_series(1, 3200)";

#[test]
fn t1_a_position_plus_a_length_is_no_position() {
    // Alone: what others write moves the positions.
    let rig = Rig::alone();
    rig.database.sql("ALTER TABLE outbox_events ALTER payload SET STORAGE EXTERNAL");
    let setup = rig.setup();
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    rig.receiver.hold();
    let big = rig.database.value(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'order.created', 'big', ({RANDOM_100_KIB}) \
         RETURNING id"
    ));
    let small: Vec<String> = std::thread::scope(|scope| {
        let writers = [(); 4].map(|()| {
            scope.spawn(|| {
                let client = rig.database.client();
                let insert = "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
                              VALUES ('order.created', gen_random_uuid()::text, '{}') RETURNING id";
                (0..5).map(|_| client.value(insert)).collect::<Vec<String>>()
            })
        });
        writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect()
    });
    let end = rig.witness.commit_end(&big);
    let last = small.iter().map(|id| rig.witness.commit_end(id)).max().expect("twenty of them");
    {
        let log = rig.witness.log();
        let row = log.first_rows().find(|row| *row.id == *big).expect("the big row");
        assert!(row.start.0 + 100 * 1024 > last.0, "the premise: the sum lies beyond all the later commits");
    }
    rig.receiver.release(&big);
    walgate.eventually("exactly the big row's commit is confirmed", || rig.database.confirmed_flush() == end);
    rig.kill(&mut walgate);
    rig.receiver.release_all();

    let mut walgate = Walgate::run_file(&setup, &file);
    rig.wait_settled(&mut walgate, 21);
    rig.wait_confirmed(&mut walgate, small.last().expect("one"));
    rig.assert_all();
}

/// With ids of their own: a volatile default would make PostgreSQL insert row by row.
fn copy_rows(rig: &Rig, from: usize, to: usize) {
    let row = |n| format!("{}\torder.created\tk{}\t{{\"n\": {n}}}\n", uuid::Uuid::new_v4(), n % 10);
    let rows: String = (from..to).map(row).collect();
    rig.database.connection().copy_in("COPY outbox_events (id, event_type, aggregate_id, payload) FROM STDIN", &rows);
}

#[test]
fn t2_a_position_does_not_identify_a_row() {
    let rig = Rig::new();
    let setup = rig.setup();
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    copy_rows(&rig, 0, 1000);
    rig.wait_settled(&mut walgate, 1000);
    {
        let log = rig.witness.log();
        let positions: std::collections::HashSet<Lsn> = log.rows.iter().map(|row| row.start).collect();
        assert!(positions.len() < 100, "the premise: {} positions for 1000 rows", positions.len());
    }
    assert_eq!(rig.assert_all(), 0, "each once");

    // Killed in the middle of such a transaction: it comes again whole.
    let before = rig.receiver.requests();
    rig.receiver.script(move |request| {
        if request.number > before + 300 {
            crate::support::receiver::Answer::Never
        } else {
            crate::support::receiver::ok()
        }
    });
    copy_rows(&rig, 1000, 2000);
    walgate.eventually("some of them are acknowledged", || rig.receiver.settled_count() >= 1300);
    rig.kill(&mut walgate);
    rig.receiver.accept_all();
    let mut walgate = Walgate::run_file(&setup, &file);
    rig.wait_settled(&mut walgate, 2000);
    rig.assert_all();
}

#[test]
fn t3_transactions_are_delivered_in_the_order_of_their_commits() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    let insert = |key: &str| {
        format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('order.created', '{key}', '{{}}') \
             RETURNING id"
        )
    };
    let (a, b) = (rig.database.client(), rig.database.client());
    a.run("BEGIN");
    let a_first = a.value(&insert("k"));
    b.run("BEGIN");
    let b_first = b.value(&insert("k"));
    let a_second = a.value(&insert("k"));
    let b_second = b.value(&insert("k"));
    b.run("COMMIT");
    a.run("COMMIT");
    rig.wait_settled(&mut walgate, 4);
    assert_eq!(rig.receiver.ids(), [&*b_first, &b_second, &a_first, &a_second]);
    {
        let log = rig.witness.log();
        let start = |id: &str| log.first_rows().find(|row| &*row.id == id).expect("a row").start;
        assert!(start(&a_first) < start(&b_first), "the premise: positions of rows are not in commit order");
    }
    rig.wait_confirmed(&mut walgate, &a_second);
    rig.assert_all();
}

#[test]
fn s26_t4_what_was_rolled_back_is_never_delivered() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    let client = rig.database.client();
    let insert = |n: u32| {
        format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
             VALUES ('order.created', 'k', '{{\"n\": {n}}}')"
        )
    };
    client.run("CREATE TABLE once (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)");
    // Whole.
    client.run(&format!("BEGIN; {}; ROLLBACK", insert(1)));
    // To a savepoint, nested ones too.
    client.run(&format!("BEGIN; {}; SAVEPOINT a; {}; ROLLBACK TO a; {}; COMMIT", insert(2), insert(3), insert(4)));
    let nested = format!("SAVEPOINT a; {}; SAVEPOINT b; {}; RELEASE b; ROLLBACK TO a", insert(6), insert(7));
    client.run(&format!("BEGIN; {}; {nested}; {}; COMMIT", insert(5), insert(8)));
    // A COMMIT that fails.
    let failed = format!("BEGIN; {}; INSERT INTO once VALUES (1), (1); COMMIT", insert(9));
    assert!(client.try_run(&failed).is_err());
    let _ = client.try_run("ROLLBACK");
    // Many rows, so that decoding spills them before it knows.
    let many = "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
                SELECT 'order.created', 'k', '{\"n\": 10}' FROM generate_series(1, 5000)";
    client.run(&format!("BEGIN; SAVEPOINT a; {many}; ROLLBACK TO a; {}; COMMIT", insert(11)));
    // S27: prepared transactions.
    client.run(&format!("BEGIN; {}; PREPARE TRANSACTION '{}_no'", insert(12), rig.database.name));
    client.run(&format!("ROLLBACK PREPARED '{}_no'", rig.database.name));
    client.run(&format!("BEGIN; {}; PREPARE TRANSACTION '{}_yes'", insert(13), rig.database.name));
    client.run(&insert(14));
    client.run(&format!("COMMIT PREPARED '{}_yes'", rig.database.name));

    rig.wait_settled(&mut walgate, 7);
    let payloads: Vec<String> = rig.receiver.receipts().iter().map(|receipt| receipt.text().to_owned()).collect();
    let expected: Vec<String> = [2, 4, 5, 8, 11, 14, 13].iter().map(|n| format!("{{\"n\": {n}}}")).collect();
    assert_eq!(payloads, expected);
    rig.wait_confirmed(&mut walgate, &rig.receiver.ids()[6]);
    rig.assert_all();
}

#[test]
fn t5_exactly_a_commits_end_is_confirmed_and_a_restart_loses_none() {
    let rig = Rig::new();
    let setup = rig.setup();
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);

    // The smallest case: B's commit record starts exactly where A's ends.
    let (a, b) = (rig.database.client(), rig.database.client());
    let insert = "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('order.created', 'k', '{}')";
    a.run(&format!("BEGIN; {insert}"));
    b.run(&format!("BEGIN; {insert}"));
    rig.receiver.hold();
    a.run("COMMIT");
    b.run("COMMIT");
    walgate.eventually("the first is under way", || rig.receiver.in_flight() == 1);
    let first = rig.receiver.ids().pop().expect("its id");
    let end = rig.witness.commit_end(&first);
    rig.receiver.release(&first);
    walgate.eventually("exactly its commit's end is confirmed", || rig.database.confirmed_flush() == end);
    rig.kill(&mut walgate);
    rig.receiver.release_all();
    let mut walgate = Walgate::run_file(&setup, &file);
    rig.wait_settled(&mut walgate, 2);

    // Many clients at once, killed under way.
    const CLIENTS: usize = 12;
    const EACH: usize = 40;
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let connection = rig.database.client();
            scope.spawn(move || {
                let values = format!("VALUES ('order.created', 'c{client}', '{{}}')");
                let insert = format!("INSERT INTO outbox_events (event_type, aggregate_id, payload) {values}");
                (0..EACH).for_each(|_| drop(connection.run(&insert)));
            });
        }
        walgate.eventually("some are delivered", || rig.receiver.settled_count() > 2 + CLIENTS * EACH / 4);
        rig.kill(&mut walgate);
    });
    let mut walgate = Walgate::run_file(&setup, &file);
    rig.wait_settled(&mut walgate, 2 + CLIENTS * EACH);
    let last = rig.witness.log().commits.iter().map(|commit| commit.end).max().expect("commits");
    walgate.eventually("the last commit is confirmed", || rig.witness.flush() >= last);
    {
        let log = rig.witness.log();
        let ends: std::collections::HashSet<Lsn> = log.commits.iter().map(|commit| commit.end).collect();
        let adjacent = log.commits.iter().filter(|commit| ends.contains(&commit.commit_lsn)).count();
        assert!(adjacent > 0, "the premise: commit records that start at the previous commit's end");
    }
    rig.assert_all();
}

#[test]
fn t6_s35_only_begin_and_commit_say_where_the_stream_is() {
    let rig = Rig::new();
    // As a Relation has it already: rows at positions that are far behind, or far ahead.
    let mut far = false;
    rig.witness.edit(move |heard, message| {
        if let Heard::Wal { change: Change::Insert { .. } | Change::Relation { .. }, .. } = heard {
            far = !far;
            pgwire::set_wal_positions(message, if far { Lsn(u64::MAX / 2) } else { Lsn(1) });
        }
        Vec::new()
    });
    let mut walgate = rig.run();
    rig.receiver.hold();
    let ids: Vec<String> = (0..6).map(|n| rig.insert(&format!("k{n}"))).collect();
    walgate.eventually("all are under way", || rig.receiver.in_flight() == 6);
    rig.receiver.release(&ids[0]);
    let end = rig.witness.commit_end(&ids[0]);
    walgate.eventually("the first is confirmed", || rig.witness.flush() == end);
    rig.witness.inject_keepalive(rig.database.wal_position(), true);
    let asked = rig.witness.log().keepalives.last().expect("the keepalive").tick;
    walgate
        .eventually("the question is answered", || rig.witness.log().statuses.last().is_some_and(|s| s.tick > asked));
    rig.assert_not_passed(&ids[1]);
    rig.receiver.release_all();
    rig.wait_confirmed(&mut walgate, &ids[5]);
    {
        let log = rig.witness.log();
        assert!(log.relations.iter().all(|relation| relation.start == Lsn(0)), "T6: a Relation has WAL position 0/0");
    }
    rig.assert_all();
}

#[test]
fn s34_a_keepalive_is_not_confirmed_while_an_event_is_unsettled() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    let first = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &first);
    rig.receiver.hold();
    let held = rig.insert("a");
    walgate.eventually("it is under way", || rig.receiver.in_flight() == 1);
    rig.database.sql("CREATE TABLE other AS SELECT generate_series(1, 20000) AS x");
    let position = rig.database.wal_position();
    for reply in [false, true] {
        rig.witness.inject_keepalive(position, reply);
    }
    let asked = rig.witness.log().keepalives.last().expect("the keepalive").tick;
    walgate
        .eventually("the question is answered", || rig.witness.log().statuses.last().is_some_and(|s| s.tick > asked));
    // A timed status too.
    watch_for(std::time::Duration::from_millis(1500));
    rig.assert_not_passed(&held);
    rig.receiver.release_all();
    rig.wait_confirmed(&mut walgate, &held);
    rig.assert_all();
}

#[test]
fn s34_a_keepalive_is_not_confirmed_while_a_transaction_is_open() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    let first = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &first);
    // The Commit is kept back: the row is delivered and settled, and its transaction is still open.
    let kept = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = kept.clone();
    rig.witness.edit(move |heard, message| {
        if matches!(heard, Heard::Wal { change: Change::Commit { .. }, .. }) {
            *keep.lock().expect("the Commit") = std::mem::take(message);
        }
        Vec::new()
    });
    let open = rig.insert("a");
    rig.wait_settled(&mut walgate, 2);
    walgate.eventually("the Commit is kept back", || !kept.lock().expect("the Commit").is_empty());
    // WAL without a transaction: PostgreSQL 14 streams those that hold nothing for us too, and none may begin here.
    rig.database.sql("SELECT pg_logical_emit_message(false, 'other', repeat('x', 100000)) FROM generate_series(1, 10)");
    rig.witness.inject_keepalive(rig.database.wal_position(), true);
    let asked = rig.witness.log().keepalives.last().expect("the keepalive").tick;
    walgate
        .eventually("the question is answered", || rig.witness.log().statuses.last().is_some_and(|s| s.tick > asked));
    watch_for(std::time::Duration::from_millis(1500));
    rig.assert_not_passed(&open);

    rig.witness.edit(|_, _| Vec::new());
    rig.witness.inject(rig.witness.newest_connection(), &kept.lock().expect("the Commit"));
    let end = rig.witness.commit_end(&open);
    walgate.eventually("with its Commit it is confirmed", || rig.witness.flush() >= end);
    rig.assert_all();
}
