//! Serves HTTP/1 within bounds: whoever reaches the port cannot make walgate hold memory or sockets.

use std::{pin::pin, sync::Arc, time::Duration};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::Writes;
use crate::pipeline::StatusBoard;

/// Connections at once; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// Bytes of a request's head.
const HEAD: usize = 16 << 10;
/// Time for a request's head, the wait for the next request of a connection included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Age at which a connection is asked to end, and then time for its last answer.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
const LAST_ANSWER: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted: with no file descriptor left, the next one fails as well.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, board: StatusBoard, writes: Writes) {
    let routes = super::routes(board, writes);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let routes = routes.clone();
                tokio::spawn(async move {
                    converse(stream, routes).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection to the admin interface");
                sleep(PAUSE).await;
            }
        }
    }
}

/// One connection. What goes wrong on it is its client's to see.
async fn converse(stream: TcpStream, routes: axum::Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    let mut connection = pin!(connection);
    if timeout(CONNECTION_AGE, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST_ANSWER, connection).await;
    }
}
