//! The present generation: one at a time, made when it is needed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rdkafka::{ClientConfig, error::KafkaError};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout_at},
};
use walgate_sink::{SinkError, text};

use crate::{context::Surroundings, flights::Flights, generation::Generation, properties, statistics::Statistics};

/// What sending the rest may take when the sink is closed.
const CLOSE_TIME: Duration = Duration::from_secs(3);
/// Between two looks at whether the rest is sent.
const CLOSE_STEP: Duration = Duration::from_millis(10);

/// See the module.
pub(crate) struct Link {
    client: ClientConfig,
    surroundings: Surroundings,
    pub(crate) flights: Arc<Flights>,
    pub(crate) statistics: Arc<Statistics>,
    place: String,
    closed: AtomicBool,
    present: Mutex<Option<Arc<Generation>>>,
}

impl std::fmt::Debug for Link {
    // The client's settings hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(client: ClientConfig, surroundings: Surroundings, place: String) -> Self {
        Link {
            client,
            surroundings,
            flights: Arc::default(),
            statistics: Arc::default(),
            place,
            closed: AtomicBool::new(false),
            present: Mutex::new(None),
        }
    }

    /// The present generation; a new one where there is none, once the one before has gone.
    pub(crate) async fn generation(&self, deadline: Instant) -> Result<Arc<Generation>, SinkError> {
        let work = async {
            let mut present = self.present.lock().await;
            if self.is_closed() {
                return Err(SinkError::retryable("the sink is closed"));
            }
            if let Some(generation) = present.as_ref() {
                if generation.is_sound() {
                    return Ok(Arc::clone(generation));
                }
                generation.stop();
                generation.gone().await;
                *present = None;
            }
            let started =
                Generation::start(self.client.clone(), &self.surroundings, &self.flights, &self.statistics).await;
            let generation = Arc::new(started.map_err(|error| self.unusable(&error))?);
            *present = Some(Arc::clone(&generation));
            Ok(generation)
        };
        timeout_at(deadline, Box::pin(work)).await.unwrap_or_else(|_| {
            Err(SinkError::retryable(format!("no producer for {} within the time of an attempt", self.place)))
        })
    }

    /// What librdkafka has against its settings: a file that it cannot read, say. Its text can hold a setting's value.
    fn unusable(&self, error: &KafkaError) -> SinkError {
        let why = properties::unusable(&self.client, error);
        let why = text::excerpt(why.as_bytes(), &self.surroundings.secrets);
        SinkError::fatal(format!(
            "no producer for {} can be made: {why}: check `tls`, `sasl` and `properties`",
            self.place
        ))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Lets what was queued go out, and ends the producer, for good.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let Some(generation) = self.present.lock().await.take() else { return };
        let deadline = Instant::now() + CLOSE_TIME;
        while self.flights.held() > 0 && generation.is_sound() && Instant::now() < deadline {
            sleep(CLOSE_STEP).await;
        }
        generation.stop();
        let _ = timeout_at(deadline + CLOSE_TIME, generation.gone()).await;
    }
}
