//! What a lane tells about itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use walgate_sink::{Position, Timestamp};

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
    /// Why the sink is down: `fatal`, `unreachable` or `rejections`.
    pub outage: Option<&'static str>,
    /// For how long it has been down.
    pub outage_seconds: Option<f64>,
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

/// The beginning of an event's identity, control characters escaped: it is whatever a writer to the outbox put there.
pub(super) fn clip(id: &str) -> String {
    const LONGEST: usize = 256;
    let mut text = String::with_capacity(id.len().min(LONGEST));
    for char in id.chars().take(LONGEST) {
        if char.is_control() { text.extend(char.escape_default()) } else { text.push(char) }
    }
    if id.chars().nth(LONGEST).is_some() {
        text.push_str("...");
    }
    text
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
