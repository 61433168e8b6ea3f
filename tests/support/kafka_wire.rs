//! Kafka's protocol by hand, without TLS of its own: so that what walgate's client library wrote is not read with the
//! same library. Of each request the version that is fixed here is served by 3.9 and by 4.4.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::kafka_records::{self, Cursor, Record};
use super::wait;

/// Key and version of each request.
const PRODUCE: (i16, i16) = (0, 3);
const FETCH: (i16, i16) = (1, 10);
const LIST_OFFSETS: (i16, i16) = (2, 1);
const METADATA: (i16, i16) = (3, 4);
const SASL_HANDSHAKE: (i16, i16) = (17, 1);
const CREATE_TOPICS: (i16, i16) = (19, 2);
const DELETE_TOPICS: (i16, i16) = (20, 1);
const INIT_PRODUCER_ID: (i16, i16) = (22, 0);
const DESCRIBE_ACLS: (i16, i16) = (29, 1);
const CREATE_ACLS: (i16, i16) = (30, 1);
const DELETE_ACLS: (i16, i16) = (31, 1);
const SASL_AUTHENTICATE: (i16, i16) = (36, 0);
const INCREMENTAL_ALTER_CONFIGS: (i16, i16) = (44, 0);

/// No answer is larger.
const LIMIT: usize = 128 << 20;

/// A broker's answer is waited for so long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What the broker says to a part of a request; 0 is success.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code(pub i16);

impl Code {
    pub const NONE: Code = Code(0);
    pub const UNKNOWN_TOPIC_OR_PARTITION: Code = Code(3);
    pub const MESSAGE_TOO_LARGE: Code = Code(10);
    pub const TOPIC_AUTHORIZATION_FAILED: Code = Code(29);
}

impl fmt::Debug for Code {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 => "NONE",
            1 => "OFFSET_OUT_OF_RANGE",
            2 => "CORRUPT_MESSAGE",
            3 => "UNKNOWN_TOPIC_OR_PARTITION",
            5 => "LEADER_NOT_AVAILABLE",
            6 => "NOT_LEADER_OR_FOLLOWER",
            7 => "REQUEST_TIMED_OUT",
            10 => "MESSAGE_TOO_LARGE",
            17 => "INVALID_TOPIC_EXCEPTION",
            18 => "RECORD_LIST_TOO_LARGE",
            19 => "NOT_ENOUGH_REPLICAS",
            29 => "TOPIC_AUTHORIZATION_FAILED",
            31 => "CLUSTER_AUTHORIZATION_FAILED",
            33 => "UNSUPPORTED_SASL_MECHANISM",
            35 => "UNSUPPORTED_VERSION",
            36 => "TOPIC_ALREADY_EXISTS",
            40 => "INVALID_CONFIG",
            42 => "INVALID_REQUEST",
            58 => "SASL_AUTHENTICATION_FAILED",
            76 => "UNSUPPORTED_COMPRESSION_TYPE",
            87 => "INVALID_RECORD",
            _ => "see Kafka's list of errors",
        };
        write!(out, "{} ({name})", self.0)
    }
}

/// A topic as a broker shows it.
#[derive(Clone, Debug)]
pub struct Topic {
    pub name: String,
    pub error: Code,
    /// Index and error of each partition.
    pub partitions: Vec<(i32, Code)>,
}

/// Offsets of the partitions of a topic.
pub type Offsets = BTreeMap<i32, i64>;

/// Operations that access lists know, by their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    All = 2,
    Write = 4,
    Describe = 8,
    /// On the cluster: an idempotent producer's.
    IdempotentWrite = 12,
}

/// A line of an access list: for one topic, from any host.
#[derive(Clone, Copy, Debug)]
pub struct Acl<'a> {
    /// `*` for all of them; of no account where the operation is the cluster's.
    pub topic: &'a str,
    /// Such as `User:walgate`.
    pub principal: &'a str,
    pub operation: Operation,
    /// Denied, where it is not allowed.
    pub allow: bool,
}

impl Acl<'_> {
    fn body(&self, body: &mut Body) {
        // A topic or the cluster, by its literal name; 2 is deny, 3 is allow.
        match self.operation {
            Operation::IdempotentWrite => body.i8(4).text("kafka-cluster"),
            _ => body.i8(2).text(self.topic),
        };
        body.i8(3).text(self.principal).text("*");
        body.i8(self.operation as i8).i8(if self.allow { 3 } else { 2 });
    }
}

/// A request's body.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn i8(&mut self, value: i8) -> &mut Body {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn i16(&mut self, value: i16) -> &mut Body {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn i32(&mut self, value: i32) -> &mut Body {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn i64(&mut self, value: i64) -> &mut Body {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Body {
        self.i16(i16::try_from(text.len()).expect("a short text"));
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Body {
        self.i32(i32::try_from(bytes.len()).expect("a length"));
        self.0.extend_from_slice(bytes);
        self
    }
}

impl Cursor<'_> {
    #[track_caller]
    fn code(&mut self) -> Code {
        Code(self.i16())
    }

    #[track_caller]
    fn text(&mut self) -> Option<String> {
        let length = self.i16();
        (length != -1).then(|| {
            let bytes = self.take(usize::try_from(length).expect("a length"));
            String::from_utf8(bytes.to_vec()).expect("UTF-8")
        })
    }

    /// The elements of an array; none for null.
    #[track_caller]
    fn each<T>(&mut self, mut element: impl FnMut(&mut Self) -> T) -> Vec<T> {
        let count = self.i32();
        (0..count).map(|_| element(self)).collect()
    }
}

/// What a connection goes over.
pub trait Channel: Read + Write + Send {}

impl<T: Read + Write + Send> Channel for T {}

/// A connection to a broker.
pub struct Wire {
    channel: Box<dyn Channel>,
    asked: i32,
}

impl Wire {
    /// Over TCP, to a loopback port.
    #[track_caller]
    pub fn connect(port: u16) -> Wire {
        Wire::try_connect(port).expect("a connection to Kafka")
    }

    pub fn try_connect(port: u16) -> io::Result<Wire> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        Ok(Wire::over(socket))
    }

    /// Over a connection that exists, such as a TLS session.
    pub fn over(channel: impl Channel + 'static) -> Wire {
        Wire { channel: Box::new(channel), asked: 0 }
    }

    fn try_ask(&mut self, (key, version): (i16, i16), body: &Body) -> io::Result<Vec<u8>> {
        self.asked += 1;
        let mut head = Body::default();
        head.i16(key).i16(version).i32(self.asked).text("test");
        let mut frame = Body::default();
        frame.i32((head.0.len() + body.0.len()) as i32);
        frame.0.extend(head.0);
        frame.0.extend_from_slice(&body.0);
        self.channel.write_all(&frame.0)?;
        self.channel.flush()?;
        let mut size = [0; 4];
        self.channel.read_exact(&mut size)?;
        let size = usize::try_from(i32::from_be_bytes(size)).expect("a size");
        assert!((4..=LIMIT).contains(&size), "an answer of {size} bytes");
        let mut answer = vec![0; size];
        self.channel.read_exact(&mut answer)?;
        let body = answer.split_off(4);
        assert_eq!(answer, self.asked.to_be_bytes(), "the answer to another request");
        Ok(body)
    }

    #[track_caller]
    fn ask(&mut self, api: (i16, i16), body: &Body) -> Vec<u8> {
        match self.try_ask(api, body) {
            Ok(answer) => answer,
            Err(error) => panic!("Kafka does not answer the request {api:?}: {error}"),
        }
    }

    /// Says which mechanism follows; `Err` is the broker's refusal.
    #[track_caller]
    pub fn handshake(&mut self, mechanism: &str) -> Result<(), Code> {
        let answer = self.ask(SASL_HANDSHAKE, Body::default().text(mechanism));
        match Cursor(&answer).code() {
            Code::NONE => Ok(()),
            refused => Err(refused),
        }
    }

    /// One step of a mechanism: the broker's own bytes, or how it refuses.
    #[track_caller]
    pub fn authenticate(&mut self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let answer = self.ask(SASL_AUTHENTICATE, Body::default().bytes(bytes));
        let mut answer = Cursor(&answer);
        let (code, text) = (answer.code(), answer.text());
        let length = answer.i32().max(0) as usize;
        if code == Code::NONE { Ok(answer.take(length).to_vec()) } else { Err(format!("{code:?} {text:?}")) }
    }

    /// The ports of the brokers that serve, and the topics; all where none is named.
    fn try_metadata(&mut self, topic: Option<&str>) -> io::Result<(Vec<u16>, Vec<Topic>)> {
        let mut body = Body::default();
        match topic {
            Some(name) => body.i32(1).text(name),
            None => body.i32(-1),
        };
        body.i8(0);
        let answer = self.try_ask(METADATA, &body)?;
        let mut answer = Cursor(&answer);
        answer.i32();
        let brokers = answer.each(|broker| {
            let (_, _, port, _) = (broker.i32(), broker.text(), broker.i32(), broker.text());
            u16::try_from(port).expect("a port")
        });
        let _ = (answer.text(), answer.i32());
        let topics = answer.each(|topic| {
            let (error, name) = (topic.code(), topic.text().expect("a name"));
            topic.i8();
            let partitions = topic.each(|partition| {
                let (error, index) = (partition.code(), partition.i32());
                partition.i32();
                let _ = (partition.each(Cursor::i32), partition.each(Cursor::i32));
                (index, error)
            });
            Topic { name, error, partitions }
        });
        Ok((brokers, topics))
    }

    /// The ports at which the broker tells clients of this listener to come.
    #[track_caller]
    pub fn advertised(&mut self) -> Vec<u16> {
        self.try_metadata(None).expect("metadata").0
    }

    /// All topics, Kafka's own included.
    #[track_caller]
    pub fn topics(&mut self) -> Vec<Topic> {
        self.try_metadata(None).expect("metadata").1
    }

    #[track_caller]
    fn partitions(&mut self, topic: &str) -> Vec<i32> {
        let (_, topics) = self.try_metadata(Some(topic)).expect("metadata");
        assert_eq!(topics[0].error, Code::NONE, "topic {topic}");
        topics[0].partitions.iter().map(|(index, _)| *index).collect()
    }

    /// Offset and error of these partitions at a time: -1 is the end, -2 the beginning.
    fn try_offsets(&mut self, topic: &str, partitions: &[i32], time: i64) -> io::Result<Vec<(i32, Code, i64)>> {
        let mut body = Body::default();
        body.i32(-1).i32(1).text(topic).i32(partitions.len() as i32);
        for partition in partitions {
            body.i32(*partition).i64(time);
        }
        let answer = self.try_ask(LIST_OFFSETS, &body)?;
        let topics = Cursor(&answer).each(|topic| {
            topic.text();
            topic.each(|partition| {
                let (index, error, _) = (partition.i32(), partition.code(), partition.i64());
                (index, error, partition.i64())
            })
        });
        Ok(topics.into_iter().flatten().collect())
    }

    #[track_caller]
    fn offsets(&mut self, topic: &str, time: i64) -> Offsets {
        let partitions = self.partitions(topic);
        let offsets = self.try_offsets(topic, &partitions, time).expect("offsets");
        let checked = offsets.into_iter().map(|(partition, error, offset)| {
            assert_eq!(error, Code::NONE, "the offset of partition {partition} of {topic}");
            (partition, offset)
        });
        checked.collect()
    }

    /// The offsets that the next records will have.
    #[track_caller]
    pub fn ends(&mut self, topic: &str) -> Offsets {
        self.offsets(topic, -1)
    }

    /// Whether the broker takes part and leads every partition of a topic, or of all, and its log is there.
    pub fn try_serves(&mut self, topic: Option<&str>) -> io::Result<bool> {
        let (brokers, topics) = self.try_metadata(topic)?;
        if brokers.is_empty() || topic.is_some() && topics.is_empty() {
            return Ok(false);
        }
        for topic in topics {
            let partitions: Vec<i32> = topic.partitions.iter().map(|(index, _)| *index).collect();
            let led = topic.error == Code::NONE && topic.partitions.iter().all(|(_, error)| *error == Code::NONE);
            // The leader is named a moment before it has its log.
            if !led || self.try_offsets(&topic.name, &partitions, -1)?.iter().any(|(_, error, _)| *error != Code::NONE)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether idempotent producers get their ids, which a broker has some moments after it serves.
    pub fn try_gives_producer_ids(&mut self) -> io::Result<bool> {
        let answer = self.try_ask(INIT_PRODUCER_ID, Body::default().i16(-1).i32(60_000))?;
        let mut answer = Cursor(&answer);
        answer.i32();
        Ok(answer.code() == Code::NONE)
    }

    /// Makes a topic; returns when it can be written to.
    #[track_caller]
    pub fn create_topic(&mut self, name: &str, partitions: u32, configs: &[(&str, &str)]) {
        let mut body = Body::default();
        body.i32(1).text(name).i32(partitions as i32).i16(1).i32(0).i32(configs.len() as i32);
        for (key, value) in configs {
            body.text(key).text(value);
        }
        body.i32(30_000).i8(0);
        let answer = self.ask(CREATE_TOPICS, &body);
        let mut answer = Cursor(&answer);
        answer.i32();
        for (_, error, text) in answer.each(|topic| (topic.text(), topic.code(), topic.text())) {
            assert_eq!(error, Code::NONE, "making the topic {name}: {text:?}");
        }
        wait::eventually(wait::DEADLINE, &format!("the topic {name} has leaders"), || {
            self.try_serves(Some(name)).expect("an answer")
        });
    }

    /// Deletes a topic; returns when the broker knows it no more.
    #[track_caller]
    pub fn delete_topic(&mut self, name: &str) {
        let answer = self.ask(DELETE_TOPICS, Body::default().i32(1).text(name).i32(30_000));
        let mut answer = Cursor(&answer);
        answer.i32();
        for (_, error) in answer.each(|topic| (topic.text(), topic.code())) {
            assert_eq!(error, Code::NONE, "deleting the topic {name}");
        }
        wait::eventually(wait::DEADLINE, &format!("the topic {name} is gone"), || {
            self.topics().iter().all(|topic| topic.name != name)
        });
    }

    /// Changes settings of a topic; they take effect a moment later.
    #[track_caller]
    pub fn alter_topic(&mut self, name: &str, configs: &[(&str, &str)]) {
        let mut body = Body::default();
        body.i32(1).i8(2).text(name).i32(configs.len() as i32);
        for (key, value) in configs {
            body.text(key).i8(0).text(value);
        }
        body.i8(0);
        let answer = self.ask(INCREMENTAL_ALTER_CONFIGS, &body);
        let mut answer = Cursor(&answer);
        answer.i32();
        for (error, text, ..) in answer.each(|topic| (topic.code(), topic.text(), topic.i8(), topic.text())) {
            assert_eq!(error, Code::NONE, "changing the topic {name}: {text:?}");
        }
    }

    /// Adds a line to the access list (see [`AUTHORIZER`](super::kafka::AUTHORIZER)); returns when the broker heeds it.
    #[track_caller]
    pub fn add_acl(&mut self, acl: &Acl<'_>) {
        let mut body = Body::default();
        acl.body(body.i32(1));
        let answer = self.ask(CREATE_ACLS, &body);
        let mut answer = Cursor(&answer);
        answer.i32();
        for (error, text) in answer.each(|one| (one.code(), one.text())) {
            assert_eq!(error, Code::NONE, "{acl:?}: {text:?}");
        }
        wait::eventually(wait::DEADLINE, "the line is in the access list", || self.has_acl(acl));
    }

    /// Takes a line away again.
    #[track_caller]
    pub fn remove_acl(&mut self, acl: &Acl<'_>) {
        let mut body = Body::default();
        acl.body(body.i32(1));
        let answer = self.ask(DELETE_ACLS, &body);
        let mut answer = Cursor(&answer);
        answer.i32();
        let (count, error, text) = (answer.i32(), answer.code(), answer.text());
        assert_eq!((count, error), (1, Code::NONE), "{acl:?}: {text:?}");
        wait::eventually(wait::DEADLINE, "the line is gone from the access list", || !self.has_acl(acl));
    }

    #[track_caller]
    fn has_acl(&mut self, acl: &Acl<'_>) -> bool {
        let mut body = Body::default();
        acl.body(&mut body);
        let answer = self.ask(DESCRIBE_ACLS, &body);
        let mut answer = Cursor(&answer);
        answer.i32();
        let (error, text) = (answer.code(), answer.text());
        assert_eq!(error, Code::NONE, "reading the access list: {text:?}");
        answer.i32() > 0
    }

    /// Writes one batch to a partition, acknowledged by all replicas; the offset of its first record.
    #[track_caller]
    pub fn produce(&mut self, topic: &str, partition: i32, records: &[Record]) -> Result<i64, Code> {
        let mut body = Body::default();
        body.i16(-1).i16(-1).i32(30_000).i32(1).text(topic).i32(1).i32(partition);
        body.bytes(&kafka_records::encode(records));
        let answer = self.ask(PRODUCE, &body);
        let topics = Cursor(&answer).each(|topic| {
            topic.text();
            topic.each(|partition| {
                let (_, error, offset, _) = (partition.i32(), partition.code(), partition.i64(), partition.i64());
                if error == Code::NONE { Ok(offset) } else { Err(error) }
            })
        });
        topics[0][0]
    }

    /// All that a topic holds: partition after partition, each in its own order.
    #[track_caller]
    pub fn read_all(&mut self, topic: &str) -> Vec<Record> {
        self.read_from(topic, &mut Offsets::new())
    }

    /// What a topic holds from these offsets on, up to its ends at this moment, and moves the offsets there. A
    /// partition without an offset is read from its beginning. Records of aborted transactions are among them.
    #[track_caller]
    pub fn read_from(&mut self, topic: &str, offsets: &mut Offsets) -> Vec<Record> {
        let ends = self.ends(topic);
        let starts = self.offsets(topic, -2);
        let mut records = Vec::new();
        for (partition, end) in ends {
            let next = offsets.entry(partition).or_insert(starts[&partition]);
            assert!(*next <= end, "partition {partition} of {topic} was read up to {next}, and ends at {end} now");
            while *next < end {
                let log = self.fetch(topic, partition, *next);
                let decoded = kafka_records::decode(partition, &log);
                let from = *next;
                records.extend(decoded.records.into_iter().filter(|record| (from..end).contains(&record.offset)));
                *next = decoded.next.filter(|next| *next > from).unwrap_or_else(|| {
                    panic!("{} bytes hold no batch behind {from} in partition {partition} of {topic}", log.len())
                });
            }
            // A batch may go beyond the end that was asked for: its rest is read next time.
            *next = end;
        }
        records
    }

    /// A piece of a partition's log.
    #[track_caller]
    fn fetch(&mut self, topic: &str, partition: i32, offset: i64) -> Vec<u8> {
        const PIECE: i32 = 16 << 20;
        let mut body = Body::default();
        // Nobody's replica; up to ten seconds for one byte; whatever is written; no session.
        body.i32(-1).i32(10_000).i32(1).i32(PIECE).i8(0).i32(0).i32(-1);
        body.i32(1).text(topic).i32(1).i32(partition).i32(-1).i64(offset).i64(-1).i32(PIECE).i32(0);
        let answer = self.ask(FETCH, &body);
        let mut answer = Cursor(&answer);
        answer.i32();
        assert_eq!(answer.code(), Code::NONE, "fetching from {topic}");
        answer.i32();
        let topics = answer.each(|topic| {
            topic.text();
            topic.each(|partition| {
                let (index, error) = (partition.i32(), partition.code());
                assert_eq!(error, Code::NONE, "fetching from partition {index} at {offset}");
                partition.take(24);
                partition.each(|aborted| (aborted.i64(), aborted.i64()));
                let length = partition.i32().max(0) as usize;
                partition.take(length).to_vec()
            })
        });
        topics.into_iter().flatten().next().expect("a partition")
    }
}
