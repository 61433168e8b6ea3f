//! R rows: RabbitMQ, with real nodes that are killed, blocked, full and misconfigured. What a queue holds is read over
//! the wire by hand.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::rig::Rig;
use crate::support::amqp_wire::{Argument, Stored};
use crate::support::oracle::Committed;
use crate::support::proxy::Proxy;
use crate::support::rabbitmq::Rabbit;
use crate::support::wait::{self, DEADLINE, watch_for};
use crate::support::walgate::{Setup, Walgate};

/// The inside of `delivery: { }` with a short attempt.
const IMPATIENT: &str = "timeout: 2s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }";

/// A sink `bus` on this port; `more` are further keys of `rabbitmq:`.
fn bus(port: u16, vhost: &str, more: &str, delivery: &str) -> String {
    format!(
        "bus: {{ rabbitmq: {{ url: \"amqp://walgate:secret@127.0.0.1:{port}/{vhost}\"{more} }}, \
         delivery: {{ {delivery} }} }}"
    )
}

/// Everything goes to the queue `orders`.
fn to_queue(rig: &Rig, port: u16, vhost: &str) -> Setup {
    rig.source().sink(&bus(port, vhost, ", routing_key: orders", IMPATIENT)).route("**", "bus")
}

fn check(setup: &Setup) -> crate::support::walgate::Ended {
    Walgate::command(setup, &["check", "--connect", "--config", "{config}"])
}

/// Rows of `keys` keys in turn.
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
    for (at, message) in stored.iter().enumerate() {
        let event = by_id.get(message.id()).unwrap_or_else(|| panic!("a phantom: {message:?}"));
        assert_eq!(message.hash(), event.hash, "the payload of {}", event.id);
        if let Some(key) = &event.key {
            assert_eq!(message.header("walgate-key"), Some(&**key));
            let highest = highest.entry(key).or_default();
            let n = event.n;
            assert!(n <= *highest + 1, "key {key}: {n} after {highest}, at place {at}");
            *highest = n.max(*highest);
        }
        seen.insert(message.id());
    }
    let missing: Vec<&&str> = by_id.keys().filter(|id| !seen.contains(**id)).collect();
    assert!(missing.is_empty(), "{} of {} are missing: {:?}", missing.len(), committed.len(), missing.first());
    stored.len() - seen.len()
}

#[test]
fn an_event_is_stored_whole_with_its_properties_x6() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_exchange("orders", "topic");
    wire.declare_queue("q", &[]);
    wire.declare_queue("other", &[]);
    wire.bind("q", "orders", "order.*");
    let more = ", exchange: orders, routing_key: \"{event_type}\", headers: { x-region: eu }, app_id: shop";
    let mut walgate = Walgate::run(&rig.source().sink(&bus(server.port(), &vhost, more, IMPATIENT)).route("**", "bus"));
    let id = rig.database.value(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) VALUES ('order.created', 'k é', \
         '{\"total\": 1}', '{\"traceparent\": \"00-abc\", \"CC\": \"other\", \"BCC\": \"other\", \
         \"tenant\": \"a\\r\\nb\"}') RETURNING id",
    );
    rig.wait_confirmed(&mut walgate, &id);
    let stored = wire.take_all("q");
    let [message] = &stored[..] else { panic!("{stored:?}") };
    assert_eq!((&*message.exchange, &*message.routing_key), ("orders", "order.created"));
    assert_eq!(message.data, br#"{"total": 1}"#);
    assert_eq!(message.id(), id);
    assert_eq!(message.kind.as_deref(), Some("order.created"));
    assert_eq!(message.app_id.as_deref(), Some("shop"));
    assert_eq!(message.content_type.as_deref(), Some("application/json"));
    assert_eq!(message.delivery_mode, Some(2));
    let committed = message.timestamp.expect("a timestamp");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a time").as_secs();
    assert!((now - 300..=now + 300).contains(&committed), "{committed} is not near {now}");
    for (name, value) in [
        ("id", &*id),
        ("walgate-event-type", "order.created"),
        ("walgate-key", "k é"),
        ("traceparent", "00-abc"),
        ("walgate-header-CC", "other"),
        ("walgate-header-BCC", "other"),
        ("walgate-header-tenant", "a\r\nb"),
        ("x-region", "eu"),
    ] {
        assert_eq!(message.header(name), Some(value), "{name}: {message:?}");
    }
    assert_eq!(wire.count("other"), 0, "an event's header has routed its message elsewhere");
}

#[test]
fn quorum_and_classic_queues_are_declared_and_filled_in_order() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let more = ", exchange: orders, routing_key: \"{event_type}\", declare: { exchanges: [{ name: orders, type: topic }], \
                queues: [{ name: quorum }, { name: classic, type: classic }], bindings: [\
                { queue: quorum, exchange: orders, routing_key: '#' }, { queue: classic, exchange: orders, routing_key: '#' }] }";
    let setup = rig.source().sink(&bus(server.port(), &vhost, more, IMPATIENT)).route("**", "bus");
    check(&setup).expect(0, &["sink bus (rabbitmq) answers"]);
    let mut walgate = Walgate::run(&setup);
    insert(&rig, 0, 3000, 30);
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let mut wire = server.wire(&vhost);
    for queue in ["quorum", "classic"] {
        assert_eq!(assert_stored(&rig.committed(), &wire.take_all(queue)), 0, "{queue}");
    }
    let kinds = server.ctl(&["list_queues", "-p", &vhost, "name", "type"]);
    assert!(kinds.contains("quorum\tquorum") && kinds.contains("classic\tclassic"), "{kinds}");
    // Declared once more with other settings, it is refused by name.
    let other = more.replace("type: topic", "type: fanout");
    let setup = rig.source().sink(&bus(server.port(), &vhost, &other, IMPATIENT)).route("**", "bus");
    walgate.terminate();
    walgate.wait_for_end(DEADLINE).expect(0, &[]);
    let mut walgate = Walgate::run(&setup);
    let id = rig.insert("k");
    walgate.wait_log(&["exchange `orders` cannot be declared", "inequivalent arg"]);
    rig.assert_not_passed(&id);
}

#[test]
fn r1_a_killed_node_loses_nothing_and_no_key_skips_forward() {
    let (rig, server) = (Rig::new(), Rabbit::start());
    let mut wire = server.wire("/");
    wire.declare_queue("orders", &[("x-queue-type", Argument::Text("quorum"))]);
    // RabbitMQ 3.10 was seen not to bring a quorum queue back that was declared a moment before a SIGKILL.
    server.stop();
    server.start_again();
    wire = server.wire("/");
    let mut walgate = Walgate::run(&to_queue(&rig, server.port(), "%2F"));
    let mut stored = Vec::new();
    for round in 0..3 {
        insert(&rig, round * 2000, (round + 1) * 2000, 40);
        let wanted = round as u64 * 2000 + 200;
        walgate.eventually("some of it is stored", || wire.count("orders") >= wanted);
        if round % 2 == 0 {
            server.kill9();
        } else {
            server.stop();
        }
        server.start_again();
        wire = server.wire("/");
    }
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    stored.extend(wire.take_all("orders"));
    let repeats = assert_stored(&rig.committed(), &stored);
    eprintln!("{repeats} repeats");
}

#[test]
fn r2_what_no_queue_takes_is_no_success() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_exchange("orders", "direct");
    wire.declare_queue("q", &[]);
    for key in 0..40 {
        if key % 3 != 0 {
            wire.bind("q", "orders", &format!("k{key}"));
        }
    }
    let more = ", exchange: orders, routing_key: \"{key}\"";
    let sink = bus(server.port(), &vhost, more, &format!("{IMPATIENT}, on_reject: skip"));
    // Many at once, so that returns and confirms are mixed: the right ones must be blamed.
    insert(&rig, 0, 2000, 40);
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "bus"));
    let last = rig.insert("k1");
    rig.wait_confirmed(&mut walgate, &last);
    let log = walgate.wait_log(&["no queue on 127.0.0.1", &vhost, "exchange `orders`"]);
    assert!(log.contains("bind a queue"), "{log}");
    let routed = |event: &Committed| {
        let key: usize = event.key.as_deref().expect("a key")[1..].parse().expect("a number");
        !key.is_multiple_of(3)
    };
    let committed: Vec<Committed> = rig.committed().into_iter().filter(routed).collect();
    assert_eq!(assert_stored(&committed, &wire.take_all("q")), 0);
    assert_eq!(committed.len(), 2000 - 14 * 50 + 1);
    walgate.kill9();

    // Waited for, and taken as soon as a queue is bound.
    let rig = Rig::new();
    let sink = bus(server.port(), &vhost, &format!("{more}, unroutable: wait"), IMPATIENT);
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "bus"));
    let id = rig.insert("k0");
    walgate.wait_log(&["no queue on 127.0.0.1", "routing key `k0`"]);
    rig.assert_not_passed(&id);
    wire.bind("q", "orders", "k0");
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(assert_stored(&rig.committed(), &wire.take_all("q")), 0);
    wire.unbind("q", "orders", "k0");
}

#[test]
fn r3_a_full_queue_is_waited_for_and_keys_stay_in_order() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_queue(
        "orders",
        &[("x-max-length", Argument::Number(20)), ("x-overflow", Argument::Text("reject-publish"))],
    );
    let mut walgate = Walgate::run(&to_queue(&rig, server.port(), &vhost));
    insert(&rig, 0, 400, 10);
    let last = rig.insert("k0");
    walgate.wait_log(&["did not take a message", "queue `orders`", "reject-publish"]);
    rig.assert_not_passed(&last);
    let mut stored = Vec::new();
    walgate.eventually("everything comes through the full queue", || {
        stored.extend(wire.take_all("orders"));
        stored.len() >= 401
    });
    rig.wait_confirmed(&mut walgate, &last);
    stored.extend(wire.take_all("orders"));
    assert_eq!(assert_stored(&rig.committed(), &stored), 0, "what was nacked was not stored");
}

#[test]
fn r4_a_queue_that_drops_what_it_acknowledged_is_warned_of() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let more =
        ", routing_key: orders, declare: { queues: [{ name: orders, type: classic, arguments: { x-max-length: 5 } }] }";
    let setup = rig.source().sink(&bus(server.port(), &vhost, more, IMPATIENT)).route("**", "bus");
    check(&setup).expect(0, &["queue `orders` has a length limit and the overflow behaviour drop-head"]);
    let mut walgate = Walgate::run(&setup);
    insert(&rig, 0, 10, 10);
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    walgate.wait_log(&["WARN", "drop-head"]);
    assert_eq!(server.wire(&vhost).take_all("orders").len(), 5, "acknowledged, and gone: what the warning is about");
}

#[test]
fn r5_a_blocked_connection_is_shown_and_survives() {
    let (rig, server) = (Rig::new(), Rabbit::start());
    let mut wire = server.wire("/");
    wire.declare_queue("orders", &[]);
    // A heartbeat so short that a connection without it would be gone.
    let more = ", routing_key: orders, heartbeat: 2s";
    let mut walgate = Walgate::run(&rig.source().sink(&bus(server.port(), "%2F", more, IMPATIENT)).route("**", "bus"));
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    let before = server.connections("/");
    assert_eq!(before.len(), 1, "{before:?}");
    server.ctl(&["set_vm_memory_high_watermark", "0"]);
    insert(&rig, 0, 100, 10);
    let last = rig.insert("k");
    walgate.wait_log(&["WARN", "blocks its publishers"]);
    watch_for(Duration::from_secs(9));
    rig.assert_not_passed(&last);
    let state = walgate.status().expect("a status").to_string();
    assert!(state.contains("blocks its publishers"), "{state}");
    assert_eq!(server.connections("/"), before, "the connection was not given up");
    server.ctl(&["set_vm_memory_high_watermark", "absolute", "512MB"]);
    walgate.wait_log(&["takes messages again"]);
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(server.connections("/"), before, "the connection was not given up");
    let repeats = assert_stored(&rig.committed(), &wire.take_all("orders"));
    eprintln!("{repeats} repeats");
    assert!(repeats <= 11, "one for each key at the most: {repeats}");
}

#[test]
fn r6_only_the_culprit_is_blamed_when_the_server_closes_the_channel() {
    let (rig, server) = (Rig::new(), Rabbit::with("max_message_size = 4096\n", "", |_| {}));
    let mut wire = server.wire("/");
    wire.declare_exchange("k0", "fanout");
    wire.declare_queue("q", &[]);
    for key in 1..20 {
        let exchange = format!("k{key}");
        wire.declare_exchange(&exchange, "fanout");
        wire.bind("q", &exchange, "");
    }
    wire.bind("q", "k0", "");
    wire.delete_exchange("k7");
    wire.delete_exchange("k13");
    let more = ", exchange: \"{key}\", routing_key: x";
    let sink = bus(server.port(), "%2F", more, &format!("{IMPATIENT}, on_reject: skip"));
    insert(&rig, 0, 400, 20);
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'order.large', 'k' || i, \
         jsonb_build_object('pad', repeat('x', CASE WHEN i % 5 = 0 THEN 5000 ELSE 10 END)) FROM generate_series(0, 6) i",
    );
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "bus"));
    let last = rig.insert("k1");
    rig.wait_confirmed(&mut walgate, &last);
    walgate.wait_log(&["no exchange 'k7'"]);
    walgate.wait_log(&["exchange `k5`", "max_message_size"]);
    let skipped = walgate.metric("walgate_events_total", &["outcome=\"skipped\""]);
    let large =
        rig.database.value("SELECT string_agg(id::text, ',') FROM outbox_events WHERE length(payload::text) > 4096");
    let large: HashSet<&str> = large.split(',').collect();
    assert_eq!(large.len(), 2);
    let taken = |event: &Committed| {
        !["k7", "k13"].contains(&event.key.as_deref().expect("a key")) && !large.contains(event.id.as_str())
    };
    let stored = wire.take_all("q");
    let ids: HashSet<&str> = stored.iter().map(Stored::id).collect();
    let committed = rig.committed();
    let missing: Vec<_> = committed.iter().filter(|event| taken(event) && !ids.contains(event.id.as_str())).collect();
    assert!(missing.is_empty(), "blamed for others: {missing:?}");
    assert_eq!(ids.len(), committed.iter().filter(|event| taken(event)).count());
    assert_eq!(skipped.map(|count| count as usize), Some(committed.len() - ids.len()));
    eprintln!("{} repeats", stored.len() - ids.len());
}

#[test]
fn r6_a_fixed_exchange_that_is_missing_is_the_sinks_fault() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let more = ", exchange: orders, routing_key: \"{key}\"";
    let setup = rig.source().sink(&bus(server.port(), &vhost, more, IMPATIENT)).route("**", "bus");
    check(&setup).expect(3, &["exchange `orders` is not on 127.0.0.1", &vhost]);
    check(&to_queue(&rig, server.port(), &vhost)).expect(3, &["queue `orders` is not on 127.0.0.1"]);
    let mut walgate = Walgate::run(&setup);
    let id = rig.insert("k");
    walgate.wait_log(&["no exchange 'orders'", "declare the exchange"]);
    rig.assert_not_passed(&id);
    let mut wire = server.wire(&vhost);
    wire.declare_queue("q", &[]);
    wire.declare_exchange("orders", "topic");
    wire.bind("q", "orders", "#");
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(assert_stored(&rig.committed(), &wire.take_all("q")), 0);
}

#[test]
fn r7_confirms_that_never_come_and_links_that_break_let_no_key_skip_forward() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_queue("orders", &[("x-queue-type", Argument::Text("quorum"))]);
    let proxy = Proxy::to(server.port());
    let mut walgate = Walgate::run(&to_queue(&rig, proxy.port(), &vhost));
    for round in 0..10 {
        insert(&rig, round * 300, (round + 1) * 300, 15);
        let before = wire.count("orders");
        match round % 5 {
            // Written, and nobody hears of it.
            0 => {
                proxy.drop_replies(true);
                walgate.eventually("the proxy has thrown something away", || proxy.dropped_bytes() > 0);
                watch_for(Duration::from_millis(2500));
                proxy.drop_replies(false);
            }
            1 => proxy.cut(),
            // What was sent is held up, and comes out when the black hole ends: after the next connection's, perhaps.
            2 => {
                proxy.black_hole(true);
                watch_for(Duration::from_millis(2500));
                proxy.black_hole(false);
            }
            3 => proxy.reset(),
            _ => {
                proxy.refuse();
                proxy.cut();
                watch_for(Duration::from_millis(300));
                proxy.accept();
            }
        }
        let wanted = (before + 20).min((round as u64 + 1) * 300);
        walgate.eventually("it goes on", || wire.count("orders") >= wanted);
    }
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let repeats = assert_stored(&rig.committed(), &wire.take_all("orders"));
    eprintln!("{repeats} repeats");
    let log = walgate.stderr();
    assert!(log.contains("did not confirm a message for queue `orders`"), "the deadline was met: {log}");
}

#[test]
fn x7_names_from_events_are_checked_and_never_reach_another_queue() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_queue("good", &[]);
    let more = ", routing_key: \"{key}\"";
    let sink = bus(server.port(), &vhost, more, &format!("{IMPATIENT}, on_reject: skip"));
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "bus"));
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('a', repeat('k', 256), '{}'), \
         ('a', repeat('é', 128), '{}'), ('a', E'a\\r\\nb', '{}'), ('a', '', '{}'), \
         ('a', 'amq.rabbitmq.reply-to.x', '{}')",
    );
    let last = rig.insert("good");
    rig.wait_confirmed(&mut walgate, &last);
    for text in ["256 bytes", "control character", "addresses of replies"] {
        walgate.wait_log(&["cannot be published to", text]);
    }
    walgate.wait_log(&["template `{key}`", "is empty for this event"]);
    let stored = wire.take_all("good");
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].id(), last);
    assert_eq!(walgate.metric("walgate_events_total", &["outcome=\"skipped\""]), Some(5.0));
}

#[test]
fn payloads_of_any_size_and_headers_beyond_a_frame() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_queue("orders", &[]);
    let sink = bus(server.port(), &vhost, ", routing_key: orders", &format!("{IMPATIENT}, on_reject: skip"));
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "bus"));
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('a', 'k1', NULL), \
         ('a', 'k2', jsonb_build_object('pad', repeat('x', 5000000)))",
    );
    let large = rig.database.value(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) VALUES ('a', 'k3', '{}', \
         jsonb_build_object('pad', repeat('x', 140000))) RETURNING id",
    );
    let last = rig.insert("k3");
    rig.wait_confirmed(&mut walgate, &last);
    walgate.wait_log(&["the message's headers have", "frame_max"]);
    let committed: Vec<Committed> = rig.committed().into_iter().filter(|event| event.id != large).collect();
    let stored = wire.take_all("orders");
    assert_eq!(stored.len(), 3);
    for event in &committed {
        let message = stored.iter().find(|message| message.id() == event.id).expect("a message");
        assert_eq!(message.hash(), event.hash);
    }
}

#[test]
fn several_hosts_are_tried_in_turn() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_queue("orders", &[]);
    let dead = wait::free_port();
    let sink = format!(
        "bus: {{ rabbitmq: {{ urls: [\"amqp://127.0.0.1:{dead}\", \"amqp://localhost:{}\"], user: walgate, \
         password: secret, vhost: {vhost}, routing_key: orders }}, delivery: {{ {IMPATIENT} }} }}",
        server.port()
    );
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "bus"));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(wire.count("orders"), 1);
}

const PASSWORD: &str = "canary-rabbit-password-5d20";

#[test]
fn wrong_credentials_are_named_and_not_shown() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_queue("orders", &[]);
    let user = format!("u{vhost}");
    server.ctl(&["add_user", &user, PASSWORD]);
    let port = server.port();
    let with = |keys: &str| {
        rig.source()
            .sink(&format!("bus: {{ rabbitmq: {{ {keys}, routing_key: orders }}, delivery: {{ {IMPATIENT} }} }}"))
            .route("**", "bus")
            .env("WALGATE_LOG", "trace,lapin=trace")
    };
    let silent = |text: &str| assert!(!text.contains("canary"), "the password is shown in:\n{text}");
    let in_url = with(&format!("url: \"amqp://{user}:{PASSWORD}@127.0.0.1:{port}/{vhost}\""));
    let ended = check(&in_url);
    ended.expect(3, &["does not let the user in", &vhost]);
    silent(&ended.output());
    let mut walgate = Walgate::run(&in_url);
    let id = rig.insert("k");
    walgate.wait_log(&["does not let the user in"]);
    silent(&walgate.status().expect("a status").to_string());
    // May be here, and may write nothing.
    server.ctl(&["set_permissions", "-p", &vhost, &user, "", "", ".*"]);
    walgate.wait_log(&["refuses a message for queue `orders`", "grant the user the right"]);
    rig.assert_not_passed(&id);
    server.ctl(&["set_permissions", "-p", &vhost, &user, "", ".*", ".*"]);
    rig.wait_confirmed(&mut walgate, &id);
    walgate.terminate();
    silent(&walgate.wait_for_end(DEADLINE).output());
    for wrong in [
        format!("url: \"amqp://{user}:{PASSWORD}x@127.0.0.1:{port}/{vhost}\""),
        format!("url: \"amqp://127.0.0.1:{port}/{vhost}\", user: {user}, password: {PASSWORD}x"),
        format!("url: \"amqp://127.0.0.1:{port}/{vhost}\", user: nobody, password: {PASSWORD}"),
    ] {
        let ended = check(&with(&wrong));
        ended.expect(3, &[&format!("127.0.0.1:{port}"), "does not accept the credentials"]);
        silent(&ended.output());
    }
    let ended = check(&with(&format!("url: \"amqp://{user}:{PASSWORD}@127.0.0.1:{port}/nowhere\"")));
    ended.expect(3, &["nowhere", "check the virtual host"]);
    silent(&ended.output());
    assert_eq!(wire.count("orders"), 1);
}

/// Writes a CA, and what it has signed for `localhost` and for the user, into a folder.
fn certificates(folder: &std::path::Path) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, "walgate test CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    std::fs::write(folder.join("ca.crt"), issuer.pem()).expect("a file");
    for (name, user) in [("server", "localhost"), ("client", "walgate"), ("stranger", "stranger")] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        std::fs::write(folder.join(format!("{name}.crt")), certificate.pem()).expect("a file");
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("a file");
    }
}

#[test]
fn tls_is_verified_and_a_certificate_can_be_the_user() {
    let rig = Rig::new();
    let lines = "listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {folder}/ca.crt\n\
                 ssl_options.certfile = {folder}/server.crt\nssl_options.keyfile = {folder}/server.key\n\
                 ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = false\n\
                 auth_mechanisms.1 = PLAIN\nauth_mechanisms.2 = EXTERNAL\nssl_cert_login_from = common_name\n";
    // Kept where the tests can read them: the node's own folder changes its owner.
    let ours = crate::support::processes::folder("tls");
    certificates(&ours);
    let theirs = crate::support::processes::folder("tls");
    certificates(&theirs);
    let server = Rabbit::with(lines, "rabbitmq_auth_mechanism_ssl", |folder| {
        for name in ["ca.crt", "server.crt", "server.key"] {
            std::fs::copy(ours.join(name), folder.join(name)).expect("a copy");
        }
    });
    let mut wire = server.wire("/");
    wire.declare_queue("orders", &[]);
    let ca = format!("ca_file: {:?}", ours.join("ca.crt"));
    let shown = |name: &str| {
        format!(
            "{ca}, cert_file: {:?}, key_file: {:?}",
            ours.join(format!("{name}.crt")),
            ours.join(format!("{name}.key"))
        )
    };
    let over = |host: &str, user: &str, tls: &str| {
        rig.source()
            .sink(&format!(
                "bus: {{ rabbitmq: {{ url: \"amqps://{host}:{}\", {user}, routing_key: orders, tls: {{ {tls} }} }}, \
                 delivery: {{ {IMPATIENT} }} }}",
                server.tls_port()
            ))
            .route("**", "bus")
    };
    let plain = "user: walgate, password: secret";
    for (setup, stored) in [
        (over("localhost", plain, &ca), 1),
        (over("127.0.0.1", plain, "insecure_skip_verify: true"), 2),
        (over("localhost", "auth: external", &shown("client")), 3),
    ] {
        check(&setup).expect(0, &["sink bus (rabbitmq) answers"]);
        let mut walgate = Walgate::run(&setup);
        let id = rig.insert("k");
        rig.wait_confirmed(&mut walgate, &id);
        walgate.terminate();
        walgate.wait_for_end(DEADLINE).expect(0, &[]);
        assert_eq!(wire.count("orders"), stored);
    }
    for (setup, says) in [
        (
            over("localhost", plain, &format!("ca_file: {:?}", theirs.join("ca.crt"))),
            "not signed by a CA that is trusted here",
        ),
        (over("127.0.0.1", plain, &ca), "for another host name"),
        (over("localhost", plain, "ca_file: /nonexistent/ca.crt"), "the CA file /nonexistent/ca.crt cannot be used"),
        (over("localhost", "auth: external", &shown("stranger")), "does not accept the credentials"),
        (over("localhost", "user: walgate, password: wrong", &ca), "does not accept the credentials"),
    ] {
        check(&setup).expect(3, &[says]);
    }
}

#[test]
fn the_example_and_the_reference_load() {
    crate::shipped::assert_true(
        "rabbitmq",
        "queue",
        include_str!("../../examples/rabbitmq.yaml"),
        &[("RABBITMQ_URL", "amqp://walgate:secret@localhost:5672/shop")],
    );
}
