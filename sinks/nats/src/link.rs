//! The present connection: one at a time, made when it is needed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Mutex,
    time::{Instant, timeout, timeout_at},
};
use walgate_sink::SinkError;

use crate::{connector::Connector, generation::Generation};

/// What a last flush may take.
const FLUSH_TIME: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    connector: Connector,
    closed: AtomicBool,
    present: Mutex<Option<Arc<Generation>>>,
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(connector: Connector) -> Self {
        Link { connector, closed: AtomicBool::new(false), present: Mutex::new(None) }
    }

    /// The present generation; a new one where there is none, once nothing is left of the one before.
    pub(crate) async fn generation(&self, deadline: Instant) -> Result<Arc<Generation>, SinkError> {
        let work = async {
            let mut present = self.present.lock().await;
            if self.closed.load(Ordering::SeqCst) {
                return Err(SinkError::retryable("the sink is closed"));
            }
            if let Some(generation) = present.as_ref() {
                if generation.is_sound() {
                    return Ok(Arc::clone(generation));
                }
                generation.stop("the connection broke");
                generation.gone().await;
                *present = None;
            }
            let generation = Arc::new(self.connector.connect().await?);
            *present = Some(Arc::clone(&generation));
            Ok(generation)
        };
        timeout_at(deadline, work).await.unwrap_or_else(|_| {
            let servers = self.connector.names();
            Err(SinkError::retryable(format!("no connection to {servers} within the time of an attempt")))
        })
    }

    /// Flushes and disconnects, for good.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let Some(generation) = self.present.lock().await.take() else { return };
        if generation.is_sound() {
            let _ = timeout(FLUSH_TIME, generation.client.flush()).await;
        }
        generation.stop("the sink is closed");
        generation.gone().await;
    }
}
