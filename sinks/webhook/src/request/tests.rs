use serde_json::{Value, json};
use walgate_sink::{ByteString, Lsn, PayloadFormat, Position, SinkFactory as _, Target, Timestamp};

use super::*;
use crate::{WebhookConfig, WebhookFactory};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn requests(mut config: Value) -> Requests {
    config["secret"] = json!(SECRET);
    let config: WebhookConfig = serde_json::from_value(config).unwrap();
    let max_body = config.max_body.map(|size| size.0);
    Requests::new(config.settings().unwrap(), config.path.as_deref(), max_body)
}

fn event() -> Event {
    let mut event = Event::new("7f9c24e5-2f1b-4b1e-9d5e-000000000001", "order.created");
    event.payload = Some(Bytes::from_static(br#"{"order": 42}"#));
    event
}

fn delivery(event: Event, path: Option<&str>) -> Delivery {
    Delivery {
        dedup_id: event.id.clone(),
        event,
        target: Target::new(WebhookFactory::TARGET, [path.map(ByteString::from)]),
        ordering_key: None,
        attempt: 1,
    }
}

fn header<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request.headers().get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn everything_of_the_event_travels() {
    let mut event = event();
    event.key = Some("kunde 7/ä".into());
    event.headers = [
        ("Tenant".into(), "a\r\nb".into()),
        ("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        ("TraceState".into(), "rojo=1%2".into()),
        ("webhook-id".into(), "forged".into()),
    ]
    .into_iter()
    .collect();
    event.position = Position { commit_lsn: Lsn(0x16_B374_D848), ordinal: 3 };
    event.committed_at = Timestamp(1_709_251_199_123_456);
    let requests = requests(json!({ "url": "https://a.example/hooks", "headers": { "x-team": "blue" } }));
    let (request, endpoint) = requests.build(&delivery(event, None), 1_700_000_000).unwrap();

    assert_eq!((request.method(), request.url().as_str()), (&Method::POST, "https://a.example/hooks"));
    assert_eq!(&*endpoint.shown, "https://a.example/hooks");
    assert!(endpoint.fixed);
    for (name, value) in [
        ("webhook-id", "7f9c24e5-2f1b-4b1e-9d5e-000000000001"),
        ("webhook-timestamp", "1700000000"),
        ("content-type", "application/json"),
        ("user-agent", concat!("walgate/", env!("CARGO_PKG_VERSION"))),
        ("x-team", "blue"),
        ("walgate-event-type", "order.created"),
        ("walgate-key", "kunde 7/%C3%A4"),
        ("walgate-position", "16/B374D848#3"),
        ("walgate-committed-at", "2024-02-29T23:59:59.123456Z"),
        ("walgate-header-tenant", "a%0D%0Ab"),
        ("walgate-header-webhook-id", "forged"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", "rojo=1%2"),
    ] {
        assert_eq!(header(&request, name), Some(value), "{name}");
    }
    assert_eq!(request.body().unwrap().as_bytes().unwrap(), br#"{"order": 42}"#);
    let theirs = standardwebhooks::Webhook::new(SECRET).unwrap();
    let id = "7f9c24e5-2f1b-4b1e-9d5e-000000000001";
    let signature = theirs.sign(id, 1_700_000_000, br#"{"order": 42}"#).unwrap();
    assert_eq!(header(&request, "webhook-signature"), Some(&*signature));
    assert_eq!(request.headers().get_all("webhook-id").iter().count(), 1);
}

#[test]
fn attempts_differ_in_time_and_signature_alone() {
    let requests = requests(json!({ "url": "https://a.example" }));
    let (first, _) = requests.build(&delivery(event(), None), 1).unwrap();
    let (second, _) = requests.build(&delivery(event(), None), 2).unwrap();
    let differing: Vec<_> =
        first.headers().keys().filter(|name| first.headers()[*name] != second.headers()[*name]).collect();
    assert_eq!(differing.len(), 2, "{differing:?}");
    assert_ne!(header(&first, "webhook-timestamp"), header(&second, "webhook-timestamp"));
    assert_ne!(header(&first, "webhook-signature"), header(&second, "webhook-signature"));
}

#[test]
fn the_body_is_the_payload_without_a_copy() {
    let requests = requests(json!({ "url": "https://a.example", "max_body": "16B" }));
    for (format, content_type) in [
        (PayloadFormat::Json, "application/json"),
        (PayloadFormat::Text, "text/plain; charset=utf-8"),
        (PayloadFormat::Binary, "application/octet-stream"),
    ] {
        let mut event = event();
        event.format = format;
        event.payload = Some(Bytes::from_static(&[0, 159, 255]));
        let (request, _) = requests.build(&delivery(event.clone(), None), 0).unwrap();
        assert_eq!(header(&request, "content-type"), Some(content_type));
        let body = request.body().unwrap().as_bytes().unwrap();
        assert_eq!(body.as_ptr(), event.body().as_ptr());
    }
    let mut null = event();
    null.payload = None;
    let (request, _) = requests.build(&delivery(null, None), 0).unwrap();
    assert_eq!((header(&request, "content-type"), request.body().unwrap().as_bytes()), (None, Some(&[][..])));

    let mut large = event();
    large.payload = Some(Bytes::from_static(&[b' '; 17]));
    let rejection = requests.build(&delivery(large, None), 0).unwrap_err();
    assert_eq!(rejection.reason, RejectReason::TooLarge);
    assert!(rejection.message.contains("17") && rejection.message.contains("16"), "{rejection}");
}

#[test]
fn a_configured_content_type_replaces_ours() {
    let requests = requests(json!({ "url": "https://a.example", "headers": { "Content-Type": "application/cbor" } }));
    let (request, _) = requests.build(&delivery(event(), None), 0).unwrap();
    assert_eq!(header(&request, "content-type"), Some("application/cbor"));
}

#[test]
fn events_that_no_request_can_carry_are_rejected() {
    let requests = requests(json!({ "url": "https://a.example" }));
    let reason = |event| requests.build(&delivery(event, None), 0).unwrap_err().reason;
    assert_eq!(reason(Event::new("", "a")), RejectReason::InvalidEvent);
    assert_eq!(reason(Event::new("a".repeat(17_000), "a")), RejectReason::TooLarge);
    let mut headers = event();
    headers.headers = [(ByteString::from("n".repeat(100_000)), ByteString::from(""))].into_iter().collect();
    assert_eq!(reason(headers), RejectReason::TooLarge);
}

#[test]
fn paths_are_appended_and_cannot_leave_the_host() {
    for (url, path, expected) in [
        ("https://a.example", "/orders/42", "https://a.example/orders/42"),
        ("https://a.example/", "/orders/42", "https://a.example/orders/42"),
        ("https://a.example/hooks/", "/x/", "https://a.example/hooks/x/"),
        ("https://a.example:8443/hooks?token=t", "/x?key=1", "https://a.example:8443/hooks/x?token=t&key=1"),
        ("https://a.example/hooks/", "?key=a%2Fb", "https://a.example/hooks/?key=a%2Fb"),
        ("http://[::1]:80/h", "//evil.example/x", "http://[::1]/h//evil.example/x"),
        ("https://a.example", "/@evil.example", "https://a.example/@evil.example"),
        ("https://a.example/h", "/%2E%2Ex/a%2E", "https://a.example/h/%2E%2Ex/a%2E"),
    ] {
        let (request, endpoint) = requests(json!({ "url": url })).build(&delivery(event(), Some(path)), 0).unwrap();
        assert_eq!(request.url().as_str(), expected);
        assert!(!endpoint.fixed && !endpoint.shown.contains(['?', '=']), "{}", endpoint.shown);
    }
    let long = format!("/{}", "x".repeat(9_000));
    for path in [
        "",
        "orders",
        "@evil.example",
        ":80/x",
        ".evil.example",
        "/..",
        "/../x",
        "/a/../../x",
        "/.",
        "/%2e%2E/x",
        "/.%2e",
        "\\evil",
        "/a\\b",
        "/a b",
        "/a\tb",
        "/a\nb",
        "/ä",
        "/#x",
        "?a#b",
        "/\"",
        "/<",
        "/?a b",
        long.as_str(),
    ] {
        let built = requests(json!({ "url": "https://a.example/hooks" })).build(&delivery(event(), Some(path)), 0);
        assert_eq!(built.unwrap_err().reason, RejectReason::InvalidTarget, "{path:?}");
    }
}

#[test]
fn x3_no_path_changes_scheme_host_or_port() {
    // Every way to write a host that has fooled somebody, behind everything that has let one begin.
    let hosts = [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "localhost",
        "localhost.",
        "LOCALHOST",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[fe80::1%25eth0]",
        "[fe80::1%eth0]",
        "①②⑦.⓪.⓪.①",
        "１２７.0.0.1",
        "127。0。0。1",
        "127%2e0%2e0%2e1",
        "%6c%6f%63%61%6c%68%6f%73%74",
        "169.254.169.254",
        "0xa9fea9fe",
        "2852039166",
        "metadata.google.internal",
        "ⓜetadata.google.internal",
        "[fd00:ec2::254]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "100.100.100.200",
        "0",
        "evil.example",
        "xn--evil-9za.example",
        "127.0.0.1.nip.example",
    ];
    let before = [
        "",
        "/",
        "//",
        "///",
        "/\\",
        "\\\\",
        "/\\/",
        "@",
        "/@",
        ":80@",
        "x:y@",
        "/x:y@",
        "//x:y@",
        "http://",
        "/http://",
        "https:",
        "http:",
        "//x@a.example@",
        "?",
        "?u=http://",
        "?@",
        "#@",
        "/#@",
        "/?#@",
        "/../../",
        "/..;/",
        "/%2e%2e/",
        "/%00@",
        "/%0d%0ahost: ",
        "/\t@",
        "/\r\nhost: ",
        "\u{ff0f}\u{ff0f}",
        "/\u{2044}",
        ".",
        ":",
        ":1/",
        "/;@",
        "&@",
        "javascript:",
        "file://",
        "gopher://",
    ];
    let after = ["", "/", ":1/", ":80", "/latest/meta-data/", "?x", "#", "\u{0}"];
    let (hosts, after) = (&hosts, &after);
    let mut vectors = 0;
    for base in ["https://partner.example/hooks", "http://partner.example:8080/?t=1", "https://[2001:db8::1]:8443"] {
        let requests = requests(json!({ "url": base }));
        let meant = Url::parse(base).unwrap();
        for (before, host, after) in
            before.iter().flat_map(|b| hosts.iter().flat_map(move |h| after.iter().map(move |a| (b, h, a))))
        {
            let path = format!("{before}{host}{after}");
            vectors += 1;
            let Ok((request, _)) = requests.build(&delivery(event(), Some(&path)), 0) else { continue };
            let url = request.url();
            assert_eq!(url.origin(), meant.origin(), "{path:?}");
            assert!(url.username().is_empty() && url.password().is_none() && url.fragment().is_none(), "{path:?}");
            assert!(url.path().starts_with(meant.path()) && request.headers().get("host").is_none(), "{path:?}");
        }
    }
    assert!(vectors > 30_000, "{vectors}");
}

#[test]
fn a_literal_path_of_the_configuration_is_a_fixed_url() {
    let requests = requests(json!({ "url": "https://a.example", "path": "/hooks" }));
    let (request, endpoint) = requests.build(&delivery(event(), Some("/hooks")), 0).unwrap();
    assert_eq!((request.url().as_str(), endpoint.fixed), ("https://a.example/hooks", true));
    let (_, endpoint) = requests.build(&delivery(event(), Some("/other")), 0).unwrap();
    assert!(!endpoint.fixed);
}

#[test]
fn what_is_shown_is_bounded() {
    let requests = requests(json!({ "url": "https://a.example/hooks?token=hunter2" }));
    let path = format!("/{}", "x".repeat(1_000));
    let (_, endpoint) = requests.build(&delivery(event(), Some(&path)), 0).unwrap();
    assert!(endpoint.shown.len() < 210 && !endpoint.shown.contains("hunter2"), "{}", endpoint.shown);
    assert!(!requests.build(&delivery(event(), None), 0).unwrap().1.shown.contains("hunter2"));
}

#[test]
fn a_cloudevent_is_in_headers_or_in_the_body() {
    let mut event = event();
    event.key = Some("kunde 7/ä".into());
    event.headers =
        [("Tenant".into(), "50% \"x\"".into()), ("TraceParent".into(), "00-a".into())].into_iter().collect();
    let binary = json!({ "url": "https://a.example", "envelope": { "cloudevents": { "source": "/shop" } } });
    let (request, _) = requests(binary).build(&delivery(event.clone(), None), 1).unwrap();
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "7f9c24e5-2f1b-4b1e-9d5e-000000000001"),
        ("ce-source", "/shop"),
        ("ce-type", "order.created"),
        ("ce-subject", "kunde%207/%C3%A4"),
        ("ce-time", "1970-01-01T00:00:00.000000Z"),
        ("ce-tenant", "50%25%20%22x%22"),
        ("ce-traceparent", "00-a"),
        ("traceparent", "00-a"),
        ("content-type", "application/json"),
        ("webhook-id", "7f9c24e5-2f1b-4b1e-9d5e-000000000001"),
    ] {
        assert_eq!(header(&request, name), Some(value), "{name}");
    }
    assert!(!request.headers().keys().any(|name| name.as_str().starts_with("walgate-")));
    assert_eq!(request.body().unwrap().as_bytes().unwrap(), br#"{"order": 42}"#);

    let structured = json!({ "url": "https://a.example", "envelope": { "cloudevents": { "mode": "structured" } } });
    let (request, _) = requests(structured).build(&delivery(event, None), 1).unwrap();
    assert_eq!(header(&request, "content-type"), Some("application/cloudevents+json"));
    assert!(!request.headers().keys().any(|name| name.as_str().starts_with("ce-")));
    let body = request.body().unwrap().as_bytes().unwrap();
    let document: Value = serde_json::from_slice(body).unwrap();
    assert_eq!((&document["source"], &document["data"]), (&json!("/walgate"), &json!({ "order": 42 })));
    let theirs = standardwebhooks::Webhook::new(SECRET).unwrap();
    let signature = theirs.sign("7f9c24e5-2f1b-4b1e-9d5e-000000000001", 1, body).unwrap();
    assert_eq!(header(&request, "webhook-signature"), Some(&*signature), "of the body as it is sent");
}

#[test]
fn debezium_names_what_its_router_names() {
    let mut event = event();
    event.key = Some("42".into());
    event.headers = [("authorization".into(), "forged".into())].into_iter().collect();
    let requests = requests(json!({ "url": "https://a.example", "envelope": "debezium" }));
    let (request, _) = requests.build(&delivery(event, None), 1).unwrap();
    for (name, value) in [
        ("id", Some("7f9c24e5-2f1b-4b1e-9d5e-000000000001")),
        ("eventtype", Some("order.created")),
        ("aggregateid", Some("42")),
        ("walgate-header-authorization", Some("forged")),
        ("authorization", None),
        ("content-type", Some("application/json")),
    ] {
        assert_eq!(header(&request, name), value, "{name}");
    }
}
