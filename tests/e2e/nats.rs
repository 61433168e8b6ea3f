//! N rows: NATS JetStream, with a real nats-server that is killed, cut off, full, and misconfigured. What it stored is
//! read over the wire by hand.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::json;

use crate::rig::Rig;
use crate::support::nats::NatsServer;
use crate::support::nats_wire::{Login, Stored};
use crate::support::oracle::Committed;
use crate::support::proxy::Proxy;
use crate::support::wait::{self, DEADLINE, watch_for};
use crate::support::walgate::{Setup, Walgate};

/// The inside of `delivery: { }` with a short attempt.
const IMPATIENT: &str = "timeout: 1s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }";

/// A sink `bus` on this port; `more` are further keys of `nats:`.
fn bus(port: u16, more: &str, delivery: &str) -> String {
    format!("bus: {{ nats: {{ servers: [\"127.0.0.1:{port}\"]{more} }}, delivery: {{ {delivery} }} }}")
}

/// Everything goes to `orders.<key>` on this port.
fn setup(rig: &Rig, port: u16) -> Setup {
    rig.source().sink(&bus(port, ", subject: \"orders.{key}\"", IMPATIENT)).route("**", "bus")
}

fn check(setup: &Setup) -> crate::support::walgate::Ended {
    Walgate::command(setup, &["check", "--connect", "--config", "{config}"])
}

/// Rows of `keys` keys in turn, in transactions of `per`.
fn insert(rig: &Rig, from: usize, to: usize, keys: usize) {
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'k' || i % {keys}, jsonb_build_object('i', i) FROM generate_series({from}, {to} - 1) i"
    ));
}

/// Nothing is missing, nothing else is there, bodies are whole, and the messages of a key never skip forward (I3).
/// Returns the repeats.
#[track_caller]
pub fn assert_stored(committed: &[Committed], stored: &[Stored]) -> usize {
    let by_id: HashMap<&str, &Committed> = committed.iter().map(|event| (event.id.as_str(), event)).collect();
    let mut highest: HashMap<&str, u64> = HashMap::new();
    let mut seen = HashSet::new();
    for message in stored {
        let event = by_id.get(message.id()).unwrap_or_else(|| panic!("a phantom: {message:?}"));
        assert_eq!(message.hash(), event.hash, "the payload of {}", event.id);
        if let Some(key) = &event.key {
            assert_eq!(message.header("walgate-key"), Some(&**key));
            let highest = highest.entry(key).or_default();
            let n = event.n;
            assert!(n <= *highest + 1, "key {key}: {n} after {highest}, at sequence {}", message.sequence);
            *highest = n.max(*highest);
        }
        seen.insert(message.id());
    }
    let missing: Vec<&&str> = by_id.keys().filter(|id| !seen.contains(**id)).collect();
    assert!(
        missing.is_empty(),
        "{} of {} are missing: {:?}",
        missing.len(),
        committed.len(),
        &missing[..missing.len().min(5)]
    );
    stored.len() - seen.len()
}

#[test]
fn an_event_is_stored_whole_with_its_headers() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    let more = ", subject: \"orders.{event_type}\", headers: { x-region: eu }";
    let mut walgate = Walgate::run(&rig.source().sink(&bus(server.port(), more, IMPATIENT)).route("**", "bus"));
    let id = rig.database.value(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) VALUES ('order.created', 'k 1', \
         '{\"total\": 1}', '{\"traceparent\": \"00-abc\", \"Nats-Rollup\": \"all\", \"tenant\": \"a\\r\\nNats-TTL: 1\"}') \
         RETURNING id",
    );
    rig.wait_confirmed(&mut walgate, &id);
    let stored = server.stored("ORDERS");
    let [message] = &stored[..] else { panic!("{stored:?}") };
    assert_eq!(message.subject, "orders.order.created");
    assert_eq!(message.data, br#"{"total": 1}"#);
    for (name, value) in [
        ("Nats-Msg-Id", &*id),
        ("id", &*id),
        ("walgate-event-type", "order.created"),
        ("walgate-key", "k 1"),
        ("content-type", "application/json"),
        ("traceparent", "00-abc"),
        ("walgate-header-Nats-Rollup", "all"),
        ("walgate-header-tenant", "a%0D%0ANats-TTL: 1"),
        ("x-region", "eu"),
    ] {
        assert_eq!(message.header(name), Some(value), "{name}: {message:?}");
    }
    for name in ["Nats-Rollup", "Nats-TTL"] {
        assert_eq!(message.header(name), None, "{name}");
    }
    assert_eq!(assert_stored(&rig.committed(), &stored), 0);
}

#[test]
fn n1_a_killed_server_loses_nothing_and_no_key_skips_forward() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    // A window so short that repeats are stored, and seen.
    server.add_stream("ORDERS", &["orders.>"], json!({ "duplicate_window": 100_000_000 }));
    let mut walgate = Walgate::run(&setup(&rig, server.port()));
    for round in 0..6 {
        insert(&rig, round * 500, (round + 1) * 500, 20);
        let before = server.count("ORDERS");
        let wanted = (before + 50).min((round as u64 + 1) * 500);
        walgate.eventually("some of it is stored", || server.count("ORDERS") >= wanted);
        if round % 2 == 0 {
            server.kill9();
        } else {
            server.stop();
        }
        watch_for(Duration::from_millis(100));
        server.start_again();
    }
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let repeats = assert_stored(&rig.committed(), &server.stored("ORDERS"));
    eprintln!("{repeats} repeats");
}

#[test]
fn n1_links_that_break_in_every_way_never_let_a_key_skip_forward() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], json!({ "duplicate_window": 100_000_000 }));
    let proxy = Proxy::to(server.port());
    let mut walgate = Walgate::run(&setup(&rig, proxy.port()));
    for round in 0..10 {
        insert(&rig, round * 300, (round + 1) * 300, 15);
        let before = server.count("ORDERS");
        match round % 5 {
            0 => proxy.cut(),
            1 => proxy.reset(),
            // Written, and nobody hears of it.
            2 => {
                proxy.drop_replies(true);
                walgate.eventually("it gives up, and connects again", || proxy.dropped_bytes() > 0);
                watch_for(Duration::from_millis(1200));
                proxy.drop_replies(false);
            }
            // What was sent is held up, and comes out when the black hole ends: after the next connection's, perhaps.
            3 => {
                proxy.black_hole(true);
                watch_for(Duration::from_millis(1500));
                proxy.black_hole(false);
            }
            _ => {
                proxy.refuse();
                proxy.cut();
                watch_for(Duration::from_millis(300));
                proxy.accept();
            }
        }
        // All of it may have been stored before the fault.
        let wanted = (before + 20).min((round as u64 + 1) * 300);
        walgate.eventually("it goes on", || server.count("ORDERS") >= wanted);
    }
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let repeats = assert_stored(&rig.committed(), &server.stored("ORDERS"));
    eprintln!("{repeats} repeats");
}

#[test]
fn n2_no_stream_is_no_success_and_is_waited_for() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    let literal = rig.source().sink(&bus(server.port(), ", subject: orders", IMPATIENT)).route("**", "bus");
    for setup in [&literal, &setup(&rig, server.port())] {
        let ended = check(setup);
        ended.expect(3, &["no stream on 127.0.0.1", "nats stream add ORDERS --subjects 'orders"]);
    }
    let mut walgate = Walgate::run(&literal);
    let id = rig.insert("k");
    walgate.wait_log(&["nats stream add ORDERS --subjects 'orders'"]);
    watch_for(Duration::from_millis(700));
    rig.assert_not_passed(&id);
    let state = walgate.status().expect("a status").to_string();
    assert!(state.contains("nats stream add"), "{state}");
    server.add_stream("ORDERS", &["orders"], json!({}));
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(assert_stored(&rig.committed(), &server.stored("ORDERS")), 0);
}

#[test]
fn n2_without_a_stream_an_event_can_be_rejected() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.here"], json!({}));
    let more = ", subject: \"orders.{key}\", no_stream: reject";
    let sink = bus(server.port(), more, &format!("{IMPATIENT}, on_reject: skip"));
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "bus"));
    let lost = rig.insert("elsewhere");
    let kept = rig.insert("here");
    rig.wait_confirmed(&mut walgate, &kept);
    walgate.wait_log(&[&lost, "no stream"]);
    let stored = server.stored("ORDERS");
    assert_eq!(stored.iter().map(Stored::id).collect::<Vec<_>>(), [&*kept]);
}

#[test]
fn n3_a_full_stream_that_refuses_is_waited_for() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], json!({ "max_msgs": 3, "discard": "new" }));
    let mut walgate = Walgate::run(&setup(&rig, server.port()));
    insert(&rig, 0, 10, 5);
    let last = rig.insert("k0");
    walgate.eventually("it is full", || server.count("ORDERS") == 3);
    walgate.wait_log(&["maximum messages exceeded"]);
    rig.assert_not_passed(&last);
    server.edit_stream("ORDERS", json!({ "max_msgs": 1000 }));
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(assert_stored(&rig.committed(), &server.stored("ORDERS")), 0);
}

#[test]
fn n4_settings_that_may_lose_events_are_told() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    let risky = json!({ "storage": "memory", "max_msgs": 1000, "discard": "old", "duplicate_window": 1_000_000_000 });
    server.add_stream("ORDERS", &["orders.>"], risky);
    let told =
        ["in memory", "one replica", "discards old messages at its limits (max_msgs)", "recognises duplicates for 1s"];
    let ended = check(&setup(&rig, server.port()));
    ended.expect(0, &["sink bus (nats) answers", "warning: sink bus (nats): stream ORDERS"]);
    ended.expect(0, &told);
    let json = Walgate::command(&setup(&rig, server.port()), &["check", "--connect", "--json", "--config", "{config}"]);
    let report: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(report["sinks"][0]["warnings"].as_array().map(Vec::len), Some(4), "{report}");
    let mut walgate = Walgate::run(&setup(&rig, server.port()));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    for text in told {
        walgate.wait_log(&[text]);
    }
}

#[test]
fn n4_a_stream_that_acknowledges_nothing_is_an_error_until_it_does() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], json!({ "no_ack": true }));
    check(&setup(&rig, server.port())).expect(3, &["acknowledges nothing (`no_ack`)", "nats stream edit ORDERS --ack"]);
    let mut walgate = Walgate::run(&setup(&rig, server.port()));
    let id = rig.insert("k");
    walgate.wait_log(&["nats stream edit ORDERS --ack"]);
    rig.assert_not_passed(&id);
    assert_eq!(server.count("ORDERS"), 0, "nothing is sent where nothing comes back");
    server.edit_stream("ORDERS", json!({ "no_ack": false }));
    rig.wait_confirmed(&mut walgate, &id);
}

#[test]
fn n5_a_message_beyond_max_payload_is_rejected_unsent() {
    let (rig, server) = (Rig::new(), NatsServer::with("max_payload: 8192", Login::default()));
    server.add_stream("ORDERS", &["orders.>"], json!({ "max_msg_size": 4096 }));
    let sink = bus(server.port(), ", subject: \"orders.{key}\"", &format!("{IMPATIENT}, on_reject: skip"));
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "bus"));
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    let connections = server.connections();
    let large = rig.database.insert("order.created", "k", &format!("{{\"x\": \"{}\"}}", "y".repeat(8000)));
    // One that the server takes and the stream does not.
    let middle = rig.database.insert("order.created", "k", &format!("{{\"x\": \"{}\"}}", "y".repeat(5000)));
    let next = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &next);
    let line = walgate.wait_log(&[&large, "takes 8192 at the most"]);
    assert!(line.contains("8009 of payload"), "{line}");
    walgate.wait_log(&[&middle, "message size exceeds maximum allowed"]);
    assert_eq!(server.connections(), connections, "the server hung up, and walgate came back");
    let stored = server.stored("ORDERS");
    assert_eq!(stored.iter().map(Stored::id).collect::<Vec<_>>(), [&*first, &*next]);
}

#[test]
fn n7_x7_no_event_chooses_a_subject_beyond_the_grammar() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    let delivery = format!("{IMPATIENT}, on_reject: skip");
    let setup = rig
        .source()
        .sink(&bus(server.port(), ", subject: \"orders.{key}\"", &delivery))
        .route("order.*", "bus")
        .route("raw.*", "{ sink: bus, subject: \"{key}\" }");
    let mut spy = server.wire();
    spy.subscribe(">");
    let mut walgate = Walgate::run(&setup);
    let bad = [
        ("order.created", "a b"),
        ("order.created", "a\tb"),
        ("order.created", "a 0\r\n\r\nPUB evil 1\r\nx"),
        ("order.created", "a\nb"),
        ("order.created", "*"),
        ("order.created", "a.>"),
        ("order.created", ""),
        ("order.created", "."),
        ("order.created", "a..b"),
        ("order.created", "a."),
        ("raw.x", "$JS.API.STREAM.DELETE.ORDERS"),
        ("raw.x", "$SYS.REQ.SERVER.PING"),
        ("raw.x", "_INBOX.x"),
        ("raw.x", ".a"),
    ];
    let mut refused = Vec::new();
    for (event_type, key) in bad {
        refused.push(rig.database.value(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('{event_type}', E'{}', '{{}}') RETURNING id",
            key.escape_default()
        )));
    }
    let good = rig.insert("good");
    rig.wait_confirmed(&mut walgate, &good);
    for id in &refused {
        walgate.wait_log(&[id]);
    }
    let events: Vec<String> = spy
        .received()
        .into_iter()
        .map(|message| message.subject)
        .filter(|subject| !subject.starts_with("$JS.") && !subject.starts_with("_INBOX."))
        .collect();
    assert_eq!(events, ["orders.good"]);
    assert_eq!(server.streams(), ["ORDERS"]);
    assert_eq!(server.count("ORDERS"), 1);
}

#[test]
fn one_event_to_two_subjects_of_one_stream_is_stored_twice() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>", "audit.>"], json!({}));
    let setup = rig
        .source()
        .sink(&bus(server.port(), "", IMPATIENT))
        .route("order.*", "[{ sink: bus, subject: \"orders.{key}\" }, { sink: bus, subject: \"audit.{event_type}\" }]");
    let mut walgate = Walgate::run(&setup);
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    let stored = server.stored("ORDERS");
    let mut subjects: Vec<&str> = stored.iter().map(|message| &*message.subject).collect();
    subjects.sort_unstable();
    assert_eq!(subjects, ["audit.order.created", "orders.k"]);
    assert!(stored.iter().all(|message| message.id() == id));
    assert_ne!(stored[0].header("Nats-Msg-Id"), stored[1].header("Nats-Msg-Id"));
}

#[test]
fn n6_a_lost_acknowledgement_is_followed_by_a_duplicate_that_is_stored_once() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    let proxy = Proxy::to(server.port());
    let mut walgate = Walgate::run(&setup(&rig, proxy.port()));
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    let connections = proxy.accepted();
    proxy.drop_replies(true);
    let second = rig.insert("k");
    let third = rig.insert("k");
    walgate.eventually("the second is stored", || server.count("ORDERS") == 2);
    walgate.wait_log(&["did not acknowledge"]);
    rig.assert_not_passed(&second);
    proxy.drop_replies(false);
    rig.wait_confirmed(&mut walgate, &third);
    assert!(proxy.accepted() > connections, "a doubt ends the connection");
    assert_eq!(assert_stored(&rig.committed(), &server.stored("ORDERS")), 0, "the repeat was recognised");
}

#[test]
fn a_stopped_server_is_found_again() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    server.stop();
    let mut walgate = Walgate::run(&setup(&rig, server.port()));
    let first = rig.insert("k");
    walgate.wait_log(&["no connection to 127.0.0.1"]);
    rig.assert_not_passed(&first);
    server.start_again();
    rig.wait_confirmed(&mut walgate, &first);
    server.stop();
    let second = rig.insert("k");
    watch_for(Duration::from_millis(500));
    server.start_again();
    rig.wait_confirmed(&mut walgate, &second);
    walgate.terminate();
    walgate.wait_for_end(DEADLINE).expect(0, &[]);
    assert_eq!(assert_stored(&rig.committed(), &server.stored("ORDERS")), 0);
}

#[test]
fn several_servers_are_tried_in_turn() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    let dead = wait::free_port();
    let sink = format!(
        "bus: {{ nats: {{ servers: [\"nats://127.0.0.1:{dead}\", \"127.0.0.1:{}\"], subject: \"orders.{{key}}\" }}, \
         delivery: {{ {IMPATIENT} }} }}",
        server.port()
    );
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "bus"));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(server.count("ORDERS"), 1);
}

#[test]
fn the_servers_log_stays_free_of_protocol_errors_and_other_keys_go_on() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.well"], json!({}));
    let mut walgate = Walgate::run(&setup(&rig, server.port()));
    let stuck = rig.insert("sick");
    walgate.wait_log(&["no stream", "orders.sick"]);
    insert(&rig, 0, 1, 1);
    let well = rig.insert("well");
    walgate.eventually("the key with a stream goes on", || server.count("ORDERS") == 1);
    rig.assert_not_passed(&stuck);
    assert_eq!(server.stored("ORDERS")[0].id(), well);
    assert!(!server.log().contains("Parser ERROR"), "{}", server.log());
}

/// One event arrives at the server as the sink is set up; `check --connect` passes too.
#[track_caller]
fn assert_delivers(rig: &Rig, server: &NatsServer, setup: &Setup) {
    check(setup).expect(0, &["sink bus (nats) answers"]);
    let before = server.count("ORDERS");
    let mut walgate = Walgate::run(setup);
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    assert!(server.count("ORDERS") > before);
    walgate.terminate();
    walgate.wait_for_end(DEADLINE).expect(0, &[]);
}

const PASSWORD: &str = "canary-nats-password-41c0";
const TOKEN: &str = "canary-nats-token-9b7e";
/// A user's nkey for tests: its seed and its public key.
const SEED: &str = "SUANQDPB2RUOE4ETUA26CNX7FUKE5ZZKFCQIIW63OX225F2CO7UEXTM7ZY";
const PUBLIC: &str = "UAMMBNV2EYR65NYZZ7IAK5SIR5ODNTTERJOBOF4KJLMWI45YOXOSWULM";

#[test]
fn credentials_are_used_and_wrong_ones_are_named_and_not_shown() {
    let rig = Rig::new();
    let users = format!(
        "authorization {{ users: [ {{ user: walgate, password: {PASSWORD:?} }}, {{ nkey: {PUBLIC} }}, \
         {{ user: limited, password: {PASSWORD:?}, permissions: {{ publish: [\"$JS.API.>\"], subscribe: \"_INBOX.>\" }} }}, \
         {{ user: blind, password: {PASSWORD:?}, permissions: {{ publish: [\"orders.>\"], subscribe: \"_INBOX.>\" }} }} ] }}"
    );
    let login = Login { connect: Some(json!({ "user": "walgate", "pass": PASSWORD })), tls: None };
    let server = NatsServer::with(&users, login);
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    let with = |more: &str| {
        let more = format!(", subject: orders.all{more}");
        rig.source()
            .sink(&bus(server.port(), &more, IMPATIENT))
            .route("**", "bus")
            .env("WALGATE_LOG", "trace,async_nats=trace")
    };
    assert_delivers(&rig, &server, &with(&format!(", user: walgate, password: {PASSWORD:?}")));
    let folder = crate::support::processes::folder("secret");
    let file = folder.join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).expect("a file");
    assert_delivers(&rig, &server, &with(&format!(", user: walgate, password_file: {file:?}")));
    assert_delivers(&rig, &server, &with(&format!(", nkey: {SEED}")));
    // Without the right to look at streams it says so, and goes on.
    let blind = with(&format!(", user: blind, password: {PASSWORD:?}"));
    check(&blind).expect(0, &["could not be looked at", "$JS.API.STREAM.NAMES"]);
    assert_delivers(&rig, &server, &blind);

    let silent = |text: &str| {
        for secret in [PASSWORD, TOKEN, SEED] {
            assert!(!text.contains(secret), "{secret} is shown in:\n{text}");
        }
    };
    for wrong in [
        String::new(),
        format!(", user: walgate, password: \"{PASSWORD}x\""),
        format!(", user: nobody, password: {PASSWORD:?}"),
        format!(", token: {TOKEN}"),
    ] {
        let ended = check(&with(&wrong));
        ended.expect(3, &[&format!("127.0.0.1:{} does not accept the credentials", server.port())]);
        silent(&ended.output());
    }
    let mut walgate = Walgate::run(&with(&format!(", token: {TOKEN}")));
    let id = rig.insert("k");
    walgate.wait_log(&["does not accept the credentials"]);
    rig.assert_not_passed(&id);
    silent(&walgate.status().expect("a status").to_string());
    walgate.terminate();
    silent(&walgate.wait_for_end(DEADLINE).output());
    // What is left has to go to somebody who may.
    let mut walgate = Walgate::run(&with(&format!(", user: limited, password: {PASSWORD:?}")));
    walgate.wait_log(&["does not let the user publish to `orders.all`"]);
    rig.assert_not_passed(&id);
    walgate.terminate();
    silent(&walgate.wait_for_end(DEADLINE).output());
    assert_delivers(&rig, &server, &with(&format!(", user: walgate, password: {PASSWORD:?}")));
}

#[test]
fn a_token_is_used() {
    let rig = Rig::new();
    let login = Login { connect: Some(json!({ "auth_token": TOKEN })), tls: None };
    let server = NatsServer::with(&format!("authorization {{ token: {TOKEN:?} }}"), login);
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    let more = format!(", subject: orders.all, token: {TOKEN}");
    assert_delivers(&rig, &server, &rig.source().sink(&bus(server.port(), &more, IMPATIENT)).route("**", "bus"));
}

/// A CA, and what it has signed, in files.
struct Certificates {
    folder: std::path::PathBuf,
}

impl Certificates {
    fn new() -> Certificates {
        use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
        let folder = crate::support::processes::folder("tls");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, "walgate test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        std::fs::write(folder.join("ca.crt"), issuer.pem()).expect("a file");
        for name in ["server", "client"] {
            let key = KeyPair::generate().expect("a key");
            let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
            let certificate = params.signed_by(&key, &issuer).expect("a certificate");
            std::fs::write(folder.join(format!("{name}.crt")), certificate.pem()).expect("a file");
            std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("a file");
        }
        Certificates { folder }
    }

    fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// `tls { }` of the server.
    fn server(&self, verify: bool) -> String {
        let [certificate, key, ca] = ["server.crt", "server.key", "ca.crt"].map(|name| self.file(name));
        format!("tls {{ cert_file: {certificate:?}, key_file: {key:?}, ca_file: {ca:?}, verify: {verify} }}")
    }

    /// How the test itself connects.
    fn login(&self) -> Login {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
        let read = |name: &str| CertificateDer::from_pem_file(self.folder.join(name)).expect("a certificate");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(read("ca.crt")).expect("a root");
        let key = PrivateKeyDer::from_pem_file(self.folder.join("client.key")).expect("a key");
        let config = rustls::ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![read("client.crt")], key)
            .expect("a client's certificate");
        Login { connect: None, tls: Some(config.into()) }
    }
}

/// A sink `bus` over TLS; `tls` is the inside of its `tls: { }`.
fn over_tls(rig: &Rig, address: &str, tls: &str) -> Setup {
    rig.source()
        .sink(&format!(
            "bus: {{ nats: {{ servers: [{address:?}], subject: orders.all, tls: {{ {tls} }} }}, delivery: {{ {IMPATIENT} }} }}"
        ))
        .route("**", "bus")
}

#[test]
fn tls_is_verified_and_never_left_out() {
    let (rig, ours, theirs) = (Rig::new(), Certificates::new(), Certificates::new());
    let server = NatsServer::with(&ours.server(false), ours.login());
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    let trusted = format!("ca_file: {:?}", ours.file("ca.crt"));
    let (named, numbered) = (format!("localhost:{}", server.port()), format!("127.0.0.1:{}", server.port()));
    assert_delivers(&rig, &server, &over_tls(&rig, &named, &trusted));
    assert_delivers(&rig, &server, &over_tls(&rig, &format!("tls://{named}"), &format!("{trusted}, required: false")));
    assert_delivers(&rig, &server, &over_tls(&rig, &numbered, "insecure_skip_verify: true"));
    for (address, tls, says) in [
        (&named, format!("ca_file: {:?}", theirs.file("ca.crt")), "not signed by a CA that is trusted here"),
        (&numbered, trusted.clone(), "for another host name"),
        (&named, "ca_file: /nonexistent/ca.crt".to_owned(), "the CA file /nonexistent/ca.crt cannot be used"),
    ] {
        check(&over_tls(&rig, address, &tls)).expect(3, &[says]);
    }
    // A server without TLS gets nothing, not even a CONNECT.
    let plain = NatsServer::start();
    plain.add_stream("ORDERS", &["orders.>"], json!({}));
    let ended = check(&over_tls(&rig, &format!("localhost:{}", plain.port()), &trusted));
    ended.expect(3, &["no connection to localhost"]);
}

#[test]
fn mutual_tls_shows_the_clients_certificate() {
    let (rig, ours) = (Rig::new(), Certificates::new());
    let server = NatsServer::with(&ours.server(true), ours.login());
    server.add_stream("ORDERS", &["orders.>"], json!({}));
    let address = format!("localhost:{}", server.port());
    let trusted = format!("ca_file: {:?}", ours.file("ca.crt"));
    let shown = format!("{trusted}, cert_file: {:?}, key_file: {:?}", ours.file("client.crt"), ours.file("client.key"));
    assert_delivers(&rig, &server, &over_tls(&rig, &address, &shown));
    check(&over_tls(&rig, &address, &trusted)).expect(3, &["does not accept the client's certificate, or misses one"]);
    let crossed =
        format!("{trusted}, cert_file: {:?}, key_file: {:?}", ours.file("client.crt"), ours.file("server.key"));
    check(&over_tls(&rig, &address, &crossed)).expect(3, &["do not go together"]);
}

#[test]
fn the_example_and_the_reference_load() {
    crate::shipped::assert_true("nats", "bus", include_str!("../../examples/nats.yaml"), &[]);
}
