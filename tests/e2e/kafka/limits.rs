//! K2, K5, K6: sizes, a small buffer, and acknowledgements that are worth less.

use std::collections::HashSet;

use super::{assert_stored, bus, check, insert, kept, rejected, skipping, to_topic};
use crate::rig::Rig;
use crate::support::kafka::{Kafka, topic_name};
use crate::support::oracle::Committed;
use crate::support::walgate::Walgate;

/// Rows of ten keys in turn, every fiftieth of them with a payload of about `large` bytes.
fn insert_sizes(rig: &Rig, event_type: &str, count: usize, large: usize) {
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT '{event_type}', 'k' || i % 10, \
         jsonb_build_object('i', i, 'pad', repeat('x', CASE WHEN i % 50 = 25 THEN {large} ELSE 10 END)) \
         FROM generate_series(0, {count} - 1) i"
    ));
}

/// The committed events whose payloads have fewer bytes.
fn smaller(rig: &Rig, than: usize) -> Vec<Committed> {
    let rows = rig.database.sql(&format!("SELECT id FROM outbox_events WHERE length(payload::text) >= {than}"));
    let large: HashSet<String> = rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
    assert!(!large.is_empty());
    kept(rig.committed(), |event| !large.contains(&event.id))
}

#[test]
fn k2_what_is_too_large_is_rejected_alone() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let mut wire = kafka.wire();
    // A topic's limit is known before anything is sent to it, also where events name it.
    for template in [false, true] {
        let says = "takes 5000 (its `max.message.bytes`)";
        let rig = Rig::new();
        let topic = topic_name();
        wire.create_topic(&topic, 2, &[("max.message.bytes", "5000")]);
        insert_sizes(&rig, &topic, 400, 6000);
        let target = if template { "{event_type}" } else { &topic };
        let mut walgate = Walgate::run(&skipping(&rig, kafka.port(), target, ""));
        let last = rig.database.insert(&topic, "k5", "{}");
        rig.wait_confirmed(&mut walgate, &last);
        walgate.wait_log(&[&format!("topic `{topic}` on 127.0.0.1:{}", kafka.port()), says]);
        let repeats = assert_stored(&smaller(&rig, 5000), &wire.read_all(&topic));
        assert_eq!(rejected(&walgate), 8);
        // Nothing that is known to be too large is sent, and nothing else suffers by it.
        assert_eq!(repeats, 0);
    }
    let topic = kafka.topic(1);
    insert_sizes(&rig, "a", 100, 3000);
    let mut walgate = Walgate::run(&skipping(&rig, kafka.port(), &topic, ", max_message: 2kB"));
    let last = rig.insert("k5");
    rig.wait_confirmed(&mut walgate, &last);
    walgate.wait_log(&["`max_message` allows 2000: raise it"]);
    assert_eq!(assert_stored(&smaller(&rig, 2000), &wire.read_all(&topic)), 0);
    assert_eq!(rejected(&walgate), 2);
}

#[test]
fn k2_compressed_a_large_record_passes_a_small_limit() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let mut wire = kafka.wire();
    let (tight, wide) = (topic_name(), topic_name());
    wire.create_topic(&tight, 1, &[("max.message.bytes", "5000")]);
    // There the broker unpacks what it stores, so that it can be read here.
    wire.create_topic(&wide, 1, &[("compression.type", "uncompressed")]);
    for compression in ["gzip", "snappy", "lz4", "zstd"] {
        let rig = Rig::new();
        let more = format!(", compression: {compression}");
        let setup = rig
            .source()
            .sink(&bus(kafka.port(), &format!(", topic: {wide}{more}"), super::IMPATIENT))
            .sink(&bus(kafka.port(), &format!(", topic: {tight}{more}"), super::IMPATIENT).replacen("bus", "tight", 1))
            .route("**", "[bus, tight]");
        let mut walgate = Walgate::run(&setup);
        let (before, read) = (wire.ends(&tight)[&0], wire.read_all(&wide).len());
        let id = rig.database.value(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
             VALUES ('a', 'k', jsonb_build_object('pad', repeat('x', 50000))) RETURNING id",
        );
        rig.wait_confirmed(&mut walgate, &id);
        assert_eq!(wire.ends(&tight)[&0], before + 1, "{compression}");
        assert_eq!(assert_stored(&rig.committed(), &wire.read_all(&wide)[read..]), 0, "{compression}");
    }
    // What does not shrink enough is the broker's to refuse, and rejected all the same.
    let noise = rig.database.value(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'a', 'k', \
         jsonb_build_object('pad', string_agg(md5(i::text), '')) FROM generate_series(1, 1000) i RETURNING id",
    );
    let mut walgate = Walgate::run(&skipping(&rig, kafka.port(), &tight, ", compression: gzip"));
    rig.wait_confirmed(&mut walgate, &noise);
    walgate.wait_log(&[&tight, "does not take a record of this size"]);
}

#[test]
fn k5_a_small_buffer_and_a_large_backlog_keep_every_key_in_order() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let topic = kafka.topic(3);
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'a', 'k' || i % 700, \
         jsonb_build_object('i', i, 'pad', repeat('x', 1000)) FROM generate_series(1, 7000) i",
    );
    let mut walgate = Walgate::run(&to_topic(&rig, kafka.port(), &topic, ", buffer: 32KiB, max_message: 20kB"));
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(assert_stored(&rig.committed(), &kafka.wire().read_all(&topic)), 0);
    assert_eq!(walgate.metric("walgate_retries_total", &["sink=\"bus\""]).unwrap_or_default(), 0.0, "none was refused");
}

#[test]
fn k6_a_weaker_acknowledgement_must_be_spelled_out_and_is_loud() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let topic = kafka.topic(1);
    for properties in ["acks: 1", "acks: 0", "request.required.acks: 1", "enable.idempotence: false"] {
        let setup = to_topic(&rig, kafka.port(), &topic, &format!(", properties: {{ {properties} }}"));
        let name = properties.split(':').next().expect("a name");
        let ended = Walgate::command(&setup, &["check", "--config", "{config}"]);
        ended.expect(2, &[name, "no longer mean that the record is safe", "`unsafe_acks: true` allows it"]);
        Walgate::command(&setup, &["run", "--config", "{config}"]).expect(2, &["`unsafe_acks: true` allows it"]);
    }
    let setup = to_topic(&rig, kafka.port(), &topic, ", properties: { message.timeout.ms: 5000 }");
    check(&setup).expect(2, &["message.timeout.ms", "records never expire"]);
    let more = ", unsafe_acks: true, properties: { acks: 1 }";
    let mut walgate = Walgate::run(&to_topic(&rig, kafka.port(), &topic, more));
    walgate.wait_log(&["WARN", "unsafe_acks is set", "events can be lost"]);
    insert(&rig, 0, 500, 20);
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let stored = kafka.wire().read_all(&topic);
    assert_stored(&rig.committed(), &stored);
    assert!(stored.iter().all(|record| record.producer.is_none()), "idempotence was given up for it");
}
