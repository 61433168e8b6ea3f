//! The HTTP interface: `/livez`, `/readyz`, `/status`, `/metrics`, which read only; and `POST /reload`, for whoever knows
//! `admin.token`. No secrets, no payloads.

mod serve;
mod writes;

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use tokio::net::TcpListener;

pub use self::{
    serve::serve,
    writes::{Wish, Writes},
};
use crate::{metrics::Format, pipeline::StatusBoard};

/// Binds the address of `admin.listen`.
///
/// # Errors
/// The address is in use or not this machine's: a sentence that says so.
pub async fn bind(host: &str, port: u16) -> Result<TcpListener, String> {
    TcpListener::bind((host, port)).await.map_err(|error| {
        format!(
            "cannot listen on {host}:{port} for `admin.listen`: {error}. Is another walgate running here? \
             Set `admin.listen` to another port, or to `off`"
        )
    })
}

fn routes(board: StatusBoard, writes: Writes) -> Router {
    Router::new().route("/reload", post(writes::reload)).with_state(writes).merge(reads(board))
}

fn reads(board: StatusBoard) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/status", get(async |State(board): State<StatusBoard>| Json(board.status())))
        .route("/metrics", get(metrics))
        .with_state(board)
}

async fn ready(State(board): State<StatusBoard>) -> impl IntoResponse {
    let reasons = board.status().not_ready;
    if reasons.is_empty() {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", reasons.join("\n")))
    }
}

/// OpenMetrics for who asks for it, as Prometheus does; else the format that everything reads.
async fn metrics(State(board): State<StatusBoard>, headers: HeaderMap) -> impl IntoResponse {
    let mut accepted = headers.get_all(header::ACCEPT).iter().filter_map(|accept| accept.to_str().ok());
    let format = if accepted.any(|accept| accept.contains("application/openmetrics-text")) {
        Format::OpenMetrics
    } else {
        Format::Classic
    };
    ([(header::CONTENT_TYPE, format.content_type())], board.metrics(format))
}
