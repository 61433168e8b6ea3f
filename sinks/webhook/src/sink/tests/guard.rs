//! Where requests with a path of their own may go. `partner.test` is a name that the test resolves.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Mutex, PoisonError},
};

use super::*;
use crate::guard::{Guard, Guarded, Lookup, network};

/// Gives one answer after another, and the last one for ever.
struct Answers(Mutex<Vec<Vec<&'static str>>>);

impl Lookup for Answers {
    fn lookup(&self, _: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>> {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        let answer = answer.into_iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect();
        Box::pin(async move { Ok(answer) })
    }
}

/// A sink whose guard knows one network, and whose name has these addresses in turn.
fn guarded(port: u16, allowed: &[&str], answers: &[&[&'static str]]) -> WebhookSink {
    let sink = sink(&format!("http://partner.test:{port}/hooks"));
    let guard = Guard::new(allowed.iter().map(|text| network(text).unwrap()).collect());
    let lookup = Answers(Mutex::new(answers.iter().map(|answer| answer.to_vec()).collect()));
    let guarded = client::client((*sink.tls).clone(), true, LONG, Some(Guarded { guard, lookup })).unwrap();
    sink.clients.write().unwrap().as_mut().unwrap().guarded = guarded;
    sink
}

/// A server, and a canary on another loopback address with the same port, which nobody may connect to.
async fn pair() -> (Server, Server) {
    loop {
        let close =
            Reaction::AnswerAndClose("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into());
        let server = Server::listen("127.0.0.2:0", [close], None).await;
        let place = format!("127.0.0.1:{}", server.addr.port());
        if std::net::TcpListener::bind(&place).is_ok() {
            return (server, Server::listen(&place, [status("200 OK")], None).await);
        }
    }
}

#[tokio::test]
async fn x4_a_name_that_turns_inward_is_not_followed() {
    let (mut server, canary) = pair().await;
    let answers: [&[&str]; 4] =
        [&["127.0.0.2"], &["127.0.0.1"], &["127.0.0.1", "127.0.0.2"], &["::ffff:127.0.0.1", "169.254.169.254"]];
    let sink = guarded(server.addr.port(), &["127.0.0.2"], &answers);
    assert_eq!(deliver_to(&sink, "1", Some("/a")).await, ACKNOWLEDGED);
    let refused = failure(deliver_to(&sink, "2", Some("/a")).await);
    assert_eq!(refused.kind, FailureKind::Fatal);
    assert!(refused.message.contains("host partner.test has the address 127.0.0.1, a loopback address"), "{refused}");
    assert!(refused.message.contains("`allow_networks`, such as 127.0.0.1/32"), "{refused}");
    assert_eq!(deliver_to(&sink, "3", Some("/a")).await, ACKNOWLEDGED, "the good one of two");
    assert_eq!(failure(deliver_to(&sink, "4", Some("/a")).await).kind, FailureKind::Fatal);
    assert_eq!(canary.connections(), 0);
    for id in ["1", "3"] {
        assert_eq!(server.next().await.headers["webhook-id"], id);
    }
}

#[tokio::test]
async fn x3_no_special_address_is_connected_to_for_an_event() {
    // On every address of this machine, so that nothing reaches it unseen.
    let canary = Server::listen("[::]:0", [status("200 OK")], None).await;
    let port = canary.addr.port();
    let direct = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    direct.expect("the canary is reached where nothing guards it");
    while canary.connections() == 0 {
        tokio::task::yield_now().await;
    }
    let vectors: Vec<&'static str> = crate::address::tests::SPECIAL.split_whitespace().collect();
    assert!(vectors.len() >= 120, "{}", vectors.len());
    let answers: Vec<[&'static str; 1]> = vectors.iter().map(|address| [*address]).collect();
    let answers: Vec<&[&'static str]> = answers.iter().map(<[_; 1]>::as_slice).collect();
    let sink = guarded(port, &[], &answers);
    for address in vectors {
        let refused = failure(deliver_to(&sink, "1", Some("/a")).await);
        assert_eq!(refused.kind, FailureKind::Fatal, "{address}: {refused}");
        assert!(refused.message.contains("host partner.test has the address"), "{address}: {refused}");
    }
    assert_eq!(canary.connections(), 1, "the test's own");
}

#[tokio::test]
async fn x3_no_path_changes_where_a_request_goes() {
    let (server, canary) = pair().await;
    let port = server.addr.port();
    let sink = guarded(port, &["127.0.0.2"], &[&["127.0.0.2"]]);
    let mut sent = 0;
    for path in [
        "//127.0.0.1:PORT/",
        "///127.0.0.1:PORT/",
        "/\\127.0.0.1:PORT/",
        "\\\\127.0.0.1:PORT/",
        "@127.0.0.1:PORT/",
        "/@127.0.0.1:PORT/",
        ":PORT@127.0.0.1:PORT/",
        ".127.0.0.1.nip.test/",
        "http://127.0.0.1:PORT/",
        "/http://127.0.0.1:PORT/",
        "?url=http://127.0.0.1:PORT/",
        "?@127.0.0.1:PORT/",
        "#@127.0.0.1:PORT/",
        "/#@127.0.0.1:PORT/",
        "/../../127.0.0.1:PORT/",
        "/%2e%2e/127.0.0.1:PORT/",
        "/%00@127.0.0.1:PORT/",
        "/ HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n",
        "/\t@127.0.0.1:PORT/",
        "/\u{ff0f}127.0.0.1:PORT/",
        "",
    ] {
        let path = path.replace("PORT", &port.to_string());
        match deliver_to(&sink, "1", Some(&path)).await {
            Outcome::Rejected(rejection) => assert_eq!(rejection.reason, RejectReason::InvalidTarget, "{path:?}"),
            outcome => {
                assert_eq!(outcome, ACKNOWLEDGED, "{path:?}");
                sent += 1;
            }
        }
    }
    assert!(sent > 0 && server.connections() >= sent, "{sent} sent");
    assert_eq!(canary.connections(), 0);
}

#[tokio::test]
async fn an_address_in_the_url_is_meant() {
    let mut server = Server::start([status("200 OK")]).await;
    assert_eq!(deliver_to(&sink(&server.url()), "1", Some("/a")).await, ACKNOWLEDGED);
    let local = format!("http://localhost:{}/hooks", server.addr.port());
    assert_eq!(deliver_to(&sink(&local), "2", Some("/a")).await, ACKNOWLEDGED);
    assert_eq!(server.next().await.headers["webhook-id"], "1");
}

#[tokio::test]
async fn a_connection_without_the_guard_serves_no_request_that_needs_it() {
    let (server, _canary) = pair().await;
    let sink = guarded(server.addr.port(), &[], &[&["127.0.0.2"]]);
    assert_eq!(failure(deliver_to(&sink, "1", Some("/a")).await).kind, FailureKind::Fatal);
    assert_eq!(server.connections(), 0);
}

#[test]
fn networks_are_checked_at_load() {
    let config: WebhookConfig = serde_json::from_value(
        json!({ "url": "https://a.example", "secret": SECRET, "allow_networks": ["10.0.0.0/8", "internal"] }),
    )
    .unwrap();
    let issues = WebhookFactory::validate(&config);
    let texts: Vec<String> = issues.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["it is not a network: write one such as 10.0.0.0/8, fd00::/8 or 10.1.2.3"]);
}
