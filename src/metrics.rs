//! What `/metrics` shows. Every name is here; labels come from the configuration, never from event data.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

/// The outcome of almost every delivery: its counters are looked up once.
const ACKNOWLEDGED: &str = "acknowledged";

type FloatGauge = Gauge<f64, AtomicU64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    sink: Arc<str>,
    route: Arc<str>,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RowLabel {
    kind: &'static str,
}

/// Every metric of the process. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    events: Family<EventLabels, Counter>,
    delivery_seconds: Family<SinkLabel, Histogram, fn() -> Histogram>,
    commit_to_ack_seconds: Family<SinkLabel, Histogram, fn() -> Histogram>,
    retries: Family<SinkLabel, Counter>,
    duplicates: Family<SinkLabel, Counter>,
    sink_up: Family<SinkLabel, Gauge>,
    inflight_events: Family<SinkLabel, Gauge>,
    discarded: Family<ReasonLabel, Counter>,
    ignored_rows: Family<RowLabel, Counter>,
    /// Events read from the stream and mapped.
    pub events_received: Counter,
    /// Connections to the replication slot that broke and were made again.
    pub reconnects: Counter,
    /// Bytes of unsettled events in memory.
    pub inflight_bytes: Gauge,
    /// WAL between the checkpoint and the end of the server's WAL, in bytes.
    pub replication_lag_bytes: Gauge,
    /// WAL that the slot keeps on the server's disk, in bytes.
    pub slot_retained_bytes: Gauge,
    /// The confirmed flush LSN as a number of bytes from the beginning of WAL.
    pub checkpoint_lsn: Gauge,
    /// 1 while events are streamed from PostgreSQL.
    pub streaming: Gauge,
}

/// The metrics of one sink, looked up once.
#[derive(Clone)]
pub struct SinkMetrics {
    sink: Arc<str>,
    events: Family<EventLabels, Counter>,
    acknowledged: Vec<Counter>,
    routes: Vec<Arc<str>>,
    delivery_seconds: Histogram,
    commit_to_ack_seconds: Histogram,
    retries: Counter,
    duplicates: Counter,
    up: Gauge,
    inflight: Gauge,
}

fn delivery_buckets() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0])
}

fn commit_buckets() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// All metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("walgate");
        let mut metrics = Metrics {
            registry: Arc::default(),
            events: Family::default(),
            delivery_seconds: Family::new_with_constructor(delivery_buckets),
            commit_to_ack_seconds: Family::new_with_constructor(commit_buckets),
            retries: Family::default(),
            duplicates: Family::default(),
            sink_up: Family::default(),
            inflight_events: Family::default(),
            discarded: Family::default(),
            ignored_rows: Family::default(),
            events_received: Counter::default(),
            reconnects: Counter::default(),
            inflight_bytes: Gauge::default(),
            replication_lag_bytes: Gauge::default(),
            slot_retained_bytes: Gauge::default(),
            checkpoint_lsn: Gauge::default(),
            streaming: Gauge::default(),
        };
        let started: FloatGauge = Gauge::default();
        started.set(std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64());
        registry.register("build", "Version of the binary", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register_with_unit("start_time", "When the process started, as Unix time", Unit::Seconds, started);
        registry.register("events", "Deliveries that were settled, by outcome", metrics.events.clone());
        registry.register("events_received", "Outbox events read from the stream", metrics.events_received.clone());
        registry.register_with_unit(
            "delivery",
            "Time of one attempt, from the call of the sink to its answer",
            Unit::Seconds,
            metrics.delivery_seconds.clone(),
        );
        registry.register_with_unit(
            "commit_to_ack",
            "Time from the commit to the sink's acknowledgement",
            Unit::Seconds,
            metrics.commit_to_ack_seconds.clone(),
        );
        registry.register("retries", "Attempts that failed and are made again", metrics.retries.clone());
        registry.register(
            "broker_duplicates",
            "Deliveries that the broker had already, by their dedup id",
            metrics.duplicates.clone(),
        );
        registry.register("sink_up", "1 while the sink takes deliveries", metrics.sink_up.clone());
        registry.register(
            "inflight_events",
            "Unsettled events of the sink: queued, in flight or waiting for a retry",
            metrics.inflight_events.clone(),
        );
        registry.register("discarded_events", "Events that were not delivered, by rule", metrics.discarded.clone());
        registry.register(
            "ignored_rows",
            "Changes of the outbox table that are no inserts, and were ignored",
            metrics.ignored_rows.clone(),
        );
        registry.register("reconnects", "Connections to the slot that broke", metrics.reconnects.clone());
        registry.register("inflight_bytes", "Bytes of unsettled events in memory", metrics.inflight_bytes.clone());
        registry.register(
            "replication_lag_bytes",
            "WAL between the checkpoint and the end of the server's WAL",
            metrics.replication_lag_bytes.clone(),
        );
        registry.register(
            "slot_retained_bytes",
            "WAL that the slot keeps on the server's disk",
            metrics.slot_retained_bytes.clone(),
        );
        registry.register("checkpoint_lsn", "The confirmed flush LSN", metrics.checkpoint_lsn.clone());
        registry.register("streaming", "1 while events are streamed from PostgreSQL", metrics.streaming.clone());
        metrics.registry = Arc::new(registry);
        metrics
    }

    /// The metrics of one sink with these routes (their labels by index).
    #[must_use]
    pub fn sink(&self, name: &str, routes: &[Arc<str>]) -> SinkMetrics {
        let label = SinkLabel { sink: name.into() };
        let counter = |outcome, route: &Arc<str>| {
            let labels = EventLabels { sink: label.sink.clone(), route: route.clone(), outcome };
            self.events.get_or_create_owned(&labels)
        };
        SinkMetrics {
            events: self.events.clone(),
            acknowledged: routes.iter().map(|route| counter(ACKNOWLEDGED, route)).collect(),
            routes: routes.to_vec(),
            delivery_seconds: self.delivery_seconds.get_or_create_owned(&label),
            commit_to_ack_seconds: self.commit_to_ack_seconds.get_or_create_owned(&label),
            retries: self.retries.get_or_create_owned(&label),
            duplicates: self.duplicates.get_or_create_owned(&label),
            up: self.sink_up.get_or_create_owned(&label),
            inflight: self.inflight_events.get_or_create_owned(&label),
            sink: label.sink,
        }
    }

    /// Counts an event that goes nowhere, by a rule of the configuration.
    pub fn discarded(&self, reason: &'static str) {
        self.discarded.get_or_create_owned(&ReasonLabel { reason }).inc();
    }

    /// Counts an UPDATE, DELETE or TRUNCATE of the outbox table.
    pub fn ignored_row(&self, kind: &'static str) {
        self.ignored_rows.get_or_create_owned(&RowLabel { kind }).inc();
    }

    /// The text that a Prometheus server scrapes (OpenMetrics 1.0).
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

impl SinkMetrics {
    /// So many deliveries of a route came to this outcome.
    pub fn delivered(&self, route: u16, outcome: &'static str, count: u64) {
        if outcome == ACKNOWLEDGED
            && let Some(counter) = self.acknowledged.get(usize::from(route))
        {
            counter.inc_by(count);
            return;
        }
        let route = self.routes.get(usize::from(route)).cloned().unwrap_or_else(|| "".into());
        self.events.get_or_create_owned(&EventLabels { sink: self.sink.clone(), route, outcome }).inc_by(count);
    }

    /// An event was acknowledged this long after its commit.
    pub fn commit_to_ack(&self, took: Duration) {
        self.commit_to_ack_seconds.observe(took.as_secs_f64());
    }

    /// The broker had so many deliveries already.
    pub fn duplicates(&self, count: u64) {
        self.duplicates.inc_by(count);
    }

    /// One attempt of a batch took so long.
    pub fn attempt(&self, took: Duration) {
        self.delivery_seconds.observe(took.as_secs_f64());
    }

    /// So many attempts failed and are made again.
    pub fn retries(&self, count: u64) {
        self.retries.inc_by(count);
    }

    /// Whether the sink takes deliveries.
    pub fn up(&self, up: bool) {
        self.up.set(i64::from(up));
    }

    /// Unsettled events of the sink.
    pub fn inflight(&self, events: u64) {
        self.inflight.set(i64::try_from(events).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new();
        let routes: [Arc<str>; 1] = ["order.*".into()];
        let sink = metrics.sink("partner", &routes);
        sink.delivered(0, "acknowledged", 1);
        sink.commit_to_ack(Duration::from_millis(3));
        sink.attempt(Duration::from_millis(2));
        sink.up(true);
        metrics.discarded("unrouted");
        let text = metrics.encode();
        for line in [
            "walgate_events_total{sink=\"partner\",route=\"order.*\",outcome=\"acknowledged\"} 1",
            "walgate_commit_to_ack_seconds_count{sink=\"partner\"} 1",
            "walgate_delivery_seconds_count{sink=\"partner\"} 1",
            "walgate_sink_up{sink=\"partner\"} 1",
            "walgate_discarded_events_total{reason=\"unrouted\"} 1",
            "walgate_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
    }
}
