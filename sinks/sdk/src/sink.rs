//! The contract that every sink keeps.

use std::{future::Future, pin::Pin};

use crate::{Batch, DeliveryReport, Reading};

/// A future on the heap, as trait objects need it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A connected sink.
///
/// Every method may be called from several tasks at once, and every returned future may be dropped at any point: the
/// sink stays usable, and what [`DeliveryReport`] was told stays true.
pub trait Sink: Send + Sync + 'static {
    /// Delivers the batch and marks the outcome of each delivery in `report`.
    ///
    /// A delivery may be marked acknowledged only when the receiver itself has said that it has it, durably. Marks are
    /// made as outcomes become known, not at the end. Each delivery has the time that [`crate::SinkContext::timeout`]
    /// names; the sink watches it itself, so that one silent delivery does not throw away the others'
    /// acknowledgements. A sink with no idea of what became of a delivery leaves it unknown.
    fn deliver(&self, batch: &Batch, report: &DeliveryReport) -> impl Future<Output = ()> + Send;

    /// Whether the sink can be reached and would take deliveries: without sending one.
    fn check(&self) -> impl Future<Output = Result<(), SinkError>> + Send;

    /// What the last check that passed has found to be a risk, such as storage that does not survive a restart; one
    /// sentence each, for the operator.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Numbers that the sink's client library counts, for the metrics; asked at each scrape, so it must not wait.
    fn readings(&self) -> Vec<Reading> {
        Vec::new()
    }

    /// Flushes and disconnects. May be called twice, and deliveries after it fail.
    fn close(&self) -> impl Future<Output = ()> + Send;

    /// What the gateway needs to know to feed this sink.
    fn capabilities(&self) -> Capabilities;
}

/// What the gateway needs to know of a sink.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// Deliveries in one batch at the most, at least 1.
    pub max_batch: usize,
    /// Bytes of events in one batch at the most (a single larger event still goes out alone).
    pub max_batch_bytes: usize,
    /// Batches in flight at once where the configuration does not say.
    pub concurrency: usize,
}

impl Default for Capabilities {
    fn default() -> Self {
        Capabilities { max_batch: 256, max_batch_bytes: 1 << 20, concurrency: 1 }
    }
}

impl Capabilities {
    /// Sets [`Capabilities::max_batch`].
    #[must_use]
    pub fn with_max_batch(mut self, deliveries: usize) -> Self {
        self.max_batch = deliveries.max(1);
        self
    }

    /// Sets [`Capabilities::max_batch_bytes`].
    #[must_use]
    pub fn with_max_batch_bytes(mut self, bytes: usize) -> Self {
        self.max_batch_bytes = bytes;
        self
    }

    /// Sets [`Capabilities::concurrency`].
    #[must_use]
    pub fn with_concurrency(mut self, batches: usize) -> Self {
        self.concurrency = batches.max(1);
        self
    }
}

/// Why a sink cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    /// Whether trying again can help.
    pub kind: SinkErrorKind,
    /// What happened, to what, why, and what to do next; no secret.
    pub message: String,
}

/// Classes of [`SinkError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SinkErrorKind {
    /// It may pass by itself: the other side is away or busy.
    Retryable,
    /// Somebody has to mend it: credentials, a missing file, a missing topic.
    Fatal,
}

impl SinkError {
    /// It may pass by itself.
    #[must_use]
    pub fn retryable(message: impl Into<String>) -> Self {
        SinkError { kind: SinkErrorKind::Retryable, message: message.into() }
    }

    /// Somebody has to mend it.
    #[must_use]
    pub fn fatal(message: impl Into<String>) -> Self {
        SinkError { kind: SinkErrorKind::Fatal, message: message.into() }
    }
}

/// [`Sink`] as a trait object: what the gateway holds. Implemented for every [`Sink`].
pub trait DynSink: Send + Sync {
    /// See [`Sink::deliver`].
    fn deliver<'a>(&'a self, batch: &'a Batch, report: &'a DeliveryReport) -> BoxFuture<'a, ()>;
    /// See [`Sink::check`].
    fn check(&self) -> BoxFuture<'_, Result<(), SinkError>>;
    /// See [`Sink::warnings`].
    fn warnings(&self) -> Vec<String>;
    /// See [`Sink::readings`].
    fn readings(&self) -> Vec<Reading>;
    /// See [`Sink::close`].
    fn close(&self) -> BoxFuture<'_, ()>;
    /// See [`Sink::capabilities`].
    fn capabilities(&self) -> Capabilities;
}

impl<S: Sink> DynSink for S {
    fn deliver<'a>(&'a self, batch: &'a Batch, report: &'a DeliveryReport) -> BoxFuture<'a, ()> {
        Box::pin(Sink::deliver(self, batch, report))
    }

    fn check(&self) -> BoxFuture<'_, Result<(), SinkError>> {
        Box::pin(Sink::check(self))
    }

    fn warnings(&self) -> Vec<String> {
        Sink::warnings(self)
    }

    fn readings(&self) -> Vec<Reading> {
        Sink::readings(self)
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(Sink::close(self))
    }

    fn capabilities(&self) -> Capabilities {
        Sink::capabilities(self)
    }
}
