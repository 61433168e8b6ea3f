//! What a lane tells about itself.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use walgate_sink::{Position, Timestamp};

use super::{Lane, health::State, lot::Mode, machine::Flying};
use crate::telemetry::{clip, sentence};

/// The state of a sink and its lane at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LaneStatus {
    /// One word.
    pub state: LaneState,
    /// Deliveries that wait for their turn.
    pub queued: usize,
    /// Deliveries that are being attempted.
    pub in_flight: usize,
    /// Deliveries that wait for their next attempt.
    pub backing_off: usize,
    /// Keys that a rejected event holds; rejected deliveries without a key count each.
    pub halted: usize,
    /// Deliveries that are not settled: all of the above, and what stands behind halted keys.
    pub unsettled: usize,
    /// The event that holds the checkpoint on this sink.
    pub oldest: Option<OldestEvent>,
    /// How long nothing has been settled although something waits; 0 where nothing waits.
    pub stalled_seconds: f64,
    /// Whether `delivery.rate_limit` keeps deliveries waiting at this moment.
    pub rate_limited: bool,
    /// Why the sink is down: `fatal`, `unreachable` or `rejections`.
    pub outage: Option<&'static str>,
    /// For how long it has been down.
    pub outage_seconds: Option<f64>,
    /// What is in walgate's own tables; none: they are not there, or may not be used.
    pub parking: Option<ParkingStatus>,
    /// Attempts so far, retries included.
    pub attempts: u64,
    /// The latest failure or rejection; it stays after the sink has recovered.
    pub last_error: Option<LastError>,
}

/// The state of a lane in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneState {
    /// Everything moves.
    Up,
    /// It works, and more waits than `delivery.rate_limit` lets go.
    Limited,
    /// Some deliveries wait for another attempt; the rest moves.
    Retrying,
    /// A rejected event holds its key; the rest moves.
    Halted,
    /// The sink does not work: nothing is sent.
    Down,
    /// A check, or a single delivery, is finding out whether the sink works again.
    Probing,
    /// The receiver has gone for good.
    Closed,
    /// The sink does not work: what it is owed goes to the table of parked deliveries.
    Parking,
    /// The sink works, and is given what was parked, in order.
    Draining,
    /// An operator wants nothing to be sent.
    Paused,
    /// It is not known yet what is parked: nothing is sent before.
    Opening,
}

/// What of a sink is in walgate's own tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ParkingStatus {
    /// Deliveries in `walgate.parked`, those that are on their way out included.
    pub rows: u64,
    /// Bytes of their events.
    pub bytes: u64,
    /// Keys that are parked on their own.
    pub keys: usize,
    /// Those of them that wait for an operator.
    pub halted_keys: usize,
    /// Deliveries that are on their way into a table.
    pub storing: usize,
    /// Deliveries in `walgate.dead_letters`, as far as is known.
    pub dead_letters: u64,
    /// The table is as full as `limits.parked` allows: what comes is held.
    pub full: bool,
    /// Why the tables cannot be used at present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// The oldest event that is not settled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OldestEvent {
    /// The event's identity.
    pub event_id: String,
    /// Its place in the order of commits.
    #[serde(serialize_with = "as_text")]
    pub position: Position,
    /// When it was committed.
    #[serde(serialize_with = "as_rfc3339")]
    pub committed_at: Timestamp,
}

/// The latest failure or rejection.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LastError {
    /// What happened, in the sink's words.
    pub message: String,
    /// The class of the failure, or the reason of the rejection.
    pub kind: &'static str,
    /// When, as RFC 3339.
    pub at: String,
    /// Of which event; `None`: it concerns the sink.
    pub event_id: Option<String>,
    /// In which attempt.
    pub attempt: Option<u32>,
    /// Time to the next attempt or probe; `None`: there is none.
    pub next_retry_seconds: Option<f64>,
}

impl Lane {
    /// The state in plain words and numbers. Looks at what is in flight, backing off or held, and at each busy key.
    /// `wall` is the wall clock's time at `now`.
    #[must_use]
    pub fn status(&self, now: Instant, wall: Timestamp) -> LaneStatus {
        let limited = self.limited_until(now).is_some();
        let state = match self.health.state() {
            State::Closed => LaneState::Closed,
            _ if self.lot.mode == Mode::Unread => LaneState::Opening,
            _ if self.paused => LaneState::Paused,
            State::Up if self.lot.mode == Mode::On => LaneState::Draining,
            _ if self.lot.mode == Mode::On => LaneState::Parking,
            State::Down { .. } => LaneState::Down,
            State::Checking | State::Trial { .. } => LaneState::Probing,
            State::Up if !self.halted.is_empty() => LaneState::Halted,
            State::Up if self.backoffs.len() > 0 => LaneState::Retrying,
            State::Up if limited => LaneState::Limited,
            State::Up => LaneState::Up,
        };
        let seconds_since = |then: Instant| now.saturating_duration_since(then).as_secs_f64();
        let oldest = self.oldest();
        // A sink that is sent as much as it may be sent is not stuck, however long the pauses between two deliveries are.
        let stalled =
            oldest.as_ref().filter(|_| state != LaneState::Limited || self.in_flight > 0).map_or(0.0, |oldest| {
                let waiting =
                    Duration::from_micros(u64::try_from(wall.0.saturating_sub(oldest.committed_at.0)).unwrap_or(0))
                        .as_secs_f64();
                self.progress_at.map_or(waiting, |then| waiting.min(seconds_since(then)))
            });
        LaneStatus {
            state,
            queued: self.queue.len(),
            in_flight: self.in_flight,
            backing_off: self.backoffs.len(),
            halted: self.queue.halted(),
            unsettled: self.unsettled(),
            oldest,
            stalled_seconds: stalled,
            rate_limited: limited,
            parking: self.parking_status(),
            outage: self.health.outage().map(|(cause, _)| cause.as_str()),
            outage_seconds: self.health.outage().map(|(_, since)| seconds_since(since)),
            attempts: self.attempts,
            last_error: self.last_error.as_ref().map(|trouble| LastError {
                message: sentence(&trouble.message),
                kind: trouble.kind,
                at: rfc3339(wall, now.saturating_duration_since(trouble.at)),
                event_id: trouble.event.as_ref().map(|(id, _)| clip(id)),
                attempt: trouble.event.as_ref().map(|(_, attempt)| *attempt),
                next_retry_seconds: trouble.next_retry.map(|retry| retry.saturating_duration_since(now).as_secs_f64()),
            }),
        }
    }

    fn parking_status(&self) -> Option<ParkingStatus> {
        let lot = &self.lot;
        lot.is_usable().then(|| ParkingStatus {
            rows: lot.rows,
            bytes: lot.bytes,
            keys: lot.keys.len(),
            halted_keys: lot.keys.values().filter(|key| key.due.is_none() && key.loaded == 0).count(),
            storing: lot.unsettled(),
            dead_letters: lot.dead_letters,
            full: lot.is_full(),
            error: lot.error.clone(),
        })
    }

    /// The oldest event that holds the checkpoint: what came from the table holds nothing.
    fn oldest(&self) -> Option<OldestEvent> {
        let flying = self.flights.values().flat_map(Flying::live);
        let waiting = self.backoffs.items().filter(|item| item.is_live()).map(|item| &item.work);
        let stored = self.lot.items().filter(|item| item.is_live()).map(|item| &item.work);
        let held = self.queue.oldest().chain(waiting).chain(stored).chain(&self.halted).map(|work| &work.delivery);
        let oldest = flying.chain(held).map(|delivery| &delivery.event).min_by_key(|event| event.position)?;
        Some(OldestEvent { event_id: clip(&oldest.id), position: oldest.position, committed_at: oldest.committed_at })
    }
}

/// The time `ago` before `wall`, as RFC 3339.
pub(super) fn rfc3339(wall: Timestamp, ago: Duration) -> String {
    let micros = u64::try_from(wall.0).unwrap_or(0);
    let since_epoch = Duration::from_micros(micros).saturating_sub(ago);
    // Years beyond 9999 have no such form.
    let since_epoch = since_epoch.min(Duration::from_secs(253_402_300_799));
    let time: SystemTime = UNIX_EPOCH + since_epoch;
    humantime::format_rfc3339_micros(time).to_string()
}

fn as_text<S: Serializer>(position: &Position, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(position)
}

fn as_rfc3339<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*time, Duration::ZERO))
}
