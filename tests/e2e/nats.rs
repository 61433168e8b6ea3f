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
fn assert_stored(committed: &[Committed], stored: &[Stored]) -> usize {
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
        walgate.eventually("some of it is stored", || server.count("ORDERS") > before + 50);
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
        walgate.eventually("it goes on", || server.count("ORDERS") > before + 20);
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
