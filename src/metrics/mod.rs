//! What `/metrics` shows. Every name is here; labels come from the configuration, never from event data.

mod classic;
mod cleanup;
mod histogram;
mod known;
mod readings;
mod routes;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use walgate_sink::Reading;

pub use self::{
    cleanup::CleanupMetrics,
    routes::{NO_ROUTE, Routes},
};
use self::{histogram::Histogram, known::Known, readings::Readings};

/// What can become of a delivery. Counters that have not counted yet are shown as zero, so that an alarm sees the first
/// step too.
const OUTCOMES: [&str; 6] = ["acknowledged", "duplicate", "skipped", "halted", "parked", "dead_lettered"];
/// Classes of dead letters.
const DEAD_REASONS: [&str; 9] = [
    "too_large",
    "invalid_target",
    "unknown_target",
    "invalid_event",
    "refused",
    "max_attempts",
    "max_age",
    "unrouted",
    "sacrificed",
];
/// Why an event is left out: no route, `on_reject: skip`, and what makes a row no event.
const DISCARD_REASONS: [&str; 6] =
    ["unrouted", "rejected", "null_column", "not_utf8", "invalid_headers", "invalid_bytea"];
/// What can come of a reload.
const RELOADS: [&str; 2] = ["applied", "refused"];
/// Changes of the outbox that are no inserts.
const IGNORED_KINDS: [&str; 3] = ["update", "delete", "truncate"];

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
struct ReloadLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadLabels {
    sink: Arc<str>,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RowLabel {
    kind: &'static str,
}

/// How metrics are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus's text format 0.0.4.
    Classic,
}

impl Format {
    /// The media type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Classic => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
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
    parked_events: Family<SinkLabel, Gauge>,
    parked_bytes: Family<SinkLabel, Gauge>,
    parked_keys: Family<SinkLabel, Gauge>,
    dead_letters: Family<DeadLabels, Counter>,
    letters_expired: Counter,
    discarded: Family<ReasonLabel, Counter>,
    ignored_rows: Family<RowLabel, Counter>,
    /// Events read from the stream and mapped.
    pub events_received: Counter,
    /// Connections to the replication slot that broke and were made again.
    pub reconnects: Counter,
    /// Bytes of unsettled events in memory.
    pub inflight_bytes: Gauge,
    replication_lag_bytes: Known,
    slot_retained_bytes: Known,
    wal_budget_ratio: Known<f64>,
    wal_budget_bytes: Known,
    wal_budget_seconds_left: Known<f64>,
    checkpoint_lsn: Known,
    catalog_ok: Known,
    idle_slots: Known,
    idle_slots_retained_bytes: Known,
    readings: Readings,
    /// By sink, so that routes may change while a sink stays.
    delivered: Arc<Mutex<HashMap<String, Arc<RwLock<ByRoute>>>>>,
    reloads: Family<ReloadLabel, Counter>,
    /// How often the configuration was taken up, from 1.
    pub generation: Gauge,
    /// 1 while events are streamed from PostgreSQL.
    pub streaming: Gauge,
    /// What the clean-up counts.
    pub cleanup: CleanupMetrics,
}

/// A sink's counters by route, and then as [`OUTCOMES`]; `None`: the route does not lead here.
type ByRoute = Vec<Option<[Counter; OUTCOMES.len()]>>;

/// The metrics of one sink, looked up once.
#[derive(Clone)]
pub struct SinkMetrics {
    delivered: Arc<RwLock<ByRoute>>,
    delivery_seconds: Histogram,
    commit_to_ack_seconds: Histogram,
    retries: Counter,
    duplicates: Counter,
    up: Gauge,
    inflight: Gauge,
    parked: [Gauge; 3],
    dead_letters: [Counter; DEAD_REASONS.len()],
}

fn delivery_buckets() -> Histogram {
    Histogram::new(&[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0])
}

fn commit_buckets() -> Histogram {
    Histogram::new(&[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0])
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
            parked_events: Family::default(),
            parked_bytes: Family::default(),
            parked_keys: Family::default(),
            dead_letters: Family::default(),
            letters_expired: Counter::default(),
            discarded: Family::default(),
            ignored_rows: Family::default(),
            events_received: Counter::default(),
            reconnects: Counter::default(),
            inflight_bytes: Gauge::default(),
            replication_lag_bytes: Known::default(),
            slot_retained_bytes: Known::default(),
            wal_budget_ratio: Known::default(),
            wal_budget_bytes: Known::default(),
            wal_budget_seconds_left: Known::default(),
            checkpoint_lsn: Known::default(),
            catalog_ok: Known::default(),
            idle_slots: Known::default(),
            idle_slots_retained_bytes: Known::default(),
            readings: Readings::default(),
            delivered: Arc::default(),
            reloads: Family::default(),
            generation: Gauge::default(),
            streaming: Gauge::default(),
            cleanup: CleanupMetrics::default(),
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
        registry.register("parked_events", "Deliveries of the sink in walgate.parked", metrics.parked_events.clone());
        registry.register_with_unit(
            "parked",
            "Bytes of the events that are parked for the sink",
            Unit::Bytes,
            metrics.parked_bytes.clone(),
        );
        registry.register(
            "parked_keys",
            "Keys that are parked on their own, because an event of them fails",
            metrics.parked_keys.clone(),
        );
        registry.register(
            "dead_letters",
            "Deliveries that became dead letters, by class",
            metrics.dead_letters.clone(),
        );
        registry.register(
            "dead_letters_expired",
            "Dead letters that were deleted because they were older than `dead_letters.retain`",
            metrics.letters_expired.clone(),
        );
        registry.register("discarded_events", "Events that were not delivered, by rule", metrics.discarded.clone());
        registry.register(
            "ignored_rows",
            "Changes of the outbox table that are no inserts, and were ignored",
            metrics.ignored_rows.clone(),
        );
        registry.register(
            "reconnects",
            "Connections to the slot that broke and were made again",
            metrics.reconnects.clone(),
        );
        registry.register_with_unit(
            "inflight",
            "Bytes of unsettled events in memory",
            Unit::Bytes,
            metrics.inflight_bytes.clone(),
        );
        registry.register_with_unit(
            "replication_lag",
            "WAL between the checkpoint and the end of the server's WAL",
            Unit::Bytes,
            metrics.replication_lag_bytes.clone(),
        );
        registry.register_with_unit(
            "slot_retained",
            "WAL that the slot keeps on the server's disk",
            Unit::Bytes,
            metrics.slot_retained_bytes.clone(),
        );
        registry.register(
            "wal_budget_ratio",
            "Part of the WAL that the server may keep for the slot which it keeps: 1 is all of it",
            metrics.wal_budget_ratio.clone(),
        );
        registry.register(
            "idle_slots",
            "Other replication slots of the server that nobody reads and that keep more than 16 MiB of WAL",
            metrics.idle_slots.clone(),
        );
        registry.register_with_unit(
            "idle_slots_retained",
            "The most WAL that is kept for one of those",
            Unit::Bytes,
            metrics.idle_slots_retained_bytes.clone(),
        );
        registry.register(
            "catalog_ok",
            "Whether everything that leads from the table to the stream is in order: 1, or 0 where events may not be seen",
            metrics.catalog_ok.clone(),
        );
        registry.register_with_unit(
            "wal_budget",
            "WAL that the server may keep for the slot",
            Unit::Bytes,
            metrics.wal_budget_bytes.clone(),
        );
        registry.register(
            "wal_budget_seconds_left",
            "Time until that is used up, if it goes on as in the last minutes",
            metrics.wal_budget_seconds_left.clone(),
        );
        registry.register(
            "checkpoint_lsn",
            "What is confirmed to PostgreSQL: an LSN as a number of bytes",
            metrics.checkpoint_lsn.clone(),
        );
        registry.register(
            "config_reloads",
            "Reloads of the configuration, by what came of them",
            metrics.reloads.clone(),
        );
        registry.register(
            "config_generation",
            "How often a configuration was taken up since the start",
            metrics.generation.clone(),
        );
        registry.register("streaming", "1 while events are streamed from PostgreSQL", metrics.streaming.clone());
        metrics.cleanup.register(&mut registry);
        registry.register_collector(Box::new(metrics.readings.clone()));
        metrics.registry = Arc::new(registry);
        for reason in DISCARD_REASONS {
            metrics.discarded.get_or_create_owned(&ReasonLabel { reason });
        }
        for outcome in RELOADS {
            metrics.reloads.get_or_create_owned(&ReloadLabel { outcome });
        }
        for kind in IGNORED_KINDS {
            metrics.ignored_rows.get_or_create_owned(&RowLabel { kind });
        }
        metrics
    }

    /// The metrics of one sink. `routes`: by the number of the route its label, or `None` where it does not lead here;
    /// they replace those that it had. None at all: those stay.
    #[must_use]
    pub fn sink(&self, name: &str, routes: &[Option<Arc<str>>]) -> SinkMetrics {
        let label = SinkLabel { sink: name.into() };
        let counters = |route: &Arc<str>| {
            OUTCOMES.map(|outcome| {
                let labels = EventLabels { sink: label.sink.clone(), route: route.clone(), outcome };
                self.events.get_or_create_owned(&labels)
            })
        };
        let delivered = {
            let mut all = self.delivered.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(name.to_owned()).or_default())
        };
        if !routes.is_empty() {
            *delivered.write().unwrap_or_else(PoisonError::into_inner) =
                routes.iter().map(|route| route.as_ref().map(counters)).collect();
        }
        SinkMetrics {
            delivered,
            delivery_seconds: self.delivery_seconds.get_or_create_owned(&label),
            commit_to_ack_seconds: self.commit_to_ack_seconds.get_or_create_owned(&label),
            retries: self.retries.get_or_create_owned(&label),
            duplicates: self.duplicates.get_or_create_owned(&label),
            up: self.sink_up.get_or_create_owned(&label),
            inflight: self.inflight_events.get_or_create_owned(&label),
            parked: [&self.parked_events, &self.parked_bytes, &self.parked_keys]
                .map(|family| family.get_or_create_owned(&label)),
            dead_letters: DEAD_REASONS
                .map(|reason| self.dead_letters.get_or_create_owned(&DeadLabels { sink: label.sink.clone(), reason })),
        }
    }

    /// WAL between the checkpoint and the end of the server's WAL, and WAL that the slot keeps on the server's disk, in
    /// bytes; `None`: not known.
    pub fn slot(&self, lag: Option<u64>, retained: Option<u64>) {
        self.replication_lag_bytes.set(lag);
        self.slot_retained_bytes.set(retained);
    }

    /// How much of the WAL budget is used, how large it is, and how long it lasts; `None`: not known.
    pub fn wal_budget(&self, ratio: Option<f64>, bytes: Option<u64>, seconds_left: Option<f64>) {
        self.wal_budget_ratio.set(ratio);
        self.wal_budget_bytes.set(bytes);
        self.wal_budget_seconds_left.set(seconds_left);
    }

    /// Other slots that nobody reads and that keep WAL, and the most that is kept for one of them.
    pub fn idle_slots(&self, slots: u64, most_bytes: u64) {
        self.idle_slots.set(Some(slots));
        self.idle_slots_retained_bytes.set(Some(most_bytes));
    }

    /// Whether the newest look at the catalogs found them in order.
    pub fn catalog_ok(&self, ok: bool) {
        self.catalog_ok.set(Some(ok.into()));
    }

    /// The confirmed flush LSN as a number of bytes from the beginning of WAL, and the bytes of unsettled events.
    pub fn checkpoint(&self, flush_lsn: u64, unsettled_bytes: u64) {
        self.checkpoint_lsn.set(Some(flush_lsn));
        self.inflight_bytes.set(signed(unsettled_bytes));
    }

    /// What a sink has counted itself, in place of what it had counted before.
    pub fn readings(&self, sink: &str, readings: Vec<Reading>) {
        self.readings.set(sink, readings);
    }

    /// A reload was applied, or refused.
    pub fn reloaded(&self, applied: bool) {
        let outcome = if applied { "applied" } else { "refused" };
        self.reloads.get_or_create_owned(&ReloadLabel { outcome }).inc();
    }

    /// Counts dead letters that were deleted because of their age.
    pub fn letters_expired(&self, rows: u64) {
        self.letters_expired.inc_by(rows);
    }

    /// Counts an event that goes nowhere, by a rule of the configuration.
    pub fn discarded(&self, reason: &'static str) {
        self.discarded.get_or_create_owned(&ReasonLabel { reason }).inc();
    }

    /// Counts an UPDATE, DELETE or TRUNCATE of the outbox table.
    pub fn ignored_row(&self, kind: &'static str) {
        self.ignored_rows.get_or_create_owned(&RowLabel { kind }).inc();
    }

    /// The text that a scraper reads.
    #[must_use]
    pub fn encode(&self, format: Format) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        match format {
            Format::OpenMetrics => text,
            Format::Classic => classic::from_open_metrics(&text),
        }
    }
}

impl SinkMetrics {
    /// So many deliveries of a route came to this outcome.
    pub fn delivered(&self, route: u16, outcome: &'static str, count: u64) {
        let delivered = self.delivered.read().unwrap_or_else(PoisonError::into_inner);
        let counters = delivered.get(usize::from(route)).and_then(Option::as_ref);
        let outcome = OUTCOMES.iter().position(|known| *known == outcome);
        if let Some(counter) = counters.zip(outcome).and_then(|(counters, outcome)| counters.get(outcome)) {
            counter.inc_by(count);
        }
    }

    /// Events were acknowledged so long after their commits: each duration so many times.
    pub fn commit_to_ack(&self, ages: &[(Duration, u64)]) {
        self.commit_to_ack_seconds.observe(ages.iter().copied());
    }

    /// The broker had so many deliveries already.
    pub fn duplicates(&self, count: u64) {
        self.duplicates.inc_by(count);
    }

    /// One attempt of a batch took so long.
    pub fn attempt(&self, took: Duration) {
        self.delivery_seconds.observe([(took, 1)]);
    }

    /// So many attempts failed and are made again.
    pub fn retries(&self, count: u64) {
        self.retries.inc_by(count);
    }

    /// Whether the sink takes deliveries.
    pub fn up(&self, up: bool) {
        self.up.set(i64::from(up));
    }

    /// Deliveries in the table of parked ones, bytes of their events, and keys that are parked on their own.
    pub fn parked(&self, deliveries: u64, bytes: u64, keys: u64) {
        for (gauge, value) in self.parked.iter().zip([deliveries, bytes, keys]) {
            gauge.set(signed(value));
        }
    }

    /// A delivery became a dead letter.
    pub fn dead_lettered(&self, reason: &'static str) {
        let known = DEAD_REASONS.iter().position(|known| *known == reason);
        if let Some(counter) = known.and_then(|known| self.dead_letters.get(known)) {
            counter.inc();
        }
    }

    /// Unsettled events of the sink.
    pub fn inflight(&self, events: u64) {
        self.inflight.set(signed(events));
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use walgate_sink::ReadingKind;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let metrics = Metrics::new();
        let sink = metrics.sink("partner", &[None, Some("order.*".into())]);
        sink.delivered(1, "acknowledged", 1);
        sink.delivered(0, "acknowledged", 5);
        sink.delivered(7, "acknowledged", 5);
        sink.commit_to_ack(&[(Duration::from_millis(3), 2), (Duration::from_millis(30), 1)]);
        sink.attempt(Duration::from_millis(2));
        sink.up(true);
        metrics.discarded("unrouted");
        metrics.checkpoint(77, 5);
        let text = metrics.encode(Format::OpenMetrics);
        for line in [
            "walgate_events_total{sink=\"partner\",route=\"order.*\",outcome=\"acknowledged\"} 1",
            "walgate_events_total{sink=\"partner\",route=\"order.*\",outcome=\"halted\"} 0",
            "walgate_commit_to_ack_seconds_count{sink=\"partner\"} 3",
            "walgate_delivery_seconds_count{sink=\"partner\"} 1",
            "walgate_sink_up{sink=\"partner\"} 1",
            "walgate_discarded_events_total{reason=\"unrouted\"} 1",
            "walgate_discarded_events_total{reason=\"null_column\"} 0",
            "walgate_ignored_rows_total{kind=\"truncate\"} 0",
            "walgate_checkpoint_lsn 77",
            "walgate_inflight_bytes 5",
            "walgate_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert_eq!(
            text.matches("walgate_events_total{").count(),
            OUTCOMES.len(),
            "the routes that lead there:\n{text}"
        );
    }

    #[test]
    fn what_sinks_count_themselves_has_one_head_and_a_line_for_each() {
        let metrics = Metrics::new();
        let gauge = |value| Reading::new("kafka_held_records", "Held", ReadingKind::Gauge, value);
        let counter = |value| Reading::new("kafka_requests", "Requests", ReadingKind::Counter, value);
        metrics.readings("a", vec![gauge(1.0), counter(2.0)]);
        metrics.readings("b", vec![gauge(3.5), counter(4.0)]);
        metrics.readings("a", vec![gauge(7.0), counter(8.0)]);
        let text = metrics.encode(Format::OpenMetrics);
        for line in [
            "# TYPE walgate_kafka_held_records gauge",
            "walgate_kafka_held_records{sink=\"a\"} 7.0",
            "walgate_kafka_held_records{sink=\"b\"} 3.5",
            "# TYPE walgate_kafka_requests counter",
            "walgate_kafka_requests_total{sink=\"a\"} 8.0",
            "walgate_kafka_requests_total{sink=\"b\"} 4.0",
        ] {
            assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line} in:\n{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_not_shown() {
        let metrics = Metrics::new();
        let shown = |metrics: &Metrics, line: &str| {
            metrics.encode(Format::OpenMetrics).lines().any(|found| found.starts_with(line))
        };
        let unknown = ["replication_lag_bytes", "slot_retained_bytes", "checkpoint_lsn", "wal_budget_ratio"];
        for name in unknown.map(|name| format!("walgate_{name}")) {
            let name = name.as_str();
            assert!(!shown(&metrics, name), "{name}");
        }
        metrics.wal_budget(Some(0.5), Some(64), None);
        assert!(shown(&metrics, "walgate_wal_budget_ratio 0.5") && shown(&metrics, "walgate_wal_budget_bytes 64"));
        assert!(!shown(&metrics, "walgate_wal_budget_seconds_left"));
        metrics.slot(Some(5), None);
        assert!(shown(&metrics, "walgate_replication_lag_bytes 5") && !shown(&metrics, "walgate_slot_retained_bytes"));
        metrics.slot(None, Some(6));
        assert!(!shown(&metrics, "walgate_replication_lag_bytes") && shown(&metrics, "walgate_slot_retained_bytes 6"));
    }
}
