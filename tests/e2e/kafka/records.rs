//! What a record looks like as it is stored, and where it is stored; X6, X7: hostile events.

use std::collections::HashSet;

use super::{IMPATIENT, assert_stored, bus, rejected, skipping, to_topic};
use crate::rig::Rig;
use crate::support::kafka::{Kafka, topic_name};
use crate::support::kafka_records::{Record, partition_of};
use crate::support::wait::{DEADLINE, eventually};
use crate::support::walgate::Walgate;

#[test]
fn an_event_is_stored_whole_with_its_headers_and_the_time_of_its_commit_x6() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let topic = kafka.topic(6);
    let mut walgate = Walgate::run(&to_topic(&rig, kafka.port(), &topic, ", headers: { x-region: eu }"));
    let now = || rig.database.value("SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint");
    let before: i64 = now().parse().expect("a time");
    let id = rig.database.value(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) VALUES ('order.created', 'k é', \
         '{\"total\": 1}', '{\"traceparent\": \"00-abc\", \"id\": \"forged\", \"tenant\": \"a\\r\\nb\", \
         \"\u{1f600} x\": \"\u{1f600}\\u001b[31m\"}') RETURNING id",
    );
    let after: i64 = now().parse().expect("a time");
    rig.wait_confirmed(&mut walgate, &id);
    let stored = kafka.wire().read_all(&topic);
    let [record] = &stored[..] else { panic!("{stored:?}") };
    assert_eq!(record.key_text(), Some("k é"));
    assert_eq!(record.partition, partition_of("k é".as_bytes(), 6), "as Java's producer has it");
    assert_eq!(record.value.as_deref(), Some(&br#"{"total": 1}"#[..]));
    assert!((before..=after).contains(&record.timestamp), "{} is not in {before}..={after}", record.timestamp);
    assert!(record.producer.is_some(), "not of an idempotent producer");
    for (name, value) in [
        ("id", &*id),
        ("walgate-event-type", "order.created"),
        ("content-type", "application/json"),
        ("traceparent", "00-abc"),
        ("x-region", "eu"),
        ("walgate-header-id", "forged"),
        ("walgate-header-tenant", "a\r\nb"),
        ("walgate-header-\u{1f600} x", "\u{1f600}\u{1b}[31m"),
    ] {
        assert_eq!(record.header(name), Some(value), "{name}: {record:?}");
    }
    assert!(record.header("walgate-position").is_some() && record.header("walgate-committed-at").is_some());
    assert_eq!(record.header("walgate-key"), None, "the record's key says it");
    let names: HashSet<&str> = record.headers.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names.len(), record.headers.len()), (10, 10), "each once: {record:?}");
}

#[test]
fn payloads_of_each_type_are_stored_as_their_bytes() {
    let kafka = Kafka::shared();
    for (column, literal, value, content_type) in [
        ("jsonb", "'{\"b\": 1, \"a\": \"ä\"}'", "{\"a\": \"ä\", \"b\": 1}".as_bytes(), "application/json"),
        ("text", "E'plain \\r\\n ä'", "plain \r\n ä".as_bytes(), "text/plain; charset=utf-8"),
        ("bytea", "'\\x00ff0d0a'", &[0, 0xff, 0x0d, 0x0a], "application/octet-stream"),
    ] {
        let (rig, topic) = (Rig::new(), kafka.topic(1));
        rig.database.sql(&format!("ALTER TABLE outbox_events ALTER payload TYPE {column} USING NULL"));
        let mut walgate = Walgate::run(&to_topic(&rig, kafka.port(), &topic, ""));
        let id = rig
            .database
            .value(&format!("INSERT INTO outbox_events (event_type, payload) VALUES ('a', {literal}) RETURNING id"));
        rig.wait_confirmed(&mut walgate, &id);
        let stored = kafka.wire().read_all(&topic);
        let [record] = &stored[..] else { panic!("{stored:?}") };
        assert_eq!((record.id(), record.value.as_deref()), (&*id, Some(value)), "{column}");
        assert_eq!(record.header("content-type"), Some(content_type), "{column}");
        assert_eq!(record.key, None, "{column}: without a key");
    }
}

#[test]
fn keys_lie_where_javas_producer_puts_them() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let topic = kafka.topic(7);
    let mut walgate = Walgate::run(&to_topic(&rig, kafka.port(), &topic, ""));
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'a', \
         CASE WHEN i % 2 = 0 THEN 'k' || i ELSE repeat('é\u{1f600}', i % 9) || i END, '{}' FROM generate_series(1, 300) i",
    );
    // A key of 200 KB, and control characters in one.
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         VALUES ('a', repeat('k', 200000), '{}'), ('a', E'a\\r\\nb\\x1b', '{}'), ('a', '', '{}')",
    );
    let last = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &last);
    let stored = kafka.wire().read_all(&topic);
    assert_eq!(assert_stored(&rig.committed(), &stored), 0);
    for record in &stored {
        let key = record.key.as_deref().expect("a key");
        assert_eq!(record.partition, partition_of(key, 7), "{:?}", String::from_utf8_lossy(key));
    }
}

#[test]
fn null_payloads_are_tombstones_only_where_that_is_said() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let (empty, none) = (kafka.topic(1), kafka.topic(1));
    let setup = rig
        .source()
        .sink(&bus(kafka.port(), &format!(", topic: {empty}"), IMPATIENT))
        .sink(&bus(kafka.port(), &format!(", topic: {none}, tombstones: true"), IMPATIENT).replacen("bus", "log", 1))
        .route("**", "[bus, log]");
    let mut walgate = Walgate::run(&setup);
    let id = rig
        .database
        .value("INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('a', 'k', NULL) RETURNING id");
    rig.wait_confirmed(&mut walgate, &id);
    for (topic, value) in [(empty, Some(vec![])), (none, None)] {
        let stored = kafka.wire().read_all(&topic);
        let [record] = &stored[..] else { panic!("{stored:?}") };
        assert_eq!((record.id(), record.key_text(), &record.value), (&*id, Some("k"), &value));
    }
}

#[test]
fn an_event_goes_to_two_topics_under_another_key() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let (plain, other) = (kafka.topic(4), kafka.topic(4));
    let setup = rig
        .source()
        .sink(&bus(kafka.port(), &format!(", topic: {plain}"), IMPATIENT))
        .route("**", "bus")
        .route("order.*", &format!("{{ sink: bus, topic: {other}, key: \"{{header.tenant}}\" }}"));
    let mut walgate = Walgate::run(&setup);
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) SELECT 'order.created', 'k' || i % 20, \
         '{}', jsonb_build_object('tenant', 't' || i % 3) FROM generate_series(1, 300) i",
    );
    let last = rig.database.insert("user.created", "k1", "{}");
    rig.wait_confirmed(&mut walgate, &last);
    let stored = kafka.wire().read_all(&plain);
    assert_eq!(assert_stored(&rig.committed(), &stored), 0);
    let again = kafka.wire().read_all(&other);
    let ids = |records: &[Record]| -> HashSet<String> { records.iter().map(|record| record.id().to_owned()).collect() };
    let mut wanted = ids(&stored);
    wanted.remove(&last);
    assert_eq!((again.len(), ids(&again)), (300, wanted));
    for record in &again {
        let key = record.key_text().expect("a key");
        assert!(["t0", "t1", "t2"].contains(&key), "{record:?}");
        assert_eq!(record.partition, partition_of(key.as_bytes(), 4));
        assert!(
            record.header("walgate-key").is_some_and(|key| key.starts_with('k')),
            "the event's own key: {record:?}"
        );
    }
}

#[test]
fn x7_only_legal_topics_are_ever_made_or_written_to() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let mut wire = kafka.wire();
    // Every name that is asked for is made: what is not refused here shows on the broker.
    let mark = format!("x7-{}", topic_name());
    let mut walgate = Walgate::run(&skipping(&rig, kafka.port(), "{event_type}", ", create_topics: {}"));
    let before: HashSet<String> = wire.topics().into_iter().map(|topic| topic.name).collect();
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('.', 'k1', '{{}}'), ('..', 'k2', '{{}}'), \
         ('{mark} b', 'k3', '{{}}'), (E'{mark}\\r\\nb', 'k4', '{{}}'), ('{mark}/b', 'k5', '{{}}'), \
         ('{mark}\u{1f600}', 'k6', '{{}}'), ('{mark}' || repeat('x', 250), 'k7', '{{}}'), ('{mark},b', 'k8', '{{}}'), \
         ('__consumer_offsets', 'k9', '{{}}'), (E'{mark}\\x1b[31m', 'k10', '{{}}'), ('', 'k11', '{{}}'), \
         ('{mark}\u{202e}b', 'k12', '{{}}'), ('{mark}' || repeat('y', 1000000), 'k13', '{{}}')"
    ));
    let last = rig.database.insert(&mark, "k", "{}");
    rig.wait_confirmed(&mut walgate, &last);
    for text in
        ["holds ` `", "holds `\\\\r`", "holds `/`", "holds `,`", "belong to the brokers", "a topic's name has 249"]
    {
        walgate.wait_log(&["cannot be sent to", text]);
    }
    assert_eq!(rejected(&walgate), 13);
    let ours = |name: &String| name.starts_with(&mark) || [".", "..", "__consumer_offsets"].contains(&name.as_str());
    let after: Vec<String> = wire.topics().into_iter().map(|topic| topic.name).collect();
    let made: Vec<&String> = after.iter().filter(|name| ours(name) && !before.contains(*name)).collect();
    assert_eq!(made, [&mark]);
    let stored = wire.read_all(&mark);
    assert_eq!((stored.len(), stored[0].id()), (1, &*last));
    walgate.terminate();
    let said = walgate.wait_for_end(DEADLINE).output();
    assert!(!said.contains('\u{1b}') && !said.contains('\u{202e}'), "control characters in the log");
}

#[test]
fn what_the_client_counts_is_in_the_metrics() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let topic = kafka.topic(1);
    let mut walgate = Walgate::run(&to_topic(&rig, kafka.port(), &topic, ", statistics: 100ms"));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    for name in ["walgate_kafka_sent_records_total", "walgate_kafka_requests_total", "walgate_kafka_brokers_up"] {
        let counted = || walgate.metric(name, &["sink=\"bus\""]).unwrap_or_default() >= 1.0;
        eventually(DEADLINE, name, counted);
    }
    assert_eq!(walgate.metric("walgate_kafka_held_records", &["sink=\"bus\""]), Some(0.0));
}
