//! K3: topics that are missing, deleted, made; what `check` says of them. Metrics.

use super::{
    assert_flushes, assert_stored, check, count, insert, kept, last_error, rejected, skipping, to_topic, wait_sent,
};
use crate::rig::Rig;
use crate::support::kafka::{Kafka, topic_name};
use crate::support::kafka_wire::{Code, Wire};
use crate::support::wait::{DEADLINE, eventually};
use crate::support::walgate::Walgate;

#[test]
fn k3_a_fixed_topic_that_is_missing_is_the_sinks_fault_and_heals() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let (topic, mut wire) = (topic_name(), kafka.wire());
    let setup = to_topic(&rig, kafka.port(), &topic, "");
    let missing = format!("there is no topic `{topic}` on 127.0.0.1:{}", kafka.port());
    check(&setup).expect(3, &[&missing, "create_topics"]);
    let mut walgate = Walgate::run(&setup);
    let id = rig.insert("k");
    walgate.wait_log(&[&missing, "make it, or let walgate make it"]);
    wait_sent(&rig, &mut walgate, &id);
    rig.assert_not_passed(&id);
    eventually(DEADLINE, "the sink is down", || walgate.metric("walgate_sink_up", &[]) == Some(0.0));
    wire.create_topic(&topic, 1, &[]);
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(assert_stored(&rig.committed(), &wire.read_all(&topic)), 0);
    check(&setup).expect(0, &["sink bus (kafka) answers", &format!("topic `{topic}` has one replica")]);

    // Deleted while it is written to.
    wire.delete_topic(&topic);
    let waits = rig.insert("k");
    wait_sent(&rig, &mut walgate, &waits);
    eventually(DEADLINE, "it is told again", || last_error(&walgate).contains(&missing));
    rig.assert_not_passed(&waits);
    wire.create_topic(&topic, 1, &[]);
    rig.wait_confirmed(&mut walgate, &waits);
    // What it held went with it.
    assert_stored(&kept(rig.committed(), |event| event.id == waits), &wire.read_all(&topic));
    assert_flushes(&rig);
}

#[test]
fn k3_a_missing_topic_that_an_event_names_is_that_events_fault() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let mut wire = kafka.wire();
    let (there, gone, never) = (kafka.topic(2), kafka.topic(1), topic_name());
    let mut walgate = Walgate::run(&skipping(&rig, kafka.port(), "{event_type}", ""));
    let first = rig.database.insert(&gone, "k0", "{}");
    rig.wait_confirmed(&mut walgate, &first);
    assert_eq!(count(&mut wire, &gone), 1);
    wire.delete_topic(&gone);
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT CASE i % 5 WHEN 1 THEN '{gone}' \
         WHEN 3 THEN '{never}' ELSE '{there}' END, 'k' || i % 15, '{{}}' FROM generate_series(1, 300) i"
    ));
    let last = rig.database.insert(&there, "k0", "{}");
    rig.wait_confirmed(&mut walgate, &last);
    for topic in [&gone, &never] {
        walgate.wait_log(&[&format!("there is no topic `{topic}` on 127.0.0.1:{}", kafka.port())]);
    }
    assert_eq!(rejected(&walgate), 120);
    let ids = rig.database.sql(&format!("SELECT id FROM outbox_events WHERE event_type = '{there}'"));
    let ids: Vec<String> = ids.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
    let committed = kept(rig.committed(), |event| ids.contains(&event.id));
    assert_eq!((assert_stored(&committed, &wire.read_all(&there)), committed.len()), (0, 181));
    assert!(wire.topics().iter().all(|topic| topic.name != never && topic.name != gone), "none makes itself");
}

#[test]
fn k3_missing_topics_are_made_as_configured() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let mut wire = kafka.wire();
    let (fixed, named) = (topic_name(), topic_name());
    let more = ", create_topics: { partitions: 5, replication: 1, config: { max.message.bytes: 2000 } }";
    let mut walgate = Walgate::run(&to_topic(&rig, kafka.port(), &fixed, more));
    insert(&rig, 0, 100, 20);
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    walgate.wait_log(&["topic made", &fixed]);
    assert_eq!(assert_stored(&rig.committed(), &wire.read_all(&fixed)), 0);
    assert_eq!(partitions(&mut wire, &fixed), 5);
    walgate.kill9();

    let rig = Rig::new();
    let mut walgate = Walgate::run(&skipping(&rig, kafka.port(), "{event_type}", more));
    let small = rig.database.insert(&named, "k0", "{}");
    rig.wait_confirmed(&mut walgate, &small);
    let large = rig.database.value(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         VALUES ('{named}', 'k0', jsonb_build_object('pad', repeat('x', 3000))) RETURNING id"
    ));
    rig.wait_confirmed(&mut walgate, &large);
    walgate.wait_log(&[&named, "(its `max.message.bytes`): raise it there"]);
    assert_eq!(partitions(&mut wire, &named), 5);
    let stored = wire.read_all(&named);
    assert_eq!((stored.len(), stored[0].id()), (1, &*small));

    // What the brokers do not make of it is told.
    let topic = topic_name();
    let setup = to_topic(&rig, kafka.port(), &topic, ", create_topics: { replication: 3 }");
    check(&setup).expect(3, &[&format!("topic `{topic}` cannot be made on 127.0.0.1"), "mend `create_topics`"]);
}

#[track_caller]
fn partitions(wire: &mut Wire, name: &str) -> usize {
    let topic = wire.topics().into_iter().find(|topic| topic.name == name).expect("a topic");
    assert_eq!(topic.error, Code::NONE);
    topic.partitions.len()
}

#[test]
fn what_is_delivered_is_counted() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let topic = kafka.topic(1);
    let setup = to_topic(&rig, kafka.port(), &topic, "");
    let mut walgate = Walgate::run(&setup);
    insert(&rig, 0, 49, 7);
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let bus = "sink=\"bus\"";
    assert_eq!(walgate.metric("walgate_events_total", &[bus, "outcome=\"acknowledged\""]), Some(50.0));
    assert_eq!(walgate.metric("walgate_commit_to_ack_seconds_count", &[bus]), Some(50.0));
    assert!(walgate.metric("walgate_delivery_seconds_count", &[bus]).is_some_and(|batches| batches >= 1.0));
    assert_eq!(walgate.metric("walgate_sink_up", &[bus]), Some(1.0));
    assert_eq!(walgate.metric("walgate_inflight_events", &[bus]), Some(0.0));
}
