//! A server that a test plays by hand: connection by connection, message by message.

use std::{collections::HashMap, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// Where a test fails instead of waiting for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the sink connects.
pub(super) struct Server {
    listener: TcpListener,
    pub(super) max_payload: usize,
}

/// One connection.
pub(super) struct Peer {
    stream: BufReader<TcpStream>,
    /// Subscriptions: subject to number.
    subscriptions: HashMap<String, String>,
}

/// A message that was published.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) subject: String,
    pub(super) reply: String,
    pub(super) headers: String,
}

impl Publish {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Server {
    pub(super) async fn start() -> Server {
        Server { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), max_payload: 1 << 20 }
    }

    pub(super) fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// The next connection, up to its CONNECT and PING, which is answered by `greeting`.
    async fn greet(&self, greeting: &str) -> Peer {
        let (stream, _) = timeout(PATIENCE, self.listener.accept()).await.expect("a connection").unwrap();
        let mut peer = Peer { stream: BufReader::new(stream), subscriptions: HashMap::new() };
        let info = json!({
            "server_id": "S", "server_name": "s", "version": "2.10.0", "host": "127.0.0.1", "port": 4222,
            "max_payload": self.max_payload, "headers": true, "jetstream": true, "proto": 1, "go": "", "client_id": 1,
            "nonce": "bm9uY2U", "auth_required": true,
        });
        peer.write(format!("INFO {info}\r\n").as_bytes()).await;
        assert!(peer.line().await.unwrap().starts_with("CONNECT "));
        assert_eq!(peer.line().await.as_deref(), Some("PING"));
        peer.write(greeting.as_bytes()).await;
        peer
    }

    pub(super) async fn accept(&self) -> Peer {
        self.greet("PONG\r\n").await
    }

    /// Refuses the next connection.
    pub(super) async fn refuse(&self, error: &str) {
        drop(self.greet(&format!("-ERR '{error}'\r\n")).await);
    }
}

impl Peer {
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        // A reset is an end too.
        self.stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        Some(line.trim_end().to_owned())
    }

    /// The next message; questions about streams are answered on the way. `None`: the connection has ended.
    pub(super) async fn next(&mut self) -> Option<Publish> {
        loop {
            let line = self.line().await?;
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["PING"] => self.write(b"PONG\r\n").await,
                ["UNSUB", _] => {}
                ["SUB", subject, sid] => drop(self.subscriptions.insert(subject.to_owned(), sid.to_owned())),
                ["HPUB", subject, reply, headers, total] => {
                    let (headers, total): (usize, usize) = (headers.parse().unwrap(), total.parse().unwrap());
                    let mut bytes = vec![0; total + 2];
                    self.stream.read_exact(&mut bytes).await.ok()?;
                    let headers = String::from_utf8(bytes[..headers].to_vec()).unwrap();
                    return Some(Publish { subject: subject.to_owned(), reply: reply.to_owned(), headers });
                }
                ["PUB", question, reply, total] => {
                    let mut bytes = vec![0; total.parse::<usize>().unwrap() + 2];
                    self.stream.read_exact(&mut bytes).await.ok()?;
                    let answer = match question.strip_prefix("$JS.API.STREAM.").unwrap() {
                        "NAMES" => json!({ "streams": ["ORDERS"], "total": 1, "offset": 0, "limit": 1024 }),
                        "INFO.ORDERS" => json!({ "config": {
                            "name": "ORDERS", "storage": "file", "num_replicas": 3, "discard": "new",
                            "retention": "limits", "duplicate_window": 600_000_000_000_u64,
                        } }),
                        other => panic!("{other} was asked"),
                    };
                    self.answer(reply, &answer).await;
                }
                _ => panic!("{line}"),
            }
        }
    }

    /// As many messages.
    pub(super) async fn take(&mut self, count: usize) -> Vec<Publish> {
        let mut messages = Vec::new();
        for _ in 0..count {
            messages.push(self.next().await.unwrap());
        }
        messages
    }

    fn sid(&self, reply: &str) -> String {
        let fits = |subject: &str| reply.starts_with(subject.trim_end_matches(['*', '>']));
        self.subscriptions.iter().find(|(subject, _)| fits(subject)).unwrap().1.clone()
    }

    pub(super) async fn answer(&mut self, reply: &str, answer: &Value) {
        let (sid, answer) = (self.sid(reply), answer.to_string());
        self.write(format!("MSG {reply} {sid} {}\r\n{answer}\r\n", answer.len()).as_bytes()).await;
    }

    pub(super) async fn acknowledge(&mut self, message: &Publish) {
        self.answer(&message.reply, &json!({ "stream": "ORDERS", "seq": 1 })).await;
    }

    /// 503.
    pub(super) async fn no_responders(&mut self, message: &Publish) {
        let sid = self.sid(&message.reply);
        let block = "NATS/1.0 503\r\n\r\n";
        let reply = &message.reply;
        self.write(format!("HMSG {reply} {sid} {0} {0}\r\n{block}\r\n", block.len()).as_bytes()).await;
    }

    /// Whether the other side has ended it, with no message before that.
    pub(super) async fn has_ended(&mut self) -> bool {
        timeout(PATIENCE, self.next()).await.expect("the end of the connection").is_none()
    }
}
