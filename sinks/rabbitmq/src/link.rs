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

/// What saying good-bye may take.
const CLOSE_TIME: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub(crate) struct Link {
    connector: Connector,
    closed: AtomicBool,
    present: Mutex<Option<Arc<Generation>>>,
}

impl Link {
    pub(crate) fn new(connector: Connector) -> Self {
        Link { connector, closed: AtomicBool::new(false), present: Mutex::new(None) }
    }

    /// The present generation; a new one where there is none, once the one before cannot write any more.
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
                *present = None;
            }
            let generation = Arc::new(self.connector.connect().await?);
            *present = Some(Arc::clone(&generation));
            Ok(generation)
        };
        timeout_at(deadline, Box::pin(work)).await.unwrap_or_else(|_| {
            let servers = self.connector.names();
            Err(SinkError::retryable(format!("no connection to {servers} within the time of an attempt")))
        })
    }

    /// Says good-bye and disconnects, for good.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let Some(generation) = self.present.lock().await.take() else { return };
        // A blocked connection writes nothing, not even that.
        if generation.is_sound() && generation.blocked().is_none() {
            let _ = timeout(CLOSE_TIME, generation.connection.close(200, "OK".into())).await;
        }
        generation.stop("the sink is closed");
    }
}
