//! X16: what dead letters hold of events, and for how long.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::parking::Pair;
use crate::reload::hup;
use crate::support::http_get;
use crate::support::receiver::{ok, reply};
use crate::support::wait::{DEADLINE, watch_for};
use crate::support::walgate::{Ended, Setup, Walgate};

/// In payload and headers, and in what the sink says of them.
const CANARY: &str = "canary-pii-77d1";

fn command(setup: &Setup, arguments: &[&str]) -> Ended {
    Walgate::command(setup, &[arguments, &["--config", "{config}"]].concat())
}

fn json_of(setup: &Setup, arguments: &[&str]) -> Value {
    let ended = command(setup, &[arguments, &["--json"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.output()))
}

/// An event with the canary in its payload and headers; its id.
fn insert(pair: &Pair, key: &str) -> String {
    pair.database.value(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) VALUES \
         ('order.created', '{key}', '{{\"name\": \"{CANARY}\"}}', '{{\"x-name\": \"{CANARY}\"}}') RETURNING id"
    ))
}

/// Rows of `walgate.dead_letters` in which the canary is, wherever.
fn letters_with_canary(pair: &Pair) -> String {
    pair.database.value(&format!(
        "SELECT count(*) FROM walgate.dead_letters d WHERE d::text LIKE '%{CANARY}%' \
         OR position('{CANARY}'::bytea IN payload) > 0"
    ))
}

#[test]
fn x16_a_dead_letter_without_its_payload_holds_nothing_of_the_event_and_is_never_sent() {
    let pair = Pair::new();
    let keep = pair.setup("");
    let omit = keep.yaml() + "dead_letters: { payload: omit }\n";
    let keep_text = keep.yaml();
    let setup = Setup::literal(omit.clone());
    let file = setup.write();
    let mut walgate = Walgate::run_file(&keep, &file);
    // The partner quotes what it was sent.
    pair.sick.script(|_| reply(422).body(format!("there is no customer {CANARY}")).into());
    let id = insert(&pair, "k");
    let other = insert(&pair, "k");
    walgate.eventually("both are dead letters", || pair.dead() == 2);
    pair.wait_confirmed(&mut walgate);
    assert_eq!(letters_with_canary(&pair), "0");
    let kept = pair.database.sql(
        "SELECT event_id, event_type, event_key, reason, attempts, payload IS NULL, headers IS NULL, message IS NULL, \
         committed_at IS NOT NULL, route FROM walgate.dead_letters ORDER BY id LIMIT 1",
    );
    let kept: Vec<&str> = kept[0].iter().map(|value| value.as_deref().unwrap_or("NULL")).collect();
    assert_eq!(kept, [&id, "order.created", "k", "refused", "1", "t", "t", "t", "t", "**"]);
    walgate.wait_log(&["event is a dead letter", "without its payload", &id, "\"reason\":\"refused\""]);
    assert!(!format!("{}{}", walgate.stdout(), walgate.stderr()).contains(CANARY), "{}", walgate.said());

    // What an operator sees.
    let number = pair.database.value("SELECT id FROM walgate.dead_letters ORDER BY id LIMIT 1");
    for arguments in [&["dlq", "show", &number][..], &["dlq", "show", &number, "--payload"], &["dlq", "list"]] {
        for json in [&[][..], &["--json"]] {
            let ended = command(&setup, &[arguments, json].concat());
            assert_eq!(ended.code, Some(0), "{}", ended.output());
            assert!(!ended.output().contains(CANARY), "{}", ended.output());
        }
    }
    command(&setup, &["dlq", "show", &number]).expect(
        0,
        &[
            "payload      not kept (dead_letters.payload: omit)",
            "cannot be sent again",
            "the outbox's row with the id",
            &id,
        ],
    );
    command(&setup, &["dlq", "list"]).expect(0, &["refused (no payload)", "2 without payload", "cannot be retried"]);
    let listed = json_of(&setup, &["dlq", "list"]);
    assert_eq!(
        (&listed["groups"][0]["without_payload"], &listed["list"][0]["without_payload"]),
        (&json!(2), &json!(true))
    );

    // It is never sent, whoever asks, and however.
    pair.sick.accept_all();
    let received = pair.sick.count();
    let why = "cannot be attempted again: they were kept without their payload (`dead_letters.payload: omit`)";
    command(&setup, &["dlq", "retry", "--all"]).expect(1, &["2 dead letters of sink `sick`", why, &id, &other]);
    assert_eq!(pair.database.value("SELECT count(*) FROM walgate.requests"), "0", "nothing was asked for");
    let (done, outcome) = pair.ask(&mut walgate, "retry", "{}");
    assert!(!done && outcome.contains(why) && outcome.contains(&id), "{outcome}");

    // Another configuration keeps what comes from then on, and can send that only.
    let line = hup(&mut walgate, &file, &keep_text);
    assert!(line.contains("reloaded") && line.contains("made anew: well, sick"), "{line}");
    pair.sick.script(|_| reply(422).into());
    let whole = insert(&pair, "k");
    walgate.eventually("it is a dead letter", || pair.dead() == 3);
    assert_eq!(letters_with_canary(&pair), "1");
    pair.sick.accept_all();
    command(&setup, &["dlq", "retry", "--all"]).expect(
        1,
        &["1 dead letters of sink `sick` are attempted again; 2 dead letters of sink `sick`", why, &id, &other],
    );
    walgate.eventually("the whole one has arrived", || pair.sick.settled(&whole).is_some());
    assert_eq!(pair.sick.receipts_of(&whole).last().unwrap().text(), format!("{{\"name\": \"{CANARY}\"}}"));
    assert_eq!((pair.sick.count() - received, pair.dead()), (2, 2), "nothing but the whole one was sent");
    // As the text says.
    let copy = pair.database.value(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) \
         SELECT event_type, aggregate_id, payload, headers FROM outbox_events WHERE id = '{id}' RETURNING id"
    ));
    walgate.eventually("the copy has arrived", || pair.sick.settled(&copy).is_some());
    command(&setup, &["dlq", "drop", "--all", "--yes"]).expect(0, &["2 dead letters of sink `sick` are deleted"]);
    assert_eq!(pair.dead(), 0);
}

#[test]
fn x16_what_has_failed_to_its_end_leaves_classes_and_times() {
    let pair = Pair::new();
    let delivery = "timeout: 5s, retry: { initial: 20ms, max: 50ms, max_attempts: 2 }";
    let setup = Setup::of(&pair.database)
        .keyed()
        .webhook_at("sick", &pair.sick.url(), delivery)
        .route("order.*", "sick")
        .more("unrouted: dead_letter\ndead_letters: { payload: omit }");
    let mut walgate = Walgate::run(&setup);
    pair.sick.script(|request| if request.attempt <= 2 { reply(503).body(CANARY).into() } else { ok() });
    insert(&pair, "k");
    pair.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('user.created', 'k', '{{\"a\": \"{CANARY}\"}}')"
    ));
    walgate.eventually("both are dead letters", || pair.dead() == 2);
    assert_eq!(letters_with_canary(&pair), "0");
    let classes = "SELECT string_agg(e->>'kind', ',') || ' ' || bool_and(e->>'at' IS NOT NULL AND e->>'error' IS NULL) \
                   FROM walgate.dead_letters, json_array_elements(errors) e WHERE sink = 'sick'";
    assert_eq!(pair.database.value(classes), "unavailable,unavailable true");
    let number = pair.database.value("SELECT id FROM walgate.dead_letters WHERE sink = 'sick'");
    command(&setup, &["dlq", "show", &number]).expect(0, &["reason       max_attempts", "Z  unavailable"]);
    command(&setup, &["dlq", "retry", "--unrouted"]).expect(1, &["1 dead letters of events without a route cannot"]);
}

/// So many dead letters of a slot that came so long ago.
fn fill(pair: &Pair, slot: &str, rows: u32, age: &str) {
    pair.database.sql(&format!(
        "INSERT INTO walgate.dead_letters (slot, sink, commit_lsn, ordinal, delivery, event_id, event_type, dedup_id, route, \
           target, payload_format, committed_at, bytes, attempts, stored_at) \
         SELECT '{slot}', (ARRAY['sick', 'well', '', 'gone'])[n % 4 + 1], '0/1', n, hashtext('{age}'), n, 't', n, 'r', '{{}}', \
           'json', now(), 100, 1, now() - interval '{age}' FROM generate_series(1, {rows}) n"
    ));
}

fn count(pair: &Pair, condition: &str) -> String {
    pair.database.value(&format!("SELECT count(*) FROM walgate.dead_letters WHERE {condition}"))
}

#[test]
fn x16_dead_letters_that_are_too_old_are_deleted_by_the_gateway_that_has_the_slot() {
    let pair = Pair::new();
    let setup = pair.setup("");
    let slot = pair.database.slot.clone();
    fill(&pair, &slot, 2_500, "3 hours");
    fill(&pair, &slot, 10, "1 minute");
    fill(&pair, "somebody_else", 20, "3 hours");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let id = pair.database.insert("order.created", "k", "{\"i\": 1}");
    walgate.eventually("it works", || pair.sick.settled(&id).is_some());
    // A second one waits for the slot, and would delete everything.
    let standby_setup = pair.setup("").more("dead_letters: { retain: 1s }");
    let mut standby = Walgate::run(&standby_setup);
    let waits = || state(&standby_setup).as_deref() == Some("standby");
    standby.eventually("it stands by", waits);
    watch_for(Duration::from_secs(3));
    assert_eq!(count(&pair, "true"), "2530", "forever is the default, and a standby deletes nothing");
    // Somebody is about to change one of them.
    let busy = pair.database.client();
    busy.run("BEGIN; SELECT id FROM walgate.dead_letters ORDER BY id LIMIT 1 FOR UPDATE");
    let line = hup(&mut walgate, &file, &(setup.yaml() + "dead_letters: { retain: 2h }\n"));
    assert!(line.contains("reloaded") && line.contains("no sink has changed"), "{line}");
    let old = format!("slot = '{slot}' AND stored_at < now() - interval '2 hours'");
    walgate.eventually("all but one are gone", || count(&pair, &old) == "1");
    walgate.wait_log(&["dead letters deleted", "\"rows\":2499", "\"retain\":\"2h\""]);
    assert_eq!(walgate.metric("walgate_dead_letters_expired_total", &[]), Some(2499.0));
    assert_eq!(
        (count(&pair, &format!("slot = '{slot}'")), count(&pair, "slot = 'somebody_else'")),
        ("11".into(), "20".into())
    );
    busy.run("COMMIT");
    // Nobody can use the table meanwhile: that must cost neither the stream nor the session.
    let locked = pair.database.client();
    locked.run("BEGIN; LOCK TABLE walgate.dead_letters");
    hup(&mut walgate, &file, &(setup.yaml() + "dead_letters: { retain: 1h 59m }\n"));
    walgate.wait_log(&["dead letters that are too old stay for now", "lock timeout"]);
    let id = pair.database.insert("order.created", "k", "{\"i\": 2}");
    walgate.eventually("events go on", || pair.sick.settled(&id).is_some());
    locked.run("COMMIT");
    hup(&mut walgate, &file, &(setup.yaml() + "dead_letters: { retain: 1h 58m }\n"));
    walgate.eventually("the last one is gone", || count(&pair, &old) == "0");
    assert!(!walgate.stderr().contains("sql connection lost"), "{}", walgate.said());
    // The standby takes over, and what it was told counts from then on.
    walgate.signal(Signal::KILL);
    standby.eventually("it deletes what is older than a second", || count(&pair, &format!("slot = '{slot}'")) == "0");
    standby.terminate();
    assert_eq!(standby.wait_for_end(DEADLINE).code, Some(0));
}

#[test]
fn x16_a_gateway_that_has_lost_the_slot_deletes_nothing() {
    let pair = Pair::new();
    let slot = pair.database.slot.clone();
    let first_setup = pair.setup("").more("dead_letters: { retain: 1s }");
    let mut first = Walgate::run(&first_setup);
    let id = pair.database.insert("order.created", "k", "{\"i\": 1}");
    first.eventually("it has the slot", || pair.sick.settled(&id).is_some());
    first.signal(Signal::STOP);
    let mut second = Walgate::run(&pair.setup(""));
    let id = pair.database.insert("order.created", "k", "{\"i\": 2}");
    second.eventually("the second has it", || pair.sick.settled(&id).is_some());
    fill(&pair, &slot, 50, "3 hours");
    // It wakes, and does not know yet.
    first.signal(Signal::CONT);
    first.eventually("it stands by", || state(&first_setup).as_deref() == Some("standby"));
    watch_for(Duration::from_secs(3));
    assert_eq!(pair.dead(), 50);
    second.terminate();
    assert_eq!(second.wait_for_end(DEADLINE).code, Some(0));
    first.eventually("it has it again, and keeps nothing", || pair.dead() == 0);
}

/// What the source of a walgate is doing.
fn state(setup: &Setup) -> Option<String> {
    let (_, page) = http_get::get(setup.admin_port(), "/status")?;
    let status: Value = serde_json::from_str(&page).ok()?;
    status["source"]["state"].as_str().map(str::to_owned)
}
