//! Q rows: SQS, with ministack (and ElasticMQ for what it refuses), and a receiver that plays what neither can be made to
//! answer. What a queue holds is read over HTTP by hand.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::rig::Rig;
use crate::support::oracle::Committed;
use crate::support::proxy::Proxy;
use crate::support::receiver::{Answer, Receiver, hash_of, reply};
use crate::support::sqs::{KEY, Options, SECRET, Server, Stored};
use crate::support::wait::DEADLINE;
use crate::support::walgate::{Ended, Setup, Walgate};

/// The inside of `delivery: { }` with a short attempt.
const IMPATIENT: &str = "timeout: 3s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }";

/// A queue's name that no other test has.
fn queue(kind: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("q{}{kind}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A sink `tasks`; `more` are further keys of `sqs:`.
fn tasks(rig: &Rig, server: &Server, port: u16, more: &str, delivery: &str) -> Setup {
    let sink = format!("tasks: {{ sqs: {{ {}{more} }}, delivery: {{ {delivery} }} }}", server.by(port));
    rig.source().sink(&sink).route("**", "tasks")
}

fn to(rig: &Rig, server: &Server, queue: &str) -> Setup {
    tasks(rig, server, server.port(), &format!(", queue: {queue}"), IMPATIENT)
}

fn check(setup: &Setup) -> Ended {
    Walgate::command(setup, &["check", "--connect", "--config", "{config}"])
}

/// Rows of `keys` keys in turn.
fn insert(rig: &Rig, from: usize, to: usize, keys: usize) {
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'k' || i % {keys}, jsonb_build_object('i', i) FROM generate_series({from}, {to} - 1) i"
    ));
}

/// Nothing is missing, nothing else is there, bodies are whole; in a FIFO queue the messages of a key never skip forward.
/// Returns the repeats.
#[track_caller]
fn assert_stored(committed: &[Committed], stored: &[Stored], fifo: bool) -> usize {
    let by_id: HashMap<&str, &Committed> = committed.iter().map(|event| (event.id.as_str(), event)).collect();
    let mut highest: HashMap<&str, u64> = HashMap::new();
    let mut seen = HashSet::new();
    for (at, message) in stored.iter().enumerate() {
        let event = by_id.get(message.id()).unwrap_or_else(|| panic!("a phantom: {message:?}"));
        assert_eq!(hash_of(&message.body), event.hash, "the payload of {}", event.id);
        assert_eq!(message.attribute("walgate-key"), event.key.as_deref());
        if let Some(key) = event.key.as_deref().filter(|_| fifo) {
            let highest = highest.entry(key).or_default();
            assert!(event.n <= *highest + 1, "key {key}: {} after {highest}, at place {at}", event.n);
            *highest = event.n.max(*highest);
        }
        seen.insert(message.id());
    }
    let missing: Vec<&&str> = by_id.keys().filter(|id| !seen.contains(**id)).collect();
    assert!(missing.is_empty(), "{} of {} are missing: {:?}", missing.len(), committed.len(), missing.first());
    stored.len() - seen.len()
}

#[test]
fn an_event_is_stored_whole_with_its_attributes_x6() {
    for server in [Server::shared(), Server::elasticmq()] {
        let (rig, name) = (Rig::new(), queue(""));
        server.create(&name, &[]);
        let more = format!(", queue: {name}, forward_headers: [traceparent, tenant]");
        let mut walgate = Walgate::run(&tasks(&rig, server, server.port(), &more, IMPATIENT));
        let id = rig.database.value(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) VALUES ('order.created', 'k é', \
             '{\"total\": 1}', '{\"traceparent\": \"00-abc\", \"other\": \"x\", \"tenant\": \"a\\r\\nb%\"}') RETURNING id",
        );
        rig.wait_confirmed(&mut walgate, &id);
        let stored = server.take_all(&name);
        let [message] = &stored[..] else { panic!("{stored:?}") };
        assert_eq!(message.body, r#"{"total": 1}"#);
        for (name, value) in [
            ("id", &*id),
            ("walgate-event-type", "order.created"),
            ("walgate-key", "k %C3%A9"),
            ("content-type", "application/json"),
            ("traceparent", "00-abc"),
            ("tenant", "a%0D%0Ab%25"),
        ] {
            assert_eq!(message.attribute(name), Some(value), "{name}: {message:?}");
        }
        assert_eq!(message.attributes.len(), 8, "{message:?}");
        assert!(message.dedup.is_none() && message.group.is_none(), "{message:?}");
    }
}

#[test]
fn a_fifo_queue_keeps_every_key_in_order_over_kills_and_restarts() {
    let (rig, server) = (Rig::new(), Server::with(Options::default()));
    server.create("orders.fifo", &[]);
    let proxy = Proxy::to(server.port());
    let setup = tasks(&rig, &server, proxy.port(), ", queue: orders.fifo", IMPATIENT);
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    for round in 0..6 {
        insert(&rig, round * 300, (round + 1) * 300, 20);
        let wanted = round * 300 + 40;
        walgate.eventually("some of it is stored", || server.count("orders.fifo") >= wanted);
        match round % 3 {
            0 => {
                walgate.kill9();
                rig.witness.note_kill(rig.database.confirmed_when_released());
                walgate = Walgate::run_file(&setup, &file);
            }
            1 => {
                server.stop();
                server.start_again();
            }
            _ => proxy.reset(),
        }
    }
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    // Repeats within five minutes are swallowed by the queue.
    assert_eq!(assert_stored(&rig.committed(), &server.take_all("orders.fifo"), true), 0);
}

#[test]
fn g2_q5_lost_answers_are_repeated_with_the_same_ids() {
    // A window so short that the repeats are stored, and seen.
    let window = Some(Duration::from_millis(10));
    let (rig, server) = (Rig::new(), Server::with(Options { dedup_window: window, ..Options::default() }));
    server.create("orders.fifo", &[]);
    let proxy = Proxy::to(server.port());
    let delivery = "timeout: 1s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }";
    let mut walgate = Walgate::run(&tasks(&rig, &server, proxy.port(), ", queue: orders.fifo", delivery));
    let first = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &first);
    proxy.drop_replies(true);
    insert(&rig, 0, 60, 6);
    walgate.eventually("requests are taken, and their answers lost", || server.count("orders.fifo") >= 7);
    walgate.wait_log(&["did not answer within", "sent again"]);
    proxy.drop_replies(false);
    proxy.cut();
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let repeats = assert_stored(&rig.committed(), &server.take_all("orders.fifo"), true);
    // Q5: what comes again beyond the window is stored again, in its place.
    assert!(repeats > 0, "no repeat was stored");
}

#[test]
fn q1_only_what_failed_of_a_request_is_judged_by_it() {
    let (rig, server, name) = (Rig::new(), Server::shared(), queue(".fifo"));
    server.create(&name, &[]);
    let more = format!(", queue: {name}");
    let delivery = format!("{IMPATIENT}, on_reject: skip");
    let mut walgate = Walgate::run(&tasks(&rig, server, server.port(), &more, &delivery));
    let first = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &first);
    // walgate has read the queue's limit by now, so that the queue itself refuses what is too large.
    server.set(&name, "MaximumMessageSize", "1024");
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'order.created', 'k' || i % 10, \
         jsonb_build_object('i', i, 'x', repeat('x', CASE WHEN i % 10 = 3 THEN 2000 ELSE 1 END)) \
         FROM generate_series(0, 99) i",
    );
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    walgate.wait_log(&["refuses the message"]);
    let kept: Vec<Committed> = rig.committed().into_iter().filter(|event| event.key.as_deref() != Some("k3")).collect();
    assert_eq!(kept.len(), 92);
    assert_eq!(assert_stored(&kept, &server.take_all(&name), true), 0);
    assert_eq!(walgate.metric("walgate_discarded_events_total", &["reason=\"rejected\""]), Some(10.0));
}

/// A server that answers each call by script; `send` gets the number of the call of `SendMessageBatch`, from 1.
fn played(send: impl Fn(u64) -> Answer + Send + Sync + 'static) -> Receiver {
    let receiver = Receiver::unsigned();
    let port = receiver.port();
    let calls = AtomicU64::new(0);
    receiver.script(move |request| {
        let action = request.headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
        match action {
            "AmazonSQS.GetQueueUrl" => json(200, &format!(r#"{{"QueueUrl":"http://127.0.0.1:{port}/0/q"}}"#)),
            "AmazonSQS.GetQueueAttributes" => json(200, r#"{"Attributes":{}}"#),
            "AmazonSQS.SendMessageBatch" => send(calls.fetch_add(1, Ordering::SeqCst) + 1),
            other => panic!("unexpected: {other}"),
        }
    });
    receiver
}

fn json(status: u16, body: &str) -> Answer {
    reply(status).header("content-type", "application/x-amz-json-1.0").body(body).into()
}

fn taken() -> Answer {
    json(200, r#"{"Successful":[{"Id":"0","MessageId":"m","MD5OfMessageBody":"0"}],"Failed":[]}"#)
}

fn to_played(rig: &Rig, receiver: &Receiver) -> Setup {
    let sink = format!(
        "tasks: {{ sqs: {{ endpoint: \"http://127.0.0.1:{}\", region: us-east-1, access_key_id: {KEY}, \
         secret_access_key: {SECRET}, queue: q }}, delivery: {{ {IMPATIENT} }} }}",
        receiver.port()
    );
    rig.source().sink(&sink).route("**", "tasks")
}

#[test]
fn q1_a_message_that_the_answer_leaves_out_is_sent_again() {
    let rig = Rig::new();
    let sent = Arc::new(AtomicU64::new(0));
    let last = Arc::clone(&sent);
    let answer = |call| match call {
        1 => json(200, r#"{"Successful":[],"Failed":[]}"#),
        2 => json(200, r#"{"Failed":[{"Id":"0","SenderFault":false,"Code":"InternalError","Message":"later"}]}"#),
        3 => json(200, r#"{"Successful":[{"Id":"7","MessageId":"m","MD5OfMessageBody":"0"}],"Failed":[]}"#),
        4 => json(200, "not JSON"),
        _ => taken(),
    };
    let receiver = played(move |call| {
        last.store(call, Ordering::SeqCst);
        answer(call)
    });
    let mut walgate = Walgate::run(&to_played(&rig, &receiver));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    let log = walgate.stderr();
    assert!(log.contains("leaves a message out"), "{log}");
    assert_eq!(sent.load(Ordering::SeqCst), 5);
}

#[test]
fn q2_throttling_trouble_and_a_wrong_clock_are_told_apart() {
    let rig = Rig::new();
    let receiver = played(|call| match call {
        1 => json(400, r#"{"__type":"com.amazonaws.sqs#RequestThrottled","message":"slower"}"#),
        2 => json(500, r#"{"__type":"InternalError"}"#),
        3 => Answer::Reset,
        4 => Answer::CloseAfterBody,
        5 => match json(
            403,
            r#"{"__type":"InvalidSignatureException","message":"Signature expired: 20260101T000000Z is now earlier"}"#,
        ) {
            Answer::Reply(reply) => reply.header("date", "Thu, 01 Jan 2026 00:20:00 GMT").into(),
            other => other,
        },
        _ => taken(),
    });
    let mut walgate = Walgate::run(&to_played(&rig, &receiver));
    let id = rig.insert("k");
    walgate.wait_log(&["asks for less on queue `q` (RequestThrottled: slower)"]);
    walgate.wait_log(&["this machine's clock is off (its clock says Thu, 01 Jan 2026 00:20:00 GMT)"]);
    rig.wait_confirmed(&mut walgate, &id);
    let log = walgate.stderr();
    assert!(!log.contains(SECRET) && !log.contains(KEY), "{log}");
}

#[test]
fn q3_requests_keep_to_ten_entries_and_a_mebibyte() {
    for server in [Server::shared(), Server::elasticmq()] {
        let (rig, name) = (Rig::new(), queue(""));
        server.create(&name, &[("MaximumMessageSize", "1048576")]);
        let delivery = format!("{IMPATIENT}, on_reject: skip");
        let mut walgate = Walgate::run(&tasks(&rig, server, server.port(), &format!(", queue: {name}"), &delivery));
        rig.database.sql(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'order.created', 'k' || i, \
             jsonb_build_object('i', i, 'x', repeat('x', CASE WHEN i % 3 = 0 THEN 400000 ELSE 1 END)) \
             FROM generate_series(0, 39) i",
        );
        let large = rig.database.insert("order.created", "large", &format!(r#"{{"x": "{}"}}"#, "x".repeat(1 << 20)));
        let last = rig.insert("k0");
        rig.wait_confirmed(&mut walgate, &last);
        walgate.wait_log(&["the message has ", "takes 1048576 at the most: raise its MaximumMessageSize"]);
        let kept: Vec<Committed> = rig.committed().into_iter().filter(|event| event.id != large).collect();
        assert_eq!(assert_stored(&kept, &server.take_all(&name), false), 0);
        // The queue's own limit, read at the start.
        if std::ptr::eq(server, Server::shared()) {
            let small = queue("");
            server.create(&small, &[("MaximumMessageSize", "2048"), ("MessageRetentionPeriod", "600")]);
            let rig = Rig::new();
            let setup = tasks(&rig, server, server.port(), &format!(", queue: {small}"), &delivery);
            check(&setup).expect(0, &["drops messages after 600 s, read or not (MessageRetentionPeriod)"]);
            let mut walgate = Walgate::run(&setup);
            rig.database.insert("order.created", "k", &format!(r#"{{"x": "{}"}}"#, "x".repeat(2000)));
            let last = rig.insert("k");
            rig.wait_confirmed(&mut walgate, &last);
            walgate.wait_log(&["takes 2048 at the most"]);
            assert_eq!(server.take_all(&small).len(), 1);
        }
    }
}

#[test]
fn q4_what_sqs_refuses_travels_as_base64() {
    for server in [Server::shared(), Server::elasticmq()] {
        let (rig, name) = (Rig::new(), queue(""));
        server.create(&name, &[]);
        rig.database.sql("ALTER TABLE outbox_events ALTER COLUMN payload TYPE text");
        let mut walgate = Walgate::run(&to(&rig, server, &name));
        let payloads = ["bell \u{7}", "\u{fffe}", "\u{1b}[31m", "tab\t and \u{1f600}", ""];
        for payload in payloads {
            rig.database.sql(&format!(
                "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('a', 'k', '{payload}')"
            ));
        }
        rig.database.sql("INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('a', 'k', NULL)");
        let last = rig.insert("k");
        rig.wait_confirmed(&mut walgate, &last);
        let stored = server.take_all(&name);
        let mut seen: Vec<(String, Option<String>)> = stored
            .iter()
            .filter(|message| message.id() != last)
            .map(|message| match message.attribute("walgate-encoding") {
                Some("base64") => {
                    let bytes = STANDARD.decode(&message.body).expect("base64");
                    (String::from_utf8(bytes).expect("UTF-8"), Some("base64".to_owned()))
                }
                other => (message.body.clone(), other.map(str::to_owned)),
            })
            .collect();
        seen.sort();
        let mut wanted: Vec<(String, Option<String>)> =
            payloads[..3].iter().map(|text| ((*text).to_owned(), Some("base64".to_owned()))).collect();
        wanted.push((payloads[3].to_owned(), None));
        wanted.extend([("-".to_owned(), Some("empty".to_owned())), ("-".to_owned(), Some("empty".to_owned()))]);
        wanted.sort();
        assert_eq!(seen, wanted);
    }
}

#[test]
fn q6_groups_that_sqs_refuses_are_hashed_and_stay_the_same() {
    for server in [Server::shared(), Server::elasticmq()] {
        let (rig, name) = (Rig::new(), queue(".fifo"));
        server.create(&name, &[]);
        let mut walgate = Walgate::run(&to(&rig, server, &name));
        let long = "x".repeat(200);
        let keys = ["plain", "two words", "é", &long, "sha256-0"];
        for round in 0..4 {
            for key in keys {
                rig.database.insert("order.created", key, &format!(r#"{{"round": {round}}}"#));
            }
        }
        let last = rig.insert("plain");
        rig.wait_confirmed(&mut walgate, &last);
        let stored = server.take_all(&name);
        let mut groups: HashMap<String, Vec<u64>> = HashMap::new();
        let places: HashMap<String, Committed> =
            rig.committed().into_iter().map(|event| (event.id.clone(), event)).collect();
        for message in &stored {
            groups.entry(message.group.clone().expect("a group")).or_default().push(places[message.id()].n);
        }
        assert_eq!(groups.len(), keys.len(), "{groups:?}");
        assert_eq!(groups.remove("plain"), Some(vec![1, 2, 3, 4, 5]));
        for (group, order) in groups {
            assert!(group.starts_with("sha256-") && group.len() == 71, "{group}");
            assert_eq!(order, [1, 2, 3, 4]);
        }
    }
}

#[test]
fn one_event_to_two_targets_of_one_queue_is_stored_twice() {
    let (rig, server, name) = (Rig::new(), Server::shared(), queue(".fifo"));
    server.create(&name, &[]);
    let other = queue(".fifo");
    server.create(&other, &[]);
    let sink = format!("tasks: {{ sqs: {{ {}, queue: {name} }} }}", server.by(server.port()));
    let setup = rig
        .source()
        .sink(&sink)
        .route("**", &format!("[tasks, {{ sink: tasks, group: all }}, {{ sink: tasks, queue: {other} }}]"));
    let mut walgate = Walgate::run(&setup);
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    let stored = server.take_all(&name);
    let mut groups: Vec<&str> = stored.iter().filter_map(|message| message.group.as_deref()).collect();
    groups.sort_unstable();
    assert_eq!(groups, ["all", "k"]);
    assert!(stored.iter().all(|message| message.id() == id));
    assert_eq!(server.take_all(&other).len(), 1);
}

#[test]
fn x7_queues_from_events_stay_within_the_grammar() {
    let (rig, server) = (Rig::new(), Server::shared());
    let stem = queue("");
    server.create(&format!("{stem}-good"), &[]);
    let delivery = format!("{IMPATIENT}, on_reject: skip");
    let more = format!(", queue: \"{stem}-{{key}}\"");
    let mut walgate = Walgate::run(&tasks(&rig, server, server.port(), &more, &delivery));
    let long = "x".repeat(90);
    let bad =
        ["../other", "a/b", "a b", "http://127.0.0.1:1/0/q", "a?Action=DeleteQueue", "é", "a.fifo.b", "%2e", &long];
    for key in bad {
        rig.insert(key);
    }
    let nowhere = rig.insert("nowhere");
    let last = rig.insert("good");
    rig.wait_confirmed(&mut walgate, &last);
    let log = walgate.wait_log(&["there is no queue"]);
    assert!(log.contains(&format!("`{stem}-nowhere`")), "{log}");
    let said = walgate.said();
    assert!(said.contains("cannot be sent to"), "{said}");
    let stored = server.take_all(&format!("{stem}-good"));
    assert_eq!(stored.iter().map(Stored::id).collect::<Vec<_>>(), [&*last]);
    assert_ne!(nowhere, last);
}

#[test]
fn a_missing_queue_and_refused_credentials_are_waited_for() {
    let options = Options { access_key_id: Some(KEY), ..Options::default() };
    let (rig, server) = (Rig::new(), Server::with(options));
    let setup = to(&rig, &server, "orders");
    check(&setup).expect(3, &["there is no queue `orders` at http://127.0.0.1:", "create it"]);
    let mut walgate = Walgate::run(&setup);
    let id = rig.insert("k");
    walgate.wait_log(&["there is no queue `orders`"]);
    rig.assert_not_passed(&id);
    server.create("orders", &[]);
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(server.take_all("orders").len(), 1);
    walgate.terminate();
    walgate.wait_for_end(DEADLINE).expect(0, &[]);

    let wrong = rig.source().sink(&format!(
        "tasks: {{ sqs: {{ endpoint: \"http://127.0.0.1:{}\", region: us-east-1, access_key_id: AKIAWRONGCANARY00001, \
         secret_access_key: {SECRET}, queue: orders }} }}",
        server.port()
    ));
    let ended = check(&wrong.route("**", "tasks"));
    ended.expect(3, &["does not let these credentials send to queue `orders`", "sqs:SendMessage"]);
    for secret in ["AKIAWRONGCANARY00001", SECRET] {
        assert!(!ended.output().contains(secret), "{}", ended.output());
    }
}

#[test]
fn roles_are_assumed_one_after_the_other() {
    let rig = Rig::new();
    let sts = Receiver::unsigned();
    // What each call is signed with shows whose credentials it has.
    sts.script(|request| {
        let signed = request.headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let next = if signed.contains(KEY) { "AKIAHUB0000000000001" } else { "AKIAORDERS0000000001" };
        assert!(signed.contains(KEY) || signed.contains("AKIAHUB0000000000001"), "{signed}");
        let body = format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials>\
             <AccessKeyId>{next}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken>\
             <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
        );
        reply(200).header("content-type", "text/xml").body(body).into()
    });
    let options = Options { access_key_id: Some("AKIAORDERS0000000001"), ..Options::default() };
    let server = Server::with(options);
    let more = ", queue: orders, assume_roles: [{ role_arn: \"arn:aws:iam::111111111111:role/hub\" }, \
                { role_arn: \"arn:aws:iam::222222222222:role/orders\", external_id: shop }]";
    let sts_url = format!("http://127.0.0.1:{}", sts.port());
    let setup = tasks(&rig, &server, server.port(), more, IMPATIENT).env("AWS_ENDPOINT_URL_STS", &sts_url);
    // The server takes nobody but the last role of the chain.
    check(&setup).expect(3, &["there is no queue `orders`"]);
    let bodies: Vec<String> = sts.receipts().iter().map(|receipt| receipt.text().to_owned()).collect();
    assert_eq!(bodies.len(), 2, "{bodies:?}");
    assert!(bodies[0].contains("role%2Fhub") && !bodies[0].contains("ExternalId"), "{bodies:?}");
    assert!(bodies[1].contains("role%2Forders") && bodies[1].contains("ExternalId=shop"), "{bodies:?}");
    // A role that may not be assumed.
    sts.script(|_| {
        let body = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>not you</Message></Error>\
                    </ErrorResponse>";
        reply(403).header("content-type", "text/xml").body(body).into()
    });
    check(&setup).expect(3, &["there are no credentials for", "not you"]);
}

#[test]
fn an_outage_is_waited_for_and_others_go_on() {
    let (rig, server) = (Rig::new(), Server::with(Options::default()));
    server.create("orders", &[]);
    let setup = to(&rig, &server, "orders").webhook("hook", &rig.receiver).route("**", "hook");
    let mut walgate = Walgate::run(&setup);
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    server.stop();
    let id = rig.insert("k");
    walgate.eventually("the other sink has it", || rig.receiver.has(&id));
    walgate.wait_log(&["no answer from http://127.0.0.1:"]);
    rig.assert_not_passed(&id);
    server.start_again();
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(assert_stored(&rig.committed(), &server.take_all("orders"), false), 0);
}

#[test]
fn the_example_and_the_reference_are_true() {
    let example = include_str!("../../examples/sqs.yaml");
    crate::shipped::assert_true("sqs", "tasks", example, &[("AWS_REGION", "eu-central-1")]);
}
