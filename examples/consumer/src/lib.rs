//! A webhook consumer: it verifies the signature, and does its work **once** per event however often the event comes.
//!
//! Delivery is at least once: after a crash, on either side, an event can come again. It carries the same id then, so
//! the consumer keeps that id *in the same transaction as the effect*: here, as the primary key of the effect's row.

mod signature;

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde::Deserialize;
use tokio_postgres::{Client, Statement};
use uuid::Uuid;

pub use signature::{Secret, SecretError};

struct Consumer {
    db: Client,
    effect: Statement,
    /// `None`: signatures are not checked, which only a network of trusted services may do.
    secret: Option<Secret>,
}

#[derive(Deserialize)]
struct OrderCreated {
    order_id: Uuid,
}

/// The table of a consumer's effects: one row for each event, with the number of times that it came.
#[must_use]
pub fn schema(table: &str) -> String {
    format!("CREATE TABLE {table} ( event_id TEXT PRIMARY KEY, order_id UUID NOT NULL, deliveries INT NOT NULL );")
}

/// The consumer whose effect is a row in `table`: an e-mail to send, a change of the inventory.
///
/// # Errors
/// The table does not exist, or the connection broke.
pub async fn service(db: Client, table: &str, secret: Option<Secret>) -> Result<Router, tokio_postgres::Error> {
    let effect = db
        .prepare(&format!(
            "INSERT INTO {table} (event_id, order_id, deliveries) VALUES ($1, $2, 1) \
             ON CONFLICT (event_id) DO UPDATE SET deliveries = {table}.deliveries + 1"
        ))
        .await?;
    let consumer = Consumer { db, effect, secret };
    Ok(Router::new().route("/webhook", post(receive)).with_state(Arc::new(consumer)))
}

async fn receive(State(consumer): State<Arc<Consumer>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let Some(event_id) = header("webhook-id") else { return StatusCode::BAD_REQUEST };
    if let Some(secret) = &consumer.secret {
        let signed = header("webhook-timestamp").zip(header("webhook-signature"));
        if !signed.is_some_and(|(at, signature)| secret.verify(event_id, at, &body, signature)) {
            return StatusCode::UNAUTHORIZED;
        }
    }
    let Ok(order) = serde_json::from_slice::<OrderCreated>(&body) else { return StatusCode::BAD_REQUEST };
    // The 2xx is the acknowledgement: it is given only when the effect is committed.
    match consumer.db.execute(&consumer.effect, &[&event_id, &order.order_id]).await {
        Ok(_) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}
