//! `mode: batch`.

use super::*;

fn batch_sink(more: Value, url: &str, timeout: Duration) -> WebhookSink {
    let mut config = more;
    config["mode"] = json!("batch");
    sink_with(config, url, timeout)
}

/// Ids and paths.
fn events(ids: &[(&str, Option<&str>)]) -> Batch {
    let one =
        |(id, path): &(&str, Option<&str>)| delivery(id, *path, Some(Bytes::from(format!("\"{id}\""))))[0].clone();
    Batch::new(ids.iter().map(one).collect())
}

async fn outcomes(sink: &WebhookSink, batch: &Batch) -> Vec<Outcome> {
    let report = DeliveryReport::new(batch.len());
    Sink::deliver(sink, batch, &report).await;
    report.take()
}

fn ids(body: &[u8]) -> Vec<String> {
    let body: Value = serde_json::from_slice(body).unwrap();
    body.as_array().unwrap().iter().map(|element| element["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_batch_is_one_signed_array_and_keeps_its_id() {
    let mut server = Server::start([status("503 Service Unavailable"), status("200 OK")]).await;
    let sink = batch_sink(json!({}), &server.url(), LONG);
    let batch = events(&[("1", None), ("2", None), ("3", None)]);
    let failed = outcomes(&sink, &batch).await;
    assert!(failed.iter().all(|outcome| matches!(outcome, Outcome::Failed(_))), "{failed:?}");
    assert_eq!(outcomes(&sink, &batch).await, [ACKNOWLEDGED; 3]);

    let (first, second) = (server.next().await, server.next().await);
    assert_eq!(ids(&first.body), ["1", "2", "3"]);
    assert_eq!(first.body, second.body);
    assert_eq!(first.headers["webhook-id"], second.headers["webhook-id"]);
    assert_eq!(first.headers["content-type"], "application/json");
    assert!(!first.headers.contains_key("walgate-event-type"), "an event's own fields are in the body");
    let verifier = standardwebhooks::Webhook::new(SECRET).unwrap();
    for request in [&first, &second] {
        let mut headers = http::HeaderMap::new();
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            headers.insert(name, request.headers[name].parse().unwrap());
        }
        verifier.verify(&request.body, &headers).unwrap();
    }
    let element: Value = serde_json::from_slice(&first.body).unwrap();
    assert_eq!(element[0]["event_type"], "order.created");
    assert_eq!(element[0]["payload"], "1");
}

#[tokio::test]
async fn a_refused_batch_is_halved_down_to_the_culprit() {
    let mut server = Server::start([Reaction::RefuseWith("\"5\"")]).await;
    let sink = batch_sink(json!({}), &server.url(), LONG);
    let all: Vec<String> = (0..8).map(|id| id.to_string()).collect();
    let batch = events(&all.iter().map(|id| (id.as_str(), None)).collect::<Vec<_>>());
    let outcomes = outcomes(&sink, &batch).await;
    for (index, outcome) in outcomes.into_iter().enumerate() {
        if index == 5 {
            assert_eq!(rejection(outcome).reason, RejectReason::Refused);
        } else {
            assert_eq!(outcome, ACKNOWLEDGED, "{index}");
        }
    }
    let mut requests = Vec::new();
    while let Ok(request) = server.received.try_recv() {
        requests.push(ids(&request.body).join(""));
    }
    assert_eq!(requests, ["01234567", "0123", "4567", "45", "4", "5", "67"], "in order, and no more than needed");
}

#[tokio::test]
async fn what_ails_the_endpoint_is_not_searched_for_among_the_events() {
    for (line, kind) in [
        ("500 Internal Server Error", FailureKind::Unavailable),
        ("401 Unauthorized", FailureKind::Fatal),
        ("410 Gone", FailureKind::Fatal),
        ("429 Too Many Requests", FailureKind::Throttled),
    ] {
        let mut server = Server::start([status(line)]).await;
        let sink = batch_sink(json!({}), &server.url(), LONG);
        for outcome in outcomes(&sink, &events(&[("1", None), ("2", None), ("3", None)])).await {
            assert_eq!(failure(outcome).kind, kind, "{line}");
        }
        server.next().await;
        assert!(server.received.try_recv().is_err(), "{line}: one request");
    }
}

#[tokio::test]
async fn events_for_several_urls_are_several_requests() {
    let mut server = Server::start([status("204 No Content")]).await;
    let sink = batch_sink(json!({}), &server.url(), LONG);
    let batch = events(&[
        ("1", Some("/a")),
        ("2", Some("/b")),
        ("3", Some("/a")),
        ("4", None),
        ("5", Some("/../c")),
        ("5", Some("/b")),
    ]);
    let outcomes = outcomes(&sink, &batch).await;
    assert_eq!(rejection(outcomes[4].clone()).reason, RejectReason::InvalidTarget);
    assert!([0, 1, 2, 3, 5].iter().all(|index| outcomes[*index] == ACKNOWLEDGED), "{outcomes:?}");
    let mut requests: Vec<(String, Vec<String>)> = Vec::new();
    for _ in 0..3 {
        let request = server.next().await;
        requests.push((request.line, ids(&request.body)));
    }
    requests.sort();
    let expected = [("/hooks", vec!["4"]), ("/hooks/a", vec!["1", "3"]), ("/hooks/b", vec!["2", "5"])];
    for ((line, ids), (path, expected)) in requests.iter().zip(expected) {
        assert_eq!(line, &format!("POST {path} HTTP/1.1"));
        assert_eq!(*ids, expected);
    }
}

#[tokio::test]
async fn a_path_that_is_not_there_condemns_the_events_for_it_at_once() {
    let mut server = Server::start([status("404 Not Found")]).await;
    let sink = batch_sink(json!({}), &server.url(), LONG);
    for outcome in outcomes(&sink, &events(&[("1", Some("/a")), ("2", Some("/a"))])).await {
        assert_eq!(rejection(outcome).reason, RejectReason::UnknownTarget);
    }
    server.next().await;
    assert!(server.received.try_recv().is_err());
}

#[tokio::test]
async fn a_batch_whose_answer_is_lost_is_no_success() {
    let server = Server::start([Reaction::Reset]).await;
    let sink = batch_sink(json!({}), &server.url(), LONG);
    for outcome in outcomes(&sink, &events(&[("1", None), ("2", None)])).await {
        assert_eq!(failure(outcome).kind, FailureKind::Connection);
    }
    let silent = Server::start([Reaction::Silence]).await;
    let sink = batch_sink(json!({}), &silent.url(), SHORT);
    for outcome in outcomes(&sink, &events(&[("1", None), ("2", None)])).await {
        assert_eq!(failure(outcome).kind, FailureKind::Timeout);
    }
}

#[tokio::test]
async fn max_body_splits_batches_and_rejects_what_is_larger_alone() {
    let mut server = Server::start([status("204 No Content")]).await;
    let sink = batch_sink(json!({ "max_body": "400B" }), &server.url(), LONG);
    let mut deliveries = events(&[("1", None), ("2", None), ("3", None), ("4", None)]).to_vec();
    deliveries[1].event.payload = Some(Bytes::from(format!("\"{}\"", "x".repeat(500))));
    let outcomes = outcomes(&sink, &Batch::new(deliveries)).await;
    assert_eq!(rejection(outcomes[1].clone()).reason, RejectReason::TooLarge);
    assert!([0, 2, 3].iter().all(|index| outcomes[*index] == ACKNOWLEDGED), "{outcomes:?}");
    while let Ok(request) = server.received.try_recv() {
        assert!(request.body.len() <= 400, "{}", request.body.len());
    }
}
