//! Takes events from a JetStream stream. `DATABASE_URL`, `NATS_URL`, `NATS_STREAM`.
//!
//! It ends at the first error, and whatever runs it starts it again: what was not acknowledged comes again.

use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream::{self, consumer::pull};
use futures_util::TryStreamExt as _;
use walgate_example_consumers::{Inbox, variable};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut inbox = Inbox::from_env().await?;
    let client = async_nats::connect(variable("NATS_URL")?).await?;
    let stream = jetstream::new(client).get_stream(variable("NATS_STREAM")?).await?;
    // What a consumer that died had taken comes again after `ack_wait`: longer than the work for what it holds.
    let ack_wait = Duration::from_secs(5);
    let durable = pull::Config { durable_name: Some("totals".to_owned()), ack_wait, ..Default::default() };
    let mut messages = stream.get_or_create_consumer("totals", durable).await?.messages().await?;
    while let Some(message) = messages.try_next().await? {
        let header = |name: &str| message.headers.as_ref()?.get(name).map(|value| value.as_str());
        let event_id = header("id").context("a message without an id is none of walgate's")?;
        inbox.take(event_id, header("walgate-event-type").unwrap_or_default()).await?;
        message.ack().await.map_err(anyhow::Error::from_boxed)?;
    }
    Ok(())
}
