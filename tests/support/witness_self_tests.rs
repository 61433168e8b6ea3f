//! The witnesses on the links of Kafka, RabbitMQ and SQS, before anything is measured with them: between ends that say
//! what a test has written down for them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use serde_json::json;

use super::kafka_records::{self, Record};
use super::link_log::LinkLog;
use super::proxy::Proxy;
use super::receiver::hash_of;
use super::{amqp_witness, kafka_witness, sqs_witness};

/// Passes requests and their replies through a witness, in turn and each in pieces; what it has seen: ids, hashes of
/// payloads, and whether they were acknowledged.
#[track_caller]
fn seen(witness: fn(u16, &LinkLog) -> Proxy, turns: &[(Vec<u8>, Vec<u8>)]) -> Vec<(String, String, Option<bool>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let log = LinkLog::default();
    let proxy = witness(listener.local_addr().expect("an address").port(), &log);
    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).expect("connect");
    let (mut server, _) = listener.accept().expect("a connection");
    let pass = |from: &mut TcpStream, to: &mut TcpStream, bytes: &[u8]| {
        // The first piece has arrived before the second leaves.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        for piece in [first, second] {
            from.write_all(piece).expect("writing");
            let mut read = vec![0; piece.len()];
            to.read_exact(&mut read).expect("reading");
            assert_eq!(read, piece, "nothing is changed on the way");
        }
    };
    for (request, reply) in turns {
        pass(&mut client, &mut server, request);
        pass(&mut server, &mut client, reply);
    }
    assert_eq!(log.garbled(), 0);
    let receipts = log.receipts();
    let acknowledged = receipts.iter().filter(|receipt| receipt.answered.is_some_and(|(_, status)| status == 200));
    assert_eq!(acknowledged.count(), log.settled_count());
    receipts
        .into_iter()
        .map(|receipt| (receipt.id, receipt.hash, receipt.answered.map(|(_, status)| status == 200)))
        .collect()
}

fn expected(events: &[(&str, Option<bool>)]) -> Vec<(String, String, Option<bool>)> {
    let event = |(id, answered): &(&str, Option<bool>)| ((*id).to_owned(), hash_of(format!("of {id}")), *answered);
    events.iter().map(event).collect()
}

/// Behind its length.
fn sized(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes(), body].concat()
}

/// A Produce request for one partition, in this version.
fn produce(version: i16, correlation: i32, ids: &[&str]) -> Vec<u8> {
    let record = |id: &&str| Record {
        value: Some(format!("of {id}").into_bytes()),
        headers: vec![("id".to_owned(), Some(id.as_bytes().to_vec()))],
        ..Record::default()
    };
    let records = kafka_records::encode(&ids.iter().map(record).collect::<Vec<_>>());
    let mut body = [&[0, 0][..], &version.to_be_bytes(), &correlation.to_be_bytes(), b"\x00\x02me"].concat();
    if version >= 9 {
        // Fields of the head; no transactional id; all replicas; a second.
        body.extend([0, 0, 0xff, 0xff, 0, 0, 3, 232]);
        body.extend(b"\x02\x02t\x02");
        body.extend([0; 4]);
        let length = records.len() + 1;
        body.extend([length as u8 | 0x80, (length >> 7) as u8]);
        body.extend(&records);
        body.extend([0; 3]);
    } else {
        body.extend([0xff; 4]);
        body.extend([0, 0, 3, 232, 0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1, 0, 0, 0, 0]);
        body.extend(sized(&records));
    }
    sized(&body)
}

/// Its answer, up to the error; what follows is not looked at.
fn produced(version: i16, correlation: i32, error: i16) -> Vec<u8> {
    let mut body = correlation.to_be_bytes().to_vec();
    if version >= 9 {
        body.extend(b"\x00\x02\x02t\x02");
    } else {
        body.extend([0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1]);
    }
    body.extend([0; 4]);
    body.extend(error.to_be_bytes());
    body.extend([7; 24]);
    sized(&body)
}

#[test]
fn the_witness_for_kafka_tells_acknowledgements_from_errors() {
    for version in [3, 9] {
        // Two requests at once, answered out of the order in which a broker would: by their numbers, all the same.
        let both = [produce(version, 5, &["a", "b"]), produce(version, 6, &["c"])].concat();
        let answers = [produced(version, 6, 0), produced(version, 5, 10)].concat();
        let again = (produce(version, 7, &["a", "b"]), produced(version, 7, 46));
        let found = seen(kafka_witness::proxy, &[(both, answers), again, (produce(version, 8, &["d"]), vec![])]);
        let (yes, no) = (Some(true), Some(false));
        let events = [("a", no), ("b", no), ("c", yes), ("a", yes), ("b", yes), ("d", None)];
        assert_eq!(found, expected(&events), "version {version}");
    }
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [&[kind, 0, 1][..], &sized(body), &[0xce]].concat()
}

/// A message behind `method`, which sends or returns it.
fn message(method: &[u8], id: &str) -> Vec<u8> {
    let payload = format!("of {id}");
    let (first, second) = payload.as_bytes().split_at(2);
    let mut header = vec![0, 60, 0, 0];
    header.extend((payload.len() as u64).to_be_bytes());
    // Delivery mode and message id.
    header.extend([0x10, 0x80, 2, id.len() as u8]);
    header.extend(id.as_bytes());
    [frame(1, method), frame(2, &header), frame(3, first), frame(3, second)].concat()
}

fn publish(id: &str) -> Vec<u8> {
    message(b"\x00\x3c\x00\x28\x00\x00\x00\x01q\x01", id)
}

fn confirm(method: u8, tag: u8, multiple: bool) -> Vec<u8> {
    frame(1, &[0, 60, 0, method, 0, 0, 0, 0, 0, 0, 0, tag, u8::from(multiple)])
}

#[test]
fn the_witness_for_rabbitmq_tells_confirms_from_nacks_and_returns() {
    const ACK: u8 = 80;
    const NACK: u8 = 120;
    let open = [b"AMQP\x00\x00\x09\x01".to_vec(), frame(1, &[0, 20, 0, 10, 0]), frame(1, &[0, 85, 0, 10, 0])].concat();
    let opened = [frame(1, &[0, 20, 0, 11, 0, 0, 0, 0]), frame(8, &[]), frame(1, &[0, 85, 0, 11])].concat();
    let many = ["a", "b", "c", "d", "e"].map(publish).concat();
    let returned = message(b"\x00\x3c\x00\x32\x01\x38\x08NO_ROUTE\x00\x01q", "e");
    // The third alone, then the first two; the fourth is refused; the fifth is returned, and then confirmed.
    let answers =
        [confirm(ACK, 3, false), confirm(ACK, 2, true), confirm(NACK, 4, false), returned, confirm(ACK, 5, false)];
    let found = seen(
        amqp_witness::proxy,
        &[(open, opened), (many, answers.concat()), (publish("e"), confirm(ACK, 6, true)), (publish("f"), vec![])],
    );
    let (yes, no) = (Some(true), Some(false));
    let events = [("a", yes), ("b", yes), ("c", yes), ("d", no), ("e", no), ("e", yes), ("f", None)];
    assert_eq!(found, expected(&events));
}

fn post(action: &str, ids: &[&str]) -> Vec<u8> {
    let entry = |(number, id): (usize, &&str)| {
        let attributes = json!({ "id": { "DataType": "String", "StringValue": id } });
        json!({ "Id": number.to_string(), "MessageBody": format!("of {id}"), "MessageAttributes": attributes })
    };
    let body = json!({ "Entries": ids.iter().enumerate().map(entry).collect::<Vec<_>>() }).to_string();
    let length = body.len();
    format!("POST / HTTP/1.1\r\nX-Amz-Target: AmazonSQS.{action}\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

fn answer(status: u16, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} \r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[test]
fn the_witness_for_sqs_tells_entries_apart() {
    const SEND: &str = "SendMessageBatch";
    let some = r#"{"Successful":[{"Id":"2"},{"Id":"0"}],"Failed":[{"Id":"1"}]}"#;
    let found = seen(
        sqs_witness::proxy,
        &[
            (post("GetQueueUrl", &[]), answer(200, r#"{"QueueUrl":"q"}"#)),
            (post(SEND, &["a", "b", "c"]), answer(200, some)),
            (post(SEND, &["b"]), answer(500, r#"{"Successful":[{"Id":"0"}]}"#)),
            (post(SEND, &["b"]), answer(200, r#"{"Successful":[{"Id":"0"}]}"#)),
            (post(SEND, &["d"]), answer(200, "")),
            (post(SEND, &["d"]), vec![]),
        ],
    );
    let (yes, no) = (Some(true), Some(false));
    let events = [("a", yes), ("b", no), ("c", yes), ("b", no), ("b", yes), ("d", no), ("d", None)];
    assert_eq!(found, expected(&events));
}
