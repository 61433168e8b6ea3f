use std::{
    io::{ErrorKind, Read, Write},
    net::TcpListener,
    thread::JoinHandle,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use super::{
    script::{Server, authentication, error_response, keepalive, message, serve, xlog_data},
    *,
};
use crate::{
    postgres::ConnectError,
    source::{Frame, Retry, Status, WireError},
};

fn settings(port: u16, more: &str) -> ConnectSettings {
    let text = format!("host=127.0.0.1 port={port} user=bob dbname=shop password=pw sslmode=disable {more}");
    ConnectSettings::parse(Some(&text), &|_| None).unwrap()
}

struct Client {
    stream: ReplicationStream,
    flush: watch::Sender<Lsn>,
    server: JoinHandle<()>,
}

async fn try_connect(settings: &ConnectSettings) -> Result<(ReplicationStream, watch::Sender<Lsn>), SourceError> {
    let (sender, flush) = watch::channel(Lsn::ZERO);
    let options = StreamOptions { max_frame: 1 << 20, ..StreamOptions::new("slot_1", "it's") };
    let stream = ReplicationStream::connect(settings, options, flush).await?;
    Ok((stream, sender))
}

/// A stream against a script.
async fn client(script: impl FnOnce(&TcpListener) + Send + 'static) -> Client {
    let (port, server) = serve(script);
    let (stream, flush) = try_connect(&settings(port, "")).await.unwrap();
    Client { stream, flush, server }
}

/// Why a stream against a script cannot be started.
async fn refusal(more: &str, script: impl FnOnce(&TcpListener) + Send + 'static) -> SourceError {
    let (port, server) = serve(script);
    let error = try_connect(&settings(port, more)).await.expect_err("refused");
    server.join().unwrap();
    error
}

impl Client {
    /// Data and keepalives up to the error that ends the stream.
    async fn rest(&mut self) -> (Vec<Frame>, SourceError) {
        let mut frames = Vec::new();
        loop {
            match self.stream.chunks.recv().await.expect("an error comes last") {
                Ok(chunk) => frames.extend(chunk.frames().map(Result::unwrap)),
                Err(error) => {
                    assert!(self.stream.chunks.recv().await.is_none(), "nothing comes after it");
                    return (frames, error);
                }
            }
        }
    }

    async fn until_received(&mut self, lsn: u64) {
        while self.stream.feedback.received() < Lsn(lsn) {
            self.stream.chunks.recv().await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn a_stream_starts_and_every_frame_arrives() {
    let mut client = client(|listener| {
        let mut server = Server::accept(listener);
        let parameters = server.startup();
        for (name, value) in [
            ("user", "bob"),
            ("database", "shop"),
            ("replication", "database"),
            ("application_name", "walgate"),
            ("client_encoding", "UTF8"),
        ] {
            assert_eq!(parameters.get(name).map(String::as_str), Some(value), "{name}");
        }
        server.send(&authentication(0, &[]));
        let _ = server.until_start("1min");
        // The first frame in one packet with the answer, and a parameter between two frames.
        let parts = [
            message(b'W', &[0, 0, 0]),
            xlog_data(10, b"one"),
            message(b'S', b"TimeZone\0UTC\0"),
            xlog_data(20, b"two"),
            keepalive(30, false),
        ];
        server.send(&parts.concat());
        server.send(&message(b'C', b"COPY 0\0"));
        server.ended();
    })
    .await;
    assert_eq!(client.stream.identity().system_id, "7000000000000000001");
    assert_eq!((client.stream.identity().timeline, client.stream.identity().xlogpos), (3, Lsn(0x0194_9AD8)));
    assert_eq!(client.stream.identity().dbname.as_deref(), Some("shop"));
    let expected = ServerParameters {
        version: "15.8".into(),
        encoding: "UTF8".into(),
        wal_sender_timeout: Some(Duration::from_secs(60)),
        pid: Some(4711),
    };
    assert_eq!(client.stream.server(), &expected);
    let (frames, error) = client.rest().await;
    let data = |lsn, body: &'static [u8]| Frame::XLogData { wal_start: Lsn(lsn), wal_end: Lsn(lsn), body: body.into() };
    let keepalive = Frame::Keepalive { wal_end: Lsn(30), server_clock: 0, reply_requested: false };
    assert_eq!(frames, [data(10, b"one"), data(20, b"two"), keepalive]);
    assert!(matches!(error, SourceError::Ended) && error.retry() == Retry::Soon);
    assert_eq!(client.stream.feedback.received(), Lsn(30));
    drop(client.stream);
    client.server.join().unwrap();
}

#[tokio::test]
async fn blocks_are_counted_while_a_frame_of_them_is_held() {
    let mut client = client(|listener| {
        let mut server = Server::streaming(listener, "1min");
        server.send(&xlog_data(1, &[7; 1000]));
        server.ended();
    })
    .await;
    let chunk = client.stream.chunks.recv().await.unwrap().unwrap();
    let Some(Ok(Frame::XLogData { body, .. })) = chunk.frames().next() else { panic!("no data") };
    drop(chunk);
    assert_eq!(client.stream.live_chunks(), 1);
    let live = Arc::clone(&client.stream.live);
    drop(client.stream);
    client.server.join().unwrap();
    while live.blocks() > 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(&body[..], [7; 1000]);
    drop(body);
    while live.blocks() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(live.bytes(), 0);
}

fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(data).finalize();
    Sha256::new().chain_update(pad(0x5C)).chain_update(inner).finalize().into()
}

/// The server's side of SCRAM-SHA-256 with one iteration, for the password `pw`. `signs`: whether it knows the password.
/// `bound`: the hash that the login must be bound to.
fn scram<S: Read + Write>(server: &mut Server<S>, nonce: &str, signs: bool, bound: Option<&[u8]>) {
    let (offer, wanted, header) = match bound {
        // Without TLS the client says that it cannot bind.
        None => ("SCRAM-SHA-256\0\0", "SCRAM-SHA-256", "n,,"),
        Some(_) => ("SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0", "SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,"),
    };
    server.send(&authentication(10, offer.as_bytes()));
    let first = String::from_utf8(server.password()).unwrap();
    let (mechanism, rest) = first.split_once('\0').unwrap();
    assert_eq!(mechanism, wanted);
    // Four bytes of length come first.
    let client_first = rest.get(4..).unwrap().strip_prefix(header).unwrap().to_owned();
    let client_nonce = client_first.strip_prefix("n=,r=").unwrap();
    let nonce = nonce.replace('*', client_nonce);
    let server_first = format!("r={nonce},s={},i=1", BASE64_STANDARD.encode(b"salt"));
    server.send(&authentication(11, server_first.as_bytes()));
    if !nonce.starts_with(client_nonce) {
        return;
    }
    let last = String::from_utf8(server.password()).unwrap();
    let (bare, proof) = last.split_once(",p=").unwrap();
    let binding = BASE64_STANDARD.encode([header.as_bytes(), bound.unwrap_or_default()].concat());
    assert_eq!(bare, format!("c={binding},r={nonce}"));
    let salted = hmac(b"pw", b"salt\0\0\0\x01");
    let signed = format!("{client_first},{server_first},{bare}");
    let client_key = hmac(&salted, b"Client Key");
    let signature = hmac(&Sha256::digest(client_key), signed.as_bytes());
    let expected: Vec<u8> = client_key.iter().zip(signature).map(|(key, byte)| key ^ byte).collect();
    assert_eq!(BASE64_STANDARD.decode(proof).unwrap(), expected, "the client knows the password");
    let key = if signs { hmac(&salted, b"Server Key") } else { [0; 32] };
    let verifier = format!("v={}", BASE64_STANDARD.encode(hmac(&key, signed.as_bytes())));
    server.send(&authentication(12, verifier.as_bytes()));
}

#[tokio::test]
async fn scram_logs_in_and_the_server_must_know_the_password_too() {
    let (port, server) = serve(|listener| {
        let mut server = Server::accept(listener);
        server.startup();
        scram(&mut server, "*server", true, None);
        server.send(&authentication(0, &[]));
        server.start("0");
        server.ended();
    });
    let (stream, _flush) = try_connect(&settings(port, "")).await.unwrap();
    assert_eq!(stream.server().wal_sender_timeout, None);
    drop(stream);
    server.join().unwrap();
    for (nonce, says) in [("*server", "verification"), ("other", "nonce")] {
        let error = refusal("", move |listener| {
            let mut server = Server::accept(listener);
            server.startup();
            scram(&mut server, nonce, false, None);
            server.ended();
        })
        .await;
        assert!(matches!(&error, SourceError::Connect(ConnectError::Scram { .. })), "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn md5_is_accepted_and_a_readable_password_is_not_sent() {
    let client = client(|listener| {
        let mut server = Server::accept(listener);
        server.startup();
        server.send(&authentication(5, b"salt"));
        let hash = postgres_protocol::authentication::md5_hash(b"bob", b"pw", *b"salt");
        assert_eq!(server.password(), [hash.as_bytes(), b"\0"].concat());
        server.send(&authentication(0, &[]));
        server.start("1min");
        server.ended();
    })
    .await;
    drop(client.stream);
    client.server.join().unwrap();
    let error = refusal("", |listener| {
        let mut server = Server::accept(listener);
        server.startup();
        server.send(&authentication(3, &[]));
        assert_eq!(server.ended(), b"", "no password is sent");
    })
    .await;
    assert!(matches!(error, SourceError::Connect(ConnectError::CleartextRefused { .. })), "{error}");
}

#[tokio::test]
async fn refusals_of_the_login_are_explained() {
    type Check = fn(&ConnectError) -> bool;
    let refused: Check = |error| matches!(error, ConnectError::Refused { .. });
    let cases: Vec<(&str, Vec<u8>, Check, Retry, &str)> = vec![
        ("", error_response("28P01", "password authentication failed"), refused, Retry::Slowly, "check the password"),
        ("", error_response("28000", "no pg_hba.conf entry"), refused, Retry::Slowly, "pg_hba.conf has a line"),
        ("", error_response("42501", "must be superuser or replication role"), refused, Retry::Slowly, "REPLICATION"),
        (
            "",
            error_response("3D000", "database \"shop\" does not exist"),
            refused,
            Retry::Slowly,
            "name of the database",
        ),
        ("", error_response("53300", "too many"), refused, Retry::Soon, "max_wal_senders"),
        ("", error_response("57P03", "the database system is starting up"), refused, Retry::Soon, "tried again"),
        (
            "",
            error_response("08P01", "unsupported startup parameter: replication"),
            refused,
            Retry::Slowly,
            "PgBouncer",
        ),
        (
            "",
            authentication(7, &[]),
            |e| matches!(e, ConnectError::AuthenticationMethod { .. }),
            Retry::Slowly,
            "GSSAPI",
        ),
        (
            "",
            authentication(10, b"OTHER\0\0"),
            |e| matches!(e, ConnectError::AuthenticationMethod { .. }),
            Retry::Slowly,
            "SASL",
        ),
        (
            "channel_binding=require",
            authentication(0, &[]),
            |e| matches!(e, ConnectError::ChannelBindingMissing { .. }),
            Retry::Slowly,
            "scram-sha-256",
        ),
        (
            "",
            b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
            |e| matches!(e, ConnectError::Protocol { .. }),
            Retry::Slowly,
            "port",
        ),
        ("", b"R\xFF\xFF\xFF\xFF".to_vec(), |e| matches!(e, ConnectError::Protocol { .. }), Retry::Slowly, "login"),
        ("", Vec::new(), |e| matches!(e, ConnectError::Closed { .. }), Retry::Soon, "closed the connection"),
    ];
    for (more, answer, check, retry, says) in cases {
        let error = refusal(more, move |listener| {
            let mut server = Server::accept(listener);
            server.startup();
            server.send(&answer);
            let _ = server.stream.shutdown(std::net::Shutdown::Write);
            server.ended();
        })
        .await;
        assert!(matches!(&error, SourceError::Connect(inner) if check(inner)), "{says}: {error:?}");
        assert_eq!(error.retry(), retry, "{error}");
        assert!(error.to_string().contains(says), "{error}");
        assert!(!error.to_string().contains("pw"), "{error}");
    }
}

#[tokio::test]
async fn a_missing_password_is_named_before_anything_is_sent() {
    let (port, server) = serve(|listener| {
        let mut server = Server::accept(listener);
        server.startup();
        server.send(&authentication(10, b"SCRAM-SHA-256\0\0"));
        assert_eq!(server.ended(), b"");
    });
    let error = try_connect(&settings(port, "password=''")).await.expect_err("refused");
    assert!(matches!(error, SourceError::Connect(ConnectError::PasswordMissing { .. })), "{error}");
    server.join().unwrap();
}

#[tokio::test]
async fn refusals_of_the_start_are_explained() {
    for (answer, retry, says) in [
        (error_response("42704", "replication slot \"slot_1\" does not exist"), Retry::Never, "does not exist"),
        (error_response("55006", "replication slot \"slot_1\" is active for PID 77"), Retry::Soon, "PID 77"),
        (error_response("55000", "cannot read from logical replication slot \"slot_1\""), Retry::Never, "is lost"),
        (error_response("42501", "must be superuser"), Retry::Slowly, "\"bob\" REPLICATION"),
        (message(b'G', &[0, 0, 0]), Retry::Slowly, "does not start a stream"),
    ] {
        let error = refusal("", move |listener| {
            let mut server = Server::accept(listener);
            server.startup();
            server.send(&authentication(0, &[]));
            let _ = server.until_start("1min");
            server.send(&answer);
            server.ended();
        })
        .await;
        assert_eq!(error.retry(), retry, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    let error = refusal("", |listener| {
        let mut server = Server::accept(listener);
        server.startup();
        server.send(&authentication(0, &[]));
        server.send(&super::script::ready());
        assert_eq!(server.query(), "IDENTIFY_SYSTEM");
        server.send(&[error_response("42601", "syntax error"), message(b'Z', b"I")].concat());
        server.ended();
    })
    .await;
    assert!(matches!(error, SourceError::NotReplication { .. }), "{error}");
    for (slot, publication) in [("", "p"), ("Slot", "p"), ("s\"", "p"), ("s", ""), ("s", "a\0b")] {
        let (_sender, flush) = watch::channel(Lsn::ZERO);
        let options = StreamOptions::new(slot, publication);
        let error = ReplicationStream::connect(&settings(1, ""), options, flush).await.expect_err("refused");
        assert!(matches!(error, SourceError::Name { .. }) && error.retry() == Retry::Never, "{error}");
    }
}

#[tokio::test]
async fn the_next_host_is_tried_and_a_refusal_ends_the_search() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = try_connect(&settings(free, "")).await.expect_err("nobody listens");
    assert!(matches!(error, SourceError::Connect(ConnectError::Unreachable { .. })), "{error}");
    assert_eq!(error.retry(), Retry::Soon);
    let (port, server) = serve(|listener| {
        Server::streaming(listener, "1min").ended();
    });
    let two = settings(port, &format!("host=127.0.0.1,127.0.0.1 port={free},{port}"));
    drop(try_connect(&two).await.unwrap());
    server.join().unwrap();
    let (port, server) = serve(|listener| {
        let mut server = Server::accept(listener);
        server.startup();
        server.send(&error_response("28P01", "no"));
        server.ended();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    });
    let two = settings(port, &format!("host=127.0.0.1,127.0.0.1 port={port},{port}"));
    assert!(try_connect(&two).await.is_err());
    server.join().unwrap();
}

#[tokio::test]
async fn sslmode_decides_what_a_failing_tls_means() {
    // The server has none.
    let error = refusal("sslmode=require", |listener| {
        let mut server = Server::accept(listener);
        server.tls_request(b"N");
        assert_eq!(server.ended(), b"");
    })
    .await;
    assert!(matches!(error, SourceError::Connect(ConnectError::TlsNotOffered { .. })), "{error}");
    let (port, server) = serve(|listener| {
        let mut server = Server::accept(listener);
        server.tls_request(b"N");
        server.startup();
        server.send(&authentication(0, &[]));
        server.start("1min");
        server.ended();
    });
    drop(try_connect(&settings(port, "sslmode=prefer")).await.unwrap());
    server.join().unwrap();
    // It says that it has, and breaks the handshake: `prefer` tries again without, `require` does not.
    let (port, server) = serve(|listener| {
        let mut server = Server::accept(listener);
        server.tls_request(b"S");
        server.send(b"this is not TLS");
        drop(server);
        let mut server = Server::accept(listener);
        server.startup();
        server.send(&authentication(0, &[]));
        server.start("1min");
        server.ended();
    });
    drop(try_connect(&settings(port, "sslmode=prefer")).await.unwrap());
    server.join().unwrap();
    let error = refusal("sslmode=require", |listener| {
        let mut server = Server::accept(listener);
        server.tls_request(b"S");
        server.send(b"this is not TLS");
        server.ended();
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    })
    .await;
    assert!(matches!(error, SourceError::Connect(ConnectError::TlsHandshake { .. })), "{error}");
    assert_eq!(error.retry(), Retry::Slowly);
    // `allow` begins without TLS, and asks for it where pg_hba.conf refuses that.
    let error = refusal("sslmode=allow", |listener| {
        let mut server = Server::accept(listener);
        server.startup();
        server.send(&error_response("28000", "no pg_hba.conf entry"));
        server.ended();
        let mut server = Server::accept(listener);
        server.tls_request(b"N");
        server.ended();
    })
    .await;
    assert!(matches!(error, SourceError::Connect(ConnectError::TlsNotOffered { .. })), "{error}");
}

#[tokio::test]
async fn a_request_for_a_reply_is_answered_at_once_although_nothing_is_consumed() {
    let (seen, enough) = oneshot::channel();
    let client = client(|listener| {
        let mut server = Server::streaming(listener, "1min");
        server.send(&[xlog_data(50, b"x"), keepalive(70, true)].concat());
        let status = server.status();
        assert_eq!((status.write, status.flush), (Lsn(70), Lsn::ZERO));
        // Without progress, and without the request, the next would come after ten seconds.
        server.stream.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
        server.send(&keepalive(70, true));
        server.status();
        seen.send(()).unwrap();
        server.ended();
    })
    .await;
    enough.await.unwrap();
    client.stream.abort();
    client.server.join().unwrap();
}

#[tokio::test]
async fn statuses_go_out_although_the_reader_is_blocked() {
    let (seen, enough) = oneshot::channel();
    let client = client(|listener| {
        let mut server = Server::streaming(listener, "500ms");
        // More than the channel and the sockets hold: the reader is stuck with it.
        let mut writer = server.stream.try_clone().unwrap();
        let flood = std::thread::spawn(move || {
            let row = xlog_data(10, &[0; 60_000]);
            while writer.write_all(&row).is_ok() {}
        });
        // Without the server's timeout only the first would come before ten seconds.
        server.stream.set_read_timeout(Some(Duration::from_secs(6))).unwrap();
        for _ in 0..4 {
            server.status();
        }
        seen.send(()).unwrap();
        server.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        server.ended();
        let _ = server.stream.shutdown(std::net::Shutdown::Both);
        flood.join().unwrap();
    })
    .await;
    // Nothing is taken from `chunks`.
    enough.await.unwrap();
    client.stream.abort();
    client.server.join().unwrap();
}

#[tokio::test]
async fn what_is_confirmed_is_told_at_once_and_never_taken_back() {
    let mut client = client(|listener| {
        let mut server = Server::streaming(listener, "1min");
        server.send(&xlog_data(100, b"x"));
        let status = server.confirmed(100);
        assert_eq!((status.write, status.flush), (Lsn(100), Lsn(100)));
        server.send(&keepalive(120, true));
        let status = server.status();
        assert_eq!((status.write, status.flush), (Lsn(120), Lsn(100)), "the watch went back");
        server.send(&keepalive(130, true));
        let status = server.confirmed(200);
        assert_eq!(status.write, Lsn(200), "received is never behind what is confirmed");
        server.ended();
    })
    .await;
    client.until_received(100).await;
    client.flush.send(Lsn(100)).unwrap();
    while client.stream.feedback.last_reported() < Lsn(100) {
        tokio::task::yield_now().await;
    }
    client.flush.send(Lsn(60)).unwrap();
    client.until_received(120).await;
    assert_eq!(client.stream.feedback.last_reported(), Lsn(100));
    client.until_received(130).await;
    client.flush.send(Lsn(200)).unwrap();
    client.stream.feedback.reply_now();
    while client.stream.feedback.last_reported() < Lsn(200) {
        tokio::task::yield_now().await;
    }
    drop(client.stream);
    client.server.join().unwrap();
}

#[tokio::test]
async fn a_silent_server_is_asked_and_then_given_up() {
    let mut client = client(|listener| {
        let mut server = Server::streaming(listener, "400ms");
        // The answer to the first question keeps the stream alive.
        while !server.status().reply_requested {}
        server.send(&keepalive(10, false));
        while !server.status().reply_requested {}
        server.ended();
    })
    .await;
    let (frames, error) = client.rest().await;
    assert_eq!(frames.len(), 1);
    assert!(matches!(&error, SourceError::Silent { after } if *after >= Duration::from_millis(800)), "{error}");
    assert_eq!(error.retry(), Retry::Soon);
    client.server.join().unwrap();
}

#[tokio::test]
async fn the_ends_of_a_stream_are_told_apart() {
    type Check = fn(&SourceError) -> bool;
    let cases: Vec<(Vec<u8>, Check)> = vec![
        (
            error_response("57P01", "terminating connection"),
            |e| matches!(e, SourceError::Stream { error } if error.is("57P01")),
        ),
        (error_response("42704", "publication \"it's\" does not exist"), |e| {
            matches!(e, SourceError::PublicationMissing { .. })
        }),
        (message(b'c', &[]), |e| matches!(e, SourceError::Ended)),
        (Vec::new(), |e| matches!(e, SourceError::Lost { .. })),
        (b"d\x00\x00\x00\x02".to_vec(), |e| matches!(e, SourceError::Wire(WireError::Announced { .. }))),
        (message(b'D', &[0, 0]), |e| matches!(e, SourceError::Wire(WireError::Tag { tag: b'D' }))),
        (b"d\x00\x20\x00\x00".to_vec(), |e| {
            matches!(e, SourceError::Oversized { length: 0x20_0001, limit: 0x10_0000 })
        }),
    ];
    for (end, check) in cases {
        let mut client = client(move |listener| {
            let mut server = Server::streaming(listener, "1min");
            server.send(&[xlog_data(10, b"before"), end].concat());
            let _ = server.stream.shutdown(std::net::Shutdown::Write);
            server.ended();
        })
        .await;
        let (frames, error) = client.rest().await;
        assert!(check(&error), "{error:?}");
        assert_eq!(frames.len(), 1, "what came before is not lost: {error}");
        client.server.join().unwrap();
    }
}

#[tokio::test]
async fn a_shutdown_confirms_and_then_drains() {
    let client = client(|listener| {
        let mut server = Server::streaming(listener, "1min");
        // Unread data, as much as fits: the reader is stuck with it when the shutdown comes.
        let row = xlog_data(10, &[0; 60_000]);
        for _ in 0..60 {
            server.send(&row);
        }
        loop {
            match server.message() {
                (b'd', payload) => {
                    let status = Status::decode(&message(b'd', &payload)).unwrap();
                    if status.flush == Lsn(77) {
                        break;
                    }
                }
                other => panic!("{other:?} before the last status"),
            }
        }
        assert_eq!(server.message(), (b'c', Vec::new()), "CopyDone follows the last status");
        server.send(&row);
        server.send(&[message(b'c', &[]), message(b'C', b"COPY 0\0"), message(b'Z', b"I")].concat());
        assert_eq!(server.message(), (b'X', Vec::new()), "Terminate follows the server's answer");
        assert_eq!(server.ended(), b"");
    })
    .await;
    client.flush.send(Lsn(77)).unwrap();
    let feedback = client.stream.feedback.clone();
    assert_eq!(client.stream.shutdown(Instant::now() + Duration::from_secs(20)).await, Shutdown::Complete);
    assert_eq!(feedback.last_reported(), Lsn(77));
    client.server.join().unwrap();
}

#[tokio::test]
async fn a_shutdown_ends_at_its_deadline_and_says_so() {
    let client = client(|listener| {
        let mut server = Server::streaming(listener, "1min");
        while server.message().0 != b'c' {}
        server.ended();
    })
    .await;
    assert_eq!(client.stream.shutdown(Instant::now() + Duration::from_millis(50)).await, Shutdown::DeadlinePassed);
    client.server.join().unwrap();
    let client = self::client(|listener| {
        let mut server = Server::streaming(listener, "1min");
        while server.message().0 != b'c' {}
    })
    .await;
    assert_eq!(client.stream.shutdown(Instant::now() + Duration::from_secs(20)).await, Shutdown::Closed);
    client.server.join().unwrap();
}

#[tokio::test]
async fn an_abort_from_elsewhere_ends_a_waiting_reader() {
    let mut client = client(|listener| {
        assert_eq!(Server::streaming(listener, "0").ended(), b"");
    })
    .await;
    let closer = client.stream.closer();
    std::thread::spawn(move || closer.abort()).join().unwrap();
    let (_, error) = client.rest().await;
    assert!(matches!(error, SourceError::Aborted), "{error}");
    client.server.join().unwrap();
}

/// An authority, a server's certificate by it for `localhost` and 127.0.0.1, and what the server needs.
struct Certificates {
    folder: tempfile::TempDir,
    leaf: Vec<u8>,
    server: Arc<rustls::ServerConfig>,
}

fn certificates() -> Certificates {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let folder = tempfile::tempdir().unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let other = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.path().join("other.crt"), other.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    std::fs::write(folder.path().join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    let authority = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], private)
        .unwrap();
    Certificates { folder, leaf: leaf.der().to_vec(), server: Arc::new(server) }
}

type TlsServer = Server<rustls::StreamOwned<rustls::ServerConnection, std::net::TcpStream>>;

fn accept_tls(listener: &TcpListener, config: &Arc<rustls::ServerConfig>) -> TlsServer {
    let mut server = Server::accept(listener);
    server.tls_request(b"S");
    let session = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
    Server { stream: rustls::StreamOwned::new(session, server.stream) }
}

#[tokio::test]
async fn a_stream_runs_inside_tls_with_its_login_bound_to_it() {
    let made = certificates();
    let (config, binding) = (Arc::clone(&made.server), Sha256::digest(&made.leaf));
    let (port, server) = serve(move |listener| {
        let mut server = accept_tls(listener, &config);
        server.startup();
        scram(&mut server, "*server", true, Some(&binding));
        server.send(&authentication(0, &[]));
        server.start("1min");
        // One record for every row as a walsender sends them, and one row over many records.
        for lsn in 1..=3000 {
            server.send(&xlog_data(lsn, &[7; 300]));
        }
        server.send(&xlog_data(3001, &vec![8; 900_000]));
        server.confirmed(3001);
        while server.message().0 != b'c' {}
        server.send(&[message(b'c', &[]), message(b'C', b"COPY 0\0")].concat());
        assert_eq!(server.message().0, b'X');
    });
    let root = made.folder.path().join("ca.crt");
    let more = format!("sslmode=verify-full channel_binding=require sslrootcert={}", root.display());
    let (mut stream, flush) = try_connect(&settings(port, &more)).await.unwrap();
    let mut next = 1;
    while next <= 3001 {
        for frame in stream.chunks.recv().await.unwrap().unwrap().frames() {
            let Ok(Frame::XLogData { wal_start, body, .. }) = frame else { panic!("{frame:?}") };
            assert_eq!((wal_start, body.len()), (Lsn(next), if next == 3001 { 900_000 } else { 300 }));
            next += 1;
        }
        // A status in the midst of it: both directions share one state of TLS.
        stream.feedback.reply_now();
    }
    flush.send(Lsn(3001)).unwrap();
    while stream.feedback.last_reported() < Lsn(3001) {
        tokio::task::yield_now().await;
    }
    assert_eq!(stream.shutdown(Instant::now() + Duration::from_secs(20)).await, Shutdown::Complete);
    server.join().unwrap();
}

#[tokio::test]
async fn certificates_are_verified_as_closely_as_sslmode_says() {
    let made = certificates();
    let file = |name: &str| format!("sslrootcert={}", made.folder.path().join(name).display());
    for (more, works) in [
        ("sslmode=require".to_owned(), true),
        (format!("sslmode=require {}", file("ca.crt")), true),
        (format!("sslmode=require {}", file("other.crt")), false),
        (format!("sslmode=verify-ca {}", file("ca.crt")), true),
        (format!("sslmode=verify-ca {}", file("other.crt")), false),
        (format!("sslmode=verify-ca host=db.example hostaddr=127.0.0.1 {}", file("ca.crt")), true),
        (format!("sslmode=verify-full {}", file("ca.crt")), true),
        (format!("sslmode=verify-full host=localhost hostaddr=127.0.0.1 {}", file("ca.crt")), true),
        (format!("sslmode=verify-full host=db.example hostaddr=127.0.0.1 {}", file("ca.crt")), false),
    ] {
        let config = Arc::clone(&made.server);
        let (port, server) = serve(move |listener| {
            let mut server = accept_tls(listener, &config);
            if works {
                server.startup();
                server.send(&error_response("28000", "so far, so good"));
            }
            server.ended();
        });
        let error = try_connect(&settings(port, &more)).await.expect_err("refused");
        match &error {
            SourceError::Connect(ConnectError::Refused { tls: true, .. }) => assert!(works, "{more}: {error}"),
            SourceError::Connect(ConnectError::TlsHandshake { .. }) => assert!(!works, "{more}: {error}"),
            _ => panic!("{more}: {error}"),
        }
        server.join().unwrap();
        // The SQL connection goes by the same rules, and only a verified server is given a readable password.
        let (config, verified) = (Arc::clone(&made.server), more.contains("sslrootcert"));
        let (port, server) = serve(move |listener| {
            let mut server = accept_tls(listener, &config);
            if works {
                server.startup();
                server.send(&authentication(3, &[]));
                if verified {
                    assert_eq!(server.password(), b"pw\0");
                    return;
                }
            }
            assert_eq!(server.ended(), b"");
        });
        let connected = crate::postgres::connect_sql(&settings(port, &more)).await;
        match connected.map(|_| ()).expect_err("refused") {
            ConnectError::CleartextRefused { .. } => assert!(works && !verified, "{more}"),
            ConnectError::Closed { .. } => assert!(works && verified, "{more}"),
            ConnectError::TlsHandshake { .. } => assert!(!works, "{more}"),
            error => panic!("{more}: {error}"),
        }
        server.join().unwrap();
    }
}
