//! Against servers that answer, lie, stall and break.

mod attacks;
mod batch;
mod guard;
mod server;
mod tls;

use serde_json::{Value, json};
use tokio::net::TcpListener;
use walgate_sink::{ByteString, Bytes, Event, RejectReason, Rejection, Target, erase};

use self::server::{Reaction, Server, status, with_body};
use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);
const ACKNOWLEDGED: Outcome = Outcome::Acknowledged { duplicate: false };
const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const BODY: &[u8] = br#"{"order": 42}"#;

fn sink_with(mut config: Value, url: &str, timeout: Duration) -> WebhookSink {
    config["url"] = json!(url);
    config["secret"] = json!(SECRET);
    let config: WebhookConfig = serde_json::from_value(config).unwrap();
    WebhookSink::new(&config, &SinkContext::new("partner", timeout)).unwrap()
}

fn sink(url: &str) -> WebhookSink {
    sink_with(json!({}), url, LONG)
}

fn delivery(id: &str, path: Option<&str>, payload: Option<Bytes>) -> Batch {
    let mut event = Event::new(id, "order.created");
    event.payload = payload;
    let target = Target::new(WebhookFactory::TARGET, [path.map(ByteString::from)]);
    Batch::new(vec![Delivery { event, target, ordering_key: None, dedup_id: id.into(), attempt: 1 }])
}

async fn deliver(sink: &WebhookSink, id: &str) -> Outcome {
    deliver_to(sink, id, None).await
}

async fn deliver_to(sink: &WebhookSink, id: &str, path: Option<&str>) -> Outcome {
    let report = DeliveryReport::new(1);
    Sink::deliver(sink, &delivery(id, path, Some(Bytes::from_static(BODY))), &report).await;
    report.take().remove(0)
}

fn failure(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("not failed: {other:?}"),
    }
}

fn rejection(outcome: Outcome) -> Rejection {
    match outcome {
        Outcome::Rejected(rejection) => rejection,
        other => panic!("not rejected: {other:?}"),
    }
}

#[tokio::test]
async fn a_request_arrives_whole_and_verifies() {
    let mut server = Server::start([status("204 No Content")]).await;
    let sink = sink_with(json!({ "bearer_token": "open-sesame" }), &server.url(), LONG);
    assert_eq!(deliver_to(&sink, "a.1", Some("/orders/4%2F2?x=1")).await, ACKNOWLEDGED);

    let received = server.next().await;
    assert_eq!(received.line, "POST /hooks/orders/4%2F2?x=1 HTTP/1.1");
    assert_eq!(received.body, BODY);
    for (name, value) in [
        ("host", server.addr.to_string().as_str()),
        ("webhook-id", "a%2E1"),
        ("authorization", "Bearer open-sesame"),
        ("content-type", "application/json"),
        ("content-length", "13"),
        ("walgate-event-type", "order.created"),
    ] {
        assert_eq!(received.headers.get(name).map(String::as_str), Some(value), "{name}");
    }
    for absent in ["accept-encoding", "cookie", "referer", "expect", "transfer-encoding"] {
        assert!(!received.headers.contains_key(absent), "{absent}");
    }
    let mut headers = http::HeaderMap::new();
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        headers.insert(name, received.headers[name].parse().unwrap());
    }
    standardwebhooks::Webhook::new(SECRET).unwrap().verify(&received.body, &headers).unwrap();
}

#[tokio::test]
async fn empty_binary_and_large_payloads() {
    let mut server = Server::start([status("200 OK")]).await;
    let sink = sink(&server.url());
    let large = Bytes::from(vec![0xfe; 8 << 20]);
    for payload in [None, Some(Bytes::new()), Some(Bytes::from_static(&[0, 13, 10, 255])), Some(large)] {
        let report = DeliveryReport::new(1);
        Sink::deliver(&sink, &delivery("1", None, payload.clone()), &report).await;
        assert_eq!(report.take(), [ACKNOWLEDGED]);
        let received = server.next().await;
        let payload = payload.unwrap_or_default();
        assert_eq!(received.headers["content-length"], payload.len().to_string());
        assert!(received.body == payload, "{} bytes", payload.len());
    }
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn w1_trouble_is_tried_again() {
    let throttled = Reaction::Answer("HTTP/1.1 429 x\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n".into());
    let busy = Reaction::Answer(
        "HTTP/1.1 503 x\r\nretry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\ncontent-length: 0\r\n\r\n".into(),
    );
    let reactions = [
        with_body("500 x", "customer 42 has no name"),
        throttled,
        busy,
        status("408 x"),
        status("502 x"),
        status("200 OK"),
    ];
    let server = Server::start(reactions).await;
    let sink = sink(&server.url());
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    for (kind, retry_after) in [
        (FailureKind::Unavailable, None),
        (FailureKind::Throttled, seconds(7)),
        (FailureKind::Throttled, seconds(86_400)),
        (FailureKind::Timeout, None),
        (FailureKind::Unavailable, None),
    ] {
        let failure = failure(deliver(&sink, "1").await);
        assert_eq!((failure.kind, failure.retry_after), (kind, retry_after), "{failure}");
        assert!(!failure.message.contains("customer"), "{failure}");
    }
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert_eq!(server.connections(), 1, "a refusal keeps the connection");
}

#[tokio::test]
async fn w2_refusals_are_the_events_or_the_endpoints() {
    let says = "no such order\u{1b}[31m, and your secret is whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let server = Server::start([
        with_body("422 x", says),
        with_body("413 x", &"x".repeat(60_000)),
        status("404 x"),
        status("404 x"),
        status("410 x"),
        status("401 x"),
    ])
    .await;
    let sink = sink(&format!("{}?token=hunter2-hunter2", server.url()));
    let refused = rejection(deliver(&sink, "1").await);
    assert_eq!(refused.reason, RejectReason::Refused);
    assert!(refused.message.ends_with("(it says: no such order\\u{1b}[31m, and your secret is [secret])"), "{refused}");
    let large = rejection(deliver(&sink, "1").await);
    assert_eq!(large.reason, RejectReason::TooLarge);
    assert!(large.message.len() < 400, "{large}");
    let unknown = rejection(deliver_to(&sink, "1", Some("/orders/42")).await);
    assert_eq!(unknown.reason, RejectReason::UnknownTarget);
    assert!(unknown.message.contains("/hooks/orders/42 answered 404"), "{unknown}");
    for status in ["404", "410", "401"] {
        let failure = failure(deliver(&sink, "1").await);
        assert_eq!(failure.kind, FailureKind::Fatal);
        assert!(failure.message.contains(status) && !failure.message.contains("hunter2"), "{failure}");
    }
}

#[tokio::test]
async fn w3_redirects_are_never_followed() {
    let canary = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = canary.local_addr().unwrap();
    for code in [301, 302, 303, 307, 308] {
        let answer = format!("HTTP/1.1 {code} x\r\nlocation: http://{address}/?t=hunter2\r\ncontent-length: 0\r\n\r\n");
        let server = Server::start([Reaction::Answer(answer)]).await;
        let sink = sink(&server.url());
        for path in [None, Some("/x")] {
            let failure = failure(deliver_to(&sink, "1", path).await);
            assert_eq!(failure.kind, FailureKind::Fatal);
            assert!(
                failure.message.contains(&address.to_string()) && !failure.message.contains("hunter2"),
                "{failure}"
            );
        }
    }
    let connected = tokio::select! {
        biased;
        _ = canary.accept() => true,
        () = std::future::ready(()) => false,
    };
    assert!(!connected, "somebody followed a redirect");
}

#[tokio::test]
async fn w4_broken_answers_are_no_answers() {
    let broken = [
        Reaction::Reset,
        Reaction::AnswerAndClose(String::new()),
        Reaction::AnswerAndClose("HTTP/1.1 20".into()),
        Reaction::AnswerAndClose("HTTP/1.1 200 OK\r\ncontent-le".into()),
        Reaction::AnswerAndReset("HTTP/1.1 2".into()),
        Reaction::AnswerAndClose("SMTP ready\r\n\r\n".into()),
        Reaction::AnswerAndClose("HTTP/1.1 200 OK\r\nbad header\0: x\r\n\r\n".into()),
        Reaction::AnswerAndClose(format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(100_000))),
    ];
    let mut reactions: Vec<Reaction> = broken.to_vec();
    reactions.push(status("200 OK"));
    let mut server = Server::start(reactions).await;
    let sink = sink(&server.url());
    for case in 0..broken.len() {
        let failure = failure(deliver(&sink, "1").await);
        assert_eq!(failure.kind, FailureKind::Connection, "case {case}: {failure}");
        assert!(failure.message.contains("is sent again"), "case {case}: {failure}");
        assert_eq!(server.next().await.headers["webhook-id"], "1");
    }
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED, "and then it works again");
}

#[tokio::test]
async fn w4_a_silent_or_dripping_server_costs_one_deadline() {
    let reactions = [
        Reaction::Silence,
        Reaction::Drip(String::new()),
        Reaction::Drip("HTTP/1.1 200 OK\r\nx: ".into()),
        status("200 OK"),
    ];
    let server = Server::start(reactions).await;
    let sink = sink_with(json!({}), &server.url(), SHORT);
    for case in 0..3 {
        let failure = failure(deliver(&sink, "1").await);
        let expected = [FailureKind::Timeout, FailureKind::Connection];
        assert!(expected.contains(&failure.kind), "case {case}: {failure}");
    }
    while deliver(&sink, "1").await != ACKNOWLEDGED {}
}

#[tokio::test]
async fn w4_endless_answers_are_cut() {
    let endless = |line: &str| Reaction::Flood(format!("HTTP/1.1 {line}\r\ncontent-length: 99999999999\r\n\r\n"));
    let mut server = Server::start([endless("200 OK"), endless("400 x"), endless("500 x"), status("200 OK")]).await;
    let sink = sink(&server.url());
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    let refused = rejection(deliver(&sink, "1").await);
    assert!(refused.message.len() < 400, "{refused}");
    assert_eq!(failure(deliver(&sink, "1").await).kind, FailureKind::Unavailable);
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    for _ in 0..3 {
        // The connection is closed: what was written beyond the cap stands in socket buffers.
        assert!(server.floods.recv().await.unwrap() < 32 << 20);
    }
}

#[tokio::test]
async fn w4_a_status_counts_whatever_its_body_does() {
    let head = |line: &str| format!("HTTP/1.1 {line}\r\ncontent-length: 1000\r\n\r\nbegin");
    let server = Server::start([
        Reaction::AnswerAndClose(head("200 OK")),
        Reaction::AnswerAndClose(head("422 x")),
        Reaction::Drip(head("200 OK")),
        Reaction::Drip(head("403 x")),
        status("200 OK"),
    ])
    .await;
    let sink = sink(&server.url());
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert!(rejection(deliver(&sink, "1").await).message.contains("begin"));
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert_eq!(failure(deliver(&sink, "1").await).kind, FailureKind::Fatal);
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
}

#[tokio::test]
async fn w5_an_answer_counts_for_its_own_request_only() {
    // Two answers to one request: the second must not be taken for that of the next request.
    let twice = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".repeat(2);
    let server = Server::start([Reaction::Answer(twice), Reaction::Reset, status("500 x")]).await;
    let sink = sink(&server.url());
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert_ne!(deliver(&sink, "2").await, ACKNOWLEDGED);
    assert_ne!(deliver(&sink, "2").await, ACKNOWLEDGED);
}

#[tokio::test]
async fn w5_an_answer_before_the_body_was_read_is_an_answer() {
    let mut server = Server::start([Reaction::Early("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into())]).await;
    let sink = sink(&server.url());
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert_eq!(server.next().await.body, BODY);
    assert_eq!(deliver(&sink, "2").await, ACKNOWLEDGED);
}

#[tokio::test]
async fn connections_are_used_again_and_a_closed_one_is_replaced() {
    let mut reactions = vec![with_body("200 OK", "thanks"); 10];
    reactions.push(Reaction::AnswerAndClose("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".into()));
    reactions.push(status("200 OK"));
    let mut server = Server::start(reactions).await;
    let sink = sink(&server.url());
    for n in 0..11 {
        assert_eq!(deliver(&sink, &n.to_string()).await, ACKNOWLEDGED);
        assert_eq!(server.next().await.connection, 0);
    }
    // The server has closed the connection without a word; the first attempt may find that out.
    if deliver(&sink, "11").await != ACKNOWLEDGED {
        assert_eq!(deliver(&sink, "11").await, ACKNOWLEDGED);
    }
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_server_that_comes_back_is_found() {
    let server = Server::start([status("200 OK")]).await;
    let (addr, sink) = (server.addr, sink(&server.url()));
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert_eq!(sink.check().await, Ok(()));
    drop(server);
    let gone = failure(loop {
        // The kept connection may need a moment to be seen as closed; no attempt may succeed.
        let outcome = deliver(&sink, "2").await;
        assert_ne!(outcome, ACKNOWLEDGED);
        if failure(outcome.clone()).message.contains("no connection") {
            break outcome;
        }
    });
    assert_eq!(gone.kind, FailureKind::Connection);
    assert!(gone.message.contains(&addr.to_string()), "{gone}");
    assert_eq!(sink.check().await.unwrap_err().kind, walgate_sink::SinkErrorKind::Retryable);

    let mut server = Server::listen(&addr.to_string(), [status("200 OK")], None).await;
    assert_eq!(deliver(&sink, "2").await, ACKNOWLEDGED);
    assert_eq!(server.next().await.headers["webhook-id"], "2");
}

#[tokio::test]
async fn a_dropped_future_leaves_the_sink_usable() {
    let mut server = Server::start([Reaction::Silence, status("200 OK")]).await;
    let sink = sink(&server.url());
    let report = DeliveryReport::new(1);
    let batch = delivery("1", None, Some(Bytes::from_static(BODY)));
    tokio::select! {
        () = Sink::deliver(&sink, &batch, &report) => panic!("there was no answer"),
        _ = server.next() => {}
    }
    assert_eq!(report.take(), [Outcome::Unknown]);
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert_eq!(server.next().await.connection, 1, "the one without an answer is not used again");
}

#[tokio::test]
async fn close_can_be_called_twice_and_ends_deliveries() {
    let server = Server::start([status("200 OK")]).await;
    let sink = sink(&server.url());
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    sink.close().await;
    sink.close().await;
    assert_eq!(failure(deliver(&sink, "2").await).kind, FailureKind::Connection);
    assert!(sink.check().await.is_err());
}

#[tokio::test]
async fn check_connects_and_sends_nothing() {
    let mut server = Server::start([status("200 OK")]).await;
    let sink = sink(&server.url());
    assert_eq!(sink.check().await, Ok(()));
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    assert_eq!(server.next().await.headers["webhook-id"], "1", "the first request is the event's");

    let unknown = sink_with(json!({}), "http://host.invalid/hooks", LONG);
    let error = unknown.check().await.unwrap_err();
    assert!(error.message.contains("host host.invalid"), "{error}");
    let failure = failure(deliver(&unknown, "1").await);
    assert_eq!(failure.kind, FailureKind::Connection);
    assert!(failure.message.starts_with("no connection to http://host.invalid/hooks: "), "{failure}");
}

#[tokio::test]
async fn several_deliveries_in_a_batch_have_their_own_outcomes() {
    let server = Server::start([status("200 OK"), status("422 x"), status("500 x")]).await;
    let sink = sink(&server.url());
    let batch = ["1", "2", "3"].map(|id| delivery(id, None, None)[0].clone()).to_vec().into();
    let report = DeliveryReport::new(3);
    Sink::deliver(&sink, &batch, &report).await;
    let outcomes = report.take();
    assert_eq!(outcomes[0], ACKNOWLEDGED);
    assert!(matches!(&outcomes[1], Outcome::Rejected(_)) && matches!(&outcomes[2], Outcome::Failed(_)), "{outcomes:?}");
}

#[tokio::test]
async fn no_secret_in_any_text() {
    let config = json!({
        "url": "http://127.0.0.1:1/hooks?token=canary-canary", "secret": SECRET,
        "headers": { "x-api-key": "canary-canary" }, "bearer_token": "canary-canary",
    });
    let factory = erase::<WebhookFactory>();
    let parsed = factory.parse(config.clone()).unwrap();
    assert_eq!(factory.validate(&parsed), []);
    let typed: WebhookConfig = serde_json::from_value(config).unwrap();
    let sink = WebhookSink::new(&typed, &SinkContext::new("partner", LONG)).unwrap();
    let mut texts = vec![format!("{typed:?}"), format!("{sink:?}"), format!("{parsed:?}")];
    texts.push(format!("{:?}", sink.check().await));
    texts.push(format!("{:?}", deliver(&sink, "1").await));
    texts.push(format!("{:?}", deliver_to(&sink, "1", Some("bad")).await));
    for text in texts {
        assert!(!text.contains("canary-canary") && !text.contains("C2FVsBQ"), "{text}");
    }
}
