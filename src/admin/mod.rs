//! The HTTP interface: `/livez`, `/readyz`, `/status`, `/metrics`. Read only, no secrets, no payloads.

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::pipeline::StatusBoard;

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

/// Serves until the process ends.
///
/// # Errors
/// The listener broke.
pub async fn serve(listener: TcpListener, board: StatusBoard) -> std::io::Result<()> {
    axum::serve(listener, routes(board)).await
}

fn routes(board: StatusBoard) -> Router {
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

async fn metrics(State(board): State<StatusBoard>) -> impl IntoResponse {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], board.metrics())
}
