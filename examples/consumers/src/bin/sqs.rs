//! Takes events from a queue of Amazon SQS. `DATABASE_URL`, `SQS_QUEUE_URL`; region and credentials where the AWS SDK finds
//! them (`AWS_REGION`, `AWS_ACCESS_KEY_ID`, a profile, a role), and `AWS_ENDPOINT_URL_SQS` for what only speaks like SQS.
//!
//! It ends at the first error, and whatever runs it starts it again: what was not deleted comes again after the queue's
//! visibility timeout, which must be longer than the work for ten messages.

use anyhow::{Context, Result};
use aws_config::BehaviorVersion;
use aws_sdk_sqs::{Client, types::Message};
use aws_smithy_http_client::{
    Builder,
    tls::{Provider, rustls_provider::CryptoMode},
};
use walgate_example_consumers::{Inbox, variable};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut inbox = Inbox::from_env().await?;
    let http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let client = Client::new(&aws_config::defaults(BehaviorVersion::latest()).http_client(http).load().await);
    let queue = variable("SQS_QUEUE_URL")?;
    loop {
        // Waits for up to 20 s, the longest that SQS allows, until there is something.
        let receive = client.receive_message().queue_url(&queue).wait_time_seconds(20).max_number_of_messages(10);
        for message in receive.message_attribute_names("All").send().await?.messages() {
            let event_id = attribute(message, "id").context("a message without an id is none of walgate's")?;
            inbox.take(event_id, attribute(message, "walgate-event-type").unwrap_or_default()).await?;
            let receipt = message.receipt_handle().context("a message without a receipt handle")?;
            client.delete_message().queue_url(&queue).receipt_handle(receipt).send().await?;
        }
    }
}

fn attribute<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.message_attributes()?.get(name)?.string_value()
}
