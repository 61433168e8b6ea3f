//! How a lane deals with failures.

use std::{sync::Arc, time::Duration};

use super::{exchange::Exchange, letters::Destination, lot::ParkingPolicy};
use crate::config::{Delivery, LetterPayload, OnReject, Rate};

/// No pause is longer, whatever the configuration asks for: adding it to an [`std::time::Instant`] must not overflow.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// What a lane does about failures and rejections.
#[derive(Clone, Debug)]
pub struct LanePolicy {
    /// What happens to an event that the sink can never accept.
    pub on_reject: OnReject,
    /// Pause after the first failed attempt.
    pub initial: Duration,
    /// The longest pause, and the most that a sink can ask for by `retry_after`.
    pub max: Duration,
    /// The longest pause while the sink cannot be reached.
    pub connection_max: Duration,
    /// Pause before the first probe of a sink that somebody has to mend.
    pub fatal_initial: Duration,
    /// This many failures in a row without any answer, the last one of the connection, are an outage.
    pub unreachable_after: u32,
    /// This many rejections in a row without a success are an outage.
    pub rejections: u32,
    /// Deliveries that may be sent in a time, repeats and trials counted; one second's worth at once.
    pub rate_limit: Option<Rate>,
    /// So many attempts, and what fails is a dead letter; none: for ever.
    pub max_attempts: Option<u32>,
    /// What has failed for so long is a dead letter; none: never.
    pub max_age: Option<Duration>,
    /// How walgate's own tables are used; none: there are none.
    pub parking: Option<ParkingPolicy>,
    /// What every dead letter's class is, in place of its rejection's.
    pub dead_reason: Option<&'static str>,
    /// The sink that gets what would become a dead letter; none: the table does. What is given up for the sake of the WAL
    /// goes to the table all the same.
    pub destination: Option<Arc<Destination>>,
    /// Whether dead letters keep the event.
    pub letters: LetterPayload,
    /// Whether it begins [dormant](super::Lane::doze).
    pub dormant: bool,
}

impl Default for LanePolicy {
    fn default() -> Self {
        LanePolicy::from(&Delivery::default())
    }
}

impl From<&Delivery> for LanePolicy {
    fn from(delivery: &Delivery) -> Self {
        LanePolicy {
            on_reject: delivery.on_reject.unwrap_or(OnReject::Halt),
            initial: delivery.retry.initial.0,
            max: delivery.retry.max.0,
            connection_max: delivery.retry.connection_max.0,
            fatal_initial: Duration::from_secs(1),
            unreachable_after: 5,
            rejections: 25,
            rate_limit: delivery.rate_limit,
            max_attempts: delivery.retry.max_attempts,
            max_age: delivery.retry.max_age.map(|age| age.0),
            parking: None,
            dead_reason: None,
            destination: None,
            letters: LetterPayload::default(),
            dormant: false,
        }
    }
}

impl LanePolicy {
    /// The pause that a sink asks for, within what the operator allows.
    pub(super) fn bounded(&self, retry_after: Duration) -> Duration {
        retry_after.min(self.max).min(LONGEST_PAUSE)
    }
}

/// How the lane of one sink is driven. What is `None` is the sink's own default.
#[derive(Clone, Debug)]
pub struct LaneSettings {
    /// What happens on failures and rejections.
    pub policy: LanePolicy,
    /// Batches in flight at once.
    pub concurrency: Option<usize>,
    /// Deliveries in one batch; the sink's limit is never passed.
    pub batch: Option<usize>,
    /// How long a batch that is not full may wait for more.
    pub linger: Duration,
    /// Time that one attempt of one delivery may take.
    pub timeout: Duration,
    /// Where the lanes of the process find each other.
    pub exchange: Exchange,
}

impl Default for LaneSettings {
    fn default() -> Self {
        LaneSettings::from(&Delivery::default())
    }
}

impl From<&Delivery> for LaneSettings {
    fn from(delivery: &Delivery) -> Self {
        LaneSettings {
            policy: LanePolicy::from(delivery),
            concurrency: delivery.concurrency,
            batch: delivery.batch,
            linger: delivery.linger.0,
            timeout: delivery.timeout.0,
            exchange: Exchange::default(),
        }
    }
}
