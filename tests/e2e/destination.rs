//! Dead letters that another sink gets (`delivery.dead_letter_to`): they arrive there, and are settled by it alone.

use std::time::Duration;

use crate::parking::{Pair, with_tables};
use crate::reload::hup;
use crate::support::database::Database;
use crate::support::http_get;
use crate::support::lsn::Lsn;
use crate::support::postgres::Postgres;
use crate::support::receiver::{Receiver, ok, reply};
use crate::support::wait::{DEADLINE, watch_for, within};
use crate::support::walgate::{Setup, Walgate};

const QUICK: &str = "timeout: 30s, retry: { initial: 20ms, max: 300ms, connection_max: 200ms }, park_after: 1s";

/// The first sink of the pair gives its dead letters to `bin`, which is the receiver that is well.
fn pair_on(database: Database) -> Pair {
    let pair = Pair { database, well: Receiver::start(), sick: Receiver::start() };
    // Whatever has `bad` in its id.
    pair.sick.script(|request| match request.id.contains("bad") {
        true => reply(422).body("no such\ncustomer").into(),
        false => ok(),
    });
    pair
}

fn with() -> Pair {
    pair_on(with_tables(Postgres::shared().database().with_keyed_outbox()))
}

/// Without walgate's own tables.
fn without() -> Pair {
    pair_on(Postgres::shared().database().with_keyed_outbox())
}

fn setup(pair: &Pair, delivery: &str) -> Setup {
    Setup::of(&pair.database)
        .keyed()
        .webhook_at("bin", &pair.well.url(), QUICK)
        .webhook_at("sick", &pair.sick.url(), &format!("{QUICK}, dead_letter_to: bin{delivery}"))
        .route("**", "sick")
}

fn id_of(number: u32, bad: bool) -> String {
    format!("00000000-0000-4000-8000-{}{number:09}", if bad { "bad" } else { "900" })
}

/// Inserts an event that the first sink rejects, or not; its id, and a place behind its commit.
fn insert(pair: &Pair, number: u32, key: &str, bad: bool) -> (String, Lsn) {
    let id = id_of(number, bad);
    pair.database.sql(&format!(
        "INSERT INTO outbox_events (id, event_type, aggregate_id, payload, headers) VALUES \
         ('{id}', 'order.created', '{key}', '{{\"i\": {number}}}', '{{\"tenant\": \"acme\"}}')"
    ));
    (id, pair.database.wal_position())
}

fn rows(pair: &Pair, of: &str) -> String {
    pair.database.value(&format!("SELECT count(*) FROM walgate.parked WHERE sink = '{of}'"))
}

fn unsettled(setup: &Setup) -> Option<u64> {
    let (_, page) = http_get::get(setup.admin_port(), "/status")?;
    let status: serde_json::Value = serde_json::from_str(&page).ok()?;
    status["sinks"].as_array()?.iter().map(|sink| sink["unsettled"].as_u64()).sum()
}

#[test]
fn x18_a_dead_letter_is_settled_by_the_sink_that_gets_it_and_its_key_goes_on_at_once() {
    let pair = without();
    pair.well.hold();
    let setup = setup(&pair, "");
    let mut walgate = Walgate::run(&setup);
    let (bad, at) = insert(&pair, 1, "k", true);
    let (good, _) = insert(&pair, 2, "k", false);
    walgate.eventually("its key goes on", || pair.sick.settled(&good).is_some());
    walgate.eventually("the other sink is asked", || pair.well.has(&bad));
    pair.database.sql("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 100000))");
    watch_for(Duration::from_secs(2));
    assert!(pair.database.confirmed_flush() < at, "confirmed before it was acknowledged");
    assert_eq!(unsettled(&setup), Some(1));
    let receipt = pair.well.receipts_of(&bad).remove(0);
    assert_eq!(receipt.text(), "{\"i\": 1}");
    let headers = ["tenant", "dead-letter-sink", "dead-letter-reason", "dead-letter-attempts", "dead-letter-message"]
        .map(|name| receipt.header(&format!("walgate-header-{name}")).unwrap_or("none").to_owned());
    assert_eq!(headers[..4], ["acme", "sick", "refused", "1"], "{headers:?}");
    assert!(headers[4].contains("no such") && headers[4].contains("customer"), "{headers:?}");
    walgate.wait_log(&["event is a dead letter", "goes to the sink of dead_letter_to", &bad, "\"to\":\"bin\""]);
    assert_eq!(
        walgate.metric("walgate_dead_letters_total", &["sink=\"sick\"", "reason=\"refused\""]),
        Some(1.0),
        "{}",
        walgate.said()
    );
    assert!(!walgate.stderr().contains("no route uses sink"), "it has its use: {}", walgate.said());
    pair.well.release_all();
    pair.wait_confirmed(&mut walgate);
    assert_eq!((pair.well.count(), unsettled(&setup)), (1, Some(0)));
    walgate.terminate();
    assert_eq!(walgate.wait_for_end(DEADLINE).code, Some(0));
}

#[test]
fn x18_what_is_given_up_after_its_attempts_goes_there_without_tables_and_without_its_payload_where_that_is_omitted() {
    let pair = without();
    pair.sick.script(|_| reply(503).body("quoted canary").into());
    let omit = "dead_letters: { payload: omit }";
    let delivery = QUICK
        .replace("max: 300ms", "max: 300ms, max_attempts: 2")
        .replace(", park_after", ", dead_letter_to: bin, on_reject: dead_letter, park_after");
    let setup = Setup::of(&pair.database)
        .keyed()
        .webhook_at("bin", &pair.well.url(), QUICK)
        .webhook_at("sick", &pair.sick.url(), &delivery)
        .route("**", "sick")
        .more(omit);
    let mut walgate = Walgate::run(&setup);
    let (id, _) = insert(&pair, 1, "k", false);
    walgate.eventually("it is there", || pair.well.settled(&id).is_some());
    pair.wait_confirmed(&mut walgate);
    assert_eq!(pair.sick.receipts_of(&id).len(), 2);
    let receipt = pair.well.receipts_of(&id).remove(0);
    assert_eq!(receipt.text(), "");
    assert_eq!(receipt.header("walgate-header-dead-letter-reason"), Some("max_attempts"));
    assert_eq!(receipt.header("walgate-header-dead-letter-attempts"), Some("2"));
    assert!(!format!("{:?}", receipt.headers).contains("canary") && receipt.header("walgate-header-tenant").is_none());
}

#[test]
fn x18_while_the_sink_that_gets_them_is_down_dead_letters_are_held_or_parked_for_it_and_survive_kills() {
    for tables in [false, true] {
        let pair = if tables { with() } else { without() };
        pair.well.go_down();
        let setup = setup(&pair, "");
        let mut walgate = Walgate::run(&setup);
        let (bad, at) = insert(&pair, 1, "k", true);
        let (good, _) = insert(&pair, 2, "k", false);
        walgate.eventually("its key goes on", || pair.sick.settled(&good).is_some());
        if tables {
            walgate.eventually("it is parked for the other", || rows(&pair, "bin") == "1");
            pair.wait_confirmed(&mut walgate);
        } else {
            pair.database.sql("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 100000))");
            watch_for(Duration::from_secs(2));
            assert!(pair.database.confirmed_flush() < at, "confirmed, and nobody has it");
        }
        walgate.kill9();
        let mut walgate = Walgate::run(&setup);
        watch_for(Duration::from_millis(500));
        pair.well.come_back();
        walgate.eventually("it is there", || pair.well.settled(&bad).is_some());
        pair.wait_confirmed(&mut walgate);
        if tables {
            walgate.eventually("nothing is parked", || rows(&pair, "bin") == "0");
            assert_eq!(pair.dead(), 0, "nothing is in the table of dead letters");
            assert_eq!(pair.sick.receipts_of(&bad).len(), 1, "what is parked does not come again");
        }
    }
}

#[test]
fn x18_a_parked_delivery_stays_in_its_table_until_the_sink_that_gets_it_has_it() {
    let pair = with();
    pair.sick.go_down();
    pair.well.hold();
    let setup = setup(&pair, "");
    let mut walgate = Walgate::run(&setup);
    let mut bad = Vec::new();
    for number in 0..40 {
        let key = format!("k{}", number % 7);
        let (id, _) = insert(&pair, number, &key, number % 10 == 3);
        bad.extend((number % 10 == 3).then_some(id));
    }
    walgate.eventually("everything is parked", || rows(&pair, "sick") == "40");
    pair.wait_confirmed(&mut walgate);
    pair.sick.come_back();
    walgate.eventually("the others have arrived", || pair.sick.settled_count() >= 36);
    walgate.eventually("the dead letters are with the other", || bad.iter().all(|id| pair.well.has(id)));
    walgate.eventually("their rows stay, and no other", || rows(&pair, "sick") == "4");
    watch_for(Duration::from_secs(1));
    assert_eq!(
        (rows(&pair, "sick").as_str(), pair.sick.receipts_of(&bad[0]).len()),
        ("4", 1),
        "and are not sent again"
    );
    walgate.kill9();
    pair.well.wait_until_deserted();
    let mut walgate = Walgate::run(&setup);
    walgate.eventually("they are rejected again", || bad.iter().all(|id| pair.sick.receipts_of(id).len() == 2));
    pair.well.release_all();
    walgate.eventually("they are settled", || bad.iter().all(|id| pair.well.settled(id).is_some()));
    walgate.eventually("no row is left", || rows(&pair, "sick") == "0" && rows(&pair, "bin") == "0");
    assert_eq!((pair.dead(), pair.well.distinct()), (0, 4));
    let (good, _) = insert(&pair, 90, "k3", false);
    walgate.eventually("live events go on", || pair.sick.settled(&good).is_some());
    pair.wait_confirmed(&mut walgate);
}

#[test]
fn x18_a_reload_begins_it_and_changes_the_sink_that_gets_them() {
    let pair = with();
    let plain = Setup::of(&pair.database)
        .keyed()
        .webhook_at("bin", &pair.well.url(), QUICK)
        .webhook_at("sick", &pair.sick.url(), QUICK)
        .route("**", "sick");
    let file = plain.write();
    let mut walgate = Walgate::run_file(&plain, &file);
    insert(&pair, 1, "k", true);
    walgate.eventually("it is in the table", || pair.dead() == 1);
    let handing = with_destination(&plain.yaml());
    let line = hup(&mut walgate, &file, &handing);
    assert!(line.contains("reloaded") && line.contains("made anew: sick"), "{line}");
    let (second, _) = insert(&pair, 2, "k", true);
    walgate.eventually("the other has it", || pair.well.settled(&second).is_some());
    // The one that gets them is down, owes one, and is elsewhere from then on.
    pair.well.go_down();
    let (third, _) = insert(&pair, 3, "k", true);
    let (good, _) = insert(&pair, 4, "k", false);
    walgate.eventually("its key goes on", || pair.sick.settled(&good).is_some());
    let elsewhere = Receiver::start();
    let line = hup(&mut walgate, &file, &handing.replace(&pair.well.url(), &elsewhere.url()));
    assert!(line.contains("reloaded") && line.contains("made anew: bin, sick"), "{line}");
    walgate.eventually("the new place has it", || elsewhere.settled(&third).is_some());
    let (fifth, _) = insert(&pair, 5, "k", true);
    walgate.eventually("and what comes later", || elsewhere.settled(&fifth).is_some());
    // It cannot go while somebody names it.
    let gone: String =
        handing.lines().filter(|line| !line.trim_start().starts_with("bin:")).map(|line| format!("{line}\n")).collect();
    let line = hup(&mut walgate, &file, &gone);
    assert!(line.contains("not reloaded") && line.contains("there is no sink `bin`"), "{line}");
    pair.wait_confirmed(&mut walgate);
    assert_eq!(pair.dead(), 1);
}

/// The same with `dead_letter_to: bin` at the sink `sick`.
fn with_destination(yaml: &str) -> String {
    let line = |line: &str| match line.trim_start().starts_with("sick:") {
        true => line.replace("park_after: 1s", "park_after: 1s, dead_letter_to: bin") + "\n",
        false => format!("{line}\n"),
    };
    yaml.lines().map(line).collect()
}

/// Killed when the one lane gives a dead letter to the other: what came from the stream, and what was parked.
#[cfg(debug_assertions)]
#[test]
fn x18_killed_while_a_dead_letter_is_given_to_the_other_sink_it_comes_again() {
    let pair = with();
    for (number, point) in (0..).step_by(10).zip(["hand_over.before:1", "hand_over.after:1", "settle.before:2"]) {
        for parked in [false, true] {
            let number = number + u32::from(parked);
            let setup = setup(&pair, "");
            let killed = setup.clone().env("WALGATE_FAILPOINT", point);
            if parked {
                pair.sick.go_down();
                let mut walgate = Walgate::run(&setup);
                insert(&pair, number, "k", true);
                insert(&pair, number + 5, "k", false);
                walgate.eventually("both are parked", || rows(&pair, "sick") == "2");
                walgate.kill9();
                pair.sick.come_back();
            }
            let mut walgate = Walgate::run(&killed);
            if !parked {
                insert(&pair, number, "k", true);
                insert(&pair, number + 5, "k", false);
            }
            // A parked one is settled without the checkpoint.
            if !(parked && point.starts_with("settle")) {
                let at = format!("it kills itself at {point}, parked: {parked}");
                assert!(within(DEADLINE, || walgate.has_ended()), "{at}: {}", walgate.said());
                assert_eq!(walgate.killed_by(), Some(9), "{at}");
            }
            drop(walgate);
            let mut walgate = Walgate::run(&setup);
            let (bad, good) = (id_of(number, true), id_of(number + 5, false));
            let done = || pair.well.settled(&bad).is_some() && pair.sick.settled(&good).is_some();
            walgate.eventually(&format!("both have arrived, {point}, parked: {parked}"), done);
            walgate.eventually("no row is left", || rows(&pair, "sick") == "0" && rows(&pair, "bin") == "0");
            pair.wait_confirmed(&mut walgate);
            walgate.kill9();
        }
    }
    assert_eq!(pair.dead(), 0);
}
