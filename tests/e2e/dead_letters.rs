//! The command line over walgate's own tables: what is in them, and what is asked of a gateway. The tables are filled by
//! hand, and the gateway is played by hand.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ::walgate::control::parking::create_sql;
use serde_json::{Value, json};

use crate::rig::Rig;
use crate::support::postgres::ROLE;
use crate::support::receiver::Receiver;
use crate::support::wait;
use crate::support::walgate::{Ended, Setup, Walgate};

/// What breaks a terminal, or a line.
const HOSTILE: &str = "a\u{1b}[31m\r\n\u{9b}2J\u{202e}b";

struct Desk {
    rig: Rig,
    setup: Setup,
}

impl Desk {
    fn new() -> Desk {
        let rig = Rig::new();
        let setup = rig.setup().webhook("partner", &Receiver::start()).route("user.*", "partner");
        Desk { rig, setup }
    }

    fn with_tables() -> Desk {
        let desk = Desk::new();
        for statement in create_sql(ROLE) {
            desk.rig.database.sql(&statement);
        }
        desk
    }

    /// A row, all of which may be said by `changes`: columns and their values in SQL.
    fn row(&self, table: &str, sink: &str, ordinal: u32, changes: &[(&str, &str)]) -> i64 {
        let slot = format!("'{}'", self.rig.database.slot);
        let (sink, ordinal) = (format!("'{sink}'"), ordinal.to_string());
        let event_id = format!("'event-{ordinal}'");
        let mut columns = vec![
            ("slot", slot.as_str()),
            ("sink", &sink),
            ("commit_lsn", "'0/16B3748'"),
            ("ordinal", &ordinal),
            ("delivery", "1"),
            ("event_id", &event_id),
            ("event_type", "'order.created'"),
            ("dedup_id", "'dedup'"),
            ("route", "'order.*'"),
            ("target", "'{\"path\": \"/orders\"}'"),
            ("payload_format", "'json'"),
            ("committed_at", "'2026-03-01 12:00:00.123456+00'"),
            ("bytes", "1000"),
            ("attempts", "3"),
        ];
        for change in changes {
            columns.retain(|(name, _)| *name != change.0);
            columns.push(*change);
        }
        let (names, values): (Vec<&str>, Vec<&str>) = columns.into_iter().unzip();
        let sql =
            format!("INSERT INTO walgate.{table} ({}) VALUES ({}) RETURNING id", names.join(", "), values.join(", "));
        self.rig.database.value(&sql).parse().expect("a number")
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        let config = ["--config", "{config}"];
        let ended = Walgate::command(&self.setup, &[arguments, &config[..]].concat());
        let harmless = |c: char| !(c.is_control() && c != '\n') && c != '\u{202e}';
        assert!(ended.output().chars().all(harmless), "{:?}", ended.output());
        ended
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let ended = self.run(&[arguments, &["--json"][..]].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.output());
        serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}", ended.output()))
    }

    /// The numbers of the rows that `dlq list` shows.
    fn listed(&self, filter: &[&str]) -> Vec<i64> {
        let found = self.json(&[&["dlq", "list"], filter].concat());
        found["list"].as_array().unwrap().iter().map(|line| line["id"].as_i64().unwrap()).collect()
    }

    /// Rows of `walgate.requests`: sink, verb and arguments.
    fn requests(&self) -> Vec<(String, String, Value)> {
        let sql = "SELECT slot, sink, verb, arguments FROM walgate.requests ORDER BY id";
        let read = |row: &Vec<Option<String>>| {
            let text = |column: usize| row[column].clone().expect("a value");
            assert_eq!(text(0), self.rig.database.slot);
            (text(1), text(2), serde_json::from_str(&text(3)).expect("JSON"))
        };
        self.rig.database.sql(sql).iter().map(read).collect()
    }
}

fn literal(text: &str) -> String {
    let escaped: String = text.chars().map(|c| format!("\\U{:08x}", u32::from(c))).collect();
    format!("E'{escaped}'")
}

#[test]
fn dead_letters_are_counted_listed_and_chosen() {
    let desk = Desk::with_tables();
    desk.run(&["dlq", "list"]).expect(0, &["no dead letters (slot ", &desk.rig.database.slot]);
    let refused = [("reason", "'refused'")];
    let old = desk.row("dead_letters", "hook", 1, &[refused[0], ("stored_at", "now() - interval '2 days'")]);
    let keyed = desk.row("dead_letters", "hook", 2, &[refused[0], ("event_key", "'o-42'")]);
    let hostile = literal(HOSTILE);
    let odd =
        [("reason", "'too_large'"), ("event_type", hostile.as_str()), ("event_key", &hostile), ("event_id", &hostile)];
    let odd = desk.row("dead_letters", "partner", 3, &odd);
    let unrouted = desk.row("dead_letters", "", 4, &[("reason", "'unrouted'")]);
    desk.row("dead_letters", "hook", 5, &[("slot", "'somebody_else'"), refused[0]]);
    let parked = desk.row("parked", "hook", 6, &[]);
    let held = desk.row("parked", "hook", 5, &[("hold_key", "'key:o-42'"), ("event_key", "'o-42'")]);

    let ended = desk.run(&["dlq", "list"]);
    let head = format!("4 dead letters (slot {}), 3.9 KiB", desk.rig.database.slot);
    ended.expect(0, &[&head, "(unrouted)", "too_large", "a\\u{1b}[31m\\r\\n\\u{9b}2J\\u{202e}b", "event-2", "o-42"]);
    assert!(!ended.stdout.contains("event-5") && !ended.stdout.contains("event-6"), "{}", ended.stdout);

    let found = desk.json(&["dlq", "list", "--limit", "2"]);
    assert_eq!((&found["rows"], &found["table"]), (&json!(4), &json!("dead_letters")));
    assert_eq!(found["list"].as_array().map(Vec::len), Some(2));
    let first = &found["groups"][0];
    assert_eq!((&first["sink"], &first["reason"], &first["rows"]), (&json!("hook"), &json!("refused"), &json!(2)));
    assert!(first["oldest"].as_str() < first["newest"].as_str(), "{first}");
    assert_eq!((&found["list"][0]["id"], &found["list"][1]["event_id"]), (&json!(unrouted), &json!(HOSTILE)));

    for (filter, expected) in [
        (&[][..], vec![unrouted, odd, keyed, old]),
        (&["--sink", "hook"], vec![keyed, old]),
        (&["--unrouted"], vec![unrouted]),
        (&["--type", "order.created"], vec![unrouted, keyed, old]),
        (&["--type", HOSTILE], vec![odd]),
        (&["--reason", "too_large"], vec![odd]),
        (&["--key", "o-42"], vec![keyed]),
        (&["--event-id", "event-1"], vec![old]),
        (&["--id", &old.to_string(), "--id", &odd.to_string()], vec![odd, old]),
        (&["--older-than", "1day"], vec![old]),
        (&["--newer-than", "1day"], vec![unrouted, odd, keyed]),
        (&["--older-than", "1day", "--reason", "too_large"], vec![]),
        (&["--older-than", "999years"], vec![]),
        (&["--parked"], vec![held, parked]),
        (&["--parked", "--key", "o-42"], vec![held]),
    ] {
        assert_eq!(desk.listed(filter), expected, "{filter:?}");
    }
    desk.run(&["dlq", "list", "--parked"]).expect(0, &["2 parked deliveries", "its key", "its sink", "parked since"]);
}

#[test]
fn one_dead_letter_is_shown_whole_and_its_payload_only_when_asked_for() {
    let desk = Desk::with_tables();
    let message = literal(&format!("422: {HOSTILE}"));
    let text = [
        ("reason", "'refused'"),
        ("message", message.as_str()),
        ("payload", "convert_to('{\"card\": \"canary-4111\"}', 'UTF8')"),
        ("headers", "'[[\"traceparent\", \"00-0af7\"], [\"odd\", \"\\u0000\\u001b\"], [\"odd\", \"2\"]]'"),
        ("errors", "'[{\"at\": \"2026-03-01T12:00:00.000000Z\", \"error\": \"503 \\u001b[31m\"}]'"),
        ("ordering_key", "'o-42'"),
    ];
    let text = desk.row("dead_letters", "hook", 7, &text).to_string();
    let binary =
        desk.row("parked", "hook", 8, &[("payload", "'\\x00ff1b'"), ("payload_format", "'binary'")]).to_string();
    let stranger = desk.row("dead_letters", "hook", 9, &[("slot", "'somebody_else'")]).to_string();

    let ended = desk.run(&["dlq", "show", &text]);
    ended.expect(
        0,
        &[
            &format!("dead letter {text} of sink hook"),
            "event-7, type order.created",
            "0/16B3748#7, committed 2026-03-01T12:00:00.123456Z",
            "path=/orders",
            "refused: 422: a\\u{1b}[31m",
            "2026-03-01T12:00:00.000000Z  503 \\u{1b}[31m",
            "traceparent=00-0af7",
            "odd=\\u{0}\\u{1b}",
            "odd=2",
            "json, 23 B (--payload shows it)",
        ],
    );
    assert!(!ended.output().contains("canary"), "{}", ended.output());
    desk.run(&["dlq", "show", &text, "--payload"]).expect(0, &["\n{\"card\": \"canary-4111\"}\n"]);
    let shown = desk.json(&["dlq", "show", &text]);
    assert_eq!(shown["headers"], json!([["traceparent", "00-0af7"], ["odd", "\u{0}\u{1b}"], ["odd", "2"]]));
    assert_eq!((&shown["attempts"], &shown["payload_bytes"], &shown["payload"]), (&json!(3), &json!(23), &Value::Null));
    let shown = desk.json(&["dlq", "show", &text, "--payload"]);
    assert_eq!(shown["payload"], json!("{\"card\": \"canary-4111\"}"));

    desk.run(&["dlq", "show", &binary, "--parked", "--payload"]).expect(0, &["binary, 3 B", "base64:AP8b", "its sink"]);
    assert_eq!(desk.json(&["dlq", "show", &binary, "--parked", "--payload"])["payload_base64"], json!("AP8b"));
    let missing = format!("there is no dead letter {stranger} of slot");
    desk.run(&["dlq", "show", &stranger]).expect(1, &[&missing, "walgate dlq list"]);
}

#[test]
fn what_cannot_be_meant_is_refused_before_anything_is_asked_for() {
    let desk = Desk::new();
    for command in [&["dlq", "list"][..], &["dlq", "show", "1"], &["pause", "--sink", "hook"]] {
        desk.run(command).expect(3, &["walgate.", "does not exist", "init --apply"]);
    }
    let desk = Desk::with_tables();
    desk.row("dead_letters", "hook", 1, &[]);
    desk.rig.database.sql(&format!("REVOKE ALL ON walgate.dead_letters FROM {ROLE}"));
    desk.run(&["dlq", "list"]).expect(3, &["permission denied", "init --apply"]);
    for (command, says) in [
        (&["dlq", "list", "--sink", "hok"][..], "there is no sink `hok`: did you mean `hook`? sinks: hook, partner"),
        (&["dlq", "retry", "--sink", "-"], "write --unrouted"),
        (&["dlq", "retry"], "or say --all"),
        (&["dlq", "retry", "--all", "--sink", "hook"], "leave one out"),
        (&["dlq", "drop", "--yes"], "or say --all"),
        (&["dlq", "drop", "--all"], "say --yes"),
        (&["dlq", "drop", "--sink", "hook", "--unrouted", "--yes"], "cannot be used with"),
        (&["pause", "--sink", "partnr"], "did you mean `partner`?"),
        (&["resume", "--sink", ""], "there is no sink ``"),
        (&["skip", "--sink", "hook"], "--event-id"),
    ] {
        desk.run(command).expect(2, &[says]);
    }
    assert_eq!(desk.requests(), []);
}

#[test]
fn what_is_asked_for_waits_for_a_gateway() {
    let desk = Desk::with_tables();
    desk.run(&["dlq", "retry", "--all"]).expect(0, &["no dead letter fits"]);
    for (sink, ordinal) in [("hook", 1), ("hook", 2), ("", 3), ("gone", 4)] {
        desk.row("dead_letters", sink, ordinal, &[("reason", "'refused'")]);
    }
    let nobody = format!("nobody reads slot `{}`: what waits stays asked for", desk.rig.database.slot);
    let ended = desk.run(&["dlq", "retry", "--type", "order.created", "--newer-than", "1h", "--wait", "0s"]);
    ended.expect(1, &["waits   retry for events without a route (request 1)", "sink hook (request 2)", &nobody]);
    ended.expect(1, &["no sink `gone` is configured", "its dead letters (1)", "left alone"]);
    desk.run(&["dlq", "drop", "--sink", "hook", "--yes", "--wait", "0s"]).expect(1, &["drop for sink hook", &nobody]);
    desk.run(&["pause", "--sink", "partner", "--wait", "300ms"])
        .expect(1, &["waits   pause for sink partner", "300ms"]);
    let ended = desk.run(&["skip", "--sink", "hook", "--event-id", HOSTILE, "--wait", "0s", "--json"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code, &report["slot"]), (Some(1), &json!(desk.rig.database.slot)));
    assert_eq!((&report["requests"][0]["request"], &report["requests"][0]["answered"]), (&json!(5), &json!(false)));

    let filter = json!({ "event_type": "order.created", "newer_than_seconds": 3600 });
    let request = |sink: &str, verb: &str, arguments: Value| (sink.to_owned(), verb.to_owned(), arguments);
    let expected = vec![
        request("", "retry", filter.clone()),
        request("hook", "retry", filter),
        request("hook", "drop", json!({})),
        request("partner", "pause", json!({})),
        request("hook", "skip", json!({ "event_id": HOSTILE })),
    ];
    assert_eq!(desk.requests(), expected);
}

#[test]
fn the_answer_of_a_gateway_is_waited_for_and_told() {
    let desk = Desk::with_tables();
    desk.row("dead_letters", "hook", 1, &[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // A gateway that does what is asked for, but pauses nothing.
            let gateway = desk.rig.database.client();
            while !done.load(Ordering::SeqCst) {
                gateway.run(
                    "UPDATE walgate.requests SET done_at = now(), failed = (verb = 'pause'), affected = id, \
                     outcome = 'the answer to ' || verb || E'\\n\\u001b' WHERE done_at IS NULL",
                );
                wait::watch_for(Duration::from_millis(50));
            }
        });
        // It ends with the commands, however they end.
        let _end = End(&done);
        let ended = desk.run(&["dlq", "retry", "--all", "--wait", "60s"]);
        ended.expect(0, &["done    retry for sink hook (request 1): the answer to retry\\n\\u{1b}"]);
        let report = desk.json(&["dlq", "drop", "--all", "--yes", "--wait", "60s"]);
        let asked = &report["requests"][0];
        assert_eq!((&asked["failed"], &asked["affected"]), (&json!(false), &json!(2)));
        assert_eq!((&asked["outcome"], &report["slot_read_by"]), (&json!("the answer to drop\n\u{1b}"), &Value::Null));
        desk.run(&["pause", "--sink", "hook", "--wait", "60s"]).expect(1, &["failed  pause for sink hook (request 3)"]);
        desk.run(&["resume", "--sink", "hook", "--wait", "60s"]).expect(0, &["done    resume"]);
        desk.run(&["skip", "--sink", "hook", "--event-id", "e", "--wait", "60s"]).expect(0, &["done    skip"]);
    });
}

/// Says that it is over when it is dropped.
pub(crate) struct End<'a>(pub(crate) &'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
