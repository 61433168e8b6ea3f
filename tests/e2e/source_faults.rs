//! S1, S2, S6, S12 and others: PostgreSQL dies, stops, or lacks what walgate needs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use walgate::control::parking::create_sql;

use crate::rig::Rig;
use crate::support::oracle;
use crate::support::postgres::{PASSWORD, ROLE};
use crate::support::receiver::{Receiver, reply};
use crate::support::wait::{DEADLINE, within};
use crate::support::walgate::{Setup, Walgate};

/// Writes events of one key until told to stop, across the server's deaths. What became of a COMMIT whose answer was
/// lost, the ledger says.
fn write_until(rig: &Rig, key: &str, stop: &AtomicBool) {
    let mut next = 1;
    while !stop.load(Ordering::SeqCst) {
        let Ok(client) = crate::support::sql::Sql::superuser(
            &rig.database.server.sockets(),
            rig.database.server.port(),
            &rig.database.name,
        ) else {
            within(Duration::from_millis(20), || stop.load(Ordering::SeqCst));
            continue;
        };
        let last = format!("SELECT coalesce(max(n), 0) FROM ledger WHERE key = '{key}'");
        if let Ok(rows) = client.try_run(&last) {
            let text = rows.first().and_then(|row| row.first().cloned().flatten()).expect("a number");
            next = text.parse::<u64>().expect("a number") + 1;
        }
        while !stop.load(Ordering::SeqCst) {
            let event = format!(
                "WITH e AS (INSERT INTO outbox_events (event_type, aggregate_id, payload) \
                 VALUES ('order.created', '{key}', '{{\"n\": {next}}}') RETURNING id, payload) \
                 INSERT INTO ledger SELECT id, '{key}', {next}, \
                 encode(sha256(convert_to(payload::text, 'UTF8')), 'hex') FROM e"
            );
            if client.try_run(&event).is_err() {
                break;
            }
            next += 1;
        }
    }
}

#[test]
fn s1_postgresql_is_killed_in_mid_stream() {
    let rig = Rig::alone();
    let mut walgate = rig.run();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for key in ["a", "b", "c"] {
            let (rig, stop) = (&rig, &stop);
            scope.spawn(move || write_until(rig, key, stop));
        }
        for round in 1..=3 {
            walgate.eventually("events arrive", || rig.receiver.settled_count() >= round * 100);
            rig.database.server.kill9();
            rig.database.server.start_again();
        }
        let seen = rig.receiver.settled_count();
        let recovered = within(DEADLINE, || rig.receiver.settled_count() > seen + 50);
        stop.store(true, Ordering::SeqCst);
        assert!(recovered, "no events after PostgreSQL's return; walgate said:\n{}", walgate.said());
    });
    let fresh = rig.insert("fresh");
    walgate.eventually("a fresh event arrives", || rig.receiver.has(&fresh));
    let mut committed = oracle::ledger(&rig.database);
    committed.push(oracle::Committed {
        id: fresh.clone(),
        key: Some("fresh".to_owned()),
        n: 1,
        hash: crate::support::receiver::hash_of(r#"{"total": 1}"#),
    });
    walgate.eventually("all events arrive", || committed.iter().all(|event| rig.receiver.has(&event.id)));
    rig.wait_confirmed(&mut walgate, &fresh);
    oracle::assert_reconciled(&committed, &rig.receiver.receipts());
    rig.assert_wire();
    assert!(!walgate.has_ended(), "it has reconnected by itself");
}

#[test]
fn s2_a_fast_shutdown_ends_though_the_sink_is_down() {
    let rig = Rig::alone();
    rig.receiver.script(|_| reply(503).into());
    let mut walgate = rig.run();
    let pending = rig.insert("a");
    walgate.eventually("it fails", || rig.receiver.receipts_of(&pending).len() >= 2);
    let took = rig.database.server.stop_fast(Duration::from_secs(10));
    assert!(took < Duration::from_secs(10));
    rig.assert_not_passed(&pending);
    rig.database.server.start_again();
    rig.receiver.accept_all();
    rig.wait_settled(&mut walgate, 1);
    let fresh = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &fresh);
    rig.assert_all();
}

#[test]
fn s2_a_fast_shutdown_ends_though_the_window_is_full() {
    let rig = Rig::alone();
    rig.receiver.script(|_| reply(503).into());
    let mut walgate = Walgate::run(&rig.setup().more("limits: { inflight: 64KiB }"));
    // 60 MB: the window and the four socket buffers on the way (up to 20 MB on Linux) hold far less, so nobody reads
    // the stream any more.
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'k' || i % 50, jsonb_build_object('n', i, 'pad', repeat('x', 20000)) \
         FROM generate_series(1, 3000) i",
    );
    walgate.eventually("attempts fail", || rig.receiver.requests() > 20);
    let last = rig.insert("last");
    let stands_still = || {
        let seen = rig.witness.log().rows.len();
        crate::support::wait::watch_for(Duration::from_millis(300));
        seen == rig.witness.log().rows.len()
    };
    walgate.eventually("the stream stands still", stands_still);
    assert!(rig.witness.log().first_sent(&last).is_none(), "the premise: the window is full");
    let took = rig.database.server.stop_fast(Duration::from_secs(10));
    assert!(took < Duration::from_secs(10));
    rig.database.server.start_again();
    rig.receiver.accept_all();
    rig.wait_settled(&mut walgate, 3001);
    rig.wait_confirmed(&mut walgate, &last);
    rig.assert_all();
}

#[test]
fn s6_a_missing_slot_is_refused_with_the_sql_that_makes_it() {
    let rig = Rig::new();
    rig.database.sql(&format!("SELECT pg_drop_replication_slot('{}')", rig.database.slot));
    let ended = rig.run().wait_for_end(DEADLINE);
    let sql = format!("pg_create_logical_replication_slot('{}', 'pgoutput')", rig.database.slot);
    ended.expect(3, &[&rig.database.slot, &sql]);
    let slots = format!("SELECT count(*) FROM pg_replication_slots WHERE database = '{}'", rig.database.name);
    assert_eq!(rig.database.value(&slots), "0", "walgate makes no slot by itself");
}

/// A gateway with walgate's own tables has delivered something, and has ended in order.
fn had_a_gateway() -> Rig {
    let rig = Rig::new();
    create_sql(ROLE).iter().for_each(|statement| drop(rig.database.sql(statement)));
    let mut walgate = rig.run();
    let first = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &first);
    walgate.terminate();
    walgate.wait_for_end(DEADLINE).expect(0, &[]);
    rig
}

/// It is refused, by `check` too, until somebody accepts the gap; then what is committed from then on is delivered.
fn assert_gap(rig: &Rig, lost: &[String], says: &[&str]) {
    let mut says = says.to_vec();
    says.extend([rig.database.slot.as_str(), "--accept-gap"]);
    rig.run().wait_for_end(DEADLINE).expect(3, &says);
    Walgate::command(&rig.setup(), &["check", "--connect", "--config", "{config}"]).expect(3, &says);

    let mut walgate = Walgate::run_with(&rig.setup(), &["--accept-gap"]);
    let fresh = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &fresh);
    assert!(lost.iter().all(|id| !rig.receiver.has(id)), "what was left out is left out");
    walgate.terminate();
    walgate.wait_for_end(DEADLINE).expect(0, &[]);
    // It is gone over once.
    let mut walgate = rig.run();
    let fresh = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &fresh);
}

#[test]
fn s7_a_slot_that_was_made_again_is_refused_with_the_gap() {
    let rig = had_a_gateway();
    let slot = &rig.database.slot;
    rig.database.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    let lost = vec![rig.insert("a"), rig.insert("b")];
    rig.database.create_slot();
    assert_gap(&rig, &lost, &["made again by somebody else"]);
}

#[test]
fn s8_a_slot_that_was_advanced_is_refused_with_the_gap() {
    let rig = had_a_gateway();
    let lost = vec![rig.insert("a"), rig.insert("b")];
    let slot = &rig.database.slot;
    rig.database.sql(&format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"));
    assert_gap(&rig, &lost, &["was advanced"]);
}

/// The database was restored into another cluster, with walgate's own tables.
#[test]
fn s40_a_row_of_another_cluster_is_refused() {
    let rig = had_a_gateway();
    rig.database.sql("UPDATE walgate.gateway SET system_id = '7000000000000000001'");
    assert_gap(&rig, &[], &["another PostgreSQL cluster", "7000000000000000001"]);
}

#[test]
fn s12_a_missing_publication_is_refused_with_the_sql_that_makes_it() {
    let rig = Rig::new();
    rig.database.sql(&format!("DROP PUBLICATION {}", rig.database.publication));
    let ended = rig.run().wait_for_end(DEADLINE);
    ended.expect(3, &[&rig.database.publication, "CREATE PUBLICATION", "outbox_events"]);
}

#[test]
fn s12_a_publication_without_the_outbox_is_refused_with_the_sql_that_adds_it() {
    let rig = Rig::new();
    rig.database.sql(&format!("ALTER PUBLICATION {} DROP TABLE outbox_events", rig.database.publication));
    let ended = rig.run().wait_for_end(DEADLINE);
    ended.expect(3, &[&rig.database.publication, "ALTER PUBLICATION", "ADD TABLE", "outbox_events"]);
}

#[test]
fn s15_a_publication_without_inserts_is_refused() {
    let rig = Rig::new();
    rig.database.sql(&format!("ALTER PUBLICATION {} SET (publish = 'update')", rig.database.publication));
    let ended = rig.run().wait_for_end(DEADLINE);
    ended.expect(3, &[&rig.database.publication, "insert"]);
}

#[test]
fn a_refused_password_and_an_absent_server_are_named() {
    let rig = Rig::new();
    let source = rig.database.source(rig.database.server.port());
    let wrong = rig.setup().source(source.replace(PASSWORD, "wrong-canary-7781"));
    let ended = Walgate::command(&wrong, &["check", "--connect", "--config", "{config}"]);
    ended.expect(3, &[ROLE]);
    assert!(!ended.output().contains("wrong-canary-7781"), "{}", ended.output());

    let port = crate::support::wait::free_port();
    let nobody = rig.setup().source(rig.database.source(port));
    let ended = Walgate::command(&nobody, &["check", "--connect", "--config", "{config}"]);
    ended.expect(3, &["127.0.0.1", &port.to_string()]);
    assert!(!ended.output().contains(PASSWORD), "{}", ended.output());
}

#[test]
fn s5_a_second_walgate_on_a_slot_does_not_disturb_the_first() {
    let rig = Rig::new();
    let mut first = rig.run();
    let one = rig.insert("a");
    rig.wait_confirmed(&mut first, &one);
    let walsender = rig.database.server.walsender_of(&rig.database.slot).expect("a walsender");
    let receiver = Receiver::start();
    let setup = Setup::of(&rig.database).keyed().webhook("hook", &receiver).route("**", "hook");
    let mut second = Walgate::run(&setup);
    // It waits or it ends: either way it says who holds the slot.
    let named = within(DEADLINE, || second.stderr().contains(&walsender.to_string()) || second.has_ended());
    assert!(named && second.stderr().contains(&walsender.to_string()), "{}", second.said());
    let two = rig.insert("a");
    rig.wait_confirmed(&mut first, &two);
    assert_eq!(rig.database.server.walsender_of(&rig.database.slot), Some(walsender));
    assert_eq!(receiver.count(), 0);
    second.kill9();
    rig.assert_all();
}

#[test]
fn a_cut_link_to_postgresql_is_mended() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    for round in 0..4 {
        let id = rig.insert("a");
        walgate.eventually("it arrives", || rig.receiver.has(&id));
        if round % 2 == 0 { rig.witness.cut() } else { rig.witness.reset() }
    }
    let last = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &last);
    rig.assert_all();
    assert!(rig.witness.log().starts.len() >= 2, "it has reconnected");
}
