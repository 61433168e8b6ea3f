//! A sink as a `tower` service.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower::{Service, ServiceBuilder, limit::ConcurrencyLimit, timeout::Timeout};
use walgate_sink::{Batch, DeliveryReport, DynSink};

/// Deliveries that a sink is thought to have outstanding at once. Only the backstop builds upon it, so a low guess
/// makes it patient.
const WINDOW: u32 = 64;

/// What the backstop adds to the time that a sink may take by its contract.
const GRACE: Duration = Duration::from_secs(5);

/// One attempt to deliver a batch. What comes of it stands in the report, which outlives a dropped future.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is delivered.
    pub batch: Batch,
    /// The caller keeps a clone of it.
    pub report: DeliveryReport,
}

/// The one `tower::Service` over any sink. Its answer says only that the sink has returned.
#[derive(Clone)]
pub struct SinkService(Arc<dyn DynSink>);

impl SinkService {
    /// A service over this sink.
    #[must_use]
    pub fn new(sink: Arc<dyn DynSink>) -> Self {
        SinkService(sink)
    }
}

impl Service<Request> for SinkService {
    type Response = ();
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<(), Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let sink = Arc::clone(&self.0);
        Box::pin(async move {
            sink.deliver(&request.batch, &request.report).await;
            Ok(())
        })
    }
}

/// [`SinkService`] within its layers.
pub(super) type SinkStack = ConcurrencyLimit<Timeout<SinkService>>;

/// The layers around a sink, the outermost first.
pub(super) fn stack(sink: Arc<dyn DynSink>, concurrency: usize, backstop: Duration) -> SinkStack {
    ServiceBuilder::new()
        // Batches in flight at once. Outside the timeout, so that waiting for a place does not count.
        .concurrency_limit(concurrency)
        // A sink watches the time of each delivery itself. This is for one that does not return at all.
        .timeout(backstop)
        .service(SinkService::new(sink))
}

/// Time after which a sink that has not returned from a batch of `deliveries` never will.
pub(super) fn backstop(timeout: Duration, deliveries: usize) -> Duration {
    let rounds = u32::try_from(deliveries).unwrap_or(u32::MAX).div_ceil(WINDOW);
    timeout.saturating_mul(rounds.saturating_add(1)).saturating_add(GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backstop_is_longer_than_any_sink_may_take() {
        let second = Duration::from_secs(1);
        assert_eq!(backstop(second, 1), Duration::from_secs(7));
        assert_eq!(backstop(second, 256), Duration::from_secs(10));
        assert_eq!(backstop(Duration::MAX, usize::MAX), Duration::MAX);
    }
}
