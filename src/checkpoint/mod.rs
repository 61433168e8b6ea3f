//! STUB of the checkpoint: just enough for the lane to compile and be tested; replaced when the branches merge.

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
};

use walgate_sink::Lsn;

/// One tracked event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    slot: u32,
    generation: u32,
}

/// What a settlement did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The event's last delivery.
    EventDone,
    /// Others are open.
    Pending,
    /// It was settled before.
    Stale,
}

/// Counts of unsettled deliveries.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    open: Vec<(u32, u64)>,
    events: u64,
    bytes: u64,
}

impl Ring {
    /// An empty ring.
    #[must_use]
    pub fn new(_confirmed: Lsn) -> Self {
        Ring::default()
    }

    /// Opens a transaction.
    pub fn begin(&mut self, _commit_lsn: Lsn) {}

    /// Tracks an event.
    pub fn track(&mut self, deliveries: NonZeroU32, bytes: u64) -> Ticket {
        let slot = u32::try_from(self.open.len()).unwrap_or(u32::MAX);
        self.open.push((deliveries.get(), bytes));
        self.events += 1;
        self.bytes += bytes;
        Ticket { slot, generation: 0 }
    }

    /// Closes the transaction.
    pub fn commit(&mut self, _end: Lsn) {}

    /// Settles one delivery.
    pub fn settle(&mut self, ticket: Ticket) -> Settled {
        match self.open.get_mut(ticket.slot as usize) {
            Some((left, bytes)) if *left > 0 => {
                *left -= 1;
                if *left > 0 {
                    return Settled::Pending;
                }
                self.events -= 1;
                self.bytes -= *bytes;
                Settled::EventDone
            }
            _ => Settled::Stale,
        }
    }

    /// Unsettled events.
    #[must_use]
    pub fn unsettled_events(&self) -> u64 {
        self.events
    }
}

/// The shared ring.
#[derive(Clone, Debug)]
pub struct Checkpoint(Arc<Mutex<Ring>>);

impl Checkpoint {
    /// A checkpoint.
    #[must_use]
    pub fn new(confirmed: Lsn) -> Self {
        Checkpoint(Arc::new(Mutex::new(Ring::new(confirmed))))
    }

    /// Works on the ring.
    pub fn with<R>(&self, work: impl FnOnce(&mut Ring) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Settles deliveries.
    pub fn settle_all(&self, tickets: impl IntoIterator<Item = Ticket>) {
        self.with(|ring| {
            for ticket in tickets {
                ring.settle(ticket);
            }
        });
    }
}
