//! ministack with one access key, ElasticMQ, which knows none, and a FIFO queue. What it holds is read over HTTP by hand.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use walgate_sink::conformance::{self, Able, Carries, Harness, Received, Refused, Unable, UnknownTarget};
use walgate_sink_sqs::SqsFactory;

use crate::support::proxy::Proxy;
use crate::support::sqs::{KEY, Options, SECRET, Server, Stored};

const WRONG: &str = "AKIACANARYWRONG00001";
const QUEUE: &str = "events.fifo";
const MAX_MESSAGE: usize = 262_144;

struct Sqs {
    proxy: Proxy,
    server: Server,
    down: bool,
    /// Whether it looks at credentials.
    asks: bool,
    /// Bytes of a message that it refuses.
    too_large: usize,
    /// A queue hands a message out once.
    read: Vec<Received>,
}

impl Sqs {
    fn ministack() -> Sqs {
        // A window so short that repeats are stored, and seen.
        let dedup_window = Some(Duration::from_millis(10));
        let server = Server::with(Options { access_key_id: Some(KEY), dedup_window });
        server.create(QUEUE, &[("MaximumMessageSize", &MAX_MESSAGE.to_string())]);
        Sqs::of(server, true, MAX_MESSAGE)
    }

    /// It keeps a limit of a queue's own, and does not hold to it.
    fn elasticmq() -> Sqs {
        let server = Server::lasting_elasticmq();
        server.create(QUEUE, &[]);
        Sqs::of(server, false, (1 << 20) + 1)
    }

    fn of(server: Server, asks: bool, too_large: usize) -> Sqs {
        Sqs { proxy: Proxy::to(server.port()), server, down: false, asks, too_large, read: Vec::new() }
    }

    fn with(&self, id: &str) -> Value {
        json!({
            "endpoint": format!("http://127.0.0.1:{}", self.proxy.port()),
            "region": "us-east-1",
            "access_key_id": id,
            "secret_access_key": SECRET,
            "forward_headers": ["tenant", "note"],
        })
    }
}

fn received(message: &Stored) -> Received {
    let headers = ["tenant", "note"].into_iter();
    Received {
        id: super::decoded(message.id()),
        key: message.attribute("walgate-key").map(super::decoded),
        headers: headers.filter_map(|name| Some((name.to_owned(), super::decoded(message.attribute(name)?)))).collect(),
        body: match message.attribute("walgate-encoding") {
            None => message.body.clone().into_bytes(),
            Some("base64") => STANDARD.decode(&message.body).expect("base64"),
            Some("empty") => Vec::new(),
            Some(other) => panic!("an unknown encoding: {other}"),
        },
    }
}

impl Harness for Sqs {
    fn config(&self) -> Value {
        self.with(KEY)
    }

    fn target(&self) -> Vec<(&'static str, String)> {
        vec![("queue", QUEUE.to_owned())]
    }

    fn read(&mut self) -> Vec<Received> {
        self.read.extend(self.server.take_all(QUEUE).iter().map(received));
        self.read.clone()
    }

    fn heal(&mut self) {
        if self.down {
            self.start();
        }
        super::heal(&self.proxy);
    }

    fn cut(&mut self) -> Able {
        super::cut(&self.proxy)
    }

    /// Not as a crash would: no server of this kind keeps over SIGKILL all that it has acknowledged.
    fn stop(&mut self) -> Able {
        self.server.stop();
        self.down = true;
        super::end(&self.proxy)
    }

    fn start(&mut self) {
        self.server.start_again();
        self.proxy.accept();
        self.down = false;
    }

    fn freeze(&mut self) -> Able {
        super::freeze(&self.proxy)
    }

    fn lose_answers(&mut self) -> Able {
        super::lose_answers(&self.proxy)
    }

    fn refused(&mut self) -> Result<Refused, Unable> {
        if !self.asks {
            return Err(Unable("it does not look at credentials"));
        }
        Ok(Refused { config: self.with(WRONG), named: format!("127.0.0.1:{}", self.proxy.port()) })
    }

    fn unknown_target(&mut self) -> Result<UnknownTarget, Unable> {
        let named = "nowhere.fifo".to_owned();
        Ok(UnknownTarget { config: self.config(), target: vec![("queue", named.clone())], named })
    }

    fn carries(&self) -> Carries {
        // Each key is a message group of its own.
        Carries::default().with_batch_order(false).with_sizes(190_000, Some(self.too_large))
    }

    fn secrets(&self) -> Vec<String> {
        [KEY, SECRET, WRONG].map(str::to_owned).into()
    }

    fn printed(&mut self) -> Vec<String> {
        let config: walgate_sink_sqs::SqsConfig = walgate_sink::read_config(&self.config()).expect("a configuration");
        vec![format!("{config:?}")]
    }
}

#[test]
fn sqs_conforms() {
    conformance::run::<SqsFactory>(&mut Sqs::ministack()).assert_passed();
}

#[test]
fn sqs_conforms_on_elasticmq() {
    conformance::run::<SqsFactory>(&mut Sqs::elasticmq()).assert_passed();
}
