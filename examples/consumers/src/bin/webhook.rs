//! Takes events as webhooks, one in a request, on `/webhook`. `DATABASE_URL`, `LISTEN` (`127.0.0.1:8081`), `WEBHOOK_SECRET`
//! (`whsec_...`).
//!
//! It ends at the first error of its database, and whatever runs it starts it again: a request without an answer comes again.

use std::sync::Arc;

use anyhow::{Error, Result, anyhow};
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode},
    routing::post,
};
use tokio::sync::{Mutex, mpsc};
use walgate_example_consumer::Secret;
use walgate_example_consumers::{Inbox, variable};

/// As much as walgate's `limits.event`.
const LARGEST_BODY: usize = 16 << 20;

struct Consumer {
    inbox: Mutex<Inbox>,
    secret: Secret,
    failed: mpsc::Sender<Error>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let (inbox, secret) = (Mutex::new(Inbox::from_env().await?), variable("WEBHOOK_SECRET")?.parse()?);
    let (failed, mut failure) = mpsc::channel(1);
    let router = Router::new().route("/webhook", post(receive)).layer(DefaultBodyLimit::max(LARGEST_BODY));
    let router = router.with_state(Arc::new(Consumer { inbox, secret, failed }));
    let listener = tokio::net::TcpListener::bind(variable("LISTEN")?).await?;
    tokio::select! {
        ended = axum::serve(listener, router) => Ok(ended?),
        error = failure.recv() => Err(error.unwrap_or_else(|| anyhow!("nothing is served any more"))),
    }
}

async fn receive(State(consumer): State<Arc<Consumer>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let event_id = header("webhook-id");
    if !consumer.secret.verify(event_id, header("webhook-timestamp"), &body, header("webhook-signature")) {
        return StatusCode::UNAUTHORIZED;
    }
    match consumer.inbox.lock().await.take(event_id, header("walgate-event-type")).await {
        // The 2xx is the acknowledgement: it is given only when the effect is committed.
        Ok(()) => StatusCode::NO_CONTENT,
        Err(error) => {
            let _ = consumer.failed.send(error).await;
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}
