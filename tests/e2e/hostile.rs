//! X6, X7, C6: one list of hostile texts as event type, key, header value and header name, to each kind of sink. What is legal
//! there arrives whole, once, under its own name; what is not is rejected with a reason; and nothing else is anywhere.

use std::collections::BTreeMap;

use crate::rig::Rig;
use crate::support::wait::DEADLINE;
use crate::support::walgate::{Setup, Walgate};

/// The inside of `delivery: { }`.
const SKIPPING: &str = "timeout: 5s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }, on_reject: skip";

/// What rows hold that mean harm, or nothing at all.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        // Lines and fields of protocols.
        "a\r\nb",
        "a\r\nNats-Rollup: all\r\n",
        "a 0\r\n\r\nPUB evil 1\r\nx",
        "x HTTP/1.1\r\nhost: evil\r\n\r\n",
        "a\nb",
        "a\rb",
        "\t",
        " ",
        "a b",
        " a ",
        "",
        // Terminals, and what turns or hides text.
        "\u{1b}[31mred",
        "\u{1b}]0;title\u{7}",
        "\u{7f}",
        "\u{9b}31m",
        "\u{85}",
        "\u{202e}gpj.exe",
        "\u{200b}",
        "\u{feff}",
        "\u{2028}",
        // Wildcards and subjects of the server.
        "*",
        ">",
        "#",
        "a.*",
        "a.>",
        "$JS.API.STREAM.DELETE.ORDERS",
        "$SYS.REQ.SERVER.PING",
        "_INBOX.x",
        "amq.rabbitmq.reply-to.x",
        "amq.direct",
        // Ways.
        ".",
        "..",
        "a..b",
        ".a",
        "a.",
        "/",
        "../x",
        "//evil.example/",
        "a/b?c=d#e",
        "\\evil",
        "http://127.0.0.1:1/0/q",
        "user:pw@evil.example",
        "%2e%2e",
        "%0d%0aX: 1",
        "a?Action=DeleteQueue",
        // Names that mean something.
        "CC",
        "BCC",
        "Nats-Msg-Id",
        "Nats-Rollup",
        "webhook-id",
        "content-length",
        "id",
        "walgate-key",
        "AWS.x",
        // Code of others.
        "{key}",
        "${HOME}",
        "{{ 7 * 7 }}",
        "'; DROP TABLE outbox_events; --",
        "$(id)",
        "é",
        "\u{1f600}",
        "sha256-0",
    ]
    .map(str::to_owned)
    .into();
    texts.push("x".repeat(256));
    texts.push("x".repeat(70_000));
    texts
}

/// What of an event holds the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Type,
    Key,
    Value,
    Name,
}

/// One event.
#[derive(Debug)]
pub struct Row {
    pub id: String,
    pub place: Place,
    pub text: String,
}

impl Row {
    fn part<'a>(&'a self, place: Place, other: &'a str) -> &'a str {
        if self.place == place { &self.text } else { other }
    }

    pub fn event_type(&self) -> &str {
        self.part(Place::Type, "order.created")
    }

    pub fn key(&self) -> &str {
        self.part(Place::Key, "k")
    }

    /// The value of the header `tenant`, which every event has.
    pub fn tenant(&self) -> &str {
        self.part(Place::Value, "t")
    }
}

/// A message as the other side has it, everything decoded.
#[derive(Debug, Default)]
pub struct Arrived {
    pub id: String,
    /// Where it was found.
    pub target: String,
    pub event_type: String,
    pub key: String,
    /// Headers of the event.
    pub headers: BTreeMap<String, String>,
}

/// A text as SQL: `E'\\UXXXXXXXX'` stands for any character.
fn sql(text: &str) -> String {
    let escaped: String = text.chars().map(|c| format!("\\U{:08X}", u32::from(c))).collect();
    format!("E'{escaped}'")
}

/// Inserts every text at every place and runs walgate until all of it is over.
pub fn run(rig: &Rig, setup: &Setup) -> (Vec<Row>, Walgate) {
    let mut rows = Vec::new();
    for text in texts() {
        for place in [Place::Type, Place::Key, Place::Value, Place::Name] {
            let mut row = Row { id: String::new(), place, text: text.clone() };
            let other = if place == Place::Name { format!(", {}, 'named'", sql(&text)) } else { String::new() };
            row.id = rig.database.value(&format!(
                "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) \
                 VALUES ({}, {}, '{{}}', jsonb_build_object('tenant', {}{other})) RETURNING id",
                sql(row.event_type()),
                sql(row.key()),
                sql(row.tenant()),
            ));
            rows.push(row);
        }
    }
    let mut walgate = Walgate::run(&setup.clone().env("WALGATE_LOG_FORMAT", "human"));
    let last = rig.database.value(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) \
         VALUES ('order.created', 'k', '{}', '{\"tenant\": \"t\", \"last\": \"named\"}') RETURNING id",
    );
    rig.wait_confirmed(&mut walgate, &last);
    rows.push(Row { id: last, place: Place::Name, text: "last".to_owned() });
    (rows, walgate)
}

/// Judges what has arrived. `takes`: where a row must arrive; `None`: it must be rejected. `forwards`: whether all headers of
/// an event travel, or only `tenant`.
#[track_caller]
pub fn assert_isolated(
    rows: &[Row],
    walgate: Walgate,
    mut arrived: Vec<Arrived>,
    takes: impl Fn(&Row) -> Option<String>,
    forwards: bool,
) {
    for row in rows {
        let shown = format!("{:?} {:?}", row.place, row.text.chars().take(80).collect::<String>());
        let found: Vec<usize> = (0..arrived.len()).filter(|at| arrived[*at].id == row.id).collect();
        match (takes(row), &found[..]) {
            (Some(target), [at]) => {
                let message = arrived.swap_remove(*at);
                assert_eq!(message.target, target, "{shown}: where it went");
                let seen = (&*message.event_type, &*message.key, message.headers.get("tenant").map(String::as_str));
                assert!(seen == (row.event_type(), row.key(), Some(row.tenant())), "{shown}: {}", brief(&message));
                if row.place == Place::Name && forwards {
                    let other = message.headers.iter().find(|(name, _)| row.text.eq_ignore_ascii_case(name));
                    assert!(other.is_some_and(|(_, value)| value == "named"), "{shown}: {}", brief(&message));
                    assert_eq!(message.headers.len(), 2, "{shown}: {}", brief(&message));
                } else {
                    assert_eq!(message.headers.len(), 1, "{shown}: {}", brief(&message));
                }
            }
            (None, []) => {
                let said = walgate.stderr();
                assert!(said.lines().any(|line| line.contains(&row.id)), "{shown}: nothing says why it was rejected");
            }
            (expected, found) => panic!("{shown}: {expected:.80?} was expected, and {} came", found.len()),
        }
    }
    assert!(arrived.is_empty(), "nobody sent this: {}", brief(&arrived));
    walgate.terminate();
    let ended = walgate.wait_for_end(DEADLINE);
    let raw = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{2028}');
    for line in ended.output().lines() {
        assert!(!line.contains(raw) && line.len() < 4096, "a line that is not plain: {line:.500?}");
    }
}

/// The beginning of what a message holds.
fn brief(message: &impl std::fmt::Debug) -> String {
    format!("{message:?}").chars().take(400).collect()
}

/// What percent-encoding stands for.
pub fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let escape = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match escape.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => (plain.push(byte), at += 3),
            None => (plain.push(bytes[at]), at += 1),
        };
    }
    String::from_utf8(plain).expect("UTF-8")
}

/// The members of a message that begin with `walgate-header-`, decoded.
fn forwarded<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> BTreeMap<String, String> {
    let own = headers.filter_map(|(name, value)| Some((name.strip_prefix("walgate-header-")?, value)));
    own.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

#[cfg(feature = "nats")]
#[test]
fn x6_x7_nats() {
    use crate::support::nats::NatsServer;

    let (rig, server) = (Rig::new(), NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], serde_json::json!({}));
    server.add_stream("REST", &["evil.>", "evil", "x.>", "a.>", "a", "x"], serde_json::json!({}));
    let mut spy = server.wire();
    spy.subscribe(">");
    let sink = format!(
        "bus: {{ nats: {{ servers: [\"127.0.0.1:{}\"], subject: \"orders.{{event_type}}.{{key}}\" }}, \
         delivery: {{ {SKIPPING} }} }}",
        server.port()
    );
    let (rows, walgate) = run(&rig, &rig.source().sink(&sink).route("**", "bus"));
    // The grammar, once more and in other words.
    let is_token = |token: &str| {
        !token.is_empty() && !token.chars().any(|c| c.is_whitespace() || c.is_control() || c == '*' || c == '>')
    };
    let takes = |row: &Row| {
        let subject = format!("orders.{}.{}", row.event_type(), row.key());
        // A message has 64 KiB of headers at the most.
        let legal = subject.len() <= 3 << 10 && subject.split('.').all(is_token) && row.text.len() < 60_000;
        (legal && !row.event_type().is_empty() && !row.key().is_empty()).then_some(subject)
    };
    let stored = server.stored("ORDERS");
    let arrived = stored.iter().map(|message| {
        let header = |name| decoded(message.header(name).unwrap_or_default());
        let pairs = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, _) in &message.headers {
            let own = ["id", "Nats-Msg-Id", "content-type"].contains(&name.as_str()) || name.starts_with("walgate-");
            assert!(own, "{name}: {}", brief(message));
        }
        Arrived {
            id: message.id().to_owned(),
            target: message.subject.clone(),
            event_type: header("walgate-event-type"),
            key: header("walgate-key"),
            headers: forwarded(pairs),
        }
    });
    assert_isolated(&rows, walgate, arrived.collect(), takes, true);
    assert_eq!(server.streams(), ["ORDERS", "REST"]);
    assert_eq!(server.count("REST"), 0);
    // Nor did anything go past the streams.
    let asked = |subject: &str| subject.starts_with("$JS.") || subject.starts_with("_INBOX.");
    let seen = spy.received().into_iter().filter(|message| !asked(&message.subject)).count();
    assert_eq!(seen, stored.len());
}

#[cfg(feature = "rabbitmq")]
#[test]
fn x6_x7_rabbitmq() {
    use crate::support::rabbitmq::Rabbit;

    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    wire.declare_exchange("orders", "topic");
    wire.declare_queue("all", &[]);
    wire.bind("all", "orders", "#");
    // Whither `CC`, the default exchange or a wildcard might lead.
    let others = ["named", "k", "order.created", "#", "*", "CC", "evil"];
    for queue in others {
        wire.declare_queue(queue, &[]);
    }
    let lists = || ["list_queues", "list_exchanges"].map(|list| server.ctl(&[list, "-p", &vhost, "name"]));
    let before = lists();
    let sink = format!(
        "bus: {{ rabbitmq: {{ url: \"amqp://walgate:secret@127.0.0.1:{}/{vhost}\", exchange: orders, \
         routing_key: \"{{event_type}}/{{key}}\" }}, delivery: {{ {SKIPPING} }} }}",
        server.port()
    );
    let (rows, walgate) = run(&rig, &rig.source().sink(&sink).route("**", "bus"));
    let takes = |row: &Row| {
        let key = format!("{}/{}", row.event_type(), row.key());
        let legal = key.len() <= 255
            && !key.chars().any(char::is_control)
            // The mailbox of a client that waits for an answer.
            && !key.starts_with("amq.rabbitmq.reply-to")
            // Names of headers are short strings too.
            && (row.place != Place::Name || row.text.len() <= 255 - "walgate-header-".len());
        (legal && !row.event_type().is_empty() && !row.key().is_empty()).then_some(key)
    };
    let arrived = wire.take_all("all").into_iter().map(|message| {
        let header = |name| message.header(name).unwrap_or_default().to_owned();
        let own = |name: &str| Some(name.strip_prefix("walgate-header-")?.to_owned());
        Arrived {
            id: message.id().to_owned(),
            target: message.routing_key.clone(),
            event_type: header("walgate-event-type"),
            key: header("walgate-key"),
            headers: message.headers.iter().filter_map(|(name, value)| Some((own(name)?, value.clone()))).collect(),
        }
    });
    assert_isolated(&rows, walgate, arrived.collect(), takes, true);
    assert_eq!(lists(), before);
    for queue in others {
        assert_eq!(wire.count(queue), 0, "{queue}");
    }
}

#[cfg(feature = "sqs")]
#[test]
fn x6_x7_sqs() {
    use crate::support::sqs::Server;

    let (rig, server) = (Rig::new(), Server::with(Default::default()));
    server.create("to-k", &[]);
    server.create("other", &[]);
    let queues = || server.call("ListQueues", &serde_json::json!({}))["QueueUrls"].clone();
    let before = queues();
    let sink = format!(
        "tasks: {{ sqs: {{ {}, queue: \"to-{{key}}\", forward_headers: [tenant] }}, delivery: {{ {SKIPPING} }} }}",
        server.by(server.port())
    );
    let (rows, walgate) = run(&rig, &rig.source().sink(&sink).route("**", "tasks"));
    // No other key names a queue that is there. Names of headers are the configuration's.
    let takes = |row: &Row| (row.place != Place::Key).then(|| "to-k".to_owned());
    let arrived = server.take_all("to-k").into_iter().map(|message| {
        let attribute = |name| decoded(message.attribute(name).unwrap_or_default());
        let names = message.attributes.iter().map(|(name, _)| name.as_str());
        for name in names {
            let own = ["id", "content-type", "tenant"].contains(&name) || name.starts_with("walgate-");
            assert!(own, "{name}: {}", brief(&message));
        }
        Arrived {
            id: message.id().to_owned(),
            target: "to-k".to_owned(),
            event_type: attribute("walgate-event-type"),
            key: attribute("walgate-key"),
            headers: [("tenant".to_owned(), attribute("tenant"))].into(),
        }
    });
    assert_isolated(&rows, walgate, arrived.collect(), takes, false);
    assert_eq!(queues(), before);
    assert_eq!(server.count("other"), 0);
}

#[cfg(feature = "webhook")]
#[test]
fn x6_x7_webhook() {
    let rig = Rig::new();
    let sink = format!(
        "hook: {{ webhook: {{ url: {:?}, secret: {:?}, path: \"/{{event_type}}/{{key}}?tenant={{header.tenant}}\" }}, \
         delivery: {{ {SKIPPING} }} }}",
        rig.receiver.url(),
        crate::support::receiver::SECRET
    );
    let (rows, walgate) = run(&rig, &rig.source().sink(&sink).route("**", "hook"));
    let takes = |row: &Row| {
        let parts = [row.event_type(), row.key(), row.tenant()];
        let empty = parts.iter().any(|part| part.is_empty());
        // A segment of nothing but dots is what proxies resolve, encoded or not.
        let dots = parts[..2].iter().any(|part| matches!(*part, "." | ".."));
        (!empty && !dots && row.text.len() < 8 << 10).then(|| parts.join("\n"))
    };
    let receipts = rig.receiver.receipts();
    assert_eq!(rig.receiver.requests(), receipts.len() as u64);
    let arrived = receipts.iter().map(|receipt| {
        let header = |name| decoded(receipt.header(name).unwrap_or_default());
        let pairs = receipt.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII")));
        let path = receipt.path.strip_prefix("/hook/").expect("the path of the URL");
        let (segments, tenant) = path.split_once("?tenant=").expect("a query");
        let (first, second) = segments.split_once('/').expect("two segments");
        for part in [first, second, tenant] {
            assert!(part.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._~%".contains(&c)), "{path:.400}");
        }
        Arrived {
            id: receipt.id.clone(),
            target: [first, second, tenant].map(decoded).join("\n"),
            event_type: header("walgate-event-type"),
            key: header("walgate-key"),
            headers: forwarded(pairs),
        }
    });
    let arrived: Vec<Arrived> = arrived.collect();
    assert_isolated(&rows, walgate, arrived, takes, true);
    assert_eq!(rig.receiver.bad_signatures(), Vec::<String>::new());
}
