//! An order service as a reader would write it: `POST /orders` saves the order and, **in the same transaction**, the
//! event that says so. Nothing is published here: walgate reads the event from PostgreSQL's write-ahead log.
//!
//! [`dual_write`] is the same service as it was before: it saves the order and then publishes by itself.

pub mod dual_write;

use std::sync::Arc;

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Mutex;
use tokio_postgres::Client;
use uuid::Uuid;

/// The tables of the service. The outbox is a table like any other.
pub const SCHEMA: &str = "
    CREATE TABLE orders (
        id UUID PRIMARY KEY, customer TEXT NOT NULL, item TEXT NOT NULL, quantity INT NOT NULL );
    CREATE TABLE outbox_events (
        id UUID PRIMARY KEY DEFAULT gen_random_uuid(), event_type TEXT NOT NULL, payload JSONB NOT NULL,
        created_at TIMESTAMPTZ DEFAULT now(), published BOOLEAN DEFAULT false );";

/// What a customer sends.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct NewOrder {
    /// Chosen by the customer, so that a request that is sent twice makes one order.
    pub id: Uuid,
    /// Who orders.
    pub customer: String,
    /// What.
    pub item: String,
    /// How many.
    pub quantity: i32,
}

/// The service over one connection to PostgreSQL.
pub fn service(db: Client) -> Router {
    Router::new().route("/orders", post(create_order)).with_state(Arc::new(Mutex::new(db)))
}

async fn create_order(
    State(db): State<Arc<Mutex<Client>>>,
    Json(order): Json<NewOrder>,
) -> Result<StatusCode, (StatusCode, String)> {
    match save(&mut *db.lock().await, &order).await {
        Ok(true) => Ok(StatusCode::CREATED),
        Ok(false) => Ok(StatusCode::OK), // A repeated request: the order and its event are there already.
        Err(error) => Err((StatusCode::SERVICE_UNAVAILABLE, error.to_string())),
    }
}

/// The order and its event: both or neither, whatever crashes when.
async fn save(db: &mut Client, order: &NewOrder) -> Result<bool, tokio_postgres::Error> {
    let transaction = db.transaction().await?;
    let inserted = transaction
        .execute(
            "INSERT INTO orders (id, customer, item, quantity) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
            &[&order.id, &order.customer, &order.item, &order.quantity],
        )
        .await?;
    if inserted == 1 {
        let payload = json!({ "order_id": order.id, "customer": order.customer, "item": order.item,
                              "quantity": order.quantity });
        transaction
            .execute("INSERT INTO outbox_events (event_type, payload) VALUES ('order.created', $1)", &[&payload])
            .await?;
    }
    transaction.commit().await?;
    Ok(inserted == 1)
}
