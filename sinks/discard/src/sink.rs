//! The sink itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use walgate_sink::{
    Batch, Capabilities, DeliveryReport, Failure, FailureKind, Sink, SinkContext, SinkError, SinkFactory,
};

use crate::DiscardConfig;

/// Makes [`DiscardSink`]s.
#[derive(Debug)]
pub struct DiscardFactory;

impl SinkFactory for DiscardFactory {
    const KIND: &'static str = "discard";

    type Config = DiscardConfig;
    type Sink = DiscardSink;

    async fn connect(_: &DiscardConfig, _: SinkContext) -> Result<DiscardSink, SinkError> {
        Ok(DiscardSink::default())
    }
}

/// Acknowledges everything, keeps nothing.
#[derive(Debug, Default)]
pub struct DiscardSink {
    discarded: AtomicU64,
    closed: AtomicBool,
}

impl DiscardSink {
    /// Deliveries that were acknowledged so far.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.discarded.load(Ordering::Relaxed)
    }
}

impl Sink for DiscardSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        if self.closed.load(Ordering::Relaxed) {
            report.fail_rest(&Failure::new(FailureKind::Connection, "the sink is closed"));
            return;
        }
        self.discarded.fetch_add(batch.len() as u64, Ordering::Relaxed);
        report.acknowledge_rest();
    }

    async fn check(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_max_batch(4096).with_max_batch_bytes(8 << 20)
    }
}

#[cfg(test)]
mod tests {
    use walgate_sink::{Delivery, Event, Outcome, Target, erase};

    use super::*;

    fn batch(len: usize) -> Batch {
        let delivery = |n: usize| Delivery {
            event: Event::new(n.to_string(), "order.created"),
            target: Target::new(DiscardFactory::TARGET, []),
            ordering_key: None,
            dedup_id: n.to_string().into(),
            attempt: 1,
        };
        Batch::new((0..len).map(delivery).collect())
    }

    #[tokio::test]
    async fn acknowledges_and_counts_until_it_is_closed() {
        let sink = DiscardSink::default();
        let report = DeliveryReport::new(3);
        sink.deliver(&batch(3), &report).await;
        assert_eq!(report.take(), vec![Outcome::Acknowledged { duplicate: false }; 3]);
        assert_eq!(sink.discarded(), 3);
        assert_eq!(sink.check().await, Ok(()));

        sink.close().await;
        sink.close().await;
        let report = DeliveryReport::new(1);
        sink.deliver(&batch(1), &report).await;
        assert!(matches!(&report.take()[0], Outcome::Failed(failure) if failure.kind == FailureKind::Connection));
        assert_eq!(sink.discarded(), 3);
    }

    #[test]
    fn unknown_keys_are_refused() {
        let factory = erase::<DiscardFactory>();
        assert!(factory.parse(serde_json::json!({})).is_ok());
        assert!(factory.parse(serde_json::json!({ "rate": 1 })).is_err());
    }
}
