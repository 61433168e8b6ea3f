//! From the sinks of a configuration to the plans of their lanes.

use std::{collections::HashMap, sync::Arc, time::Duration};

use walgate_sink::{Batch, Capabilities, DeliveryReport, RejectReason, Rejection, SinkContext, SinkError};

use super::setup::{self, Letters, Routing};
use crate::{
    config::{CleanupMode, Config, Delivery, OnOutage, OnReject, Route, Sink, Unrouted},
    control::{
        Term,
        parking::{ParkingStore, SqlStore, SqlStoreOptions},
    },
    lane::{DeliveryOutcome, Destination, LaneSettings, Observer, ParkingPolicy, SinkSource},
    metrics::{Metrics, Routes, SinkMetrics},
    pipeline::{Generation, LanePlan},
    postgres::ConnectSettings,
};

/// The lane that makes dead letters of events without a route. No sink can have this name.
const UNROUTED: &str = "(unrouted)";
/// Time that one operation on walgate's own tables may take.
const STORE_PATIENCE: Duration = Duration::from_secs(30);
/// A connection to them that is not used is closed after this time.
const STORE_IDLE: Duration = Duration::from_secs(60);

/// The keys of a configuration that can only be kept with walgate's own tables, as a reader knows them.
pub fn needs_tables(config: &Config, sinks: &[Sink]) -> Vec<String> {
    let mut needs = Vec::new();
    for Sink { name, delivery, .. } in sinks {
        let mut need = |key: &str| needs.push(format!("sink `{name}`: `delivery.{key}`"));
        match delivery.on_reject {
            Some(OnReject::DeadLetter) if delivery.dead_letter_to.is_some() => {}
            Some(OnReject::DeadLetter) => need("on_reject: dead_letter"),
            Some(OnReject::ParkKey) => need("on_reject: park_key"),
            Some(OnReject::Halt | OnReject::Skip) | None => {}
        }
        if delivery.on_outage == Some(OnOutage::Park) {
            need("on_outage: park");
        }
        if delivery.dead_letter_to.is_some() {
            continue;
        }
        if delivery.retry.max_attempts.is_some() {
            need("retry.max_attempts");
        }
        if delivery.retry.max_age.is_some() {
            need("retry.max_age");
        }
    }
    if config.cleanup.mode != CleanupMode::Off {
        needs.push(format!("`cleanup.mode: {}`", config.cleanup.mode.as_str()));
    }
    if config.unrouted == Unrouted::DeadLetter {
        needs.push("`unrouted: dead_letter`".to_owned());
    }
    needs
}

/// What happens to rejected events of a sink, and in its outages: what the configuration says, and else what is best with
/// or without walgate's own tables.
#[must_use]
pub fn answers(delivery: &Delivery, tables: bool) -> (OnReject, OnOutage) {
    let (reject, outage) =
        if tables { (OnReject::DeadLetter, OnOutage::Park) } else { (OnReject::Halt, OnOutage::Hold) };
    let reject = if delivery.dead_letter_to.is_some() { OnReject::DeadLetter } else { reject };
    (delivery.on_reject.unwrap_or(reject), delivery.on_outage.unwrap_or(outage))
}

/// What does not change while the process lives.
pub struct Fixed<'a> {
    /// Where PostgreSQL is.
    pub settings: &'a ConnectSettings,
    /// Where the clean-up connects.
    pub cleanup_settings: &'a ConnectSettings,
    /// All metrics.
    pub metrics: &'a Metrics,
    /// Numbers of routes.
    pub routes: &'a Routes,
    /// Whether walgate's own tables may be used.
    pub tables: bool,
    /// The term that is written in.
    pub term: &'a Term,
}

/// What a configuration comes to.
#[must_use]
pub fn generation(config: &Config, sinks: Vec<Sink>, routing: Routing, fixed: &Fixed<'_>) -> Generation {
    let wanted = setup::wanted_of(config, &routing, fixed.settings);
    let Routing { router, reader, letters } = routing;
    let cleanup = setup::cleanup_plan(config, &reader);
    let label = |route: &Route| route.event_type.0.join(",");
    let route_numbers = config.routes.iter().map(|route| fixed.routes.number(&label(route))).collect();
    Generation {
        router,
        reader,
        route_numbers,
        plans: plans(config, sinks, &letters, fixed),
        unrouted: config.unrouted,
        limits: config.limits.clone(),
        wal_budget: config.wal_budget.clone(),
        dead_letters: config.dead_letters,
        cleanup,
        removed: config.removed_sinks,
        wanted: wanted.standing_by(),
    }
}

/// A plan for each sink, in their order; with `unrouted: dead_letter` one more, the last.
fn plans(config: &Config, sinks: Vec<Sink>, letters: &Letters, fixed: &Fixed<'_>) -> Vec<LanePlan> {
    let metrics = fixed.metrics;
    let mut plans: Vec<LanePlan> = sinks.into_iter().map(|sink| plan(config, sink, letters, fixed)).collect();
    bind_to_destinations(&mut plans);
    if config.unrouted == Unrouted::DeadLetter {
        let mut lane = LaneSettings::from(&Delivery::default());
        (lane.policy.on_reject, lane.policy.dead_reason) = (OnReject::DeadLetter, Some("unrouted"));
        lane.policy.letters = config.dead_letters.payload;
        lane.policy.parking = Some(ParkingPolicy {
            outages: false,
            park_after: Duration::MAX,
            share: u64::MAX,
            max_rows: config.limits.parked.rows,
            max_bytes: config.limits.parked.bytes.0,
            fields: &[],
            routes: Routes::default(),
        });
        plans.push(LanePlan {
            name: UNROUTED.to_owned(),
            shelf: String::new(),
            kind: "dead letters".to_owned(),
            source: SinkSource::connected(Arc::new(Nowhere)),
            settings: lane,
            store: Some(store(config, "", fixed)),
            observer: Arc::new(Meter(metrics.sink(UNROUTED, &[]), metrics.clone())),
            required: true,
            fingerprint: format!("{:?} {:?}", config.limits.parked, config.dead_letters.payload),
        });
    }
    plans
}

/// A lane whose dead letters go to another is made anew with that one: so nothing is handed to a lane that ends.
fn bind_to_destinations(plans: &mut [LanePlan]) {
    let fingerprints: HashMap<String, String> =
        plans.iter().map(|plan| (plan.name.clone(), plan.fingerprint.clone())).collect();
    for plan in plans {
        let destination = plan.settings.policy.destination.as_ref();
        if let Some(theirs) = destination.and_then(|destination| fingerprints.get(&*destination.to)) {
            plan.fingerprint.push_str(theirs);
        }
    }
}

fn plan(config: &Config, sink: Sink, letters: &Letters, fixed: &Fixed<'_>) -> LanePlan {
    let Fixed { metrics, routes, tables, .. } = *fixed;
    let leads = |route: &Route| route.to.0.iter().any(|target| target.sink == sink.name);
    let label = |route: &Route| route.event_type.0.join(",");
    let mine: Vec<String> = config.routes.iter().filter(|route| leads(route)).map(label).collect();
    let labels: Vec<Option<Arc<str>>> =
        routes.labels().into_iter().map(|label| mine.contains(&(*label).to_owned()).then_some(label)).collect();
    let mut lane = LaneSettings::from(&sink.delivery);
    let (on_reject, on_outage) = answers(&sink.delivery, tables);
    (lane.policy.on_reject, lane.policy.letters) = (on_reject, config.dead_letters.payload);
    lane.policy.destination = sink.delivery.dead_letter_to.as_ref().and_then(|to| {
        let (from, target) = (Arc::from(&*sink.name), Arc::clone(letters.get(to)?));
        Some(Arc::new(Destination { from, to: Arc::from(&**to), target }))
    });
    let observer = Arc::new(Meter(metrics.sink(&sink.name, &labels), metrics.clone()));
    if tables {
        lane.policy.parking = Some(ParkingPolicy {
            outages: on_outage == OnOutage::Park,
            park_after: sink.delivery.park_after.0,
            share: config.limits.inflight.0 / 2,
            max_rows: config.limits.parked.rows,
            max_bytes: config.limits.parked.bytes.0,
            fields: sink.factory.target(),
            routes: routes.clone(),
        });
    }
    // Everything but the routes: those may change while the lane stays.
    let parked = (&config.limits.parked, config.dead_letters.payload);
    let fingerprint = format!(
        "{:?} {:?} {on_reject:?} {on_outage:?} {tables} {} {parked:?}",
        sink.fingerprint, sink.delivery, config.limits.inflight.0
    );
    LanePlan {
        fingerprint,
        shelf: sink.name.clone(),
        kind: sink.kind,
        source: SinkSource::factory(
            sink.factory,
            Arc::new(sink.settings),
            SinkContext::new(sink.name.as_str(), sink.delivery.timeout.0),
        ),
        settings: lane,
        store: tables.then(|| store(config, &sink.name, fixed)),
        observer,
        required: sink.delivery.required,
        name: sink.name,
    }
}

fn store(config: &Config, sink: &str, fixed: &Fixed<'_>) -> Arc<dyn ParkingStore> {
    let options = SqlStoreOptions {
        slot: config.source.slot.clone(),
        sink: sink.to_owned(),
        patience: STORE_PATIENCE,
        idle: STORE_IDLE,
        term: fixed.term.clone(),
    };
    let settings = fixed.settings.clone();
    Arc::new(SqlStore::new(options, move || {
        let settings = settings.clone();
        async move { setup::connect(&settings).await }
    }))
}

/// The sink of events without a route: it takes none. The lane rejects them before they come here; one that an operator
/// wants attempted again comes, and is a dead letter once more.
struct Nowhere;

impl walgate_sink::Sink for Nowhere {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        for index in 0..batch.len() {
            let rejection = Rejection::new(RejectReason::UnknownTarget, "no route matches this event");
            report.rejected(index, rejection);
        }
    }
    async fn check(&self) -> Result<(), SinkError> {
        Ok(())
    }
    async fn close(&self) {}
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

/// A lane's observer over the process's metrics.
struct Meter(SinkMetrics, Metrics);

impl Observer for Meter {
    fn delivered(&self, route: u16, outcome: DeliveryOutcome, count: u64) {
        self.0.delivered(route, outcome.as_str(), count);
        match outcome {
            DeliveryOutcome::Parked | DeliveryOutcome::DeadLettered => {}
            DeliveryOutcome::Duplicate => self.0.duplicates(count),
            // A halted event is held, not discarded.
            DeliveryOutcome::Skipped => (0..count).for_each(|_| self.1.discarded("rejected")),
            DeliveryOutcome::Acknowledged | DeliveryOutcome::Halted => {}
        }
    }

    fn dead_lettered(&self, reason: &'static str) {
        self.0.dead_lettered(reason);
    }

    fn retries(&self, count: u64) {
        self.0.retries(count);
    }

    fn delivery_seconds(&self, took: Duration) {
        self.0.attempt(took);
    }

    fn commit_to_ack(&self, ages: &[(Duration, u64)]) {
        self.0.commit_to_ack(ages);
    }

    fn sink_up(&self, up: bool) {
        self.0.up(up);
    }
}
