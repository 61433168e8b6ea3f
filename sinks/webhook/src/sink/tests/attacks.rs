//! X10: receivers that answer to do harm. What they send is bounded in bytes and time, no outcome is taken for a success that
//! was none, and the sink works again afterwards. `w4_...` has bodies without an end.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{tls::Ca, *};

/// 64 KiB of `canary-inflated `, compressed with gzip.
const BOMB: &str = "H4sIAAAAAAACA+3HuQkAIBAAsFVcwKEOHxDEQmzc3kFMupRYsW8eq884rabi7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u\
    7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7u7uX/4BqtsM7AAAAQA=";

fn head(status: &str, more: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{more}content-length: 0\r\n\r\n")
}

#[tokio::test]
async fn x10_heads_of_any_size_are_bounded_and_never_a_success() {
    let floods = [
        // Ten thousand headers, one of 1 MiB, a name of 1 MiB, a reason of 1 MiB.
        (0..10_000).fold(String::new(), |all, n| all + &format!("x-{n}: {n}\r\n")),
        format!("x: {}\r\n", "y".repeat(1 << 20)),
        format!("{}: x\r\n", "y".repeat(1 << 20)),
    ];
    let mut reactions: Vec<Reaction> =
        floods.iter().map(|flood| Reaction::AnswerAndClose(head("200 OK", flood))).collect();
    reactions.push(Reaction::AnswerAndClose(head(&format!("200 {}", "y".repeat(1 << 20)), "")));
    // And without an end.
    reactions.push(Reaction::Repeat("HTTP/1.1 200 OK\r\n".into(), "x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".into()));
    reactions.push(Reaction::Flood("HTTP/1.1 200 OK\r\nx: ".into()));
    reactions.push(Reaction::Flood("HTTP/1.1 200 ".into()));
    let attacks = reactions.len();
    reactions.push(status("200 OK"));
    let mut server = Server::start(reactions).await;
    let sink = sink(&server.url());
    for case in 0..attacks {
        let failure = failure(deliver(&sink, "1").await);
        assert_eq!(failure.kind, FailureKind::Connection, "case {case}: {failure}");
        assert!(failure.message.len() < 400 && !failure.message.contains("yyyy"), "case {case}: {failure}");
    }
    for _ in 0..3 {
        assert!(server.floods.recv().await.unwrap() < 32 << 20, "what was not read stands in socket buffers");
    }
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
}

#[tokio::test]
async fn x10_endless_interim_answers_cost_one_deadline() {
    let reactions = [
        Reaction::Repeat(String::new(), "HTTP/1.1 100 Continue\r\n\r\n".into()),
        Reaction::Repeat(String::new(), "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".into()),
        Reaction::Answer(format!("{}{}", "HTTP/1.1 102 Processing\r\n\r\n".repeat(3), head("204 No Content", ""))),
    ];
    let mut server = Server::start(reactions).await;
    let sink = sink_with(json!({}), &server.url(), SHORT);
    for case in 0..2 {
        assert_eq!(failure(deliver(&sink, "1").await).kind, FailureKind::Timeout, "case {case}");
        // The connection is closed then, or this would wait for ever.
        server.floods.recv().await.unwrap();
    }
    while deliver(&sink, "1").await != ACKNOWLEDGED {}
}

#[tokio::test]
async fn x10_bodies_are_never_inflated_nor_shown_whole() {
    let bomb = STANDARD.decode(BOMB).unwrap();
    let compressed = |status: &str| {
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-encoding: gzip\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
            bomb.len()
        );
        Reaction::Bytes([head.as_bytes(), &bomb].concat())
    };
    let chunked = |status: &str| format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut server = Server::start([
        compressed("200 OK"),
        compressed("422 x"),
        // Chunks without an end, one whose size is beyond any, an extension without an end, trailers without an end.
        Reaction::Repeat(chunked("400 x"), format!("400\r\n{}\r\n", "z".repeat(1024))),
        Reaction::Flood(format!("{}ffffffffffffffff\r\n", chunked("422 x"))),
        Reaction::Flood(format!("{}5;", chunked("422 x"))),
        Reaction::Flood(format!("{}0\r\nx: ", chunked("422 x"))),
        Reaction::AnswerAndClose(format!("{}fffffffffffffffff\r\n", chunked("422 x"))),
        status("200 OK"),
    ])
    .await;
    let sink = sink(&server.url());
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
    for case in 1..7 {
        let refused = rejection(deliver(&sink, "1").await);
        assert!(refused.message.len() < 1500 && !refused.message.contains("canary-inflated"), "case {case}: {refused}");
        assert!(refused.message.matches('z').count() <= 200, "case {case}: {refused}");
    }
    for _ in 0..4 {
        assert!(server.floods.recv().await.unwrap() < 32 << 20);
    }
    assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED);
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, stream];
    frame.extend_from_slice(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200`, from HPACK's static table.
const STATUS_200: u8 = 0x88;

/// A header field that is written out (RFC 7541, section 6.2.2): `x: yyy...`.
fn field(length: usize) -> Vec<u8> {
    let mut field = vec![0, 1, b'x', 0x7f];
    let mut rest = length - 127;
    while rest >= 128 {
        field.push(u8::try_from(rest % 128).unwrap() | 0x80);
        rest /= 128;
    }
    field.push(u8::try_from(rest).unwrap());
    field.extend(std::iter::repeat_n(b'y', length));
    field
}

/// What an HTTP/2 server does to the first request: it writes the first once, and the second again and again.
struct Attack {
    name: &'static str,
    once: Vec<u8>,
    again: Vec<u8>,
}

fn attack(name: &'static str, once: Vec<u8>, again: Vec<u8>) -> Attack {
    Attack { name, once, again }
}

fn attacks() -> Vec<Attack> {
    let interim = frame(HEADERS, END_HEADERS, 1, &[0x08, 3, b'1', b'0', b'3']);
    let goaway = |last: u8, code: u8| frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, code]);
    let ok = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[STATUS_200]);
    vec![
        // Refused before and after it was taken, calm, with an error, and twice.
        attack("goaway 0", goaway(0, 0), Vec::new()),
        attack("goaway 1, nothing else", goaway(1, 0), Vec::new()),
        attack("goaway, enhance your calm", goaway(0, 11), Vec::new()),
        attack("goaway again and again", goaway(1, 0), goaway(1, 0)),
        attack("reset: refused", frame(RST_STREAM, 0, 1, &[0, 0, 0, 7]), Vec::new()),
        attack("reset: cancelled", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), Vec::new()),
        attack("reset again and again", Vec::new(), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])),
        attack("headers without an end", frame(HEADERS, 0, 1, &[STATUS_200]), frame(CONTINUATION, 0, 1, &field(1000))),
        attack("empty continuations", frame(HEADERS, 0, 1, &[STATUS_200]), frame(CONTINUATION, 0, 1, &[])),
        attack("interim answers without an end", Vec::new(), interim),
        attack("pings without an end", Vec::new(), frame(PING, 0, 0, &[0; 8])),
        attack("settings without an end", Vec::new(), frame(SETTINGS, 0, 0, &[])),
        attack("a frame of another size", [0xff, 0xff, 0xff, HEADERS, END_HEADERS, 0, 0, 0, 1].to_vec(), vec![0; 4096]),
        attack("a stream that nobody began", [frame(HEADERS, END_HEADERS, 7, &[STATUS_200]), ok].concat(), Vec::new()),
        attack("data before headers", frame(DATA, END_STREAM, 1, b"200 OK"), Vec::new()),
        attack("no HPACK", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 64]), Vec::new()),
    ]
}

async fn http2(stream: &mut TlsStream<tokio::net::TcpStream>, attack: &Attack) -> std::io::Result<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    // Up to the request.
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await?;
        if head[3] == HEADERS {
            break;
        }
    }
    stream.write_all(&attack.once).await?;
    stream.flush().await?;
    if attack.again.is_empty() {
        // Until the other side leaves, so that nothing is lost by a reset.
        stream.read_to_end(&mut Vec::new()).await?;
        return Ok(());
    }
    loop {
        stream.write_all(&attack.again).await?;
    }
}

/// Attacks the first connection, and answers on all others as it should.
async fn hostile(tls: ServerConfig, attack: Attack) -> (u16, tokio::task::JoinHandle<()>) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut first = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(async move { drop(http2(&mut first, &attack).await) });
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let handshake = acceptor.accept(socket);
            serving.spawn(async move {
                let Ok(stream) = handshake.await else { return };
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let answer = http::Response::builder().status(200).body(()).unwrap();
                    let _ = respond.send_response(answer, true);
                }
            });
        }
    });
    (port, task)
}

/// A sink at a server with HTTP/2 that does this to its first connection.
async fn attacked(ca: &Ca, attack: Attack, timeout: Duration) -> (WebhookSink, tokio::task::JoinHandle<()>) {
    let mut tls = ca.server("localhost", |_| {});
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let (port, task) = hostile(tls, attack).await;
    (sink_with(ca.config(), &format!("https://localhost:{port}/hooks"), timeout), task)
}

#[tokio::test]
async fn x10_nothing_in_http2_is_a_success_but_an_answer() {
    let ca = &Ca::new("hostile");
    // All at once: a connection on which nobody answers pings is given up after ten seconds.
    let attacks = attacks().into_iter().map(async |attack| {
        let name = attack.name;
        let (sink, task) = attacked(ca, attack, Duration::from_secs(2)).await;
        let failure = failure(deliver(&sink, "1").await);
        let expected = [FailureKind::Connection, FailureKind::Timeout];
        assert!(expected.contains(&failure.kind) && failure.message.len() < 400, "{name}: {failure}");
        assert!(failure.message.contains("is sent again"), "{name}: {failure}");
        while deliver(&sink, "1").await != ACKNOWLEDGED {}
        task.abort();
    });
    futures_util::future::join_all(attacks).await;
}

#[tokio::test]
async fn x10_an_http2_answer_counts_whatever_follows_it() {
    let ca = &Ca::new("hostile");
    let answer = frame(HEADERS, END_HEADERS, 1, &[STATUS_200]);
    let hints = frame(HEADERS, END_HEADERS, 1, &[0x08, 3, b'1', b'0', b'3']);
    for attack in [
        attack("data without an end", answer.clone(), frame(DATA, 0, 1, &[b'x'; 4096])),
        attack("data beyond the window", answer.clone(), frame(DATA, 0, 1, &[b'x'; 16_384])),
        attack("a reset", [answer.clone(), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])].concat(), Vec::new()),
        attack("goaway", [hints, answer, frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 11])].concat(), Vec::new()),
    ] {
        let name = attack.name;
        let (sink, task) = attacked(ca, attack, LONG).await;
        assert_eq!(deliver(&sink, "1").await, ACKNOWLEDGED, "{name}");
        while deliver(&sink, "2").await != ACKNOWLEDGED {}
        task.abort();
    }
}
