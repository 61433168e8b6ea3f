//! How orders vanish: the order is saved, *then* its event is published. Whatever happens between the two (a crash, a
//! deploy, a network that hiccups) loses the event in silence: the order is there, the e-mail never comes.

use std::{sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::post};
use serde_json::json;
use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::NewOrder;

struct Service {
    db: Mutex<Client>,
    http: reqwest::Client,
    subscribers: Vec<String>,
}

/// The service over one connection to PostgreSQL, publishing to these URLs by itself.
///
/// # Errors
/// The HTTP client could not be made.
pub fn service(db: Client, subscribers: Vec<String>) -> Result<Router, reqwest::Error> {
    // An HTTP client wants a TLS library even for http:// URLs. A second call finds the first one's.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(1)).build()?;
    let service = Service { db: Mutex::new(db), http, subscribers };
    Ok(Router::new().route("/orders", post(create_order)).with_state(Arc::new(service)))
}

async fn create_order(
    State(service): State<Arc<Service>>,
    Json(order): Json<NewOrder>,
) -> Result<StatusCode, (StatusCode, String)> {
    let inserted = service
        .db
        .lock()
        .await
        .execute(
            "INSERT INTO orders (id, customer, item, quantity) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
            &[&order.id, &order.customer, &order.item, &order.quantity],
        )
        .await
        .map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, error.to_string()))?;
    if inserted == 1 {
        // The order is committed. From here on nothing remembers that its event is still owed.
        publish(&service, &order).await;
        return Ok(StatusCode::CREATED);
    }
    Ok(StatusCode::OK)
}

async fn publish(service: &Service, order: &NewOrder) {
    let event = json!({ "order_id": order.id, "customer": order.customer, "item": order.item,
                        "quantity": order.quantity });
    for url in &service.subscribers {
        // A failure is logged at best; the order stands, so nobody tries again.
        let request = service.http.post(url).header("webhook-id", order.id.to_string());
        let _ = request.body(event.to_string()).send().await;
    }
}
