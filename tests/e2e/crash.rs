//! P1 and P2: walgate is killed, twenty times, with deliveries under way; and it is asked to stop.

use std::time::{Duration, Instant};

use crate::rig::Rig;
use crate::support::database::Database;
use crate::support::lsn::Lsn;
use crate::support::oracle::{self, Committed};
use crate::support::postgres::{Options, Postgres};
use crate::support::proxy::Proxy;
use crate::support::receiver::Receiver;
use crate::support::wait::{DEADLINE, eventually, within};
use crate::support::walgate::{Setup, Walgate};
use crate::support::witness::PgWitness;

const EVENTS: usize = 100_000;
const WRITERS: usize = 4;
const KILLS: usize = 20;
/// Of 60 consecutive events of a writer 48 have a key, each another; 12 have none.
const CYCLE: usize = 60;
const KEYED: usize = 48;

/// The rows `from..to` of a writer, in the outbox and in the ledger, in one statement.
fn rows(writer: usize, from: usize, to: usize) -> String {
    format!(
        "WITH e AS (INSERT INTO outbox_events (event_type, aggregate_id, payload) \
           SELECT CASE WHEN i % 20 = 7 THEN 'order.audited' ELSE 'order.created' END, \
             CASE WHEN i % {CYCLE} < {KEYED} THEN 'w{writer}-' || i % {CYCLE} END, \
             jsonb_build_object('i', i, 'pad', md5(i::text)) FROM generate_series({from}, {to} - 1) i \
           RETURNING id, aggregate_id, payload) \
         INSERT INTO ledger SELECT id, aggregate_id, (payload->>'i')::int / {CYCLE} + 1, \
           encode(sha256(convert_to(payload::text, 'UTF8')), 'hex') FROM e"
    )
}

/// Rows that are rolled back, and so must never arrive.
fn ghosts(writer: usize) -> String {
    format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'w{writer}-' || i % {KEYED}, '{{\"ghost\": true}}' FROM generate_series(1, 5) i"
    )
}

/// Transactions of 1 to 20 rows; of twenty, three are followed by a rollback and two hold a savepoint's.
fn write(database: &Database, writer: usize, receiver: &Receiver) {
    let client = database.client();
    let (mut at, mut round) = (0, writer);
    while at < EVENTS / WRITERS {
        let to = (at + 1 + round * 7 % 20).min(EVENTS / WRITERS);
        let good = rows(writer, at, to);
        match round % 20 {
            3 | 9 | 15 => drop(client.run(&format!("BEGIN; {}; ROLLBACK; {good}", ghosts(writer)))),
            6 | 12 => {
                drop(client.run(&format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s; {good}; COMMIT", ghosts(writer))));
            }
            _ => drop(client.run(&good)),
        }
        (at, round) = (to, round + 1);
        // Not too far ahead, so that kills land while transactions are being written.
        if !within(DEADLINE, || at * WRITERS < receiver.distinct() + 20_000) {
            return;
        }
    }
}

/// The events that go to the second sink, numbered anew within their keys.
fn audited(database: &Database) -> Vec<Committed> {
    let place = "CASE WHEN key IS NULL THEN 0 ELSE row_number() OVER (PARTITION BY key ORDER BY n) END";
    let rows = database.sql(&format!(
        "SELECT l.id, l.key, {place}, l.hash FROM ledger l JOIN outbox_events o USING (id) \
         WHERE o.event_type = 'order.audited'"
    ));
    let events = rows.into_iter().map(|row| {
        let [id, key, n, hash] = <[Option<String>; 4]>::try_from(row).expect("four columns");
        let n = n.expect("a number").parse().expect("a number");
        Committed { id: id.expect("an id"), key, n, hash: hash.expect("a hash") }
    });
    events.collect()
}

#[test]
fn p1_twenty_kills_with_deliveries_under_way_lose_nothing_of_100_000_events() {
    let begin = Instant::now();
    let server = Postgres::start(Options::default());
    let database = server.database().with_keyed_outbox();
    let confirmed_before = database.confirmed_flush();
    let witness = PgWitness::on(server.port());
    let (main, audit) = (Receiver::lean(), Receiver::lean());
    let link = Proxy::to(main.port());
    let delivery = "concurrency: 16, timeout: 5s, retry: { initial: 20ms, max: 500ms, connection_max: 200ms }";
    let setup = Setup::through(&database, witness.port())
        .keyed()
        .webhook_at("main", &format!("http://127.0.0.1:{}/hook", link.port()), delivery)
        .webhook("audit", &audit)
        .route("order.**", "main")
        .route("order.audited", "audit");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let mut repeats_by_kill = Vec::new();

    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (database, main) = (&database, &main);
            scope.spawn(move || write(database, writer, main));
        }
        for kill in 1..=KILLS {
            // Not twice at the same place of the work: progress lies between any two kills.
            let goal = EVENTS * kill / (KILLS + 1);
            walgate.eventually(&format!("{goal} different events arrive"), || main.distinct() >= goal);
            if kill % 2 == 0 {
                // Read, and not answered.
                main.hold();
                walgate.eventually("a delivery is unacknowledged", || main.in_flight() > 0);
            } else {
                // Done, and the answer is lost on the way.
                let before = link.dropped_bytes();
                link.drop_replies(true);
                walgate.eventually("an acknowledgement is lost", || link.dropped_bytes() > before);
            }
            walgate.kill9();
            repeats_by_kill.push(main.count() - main.distinct());
            link.drop_replies(false);
            link.cut();
            // Nothing of the dead one is still on its way: else it would seem to overtake.
            main.wait_until_deserted();
            audit.wait_until_deserted();
            witness.note_kill(database.confirmed_when_released());
            main.release_all();
            eventually(DEADLINE, "no answer is owed to the dead one", || main.in_flight() == 0);
            walgate = Walgate::run_file(&setup, &file);
        }
    });
    let to_audit = audited(&database);
    walgate.eventually("everything arrives", || main.distinct() >= EVENTS && audit.distinct() >= to_audit.len());
    let last: Lsn = witness.log().commits.iter().map(|commit| commit.end).max().expect("commits");
    walgate.eventually("everything is confirmed", || witness.flush() >= last);
    walgate.terminate();
    let ended = walgate.wait_for_end(DEADLINE);
    assert_eq!(ended.code, Some(0), "{}", ended.output());

    let committed = oracle::ledger(&database);
    assert_eq!(committed.len(), EVENTS);
    let repeats = oracle::assert_reconciled(&committed, &main.receipts());
    let audit_repeats = oracle::assert_reconciled(&to_audit, &audit.receipts());
    assert!(main.bad_signatures().is_empty() && audit.bad_signatures().is_empty());
    let is_audited: std::collections::HashSet<&str> = to_audit.iter().map(|event| event.id.as_str()).collect();
    let (by_main, by_audit) = (main.all_settled(), audit.all_settled());
    let log = witness.log();
    oracle::assert_wire(&log, confirmed_before, |id| {
        let main = *by_main.get(id)?;
        if is_audited.contains(id) { Some(main.max(*by_audit.get(id)?)) } else { Some(main) }
    });
    let statuses = log.statuses.len();
    eprintln!(
        "P1: {EVENTS} events, {KILLS} kills, {repeats} and {audit_repeats} repeats, {statuses} statuses, {:?}; \
         repeats before each kill: {repeats_by_kill:?}",
        begin.elapsed()
    );
}

#[test]
fn p2_a_terminated_walgate_drains_confirms_and_exits_with_0() {
    // Alone, so that the last confirmed LSN can be compared exactly.
    let rig = Rig::alone();
    let setup = rig.setup();
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let first = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &first);
    rig.receiver.hold();
    let ids: Vec<String> = (0..3).map(|n| rig.insert(&format!("k{n}"))).collect();
    walgate.eventually("three deliveries are under way", || rig.receiver.in_flight() == 3);
    let end = rig.witness.commit_end(&ids[2]);
    walgate.terminate();
    rig.assert_not_passed(&ids[0]);
    within(Duration::from_millis(300), || walgate.has_ended());
    assert!(!walgate.has_ended(), "it waits for what is under way: {}", walgate.said());
    rig.receiver.release_all();
    let ended = walgate.wait_for_end(DEADLINE);
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(rig.receiver.settled_count(), 4);
    assert_eq!(rig.witness.flush(), end, "the final status on the wire");
    eventually(DEADLINE, "PostgreSQL has read it", || rig.database.confirmed_flush() == end);
    let done = rig.witness.log().copy_done.iter().any(|notice| notice.text == "client");
    assert!(done, "the stream was ended with CopyDone");
    assert!(ended.output().contains(&rig.database.slot), "it says that the slot goes on keeping WAL");

    let mut walgate = Walgate::run_file(&setup, &file);
    let fresh = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &fresh);
    assert_eq!(rig.assert_all(), 0, "an orderly stop repeats nothing");
}

#[test]
fn p2_a_terminated_walgate_ends_in_time_though_the_receiver_never_answers() {
    let rig = Rig::new();
    let setup = rig.setup().more("shutdown_timeout: 1s");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    rig.receiver.hold();
    let held = rig.insert("a");
    walgate.eventually("it is under way", || rig.receiver.in_flight() == 1);
    walgate.terminate();
    walgate.wait_for_end(DEADLINE);
    rig.assert_not_passed(&held);
    rig.receiver.wait_until_deserted();
    rig.receiver.release_all();
    let mut walgate = Walgate::run_file(&setup, &file);
    rig.wait_confirmed(&mut walgate, &held);
    rig.assert_all();
}

#[test]
fn p3_a_stopped_walgate_goes_on_where_it_was() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    let first = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &first);
    walgate.signal(rustix::process::Signal::STOP);
    let ids: Vec<String> = (0..20).map(|n| rig.insert(&format!("k{}", n % 3))).collect();
    crate::support::wait::watch_for(Duration::from_millis(700));
    walgate.signal(rustix::process::Signal::CONT);
    rig.wait_confirmed(&mut walgate, &ids[19]);
    rig.assert_all();
}
