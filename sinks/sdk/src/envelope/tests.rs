use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::{PayloadFormat, Timestamp, read_config};

mod examples;

const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn event(format: PayloadFormat, payload: Option<&[u8]>) -> Event {
    let mut event = Event::new("A234-1234-1234", "com.example.someevent");
    event.format = format;
    event.payload = payload.map(Bytes::copy_from_slice);
    event.committed_at = Timestamp(1_522_949_460_000_000);
    event
}

fn with_headers(mut event: Event, headers: &[(&str, &str)]) -> Event {
    event.headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    event
}

fn cloudevents(mode: ContentMode) -> Envelope {
    Envelope::CloudEvents(CloudEvents { mode: Some(mode), source: "/mycontext".to_owned() })
}

fn attributes(enveloped: &Enveloped, prefix: &str) -> Vec<(String, String)> {
    enveloped.named(prefix).map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn structured(event: &Event) -> Value {
    let wrapped = cloudevents(ContentMode::Structured).wrap(event).unwrap();
    assert_eq!(wrapped.content_type, Some("application/cloudevents+json"));
    assert!(wrapped.attributes.is_empty() && wrapped.headers.is_empty());
    serde_json::from_slice(&wrapped.body.unwrap()).unwrap()
}

#[test]
fn no_payload_is_another_thing_than_null_as_payload() {
    let null = structured(&event(PayloadFormat::Json, Some(b"null")));
    assert_eq!((null.get("data"), &null["datacontenttype"]), (Some(&Value::Null), &json!("application/json")));
    let none = structured(&event(PayloadFormat::Json, None));
    assert_eq!((none.get("data"), none.get("datacontenttype")), (None, None));
    let binary = cloudevents(ContentMode::Binary).wrap(&event(PayloadFormat::Json, None)).unwrap();
    assert_eq!((binary.body, binary.content_type), (None, None));
}

#[test]
fn a_payload_beside_its_attributes_is_not_copied() {
    let event = event(PayloadFormat::Json, Some(br#"{ "appinfoA" : "abc" }"#));
    let wrapped = cloudevents(ContentMode::Binary).wrap(&event).unwrap();
    assert_eq!(wrapped.body.as_ref().unwrap().as_ptr(), event.body().as_ptr());
}

/// HTTP binding 1.0.2, section 3.1.3.2.
#[test]
fn header_values_are_percent_encoded_as_the_http_binding_says() {
    for (value, encoded) in [
        ("Euro € 😀", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
        ("", ""),
        ("plain!~'()*", "plain!~'()*"),
        ("50% of \"it\"", "50%25%20of%20%22it%22"),
        ("\u{7f}", "%7F"),
    ] {
        assert_eq!(percent_encoded(value), encoded);
    }
}

#[test]
fn key_and_trace_context_have_their_attributes() {
    let mut event =
        with_headers(event(PayloadFormat::Json, Some(b"1")), &[("TraceParent", TRACEPARENT), ("tracestate", "a=1%2")]);
    event.key = Some("order 42/ä".into());
    let document = structured(&event);
    assert_eq!(document["subject"], "order 42/ä");
    assert_eq!((&document["traceparent"], &document["tracestate"]), (&json!(TRACEPARENT), &json!("a=1%2")));
    event.key = Some(ByteString::new());
    assert_eq!(structured(&event).get("subject"), None, "a subject is not empty");
    event.committed_at = Timestamp(i64::MAX);
    assert_eq!(structured(&event).get("time"), None, "RFC 3339 ends with the year 9999");
}

#[test]
fn what_a_cloudevent_cannot_hold_is_rejected_with_a_reason() {
    let good = || event(PayloadFormat::Json, Some(b"1"));
    let mut no_id = good();
    no_id.id = ByteString::new();
    let mut no_type = good();
    no_type.event_type = ByteString::new();
    let mut control = good();
    control.key = Some("a\u{85}b".into());
    let mut nonchar = good();
    nonchar.id = "a\u{fffe}".into();
    for (event, why) in [
        (no_id, "the event's id is empty"),
        (no_type, "the event's type is empty"),
        (control, "`subject` holds the character \\u{85}"),
        (nonchar, "`id` holds the character \\u{fffe}"),
        (with_headers(good(), &[("tenant-id", "x")]), "`tenant-id` cannot be an attribute"),
        (with_headers(good(), &[("", "x")]), "`` cannot be an attribute"),
        (with_headers(good(), &[("a\r\nb", "x")]), "`a\\r\\nb` cannot be an attribute"),
        (with_headers(good(), &[("Source", "x")]), "`source` has the name of an attribute"),
        (with_headers(good(), &[("data", "x")]), "`data` has the name of an attribute"),
        (with_headers(good(), &[("Tenant", "x"), ("tenant", "y")]), "two headers of the event are named `tenant`"),
        (with_headers(good(), &[("tenant", "a\nb")]), "`tenant` holds the character \\u{a}"),
        (with_headers(good(), &[("dataschema", "a b")]), "`dataschema` is no URI"),
    ] {
        for mode in [ContentMode::Binary, ContentMode::Structured] {
            let rejection = cloudevents(mode).wrap(&event).unwrap_err();
            assert_eq!(rejection.reason, RejectReason::InvalidEvent);
            assert!(rejection.message.contains(why), "{rejection}");
            assert!(!rejection.message.contains(['\r', '\n']), "{rejection}");
        }
    }
}

#[test]
fn raw_and_debezium_leave_the_payload_as_it_is() {
    let mut event =
        with_headers(event(PayloadFormat::Json, Some(b"{}")), &[("Tenant-Id", "x"), ("traceparent", TRACEPARENT)]);
    event.key = Some("42".into());
    let raw = Envelope::Raw.wrap(&event).unwrap();
    let names: Vec<String> = attributes(&raw, "ce-").into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        ["id", "walgate-event-type", "walgate-key", "walgate-position", "walgate-committed-at", "traceparent"]
    );
    let debezium = Envelope::Debezium.wrap(&event).unwrap();
    let expected = [("id", "A234-1234-1234"), ("eventType", "com.example.someevent"), ("traceparent", TRACEPARENT)];
    assert_eq!(attributes(&debezium, "ce-"), expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    for wrapped in [raw, debezium] {
        assert_eq!(wrapped.headers, [("Tenant-Id".into(), "x".into())]);
        assert_eq!((wrapped.body.as_deref(), wrapped.content_type), (Some(&b"{}"[..]), Some("application/json")));
    }
    event.payload = None;
    assert_eq!(Envelope::Debezium.wrap(&event).unwrap().body, None, "a tombstone");
}

#[test]
fn settings_are_a_name_or_a_mapping() {
    let read = |value: Value| read_config::<Envelope>(&value).map_err(|issue| issue.message);
    assert_eq!(read(json!("raw")), Ok(Envelope::Raw));
    assert_eq!(read(json!("debezium")), Ok(Envelope::Debezium));
    assert_eq!(read(json!({ "raw": null })), Ok(Envelope::Raw));
    let default = Envelope::CloudEvents(CloudEvents { mode: None, source: "/walgate".to_owned() });
    for same in [json!("cloudevents"), json!({ "cloudevents": null }), json!({ "cloudevents": {} })] {
        assert_eq!(read(same), Ok(default.clone()));
    }
    let full = json!({ "cloudevents": { "mode": "structured", "source": "/mycontext" } });
    assert_eq!(read(full), Ok(cloudevents(ContentMode::Structured)));
    for (wrong, why) in [
        (json!("avro"), "unknown variant `avro`"),
        (json!({ "avro": {} }), "unknown field `avro`"),
        (json!({}), "must name one of"),
        (json!({ "raw": {}, "debezium": {} }), "must name one of"),
        (json!({ "raw": { "x": 1 } }), "unknown field `x`"),
        (json!({ "cloudevents": { "mod": "binary" } }), "unknown field `mod`"),
        (json!({ "cloudevents": { "mode": "json" } }), "unknown variant `json`"),
        (json!({ "cloudevents": ["binary"] }), "expected struct CloudEvents"),
        (json!(5), "expected raw, cloudevents, debezium"),
    ] {
        let message = read(wrong).unwrap_err();
        assert!(message.contains(why), "{message}");
    }
    for source in ["", "a b", "/shop%2", "/ä", "/a#b#c", "/<x>"] {
        let settings = CloudEvents { mode: None, source: source.to_owned() };
        let issues = Envelope::CloudEvents(settings).issues();
        assert_eq!(issues.len(), 1, "{source}");
        let path = ["envelope", "cloudevents", "source"].map(|key| crate::PathSegment::Key(key.to_owned()));
        assert_eq!(issues[0].path, path);
    }
    for source in [
        "/mycontext",
        "https://github.com/cloudevents",
        "mailto:cncf-wg-serverless@lists.cncf.io",
        "urn:uuid:6e8bc430-9c3a-11d9-9669-0800200c9a66",
        "cloudevents/spec/pull/123",
        "1-555-123-4567",
        "/a%20b?x=1#y",
    ] {
        let settings = CloudEvents { mode: None, source: source.to_owned() };
        assert_eq!(Envelope::CloudEvents(settings).issues(), [], "{source}");
    }
    assert_eq!(default.clone().or_mode(ContentMode::Structured).content_mode(), Some(ContentMode::Structured));
    for (envelope, name, reserved) in [
        (Envelope::Raw, "ce-id", false),
        (cloudevents(ContentMode::Binary), "CE-Id", true),
        (cloudevents(ContentMode::Binary), "content-type", false),
        (cloudevents(ContentMode::Structured), "Content-Type", true),
        (cloudevents(ContentMode::Structured), "x", false),
        (Envelope::Debezium, "eventtype", true),
        (Envelope::Debezium, "ce-id", false),
    ] {
        assert_eq!(envelope.reserves(name, "ce-"), reserved, "{name}");
    }
    let binary = cloudevents(ContentMode::Binary).or_mode(ContentMode::Structured);
    assert_eq!(binary.content_mode(), Some(ContentMode::Binary));
}

/// Any text, with the characters that hurt more often than chance would have them.
fn hostile() -> impl Strategy<Value = String> {
    prop_oneof![".{0,12}", "[a-zA-Z0-9%\" \\\\\r\n\t\u{0}\u{7f}\u{85}é😀]{0,12}", "[a-z0-9]{1,20}"]
}

prop_compose! {
    fn any_event()(
        id in hostile(), event_type in hostile(), key in proptest::option::of(hostile()),
        headers in proptest::collection::vec((hostile(), hostile()), 0..4),
        payload in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        text in hostile(), kind in 0..3_u8, micros in any::<i64>(),
    ) -> Event {
        let mut event = Event::new(id, event_type);
        event.key = key.map(Into::into);
        event.headers = headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        event.committed_at = Timestamp(micros);
        // What PostgreSQL can send: JSON, text, any bytes.
        (event.format, event.payload) = match kind {
            0 => (PayloadFormat::Json, payload.map(|_| json!({ "text": text }).to_string().into())),
            1 => (PayloadFormat::Text, payload.map(|_| text.into())),
            _ => (PayloadFormat::Binary, payload.map(Into::into)),
        };
        event
    }
}

proptest! {
    #[test]
    fn whatever_an_event_holds_both_modes_agree_and_obey_the_specification(event in any_event()) {
        let binary = cloudevents(ContentMode::Binary).wrap(&event);
        let whole = cloudevents(ContentMode::Structured).wrap(&event);
        let (binary, whole) = match (binary, whole) {
            (Ok(binary), Ok(whole)) => (binary, whole),
            (Err(first), Err(second)) => {
                prop_assert_eq!(&first, &second);
                prop_assert!(!first.message.chars().any(char::is_control), "{}", first);
                return Ok(());
            }
            (binary, whole) => panic!("{binary:?} and {whole:?}"),
        };
        let document: Value = serde_json::from_slice(&whole.body.unwrap()).unwrap();
        let members = document.as_object().unwrap();
        for required in ["id", "source", "specversion", "type"] {
            prop_assert!(members[required].as_str().is_some_and(|value| !value.is_empty()));
        }
        for (name, value) in &binary.attributes {
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) && !name.is_empty());
            prop_assert!(!value.chars().any(char::is_control));
            prop_assert_eq!(members[&**name].as_str(), Some(&**value));
            let encoded = percent_encoded(value);
            prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"'));
            prop_assert_eq!(decoded(&encoded), &value.as_bytes()[..]);
        }
        prop_assert!(!(members.contains_key("data") && members.contains_key("data_base64")));
        let beside = ["data", "data_base64", "datacontenttype"].iter().filter(|name| members.contains_key(**name)).count();
        prop_assert_eq!(members.len(), binary.attributes.len() + beside);
        prop_assert_eq!(beside, if event.payload.is_some() { 2 } else { 0 });
        prop_assert_eq!(binary.body.as_deref(), event.payload.as_deref());
        match event.format {
            _ if event.payload.is_none() => {}
            PayloadFormat::Json => {
                prop_assert_eq!(&members["data"], &serde_json::from_slice::<Value>(event.body()).unwrap());
            }
            PayloadFormat::Text => prop_assert_eq!(members["data"].as_str().unwrap().as_bytes(), event.body()),
            PayloadFormat::Binary => {
                use base64::{Engine as _, engine::general_purpose::STANDARD};
                let bytes = STANDARD.decode(members["data_base64"].as_str().unwrap()).unwrap();
                prop_assert_eq!(&bytes, event.body());
            }
        }
        // Every header is there, or the event was rejected.
        for (name, value) in event.headers.iter() {
            let lower = name.to_ascii_lowercase();
            let first = event.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(&lower)).unwrap();
            prop_assert!(members[&lower].as_str() == Some(&**value) || first.1 != *value);
        }
    }

    #[test]
    fn other_envelopes_lose_nothing(event in any_event()) {
        for envelope in [Envelope::Raw, Envelope::Debezium] {
            let Ok(wrapped) = envelope.wrap(&event) else {
                prop_assert!(event.id.is_empty());
                continue;
            };
            prop_assert_eq!(wrapped.body, event.payload.clone());
            let traces = trace_context(&event).count();
            let traced = event.headers.iter().filter(|(name, _)| TRACE.iter().any(|t| name.eq_ignore_ascii_case(t)));
            prop_assert_eq!(wrapped.headers.len() + traced.count(), event.headers.iter().count());
            prop_assert!(wrapped.attributes.len() >= 2 + traces);
        }
    }
}

/// The bytes that a percent-encoded text stands for.
fn decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'%' {
            bytes.push(u8::from_str_radix(std::str::from_utf8(&tail[..2]).unwrap(), 16).unwrap());
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    bytes
}
