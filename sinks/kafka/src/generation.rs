//! One producer of librdkafka, from its making to its end.
//!
//! librdkafka reconnects by itself, and that is safe: an idempotent producer numbers what it sends, so that the broker
//! takes each record once and in order, however often it comes. A generation ends when that is over: a fatal error. Then
//! nothing more is sent over it, what it holds is given back as unknown, and the next one begins once it has gone.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, BaseRecord, Producer as _, PurgeConfig},
};
use tokio::sync::{oneshot, watch};

use crate::{
    context::{Context, Surroundings},
    flights::Flights,
    message::Record,
    notices::Notices,
    statistics::Statistics,
};

/// How long the thread waits for events before it looks whether it is to end.
const POLL: Duration = Duration::from_millis(20);
/// What the reports on given-up records may take.
const LAST_REPORTS: Duration = Duration::from_secs(1);

type Producer = BaseProducer<Context>;
type Slot = Mutex<Option<Arc<Producer>>>;

/// See the module.
pub(crate) struct Generation {
    producer: Arc<Slot>,
    stopping: Arc<AtomicBool>,
    notices: watch::Receiver<Notices>,
    /// Its other end goes when everything else has gone.
    gone: watch::Receiver<()>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("stopping", &self.stopping).finish_non_exhaustive()
    }
}

impl Generation {
    /// Makes a producer, on a thread of its own. It connects by itself when there is something to send.
    pub(crate) async fn start(
        config: ClientConfig,
        surroundings: &Surroundings,
        flights: &Arc<Flights>,
        statistics: &Arc<Statistics>,
    ) -> Result<Generation, KafkaError> {
        let (context, notices) = Context::sending(surroundings, flights, statistics);
        let (ready, made) = oneshot::channel();
        let (going, gone) = watch::channel(());
        let producer = Arc::new(Slot::default());
        let stopping = Arc::new(AtomicBool::new(false));
        let (slot, stop, flights) = (Arc::clone(&producer), Arc::clone(&stopping), Arc::clone(flights));
        let failed = |error: String| KafkaError::ClientCreation(error);
        std::thread::Builder::new()
            .name("walgate-kafka".to_owned())
            .spawn(move || {
                match config.create_with_context::<_, Producer>(context).map(Arc::new) {
                    Ok(producer) => {
                        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&producer));
                        // Nobody waits for it any more: it ends at once.
                        if ready.send(Ok(())).is_err() {
                            stop.store(true, Ordering::Release);
                        }
                        live(producer, &slot, &stop, &flights);
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
                drop(going);
            })
            .map_err(|error| failed(error.to_string()))?;
        let generation = Generation { producer, stopping, notices, gone };
        made.await.map_err(|_| failed("its thread ended by itself".to_owned()))??;
        Ok(generation)
    }

    /// Queues a record under its sequence number.
    pub(crate) fn queue(&self, sequence: u64, record: &Record) -> Result<(), RDKafkaErrorCode> {
        let slot = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(producer) = slot.as_ref() else { return Err(RDKafkaErrorCode::PurgeQueue) };
        let Ok(opaque) = usize::try_from(sequence) else { return Err(RDKafkaErrorCode::Fail) };
        let mut queued = BaseRecord::<str, [u8], usize>::with_opaque_to(&record.topic, opaque)
            .timestamp(record.timestamp)
            .headers(record.headers());
        if let Some(key) = &record.key {
            queued = queued.key(key);
        }
        if let Some(value) = &record.value {
            queued = queued.payload(value);
        }
        producer.send(queued).map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail))
    }

    /// The fatal error, if there was one.
    pub(crate) fn fatal(&self) -> Option<(RDKafkaErrorCode, String)> {
        let slot = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref()?.client().fatal_error()
    }

    /// Ends it. Returns at once; may be called again.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    /// Waits until nothing is left of it. For one that was stopped.
    pub(crate) async fn gone(&self) {
        let mut gone = self.gone.clone();
        while gone.changed().await.is_ok() {}
    }

    /// Whether it can be used.
    pub(crate) fn is_sound(&self) -> bool {
        !self.stopping.load(Ordering::Acquire) && self.notices.borrow().broken.is_none()
    }

    /// What librdkafka has said, as it comes.
    pub(crate) fn notices(&self) -> watch::Receiver<Notices> {
        self.notices.clone()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The life of a generation's thread, which alone ends the producer: that can take a while.
fn live(producer: Arc<Producer>, slot: &Slot, stop: &AtomicBool, flights: &Flights) {
    while !stop.load(Ordering::Acquire) {
        producer.poll(POLL);
        if let Some((_, said)) = producer.client().fatal_error() {
            producer.context().ended(&said);
        }
    }
    // From now on nothing can be queued; and nobody else has the producer.
    drop(slot.lock().unwrap_or_else(PoisonError::into_inner).take());
    // What was not sent is given up, and so is what was sent and not answered: each with a report.
    producer.purge(PurgeConfig::default().queue().inflight());
    let deadline = Instant::now() + LAST_REPORTS;
    while producer.in_flight_count() > 0 && Instant::now() < deadline {
        producer.poll(Duration::from_millis(10));
    }
    drop(producer);
    flights.lost();
}
