//! Envelopes: what `envelope: cloudevents` sends is read with the official CloudEvents library, which walgate does not
//! use, and `envelope: debezium` by its names.

use cloudevents::event::Data;
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
use cloudevents::event::SpecVersion;
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
use cloudevents::message::{
    self, BinaryDeserializer, BinarySerializer, Encoding, MessageAttributeValue, MessageDeserializer,
    StructuredDeserializer, StructuredSerializer,
};
use cloudevents::{AttributesReader as _, Event};
use http::HeaderMap;
#[cfg(feature = "nats")]
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::rig::Rig;
#[cfg(feature = "rabbitmq")]
use crate::support::amqp_wire::Stored;
#[cfg(feature = "kafka")]
use crate::support::kafka::Kafka;
#[cfg(feature = "kafka")]
use crate::support::kafka_records::Record;
#[cfg(feature = "nats")]
use crate::support::nats::NatsServer;
#[cfg(feature = "rabbitmq")]
use crate::support::rabbitmq::Rabbit;
use crate::support::receiver::{Receiver, SECRET};
#[cfg(feature = "sqs")]
use crate::support::sqs::Server;
#[cfg(feature = "sqs")]
use crate::support::wait::DEADLINE;
use crate::support::walgate::Walgate;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const QUICK: &str = "timeout: 5s, retry: { initial: 20ms, max: 500ms, connection_max: 200ms }";

/// An event with a key, a payload that is no plain object's text, and headers.
fn insert(rig: &Rig) -> String {
    rig.database.value(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) VALUES ('order.created', 'k-1', \
         '{{\"total\": 1, \"name\": \"größe\"}}', '{{\"traceparent\": \"{TRACEPARENT}\", \"tenant\": \"50% ä\"}}') RETURNING id"
    ))
}

/// A message as the library takes it: with HTTP's headers, whose rules NATS's share.
fn read(headers: &HeaderMap, body: &[u8]) -> Event {
    cloudevents::binding::http::to_event(headers, body.to_vec())
        .unwrap_or_else(|error| panic!("{error}: {headers:?} {}", String::from_utf8_lossy(body)))
}

/// `tenant` is how the value of that extension is read: the library does not decode the percent-encoding of headers.
#[track_caller]
fn assert_event(event: &Event, id: &str, tenant: &str) {
    assert_eq!((event.id(), event.ty(), event.source().as_str()), (id, "order.created", "/shop"));
    assert_eq!(event.subject(), Some("k-1"));
    assert_eq!(event.datacontenttype(), Some("application/json"));
    assert!(event.time().is_some(), "{event}");
    let payload = json!({ "total": 1, "name": "größe" });
    match event.data() {
        Some(Data::Json(data)) => assert_eq!(*data, payload),
        Some(Data::Binary(bytes)) => assert_eq!(serde_json::from_slice::<Value>(bytes).expect("JSON"), payload),
        Some(Data::String(text)) => assert_eq!(serde_json::from_str::<Value>(text).expect("JSON"), payload),
        None => panic!("no data: {event}"),
    }
    for (name, value) in [("traceparent", TRACEPARENT), ("tenant", tenant)] {
        assert_eq!(event.extension(name).map(ToString::to_string).as_deref(), Some(value), "{name}");
    }
}

fn hook(receiver: &Receiver, name: &str, more: &str) -> String {
    let url = format!("{}/{name}", receiver.url());
    format!("{name}: {{ webhook: {{ url: {url:?}, secret: {SECRET:?}{more} }}, delivery: {{ {QUICK} }} }}")
}

#[test]
fn a_cloudevents_library_reads_what_webhooks_send() {
    let rig = Rig::new();
    let sinks = [
        ("binary", ", envelope: { cloudevents: { source: /shop } }"),
        ("whole", ", envelope: { cloudevents: { source: /shop, mode: structured } }"),
        ("batch", ", mode: batch, envelope: { cloudevents: { source: /shop } }"),
        ("router", ", envelope: debezium"),
    ];
    let setup = sinks.iter().fold(rig.source(), |setup, (name, more)| setup.sink(&hook(&rig.receiver, name, more)));
    let mut walgate = Walgate::run(&setup.route("**", "[binary, whole, batch, router]"));
    let id = insert(&rig);
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(rig.receiver.bad_signatures(), Vec::<String>::new());
    let receipts = rig.receiver.receipts();
    let of = |name: &str| {
        receipts.iter().find(|receipt| receipt.path.ends_with(name)).unwrap_or_else(|| panic!("{name}: {receipts:?}"))
    };
    let binary = of("/binary");
    assert_event(&read(&binary.headers, &binary.body), &id, "50%25%20%C3%A4");
    assert_eq!(binary.header("traceparent"), Some(TRACEPARENT));
    let whole = of("/whole");
    assert_eq!(whole.header("content-type"), Some("application/cloudevents+json"));
    assert_event(&read(&whole.headers, &whole.body), &id, "50% ä");
    let batch = of("/batch");
    assert_eq!(batch.header("content-type"), Some("application/cloudevents-batch+json"));
    let events: Vec<Event> = serde_json::from_slice(&batch.body).expect("an array of CloudEvents");
    assert_eq!(events.len(), 1);
    assert_event(&events[0], &id, "50% ä");
    let router = of("/router");
    for (name, value) in [("id", &*id), ("eventtype", "order.created"), ("aggregateid", "k-1")] {
        assert_eq!(router.header(name), Some(value), "{name}");
    }
    assert_eq!(serde_json::from_slice::<Value>(&router.body).expect("JSON")["total"], 1);
}

#[test]
fn what_a_cloudevent_cannot_hold_is_rejected_and_told() {
    let rig = Rig::new();
    let sink = hook(&rig.receiver, "hook", ", envelope: cloudevents").replace("timeout", "on_reject: skip, timeout");
    let mut walgate = Walgate::run(&rig.source().sink(&sink).route("**", "hook"));
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) \
         VALUES ('order.created', 'k-2', '{}', '{\"tenant-id\": \"x\"}')",
    );
    let id = rig.insert("k-1");
    rig.wait_confirmed(&mut walgate, &id);
    walgate.wait_log(&["`tenant-id` cannot be an attribute of a CloudEvent"]);
    assert_eq!(rig.receiver.ids(), [id]);
}

#[cfg(feature = "nats")]
#[test]
fn a_cloudevents_library_reads_what_nats_holds() {
    let (rig, server) = (Rig::new(), NatsServer::start());
    let mut setup = rig.source();
    for (name, envelope) in [
        ("binary", "{ cloudevents: { source: /shop } }"),
        ("whole", "{ cloudevents: { source: /shop, mode: structured } }"),
        ("router", "debezium"),
    ] {
        let port = server.port();
        setup = setup.sink(&format!(
            "{name}: {{ nats: {{ servers: [\"127.0.0.1:{port}\"], subject: {name}.orders, envelope: {envelope} }}, \
             delivery: {{ {QUICK} }} }}"
        ));
        // A stream for each: one stream stores an id once.
        server.add_stream(&name.to_uppercase(), &[&format!("{name}.>")], json!({}));
    }
    let mut walgate = Walgate::run(&setup.route("**", "[binary, whole, router]"));
    let id = insert(&rig);
    rig.wait_confirmed(&mut walgate, &id);
    let stored = |stream: &str| {
        let [message] = &server.stored(stream)[..] else { panic!("{:?}", server.stored(stream)) };
        let mut headers = HeaderMap::new();
        for (name, value) in &message.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        (headers, message.data.clone())
    };
    let (headers, data) = stored("BINARY");
    assert_event(&read(&headers, &data), &id, "50%25%20%C3%A4");
    let (headers, data) = stored("WHOLE");
    assert_eq!(headers["content-type"], "application/cloudevents+json");
    assert_event(&read(&headers, &data), &id, "50% ä");
    assert_eq!(headers["nats-msg-id"], id.as_str());
    let (headers, data) = stored("ROUTER");
    for (name, value) in [("id", &*id), ("eventtype", "order.created"), ("aggregateid", "k-1")] {
        assert_eq!(headers[name], value, "{name}");
    }
    assert_eq!(serde_json::from_slice::<Value>(&data).expect("JSON")["total"], 1);
}

/// A message as the library takes it, which knows neither AMQP nor Kafka: this says where their bindings put what.
#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
struct Message {
    /// What stands before the name of an attribute.
    prefix: &'static str,
    content_type: Option<String>,
    headers: Vec<(String, String)>,
    data: Vec<u8>,
}

#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
impl BinaryDeserializer for Message {
    fn deserialize_binary<R, V: BinarySerializer<R>>(self, mut visitor: V) -> message::Result<R> {
        let value = |text: &str| MessageAttributeValue::String(text.to_owned());
        let attributes: Vec<(&str, &str)> = self
            .headers
            .iter()
            .filter_map(|(name, text)| Some((name.strip_prefix(self.prefix)?, text.as_str())))
            .collect();
        let version = attributes.iter().find(|(name, _)| *name == "specversion").map_or("", |(_, text)| *text);
        let version = SpecVersion::try_from(version)?;
        let known = version.attribute_names();
        visitor = visitor.set_spec_version(version)?;
        if let Some(content_type) = &self.content_type {
            visitor = visitor.set_attribute("datacontenttype", value(content_type))?;
        }
        for (name, text) in attributes {
            match name {
                "specversion" => {}
                name if known.contains(&name) => visitor = visitor.set_attribute(name, value(text))?,
                name => visitor = visitor.set_extension(name, value(text))?,
            }
        }
        visitor.end_with_data(self.data)
    }
}

#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
impl StructuredDeserializer for Message {
    fn deserialize_structured<R, V: StructuredSerializer<R>>(self, visitor: V) -> message::Result<R> {
        visitor.set_structured_event(self.data)
    }
}

#[cfg(any(feature = "kafka", feature = "rabbitmq"))]
impl MessageDeserializer for Message {
    fn encoding(&self) -> Encoding {
        match &self.content_type {
            Some(content_type) if content_type.starts_with("application/cloudevents") => Encoding::STRUCTURED,
            _ => Encoding::BINARY,
        }
    }
}

#[cfg(feature = "kafka")]
#[test]
fn a_cloudevents_library_reads_what_kafka_holds() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let mut setup = rig.source();
    let mut topics = Vec::new();
    for (name, envelope) in [
        ("binary", "{ cloudevents: { source: /shop } }"),
        ("whole", "{ cloudevents: { source: /shop, mode: structured } }"),
        ("router", "debezium"),
    ] {
        let (port, topic) = (kafka.port(), kafka.topic(1));
        setup = setup.sink(&format!(
            "{name}: {{ kafka: {{ brokers: [\"127.0.0.1:{port}\"], topic: {topic}, envelope: {envelope} }}, \
             delivery: {{ {QUICK} }} }}"
        ));
        topics.push(topic);
    }
    let mut walgate = Walgate::run(&setup.route("**", "[binary, whole, router]"));
    let id = insert(&rig);
    rig.wait_confirmed(&mut walgate, &id);
    let stored = |place: usize| {
        let records = kafka.wire().read_all(&topics[place]);
        let [record] = &records[..] else { panic!("{records:?}") };
        assert_eq!(record.key_text(), Some("k-1"));
        record.clone()
    };
    let message = |record: &Record| {
        let text = |(name, value): &(String, Option<Vec<u8>>)| {
            (name.clone(), String::from_utf8(value.clone().expect("a value")).expect("UTF-8"))
        };
        Message {
            prefix: "ce_",
            content_type: record.header("content-type").map(str::to_owned),
            headers: record.headers.iter().map(text).collect(),
            data: record.value.clone().expect("a value"),
        }
    };
    let binary = stored(0);
    let bound = |name: &str| name.starts_with("ce_") || ["content-type", "traceparent"].contains(&name);
    assert!(binary.headers.iter().all(|(name, _)| bound(name)), "{binary:?}");
    assert_event(&MessageDeserializer::into_event(message(&binary)).expect("a CloudEvent"), &id, "50% ä");
    let whole = stored(1);
    assert_eq!(whole.header("content-type"), Some("application/cloudevents+json"));
    assert_event(&MessageDeserializer::into_event(message(&whole)).expect("a CloudEvent"), &id, "50% ä");
    let router = stored(2);
    for (name, value) in [("id", &*id), ("eventType", "order.created"), ("walgate-header-tenant", "50% ä")] {
        assert_eq!(router.header(name), Some(value), "{name}: {router:?}");
    }
    let value: Value = serde_json::from_slice(router.value.as_deref().expect("a value")).expect("JSON");
    assert_eq!(value["total"], 1);
}

#[cfg(feature = "rabbitmq")]
fn amqp(stored: Stored) -> Message {
    let Stored { content_type, headers, data, .. } = stored;
    Message { prefix: "cloudEvents_", content_type, headers, data }
}

#[cfg(feature = "rabbitmq")]
#[test]
fn a_cloudevents_library_reads_what_rabbitmq_holds() {
    let (rig, server) = (Rig::new(), Rabbit::shared());
    let vhost = server.vhost();
    let mut wire = server.wire(&vhost);
    let mut setup = rig.source();
    for (name, envelope) in [
        ("binary", "{ cloudevents: { source: /shop } }"),
        ("whole", "{ cloudevents: { source: /shop, mode: structured } }"),
        ("router", "debezium"),
    ] {
        let port = server.port();
        setup = setup.sink(&format!(
            "{name}: {{ rabbitmq: {{ url: \"amqp://walgate:secret@127.0.0.1:{port}/{vhost}\", routing_key: {name}, \
             envelope: {envelope} }}, delivery: {{ {QUICK} }} }}"
        ));
        wire.declare_queue(name, &[]);
    }
    let mut walgate = Walgate::run(&setup.route("**", "[binary, whole, router]"));
    let id = insert(&rig);
    rig.wait_confirmed(&mut walgate, &id);
    let mut stored = |queue: &str| {
        let message = wire.take(queue).unwrap_or_else(|| panic!("nothing in {queue}"));
        assert_eq!((message.id(), message.kind.as_deref()), (&*id, Some("order.created")), "{queue}");
        assert_eq!(message.header("traceparent"), Some(TRACEPARENT), "{queue}");
        assert_eq!(wire.count(queue), 0, "{queue}");
        message
    };
    let binary = stored("binary");
    assert!(
        binary.headers.iter().all(|(name, _)| name == "traceparent" || name.starts_with("cloudEvents_")),
        "{binary:?}"
    );
    assert_event(&MessageDeserializer::into_event(amqp(binary)).expect("a CloudEvent"), &id, "50% ä");
    let whole = stored("whole");
    assert_eq!(whole.content_type.as_deref(), Some("application/cloudevents+json"));
    assert_eq!(whole.headers.len(), 1, "{whole:?}");
    assert_event(&MessageDeserializer::into_event(amqp(whole)).expect("a CloudEvent"), &id, "50% ä");
    let router = stored("router");
    for (name, value) in
        [("id", &*id), ("eventType", "order.created"), ("aggregateid", "k-1"), ("walgate-header-tenant", "50% ä")]
    {
        assert_eq!(router.header(name), Some(value), "{name}");
    }
    assert_eq!(router.content_type.as_deref(), Some("application/json"));
    assert_eq!(serde_json::from_slice::<Value>(&router.data).expect("JSON")["total"], 1);
}

#[cfg(feature = "sqs")]
#[test]
fn a_cloudevents_library_reads_what_sqs_holds() {
    let rig = Rig::new();
    for server in [Server::shared(), Server::elasticmq()] {
        let queues = ["cloudevents.fifo", "router.fifo"];
        let mut setup = rig.source();
        for (queue, envelope) in queues.iter().zip(["{ cloudevents: { source: /shop } }", "debezium"]) {
            let (name, by) = (queue.trim_end_matches(".fifo"), server.by(server.port()));
            setup = setup.sink(&format!(
                "{name}: {{ sqs: {{ {by}, queue: {queue}, forward_headers: [traceparent], envelope: {envelope} }}, \
                 delivery: {{ {QUICK} }} }}"
            ));
            server.create(queue, &[]);
        }
        let mut walgate = Walgate::run(&setup.route("**", "[cloudevents, router]"));
        let id = insert(&rig);
        rig.wait_confirmed(&mut walgate, &id);
        walgate.terminate();
        walgate.wait_for_end(DEADLINE).expect(0, &[]);
        let stored = |queue: &str| {
            let mut messages = server.take_all(queue);
            messages.retain(|message| message.id() == id);
            let [message] = &messages[..] else { panic!("{queue}: {messages:?}") };
            assert_eq!(message.attribute("traceparent"), Some(TRACEPARENT), "{queue}");
            message.clone()
        };
        let whole = stored(queues[0]);
        assert_eq!(whole.attribute("content-type"), Some("application/cloudevents+json"));
        assert_event(&serde_json::from_str(&whole.body).expect("a CloudEvent"), &id, "50% ä");
        let router = stored(queues[1]);
        for (name, value) in
            [("eventType", "order.created"), ("aggregateid", "k-1"), ("content-type", "application/json")]
        {
            assert_eq!(router.attribute(name), Some(value), "{name}");
        }
        assert_eq!(serde_json::from_str::<Value>(&router.body).expect("JSON")["total"], 1);
    }
}
