//! The instruments for Kafka, before anything is measured with them.

use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::kafka::{AUTHORIZER, Kafka, Options, token};
use super::kafka_records::{Record, crc32c, decode, encode, murmur2, partition_of};
use super::kafka_wire::{Acl, Code, Offsets, Operation, Wire};
use super::processes;
use super::proxy::Proxy;
use super::wait::{DEADLINE, eventually};

/// What Kafka's own Java library wrote: a batch at offset 1000 by the idempotent producer 4711 in its epoch 3. Its end is
/// left out: a value of 200 zeros, and no headers.
const JAVAS: &str = "\
    00000000000003e8000001270000000502f95ee3d40000000000020000018bcfe5687b0000018bcfe58f0f00000000000012\
    670003000000070000000336000000026b047b7d0604696406652d31086e6f6e650104696402320c002d02010100a20300a8\
    9a0104009003";

fn record(key: &str, value: &str) -> Record {
    Record {
        timestamp: 1_700_000_000_123,
        key: Some(key.into()),
        value: Some(value.into()),
        headers: vec![("id".to_owned(), Some(b"e-1".to_vec()))],
        ..Record::default()
    }
}

fn javas() -> Vec<u8> {
    let digits = JAVAS.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("a byte")).chain([0; 201]).collect()
}

#[test]
fn kafkas_record_batches_are_read_as_java_writes_them() {
    let decoded = decode(7, &javas());
    assert_eq!(decoded.next, Some(1003));
    let [first, second, third] = &decoded.records[..] else { panic!("{decoded:?}") };
    let headers = vec![
        ("id".to_owned(), Some(b"e-1".to_vec())),
        ("none".to_owned(), None),
        ("id".to_owned(), Some(b"2".to_vec())),
    ];
    let expected = Record { partition: 7, offset: 1000, producer: Some((4711, 3)), headers, ..record("k", "{}") };
    assert_eq!(first, &expected);
    assert_eq!((first.id(), first.header("none"), first.key_text()), ("e-1", None, Some("k")));
    assert_eq!((second.offset, second.timestamp), (1001, 1_700_000_000_100));
    assert_eq!((&second.key, &second.value, &second.headers), (&None, &None, &Vec::new()));
    assert_eq!((third.timestamp, &third.key, &third.value), (1_700_000_009_999, &Some(vec![]), &Some(vec![0; 200])));
}

#[test]
fn kafkas_record_batches_that_are_torn_changed_or_compressed_are_not_taken_for_whole() {
    let batch = javas();
    let mut log = [&*batch, &encode(&[record("k", "v")])].concat();
    log.pop();
    assert_eq!(decode(0, &log).next, Some(1003), "the torn one waits for the next fetch");
    assert_eq!(decode(0, &batch[..batch.len() - 1]).next, None);
    let refused = |batch: Vec<u8>| {
        let panic = std::panic::catch_unwind(|| decode(0, &batch)).expect_err("a refusal");
        panic.downcast_ref::<String>().expect("a text").clone()
    };
    let mut changed = batch.clone();
    *changed.last_mut().expect("a byte") ^= 1;
    assert!(refused(changed).contains("the CRC of the batch at 1000 of partition 0"));
    let with_attributes = |attributes: u8| {
        let mut batch = batch.clone();
        batch[22] = attributes;
        let crc = crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
        batch
    };
    let text = refused(with_attributes(4));
    assert!(text.contains("zstd") && text.contains("compression.type=uncompressed"), "{text}");
    let stamped = decode(0, &with_attributes(8));
    assert!(stamped.records.iter().all(|record| record.timestamp == 1_700_000_009_999), "{stamped:?}");
    let marker = decode(0, &with_attributes(0x30));
    assert_eq!((marker.records.len(), marker.next), (0, Some(1003)));
}

/// As `org.apache.kafka.common.utils.Utils.murmur2` has it, and as RFC 3720 has CRC-32C.
#[test]
fn kafkas_hashes_are_right() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    for (key, hash) in [
        ("", 275_646_681),
        ("1", -1_993_445_489),
        ("21", -973_932_308),
        ("abc", 479_470_107),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("k é", -141_485_706),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
    ] {
        assert_eq!(murmur2(key.as_bytes()), hash, "{key}");
    }
    let key = [0xff, 0x80, 1, 0xfe, 0x90, 0x81, 0xff];
    assert_eq!((murmur2(&key), partition_of(&key, 7)), (29_241_505, 6));
    assert_eq!(["k0", "k1", "k2", "k3"].map(|key| partition_of(key.as_bytes(), 6)), [5, 5, 3, 4]);
}

#[test]
fn what_kafka_was_given_is_read_back_whole() {
    let kafka = Kafka::shared();
    let (topic, mut wire) = (kafka.topic(3), kafka.wire());
    let null = Record { timestamp: 5, headers: vec![("h".to_owned(), None)], ..Record::default() };
    let large = Record { value: Some(vec![7; 900_000]), ..record("l", "") };
    assert_eq!(wire.produce(&topic, 2, &[record("a", "1"), null.clone()]), Ok(0));
    assert_eq!(wire.produce(&topic, 2, std::slice::from_ref(&large)), Ok(2));
    assert_eq!(wire.produce(&topic, 0, &[record("b", "2")]), Ok(0));
    let at = |partition, offset, record: &Record| Record { partition, offset, ..record.clone() };
    let all = [at(0, 0, &record("b", "2")), at(2, 0, &record("a", "1")), at(2, 1, &null), at(2, 2, &large)];
    assert!(wire.read_all(&topic) == all, "not what was written");
    let mut offsets = Offsets::from([(2, 1)]);
    assert!(wire.read_from(&topic, &mut offsets) == [all[0].clone(), all[2].clone(), all[3].clone()]);
    assert_eq!(offsets, Offsets::from([(0, 1), (1, 0), (2, 3)]));
    wire.produce(&topic, 1, &[record("c", "3")]).expect("an offset");
    assert_eq!(wire.read_from(&topic, &mut offsets), [at(1, 0, &record("c", "3"))]);
    assert_eq!(wire.read_from(&topic, &mut offsets), []);
    wire.alter_topic(&topic, &[("max.message.bytes", "1000")]);
    eventually(DEADLINE, "the topic's new limit holds", || {
        wire.produce(&topic, 0, std::slice::from_ref(&large)) == Err(Code::MESSAGE_TOO_LARGE)
    });
    wire.delete_topic(&topic);
    assert_eq!(wire.produce(&topic, 0, &[record("a", "")]), Err(Code::UNKNOWN_TOPIC_OR_PARTITION));
    assert!(wire.topics().iter().all(|known| known.name != topic), "no topic makes itself");
}

#[test]
fn kafka_keeps_all_over_kill_stop_and_freeze_and_leads_when_it_is_back() {
    let kafka = Kafka::start();
    let topics = [kafka.topic(2), kafka.topic(5)];
    let mut offsets = Offsets::new();
    let mut written = 0;
    let mut write = || {
        // At once, without a second try: it serves.
        let mut wire = kafka.wire();
        for partition in 0..5 {
            wire.produce(&topics[1], partition, &[record("k", "v"), record("k", "w")]).expect("an offset");
        }
        wire.produce(&topics[0], 0, &[record("k", "v")]).expect("an offset");
        written += 1;
        assert_eq!(wire.read_from(&topics[1], &mut offsets).len(), 10);
        assert_eq!((wire.read_all(&topics[0]).len(), wire.read_all(&topics[1]).len()), (written, 10 * written));
    };
    write();
    let pid = kafka.pid();
    kafka.kill9();
    assert!(Wire::try_connect(kafka.port()).is_err() && kafka.pid().is_none());
    kafka.start_again();
    assert_ne!(kafka.pid(), pid);
    write();
    kafka.stop();
    kafka.start_again();
    write();
    kafka.freeze();
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, kafka.port())).expect("the kernel still accepts");
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("a timeout");
    assert!(Wire::over(socket).try_serves(None).is_err(), "it says nothing");
    kafka.thaw();
    eventually(DEADLINE, "it goes on", || kafka.wire().try_serves(None).expect("an answer"));
    write();
    kafka.freeze();
    let pid = kafka.pid().expect("a broker");
    drop(kafka);
    assert!(processes::has_ended(pid), "the broker is left behind");
}

#[test]
fn kafka_leads_its_clients_back_through_the_proxies() {
    let (told, behind) = std::sync::mpsc::channel();
    let through = Box::new(move |port| {
        told.send(port).expect("a port");
        Proxy::to(port)
    });
    let kafka = Kafka::with(Options { through: Some(through), ..Options::default() });
    assert_eq!(kafka.wire().advertised(), [kafka.port()]);
    let mut wire = Wire::connect(kafka.proxy().port());
    assert_eq!(wire.advertised(), [kafka.proxy().port()]);
    let behind = behind.recv().expect("the port behind the proxy");
    assert_eq!(Wire::connect(behind).advertised(), [kafka.proxy().port()], "the same listener");
    let topic = kafka.topic(1);
    kafka.proxy().drop_replies(true);
    let written = topic.clone();
    let deaf = std::thread::spawn(move || wire.produce(&written, 0, &[record("k", "v")]));
    eventually(DEADLINE, "it is written, and nobody hears of it", || {
        kafka.proxy().dropped_bytes() > 0 && kafka.wire().read_all(&topic).len() == 1
    });
    kafka.proxy().cut();
    assert!(deaf.join().is_err(), "it was answered");
    kafka.proxy().drop_replies(false);
    assert_eq!(Wire::connect(kafka.proxy().port()).produce(&topic, 0, &[record("k", "v")]), Ok(1));
    let mut wire = Wire::connect(kafka.sasl_proxy().port());
    let port = kafka.sasl_proxy().port();
    log_in(&mut wire, "PLAIN", b"\0walgate\0secret").expect("a login");
    assert_eq!(wire.advertised(), [port]);
    kafka.sasl_proxy().cut();
    kafka.kill9();
    kafka.start_again();
    let mut wire = Wire::connect(port);
    log_in(&mut wire, "PLAIN", b"\0walgate\0secret").expect("a login");
    assert_eq!(wire.advertised(), [port], "told the same after a restart");
}

fn log_in(wire: &mut Wire, mechanism: &str, first: &[u8]) -> Result<Vec<u8>, String> {
    wire.handshake(mechanism).expect("a mechanism");
    wire.authenticate(first)
}

#[test]
fn kafka_takes_logins_and_heeds_its_access_list_and_limits() {
    let mut properties: Vec<String> = AUTHORIZER.map(str::to_owned).to_vec();
    properties.push("message.max.bytes=1000".to_owned());
    let kafka = Kafka::with(Options { properties, ..Options::default() });
    let topic = kafka.topic(1);
    let sasl = || Wire::connect(kafka.ports().sasl);
    assert_eq!(sasl().handshake("GSSAPI"), Err(Code(33)));
    log_in(&mut sasl(), "PLAIN", b"\0walgate\0wrong").expect_err("a wrong password");
    let bearer = |token: &str| format!("n,,\x01auth=Bearer {token}\x01\x01").into_bytes();
    let expired = log_in(&mut sasl(), "OAUTHBEARER", &bearer(&token("walgate", Duration::ZERO)));
    assert_ne!(expired, Ok(Vec::new()), "a token that has expired");
    for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let first = log_in(&mut sasl(), mechanism, b"n,,n=walgate,r=nonce").expect("a challenge");
        assert!(first.starts_with(b"r=nonce"), "{}", String::from_utf8_lossy(&first));
    }
    let (mut plain, mut oauth) = (sasl(), sasl());
    assert_eq!(log_in(&mut plain, "PLAIN", b"\0walgate\0secret"), Ok(Vec::new()));
    let lifetime = Duration::from_secs(600);
    assert_eq!(log_in(&mut oauth, "OAUTHBEARER", &bearer(&token("walgate", lifetime))), Ok(Vec::new()));

    let small = [record("k", "v")];
    let large = [Record { value: Some(vec![b'x'; 2000]), ..record("k", "") }];
    assert_eq!(plain.produce(&topic, 0, &small), Ok(0));
    assert_eq!(plain.produce(&topic, 0, &large), Err(Code::MESSAGE_TOO_LARGE));
    let denied = Acl { topic: &topic, principal: "User:walgate", operation: Operation::Write, allow: false };
    kafka.wire().add_acl(&denied);
    for wire in [&mut plain, &mut oauth] {
        assert_eq!(wire.produce(&topic, 0, &small), Err(Code::TOPIC_AUTHORIZATION_FAILED));
    }
    assert_eq!(kafka.wire().produce(&topic, 0, &small), Ok(1), "the tests' own connection may do everything");
    kafka.wire().remove_acl(&denied);
    assert_eq!(oauth.produce(&topic, 0, &small), Ok(2));
}

/// A connection over TLS, with the client's certificate where that is said.
fn over_tls(kafka: &Kafka, port: u16, with_certificate: bool) -> Wire {
    let file = |name: &str| kafka.certificates().join(name);
    let certificate = |name: &str| CertificateDer::from_pem_file(file(name)).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate("ca.crt")).expect("a CA");
    let config = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = if with_certificate {
        let key = PrivateKeyDer::from_pem_file(file("client.key")).expect("a key");
        config.with_client_auth_cert(vec![certificate("client.crt")], key).expect("a client's certificate")
    } else {
        config.with_no_client_auth()
    };
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
    let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    Wire::over(StreamOwned::new(connection, socket))
}

#[test]
fn kafka_speaks_tls_and_may_want_a_certificate() {
    let kafka = Kafka::shared();
    for with_certificate in [false, true] {
        assert_eq!(over_tls(kafka, kafka.ports().tls, with_certificate).advertised(), [kafka.ports().tls]);
    }
    let mut wire = over_tls(kafka, kafka.ports().sasl_tls, false);
    log_in(&mut wire, "PLAIN", b"\0walgate\0secret").expect("a login");
    assert_eq!(wire.advertised(), [kafka.ports().sasl_tls]);
    let strict = Kafka::with(Options { mutual_tls: true, ..Options::default() });
    over_tls(&strict, strict.ports().tls, false).try_serves(None).expect_err("no certificate was shown");
    assert!(over_tls(&strict, strict.ports().tls, true).try_serves(None).expect("an answer"));
}
