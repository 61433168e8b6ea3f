//! Dead letters that another sink gets, instead of their table.
//!
//! ```text
//!   rejected, given up          hand_over            handed_over             the other sink has settled it
//!   -------------------> handing --------> passing ---------------> handed ------------------------------> settled
//!                           ^                 |
//!                           +-----------------+ that sink is not there at present
//! ```
//!
//! Its key is held while it is *handing* or *passing*, for as long as a turn of the runner takes. Then the other lane has
//! the delivery, and what is owed for it: a ticket is settled by that lane as if the stream had given it to it; a row stays
//! in this lane's table, marked as in use here, until the other lane has settled its delivery. So at any moment the ticket
//! is unsettled or the row is in the table, until the other sink has acknowledged the event, or parked it, or made a dead
//! letter of it. A crash in between brings the event again: it is rejected again, and given to the other sink again, with
//! the same dedup id.

use std::{fmt::Write as _, sync::Arc, time::Instant};

use bytestring::ByteString;
use sha2::{Digest as _, Sha256};
use walgate_sink::{Delivery, Event, Headers};

use super::{
    Lane,
    lot::Burial,
    work::{Debt, Finished, Note, Work},
};
use crate::{config::LetterPayload, metrics::NO_ROUTE, router::Direct, telemetry::sentence};

/// Headers that a dead letter has beside those of its event. Names that begin with `walgate-` are the sinks' own.
const SINK: &str = "dead-letter-sink";
const REASON: &str = "dead-letter-reason";
const MESSAGE: &str = "dead-letter-message";
const ATTEMPTS: &str = "dead-letter-attempts";

/// The sink that gets the dead letters of another one.
#[derive(Debug)]
pub struct Destination {
    /// Whose dead letters they are.
    pub from: Arc<str>,
    /// Who gets them.
    pub to: Arc<str>,
    /// Where in it they go.
    pub target: Arc<Direct>,
}

impl Destination {
    /// The delivery that the other sink gets.
    fn letter(&self, burial: &Burial, payload: LetterPayload) -> Work {
        let Burial { item, reason, message, .. } = burial;
        let delivery = &item.work.delivery;
        let dedup_id = self.dedup_id(delivery);
        let address = self.target.address(&delivery.event);
        let mut event = delivery.event.clone();
        let keep = payload == LetterPayload::Keep;
        let own = [
            (SINK, Some(ByteString::from(&*self.from))),
            (REASON, Some(ByteString::from_static(reason))),
            // It may quote the event.
            (MESSAGE, keep.then(|| sentence(message).into())),
            (ATTEMPTS, Some(item.attempts.to_string().into())),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((ByteString::from_static(name), value?)));
        event.headers = match payload {
            LetterPayload::Keep => foreign(&event).chain(own).collect::<Headers>(),
            LetterPayload::Omit => own.collect(),
        };
        if !keep {
            event.payload = None;
        }
        let ordering_key = address.ordering_key.or_else(|| event.key.clone());
        Work {
            delivery: Delivery { event, target: address.target, ordering_key, dedup_id, attempt: 0 },
            debt: item.work.debt,
            route: NO_ROUTE,
            invalid: address.invalid,
        }
    }

    /// `<id>-dead-<hash>`: the event may be delivered to that sink by a route as well, and be a dead letter of several
    /// sinks. The hash is of the sink's name and of the dedup id that the delivery had there, as the router's
    /// (`dedup.rs`) is of targets; it is the same after a crash, and in every version.
    fn dedup_id(&self, delivery: &Delivery) -> ByteString {
        let mut hash = Sha256::new();
        for text in [&*self.from, &*delivery.dedup_id] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
        let mut id = format!("{}-dead-", delivery.event.id);
        for byte in hash.finalize().into_iter().take(8) {
            // Writing to a string cannot fail.
            let _ = write!(id, "{byte:02x}");
        }
        id.into()
    }
}

/// Its row in this lane's table, and the bytes of its event.
fn row_of(burial: &Burial) -> Option<(i64, usize)> {
    match burial.item.work.debt {
        Debt::Parked { row, .. } => Some((row, burial.item.work.delivery.event.size())),
        Debt::Stream(_) | Debt::Handed { .. } => None,
    }
}

/// The event's own headers, without any that could be taken for walgate's.
fn foreign(event: &Event) -> impl Iterator<Item = (ByteString, ByteString)> {
    let own = |name: &str| [SINK, REASON, MESSAGE, ATTEMPTS].iter().any(|own| own.eq_ignore_ascii_case(name));
    event.headers.iter().filter(move |(name, _)| !own(name)).cloned()
}

impl Lane {
    /// Whether [`Lane::hand_over`] has something to give.
    #[must_use]
    pub fn has_letters(&self) -> bool {
        !self.lot.handing.is_empty()
    }

    /// Dead letters for the sink that gets them; [`Lane::handed_over`] is called whatever comes of it. `lane`: the number of
    /// this one, by which the other says which rows it has settled.
    pub fn hand_over(&mut self, lane: u64) -> Vec<Work> {
        let Some(destination) = self.policy.destination.clone() else { return Vec::new() };
        let letters: Vec<Burial> = self.lot.handing.drain(..).collect();
        let letter = |burial: &Burial| {
            let mut work = destination.letter(burial, self.policy.letters);
            if let Debt::Parked { row, .. } = work.debt {
                work.debt = Debt::Handed { lane, row };
            }
            work
        };
        let works = letters.iter().map(letter).collect();
        // Now: the other lane may have settled it before it is known here that it has it. It is in memory until then, of
        // which the window is the bound.
        for (row, size) in letters.iter().filter_map(row_of) {
            self.lot.handed.insert(row, size);
            self.lot.loaded_bytes += size;
        }
        self.lot.passing.extend(letters);
        works
    }

    /// What [`Lane::hand_over`] gave is the other lane's now; or that one is not there, and has taken nothing.
    pub fn handed_over(&mut self, taken: bool, now: Instant) -> Finished {
        let mut finished = Finished::default();
        let passing = std::mem::take(&mut self.lot.passing);
        if !taken {
            for burial in passing.into_iter().rev() {
                if let Some((row, size)) = row_of(&burial)
                    && self.lot.handed.remove(&row).is_some()
                {
                    self.lot.loaded_bytes = self.lot.loaded_bytes.saturating_sub(size);
                }
                self.lot.handing.push_front(burial);
            }
            return finished;
        }
        let to = self.policy.destination.as_ref().map(|destination| Arc::clone(&destination.to));
        for Burial { item, reason, message, .. } in passing {
            let delivery = &item.work.delivery;
            match item.work.debt {
                Debt::Parked { held, .. } => self.row_left(held, delivery, now),
                debt => self.let_go(debt, &delivery.event),
            }
            self.free(delivery, item.is_live());
            self.progress_at = Some(now);
            let message = (self.policy.letters == LetterPayload::Keep).then_some(message);
            finished.notes.push(Note::DeadLettered { attempt: item.attempt(), reason, message, to: to.clone() });
        }
        finished
    }

    /// The other sink has settled what it was given of this row.
    pub fn row_settled(&mut self, row: i64) {
        if let Some(size) = self.lot.handed.remove(&row) {
            self.lot.loaded_bytes = self.lot.loaded_bytes.saturating_sub(size);
            self.lot.removed.push(row);
        }
    }
}
