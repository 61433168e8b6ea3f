//! S10: a sink is down, others write, and the WAL that is kept for the slot grows. That is seen before the slot is lost.

use serde_json::Value;

use crate::rig::Rig;
use crate::support::http_get;
use crate::support::postgres::{Options, Postgres};
use crate::support::walgate::Walgate;

/// What the server keeps for the slot, and what may still be written before it can be lost.
fn kept_and_safe(rig: &Rig) -> (f64, f64) {
    let slot = &rig.database.slot;
    let row = rig.database.sql(&format!(
        "SELECT pg_current_wal_lsn() - restart_lsn, safe_wal_size FROM pg_replication_slots WHERE slot_name = '{slot}'"
    ));
    let number = |column: usize| row[0][column].as_ref().and_then(|text| text.parse().ok()).expect("a slot that lives");
    (number(0), number(1))
}

/// Writes WAL that has nothing to do with the outbox until so much of the budget is used.
fn write_until(rig: &Rig, part: f64) {
    loop {
        let (kept, safe) = kept_and_safe(rig);
        assert!(safe > 0.0, "the premise: the slot is not over its limit yet");
        if kept / (kept + safe) >= part {
            return;
        }
        // Half a megabyte: less than one part in a hundred.
        rig.database.sql("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 500000))");
    }
}

fn budget(port: u16) -> Value {
    let status = http_get::get(port, "/status").and_then(|(_, body)| serde_json::from_str::<Value>(&body).ok());
    status.map_or(Value::Null, |status| status["wal_budget"].clone())
}

fn metric(port: u16, name: &str) -> Option<f64> {
    let (_, body) = http_get::get(port, "/metrics")?;
    body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Lines of the log that tell of a budget at this level.
fn told(walgate: &Walgate, level: &str) -> Vec<Value> {
    let lines = walgate.stderr();
    let parsed = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    parsed.filter(|line| line["budget"] == level).collect()
}

#[test]
fn s10_the_end_of_the_wal_budget_is_seen_before_the_slot_is_lost() {
    let settings = ["max_slot_wal_keep_size=64MB", "min_wal_size=32MB", "max_wal_size=1GB"];
    let server = Postgres::start(Options { settings: settings.map(str::to_owned).to_vec(), ..Options::default() });
    let rig = Rig::on(&server);
    let setup = rig.setup();
    let port = setup.admin_port();
    let mut walgate = Walgate::run(&setup);
    let first = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &first);
    walgate.eventually("the budget is known", || budget(port)["bytes"].is_u64());
    let seen = budget(port);
    assert_eq!((&seen["level"], &seen["bound"]), (&"calm".into(), &"max_slot_wal_keep_size".into()), "{seen}");

    rig.receiver.go_down();
    let held = rig.insert("a");
    walgate.eventually("the event is held", || {
        http_get::get(port, "/status").is_some_and(|(_, body)| body.contains(&held))
    });
    for (part, level) in [(0.5, "warn"), (0.75, "act"), (0.9, "last")] {
        assert_eq!(told(&walgate, level), Vec::<Value>::new(), "not yet");
        write_until(&rig, part);
        walgate.eventually(&format!("{level} in /status"), || budget(port)["level"] == level);
        let seen = budget(port);
        assert!(seen["used_ratio"].as_f64().is_some_and(|ratio| ratio >= part), "{seen}");
        walgate.eventually(&format!("{part} in the metrics"), || {
            metric(port, "walgate_wal_budget_ratio").is_some_and(|ratio| ratio >= part)
        });
        let line = walgate.wait_log(&[&format!("\"budget\":\"{level}\"")]);
        for text in [&held, "max_slot_wal_keep_size", "sink `hook` holds the checkpoint"] {
            assert!(line.contains(text), "{text} is not in {line}");
        }
        let expected = if level == "warn" { "WARN" } else { "ERROR" };
        assert_eq!(told(&walgate, level)[0]["level"], expected);
    }
    let (kept, safe) = kept_and_safe(&rig);
    let bytes = metric(port, "walgate_wal_budget_bytes").expect("a budget");
    assert_eq!(bytes, kept + safe, "as the server has it");
    walgate.eventually("how long is left", || metric(port, "walgate_wal_budget_seconds_left").is_some());
    let seen = budget(port);
    assert!(seen["seconds_left"].as_f64() > Some(0.0) && seen["bytes_per_second"].as_f64() > Some(0.0), "{seen}");
    let status = Walgate::command(&setup, &["status", "--admin", &format!("127.0.0.1:{port}")]);
    status.expect(0, &["budget      last: 9", "used (max_slot_wal_keep_size)", "more each second"]);

    // It gets well, the server lets go, and that is told too.
    rig.receiver.come_back();
    rig.wait_confirmed(&mut walgate, &held);
    let mut last = String::new();
    walgate.eventually("the server lets go of WAL", || {
        // What the slot may let go of is decided where the server writes down which transactions run.
        rig.database.sql("CHECKPOINT");
        last = rig.insert("a");
        let (kept, safe) = kept_and_safe(&rig);
        kept / (kept + safe) < 0.4
    });
    rig.wait_confirmed(&mut walgate, &last);
    walgate.eventually("it is calm again", || budget(port)["level"] == "calm");
    walgate.wait_log(&["\"budget\":\"calm\"", "\"before\":\""]);
    for level in ["warn", "act", "last"] {
        let rising = told(&walgate, level).into_iter().filter(|line| line["level"] != "INFO").count();
        assert_eq!(rising, 1, "{level} is told once:\n{}", walgate.said());
    }
    rig.assert_all();

    // A budget of one's own, below the server's.
    rig.kill(&mut walgate);
    rig.receiver.go_down();
    let setup = rig.setup().more("wal_budget: { bytes: 1MiB, last: 80% }");
    let mut walgate = Walgate::run(&setup);
    rig.insert("a");
    rig.database.sql("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 2000000))");
    let line = walgate.wait_log(&["\"budget\":\"last\"", "wal_budget.bytes"]);
    assert!(line.contains("the server's disk is full"), "{line}");
    let left = || metric(setup.admin_port(), "walgate_wal_budget_seconds_left");
    walgate.eventually("nothing is left", || left() == Some(0.0));
}
