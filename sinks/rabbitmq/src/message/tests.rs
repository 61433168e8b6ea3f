use serde_json::json;
use walgate_sink::{SinkFactory as _, Target, Timestamp};

use super::*;
use crate::RabbitmqFactory;

fn delivery(exchange: Option<&str>, routing_key: &str, event: Event) -> Delivery {
    Delivery {
        dedup_id: event.id.clone(),
        event,
        target: Target::new(RabbitmqFactory::TARGET, [exchange.map(Into::into), Some(routing_key.into())]),
        ordering_key: None,
        attempt: 1,
    }
}

fn event() -> Event {
    let mut event = Event::new("e1", "order.created");
    event.key = Some("k\r\n1".into());
    event.payload = Some(Bytes::from_static(b"{}"));
    event.committed_at = Timestamp(1_709_251_199_999_999);
    event.headers = [("Tenant", "t\n"), ("TraceParent", "00-a"), ("traceparent", "00-b"), ("BCC", "audit")]
        .map(|(name, value)| (name.into(), value.into()))
        .into_iter()
        .collect();
    event
}

fn messages() -> Messages {
    Messages::new(
        [("x-region".to_owned(), Secret::new("eu"))],
        None,
        Some("orders"),
        Some("{event_type}"),
        Envelope::Raw,
    )
}

fn lines(properties: &BasicProperties) -> Vec<String> {
    let table = properties.headers().as_ref().unwrap();
    let line = |(name, value): (&ShortString, &AMQPValue)| {
        let AMQPValue::LongString(value) = value else { panic!("{value:?}") };
        format!("{name}: {value}")
    };
    table.into_iter().map(line).collect()
}

#[test]
fn properties_and_headers_carry_what_is_not_the_payload() {
    let message = messages().build(&delivery(Some("orders"), "order.created", event())).unwrap();
    let properties = &message.properties;
    let text = |text: &Option<ShortString>| text.as_ref().unwrap().as_str().to_owned();
    assert_eq!(text(properties.message_id()), "e1");
    assert_eq!(text(properties.kind()), "order.created");
    assert_eq!(text(properties.app_id()), "walgate");
    assert_eq!(text(properties.content_type()), "application/json");
    assert_eq!(*properties.timestamp(), Some(1_709_251_199));
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(
        lines(properties),
        [
            "id: e1",
            "traceparent: 00-a",
            "walgate-committed-at: 2024-02-29T23:59:59.999999Z",
            "walgate-event-type: order.created",
            "walgate-header-BCC: audit",
            "walgate-header-Tenant: t\n",
            "walgate-key: k\r\n1",
            "walgate-position: 0/0#0",
            "x-region: eu",
        ]
    );
    let null = messages().build(&delivery(None, "q", Event::new("e1", "t"))).unwrap();
    assert!(null.properties.content_type().is_none());
    assert!(null.payload.is_empty());
}

#[test]
fn the_size_of_the_header_frame_is_that_of_the_wire() {
    let message = messages().build(&delivery(Some("orders"), "k", event())).unwrap();
    // Written out by hand: type, channel, size; class, weight, payload's size, flags; properties; end.
    let longs: usize = lines(&message.properties)
        .iter()
        .map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            1 + name.len() + 1 + 4 + value.len()
        })
        .sum();
    let shorts =
        (1 + "e1".len()) + (1 + "order.created".len()) + (1 + "walgate".len()) + (1 + "application/json".len());
    assert_eq!(message.header_frame, (1 + 2 + 4) + (2 + 2 + 8 + 2) + (4 + longs) + shorts + 1 + 8 + 1);
    let size = u32::try_from(message.header_frame).unwrap();
    assert_eq!(message.check_size(size, "a:5672"), Ok(()));
    assert_eq!(message.check_size(0, "a:5672"), Ok(()));
    let rejection = message.check_size(size - 1, "a:5672").unwrap_err();
    assert_eq!(rejection.reason, RejectReason::TooLarge);
    assert!(rejection.message.contains("a:5672 takes"), "{rejection}");
}

#[test]
fn names_and_ids_that_do_not_fit_are_rejected() {
    let reason = |exchange: Option<&str>, key: &str, event: Event| {
        let rejection = messages().build(&delivery(exchange, key, event)).err().unwrap();
        assert!(!rejection.message.contains(['\r', '\n']), "{rejection}");
        rejection.reason
    };
    let long = "k".repeat(256);
    for (exchange, key) in [
        (Some(""), "k"),
        (Some("orders"), ""),
        (None, ""),
        (Some("orders"), &*long),
        (Some(&*long), "k"),
        (Some("a\r\nb"), "k"),
        (Some("orders"), "a\0"),
        (None, "amq.rabbitmq.reply-to.x"),
    ] {
        assert_eq!(reason(exchange, key, event()), RejectReason::InvalidTarget, "{exchange:?} {key:?}");
    }
    assert_eq!(reason(None, "q", Event::new("", "t")), RejectReason::InvalidEvent);
    assert_eq!(reason(None, "q", Event::new(long.as_str(), "t")), RejectReason::InvalidEvent);
    let mut named = event();
    named.headers = [(long.as_str().into(), "x".into())].into_iter().collect();
    assert_eq!(reason(None, "q", named), RejectReason::InvalidEvent);
    // A long type stands in its header alone.
    let typed = messages().build(&delivery(None, "q", Event::new("1", long.as_str()))).unwrap();
    assert!(typed.properties.kind().is_none());
    assert!(lines(&typed.properties).contains(&format!("walgate-event-type: {long}")));
}

#[test]
fn reserved_names_are_refused() {
    for name in ["CC", "BCC", "bcc", "walgate-key", "id", "ID", "traceparent", "", "a\n", "x-death"] {
        assert!(check_static(name, "x").is_err(), "{name}");
    }
    assert!(check_static("x-region", "eu west é").is_ok());
    assert!(check_static("x-region", "a\nb").is_err());
}

#[test]
fn what_is_fixed_is_known() {
    let fixed = Messages::new([], None, Some("orders"), Some("all"), Envelope::Raw);
    assert!(fixed.is_fixed("orders", "all") && fixed.is_fixed_exchange("orders"));
    assert!(!fixed.is_fixed("orders", "other") && !fixed.is_fixed_exchange("x"));
    assert!(!messages().is_fixed("orders", "k") && messages().is_fixed_exchange("orders"));
    let queue = Messages::new([], None, None, Some("q"), Envelope::Raw);
    assert!(queue.is_fixed("", "q") && !queue.is_fixed("orders", "q"));
}

fn enveloped(envelope: serde_json::Value, event: Event) -> Result<Message, Rejection> {
    let envelope = walgate_sink::read_config(&envelope).unwrap();
    let headers = [("x-region".to_owned(), Secret::new("eu"))];
    Messages::new(headers, None, None, Some("q"), envelope).build(&delivery(None, "q", event))
}

fn content_type(message: &Message) -> Option<&str> {
    message.properties.content_type().as_ref().map(ShortString::as_str)
}

#[test]
fn a_cloudevent_has_its_attributes_in_headers_or_in_the_payload() {
    let cloudevents = |mode: &str| json!({ "cloudevents": { "mode": mode, "source": "/shop" } });
    let mut event = event();
    event.key = Some("k 1/ä".into());
    event.headers = [("Tenant", "50% ä"), ("TraceParent", "00-a"), ("BCC", "audit")]
        .map(|(name, value)| (name.into(), value.into()))
        .into_iter()
        .collect();
    let binary = enveloped(cloudevents("binary"), event.clone()).unwrap();
    // Values are UTF-8 as they are; no name from a row is one that the broker obeys.
    assert_eq!(
        lines(&binary.properties),
        [
            "cloudEvents_bcc: audit",
            "cloudEvents_id: e1",
            "cloudEvents_source: /shop",
            "cloudEvents_specversion: 1.0",
            "cloudEvents_subject: k 1/ä",
            "cloudEvents_tenant: 50% ä",
            "cloudEvents_time: 2024-02-29T23:59:59.999999Z",
            "cloudEvents_traceparent: 00-a",
            "cloudEvents_type: order.created",
            "traceparent: 00-a",
            "x-region: eu",
        ]
    );
    assert_eq!((content_type(&binary), &binary.payload[..]), (Some("application/json"), &b"{}"[..]));
    let whole = enveloped(cloudevents("structured"), event.clone()).unwrap();
    assert_eq!(lines(&whole.properties), ["traceparent: 00-a", "x-region: eu"]);
    assert_eq!(content_type(&whole), Some("application/cloudevents+json"));
    let document: serde_json::Value = serde_json::from_slice(&whole.payload).unwrap();
    assert_eq!((&document["tenant"], &document["data"]), (&json!("50% ä"), &json!({})));
    for message in [&binary, &whole] {
        assert_eq!(message.properties.message_id().as_ref().unwrap().as_str(), "e1");
        assert_eq!(message.properties.kind().as_ref().unwrap().as_str(), "order.created");
    }
    event.payload = None;
    let null = enveloped(cloudevents("binary"), event.clone()).unwrap();
    assert!(content_type(&null).is_none() && null.payload.is_empty());
    for name in ["tenant-id", &"x".repeat(244)] {
        event.headers = [(name.into(), "x".into())].into_iter().collect();
        let rejection = enveloped(cloudevents("binary"), event.clone()).err().unwrap();
        assert_eq!(rejection.reason, RejectReason::InvalidEvent);
    }
}

#[test]
fn debezium_names_what_its_router_names() {
    let message = enveloped(json!("debezium"), event()).unwrap();
    assert_eq!(
        lines(&message.properties),
        [
            "aggregateid: k\r\n1",
            "eventType: order.created",
            "id: e1",
            "traceparent: 00-a",
            "walgate-header-BCC: audit",
            "walgate-header-Tenant: t\n",
            "x-region: eu",
        ]
    );
    assert_eq!((content_type(&message), &message.payload[..]), (Some("application/json"), &b"{}"[..]));
}
