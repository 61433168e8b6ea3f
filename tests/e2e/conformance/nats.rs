//! nats-server with a user and a password. What it stored is read over the wire by hand.

use serde_json::{Value, json};
use walgate_sink::conformance::{self, Able, Carries, Harness, Received, Refused, Unable, UnknownTarget};
use walgate_sink_nats::NatsFactory;

use crate::support::nats::NatsServer;
use crate::support::nats_wire::Login;
use crate::support::proxy::Proxy;

const PASSWORD: &str = "nats-canary-5d1c0f";
const WRONG: &str = "nats-canary-wrong-77ab";
const MAX_PAYLOAD: usize = 300_000;

struct Nats {
    proxy: Proxy,
    server: NatsServer,
    down: bool,
    /// What was read so far: a stream only grows.
    read: Vec<Received>,
    next: u64,
}

impl Nats {
    fn start() -> Nats {
        let lines = format!(
            "authorization {{ users: [ {{ user: walgate, password: {PASSWORD:?} }} ] }}\nmax_payload: {MAX_PAYLOAD}\n"
        );
        let login = Login { connect: Some(json!({ "user": "walgate", "pass": PASSWORD })), tls: None };
        let server = NatsServer::with(&lines, login);
        // A window so short that repeats are stored, and seen.
        server.add_stream("EVENTS", &["events.>"], json!({ "duplicate_window": 100_000_000 }));
        Nats { proxy: Proxy::to(server.port()), server, down: false, read: Vec::new(), next: 0 }
    }

    fn with(&self, password: &str) -> Value {
        let server = format!("127.0.0.1:{}", self.proxy.port());
        json!({ "servers": [server], "user": "walgate", "password": password, "no_stream": "reject" })
    }
}

impl Harness for Nats {
    fn config(&self) -> Value {
        self.with(PASSWORD)
    }

    fn target(&self) -> Vec<(&'static str, String)> {
        vec![("subject", "events.conformance".to_owned())]
    }

    fn read(&mut self) -> Vec<Received> {
        for message in self.server.wire().stored_from("EVENTS", self.next) {
            self.next = message.sequence + 1;
            let headers = message.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            self.read.push(Received {
                id: super::decoded(message.id()),
                key: message.header("walgate-key").map(super::decoded),
                headers: super::own(headers),
                body: message.data.clone(),
            });
        }
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

    fn stop(&mut self) -> Able {
        self.server.kill9();
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
        Ok(Refused { config: self.with(WRONG), named: format!("127.0.0.1:{}", self.proxy.port()) })
    }

    fn unknown_target(&mut self) -> Result<UnknownTarget, Unable> {
        let named = "nowhere.conformance".to_owned();
        Ok(UnknownTarget { config: self.config(), target: vec![("subject", named.clone())], named })
    }

    fn carries(&self) -> Carries {
        Carries::default().with_sizes(200_000, Some(MAX_PAYLOAD))
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned(), WRONG.to_owned()]
    }

    fn printed(&mut self) -> Vec<String> {
        let config: walgate_sink_nats::NatsConfig = walgate_sink::read_config(&self.config()).expect("a configuration");
        vec![format!("{config:?}")]
    }
}

#[test]
fn nats_conforms() {
    conformance::run::<NatsFactory>(&mut Nats::start()).assert_passed();
}
