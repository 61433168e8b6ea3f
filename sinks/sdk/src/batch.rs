//! What a sink is asked to deliver.

use std::{ops::Deref, sync::Arc};

use bytestring::ByteString;

use crate::{Event, Target};

/// One event for one sink, with its rendered address.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event.
    pub event: Event,
    /// Where in the sink it goes.
    pub target: Target,
    /// Deliveries with the same ordering key reach the sink in commit order; `None`: no order to keep.
    pub ordering_key: Option<ByteString>,
    /// What a broker that deduplicates should deduplicate on: the event's id, made distinct where one event goes
    /// to several targets of the sink. The same in every attempt.
    pub dedup_id: ByteString,
    /// Number of this attempt, from 1.
    pub attempt: u32,
}

/// Deliveries in order. Cheap to clone, and never empty.
#[derive(Clone, Debug)]
pub struct Batch(Arc<[Delivery]>);

impl Batch {
    /// A batch of these deliveries, in this order.
    #[must_use]
    pub fn new(deliveries: Vec<Delivery>) -> Self {
        Batch(deliveries.into())
    }
}

impl Deref for Batch {
    type Target = [Delivery];

    fn deref(&self) -> &[Delivery] {
        &self.0
    }
}

impl From<Vec<Delivery>> for Batch {
    fn from(deliveries: Vec<Delivery>) -> Self {
        Batch::new(deliveries)
    }
}
