//! What the stream may carry: NULLs, large values, very large transactions, silence, somebody else's traffic.

use std::time::Duration;

use crate::rig::Rig;
use crate::support::oracle;
use crate::support::wait::{eventually, watch_for};
use crate::support::walgate::Walgate;

#[test]
fn s20_nulls_in_payload_key_and_type() {
    let rig = Rig::new();
    let setup = rig.source().webhook("hook", &rig.receiver).route("order.*", "hook");
    let mut walgate = Walgate::run(&setup);
    let insert = |values: &str| {
        rig.database.value(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ({values}) RETURNING id"
        ))
    };
    let no_payload = insert("'order.created', 'k', NULL");
    let no_key = insert("'order.created', NULL, '{}'");
    let no_type = insert("NULL, 'k', '{}'");
    let null_in_json = insert("'order.created', 'k', 'null'");
    let last = insert("'order.created', 'k', '{}'");
    rig.wait_settled(&mut walgate, 4);
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(rig.receiver.receipts_of(&no_payload)[0].text(), "", "no payload is an empty body");
    assert_eq!(rig.receiver.receipts_of(&null_in_json)[0].text(), "null");
    assert!(rig.receiver.has(&no_key));
    assert!(!rig.receiver.has(&no_type), "no type, no route");
    assert!(walgate.metric("walgate_discarded_events_total", &[]).unwrap_or_default() >= 1.0, "and it was counted");
    rig.database.sql(&format!("DELETE FROM outbox_events WHERE id = '{no_type}'"));
    oracle::assert_reconciled(&rig.committed(), &rig.receiver.receipts());
    assert_eq!(rig.receiver.bad_signatures(), Vec::<String>::new());
}

#[test]
fn s21_a_value_of_two_megabytes_arrives_whole() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    let id = rig.database.value(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'order.created', 'k', \
         jsonb_build_object('pad', string_agg(md5(i::text), '')) FROM generate_series(1, 65536) i RETURNING id",
    );
    rig.wait_confirmed(&mut walgate, &id);
    assert!(rig.receiver.receipts_of(&id)[0].body.len() > 2 << 20);
    assert_eq!(rig.assert_all(), 0);
}

#[test]
fn s28_a_transaction_of_200_000_rows_needs_constant_memory() {
    const ROWS: usize = 200_000;
    let rig = Rig::alone();
    let name = &rig.database.name;
    // It spills; and a client that is silent for five seconds is cut.
    rig.database.sql(&format!("ALTER DATABASE {name} SET logical_decoding_work_mem = '64kB'"));
    let setup = rig
        .source()
        .in_source("wal_sender_timeout: 5s")
        .webhook("hook", &rig.receiver)
        .sink("void: { discard: {} }")
        .route("order.*", "hook")
        .route("bulk.row", "void");
    let mut walgate = Walgate::run(&setup);
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    // Slow enough that the transaction lasts for several statuses.
    rig.witness.throttle(6_000_000);
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'bulk.row', 'k' || i % 1000, jsonb_build_object('n', i) FROM generate_series(1, {ROWS}) i"
    ));
    let last = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &last);

    let peak = walgate.peak_memory_kib();
    assert!(peak < 64 * 1024, "{peak} KiB were resident");
    let log = rig.witness.log();
    assert_eq!(log.starts.len(), 1, "it was never cut: {:?}", log.errors);
    let bulk: Vec<_> = log.rows.iter().filter(|row| *row.id != *first && *row.id != *last).collect();
    assert_eq!(bulk.len(), ROWS);
    let (begin, commit_lsn) = (bulk[0].tick, bulk[0].commit_lsn);
    let commit = log.commits.iter().find(|commit| commit.commit_lsn == commit_lsn).expect("its Commit");
    let within = log.statuses.iter().filter(|status| status.tick > begin && status.tick < commit.tick);
    let within: Vec<_> = within.collect();
    assert!(within.len() >= 2, "{} statuses in the middle of the transaction", within.len());
    assert!(within.iter().all(|status| status.flush <= commit_lsn), "confirmed before its Commit");
    let settled = rig.receiver.all_settled();
    // What goes to `discard` settles at once.
    let of = |id: &str| if id == first || id == last { settled.get(id).copied() } else { Some(0) };
    oracle::assert_wire(&log, rig.confirmed_before, of);
    drop(log);
    let counted = walgate.metric("walgate_events_total", &["sink=\"void\""]).unwrap_or_default();
    assert!(counted >= ROWS as f64, "{counted} events were counted for the sink");
}

#[test]
fn s33_an_idle_outbox_on_a_busy_server_does_not_hold_the_wal() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    rig.database.sql("CREATE TABLE other AS SELECT i, repeat('x', 200) FROM generate_series(1, 20000) i");
    let position = rig.database.wal_position();
    walgate.eventually("the slot follows the keepalives", || rig.database.confirmed_flush() >= position);
    rig.assert_all();
}

#[test]
fn s36_a_blocked_sink_does_not_silence_walgate() {
    let rig = Rig::new();
    let setup = rig.setup().in_source("wal_sender_timeout: 2s").more("limits: { inflight: 64KiB }");
    let mut walgate = Walgate::run(&setup);
    rig.receiver.hold();
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'k' || i % 50, jsonb_build_object('n', i, 'pad', repeat('x', 20000)) \
         FROM generate_series(1, 500) i",
    );
    walgate.eventually("deliveries are under way", || rig.receiver.in_flight() > 0);
    // Three times what the server allows.
    watch_for(Duration::from_secs(6));
    {
        let log = rig.witness.log();
        assert_eq!(log.starts.len(), 1, "it was cut: {:?}", log.errors);
        assert!(log.statuses.len() >= 5, "{} statuses", log.statuses.len());
    }
    rig.receiver.release_all();
    rig.wait_settled(&mut walgate, 500);
    rig.assert_wire();
}

#[test]
fn s36_the_timeout_is_ours_unless_the_url_or_the_configuration_leaves_it_to_others() {
    let rig = Rig::new();
    // More than the database's own, so that whoever does not set it is the one that is cut.
    rig.database.sql(&format!("ALTER DATABASE {} SET wal_sender_timeout = '20s'", rig.database.name));
    let in_url = |setup: crate::support::walgate::Setup| {
        let source = rig.database.source(rig.witness.port());
        setup.source(source.replace("?sslmode", "?options=-c%20wal_sender_timeout%3D7s&sslmode"))
    };
    for (setup, timeout) in [
        (rig.setup(), "3s"),
        (rig.setup().in_source("wal_sender_timeout: 11s"), "11s"),
        (rig.setup().in_source("wal_sender_timeout: server"), "20s"),
        (in_url(rig.setup()), "7s"),
    ] {
        let mut walgate = Walgate::run(&setup);
        let line = walgate.wait_log(&["streaming; waiting for the next event"]);
        assert!(line.contains(&format!("\"wal_sender_timeout\":\"{timeout}\"")), "{timeout}: {line}");
        walgate.terminate();
        walgate.wait_for_end(crate::support::wait::DEADLINE);
    }
}

#[test]
fn s18_s19_the_newest_relation_says_what_a_row_holds() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    rig.insert("k");
    // In one transaction with rows before and behind it.
    rig.database.sql(
        "BEGIN; \
         INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('order.created', 'k', '{\"n\": 1}'); \
         ALTER TABLE outbox_events DROP created_at, ADD mood int4range[], ADD kind char(3) DEFAULT 'abc'; \
         INSERT INTO outbox_events (event_type, aggregate_id, payload, mood) \
           VALUES ('order.created', 'k', '{\"n\": 2}', '{\"[1,2)\"}'); \
         COMMIT",
    );
    rig.database.sql("ALTER TABLE outbox_events ALTER payload TYPE text");
    rig.database.insert("order.created", "k", "no json");
    let last = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(rig.assert_all(), 0);
}

#[test]
fn s30_updates_and_deletes_of_the_outbox_are_counted_and_ignored() {
    let rig = Rig::new();
    let publication = &rig.database.publication;
    rig.database.sql(&format!("ALTER PUBLICATION {publication} SET (publish = 'insert, update, delete, truncate')"));
    let mut walgate = rig.run();
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    rig.database.sql("UPDATE outbox_events SET event_type = 'order.changed'");
    rig.database.sql("DELETE FROM outbox_events");
    rig.database.sql("TRUNCATE outbox_events");
    let last = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(rig.receiver.ids(), [id, last]);
    rig.assert_wire();
}

#[test]
fn an_outbox_that_keeps_no_rows_works() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    rig.database.sql(
        "BEGIN; INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('order.created', 'k', '{}'); \
         DELETE FROM outbox_events; COMMIT",
    );
    rig.wait_settled(&mut walgate, 1);
    assert_eq!(rig.database.value("SELECT count(*) FROM outbox_events"), "0");
    eventually(crate::support::wait::DEADLINE, "it is confirmed", || {
        let log = rig.witness.log();
        log.commits.last().is_some_and(|commit| log.flush() >= commit.end)
    });
    rig.assert_wire();
}
