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

    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use tokio::time::{Instant, sleep};
    use tower::ServiceExt as _;
    use walgate_sink::{Capabilities, Delivery, Event, Outcome, Sink, SinkError, Target};

    /// Takes its time for each batch, and counts those that are under way.
    struct Slow {
        takes: Duration,
        under_way: AtomicUsize,
        most: AtomicUsize,
    }

    impl Slow {
        fn new(takes: Duration) -> Arc<Self> {
            Arc::new(Slow { takes, under_way: AtomicUsize::new(0), most: AtomicUsize::new(0) })
        }
    }

    impl Sink for Slow {
        async fn deliver(&self, _: &Batch, report: &DeliveryReport) {
            let under_way = self.under_way.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(under_way, SeqCst);
            report.acknowledged(0);
            sleep(self.takes).await;
            report.acknowledge_rest();
            self.under_way.fetch_sub(1, SeqCst);
        }

        async fn check(&self) -> Result<(), SinkError> {
            Ok(())
        }

        async fn close(&self) {}

        fn capabilities(&self) -> Capabilities {
            Capabilities::default()
        }
    }

    fn request() -> Request {
        let delivery = Delivery {
            event: Event::new("1", "order.created"),
            target: Target::new(&[], []),
            ordering_key: None,
            dedup_id: "1".into(),
            attempt: 1,
        };
        Request { batch: Batch::new(vec![delivery.clone(), delivery]), report: DeliveryReport::new(2) }
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_batches_are_with_the_sink_at_once_and_waiting_costs_no_time() {
        let sink = Slow::new(Duration::from_secs(9));
        let stack = stack(Arc::clone(&sink) as Arc<dyn DynSink>, 3, Duration::from_secs(10));
        let started = Instant::now();
        let calls: Vec<_> = (0..10).map(|_| tokio::spawn(stack.clone().oneshot(request()))).collect();
        for call in calls {
            // Four rounds of 9 s: those that waited three rounds for a place still had all of their time.
            call.await.unwrap().unwrap();
        }
        assert_eq!((sink.most.load(SeqCst), started.elapsed()), (3, Duration::from_secs(36)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_does_not_return_is_dropped_after_the_backstop_and_frees_its_place() {
        let sink = Slow::new(Duration::from_secs(3600));
        let stack = stack(sink as Arc<dyn DynSink>, 1, Duration::from_secs(10));
        for round in 1..=3 {
            let (started, request) = (Instant::now(), request());
            let report = request.report.clone();
            let error = stack.clone().oneshot(request).await.unwrap_err();
            assert!(error.is::<tower::timeout::error::Elapsed>(), "round {round}: {error}");
            assert_eq!(started.elapsed(), Duration::from_secs(10));
            let outcomes = report.take();
            assert_eq!(outcomes, [Outcome::Acknowledged { duplicate: false }, Outcome::Unknown], "marks survive");
        }
    }

    #[test]
    fn the_backstop_is_longer_than_any_sink_may_take() {
        let second = Duration::from_secs(1);
        assert_eq!(backstop(second, 1), Duration::from_secs(7));
        assert_eq!(backstop(second, 256), Duration::from_secs(10));
        assert_eq!(backstop(Duration::MAX, usize::MAX), Duration::MAX);
    }
}
