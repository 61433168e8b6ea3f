//! Takes events from a topic of Kafka. `DATABASE_URL`, `KAFKA_BROKERS` (`host:9092,host:9092`), `KAFKA_TOPIC`.
//!
//! It ends at the first error, and whatever runs it starts it again: it goes on where its group has committed.

use anyhow::{Context, Result};
use rdkafka::{
    ClientConfig, Message as _,
    consumer::{CommitMode, Consumer as _, StreamConsumer},
    message::{BorrowedMessage, Headers as _},
};
use walgate_example_consumers::{Inbox, variable};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut inbox = Inbox::from_env().await?;
    let consumer: StreamConsumer = ClientConfig::new()
        .set("bootstrap.servers", variable("KAFKA_BROKERS")?)
        .set("group.id", "totals")
        // A new group begins with the oldest event.
        .set("auto.offset.reset", "earliest")
        // By itself the library would commit what it has handed out, done or not.
        .set("enable.auto.commit", "false")
        // The partitions of a consumer that died go to another after this time.
        .set("session.timeout.ms", "6000")
        .create()?;
    consumer.subscribe(&[&variable("KAFKA_TOPIC")?])?;
    loop {
        let message = consumer.recv().await?;
        let event_id = header(&message, "id").context("a record without an id is none of walgate's")?;
        inbox.take(event_id, header(&message, "walgate-event-type").unwrap_or_default()).await?;
        // Not waited for: a commit that is lost only lets events come again.
        consumer.commit_message(&message, CommitMode::Async)?;
    }
}

fn header<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a str> {
    let header = message.headers()?.iter().find(|header| header.key == name)?;
    std::str::from_utf8(header.value?).ok()
}
