//! One dead sink stops nobody: what it is owed is parked in the database, and delivered in order when it is back; what a
//! sink rejects is a dead letter; one event that fails holds its key alone. With kills in the middle of all of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use walgate::control::parking::create_sql;

use crate::support::database::Database;
use crate::support::http_get;
use crate::support::oracle::{self, Committed};
use crate::support::postgres::{Options, Postgres, ROLE};
use crate::support::receiver::{Receiver, ok, reply};
use crate::support::wait::{DEADLINE, watch_for, within};
use crate::support::walgate::{Setup, Walgate};
use crate::workload::Stream;

const QUICK: &str = "timeout: 5s, retry: { initial: 20ms, max: 300ms, connection_max: 200ms }, park_after: 1s";

/// Makes walgate's own tables, as an administrator does.
pub(crate) fn with_tables(database: Database) -> Database {
    let _ = database.connection();
    for statement in create_sql(ROLE) {
        database.sql(&statement);
    }
    database
}

/// Two receivers: one is always well.
pub(crate) struct Pair {
    pub(crate) database: Database,
    pub(crate) well: Receiver,
    pub(crate) sick: Receiver,
}

impl Pair {
    pub(crate) fn new() -> Pair {
        Pair::on(&Postgres::shared())
    }

    fn on(server: &Arc<Postgres>) -> Pair {
        let database = with_tables(server.database().with_keyed_outbox());
        Pair { database, well: Receiver::start(), sick: Receiver::start() }
    }

    pub(crate) fn setup(&self, delivery: &str) -> Setup {
        Setup::of(&self.database)
            .keyed()
            .webhook("well", &self.well)
            .webhook_at("sick", &self.sick.url(), &format!("{QUICK}{delivery}"))
            .route("**", "[well, sick]")
    }

    /// Events of so many keys, one transaction each twenty.
    pub(crate) fn insert(&self, events: usize, keys: usize) {
        for from in (0..events).step_by(20) {
            let to = (from + 20).min(events);
            self.database.sql(&format!(
                "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'order.created', 'k' || i % {keys}, \
                 jsonb_build_object('i', i) FROM generate_series({from}, {to} - 1) i"
            ));
        }
    }

    fn total(&self) -> usize {
        self.database.value("SELECT count(*) FROM outbox_events").parse().unwrap()
    }

    pub(crate) fn parked(&self) -> usize {
        self.database.value("SELECT count(*) FROM walgate.parked WHERE sink = 'sick'").parse().unwrap()
    }

    pub(crate) fn dead(&self) -> usize {
        self.database.value("SELECT count(*) FROM walgate.dead_letters").parse().unwrap()
    }

    /// The slot has confirmed everything that was written until now.
    pub(crate) fn wait_confirmed(&self, walgate: &mut Walgate) {
        let position = self.database.wal_position();
        // The server goes on: less than this is not worth a record.
        self.database.sql("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 100000))");
        walgate.eventually("the slot has confirmed everything", || self.database.confirmed_flush() >= position);
    }

    fn wait_drained(&self, walgate: &mut Walgate) {
        walgate.eventually("the sick sink has everything", || self.sick.settled_count() >= self.total());
        walgate.eventually("the table is empty", || self.parked() == 0);
    }

    /// The outbox in the order of its commits: one writer, so that of its insertion.
    pub(crate) fn committed(&self) -> Vec<Committed> {
        oracle::ledger(&self.database)
    }

    fn sink(&self, setup: &Setup, name: &str) -> serde_json::Value {
        let page = http_get::get(setup.admin_port(), "/status").map(|page| page.1).unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&page).unwrap_or_default();
        status["sinks"].as_array().into_iter().flatten().find(|sink| sink["name"] == name).cloned().unwrap_or_default()
    }

    fn state(&self, setup: &Setup) -> String {
        self.sink(setup, "sick")["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Asks the gateway for something, as the command line does; the answer.
    pub(crate) fn ask(&self, walgate: &mut Walgate, verb: &str, arguments: &str) -> (bool, String) {
        let slot = &self.database.slot;
        let id = self.database.value(&format!(
            "INSERT INTO walgate.requests (slot, verb, sink, arguments) VALUES ('{slot}', '{verb}', 'sick', '{arguments}') \
             RETURNING id"
        ));
        let answer = format!(
            "SELECT failed::text || ' ' || outcome FROM walgate.requests WHERE id = {id} AND done_at IS NOT NULL"
        );
        let mut answered = String::new();
        walgate.eventually(&format!("request {id} is answered"), || {
            let rows = self.database.sql(&answer);
            answered = rows.first().map(|row| row[0].clone().unwrap_or_default()).unwrap_or_default();
            !answered.is_empty()
        });
        let (failed, outcome) = answered.split_once(' ').unwrap();
        (failed == "false", outcome.to_owned())
    }
}

/// Of each key, the receipts never skip forward, and everything is there.
pub(crate) fn assert_order(pair: &Pair, receiver: &Receiver, left_out: &[String]) {
    let rows = pair.database.sql("SELECT id::text, aggregate_id FROM outbox_events ORDER BY (payload->>'i')::int");
    let mut numbers = std::collections::HashMap::new();
    let mut by_key: std::collections::HashMap<String, usize> = Default::default();
    for row in rows {
        let (id, key) = (row[0].clone().unwrap(), row[1].clone().unwrap_or_default());
        if left_out.contains(&id) {
            continue;
        }
        let number = by_key.entry(key.clone()).or_default();
        *number += 1;
        numbers.insert(id, (key, *number));
    }
    let mut reached: std::collections::HashMap<&str, usize> = Default::default();
    let settled = receiver.all_settled();
    for receipt in receiver.receipts().iter().filter(|receipt| settled.contains_key(&receipt.id)) {
        let Some((key, number)) = numbers.get(&receipt.id) else { continue };
        let before = reached.entry(key).or_default();
        assert!(*number <= *before + 1, "event {number} of {key} came when {before} was the last");
        *before = (*before).max(*number);
    }
    for (id, place) in &numbers {
        assert!(settled.contains_key(id), "{id} {place:?} is missing");
    }
}

#[test]
fn g1_a_dead_sink_is_parked_and_the_others_and_the_checkpoint_go_on() {
    let pair = Pair::new();
    let setup = pair.setup("").more("limits: { inflight: 256KiB }");
    let mut walgate = Walgate::run(&setup);
    pair.insert(100, 10);
    walgate.eventually("both have all", || pair.sick.settled_count() == 100 && pair.well.settled_count() == 100);
    pair.sick.go_down();
    pair.insert(4_000, 50);
    walgate.eventually("the other sink has everything", || pair.well.settled_count() == 4_100);
    walgate.eventually("it is parked", || pair.parked() == 4_000);
    pair.wait_confirmed(&mut walgate);
    assert_eq!(pair.state(&setup), "parking");
    assert_eq!(pair.sink(&setup, "sick")["parking"]["rows"], 4_000);
    assert_eq!(walgate.metric("walgate_parked_events", &["sink=\"sick\""]), Some(4_000.0));
    walgate.wait_log(&["parking: what the sink is owed goes to walgate.parked"]);
    pair.sick.come_back();
    pair.wait_drained(&mut walgate);
    // Live traffic follows, through memory.
    pair.insert(200, 10);
    pair.wait_drained(&mut walgate);
    pair.wait_confirmed(&mut walgate);
    walgate.eventually("it is up", || pair.state(&setup) == "up");
    assert_eq!(pair.sick.count(), 4_300, "no repeats");
    for receiver in [&pair.well, &pair.sick] {
        assert_eq!(receiver.bad_signatures(), Vec::<String>::new());
    }
    let peak = walgate.peak_memory_kib();
    assert!(peak < 64 * 1024, "{peak} KiB were resident");
}

#[test]
fn p1_kills_while_a_sink_is_parked_and_drained_lose_nothing_and_keep_the_order() {
    let pair = Pair::on(&Postgres::start(Options::default()));
    let setup = pair.setup("").more("limits: { inflight: 256KiB }");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let (stop, stream) = (AtomicBool::new(false), Stream { name: "p", keys: 40, batch: 20, prepared: false });
    std::thread::scope(|scope| {
        let (pair, stop) = (&pair, &stop);
        scope.spawn(move || {
            let ahead = |at| at < pair.well.settled_count() + 1_000;
            stream.write(&pair.database, 0, |at| {
                !stop.load(Ordering::SeqCst) && within(DEADLINE, || stop.load(Ordering::SeqCst) || ahead(at))
            });
        });
        for round in 1..=10 {
            let before = pair.well.settled_count();
            walgate.eventually("the other sink goes on", || pair.well.settled_count() > before + 400);
            match round % 5 {
                1 => pair.sick.go_down(),
                2 => walgate.eventually("much is parked", || pair.parked() > 200),
                3 => pair.sick.come_back(),
                _ => {}
            }
            walgate.kill9();
            pair.well.wait_until_deserted();
            pair.sick.wait_until_deserted();
            walgate = Walgate::run_file(&setup, &file);
        }
        stop.store(true, Ordering::SeqCst);
    });
    pair.sick.come_back();
    let committed = pair.committed();
    let total = committed.len();
    walgate.eventually("both have all", || pair.sick.settled_count() >= total && pair.well.settled_count() >= total);
    walgate.eventually("the table is empty", || pair.parked() == 0);
    pair.wait_confirmed(&mut walgate);
    for receiver in [&pair.well, &pair.sick] {
        let repeats = oracle::assert_reconciled(&committed, &receiver.receipts());
        eprintln!("parking under kills: {total} events, {repeats} repeats");
    }
}

#[test]
fn g4_a_rejected_event_is_a_dead_letter_and_its_key_goes_on() {
    let pair = Pair::new();
    let mut walgate = Walgate::run(&pair.setup(""));
    let poison: Arc<Mutex<HashSet<String>>> = Arc::default();
    let refused = Arc::clone(&poison);
    pair.sick.script(move |request| match refused.lock().unwrap().contains(request.id) {
        true => reply(422).body("no such customer").into(),
        false => ok(),
    });
    let id = pair.database.value("SELECT gen_random_uuid()");
    poison.lock().unwrap().insert(id.clone());
    let insert = |id: &str, n: usize| {
        pair.database.sql(&format!(
            "INSERT INTO outbox_events (id, event_type, aggregate_id, payload) VALUES ({id}, 'order.created', 'k', '{{\"i\": {n}}}')"
        ));
    };
    insert("gen_random_uuid()", 1);
    insert(&format!("'{id}'"), 2);
    insert("gen_random_uuid()", 3);
    walgate.eventually("its key goes on", || pair.sick.settled_count() == 2);
    walgate.eventually("it is a dead letter", || pair.dead() == 1);
    pair.wait_confirmed(&mut walgate);
    let letter = pair.database.sql(
        "SELECT event_id, sink, reason, attempts, message, event_key, convert_from(payload, 'UTF8'), target::text \
         FROM walgate.dead_letters",
    );
    let letter: Vec<String> = letter[0].iter().map(|value| value.clone().unwrap_or_default()).collect();
    assert_eq!(letter[..4], [id.clone(), "sick".into(), "refused".into(), "1".into()]);
    assert!(letter[4].contains("422") && letter[5] == "k" && letter[6] == r#"{"i": 2}"#, "{letter:?}");
    let dead = walgate.metric("walgate_dead_letters_total", &["sink=\"sick\"", "reason=\"refused\""]);
    assert_eq!(dead, Some(1.0));
    walgate.wait_log(&["event is a dead letter", &id]);

    // The partner has mended it: it is sent again, as an operator wishes.
    poison.lock().unwrap().clear();
    let (done, outcome) = pair.ask(&mut walgate, "retry", &format!("{{\"event_id\": \"{id}\"}}"));
    assert!(done && outcome.contains("1 dead letters"), "{outcome}");
    walgate.eventually("it has arrived", || pair.sick.settled(&id).is_some());
    walgate.eventually("nothing is left of it", || pair.dead() == 0 && pair.parked() == 0);
    let receipts = pair.sick.receipts_of(&id);
    assert_eq!(receipts.len(), 2);
}

#[test]
fn g5_a_dead_letter_that_cannot_be_written_holds_its_key_and_the_checkpoint() {
    let pair = Pair::new();
    let mut walgate = Walgate::run(&pair.setup(""));
    pair.insert(10, 10);
    walgate.eventually("it works", || pair.sick.settled_count() == 10);
    pair.wait_confirmed(&mut walgate);
    pair.database.sql(&format!("REVOKE INSERT ON walgate.dead_letters FROM {ROLE}"));
    let first = pair.database.value("SELECT gen_random_uuid()");
    let poison = first.clone();
    pair.sick.script(move |request| if request.id == poison { reply(400).into() } else { ok() });
    pair.database.sql(&format!(
        "INSERT INTO outbox_events (id, event_type, aggregate_id, payload) VALUES ('{first}', 'order.created', 'k', '{{}}')"
    ));
    let behind = pair.database.insert("order.created", "k", "{\"i\": 101}");
    let other = pair.database.insert("order.created", "other", "{\"i\": 102}");
    walgate.eventually("another key goes on", || pair.sick.settled(&other).is_some());
    walgate.wait_log(&["walgate's own tables cannot be used", "permission denied"]);
    let position = pair.database.wal_position();
    watch_for(Duration::from_secs(1));
    assert!(pair.sick.settled(&behind).is_none(), "the key is held");
    assert!(pair.database.confirmed_flush() < position, "and the checkpoint");
    pair.database.sql(&format!("GRANT INSERT ON walgate.dead_letters TO {ROLE}"));
    walgate.eventually("the key goes on", || pair.sick.settled(&behind).is_some());
    pair.wait_confirmed(&mut walgate);
    assert_eq!(pair.database.value("SELECT event_id FROM walgate.dead_letters"), first);
}

#[test]
fn one_event_that_always_fails_parks_its_key_alone() {
    let pair = Pair::new();
    let setup = pair.setup("");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let sick: Arc<Mutex<Option<String>>> = Arc::default();
    let failing = Arc::clone(&sick);
    pair.sick.script(move |request| match failing.lock().unwrap().as_deref() == Some(request.id) {
        true => reply(500).into(),
        false => ok(),
    });
    let id = pair.database.value("SELECT gen_random_uuid()");
    *sick.lock().unwrap() = Some(id.clone());
    pair.database.sql(&format!(
        "INSERT INTO outbox_events (id, event_type, aggregate_id, payload) VALUES ('{id}', 'order.created', 'bad', '{{\"i\": -2}}')"
    ));
    let behind = pair.database.insert("order.created", "bad", "{\"i\": -1}");
    // The sink takes others all the time.
    let (stop, pairs) = (AtomicBool::new(false), &pair);
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            for n in 0..2_000 {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                pairs.database.insert("order.created", &format!("good-{}", n % 7), &format!("{{\"i\": {n}}}"));
                watch_for(Duration::from_millis(10));
            }
        });
        walgate.eventually("its key is parked", || pairs.parked() >= 2);
        stop.store(true, Ordering::SeqCst);
    });
    pair.wait_confirmed(&mut walgate);
    let total = pair.total();
    walgate.eventually("all others have arrived", || pair.sick.settled_count() == total - 2);
    assert!(pair.sick.settled(&behind).is_none());
    let parking = pair.sink(&setup, "sick")["parking"].clone();
    assert_eq!((parking["keys"].clone(), parking["rows"].clone()), (1.into(), 2.into()));
    let more = pair.database.insert("order.created", "bad", "{\"i\": 3000}");
    walgate.eventually("what comes of the key is parked too", || pair.parked() == 3);
    // A new process knows of it.
    walgate.kill9();
    let mut walgate = Walgate::run_file(&setup, &file);
    let also = pair.database.insert("order.created", "bad", "{\"i\": 3001}");
    walgate.eventually("as before", || pair.parked() == 4);
    pair.wait_confirmed(&mut walgate);
    *sick.lock().unwrap() = None;
    pair.wait_drained(&mut walgate);
    let order: Vec<String> = {
        let settled = pair.sick.all_settled();
        let mut order: Vec<_> = [&id, &behind, &more, &also].map(|id| (settled[id], id.clone())).into_iter().collect();
        order.sort();
        order.into_iter().map(|(_, id)| id).collect()
    };
    assert_eq!(order, [id, behind, more, also]);
    assert_order(&pair, &pair.sick, &[]);
}

/// `limits.run_ahead`: with the log that far beyond the checkpoint, what holds it is parked, long before `park_after`.
#[test]
fn what_holds_the_checkpoint_is_parked_when_too_much_would_be_repeated() {
    let pair = Pair::new();
    let sick = "timeout: 5s, retry: { initial: 20ms, max: 300ms }, park_after: 1h";
    let setup = Setup::of(&pair.database)
        .keyed()
        .webhook("well", &pair.well)
        .webhook_at("sick", &pair.sick.url(), sick)
        .route("**", "[well, sick]")
        .more("limits: { run_ahead: 2MiB }");
    let mut walgate = Walgate::run(&setup);
    let bad = pair.database.insert("order.created", "bad", "{\"i\": -1}");
    let failing = bad.clone();
    pair.sick.script(move |request| if request.id == failing { reply(500).into() } else { ok() });
    walgate.eventually("it fails", || pair.sick.has(&bad));
    for _ in 0..20 {
        pair.database.sql("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 400000))");
        pair.insert(20, 20);
    }
    let total = pair.total();
    walgate.eventually("the others go on", || pair.sick.settled_count() == total - 1);
    assert!(pair.parked() >= 1, "the event that held the checkpoint");
    pair.wait_confirmed(&mut walgate);
    pair.sick.accept_all();
    pair.wait_drained(&mut walgate);
}

#[test]
fn a_parked_key_waits_for_an_operator_who_skips_or_drops() {
    let pair = Pair::new();
    let mut walgate = Walgate::run(&pair.setup(", on_reject: park_key"));
    let id = pair.database.value("SELECT gen_random_uuid()");
    let poison = id.clone();
    pair.sick.script(move |request| if request.id == poison { reply(400).into() } else { ok() });
    pair.database.sql(&format!(
        "INSERT INTO outbox_events (id, event_type, aggregate_id, payload) VALUES ('{id}', 'order.created', 'bad', '{{\"i\": 1}}')"
    ));
    let behind = pair.database.insert("order.created", "bad", "{\"i\": 2}");
    let other = pair.database.insert("order.created", "good", "{\"i\": 3}");
    walgate.eventually("the key is parked", || pair.parked() == 2);
    walgate.eventually("another key goes on", || pair.sick.settled(&other).is_some());
    pair.wait_confirmed(&mut walgate);
    let (done, outcome) = pair.ask(&mut walgate, "skip", "{\"event_id\": \"nobody\"}");
    assert!(!done && outcome.contains("no event nobody"), "{outcome}");
    let (done, outcome) = pair.ask(&mut walgate, "skip", &format!("{{\"event_id\": \"{id}\"}}"));
    assert!(done, "{outcome}");
    walgate.eventually("the key goes on", || pair.sick.settled(&behind).is_some());
    walgate.eventually("nothing is left", || pair.parked() == 0);
    assert!(pair.sick.settled(&id).is_none());
}

#[test]
fn a_paused_sink_is_sent_nothing_over_a_restart_until_it_is_resumed() {
    let pair = Pair::new();
    let setup = pair.setup("");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let (done, outcome) = pair.ask(&mut walgate, "pause", "{}");
    assert!(done, "{outcome}");
    pair.insert(100, 10);
    walgate.eventually("the other sink goes on", || pair.well.settled_count() == 100);
    walgate.eventually("it is parked", || pair.parked() == 100);
    pair.wait_confirmed(&mut walgate);
    assert_eq!((pair.sick.count(), pair.state(&setup).as_str()), (0, "paused"));
    walgate.kill9();
    let mut walgate = Walgate::run_file(&setup, &file);
    walgate.eventually("it is paused still", || pair.state(&setup) == "paused");
    watch_for(Duration::from_millis(500));
    assert_eq!(pair.sick.count(), 0);
    let (done, outcome) = pair.ask(&mut walgate, "resume", "{}");
    assert!(done, "{outcome}");
    pair.wait_drained(&mut walgate);
    assert_order(&pair, &pair.sick, &[]);
}

#[test]
fn attempts_that_have_an_end_come_to_dead_letters() {
    let pair = Pair::new();
    let delivery = "timeout: 5s, retry: { initial: 20ms, max: 50ms, max_attempts: 3 }";
    let setup = Setup::of(&pair.database)
        .keyed()
        .webhook("well", &pair.well)
        .webhook_at("sick", &pair.sick.url(), delivery)
        .route("**", "[well, sick]");
    let mut walgate = Walgate::run(&setup);
    pair.sick.script(|request| if request.attempt <= 3 && request.number <= 3 { reply(503).into() } else { ok() });
    let id = pair.database.insert("order.created", "k", "{\"i\": 1}");
    let behind = pair.database.insert("order.created", "k", "{\"i\": 2}");
    walgate.eventually("its key goes on", || pair.sick.settled(&behind).is_some());
    walgate.eventually("it is a dead letter", || pair.dead() == 1);
    let letter = pair
        .database
        .sql("SELECT event_id, reason, attempts, json_array_length(errors), message FROM walgate.dead_letters");
    let letter: Vec<String> = letter[0].iter().map(|value| value.clone().unwrap_or_default()).collect();
    assert_eq!(letter[..4], [id, "max_attempts".into(), "3".into(), "3".into()]);
    assert!(letter[4].contains("503"), "{letter:?}");
    pair.wait_confirmed(&mut walgate);
}

#[test]
fn events_without_a_route_are_kept_where_that_is_wanted() {
    let pair = Pair::new();
    let setup = Setup::of(&pair.database)
        .keyed()
        .webhook("well", &pair.well)
        .route("order.*", "well")
        .more("unrouted: dead_letter");
    let mut walgate = Walgate::run(&setup);
    let id = pair.database.insert("user.created", "k", "{\"i\": 1}");
    pair.database.sql("INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES (NULL, 'k', '{}')");
    let routed = pair.database.insert("order.created", "k", "{\"i\": 2}");
    walgate.eventually("what has a route goes on", || pair.well.settled(&routed).is_some());
    walgate.eventually("both are kept", || pair.dead() == 2);
    pair.wait_confirmed(&mut walgate);
    let letters = pair
        .database
        .sql("SELECT event_id, sink, reason, convert_from(payload, 'UTF8') FROM walgate.dead_letters ORDER BY id");
    let first: Vec<String> = letters[0].iter().map(|value| value.clone().unwrap_or_default()).collect();
    assert_eq!(first, [id, String::new(), "unrouted".into(), r#"{"i": 1}"#.into()]);
}

#[test]
fn what_needs_the_tables_is_refused_without_them() {
    let database = Postgres::shared().database().with_keyed_outbox();
    let receiver = Receiver::start();
    let setup = Setup::of(&database).keyed().webhook_at("hook", &receiver.url(), "on_outage: park").route("**", "hook");
    let ended = Walgate::run(&setup).wait_for_end(DEADLINE);
    ended.expect(3, &["sink `hook`", "on_outage: park", "walgate init --apply"]);
}
