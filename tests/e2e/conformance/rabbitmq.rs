//! A RabbitMQ node with a user and a password, in both kinds of queue. What it stored is taken out over the wire by hand.

use serde_json::{Value, json};
use walgate_sink::conformance::{self, Able, Carries, Harness, Received, Refused, Unable, UnknownTarget};
use walgate_sink_rabbitmq::RabbitmqFactory;

use crate::support::amqp_wire::{Argument, Stored};
use crate::support::proxy::Proxy;
use crate::support::rabbitmq::Rabbit;

const USER: &str = "conformist";
const PASSWORD: &str = "rabbit-canary-3e90b1";
const WRONG: &str = "rabbit-canary-wrong-c4d2";
const QUEUE: &str = "events";
const MAX_MESSAGE: usize = 300_000;

struct Queue {
    proxy: Proxy,
    server: Rabbit,
    down: bool,
    /// A queue hands a message out once.
    read: Vec<Received>,
}

impl Queue {
    fn start(kind: &str) -> Queue {
        let server = Rabbit::with(&format!("max_message_size = {MAX_MESSAGE}\n"), "", |_| {});
        server.ctl(&["add_user", USER, PASSWORD]);
        server.ctl(&["set_permissions", "-p", "/", USER, "", ".*", ".*"]);
        server.wire("/").declare_queue(QUEUE, &[("x-queue-type", Argument::Text(kind))]);
        let mut queue = Queue { proxy: Proxy::to(server.port()), server, down: false, read: Vec::new() };
        // RabbitMQ 3.10 was seen not to bring a quorum queue back that was declared a moment before a SIGKILL.
        queue.server.stop();
        queue.start();
        queue
    }

    fn with(&self, password: &str) -> Value {
        let url = format!("amqp://127.0.0.1:{}", self.proxy.port());
        json!({ "url": url, "user": USER, "password": password, "routing_key": QUEUE })
    }
}

fn received(message: &Stored) -> Received {
    let own = message.headers.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("walgate-header-")?;
        Some((name.to_owned(), value.clone()))
    });
    Received {
        id: message.id().to_owned(),
        key: message.header("walgate-key").map(str::to_owned),
        headers: own.collect(),
        body: message.data.clone(),
    }
}

impl Harness for Queue {
    fn config(&self) -> Value {
        self.with(PASSWORD)
    }

    fn target(&self) -> Vec<(&'static str, String)> {
        vec![("routing_key", QUEUE.to_owned())]
    }

    fn read(&mut self) -> Vec<Received> {
        self.read.extend(self.server.wire("/").take_all(QUEUE).iter().map(received));
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
        self.server.wire("/").count(QUEUE);
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
        let named = "nowhere".to_owned();
        Ok(UnknownTarget { config: self.config(), target: vec![("routing_key", named.clone())], named })
    }

    fn carries(&self) -> Carries {
        Carries::default().with_sizes(200_000, Some(MAX_MESSAGE + 1))
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned(), WRONG.to_owned()]
    }

    fn printed(&mut self) -> Vec<String> {
        let config: walgate_sink_rabbitmq::RabbitmqConfig =
            walgate_sink::read_config(&self.config()).expect("a configuration");
        vec![format!("{config:?}")]
    }
}

#[test]
fn rabbitmq_conforms_with_a_quorum_queue() {
    conformance::run::<RabbitmqFactory>(&mut Queue::start("quorum")).assert_passed();
}

#[test]
fn rabbitmq_conforms_with_a_classic_queue() {
    conformance::run::<RabbitmqFactory>(&mut Queue::start("classic")).assert_passed();
}
