//! Each guard, and what it keeps.

use std::time::Duration;

use super::{Yard, cleanup_status, server};
use crate::support::postgres::PASSWORD;
use crate::support::receiver::{Receiver, reply};
use crate::support::wait::{DEADLINE, eventually, watch_for};
use crate::support::walgate::{Setup, Walgate};

const NOW: &str = "mode: delete, retain: 0s, pause: 10ms";

/// One of two sinks takes nothing: its rows stay, frozen ones too, whatever the other one has.
#[test]
fn rows_that_one_sink_is_owed_stay() {
    let yard = Yard::new();
    let well = Receiver::start();
    let setup = Setup::of(&yard.database)
        .keyed()
        .webhook("well", &well)
        .webhook("hook", &yard.clerk.receiver)
        .sink("nothing: { discard: {} }")
        .route("order.*", "[well, hook]")
        .route("push", "nothing")
        .more(&format!("cleanup: {{ {NOW} }}"));
    let mut walgate = Walgate::run(&setup);
    yard.wait_begun(&mut walgate);
    yard.insert_many(50);
    yard.wait_rows(&mut walgate, 0);
    assert_eq!(walgate.metric("walgate_cleanup_rows_total", &["mode=\"delete\""]), Some(50.0));

    yard.clerk.take(false);
    yard.insert_many(60);
    walgate.eventually("the other sink has them", || well.settled_count() == 110);
    yard.database.sql("VACUUM (FREEZE) outbox_events");
    yard.push_for_a_while();
    assert_eq!(yard.rows(), 60);
    yard.clerk.take(true);
    yard.wait_rows(&mut walgate, 0);
    // Frozen rows that are settled go too.
    let status = cleanup_status(&walgate);
    assert_eq!((&status["mode"], &status["rows"]), (&"delete".into(), &110.into()), "{status}");
    assert!(status["last_round"]["rows"].as_u64().is_some_and(|rows| rows > 0), "{status}");
    yard.assert_clean(&walgate);
}

/// What is not committed cannot be settled: not what is open, not what is prepared, nor what has begun after it.
#[test]
fn rows_of_open_and_of_prepared_transactions_stay_and_are_delivered() {
    let yard = Yard::new();
    let mut walgate = yard.run(NOW);
    yard.insert_many(20);
    yard.wait_rows(&mut walgate, 0);
    let row = "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('order.created', 'open', '{}')";
    let (open, saved) = (yard.database.client(), yard.database.client());
    open.run(&format!("BEGIN; {row}; SAVEPOINT s; {row}; RELEASE s"));
    saved.run(&format!("BEGIN; {row}; PREPARE TRANSACTION 'cleanup_{}'", yard.database.name));
    yard.insert_many(30);
    let after = yard.clerk.receiver.settled_count() + 30;
    walgate.eventually("what has begun later is delivered", || yard.clerk.receiver.settled_count() >= after.min(50));
    yard.let_it_sweep(&mut walgate);
    assert_eq!(yard.rows(), 30, "they are delivered, and no mark says so yet");
    open.run("COMMIT");
    saved.run(&format!("COMMIT PREPARED 'cleanup_{}'", yard.database.name));
    yard.wait_rows(&mut walgate, 0);
    assert_eq!(yard.clerk.receiver.settled_count(), 53);
    yard.assert_clean(&walgate);
}

/// Rows from before the slot were never streamed. Nobody has said what becomes of them, so nothing goes; nor does it when
/// they are updated, and look like younger ones.
#[test]
fn rows_from_before_the_slot_stay_until_somebody_decides() {
    let yard = Yard::new();
    yard.database.sql(&format!("SELECT pg_drop_replication_slot('{}')", yard.database.slot));
    yard.insert_many(7);
    yard.database.create_slot();
    let setup = yard.setup(NOW);
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    walgate.wait_log(&["older than the slot", "at least 7", "walgate cleanup --past-settled"]);
    assert_eq!(cleanup_status(&walgate)["state"], "blocked");
    assert_eq!(walgate.metric("walgate_cleanup_blocked", &[]), Some(1.0));
    yard.insert_many(5);
    walgate.eventually("the new ones are delivered", || yard.clerk.receiver.settled_count() == 5);
    yard.pass_mark(&mut walgate);
    watch_for(Duration::from_secs(2));
    assert_eq!(yard.rows(), 12);
    walgate.kill9();

    // All of them have a new transaction, and a new place.
    yard.database.sql("UPDATE outbox_events SET published = true WHERE id NOT IN (SELECT id FROM acknowledged)");
    let mut walgate = Walgate::run_file(&setup, &file);
    walgate.wait_log(&["older than the slot", "at least 7"]);
    yard.pass_mark(&mut walgate);
    watch_for(Duration::from_secs(2));
    assert_eq!(yard.rows(), 12);

    Walgate::command(&setup, &["cleanup", "--past-settled", "--config", "{config}"]).expect(2, &["--yes"]);
    let said = Walgate::command(&setup, &["cleanup", "--dry-run", "--config", "{config}", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&said.stdout).expect("a report");
    assert_eq!(report["past_settled"], false);
    assert_eq!(report["count"]["rows"], 12);
    // Now they are not owed; the trigger is told so too.
    yard.database.sql("INSERT INTO acknowledged SELECT id FROM outbox_events ON CONFLICT DO NOTHING");
    let said = Walgate::command(&setup, &["cleanup", "--past-settled", "--yes", "--config", "{config}"]);
    said.expect(0, &["not owed to anybody"]);
    yard.wait_rows(&mut walgate, 0);
    assert_eq!(walgate.metric("walgate_cleanup_blocked", &[]), Some(0.0));
    yard.assert_clean(&walgate);
}

/// A table without an age does not tell an updated row from a new one: it has to be empty at the beginning.
#[test]
fn without_an_age_only_an_empty_table_has_no_past() {
    let table = "CREATE TABLE outbox_events (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), event_type TEXT, \
                 aggregate_id TEXT, payload JSONB, headers JSONB)";
    let yard = Yard::with(&server(), table, "");
    yard.insert("a");
    let setup = yard.setup(NOW);
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    walgate.wait_log(&["older than the slot, or may be"]);
    walgate.eventually("it is delivered", || yard.clerk.receiver.settled_count() == 1);
    walgate.kill9();
    yard.database.sql("UPDATE outbox_events SET event_type = 'other'");
    let mut walgate = Walgate::run_file(&setup, &file);
    walgate.wait_log(&["older than the slot, or may be"]);
    walgate.kill9();
    yard.database.sql("DELETE FROM outbox_events");
    let mut walgate = Walgate::run_file(&setup, &file);
    yard.wait_begun(&mut walgate);
    yard.insert_many(300);
    yard.wait_rows(&mut walgate, 0);
    yard.assert_clean(&walgate);
}

/// Too young rows stay, and so do rows without an age.
#[test]
fn rows_stay_for_as_long_as_is_asked() {
    let yard = Yard::new();
    let mut walgate = yard.run("mode: delete, retain: 1h, pause: 10ms");
    yard.insert_many(10);
    let insert = |age: &str| {
        yard.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload, created_at) \
             SELECT 'order.created', 'k' || i, '{{}}', {age} FROM generate_series(1, 20) i"
        ));
    };
    insert("now() - interval '61 minutes'");
    insert("now() - interval '59 minutes'");
    insert("NULL");
    yard.wait_rows(&mut walgate, 50);
    yard.let_it_sweep(&mut walgate);
    assert_eq!(yard.rows(), 50);
    let setup = yard.setup("mode: delete, retain: 1h");
    let said = Walgate::command(&setup, &["cleanup", "--dry-run", "--config", "{config}"]);
    said.expect(0, &["50 rows", "would go      0", "kept          50", "not settled   0"]);
    yard.assert_clean(&walgate);
}

/// The streaming role reads no table; a role of its own cleans up, and need not see walgate's own tables.
#[test]
fn a_role_of_its_own_cleans_up() {
    let yard = Yard::new();
    let database = &yard.database;
    let role = format!("cleaner_{}", database.name);
    database.sql(&format!("REVOKE ALL ON outbox_events FROM walgate; CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'"));
    let url = |database: &str| {
        format!(
            "{NOW}, url: \"postgres://{role}:{PASSWORD}@127.0.0.1:{}/{database}?sslmode=disable\"",
            yard.database.server.port()
        )
    };
    let mut walgate = Walgate::run(&yard.setup(&url(&database.name)));
    let grant = format!("GRANT SELECT, DELETE ON public.outbox_events TO {role};");
    walgate.wait_log(&["may not do what", &grant]);
    let check = Walgate::command(&yard.setup(&url(&database.name)), &["check", "--connect", "--config", "{config}"]);
    check.expect(3, &[&grant]);
    assert_eq!(cleanup_status(&walgate)["state"], "blocked");
    database.sql(&grant);
    yard.wait_begun(&mut walgate);
    yard.insert_many(40);
    yard.wait_rows(&mut walgate, 0);
    yard.assert_clean(&walgate);
    drop(walgate);

    // A table of the same name in another database has other rows.
    let mut walgate = Walgate::run(&yard.setup(&url("postgres")));
    walgate.wait_log(&["leads to database `postgres`"]);
    drop(walgate);
    database.sql(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
}

/// Who does not have the slot cleans nothing up.
#[test]
fn a_standby_removes_nothing_before_it_takes_over() {
    let yard = Yard::new();
    let mut first = Walgate::run(&yard.setup(NOW).called("walgate-0"));
    yard.wait_begun(&mut first);
    let mut second = Walgate::run(&yard.setup(NOW).called("walgate-1"));
    second.eventually("it stands by", || {
        second_state(&yard, "walgate-1-cleanup") == 0 && second_state(&yard, "walgate-0-cleanup") == 1
    });
    yard.insert_many(30);
    yard.wait_rows(&mut first, 0);
    assert_eq!(second.metric("walgate_cleanup_rows_total", &["mode=\"delete\""]), Some(0.0));
    assert_eq!(cleanup_status(&second)["state"], "waiting");
    assert_eq!(second_state(&yard, "walgate-1-cleanup"), 0);
    // The first one holds rows that it has not delivered, and is killed.
    yard.clerk.take(false);
    yard.insert_many(30);
    eventually(DEADLINE, "they are under way", || yard.clerk.receiver.requests() > 35);
    first.kill9();
    eventually(DEADLINE, "it takes over", || second.metric("walgate_streaming", &[]) == Some(1.0));
    yard.push_for_a_while();
    assert_eq!(yard.rows(), 30);
    yard.clerk.take(true);
    yard.wait_rows(&mut second, 0);
    assert_eq!(second.metric("walgate_cleanup_rows_total", &["mode=\"delete\""]), Some(30.0));
    yard.assert_clean(&first);
    yard.assert_clean(&second);
}

fn second_state(yard: &Yard, name: &str) -> usize {
    yard.number(&format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'"))
}

/// What walgate itself has parked is settled: its row may go, and is delivered all the same.
#[test]
fn a_row_that_is_parked_may_go() {
    let yard = Yard::new();
    let setup = Setup::of(&yard.database)
        .keyed()
        .webhook_at(
            "hook",
            &yard.clerk.receiver.url(),
            "timeout: 5s, retry: { initial: 20ms, max: 300ms, connection_max: 200ms }, park_after: 500ms",
        )
        .sink("nothing: { discard: {} }")
        .route("order.*", "hook")
        .route("push", "nothing")
        .more(&format!("cleanup: {{ {NOW} }}"));
    let mut walgate = Walgate::run(&setup);
    yard.wait_begun(&mut walgate);
    yard.clerk.receiver.script(|_| reply(503).into());
    yard.database.sql("DROP TRIGGER only_settled ON outbox_events");
    yard.insert_many(50);
    yard.wait_rows(&mut walgate, 0);
    assert_eq!(yard.number("SELECT count(*) FROM walgate.parked"), 50);
    yard.clerk.receiver.accept_all();
    walgate.eventually("all arrive", || yard.clerk.receiver.settled_count() == 50);
}
