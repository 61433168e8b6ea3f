//! C2, C6, X7 rows, and the commands that show and test routes.

use std::{fs::File, os::unix::fs::PermissionsExt as _};

use crate::rig::Rig;
use crate::support::processes;
use crate::support::walgate::{Setup, Walgate};

const EXAMPLE: &str = include_str!("../../examples/routes.yaml");

/// Event types as SQL writes them.
const HOSTILE: [&str; 15] = [
    "repeat('x', 1000000)",
    "repeat('a.', 5000)",
    "E'\\x01\\x1b[31mred'",
    "E'a\\r\\nPUB evil 1\\r\\nx'",
    "E'a\\nb'",
    "'a b'",
    "'\u{1F389}.created'",
    "E'\\u202Egpj.exe'",
    "'..'",
    "'.'",
    "'../../admin?x=1#y'",
    "'%2e%2e'",
    "'*'",
    "'a.>'",
    "'{key}'",
];

fn insert(rig: &Rig, event_type: &str, key: &str) -> String {
    rig.database.value(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ({event_type}, '{key}', '{{}}') RETURNING id"
    ))
}

#[test]
fn c6_hostile_types_are_delivered_escaped_or_rejected_and_hold_nobody_up() {
    let rig = Rig::new();
    let url = rig.receiver.url();
    let setup = rig
        .source()
        .sink("out: { stdout: {} }")
        .webhook_at("hook", &url, "on_reject: skip, retry: { initial: 20ms, max: 200ms }")
        .route("**", "[out, { sink: hook, path: \"/t/{event_type}/end\" }]");
    let mut walgate = Walgate::run(&setup);
    let rows: Vec<String> = HOSTILE.iter().enumerate().map(|(n, sql)| insert(&rig, sql, &format!("k{n}"))).collect();
    let good = insert(&rig, "'order.created'", "good");
    rig.wait_confirmed(&mut walgate, &good);

    let lines: Vec<serde_json::Value> = walgate
        .stdout()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:.200}")))
        .collect();
    assert_eq!(lines.len(), rows.len() + 1, "one line for each event");
    for (id, sql) in rows.iter().zip(HOSTILE) {
        let written = rig.database.value(&format!("SELECT encode(convert_to({sql}, 'UTF8'), 'hex')"));
        let line = lines.iter().find(|line| line["id"] == id.as_str()).expect("its line");
        let hex: String = line["event_type"].as_str().unwrap().bytes().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, written, "the type on stdout");
        match &rig.receiver.receipts_of(id)[..] {
            [] => {
                let line = walgate.wait_log(&[id]);
                assert!(!line.contains(['\u{1b}', '\u{202e}', '\r']), "{line:?}");
            }
            [receipt] => {
                let inner = receipt.path.strip_prefix("/hook/t/").and_then(|path| path.strip_suffix("/end"));
                let inner = inner.unwrap_or_else(|| panic!("{sql}: {}", receipt.path));
                assert!(inner.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._~%".contains(&c)), "{inner}");
            }
            many => panic!("{sql}: {} times", many.len()),
        }
    }
    let paths: Vec<String> = rig.receiver.receipts().into_iter().map(|receipt| receipt.path).collect();
    for expected in ["/hook/t/%2A/end", "/hook/t/%252e%252e/end", "/hook/t/a%20b/end", "/hook/t/%7Bkey%7D/end"] {
        assert!(paths.iter().any(|path| path == expected), "{expected}: {paths:?}");
    }
    // The two longest, and the two that are nothing but dots.
    assert_eq!(rig.receiver.distinct(), rows.len() + 1 - 4);
}

#[cfg(feature = "nats")]
#[test]
fn c6_hostile_types_choose_no_subject_beyond_the_grammar() {
    use serde_json::json;

    use crate::support::nats::NatsServer;

    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("EV", &["ev.>"], json!({}));
    let bus = format!(
        "bus: {{ nats: {{ servers: [\"127.0.0.1:{}\"], subject: \"ev.{{event_type}}\" }}, delivery: {{ on_reject: skip }} }}",
        server.port()
    );
    let mut spy = server.wire();
    spy.subscribe(">");
    let mut walgate = Walgate::run(&rig.source().sink(&bus).route("**", "bus"));
    let rows: Vec<String> = HOSTILE.iter().enumerate().map(|(n, sql)| insert(&rig, sql, &format!("k{n}"))).collect();
    let good = insert(&rig, "'order.created'", "good");
    rig.wait_confirmed(&mut walgate, &good);
    let stored = server.stored("EV");
    for id in &rows {
        if !stored.iter().any(|message| message.id() == id) {
            walgate.wait_log(&[id]);
        }
    }
    let mut subjects: Vec<&str> = stored.iter().map(|message| &*message.subject).collect();
    subjects.sort_unstable();
    let legal = ["ev.%2e%2e", "ev.order.created", "ev.{key}", "ev.\u{202e}gpj.exe", "ev.\u{1F389}.created"];
    assert_eq!(subjects, legal);
    let strays = spy
        .received()
        .into_iter()
        .filter(|message| !["$JS.", "_INBOX.", "ev."].iter().any(|start| message.subject.starts_with(start)));
    assert_eq!(strays.map(|message| message.subject).collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn conditions_and_keys_of_the_payload_route_real_rows() {
    let rig = Rig::new();
    let outbox = "outbox: { columns: { key: \"payload:/order/id\", headers: headers } }";
    let setup = Setup::through(&rig.database, rig.witness.port()).more(outbox).webhook("hook", &rig.receiver).route(
        "order.*",
        "{ sink: hook, path: \"/{key}\" }, when: { header.tenant: acme, column.aggregate_id: [eu, us] }",
    );
    let mut walgate = Walgate::run(&setup);
    let insert = |region: &str, tenant: &str, order: &str| {
        rig.database.value(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, headers, payload) VALUES ('order.created', '{region}', \
             '{{\"tenant\": \"{tenant}\"}}', '{{\"order\": {{\"id\": {order}}}}}') RETURNING id"
        ))
    };
    let others = [insert("eu", "other", "1"), insert("asia", "acme", "2")];
    let first = insert("eu", "acme", "\"A 7\"");
    let second = insert("us", "acme", "42");
    rig.wait_confirmed(&mut walgate, &second);
    let path = |id: &String| rig.receiver.receipts_of(id).first().map(|receipt| receipt.path.clone());
    assert_eq!((path(&first).as_deref(), path(&second).as_deref()), (Some("/hook/A%207"), Some("/hook/42")));
    assert!(others.iter().all(|id| !rig.receiver.has(id)));
}

#[test]
fn c2_a_file_of_100_mb_is_refused_by_its_size() {
    let path = processes::folder("huge").join("walgate.yaml");
    File::create(&path).and_then(|file| file.set_len(100 << 20)).expect("a sparse file");
    let huge = path.display().to_string();
    let ended = Walgate::command(&Setup::literal(""), &["check", "--config", &huge]);
    ended.expect(2, &["larger than 1MiB"]);
    let sound = "sinks: { out: { stdout: {} } }\nroutes: [{ event_type: \"**\", to: out }]\n";
    let ended = Walgate::command(&Setup::literal(sound), &["test", "--config", "{config}", &huge]);
    ended.expect(2, &["larger than 1MiB", "test file"]);
}

#[test]
fn c2_bombs_are_refused_in_little_memory() {
    let folder = processes::folder("bombs");
    let program = folder.join("limited");
    // An allocation beyond 256 MiB of address space ends the process by a signal instead of with a text.
    let script = format!("#!/bin/sh\nulimit -v 262144\nexec {} \"$@\"\n", env!("CARGO_BIN_EXE_walgate"));
    std::fs::write(&program, script).expect("a script");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("its mode");
    let level = |name: char, inner: &str| format!("{name}: &{name} [{}]\n", [inner; 9].join(", "));
    let aliases: String = "abcdefghij"
        .chars()
        .scan("x".to_owned(), |inner, name| {
            let line = level(name, inner);
            *inner = format!("*{name}");
            Some(line)
        })
        .collect();
    for (bomb, says) in [
        (aliases, "alias"),
        (format!("sinks: {}\n", "[".repeat(500_000)), "nest"),
        (format!("sinks: {}\n", "{a: ".repeat(200_000)), "nest"),
        (format!("sinks: {{ {} }}\n", "\"".repeat(900_001)), ""),
    ] {
        let path = folder.join("bomb.yaml");
        std::fs::write(&path, &bomb).expect("the file");
        let setup = Setup::literal("").program(&program);
        let ended = Walgate::command(&setup, &["check", "--config", &path.display().to_string()]);
        ended.expect(2, &[says]);
        assert!(ended.stderr.len() < 4096, "{} bytes of text", ended.stderr.len());
    }
}

#[cfg(feature = "nats")]
#[test]
fn the_example_of_tests_passes() {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/routes.test.yaml");
    let setup = Setup::literal(EXAMPLE);
    Walgate::command(&setup, &["test", "--config", "{config}", tests]).expect(0, &["5 passed, 0 failed"]);
    let ended = Walgate::command(&setup, &["test", "--json", "--config", "{config}", tests]);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!((&report["passed"], &report["failed"]), (&5.into(), &0.into()));
}

#[cfg(feature = "nats")]
#[test]
fn a_test_that_fails_says_what_came_and_why() {
    let path = processes::folder("tests").join("routes.test.yaml");
    let file = path.display().to_string();
    let write = |expect: &str| {
        let text = format!("tests:\n  - name: acme\n    event: {{ event_type: user.created }}\n    expect: {expect}\n");
        std::fs::write(&path, text).expect("the file");
        Walgate::command(&Setup::literal(EXAMPLE), &["test", "--config", "{config}", &file])
    };
    write("{ sink: bus, subject: users }").expect(
        1,
        &["FAIL  acme", "- bus subject=users", "+ audit", "no pattern matches the event type", "0 passed, 1 failed"],
    );
    write("{ sink: buss }").expect(2, &["routes.test.yaml:4:13", "unknown sink `buss`"]);
    write("audit").expect(0, &["1 passed, 0 failed"]);
}

#[cfg(feature = "nats")]
#[test]
fn an_event_is_shown_with_where_it_goes_and_why() {
    let setup = Setup::literal(EXAMPLE);
    let route = |more: &[&str]| {
        let arguments: Vec<&str> = ["route", "--config", "{config}"].iter().chain(more).copied().collect();
        Walgate::command(&setup, &arguments)
    };
    let ended = route(&["--event-type", "order.created", "--header", "tenant=acme", "--column", "region=asia"]);
    ended.expect(
        0,
        &["yes     routes[0]", "`column.region` is `asia`, and `when` wants `eu` or `us`", "rejected (invalid_target)"],
    );
    assert!(!ended.stdout.contains('\u{1b}'), "no colours without a terminal");
    let ended = route(&["--event-type", "user.created", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(report["deliveries"][0]["sink"], "audit");
    route(&["--event-type", "weather"]).expect(0, &["unrouted", "it is dropped"]);
    route(&["--event-type", "user.created", "--key", "7"]).expect(2, &["--key", "payload:/order_id"]);
    route(&["--event-type", "x", "--header", "tenant"]).expect(2, &["--header NAME=VALUE"]);
}

#[cfg(feature = "nats")]
#[test]
fn n7_x7_what_a_sink_never_takes_is_refused_when_the_file_is_loaded() {
    for (subject, why) in [
        ("orders..{key}", "an empty token"),
        ("orders.>", "the wildcard `>`"),
        ("{event_type}.*", "the wildcard `*`"),
        ("$JS.API.{key}", "belong to the server"),
        ("$SYS.{key}", "belong to the server"),
        ("a b", "white space"),
        ("tenants.{event_type[2]}", "is never there"),
    ] {
        let text = EXAMPLE.replace("tenants.acme.{event_type[-1]}", subject);
        let ended = Walgate::command(&Setup::literal(text), &["check", "--config", "{config}"]);
        ended.expect(2, &["walgate.yaml:24:31: routes[1].to[0].subject", why]);
        let text = EXAMPLE.replace("subject: \"{event_type}.{key}\"", &format!("subject: \"{subject}\""));
        let ended = Walgate::command(&Setup::literal(text), &["check", "--config", "{config}"]);
        if !why.contains("never") {
            ended.expect(2, &["walgate.yaml:16:16", why, "1 error"]);
        }
    }
}
