use rdkafka::message::Headers as _;
use walgate_sink::{Lsn, Position, SinkFactory as _, Target, Timestamp};

use super::*;
use crate::KafkaFactory;

fn delivery(topic: &str, key: Option<&str>, event: Event) -> Delivery {
    Delivery {
        dedup_id: event.id.clone(),
        event,
        target: Target::new(KafkaFactory::TARGET, [Some(topic.into()), key.map(Into::into)]),
        ordering_key: None,
        attempt: 1,
    }
}

fn event() -> Event {
    let mut event = Event::new("e1", "order.created");
    event.key = Some("k-1".into());
    event.payload = Some(Bytes::from_static(b"{}"));
    event.position = Position { commit_lsn: Lsn(0x1_0000_00FF), ordinal: 2 };
    event.committed_at = Timestamp(1_709_251_199_999_999);
    event.headers = [("Tenant", "t\r\n"), ("TraceParent", "00-a"), ("traceparent", "00-b"), ("id", "other")]
        .map(|(name, value)| (name.into(), value.into()))
        .into_iter()
        .collect();
    event
}

fn records(envelope: Envelope) -> Records {
    Records::new([("x-region".to_owned(), Secret::new("eu"))], envelope, false, 1_000_000)
}

fn envelope(text: &str) -> Envelope {
    walgate_sink::read_config(&serde_json::from_str(text).unwrap()).unwrap()
}

fn lines(record: &Record) -> Vec<String> {
    let headers = record.headers();
    let line =
        |header: Header<'_, &[u8]>| format!("{}: {}", header.key, std::str::from_utf8(header.value.unwrap()).unwrap());
    headers.iter().map(line).collect()
}

#[test]
fn headers_carry_what_is_neither_key_nor_payload() {
    let record = records(Envelope::Raw).build(&delivery("orders", None, event())).unwrap();
    assert_eq!((&*record.topic, record.key.as_deref()), ("orders", Some("k-1")));
    assert_eq!(record.value.as_deref(), Some(&b"{}"[..]));
    assert_eq!(record.timestamp, 1_709_251_199_999);
    assert_eq!(
        lines(&record),
        [
            "id: e1",
            "walgate-event-type: order.created",
            "walgate-position: 1/FF#2",
            "walgate-committed-at: 2024-02-29T23:59:59.999999Z",
            "traceparent: 00-a",
            "content-type: application/json",
            "x-region: eu",
            "walgate-header-Tenant: t\r\n",
            "walgate-header-id: other",
        ]
    );
}

#[test]
fn a_key_of_the_target_replaces_the_events_own_which_travels_beside_it() {
    let record = records(Envelope::Raw).build(&delivery("orders", Some("customer-7"), event())).unwrap();
    assert_eq!(record.key.as_deref(), Some("customer-7"));
    assert!(lines(&record).contains(&"walgate-key: k-1".to_owned()));
    let same = records(Envelope::Raw).build(&delivery("orders", Some("k-1"), event())).unwrap();
    assert!(!lines(&same).iter().any(|line| line.starts_with("walgate-key")));
}

#[test]
fn cloudevents_are_bound_as_written() {
    let binary = records(envelope(r#"{"cloudevents": {"source": "/shop"}}"#));
    let mut plain = event();
    plain.headers = [("tenant".into(), "50% ä".into())].into_iter().collect();
    let record = binary.build(&delivery("orders", None, plain.clone())).unwrap();
    assert_eq!(
        lines(&record),
        [
            "ce_specversion: 1.0",
            "ce_id: e1",
            "ce_type: order.created",
            "ce_source: /shop",
            "ce_time: 2024-02-29T23:59:59.999999Z",
            "ce_subject: k-1",
            "ce_tenant: 50% ä",
            "content-type: application/json",
            "x-region: eu",
        ]
    );
    assert_eq!(record.value.as_deref(), Some(&b"{}"[..]));
    let structured = records(envelope(r#"{"cloudevents": {"mode": "structured"}}"#));
    let record = structured.build(&delivery("orders", None, plain)).unwrap();
    assert_eq!(lines(&record), ["content-type: application/cloudevents+json", "x-region: eu"]);
    assert!(record.value.unwrap().starts_with(br#"{"specversion":"1.0","id":"e1""#));
}

#[test]
fn debeziums_names() {
    let record = records(Envelope::Debezium).build(&delivery("orders", None, event())).unwrap();
    assert_eq!(record.key.as_deref(), Some("k-1"));
    assert_eq!(lines(&record)[..2], ["id: e1", "eventType: order.created"]);
}

#[test]
fn null_is_an_empty_value_or_a_tombstone() {
    let mut null = event();
    null.payload = None;
    let build = |tombstones| {
        let records = Records::new([], Envelope::Raw, tombstones, 1_000_000);
        records.build(&delivery("orders", None, null.clone())).unwrap()
    };
    assert_eq!(build(false).value.as_deref(), Some(&b""[..]));
    assert_eq!(build(true).value, None);
    assert!(!lines(&build(true)).iter().any(|line| line.starts_with("content-type")));
}

#[test]
fn x7_topics_are_checked_and_what_is_refused_is_told() {
    for (topic, why) in [("", "it is empty"), ("a b", "it holds ` `"), ("..", "no name"), ("a\r\nb", "holds `\\r`")] {
        let rejection = records(Envelope::Raw).build(&delivery(topic, None, event())).unwrap_err();
        assert_eq!(rejection.reason, RejectReason::InvalidTarget);
        assert!(rejection.message.contains(why), "{rejection}");
        assert!(!rejection.message.contains('\r'));
    }
    let mut nameless = event();
    nameless.id = ByteString::new();
    let rejection = records(Envelope::Raw).build(&delivery("orders", None, nameless)).unwrap_err();
    assert_eq!(rejection.reason, RejectReason::InvalidEvent);
}

#[test]
fn k2_what_is_larger_than_allowed_is_rejected_before_it_is_queued() {
    let mut large = event();
    large.headers = walgate_sink::Headers::default();
    let records = Records::new([], Envelope::Raw, false, 1_000);
    let size =
        |event: &Event| records.build(&delivery("orders", None, event.clone())).map(|record| record.batch_size());
    large.payload = Some(Bytes::from(vec![b'x'; 500]));
    let base = size(&large).unwrap();
    large.payload = Some(Bytes::from(vec![b'x'; 500 + 1_000 - base]));
    assert_eq!(size(&large), Ok(1_000), "exactly what is allowed");
    large.payload = Some(Bytes::from(vec![b'x'; 501 + 1_000 - base]));
    let rejection = size(&large).unwrap_err();
    assert_eq!(rejection.reason, RejectReason::TooLarge);
    assert!(rejection.message.contains("1001 bytes, and `max_message` allows 1000"), "{rejection}");
}

#[test]
fn lengths_are_those_of_the_wire() {
    for (length, bytes) in [(0, 1), (1, 1), (63, 1), (64, 2), (8191, 2), (8192, 3), (1_048_575, 3), (1_048_576, 4)] {
        assert_eq!(varint(length), bytes, "{length}");
    }
}

#[test]
fn reserved_names_are_refused() {
    for name in ["id", "ID", "walgate-key", "traceparent", "TraceState", "", "a\nb"] {
        assert!(check_static(name, "x").is_err(), "{name:?}");
    }
    assert_eq!(check_static("x-region", "größe"), Ok(()));
    assert!(check_static("x-region", "a\r\nb").is_err());
}
