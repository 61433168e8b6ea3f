//! The two consumers, e-mail and inventory: `examples/consumer` behind a network that hiccups.

use axum::{
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tokio::{net::TcpListener, task::JoinHandle};
use walgate_example_consumer::{schema, service};

use super::{Failure, database::Database};

/// Of so many requests, one gets lost on the way.
const HICCUP_ONE_IN: u32 = 25;

/// A consumer that runs in this process until it is dropped.
pub struct Consumer {
    /// Its table of effects.
    pub table: &'static str,
    /// Where it takes webhooks.
    pub url: String,
    /// The secret that it verifies signatures with.
    pub secret: Option<String>,
    task: JoinHandle<()>,
}

/// What a consumer has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Orders that reached it.
    pub arrived: u64,
    /// Deliveries of an event that it had already: suppressed.
    pub repeats: u64,
}

impl Consumer {
    /// Makes its table and starts it.
    pub async fn start(database: &Database, table: &'static str, signed: bool) -> Result<Self, Failure> {
        database.run(&schema(table)).await?;
        let secret = signed.then(new_secret);
        let parsed = secret
            .as_ref()
            .map(|secret| secret.parse())
            .transpose()
            .map_err(|error: walgate_example_consumer::SecretError| error.to_string())?;
        let consumer = service(database.connect().await?, table, parsed).await.map_err(|error| error.to_string())?;
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let consumer = consumer.layer(middleware::from_fn(hiccup));
        let task = tokio::spawn(async move {
            // It ends with the demo.
            let _ = axum::serve(listener, consumer).await;
        });
        Ok(Consumer { table, url: format!("http://{address}/webhook"), secret, task })
    }

    /// What it has done so far.
    pub async fn tally(&self, database: &Database) -> Result<Tally, Failure> {
        let arrived = database.count(&format!("SELECT count(DISTINCT order_id) FROM {}", self.table)).await?;
        let repeats =
            database.count(&format!("SELECT coalesce(sum(deliveries - 1), 0)::bigint FROM {}", self.table)).await?;
        Ok(Tally { arrived, repeats })
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Half of the hiccups lose the request, the other half the response: the consumer has it, the sender does not know.
async fn hiccup(request: Request, next: Next) -> Response {
    match fastrand::u32(0..2 * HICCUP_ONE_IN) {
        0 => StatusCode::BAD_GATEWAY.into_response(),
        1 => {
            let _ = next.run(request).await;
            StatusCode::GATEWAY_TIMEOUT.into_response()
        }
        _ => next.run(request).await,
    }
}

/// 32 random bytes in the form of Standard Webhooks. Two version 4 UUIDs hold 244 random bits.
fn new_secret() -> String {
    let bytes = [*uuid::Uuid::new_v4().as_bytes(), *uuid::Uuid::new_v4().as_bytes()].concat();
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("whsec_");
    for group in bytes.chunks(3) {
        let word = group.iter().fold(0u32, |word, byte| (word << 8) | u32::from(*byte)) << (8 * (3 - group.len()));
        for index in 0..4 {
            let sextet = (word >> (18 - 6 * index)) & 63;
            text.push(if index <= group.len() { char::from(alphabet[sextet as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn secrets_are_such_as_the_consumer_takes() {
        let secret = super::new_secret();
        assert_eq!(secret.len(), "whsec_".len() + 44);
        assert!(secret.parse::<walgate_example_consumer::Secret>().is_ok(), "{secret}");
    }
}
