//! What is decided from outside: by an operator, by a reload, for the sake of the WAL.

use std::time::Instant;

use super::{
    Lane,
    lot::Revival,
    work::{Finished, Item, Note},
};
use crate::control::parking::{Filter, HoldKey};

impl Lane {
    /// Dead letters are to be attempted again: `run` is appended to their dedup ids. The answer is [`Lane::revived`].
    pub fn revive(&mut self, request: i64, filter: Filter, before: i64, run: String) {
        self.lot.revivals.push_back(Revival { request, filter, before, run, rows: 0 });
    }

    /// So many dead letters were deleted, by somebody else.
    pub fn letters_deleted(&mut self, rows: u64) {
        self.lot.dead_letters = self.lot.dead_letters.saturating_sub(rows);
    }

    /// So many were put there by somebody else.
    pub fn letters_added(&mut self, rows: u64) {
        self.lot.dead_letters = self.lot.dead_letters.saturating_add(rows);
    }

    /// Leaves out an event that holds its key. Whether there is such an event.
    pub fn skip(&mut self, event_id: &str, now: Instant) -> Option<Finished> {
        let mut finished = Finished::default();
        let rejection =
            || walgate_sink::Rejection::new(walgate_sink::RejectReason::Refused, "left out on an operator's request");
        let (skipped, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.halted).into_iter().partition(|work| *work.delivery.event.id == *event_id);
        self.halted = kept;
        for work in skipped {
            let attempt = Item::new(work.clone()).attempt();
            self.settle(work.debt, &work.delivery.event, &mut finished);
            self.queue.unhalt(work.delivery.ordering_key.as_ref());
            self.free(&work.delivery, work.is_live());
            finished.notes.push(Note::Skipped { attempt, rejection: rejection() });
        }
        let held: Vec<HoldKey> = self
            .lot
            .keys
            .iter()
            .filter(|(_, key)| key.head.as_deref() == Some(event_id))
            .map(|(hold, _)| hold.clone())
            .collect();
        for hold in &held {
            if let Some(key) = self.lot.keys.get_mut(hold) {
                key.skip = Some(event_id.into());
                (key.failures, key.head, key.history, key.cursor) = (0, None, None, None);
            }
            self.lot.schedule(hold, Some(now));
        }
        if finished.notes.is_empty() && held.is_empty() {
            return None;
        }
        self.progress_at = Some(now);
        Some(finished)
    }

    /// Sends nothing, or goes on. While it sends nothing it is treated as a sink that is down.
    pub fn pause(&mut self, paused: bool, now: Instant) {
        if paused != self.paused {
            (self.paused, self.paused_since) = (paused, paused.then_some(now));
        }
    }

    /// What is parked is not looked at until the lane is woken: the slot, and what is parked with it, may be another
    /// process's still.
    pub fn doze(&mut self, dormant: bool) {
        self.dormant = dormant;
    }

    /// PostgreSQL keeps more WAL than the budget allows: whatever may be parked is, at once.
    pub fn press(&mut self, pressed: bool) {
        self.pressed = pressed;
    }

    /// The WAL budget is used up, and this sink is one of those that are given up: what it is owed, while it does not
    /// work and where it cannot be parked, becomes dead letters.
    pub fn sacrifice(&mut self, sacrificed: bool) {
        self.sacrificed = sacrificed;
    }

    /// Settles everything from the stream that is not in flight, without delivering it: the sink is removed, and nobody
    /// wants it. How many deliveries that are.
    pub fn give_up(&mut self) -> (usize, Finished) {
        let mut finished = Finished::default();
        self.withdraw_live();
        let mut given_up = Vec::new();
        for leaving in std::mem::take(&mut self.lot.leaving) {
            self.lot.left(&leaving);
            given_up.push(leaving.item.work);
        }
        given_up.append(&mut self.halted);
        for work in given_up {
            self.settle(work.debt, &work.delivery.event, &mut finished);
        }
        (finished.settled.len() + finished.rows.len(), finished)
    }
}
