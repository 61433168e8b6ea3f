//! The unsettled events: a slab, so that a steady state allocates nothing.

use std::num::NonZeroU32;

use super::transactions::NONE;

/// One tracked event. Each of its deliveries is settled with a copy of the same ticket.
///
/// A ticket is good for as many [`Ring::settle`](super::Ring::settle) as the event has deliveries; after that it is
/// stale, also when its slot serves another event. It means nothing to any other ring than the one that gave it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    slot: u32,
    generation: u32,
}

/// What became of one settled delivery.
pub(super) enum Outcome {
    /// It was the event's last one; the event is gone from the slab.
    Done { transaction: u32, bytes: u64 },
    /// Other deliveries of the event are unsettled.
    Pending,
    /// The ticket's event has gone.
    Stale,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Slot of the event's transaction; in a free entry, the next free slot.
    transaction: u32,
    /// Deliveries that are not settled. Zero: the entry is free.
    remaining: u32,
    /// Counts the events that had this slot.
    generation: u32,
    bytes: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Events {
    entries: Vec<Entry>,
    /// The free slot that is used next, or [`NONE`].
    free: u32,
}

impl Events {
    pub(super) fn new() -> Self {
        Events { entries: Vec::new(), free: NONE }
    }

    /// Forgets every event: all tickets are stale.
    pub(super) fn clear(&mut self) {
        self.free = NONE;
        for (slot, entry) in self.entries.iter_mut().enumerate().rev() {
            if entry.remaining > 0 {
                (entry.remaining, entry.generation) = (0, entry.generation.wrapping_add(1));
            }
            entry.transaction = self.free;
            self.free = u32::try_from(slot).unwrap_or(NONE);
        }
    }

    /// Takes an event in. With 2^32 - 1 events unsettled it gives a ticket that is stale from the start: the
    /// transaction that counts the event never settles then, and the checkpoint holds rather than lose it.
    pub(super) fn insert(&mut self, transaction: u32, deliveries: NonZeroU32, bytes: u64) -> Ticket {
        let remaining = deliveries.get();
        if let Some(entry) = self.entries.get_mut(self.free as usize) {
            let slot = self.free;
            self.free = entry.transaction;
            entry.transaction = transaction;
            entry.remaining = remaining;
            entry.bytes = bytes;
            return Ticket { slot, generation: entry.generation };
        }
        match u32::try_from(self.entries.len()) {
            Ok(slot) if slot != NONE => {
                self.entries.push(Entry { transaction, remaining, generation: 0, bytes });
                Ticket { slot, generation: 0 }
            }
            _ => Ticket { slot: NONE, generation: 0 },
        }
    }

    /// Settles one delivery.
    pub(super) fn settle(&mut self, ticket: Ticket) -> Outcome {
        let Some(entry) = self.entries.get_mut(ticket.slot as usize) else { return Outcome::Stale };
        if entry.remaining == 0 || entry.generation != ticket.generation {
            return Outcome::Stale;
        }
        entry.remaining -= 1;
        if entry.remaining > 0 {
            return Outcome::Pending;
        }
        let done = Outcome::Done { transaction: entry.transaction, bytes: entry.bytes };
        entry.generation = entry.generation.wrapping_add(1);
        entry.transaction = self.free;
        self.free = ticket.slot;
        done
    }

    /// Slots ever used: the most events that were unsettled at once.
    #[cfg(test)]
    pub(super) fn slots(&self) -> usize {
        self.entries.len()
    }

    /// Events, their deliveries' transactions and bytes, by a walk over every slot.
    #[cfg(test)]
    pub(super) fn walk(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        self.entries.iter().filter(|entry| entry.remaining > 0).map(|entry| (entry.transaction, entry.bytes))
    }
}
