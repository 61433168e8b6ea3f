//! Kafka with SCRAM, led through a proxy that its listener advertises. What it holds is read over the wire by hand.

use serde_json::{Value, json};
use walgate_sink::conformance::{self, Able, Carries, Harness, Received, Refused, Unable, UnknownTarget};
use walgate_sink_kafka::KafkaFactory;

use crate::support::kafka::{Kafka, Options};
use crate::support::kafka_records::Record;
use crate::support::kafka_wire::Offsets;

const PASSWORD: &str = "secret";
const WRONG: &str = "kafka-canary-wrong-c4d1";
const TOPIC: &str = "events.conformance";
const MAX_MESSAGE: usize = 300_000;

struct Broker {
    kafka: Kafka,
    down: bool,
    /// What was read so far: a topic only grows.
    read: Vec<Received>,
    offsets: Offsets,
}

impl Broker {
    fn start() -> Broker {
        let kafka = Kafka::with(Options::default());
        kafka.wire().create_topic(TOPIC, 1, &[("max.message.bytes", &MAX_MESSAGE.to_string())]);
        Broker { kafka, down: false, read: Vec::new(), offsets: Offsets::new() }
    }

    fn with(&self, password: &str) -> Value {
        let broker = format!("127.0.0.1:{}", self.kafka.sasl_proxy().port());
        let sasl = json!({ "mechanism": "scram-sha-512", "username": "walgate", "password": password });
        json!({ "brokers": [broker], "sasl": sasl })
    }
}

fn received(record: &Record) -> Received {
    let own = record.headers.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("walgate-header-")?.to_owned();
        Some((name, String::from_utf8(value.clone()?).expect("UTF-8")))
    });
    Received {
        id: record.id().to_owned(),
        key: record.key_text().map(str::to_owned),
        headers: own.collect(),
        body: record.value.clone().expect("no tombstone"),
    }
}

impl Harness for Broker {
    fn config(&self) -> Value {
        self.with(PASSWORD)
    }

    fn target(&self) -> Vec<(&'static str, String)> {
        vec![("topic", TOPIC.to_owned())]
    }

    fn read(&mut self) -> Vec<Received> {
        let records = self.kafka.wire().read_from(TOPIC, &mut self.offsets);
        self.read.extend(records.iter().map(received));
        self.read.clone()
    }

    fn heal(&mut self) {
        if self.down {
            self.start();
        }
        super::heal(self.kafka.sasl_proxy());
    }

    fn cut(&mut self) -> Able {
        super::cut(self.kafka.sasl_proxy())
    }

    fn stop(&mut self) -> Able {
        self.kafka.kill9();
        self.down = true;
        super::end(self.kafka.sasl_proxy())
    }

    fn start(&mut self) {
        self.kafka.start_again();
        self.kafka.sasl_proxy().accept();
        self.down = false;
    }

    fn freeze(&mut self) -> Able {
        super::freeze(self.kafka.sasl_proxy())
    }

    fn lose_answers(&mut self) -> Able {
        super::lose_answers(self.kafka.sasl_proxy())
    }

    fn refused(&mut self) -> Result<Refused, Unable> {
        let named = format!("127.0.0.1:{}", self.kafka.sasl_proxy().port());
        Ok(Refused { config: self.with(WRONG), named })
    }

    fn unknown_target(&mut self) -> Result<UnknownTarget, Unable> {
        let named = "nowhere.conformance".to_owned();
        Ok(UnknownTarget { config: self.config(), target: vec![("topic", named.clone())], named })
    }

    fn carries(&self) -> Carries {
        Carries::default().with_sizes(200_000, Some(MAX_MESSAGE))
    }

    fn secrets(&self) -> Vec<String> {
        // The broker's own password is a word that texts have for other reasons.
        vec![WRONG.to_owned()]
    }

    fn printed(&mut self) -> Vec<String> {
        let config: walgate_sink_kafka::KafkaConfig =
            walgate_sink::read_config(&self.with(WRONG)).expect("a configuration");
        vec![format!("{config:?}")]
    }
}

#[test]
fn kafka_conforms() {
    conformance::run::<KafkaFactory>(&mut Broker::start()).assert_passed();
}
