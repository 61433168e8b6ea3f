//! Takes events from a queue of RabbitMQ. `DATABASE_URL`, `AMQP_URL` (`amqp://user:password@host:5672/vhost`), `AMQP_QUEUE`.
//!
//! It ends at the first error, and whatever runs it starts it again: what was not acknowledged goes back into the queue when
//! the connection breaks.

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt as _;
use lapin::{
    Connection, ConnectionProperties,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use walgate_example_consumers::{Inbox, variable};

/// Messages that the broker sends ahead of their acknowledgements.
const PREFETCH: u16 = 100;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut inbox = Inbox::from_env().await?;
    let connection = Connection::connect(&variable("AMQP_URL")?, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let (queue, tag) = (variable("AMQP_QUEUE")?.into(), "totals".into());
    // `no_ack` is off in the default options: a message is the queue's until it is acknowledged.
    let mut messages = channel.basic_consume(queue, tag, BasicConsumeOptions::default(), FieldTable::default()).await?;
    while let Some(message) = messages.try_next().await? {
        let event_id =
            message.properties.message_id().as_ref().context("a message without an id is none of walgate's")?;
        let event_type = message.properties.kind().as_ref().map(|kind| kind.as_str()).unwrap_or_default();
        inbox.take(event_id.as_str(), event_type).await?;
        message.ack(BasicAckOptions::default()).await?;
    }
    bail!("the broker has ended the subscription: is the queue still there?")
}
