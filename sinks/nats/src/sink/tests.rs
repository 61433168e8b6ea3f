//! The sink against a server that does what the test says. What a real one does stands in the end-to-end tests.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use walgate_sink::{ByteString, Bytes, Delivery, Event, Outcome, RejectReason, Target, read_config};

use self::server::{Peer, Server};
use super::*;

mod server;

/// Long enough that a busy machine does not run into it.
const LONG: Duration = Duration::from_secs(30);
/// For attempts that are to run out of time.
const SHORT: Duration = Duration::from_secs(1);
const ACKNOWLEDGED: Outcome = Outcome::Acknowledged { duplicate: false };

fn sink_with(server: &Server, timeout: Duration, more: Value) -> Arc<NatsSink> {
    let mut config = json!({ "servers": [server.address()], "subject": "orders" });
    let (Some(config_map), Value::Object(more)) = (config.as_object_mut(), more) else { panic!("objects") };
    config_map.extend(more);
    let config: NatsConfig = read_config(&config).unwrap();
    Arc::new(NatsSink::new(&config, &SinkContext::new("test", timeout)).unwrap())
}

fn sink(server: &Server, timeout: Duration) -> Arc<NatsSink> {
    sink_with(server, timeout, json!({}))
}

fn delivery(id: &str, subject: &str, payload: usize) -> Delivery {
    let mut event = Event::new(ByteString::from(id), "order.created");
    event.payload = Some(Bytes::from(vec![b'x'; payload]));
    Delivery {
        event,
        target: Target::new(NatsFactory::TARGET, [Some(subject.into())]),
        ordering_key: None,
        dedup_id: id.into(),
        attempt: 1,
    }
}

fn batch(ids: &[&str]) -> Batch {
    ids.iter().map(|id| delivery(id, "orders", 10)).collect::<Vec<_>>().into()
}

/// A delivery under way, and its report.
fn start(sink: &Arc<NatsSink>, batch: Batch) -> (tokio::task::JoinHandle<()>, DeliveryReport) {
    let report = DeliveryReport::new(batch.len());
    let (sink, shared) = (Arc::clone(sink), report.clone());
    (tokio::spawn(async move { Sink::deliver(&*sink, &batch, &shared).await }), report)
}

fn kinds(report: &DeliveryReport) -> Vec<String> {
    let kind = |outcome: &Outcome| match outcome {
        Outcome::Unknown => "unknown".to_owned(),
        Outcome::Acknowledged { duplicate } => if *duplicate { "duplicate" } else { "acknowledged" }.to_owned(),
        Outcome::Rejected(rejection) => rejection.reason.to_string(),
        Outcome::Failed(failure) => failure.kind.as_str().to_owned(),
        _ => "new".to_owned(),
    };
    report.outcomes().iter().map(kind).collect()
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// Delivers one event over a new connection.
async fn reconnects(server: &Server, sink: &Arc<NatsSink>) -> Peer {
    let (task, report) = start(sink, batch(&["again"]));
    let mut peer = server.accept().await;
    let message = peer.next().await.unwrap();
    assert_eq!(message.header("id"), Some("again"), "nothing of the old connection comes over the new one");
    peer.acknowledge(&message).await;
    task.await.unwrap();
    assert_eq!(report.outcomes(), [ACKNOWLEDGED]);
    peer
}

#[tokio::test]
async fn a_batch_is_published_at_once_and_marked_one_by_one() {
    let server = Server::start().await;
    let sink = sink(&server, LONG);
    let (task, report) = start(&sink, batch(&["1", "2", "3"]));
    let mut peer = server.accept().await;
    // All three come before anything is acknowledged, in order.
    let messages = peer.take(3).await;
    assert_eq!(
        messages.iter().map(|message| message.header("Nats-Msg-Id").unwrap()).collect::<Vec<_>>(),
        ["1", "2", "3"]
    );
    assert!(messages.iter().all(|message| message.subject == "orders"));
    peer.acknowledge(&messages[2]).await;
    until(|| kinds(&report) == ["unknown", "unknown", "acknowledged"]).await;
    peer.answer(&messages[0].reply, &json!({ "stream": "ORDERS", "seq": 1, "duplicate": true })).await;
    until(|| kinds(&report)[0] == "duplicate").await;
    peer.acknowledge(&messages[1]).await;
    task.await.unwrap();
    assert_eq!(kinds(&report), ["duplicate", "acknowledged", "acknowledged"]);

    // Nothing was in doubt: the connection is kept.
    let (task, report) = start(&sink, batch(&["4"]));
    let message = peer.next().await.unwrap();
    peer.acknowledge(&message).await;
    task.await.unwrap();
    assert_eq!(report.outcomes(), [ACKNOWLEDGED]);
}

#[tokio::test]
async fn a_link_that_breaks_in_the_middle_of_a_batch_leaves_a_truthful_report() {
    let server = Server::start().await;
    let sink = sink(&server, LONG);
    let (task, report) = start(&sink, batch(&["1", "2", "3"]));
    let mut peer = server.accept().await;
    let messages = peer.take(3).await;
    peer.acknowledge(&messages[1]).await;
    drop(peer);
    task.await.unwrap();
    assert_eq!(kinds(&report), ["connection", "acknowledged", "connection"]);
    let Outcome::Failed(failure) = &report.outcomes()[0] else { panic!("not failed") };
    assert!(failure.message.contains(&server.address()), "{failure}");

    reconnects(&server, &sink).await;
}

#[tokio::test]
async fn the_client_library_never_comes_back_by_itself() {
    let server = Server::start().await;
    let sink = sink(&server, LONG);
    // Idle: nothing but the library sees the end of the connection.
    drop(reconnects(&server, &sink).await);
    let nobody = tokio::time::timeout(Duration::from_millis(300), server.accept()).await;
    assert!(nobody.is_err(), "it would send what is in its queue");
    reconnects(&server, &sink).await;
}

#[tokio::test]
async fn a_missing_acknowledgement_ends_the_connection() {
    let server = Server::start().await;
    let sink = sink(&server, SHORT);
    let (task, report) = start(&sink, batch(&["1", "2"]));
    let mut peer = server.accept().await;
    let messages = peer.take(2).await;
    peer.acknowledge(&messages[1]).await;
    task.await.unwrap();
    assert_eq!(kinds(&report), ["timeout", "acknowledged"]);
    assert!(peer.has_ended().await);
    reconnects(&server, &sink).await;
}

#[tokio::test]
async fn a_dropped_delivery_ends_the_connection_and_leaves_the_sink_usable() {
    let server = Server::start().await;
    let sink = sink(&server, LONG);
    let (task, report) = start(&sink, batch(&["1", "2"]));
    let mut peer = server.accept().await;
    let messages = peer.take(2).await;
    peer.acknowledge(&messages[0]).await;
    until(|| kinds(&report)[0] == "acknowledged").await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    assert_eq!(kinds(&report), ["acknowledged", "unknown"]);
    assert!(peer.has_ended().await);
    reconnects(&server, &sink).await;
}

#[tokio::test]
async fn what_a_stuck_connection_still_holds_is_gone_before_the_next_one_begins() {
    const LARGE: usize = 1 << 19;
    let server = Server::start().await;
    let sink = sink(&server, LONG);
    // More than any socket's buffers hold, so that most of it stays with the client.
    let ids: Vec<String> = (0..64).map(|n| n.to_string()).collect();
    let (task, _) = start(&sink, ids.iter().map(|id| delivery(id, "orders", LARGE)).collect::<Vec<_>>().into());
    let mut stuck = server.accept().await;
    assert_eq!(stuck.next().await.unwrap().header("id"), Some("0"), "it is under way");
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let _peer = reconnects(&server, &sink).await;
    // Only now does the old connection move again: what comes of it is what the kernel had, and then its end.
    let mut late = 1;
    while stuck.next().await.is_some() {
        late += 1;
    }
    assert!(late < 64, "the client has gone on with the old connection");
}

#[tokio::test]
async fn answers_that_are_no_acknowledgement_keep_the_connection() {
    let server = Server::start().await;
    let sink = sink(&server, LONG);
    let ids = ["1", "2", "3", "4", "5"];
    let mut deliveries: Vec<Delivery> = ids.iter().map(|id| delivery(id, "orders", 10)).collect();
    deliveries[4] = delivery("5", "orders.secret", 10);
    let (task, report) = start(&sink, deliveries.into());
    let mut peer = server.accept().await;
    let messages = peer.take(5).await;
    peer.no_responders(&messages[0]).await;
    let error = |code: u32, err_code: u32, description: &str| {
        json!({ "type": "io.nats.jetstream.api.v1.pub_ack_response", "stream": "", "seq": 0,
                "error": { "code": code, "err_code": err_code, "description": description } })
    };
    peer.answer(&messages[1].reply, &error(503, 10077, "maximum messages exceeded")).await;
    peer.answer(&messages[2].reply, &error(400, 10054, "message size exceeds maximum allowed")).await;
    peer.write(b"-ERR 'Permissions Violation for Publish to \"orders.secret\"'\r\n").await;
    until(|| kinds(&report)[4] != "unknown").await;
    peer.acknowledge(&messages[3]).await;
    task.await.unwrap();
    assert_eq!(kinds(&report), ["connection", "unavailable", "too_large", "acknowledged", "unknown_target"]);
    // The same connection.
    let (task, report) = start(&sink, batch(&["6"]));
    let message = peer.next().await.unwrap();
    peer.acknowledge(&message).await;
    task.await.unwrap();
    assert_eq!(report.outcomes(), [ACKNOWLEDGED]);
}

#[tokio::test]
async fn what_is_unfit_is_never_sent() {
    let mut server = Server::start().await;
    server.max_payload = 1000;
    let sink = sink(&server, LONG);
    let deliveries = vec![delivery("1", "a b", 10), delivery("2", "orders", 1000), delivery("3", "orders", 10)];
    let (task, report) = start(&sink, deliveries.into());
    let mut peer = server.accept().await;
    let message = peer.next().await.unwrap();
    assert_eq!(message.header("id"), Some("3"));
    peer.acknowledge(&message).await;
    task.await.unwrap();
    assert_eq!(kinds(&report), ["invalid_target", "too_large", "acknowledged"]);
    let Outcome::Rejected(rejection) = &report.outcomes()[1] else { panic!("not rejected") };
    assert_eq!(rejection.reason, RejectReason::TooLarge);
    assert!(rejection.message.contains("takes 1000 at the most"), "{rejection}");

    // A batch with nothing fit in it needs no server.
    drop((peer, server));
    let (task, report) = start(&sink, vec![delivery("4", "a..b", 10)].into());
    task.await.unwrap();
    assert_eq!(kinds(&report), ["invalid_target"]);
}

#[tokio::test]
async fn refused_credentials_are_fatal_and_are_not_shown() {
    let server = Server::start().await;
    let sink = sink_with(&server, LONG, json!({ "token": "hunter2-hunter2" }));
    for (error, says) in [
        ("Authorization Violation", "does not accept the credentials (authorization violation)"),
        ("User Authentication Expired", "it says `User Authentication Expired`"),
        ("Authentication of hunter2-hunter2 failed", "it says `Authentication of [secret] failed`"),
    ] {
        let (task, report) = start(&sink, batch(&["1"]));
        server.refuse(error).await;
        task.await.unwrap();
        let Outcome::Failed(failure) = &report.outcomes()[0] else { panic!("{:?}", report.outcomes()) };
        assert_eq!(failure.kind, FailureKind::Fatal, "{failure}");
        assert!(failure.message.contains(says) && failure.message.contains(&server.address()), "{failure}");
        assert!(!failure.message.contains("hunter2"), "{failure}");
    }
    assert!(!format!("{sink:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_check_looks_and_sends_no_event() {
    let server = Server::start().await;
    let sink = sink(&server, LONG);
    let checking = tokio::spawn({
        let sink = Arc::clone(&sink);
        async move { Sink::check(&*sink).await }
    });
    let mut peer = server.accept().await;
    let next = tokio::spawn(async move { peer.next().await.is_none() });
    assert_eq!(checking.await.unwrap(), Ok(()));
    assert_eq!(Sink::warnings(&*sink), Vec::<String>::new());
    sink.close().await;
    assert!(next.await.unwrap(), "a message was published");
}

#[tokio::test]
async fn close_ends_it_for_good_and_may_be_called_twice() {
    let server = Server::start().await;
    let sink = sink(&server, LONG);
    let mut peer = reconnects(&server, &sink).await;
    sink.close().await;
    sink.close().await;
    assert!(peer.has_ended().await);
    let (task, report) = start(&sink, batch(&["1"]));
    task.await.unwrap();
    assert_eq!(kinds(&report), ["connection"]);
    assert!(Sink::check(&*sink).await.unwrap_err().message.contains("closed"));
}
