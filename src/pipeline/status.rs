//! What `/status` and `walgate status` show.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::watch;
use walgate_sink::Lsn;

use crate::{
    checkpoint::{Checkpoint, CheckpointStatus},
    config::CleanupMode,
    control::{SlotReport, WalHolder, WalUse, cleanup::Measures},
    lane::{LaneState, LaneStatus},
    metrics::{Format, Metrics},
    pipeline::{
        NamedLane,
        cleanup::{CleanupState, CleanupStatus, LastRound},
    },
};

/// What the source is doing, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// Looking at the server, or connecting to the slot.
    Starting,
    /// Another process reads the slot: this one takes over when it ends.
    Standby,
    /// Events are read.
    Streaming,
    /// An event without a route holds everything (`unrouted: halt`).
    Halted,
    /// The connection was lost; another attempt follows.
    Reconnecting,
    /// Draining before the end.
    Stopping,
}

/// The source's state with the sentence that explains it.
#[derive(Clone, Debug, Serialize)]
pub struct SourceHealth {
    /// One word.
    pub state: SourceState,
    /// Why, where that is not plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Connections to the slot that were lost.
    pub reconnects: u64,
    #[serde(skip)]
    since: Instant,
}

/// What does not change while the process lives.
#[derive(Clone, Debug, Serialize)]
pub struct Identity {
    /// Version of walgate.
    pub version: &'static str,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The outbox's table.
    pub table: String,
    /// Where PostgreSQL is, without user and password.
    pub server: String,
}

/// One sink in [`GatewayStatus`].
#[derive(Clone, Debug, Serialize)]
pub struct SinkStatus {
    /// Its name in the configuration.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Whether `/readyz` speaks of it.
    pub required: bool,
    /// State, queue, oldest unsettled event, last error.
    #[serde(flatten)]
    pub lane: LaneStatus,
    /// WAL between its oldest unsettled event and the end of what was received, in bytes; 0: it owes nothing.
    pub lag_bytes: u64,
    /// Age of its oldest unsettled event, in seconds; 0: it owes nothing.
    pub lag_seconds: f64,
}

/// What the newest look at the catalogs has found.
#[derive(Clone, Debug, Serialize)]
pub struct CatalogStatus {
    /// Everything that leads from the table to the stream is in order.
    pub ok: bool,
    /// What is not.
    pub findings: Vec<String>,
    /// How long ago that was.
    pub checked_seconds_ago: f64,
}

/// The gateway at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct GatewayStatus {
    /// What does not change.
    #[serde(flatten)]
    pub identity: Identity,
    /// Since the start of the process.
    pub uptime_seconds: f64,
    /// How often a configuration was taken up, the first time included.
    pub generation: u64,
    /// When that was the last time, as RFC 3339.
    pub configured_at: String,
    /// The stream.
    pub source: SourceHealth,
    /// For how long the source has been in its state.
    pub source_seconds: f64,
    /// The checkpoint.
    pub checkpoint: CheckpointStatus,
    /// Bound of the bytes that may be unsettled.
    pub inflight_limit_bytes: u64,
    /// The sinks, in the order of the configuration.
    pub sinks: Vec<SinkStatus>,
    /// The slot as the server sees it, and who else keeps WAL; none: not known yet.
    pub server_slots: Option<Arc<SlotReport>>,
    /// How much of the WAL that the server may keep for the slot is used; none: not known yet.
    pub wal_budget: Option<WalUse>,
    /// What keeps committed events from coming though the stream is up, each with what mends it; none: not looked yet.
    pub catalog: Option<CatalogStatus>,
    /// The clean-up of settled rows.
    pub cleanup: CleanupStatus,
    /// Who keeps the server from removing WAL, as a sentence.
    pub wal_holder: String,
    /// Slots of others that nobody reads and that keep WAL, each with what to type.
    pub idle_slots: Vec<String>,
    /// What keeps `/readyz` from saying yes.
    pub not_ready: Vec<String>,
}

/// Where the parts of the gateway leave their state, and where the outside reads it. Cheap to clone.
#[derive(Clone)]
pub struct StatusBoard {
    shared: Arc<Shared>,
}

struct Shared {
    identity: Identity,
    started: Instant,
    source: Mutex<SourceHealth>,
    checkpoint: Mutex<Option<Checkpoint>>,
    lanes: Mutex<Vec<NamedLane>>,
    slot: Mutex<Option<watch::Receiver<Option<Arc<SlotReport>>>>>,
    wal_use: Mutex<Option<WalUse>>,
    /// What the catalogs lack, and when they were looked at.
    catalog: Mutex<Option<(Vec<String>, Instant)>>,
    /// `limits.run_ahead` is reached: nothing more is read until the checkpoint gets on.
    far_ahead: AtomicBool,
    cleanup: Mutex<CleanupStatus>,
    inflight_limit: u64,
    stuck_after: Duration,
    metrics: Metrics,
    /// How often a configuration was taken up, and when the last time.
    generation: Mutex<(u64, walgate_sink::Timestamp)>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl StatusBoard {
    /// A board on which nothing stands but who this is.
    #[must_use]
    pub fn new(identity: Identity, inflight_limit: u64, stuck_after: Duration, metrics: Metrics) -> Self {
        let now = Instant::now();
        StatusBoard {
            shared: Arc::new(Shared {
                identity,
                started: now,
                source: Mutex::new(SourceHealth {
                    state: SourceState::Starting,
                    detail: None,
                    reconnects: 0,
                    since: now,
                }),
                checkpoint: Mutex::new(None),
                lanes: Mutex::default(),
                slot: Mutex::default(),
                wal_use: Mutex::default(),
                catalog: Mutex::default(),
                far_ahead: AtomicBool::new(false),
                cleanup: Mutex::default(),
                inflight_limit,
                stuck_after,
                metrics,
                generation: Mutex::new((0, walgate_sink::Timestamp::now())),
            }),
        }
    }

    pub(super) fn set_lanes(&self, checkpoint: Checkpoint, lanes: Vec<NamedLane>) {
        *lock(&self.shared.checkpoint) = Some(checkpoint);
        *lock(&self.shared.lanes) = lanes;
    }

    /// The configuration of this number is in force from now on.
    pub(super) fn generation(&self, number: u64) {
        *lock(&self.shared.generation) = (number, walgate_sink::Timestamp::now());
        self.shared.metrics.generation.set(i64::try_from(number).unwrap_or(i64::MAX));
    }

    /// Another configuration is in force from now on; its number.
    pub(super) fn next_generation(&self) -> u64 {
        let number = lock(&self.shared.generation).0 + 1;
        self.generation(number);
        number
    }

    pub(super) fn lanes(&self) -> Vec<NamedLane> {
        lock(&self.shared.lanes).clone()
    }

    pub(super) fn set_slot(&self, slot: watch::Receiver<Option<Arc<SlotReport>>>) {
        *lock(&self.shared.slot) = Some(slot);
    }

    /// So much of the WAL budget is used.
    pub(super) fn wal_use(&self, seen: WalUse) {
        self.shared.metrics.wal_budget(seen.used_ratio, seen.bytes, seen.seconds_left);
        *lock(&self.shared.wal_use) = Some(seen);
    }

    /// So many slots of others keep WAL that nobody reads, and the most that one of them keeps.
    pub(super) fn idle_slots(&self, slots: u64, most_bytes: u64) {
        self.shared.metrics.idle_slots(slots, most_bytes);
    }

    /// The catalogs were looked at: what is not in order there.
    pub(super) fn catalog(&self, findings: Vec<String>) {
        self.shared.metrics.catalog_ok(findings.is_empty());
        *lock(&self.shared.catalog) = Some((findings, Instant::now()));
    }

    /// `limits.run_ahead` is reached, or is not any more.
    pub(super) fn set_far_ahead(&self, far: bool) {
        self.shared.far_ahead.store(far, Ordering::Release);
    }

    /// Whether `limits.run_ahead` is reached.
    pub(super) fn is_far_ahead(&self) -> bool {
        self.shared.far_ahead.load(Ordering::Acquire)
    }

    /// So many dead letters were older than they may become, and are deleted.
    pub(super) fn letters_expired(&self, rows: u64) {
        self.shared.metrics.letters_expired(rows);
    }

    /// What the clean-up is doing.
    pub(super) fn cleanup(&self, mode: CleanupMode, state: CleanupState, why: Option<&str>) {
        self.shared.metrics.cleanup.blocked.set(i64::from(state == CleanupState::Blocked));
        let mut status = lock(&self.shared.cleanup);
        (status.mode, status.state, status.why) = (mode, state, why.map(str::to_owned));
    }

    /// The clean-up has done a round.
    pub(super) fn cleaned_up(&self, mode: CleanupMode, rows: u64, took: Duration) {
        self.shared.metrics.cleanup.touched(mode.as_str(), rows);
        let mut status = lock(&self.shared.cleanup);
        status.rows += rows;
        let at = walgate_sink::Timestamp::now().to_string();
        status.last_round = Some(LastRound { at, rows, seconds: took.as_secs_f64() });
    }

    /// A round of the clean-up has failed.
    pub(super) fn cleanup_failed(&self, error: String) {
        self.shared.metrics.cleanup.errors.inc();
        let mut status = lock(&self.shared.cleanup);
        status.errors += 1;
        status.last_error = Some(error);
    }

    /// How much there is to clean up.
    pub(super) fn cleanup_measured(&self, found: Measures) {
        let unsettled = lock(&self.shared.checkpoint).as_ref().map_or(0, |held| held.snapshot().unsettled_events);
        let kept = Some(found.rows.saturating_sub(unsettled));
        let Measures { bytes, dead, oldest_settled, .. } = found;
        self.shared.metrics.cleanup.measured(kept, oldest_settled, Some(bytes), Some(dead));
        let mut status = lock(&self.shared.cleanup);
        (status.kept_rows, status.oldest_settled_seconds) = (kept, oldest_settled);
        (status.table_bytes, status.dead_rows) = (Some(bytes), Some(dead));
    }

    /// WAL written since what is confirmed, as the last look at the slot had it.
    pub(super) fn slot_lag(&self) -> Option<u64> {
        self.slot_report()?.slot.as_ref()?.lag_bytes
    }

    /// Who keeps the server from removing WAL, as a sentence.
    pub(super) fn wal_holder(&self) -> String {
        self.status().wal_holder
    }

    /// Whether another process has the slot.
    pub(super) fn stands_by(&self) -> bool {
        lock(&self.shared.source).state == SourceState::Standby
    }

    /// The source has entered a state.
    pub fn source(&self, state: SourceState, detail: Option<String>) {
        self.shared.metrics.streaming.set(i64::from(state == SourceState::Streaming));
        let mut source = lock(&self.shared.source);
        if state == SourceState::Reconnecting && source.state == SourceState::Streaming {
            source.reconnects += 1;
            self.shared.metrics.reconnects.inc();
        }
        if state != source.state {
            source.since = Instant::now();
        }
        (source.state, source.detail) = (state, detail);
    }

    /// The metrics' text, with the gauges brought up to date.
    #[must_use]
    pub fn metrics(&self, format: Format) -> String {
        let metrics = &self.shared.metrics;
        if let Some(checkpoint) = lock(&self.shared.checkpoint).as_ref().map(Checkpoint::snapshot) {
            metrics.checkpoint(checkpoint.flush_lsn.0, checkpoint.unsettled_bytes);
        }
        let report = self.slot_report();
        let slot = report.as_ref().and_then(|report| report.slot.as_ref());
        metrics.slot(slot.and_then(|slot| slot.lag_bytes), slot.and_then(|slot| slot.retained_bytes));
        for lane in lock(&self.shared.lanes).iter() {
            let status = lane.handle.status();
            let sink = metrics.sink(&lane.name, &[]);
            sink.inflight(status.unsettled as u64);
            if let Some(parking) = &status.parking {
                sink.parked(parking.rows, parking.bytes, parking.keys as u64);
            }
            metrics.readings(&lane.name, lane.handle.readings());
            sink.up(status.outage.is_none() && status.state != LaneState::Closed);
        }
        metrics.encode(format)
    }

    /// The sink that holds the checkpoint.
    pub(super) fn holder(&self) -> Option<String> {
        let lanes = lock(&self.shared.lanes).clone();
        let oldest = |lane: &NamedLane| lane.handle.status().oldest.map(|oldest| oldest.position);
        lanes
            .iter()
            .filter_map(|lane| Some((oldest(lane)?, lane.name.clone())))
            .min_by_key(|(oldest, _)| *oldest)
            .map(|(_, name)| name)
    }

    fn slot_report(&self) -> Option<Arc<SlotReport>> {
        lock(&self.shared.slot).as_ref().and_then(|slot| slot.borrow().clone())
    }

    /// Everything at this moment.
    #[must_use]
    pub fn status(&self) -> GatewayStatus {
        let source = lock(&self.shared.source).clone();
        let (generation, configured_at) = *lock(&self.shared.generation);
        let checkpoint = lock(&self.shared.checkpoint)
            .as_ref()
            .map_or_else(|| Checkpoint::new(Lsn::ZERO).snapshot(), Checkpoint::snapshot);
        let server = self.slot_report();
        let written = server.as_ref().and_then(|report| report.current_wal_lsn).unwrap_or(checkpoint.received_lsn);
        let end = written.max(checkpoint.received_lsn);
        let sinks: Vec<SinkStatus> = lock(&self.shared.lanes).iter().map(|lane| sink_status(lane, end)).collect();
        let not_ready = self.not_ready(&source, &sinks);
        GatewayStatus {
            identity: self.shared.identity.clone(),
            generation,
            configured_at: configured_at.to_string(),
            uptime_seconds: self.shared.started.elapsed().as_secs_f64(),
            source_seconds: source.since.elapsed().as_secs_f64(),
            source,
            checkpoint,
            inflight_limit_bytes: self.shared.inflight_limit,
            wal_holder: wal_holder(&sinks, server.as_deref()),
            idle_slots: server.iter().flat_map(|report| report.idle()).map(WalHolder::advice).collect(),
            sinks,
            server_slots: server,
            wal_budget: lock(&self.shared.wal_use).clone(),
            catalog: lock(&self.shared.catalog).as_ref().map(|(findings, at)| CatalogStatus {
                ok: findings.is_empty(),
                findings: findings.clone(),
                checked_seconds_ago: at.elapsed().as_secs_f64(),
            }),
            cleanup: lock(&self.shared.cleanup).clone(),
            not_ready,
        }
    }

    fn not_ready(&self, source: &SourceHealth, sinks: &[SinkStatus]) -> Vec<String> {
        let mut reasons = Vec::new();
        if !matches!(source.state, SourceState::Streaming | SourceState::Standby) {
            let detail = source.detail.as_ref().map_or_else(String::new, |detail| format!(": {detail}"));
            let state = match source.state {
                SourceState::Starting => "connecting to PostgreSQL",
                SourceState::Reconnecting => "not streaming, reconnecting to PostgreSQL",
                SourceState::Halted => "halted",
                _ => "stopping",
            };
            reasons.push(format!("{state}{detail}"));
        }
        for finding in lock(&self.shared.catalog).iter().flat_map(|(findings, _)| findings) {
            reasons.push(format!("committed events may not be seen: {finding}"));
        }
        let stuck_after = self.shared.stuck_after.as_secs_f64();
        let required = || sinks.iter().filter(|sink| sink.required);
        for sink in required().filter(|sink| sink.lane.stalled_seconds > stuck_after) {
            let error = sink.lane.last_error.as_ref().map_or("no error is known", |error| &error.message);
            reasons.push(format!(
                "sink `{}` has settled nothing for {:.0} s: {error}",
                sink.name, sink.lane.stalled_seconds
            ));
        }
        for sink in required().filter(|sink| {
            sink.lane.state == LaneState::Parking && sink.lane.outage_seconds.is_some_and(|outage| outage > stuck_after)
        }) {
            let error = sink.lane.last_error.as_ref().map_or("no error is known", |error| &error.message);
            let parked = sink.lane.parking.as_ref().map_or(0, |parking| parking.rows);
            reasons.push(format!(
                "sink `{}` has been down for {:.0} s, and {parked} deliveries are parked for it: {error}",
                sink.name,
                sink.lane.outage_seconds.unwrap_or(0.0)
            ));
        }
        for sink in required().filter(|sink| sink.lane.halted > 0 && sink.lag_seconds > stuck_after) {
            reasons.push(format!(
                "sink `{}` holds {} rejected events (`on_reject: halt`), and the checkpoint with them: see its last error",
                sink.name, sink.lane.halted
            ));
        }
        reasons
    }
}

fn sink_status(lane: &NamedLane, end: Lsn) -> SinkStatus {
    let NamedLane { name, kind, required, handle, .. } = lane.clone();
    let lane = handle.status();
    let oldest = lane.oldest.as_ref();
    SinkStatus {
        name,
        kind,
        required,
        lag_bytes: oldest.map_or(0, |oldest| end.bytes_since(oldest.position.commit_lsn)),
        lag_seconds: oldest.map_or(0.0, |oldest| oldest.committed_at.age().as_secs_f64()),
        lane,
    }
}

/// The checkpoint is held by the oldest unsettled event of all sinks; where nothing is unsettled, by nobody here.
fn wal_holder(sinks: &[SinkStatus], server: Option<&SlotReport>) -> String {
    let holding = sinks
        .iter()
        .filter_map(|sink| Some((sink, sink.lane.oldest.as_ref()?)))
        .min_by_key(|(_, oldest)| oldest.position);
    if let Some((sink, oldest)) = holding {
        return format!(
            "sink `{}` holds the checkpoint with event {} ({:.0} s old)",
            sink.name, oldest.event_id, sink.lag_seconds
        );
    }
    match server.and_then(SlotReport::who_holds_the_wal) {
        Some(holder) => format!("no sink: everything received is settled; on the server, {holder}"),
        None => "no sink: everything received is settled".to_owned(),
    }
}
