//! The two consumers of Kafka: in Rust, and in Python with SQLite.

use std::path::Path;
use std::process::Command;

use super::ledger::Totals;
use super::sqlite::{self, File};
use super::{once_each, program};
use crate::rig::Rig;
use crate::support::kafka::Kafka;

fn sink(server: &Kafka, topic: &str) -> String {
    format!("kafka: {{ brokers: [\"127.0.0.1:{}\"], topic: {topic} }}", server.port())
}

fn reading(mut command: Command, server: &Kafka, topic: &str) -> Command {
    command.env("KAFKA_BROKERS", format!("127.0.0.1:{}", server.port())).env("KAFKA_TOPIC", topic);
    command
}

#[test]
fn kafka_in_rust_does_its_work_once_per_event() {
    let (rig, server) = (Rig::new(), Kafka::shared());
    let topic = server.topic(3);
    let (program, totals) = (program("consume-kafka"), Totals::new(&rig));
    once_each(&rig, &sink(server, &topic), &totals, || {
        let mut command = reading(Command::new(&program), server, &topic);
        command.env("DATABASE_URL", totals.url());
        command
    });
}

#[test]
fn kafka_in_python_does_its_work_once_per_event() {
    let (rig, server, file) = (Rig::new(), Kafka::shared(), File::new());
    // One partition: when the newest event is done, no repeat is to come.
    let topic = server.topic(1);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/consumers/python/kafka_inbox.py");
    once_each(&rig, &sink(server, &topic), &file, || {
        let mut command = reading(Command::new(sqlite::python()), server, &topic);
        command.arg(&script).env("INBOX_FILE", file.path());
        command
    });
}
