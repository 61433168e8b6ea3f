//! NATS's text protocol by hand, over a plain or a TLS socket: so that what walgate's client library stored is not
//! read with the same library.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How the test connects.
#[derive(Clone, Default)]
pub struct Login {
    /// Members of CONNECT: `{ "user": ..., "pass": ... }`.
    pub connect: Option<Value>,
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

trait Socket: Read + Write + Send {}
impl<T: Read + Write + Send> Socket for T {}

/// A connection.
pub struct Wire {
    socket: BufReader<Box<dyn Socket>>,
    next: u64,
    waiting: VecDeque<Message>,
}

/// A message that has arrived.
#[derive(Clone, Debug)]
pub struct Message {
    pub subject: String,
    pub headers: String,
    pub payload: Vec<u8>,
}

/// A message as a stream holds it.
#[derive(Clone, Debug)]
pub struct Stored {
    pub sequence: u64,
    pub subject: String,
    pub headers: Vec<(String, String)>,
    pub data: Vec<u8>,
}

impl Stored {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// The event's id.
    pub fn id(&self) -> &str {
        self.header("id").expect("a header `id`")
    }

    /// SHA-256 of the payload, in hex.
    pub fn hash(&self) -> String {
        Sha256::digest(&self.data).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl Wire {
    #[track_caller]
    pub fn connect(port: u16, login: &Login) -> Wire {
        let tcp = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("a connection to nats-server");
        tcp.set_read_timeout(Some(Duration::from_secs(20))).expect("a read timeout");
        // INFO comes in clear; nothing follows it until the client has spoken.
        let mut info = Vec::new();
        let mut byte = [0];
        while !info.ends_with(b"\r\n") {
            (&tcp).read_exact(&mut byte).expect("INFO");
            info.push(byte[0]);
        }
        assert!(info.starts_with(b"INFO "), "{}", String::from_utf8_lossy(&info));
        let socket: Box<dyn Socket> = match &login.tls {
            Some(config) => {
                let name = "localhost".try_into().expect("a name");
                let tls = rustls::ClientConnection::new(config.clone(), name).expect("a TLS client");
                Box::new(rustls::StreamOwned::new(tls, tcp))
            }
            None => Box::new(tcp),
        };
        let mut wire = Wire { socket: BufReader::new(socket), next: 0, waiting: VecDeque::new() };
        let mut connect =
            json!({ "verbose": false, "pedantic": false, "headers": true, "no_responders": true, "protocol": 1 });
        if let (Some(connect), Some(Value::Object(more))) = (connect.as_object_mut(), login.connect.clone()) {
            connect.extend(more);
        }
        wire.send(format!("CONNECT {connect}\r\nPING\r\nSUB _INBOX.e2e.* 1\r\n").as_bytes());
        wire
    }

    fn send(&mut self, bytes: &[u8]) {
        self.socket.get_mut().write_all(bytes).expect("writing to nats-server");
        self.socket.get_mut().flush().expect("writing to nats-server");
    }

    /// Receives what is published to the subjects from now on.
    pub fn subscribe(&mut self, subjects: &str) {
        self.send(format!("SUB {subjects} 2\r\nPING\r\n").as_bytes());
        self.line_with("PONG");
        self.line_with("PONG");
    }

    /// Messages of subscriptions until now.
    pub fn received(&mut self) -> Vec<Message> {
        self.send(b"PING\r\n");
        self.line_with("PONG");
        self.waiting.drain(..).collect()
    }

    fn line_with(&mut self, wanted: &str) {
        loop {
            let line = self.line();
            if let Some(message) = self.message(&line) {
                self.waiting.push_back(message);
            } else if line == wanted {
                return;
            }
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.socket.read_line(&mut line).expect("a line of nats-server");
        assert!(line.ends_with("\r\n"), "nats-server hung up after {line:?}");
        assert!(!line.starts_with("-ERR"), "{line}");
        line.trim_end().to_owned()
    }

    /// Reads the rest of a message, if the line begins one.
    fn message(&mut self, line: &str) -> Option<Message> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        let words: Vec<&str> = words.collect();
        let number = |word: &&str| word.parse::<usize>().expect("a number");
        let (headers, total) = match kind {
            "MSG" => (0, number(words.last()?)),
            "HMSG" => (number(words.get(words.len() - 2)?), number(words.last()?)),
            _ => return None,
        };
        let mut bytes = vec![0; total + 2];
        self.socket.read_exact(&mut bytes).expect("a message");
        bytes.truncate(total);
        let payload = bytes.split_off(headers);
        Some(Message { subject: words[0].to_owned(), headers: String::from_utf8_lossy(&bytes).into_owned(), payload })
    }

    /// A request and its answer.
    #[track_caller]
    pub fn request(&mut self, subject: &str, payload: &[u8]) -> Message {
        self.next += 1;
        let inbox = format!("_INBOX.e2e.{}", self.next);
        let mut bytes = format!("PUB {subject} {inbox} {}\r\n", payload.len()).into_bytes();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes);
        loop {
            let line = self.line();
            match self.message(&line) {
                Some(message) if message.subject == inbox => return message,
                Some(message) => self.waiting.push_back(message),
                None => {}
            }
        }
    }

    /// A request to JetStream's API that must succeed.
    #[track_caller]
    pub fn api(&mut self, what: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.request(&format!("$JS.API.{what}"), body.as_bytes());
        let answer: Value = serde_json::from_slice(&answer.payload)
            .unwrap_or_else(|_| panic!("{what} was answered with {:?}", answer.headers));
        assert!(answer["error"].is_null(), "{what}: {}", answer["error"]);
        answer
    }

    /// Everything that a stream holds, in its order.
    #[track_caller]
    pub fn stored(&mut self, stream: &str) -> Vec<Stored> {
        self.stored_from(stream, 0)
    }

    /// What a stream holds from this sequence on.
    #[track_caller]
    pub fn stored_from(&mut self, stream: &str, sequence: u64) -> Vec<Stored> {
        let state = self.api(&format!("STREAM.INFO.{stream}"), &Value::Null)["state"].take();
        if state["messages"] == 0 {
            return Vec::new();
        }
        let number = |name: &str| state[name].as_u64().expect("a number");
        (number("first_seq").max(sequence)..=number("last_seq"))
            .map(|sequence| {
                let answer = self.api(&format!("STREAM.MSG.GET.{stream}"), &json!({ "seq": sequence }));
                let message = &answer["message"];
                let bytes = |name: &str| STANDARD.decode(message[name].as_str().unwrap_or_default()).expect("base64");
                let block = String::from_utf8(bytes("hdrs")).expect("headers in UTF-8");
                let lines = block.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
                Stored {
                    sequence,
                    subject: message["subject"].as_str().expect("a subject").to_owned(),
                    headers: lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
                    data: bytes("data"),
                }
            })
            .collect()
    }
}
