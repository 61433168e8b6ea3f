//! The instruments, before anything is measured with them.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::database::Database;
use super::lsn::Lsn;
use super::oracle::{self, Committed, Kept};
use super::pgwire::{self, Change, Framer, Heard};
use super::postgres::{self, Options, PASSWORD, Postgres, ROLE};
use super::processes::Process;
use super::proxy::Proxy;
use super::receiver::{Answer, Receiver, SECRET, hash_of, ok, reply};
use super::wait::{DEADLINE, eventually, eventually_some};
use super::witness::{Insertion, PgWitness};

/// A replication client by hand, as simple and as honest, or dishonest, as a test wants it.
pub struct RawClient {
    stream: TcpStream,
    framer: Framer,
    pending: VecDeque<Vec<u8>>,
}

impl RawClient {
    pub fn stream(database: &Database, port: u16) -> RawClient {
        // A role that the test server lets in without a password.
        let _ = database.server.client("postgres").try_run("CREATE ROLE open LOGIN REPLICATION");
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let mut client = RawClient { stream, framer: Framer::server(), pending: VecDeque::new() };
        let mut startup = vec![0, 3, 0, 0];
        for word in ["user", "open", "database", &database.name, "replication", "database", ""] {
            startup.extend_from_slice(word.as_bytes());
            startup.push(0);
        }
        client.send(None, &startup);
        client.until(|message| message[0] == b'Z');
        let Database { slot, publication, .. } = database;
        client.send(
            Some(b'Q'),
            format!(
                "START_REPLICATION SLOT {slot} LOGICAL 0/0 (proto_version '1', publication_names '{publication}')\0"
            )
            .as_bytes(),
        );
        client.until(|message| message[0] == b'W');
        client
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) {
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend((body.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(body);
        self.stream.write_all(&message).expect("send");
    }

    pub fn status(&mut self, flush: Lsn) {
        let mut body = vec![b'r'];
        [flush.0, flush.0, flush.0, 0].iter().for_each(|value| body.extend(value.to_be_bytes()));
        body.push(1);
        self.send(Some(b'd'), &body);
    }

    /// The next message from the server.
    pub fn next(&mut self) -> Vec<u8> {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = self.pending.pop_front() {
                return message;
            }
            let read = self.stream.read(&mut buffer).expect("read");
            assert!(read > 0, "the server has closed");
            self.framer.push(&buffer[..read]);
            self.pending.extend(self.framer.messages());
        }
    }

    fn until(&mut self, mut wanted: impl FnMut(&[u8]) -> bool) {
        while !wanted(&self.next()) {}
    }

    fn until_commit(&mut self) -> Lsn {
        let mut found = Lsn(0);
        self.until(|message| match pgwire::server_message(message) {
            Heard::Wal { change: Change::Commit { end, .. }, .. } => {
                found = end;
                true
            }
            _ => false,
        });
        found
    }
}

#[test]
fn a_server_survives_kill_and_stop_with_its_data() {
    let server = Postgres::start(Options::default());
    let database = server.database().with_keyed_outbox();
    let id = database.insert("order.created", "k", "{}");
    server.kill9();
    server.start_again();
    assert_eq!(database.value("SELECT id FROM outbox_events"), id);
    assert!(server.stop_fast(DEADLINE) < DEADLINE);
    server.start_again();
    assert_eq!(database.value("SELECT count(*) FROM outbox_events"), "1");
    let pid = server.pid().expect("a server that runs");
    drop(database);
    drop(server);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the server is left behind");
}

#[test]
fn walgates_role_has_no_select() {
    let database = Postgres::shared().database().with_seed_outbox();
    let privilege = format!("SELECT has_table_privilege('{ROLE}', 'outbox_events', 'SELECT')");
    assert_eq!(database.value(&privilege), "f");
    let role = format!("SELECT rolreplication AND rolcanlogin AND NOT rolsuper FROM pg_roles WHERE rolname = '{ROLE}'");
    assert_eq!(database.value(&role), "t");
}

#[test]
fn a_server_with_tls_takes_encrypted_connections_only_where_it_says_so() {
    let server = Postgres::start(Options { tls: true, ..Options::default() });
    server.sql("CREATE ROLE tlsonly LOGIN PASSWORD 'x'");
    let psql = postgres::binaries().join("psql");
    if !psql.is_file() {
        return;
    }
    let connect = |mode: &str| {
        let url = format!("postgres://tlsonly:x@localhost:{}/postgres?sslmode={mode}", server.port());
        let url = format!("{url}&hostaddr=127.0.0.1&sslrootcert={}", server.certificates().join("ca.crt").display());
        let output = Command::new(&psql).args([&url, "-Atc", "SELECT 1"]).stdin(Stdio::null()).output().expect("psql");
        output.status.success()
    };
    assert!(connect("verify-full"));
    assert!(!connect("disable"));
}

#[test]
fn a_process_is_stopped_and_reaped_when_dropped() {
    let process = Process::spawn(Command::new("sleep").arg("600"), Signal::KILL);
    let pid = process.pid();
    drop(process);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn the_witness_reads_a_stream_and_its_statuses() {
    let database = Postgres::shared().database().with_keyed_outbox();
    let before = database.confirmed_flush();
    let witness = PgWitness::on(database.server.port());
    let id = database.insert("order.created", "k", "{}");
    let mut client = RawClient::stream(&database, witness.port());
    let end = client.until_commit();
    assert_eq!(witness.commit_end(&id), end);
    client.status(end);
    eventually(DEADLINE, "the status is on the wire", || witness.flush() == end);
    eventually(DEADLINE, "the slot has it", || database.confirmed_flush() == end);
    {
        let log = witness.log();
        assert_eq!(log.relations[0].start, Lsn(0), "T6: a Relation has WAL position 0/0");
        assert_eq!(log.relations[0].name, "outbox_events");
        assert_eq!(oracle::judge_wire(&log, before, |_| Some(0)), Vec::<String>::new());
        // The same wire, but the event was acknowledged never, or after the status.
        let faults = oracle::judge_wire(&log, before, |_| None);
        assert!(faults.len() == 1 && faults[0].contains("passes event"), "{faults:?}");
        let late = log.statuses[0].tick + 1;
        assert_eq!(oracle::judge_wire(&log, before, |_| Some(late)).len(), 1);
    }
    // T5 and I5: no commit's end, and less than before.
    client.status(Lsn(end.0 - 1));
    eventually(DEADLINE, "the false status is on the wire", || witness.flush() == Lsn(end.0 - 1));
    let faults = oracle::judge_wire(&witness.log(), before, |_| Some(0)).join("\n");
    assert!(faults.contains("fell from") && faults.contains("no commit end"), "{faults}");
}

#[test]
fn the_witness_inserts_keepalives_and_changes_positions() {
    let database = Postgres::shared().database().with_keyed_outbox();
    let witness = PgWitness::on(database.server.port());
    witness.edit(|heard, message| match heard {
        Heard::Wal { change: Change::Begin { .. }, .. } => {
            vec![Insertion::Keepalive { wal_end: Lsn(0x1234), reply: true }]
        }
        Heard::Wal { change: Change::Insert { .. }, .. } => {
            pgwire::set_wal_positions(message, Lsn(7));
            Vec::new()
        }
        _ => Vec::new(),
    });
    database.insert("order.created", "k", "{}");
    let mut client = RawClient::stream(&database, witness.port());
    let mut heard = Vec::new();
    client.until(|message| {
        let one = pgwire::server_message(message);
        let last = matches!(one, Heard::Wal { change: Change::Commit { .. }, .. });
        heard.push(one);
        last
    });
    let is_begin = |one: &Heard| matches!(one, Heard::Wal { change: Change::Begin { .. }, .. });
    let begin = heard.iter().position(is_begin).expect("a Begin");
    assert_eq!(heard[begin + 1], Heard::Keepalive { wal_end: Lsn(0x1234), reply: true });
    assert!(heard.iter().any(|one| matches!(one, Heard::Wal { start: Lsn(7), change: Change::Insert { .. }, .. })));
    witness.inject_keepalive(Lsn(0x5678), false);
    client.until(|message| pgwire::server_message(message) == Heard::Keepalive { wal_end: Lsn(0x5678), reply: false });
    assert_eq!(witness.log().keepalives.iter().filter(|keepalive| keepalive.injected).count(), 2);
}

#[test]
fn the_witness_understands_pg_recvlogical() {
    let program = postgres::binaries().join("pg_recvlogical");
    if !program.is_file() {
        return;
    }
    let database = Postgres::shared().database().with_seed_outbox();
    let before = database.confirmed_flush();
    let witness = PgWitness::on(database.server.port());
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &witness.port().to_string(), "-U", ROLE, "-d", &database.name]);
    command.args(["-S", &database.slot, "--start", "-f", "/dev/null", "-F", "1", "-s", "1", "-o", "proto_version=1"]);
    command.arg("-o").arg(format!("publication_names={}", database.publication));
    // With the default `prefer` it asks for encryption first; the witness follows the refusal.
    command.env("PGPASSWORD", PASSWORD).stdin(Stdio::null()).stderr(Stdio::null());
    let recvlogical = Process::spawn(&mut command, Signal::KILL);
    let ids: Vec<String> = (0..10).map(|n| database.insert_seed("order.created", &format!("{{\"n\": {n}}}"))).collect();
    let end = witness.commit_end(&ids[9]);
    eventually(DEADLINE, "its status is on the wire", || witness.flush() >= end);
    let log = witness.log();
    let sent: Vec<&str> = log.rows.iter().map(|row| &*row.id).collect();
    assert_eq!(sent, ids);
    assert!(log.starts[0].text.contains(&database.slot));
    assert_eq!(oracle::judge_wire(&log, before, |_| Some(0)), Vec::<String>::new());
    drop(log);
    drop(recvlogical);
}

/// Posts and reads the answer's status; `None` where there is none.
pub fn post(stream: &mut TcpStream, id: &str, body: &str) -> Option<u16> {
    let head = format!("POST /hook HTTP/1.1\r\nhost: x\r\nwebhook-id: {id}\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).split(' ').nth(1)?.parse().ok()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    stream
}

#[test]
fn the_receiver_remembers_and_answers_by_its_script() {
    let receiver = Receiver::unsigned();
    receiver.script(|request| match (request.id, request.attempt) {
        ("retry", 1) => reply(503).header("Retry-After", "1").into(),
        ("close", _) => Answer::CloseAfterBody,
        ("unread", _) => Answer::CloseBeforeBody,
        ("reset", _) => Answer::Reset,
        ("torn", _) => Answer::Raw(b"HTTP/1.1 20".to_vec()),
        ("early", _) => reply(200).early().then_close().into(),
        _ => ok(),
    });
    let mut stream = connect(receiver.port());
    assert_eq!(post(&mut stream, "retry", "one"), Some(503));
    assert_eq!(receiver.settled("retry"), None);
    assert_eq!(post(&mut stream, "retry", "one"), Some(200));
    for id in ["close", "unread", "reset", "torn"] {
        assert_eq!(post(&mut connect(receiver.port()), id, "body"), None, "{id}");
        assert_eq!(receiver.settled(id), None, "{id}");
    }
    assert_eq!(post(&mut connect(receiver.port()), "early", "body"), Some(200));
    eventually(DEADLINE, "the early answer's body is read", || receiver.settled("early").is_some());
    let receipts = receiver.receipts_of("retry");
    assert_eq!(receipts.len(), 2);
    assert_eq!((receipts[0].text(), receipts[0].connection), ("one", receipts[1].connection));
    assert_eq!(receipts[0].hash, hash_of("one"));
    assert!(receipts[0].tick < receipts[1].tick && receiver.settled("retry") > Some(receipts[1].tick));
    assert!(!receiver.has("unread") && receiver.has("torn"));
    receiver.go_down();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, receiver.port())).is_err());
    receiver.come_back();
    assert_eq!(post(&mut connect(receiver.port()), "again", ""), Some(200));
}

#[test]
fn the_receiver_holds_answers_and_knows_who_has_gone() {
    let receiver = Receiver::unsigned();
    receiver.hold();
    let mut gone = connect(receiver.port());
    gone.write_all(b"POST / HTTP/1.1\r\nwebhook-id: gone\r\ncontent-length: 0\r\n\r\n").expect("send");
    let mut stays = connect(receiver.port());
    stays.write_all(b"POST / HTTP/1.1\r\nwebhook-id: stays\r\ncontent-length: 0\r\n\r\n").expect("send");
    eventually(DEADLINE, "both are in flight", || receiver.in_flight() == 2);
    receiver.release("stays");
    eventually(DEADLINE, "one is answered", || receiver.settled("stays").is_some());
    assert_eq!(receiver.in_flight(), 1);
    drop(gone);
    receiver.release_all();
    eventually(DEADLINE, "none is in flight", || receiver.in_flight() == 0);
    assert_eq!(receiver.settled("gone"), None, "nobody was there to be answered");
}

#[test]
fn the_receiver_takes_batches_apart() {
    let receiver = Receiver::batches();
    receiver.script(|request| if request.id == "bad" && request.attempt < 3 { reply(422).into() } else { ok() });
    let mut stream = connect(receiver.port());
    let batch = r#"[{"id":"a","payload":{"n": 1.0}},{"id":"bad","payload":null},{"id":"b","payload":"x"}]"#;
    assert_eq!(post(&mut stream, "batch_1", batch), Some(422));
    assert_eq!(receiver.settled_count(), 0, "refused whole");
    assert_eq!(post(&mut stream, "batch_2", r#"[{"id":"a","payload":{"n": 1.0}}]"#), Some(200));
    assert_eq!(post(&mut stream, "batch_3", r#"[{"id":"bad","payload":7}]"#), Some(422));
    assert_eq!(post(&mut stream, "batch_4", r#"[{"id":"bad","payload":7},{"id":"b","payload":7}]"#), Some(200));
    eventually(DEADLINE, "all are settled", || receiver.settled_count() == 3);
    assert_eq!(receiver.ids(), ["a", "bad", "b", "a", "bad", "bad", "b"]);
    let receipts = receiver.receipts();
    assert_eq!(receipts.iter().map(|receipt| receipt.request).collect::<Vec<_>>(), [1, 1, 1, 2, 3, 4, 4]);
    assert_eq!((receipts[0].text(), receipts[0].header("webhook-id")), (r#"{"n": 1.0}"#, Some("batch_1")));
    assert_eq!(receipts[0].hash, hash_of(r#"{"n": 1.0}"#));
    assert_eq!(receiver.bad_signatures().len(), 4, "of requests, not of elements");
    assert_eq!(post(&mut stream, "batch_5", "{}"), None);
    assert_eq!(receiver.bad_signatures().len(), 6, "{:?}", receiver.bad_signatures());
}

#[test]
fn the_receiver_verifies_signatures() {
    let receiver = Receiver::start();
    assert_eq!(post(&mut connect(receiver.port()), "unsigned", "{}"), Some(200));
    assert_eq!(receiver.bad_signatures().len(), 1);
    let signer = standardwebhooks::Webhook::new(SECRET).expect("a secret");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs();
    let signature = signer.sign("signed", now as i64, b"{}").expect("a signature");
    let headers = format!("webhook-id: signed\r\nwebhook-timestamp: {now}\r\nwebhook-signature: {signature}");
    let mut stream = connect(receiver.port());
    stream
        .write_all(format!("POST / HTTP/1.1\r\n{headers}\r\ncontent-length: 2\r\n\r\n{{}}").as_bytes())
        .expect("send");
    eventually(DEADLINE, "it is received", || receiver.has("signed"));
    assert_eq!(receiver.bad_signatures().len(), 1);
}

#[test]
fn the_proxy_cuts_resets_refuses_and_drops_replies() {
    let receiver = Receiver::unsigned();
    let proxy = Proxy::to(receiver.port());
    let mut stream = connect(proxy.port());
    assert_eq!(post(&mut stream, "a", ""), Some(200));
    proxy.drop_replies(true);
    stream.write_all(b"POST / HTTP/1.1\r\nwebhook-id: lost\r\ncontent-length: 0\r\n\r\n").expect("send");
    eventually(DEADLINE, "done, and nobody hears of it", || {
        receiver.settled("lost").is_some() && proxy.dropped_bytes() > 0
    });
    proxy.cut();
    assert_eq!(stream.read(&mut [0]).ok(), Some(0));
    proxy.drop_replies(false);

    let mut stream = connect(proxy.port());
    assert_eq!(post(&mut stream, "b", ""), Some(200));
    proxy.reset();
    let error = stream.read(&mut [0]).expect_err("a reset");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    proxy.refuse();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).is_err());
    proxy.accept();
    let mut stream = connect(proxy.port());
    proxy.black_hole(true);
    stream.write_all(b"POST / HTTP/1.1\r\nwebhook-id: held\r\ncontent-length: 0\r\n\r\n").expect("send");
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
    assert!(stream.read(&mut [0]).is_err(), "nothing comes back");
    assert!(!receiver.has("held"), "nothing passes");
    proxy.black_hole(false);
    eventually(DEADLINE, "it passes", || receiver.has("held"));
}

#[test]
fn the_oracle_finds_what_is_missing_phantom_altered_and_out_of_order() {
    let receiver = Receiver::unsigned();
    let mut stream = connect(receiver.port());
    let committed: Vec<Committed> = (1..=4)
        .map(|n| Committed { id: format!("e{n}"), key: Some("k".to_owned()), n, hash: hash_of(format!("{n}")) })
        .collect();
    for (id, body) in [("e1", "1"), ("e2", "2"), ("e1", "1"), ("e2", "2"), ("e3", "3"), ("e4", "4")] {
        post(&mut stream, id, body);
    }
    // An answer is noted once it is written: a moment after it is read here.
    eventually(DEADLINE, "the last answer is noted", || receiver.settled("e4").is_some());
    let verdict = oracle::reconcile(&committed, &receiver.receipts());
    assert!(verdict.is_clean() && verdict.duplicates == 2, "{verdict}");
    assert!(!oracle::reconcile(&committed, &receiver.receipts()[..5]).is_clean(), "one is missing");

    let receiver = Receiver::unsigned();
    let mut stream = connect(receiver.port());
    for (id, body) in [("e1", "1"), ("e3", "3"), ("e2", "changed"), ("e9", "9")] {
        post(&mut stream, id, body);
    }
    eventually(DEADLINE, "the last answer is noted", || receiver.settled("e9").is_some());
    let verdict = oracle::reconcile(&committed, &receiver.receipts());
    assert_eq!(verdict.missing, ["e4"]);
    let found = (verdict.phantoms.len(), verdict.altered.len(), verdict.skips.len(), verdict.duplicates);
    assert_eq!(found, (1, 1, 1, 0), "{verdict}");
}

#[test]
fn what_a_broker_holds_is_compared_with_what_was_committed() {
    let committed = |id: &str, key: Option<&str>, n| Committed {
        id: id.to_owned(),
        key: key.map(str::to_owned),
        n,
        hash: format!("of {id}"),
    };
    let all = [committed("a1", Some("a"), 1), committed("a2", Some("a"), 2), committed("x", None, 0)];
    let kept = |id: &str| Kept {
        id: id.to_owned(),
        key: Some("a".to_owned()).filter(|_| id.starts_with('a')),
        hash: format!("of {id}"),
    };
    let judge = |ids: &[&str]| oracle::judge_kept(&all, &ids.iter().map(|id| kept(id)).collect::<Vec<_>>());
    assert_eq!(judge(&["x", "a1", "a2"]), Ok(0));
    assert_eq!(judge(&["a1", "a2", "a1", "x", "a2"]), Ok(2), "a repeat in its place is no fault");
    for (ids, fault) in [
        (&["a1", "x"][..], "1 of 3 events are missing"),
        (&["a1", "a2", "x", "a3"], "a phantom at place 3"),
        (&["a2", "a1", "a2", "x"], "a skip, key a: 2 after 0"),
    ] {
        let found = judge(ids).expect_err(fault);
        assert!(found.starts_with(fault), "{found}");
    }
    let altered = [Kept { hash: "other".to_owned(), ..kept("a1") }, Kept { key: None, ..kept("a1") }];
    for message in altered {
        assert!(oracle::judge_kept(&all, &[message]).expect_err("altered").starts_with("altered at place 0"));
    }
}

#[test]
fn the_ledger_is_read_from_the_database() {
    let database = Postgres::shared().database().with_keyed_outbox();
    database.sql("INSERT INTO ledger VALUES (gen_random_uuid(), 'k', 1, 'h'), (gen_random_uuid(), NULL, 0, 'h')");
    let events =
        eventually_some(DEADLINE, "two rows", || Some(oracle::ledger(&database)).filter(|rows| rows.len() == 2));
    assert_eq!(events.iter().filter(|event| event.key.is_none()).count(), 1);
}

#[test]
fn lsns_read_and_write_as_postgresql_does() {
    assert_eq!("1/AB".parse(), Ok(Lsn(0x1_0000_00AB)));
    assert_eq!(Lsn(0x1_0000_00AB).to_string(), "1/AB");
    assert!("nonsense".parse::<Lsn>().is_err());
}
