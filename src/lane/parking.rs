//! When the lane uses walgate's own tables, and what leaves memory for them: see [`lot`](super::lot) for the states, and
//! `chores.rs` for the operations.
//!
//! What makes it safe to settle a delivery by its row: when the row of an event is written, everything before it of its
//! key is done, or in the table, or written with it, or a dead letter that another sink has taken on. So a crash at any moment leaves, of each key, nothing to be delivered
//! before what is in the table but what is in the table; and what the stream sends again are repeats.

use std::time::{Duration, Instant};

use walgate_sink::{Delivery, Failure};

use super::{
    Lane,
    backoff::delay,
    health::Permit,
    lot::{Burial, Leaving, MAX_KEYS, Mode, ParkedKey},
    policy::LONGEST_PAUSE,
    work::{Debt, Finished, Item, Note},
};
use crate::control::parking::HoldKey;

impl Lane {
    /// Takes in a delivery from the stream where it does not simply go into the queue; else gives it back.
    pub(super) fn divert(&mut self, item: Item) -> Option<Item> {
        match self.lot.mode {
            Mode::Absent => return Some(item),
            Mode::Off if self.lot.keys.is_empty() => return Some(item),
            Mode::Unread => {
                self.lot.leave(Leaving { item, hold: None });
                return None;
            }
            Mode::Off | Mode::On => {}
        }
        // Behind a delivery from the stream that is in memory still, and leaves with it.
        if self.queue.has_live(item.key()) {
            return Some(item);
        }
        let hold = match self.lot.mode {
            // What is not read yet of its key lies before it.
            Mode::On => None,
            _ => match self.lot.holds(&item) {
                Some(hold) => Some(hold),
                None => return Some(item),
            },
        };
        self.lot.leave(Leaving { item, hold });
        None
    }

    /// A delivery is done with as far as its key is concerned: the next event of the key has its turn, in memory or in
    /// the table.
    pub(super) fn free(&mut self, delivery: &Delivery, live: bool) {
        let Some(key) = &delivery.ordering_key else { return };
        let promoted = self.queue.settled(Some(key), live);
        let elsewhere = self.lot.mode == Mode::On
            || (!self.lot.keys.is_empty() && self.lot.keys.contains_key(&HoldKey::of(delivery)));
        if promoted && elsewhere {
            let hold = (self.lot.mode != Mode::On).then(|| HoldKey::of(delivery));
            for item in self.queue.take_key(key) {
                match item.is_live() {
                    true => self.lot.leave(Leaving { item, hold: hold.clone() }),
                    false => self.queue.push(item),
                }
            }
        }
    }

    /// A row is acknowledged, or left out.
    pub(super) fn row_done(&mut self, row: i64, held: bool, delivery: &Delivery, now: Instant) {
        self.lot.removed.push(row);
        self.row_left(held, delivery, now);
    }

    /// A row is in memory no more, or acknowledged.
    pub(super) fn row_left(&mut self, held: bool, delivery: &Delivery, now: Instant) {
        self.lot.loaded_bytes = self.lot.loaded_bytes.saturating_sub(delivery.event.size());
        if self.lot.keys.is_empty() {
            return;
        }
        let hold = HoldKey::of(delivery);
        let Some(key) = self.lot.keys.get_mut(&hold) else { return };
        key.loaded = key.loaded.saturating_sub(usize::from(held));
        (key.failures, key.head, key.history, key.attempts) = (0, None, None, 0);
        if key.loaded == 0 {
            self.lot.schedule(&hold, Some(now));
        }
    }

    /// What remains to be done about the table that needs no operation on it: parking begins or ends, keys are released.
    /// To be called before anything is taken.
    pub(super) fn tend(&mut self, now: Instant, finished: &mut Finished) {
        if self.lot.mode == Mode::Off
            && let Some(why) = self.why_park(now)
        {
            self.begin_parking(now, why, finished);
        }
        self.give_up_live();
        if self.lot.mode == Mode::On && self.lot.caught_up && self.lot.underway.is_none() && self.wants_live() {
            self.end_parking(now, finished);
        }
        if self.lot.underway.is_none() {
            self.release_keys(now, finished);
        }
        self.watch_budget(finished);
    }

    /// What is not in the table is to go through memory, once all that is in the table does: the sink takes batches; or a
    /// trial is wanted, there is nothing else to try, and the table takes no more.
    pub(super) fn wants_live(&self) -> bool {
        match self.health.permit() {
            Permit::Batches => !self.paused,
            Permit::Trial => !self.paused && self.queue.ready() == 0 && self.lot.is_full(),
            Permit::Nothing => false,
        }
    }

    /// Rows of parked keys are of use: the sink takes batches, or a trial is wanted and there is nothing else to try.
    pub(super) fn wants_keys(&self) -> bool {
        match self.health.permit() {
            Permit::Batches => !self.paused,
            Permit::Trial => !self.paused && self.queue.ready() == 0,
            Permit::Nothing => false,
        }
    }

    /// Why everything that the sink owes should go to the table now.
    pub(super) fn why_park(&self, now: Instant) -> Option<String> {
        let policy = self.lot.policy.as_ref().filter(|policy| policy.outages && !self.lot.is_full())?;
        if self.pressed {
            return Some("PostgreSQL keeps more WAL than `wal_budget` allows".to_owned());
        }
        let (what, since) = match (self.health.outage(), self.paused_since) {
            (Some((cause, since)), _) => (format!("the sink is down ({})", cause.as_str()), since),
            (None, Some(since)) => ("the sink is paused".to_owned(), since),
            (None, None) => return None,
        };
        let lasted = now.saturating_duration_since(since);
        if lasted >= policy.park_after {
            return Some(format!("{what} for {}", humantime::format_duration(Duration::from_secs(lasted.as_secs()))));
        }
        (self.live_bytes >= policy.share).then(|| format!("{what}, and holds half of `limits.inflight`"))
    }

    /// Where the sink is sacrificed, what it is owed, and what cannot be parked, becomes dead letters.
    pub(super) fn give_up_live(&mut self) {
        if !self.sacrificed || !matches!(self.lot.mode, Mode::Off | Mode::On) || self.wants_live() {
            return;
        }
        if self.lot.mode == Mode::Off {
            self.withdraw_live();
        } else if !self.lot.is_full() {
            return;
        }
        let (given_up, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.lot.leaving).into_iter().partition(|leaving| leaving.hold.is_none());
        self.lot.leaving = kept.into();
        for leaving in given_up {
            self.lot.left(&leaving);
            let message = "given up because the WAL budget is used up (`wal_budget.sacrifice`)".to_owned();
            self.lot.burying.push_back(Burial { item: leaving.item, reason: "sacrificed", message, busy: false });
            self.lot.given_up += 1;
        }
    }

    /// When [`Lane::tend`] will begin to park, if nothing changes before.
    pub(super) fn parks_at(&self) -> Option<Instant> {
        let policy = self.lot.policy.as_ref().filter(|policy| policy.outages && self.lot.mode == Mode::Off)?;
        if self.lot.is_full() {
            return None;
        }
        let since = self.health.outage().map(|(_, since)| since).or(self.paused_since)?;
        Some(since + policy.park_after.min(LONGEST_PAUSE))
    }

    pub(super) fn begin_parking(&mut self, now: Instant, why: String, finished: &mut Finished) {
        self.lot.mode = Mode::On;
        self.lot.caught_up = false;
        self.lot.since = Some(now);
        self.lot.written = 0;
        finished.notes.push(Note::ParkingBegan { why });
        self.withdraw_live();
    }

    /// Everything from the stream that may leave memory does.
    pub(super) fn withdraw_live(&mut self) {
        let queue = &self.queue;
        let mut leaving = self.backoffs.take_out(|item| item.is_live() && !queue.is_halted(item.key()));
        for item in &leaving {
            self.queue.withdraw(item.key(), true);
        }
        leaving.extend(self.queue.take_live());
        leaving.sort_by_key(Item::position);
        for item in leaving {
            let hold = self.lot.holds(&item);
            self.lot.leave(Leaving { item, hold });
        }
    }

    /// Everything that is in the table is in memory too: what was not written yet goes behind it.
    pub(super) fn end_parking(&mut self, now: Instant, finished: &mut Finished) {
        self.lot.mode = Mode::Off;
        let lasted = self.lot.since.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        finished.notes.push(Note::ParkingEnded { parked: self.lot.written, lasted });
        for mut leaving in std::mem::take(&mut self.lot.leaving) {
            self.lot.left(&leaving);
            if leaving.hold.is_none() {
                leaving.hold = self.lot.holds(&leaving.item);
            }
            match leaving.hold {
                Some(_) => self.lot.leave(leaving),
                None => self.queue.push(leaving.item),
            }
        }
    }

    /// Keys of which nothing is in the table any more: what is on its way there goes through memory.
    pub(super) fn release_keys(&mut self, now: Instant, finished: &mut Finished) {
        loop {
            let done =
                self.lot.due.iter().take_while(|(due, _)| *due <= now).find_map(|(_, hold)| {
                    self.lot.keys.get(hold).is_some_and(ParkedKey::is_done).then(|| hold.clone())
                });
            let Some(hold) = done else { break };
            self.lot.remove_key(&hold);
            if self.lot.mode == Mode::Off {
                let mine = |leaving: &Leaving| leaving.hold.as_ref() == Some(&hold);
                let (released, rest): (Vec<_>, Vec<_>) =
                    std::mem::take(&mut self.lot.leaving).into_iter().partition(mine);
                self.lot.leaving = rest.into();
                for leaving in released {
                    self.queue.push(leaving.item);
                }
            } else {
                for leaving in self.lot.leaving.iter_mut().filter(|leaving| leaving.hold.as_ref() == Some(&hold)) {
                    leaving.hold = None;
                }
            }
            finished.notes.push(Note::KeyReleased { key: hold });
        }
    }

    pub(super) fn watch_budget(&mut self, finished: &mut Finished) {
        let full = self.lot.is_full();
        if full && !self.lot.full && !self.lot.leaving.is_empty() {
            self.lot.full = true;
            finished.notes.push(Note::ParkingFull { rows: self.lot.rows, bytes: self.lot.bytes });
        } else if !full {
            self.lot.full = false;
        }
    }

    /// Whether this delivery has failed for so long, while the sink takes others, that it is to wait in the table.
    pub(super) fn fails_alone(&self, item: &Item, now: Instant) -> bool {
        let Some(policy) = self.lot.policy.as_ref().filter(|policy| policy.outages) else { return false };
        let Some(history) = &item.history else { return false };
        matches!(self.lot.mode, Mode::Off | Mode::On)
            && self.lot.keys.len() < MAX_KEYS
            && !self.health.in_outage(&self.policy)
            && now.saturating_duration_since(history.since) >= policy.park_after
    }

    /// The delivery, which was just attempted, and everything behind it of its key leave memory. `due`: when the key is
    /// tried next; `None`: when somebody asks for it.
    pub(super) fn park_key(&mut self, item: Item, due: Option<Instant>, error: String, finished: &mut Finished) {
        let hold = HoldKey::of(&item.work.delivery);
        finished.notes.push(Note::KeyParked { attempt: item.attempt(), halted: due.is_none(), error });
        self.lot.add_key(hold.clone(), due);
        if let Some(key) = self.lot.keys.get_mut(&hold) {
            key.head = Some(item.work.delivery.event.id.clone());
            key.attempts = item.attempts;
            key.history.clone_from(&item.history);
        }
        let key = item.key().cloned();
        self.queue.withdraw(key.as_ref(), item.is_live());
        let mut leaving = vec![item];
        if let Some(key) = &key {
            leaving.extend(self.queue.take_key(key));
            self.queue.pass_on(key);
        }
        for item in leaving {
            match item.work.debt {
                Debt::Stream(_) | Debt::Handed { .. } => {
                    self.lot.leave(Leaving { item, hold: Some(hold.clone()) });
                }
                Debt::Parked { row, .. } => {
                    self.lot.loaded_bytes = self.lot.loaded_bytes.saturating_sub(item.work.delivery.event.size());
                    self.lot.mark(row, hold.clone());
                }
            }
        }
    }

    /// A row of a parked key failed: it and what was read behind it leave memory until the key is due again.
    pub(super) fn put_back(
        &mut self,
        item: Item,
        hold: &HoldKey,
        failure: Option<&Failure>,
        now: Instant,
        jitter: f64,
    ) -> Duration {
        let mut pause = Duration::ZERO;
        let mut due = None;
        if let Some(key) = self.lot.keys.get_mut(hold) {
            key.head = Some(item.work.delivery.event.id.clone());
            key.attempts = item.attempts;
            key.history.clone_from(&item.history);
            if let Some(failure) = failure {
                let asked = self.policy.bounded(failure.retry_after.unwrap_or_default());
                pause = delay(self.policy.initial, self.policy.max, key.failures, jitter).max(asked);
                due = Some(now + pause);
            }
            key.failures = key.failures.saturating_add(1);
            key.cursor = None;
            key.end = false;
        }
        let key = item.key().cloned();
        self.queue.withdraw(key.as_ref(), false);
        let mut leaving = vec![item];
        if let Some(key) = &key {
            leaving.extend(self.queue.take_key(key));
            self.queue.pass_on(key);
        }
        for item in leaving {
            match item.work.debt {
                Debt::Stream(_) | Debt::Handed { .. } => {
                    self.lot.leave(Leaving { item, hold: Some(hold.clone()) });
                }
                Debt::Parked { row, held } => {
                    self.lot.loaded_bytes = self.lot.loaded_bytes.saturating_sub(item.work.delivery.event.size());
                    if held {
                        self.lot.loaded.remove(&row);
                        if let Some(key) = self.lot.keys.get_mut(hold) {
                            key.loaded = key.loaded.saturating_sub(1);
                        }
                    } else {
                        // Another delivery of the event with which the key was parked.
                        self.lot.mark(row, hold.clone());
                    }
                }
            }
        }
        self.lot.schedule(hold, due);
        pause
    }

    /// The delivery becomes a dead letter. Its key stays busy until it is one, or until another sink has taken it on.
    pub(super) fn bury(&mut self, item: Item, reason: &'static str, message: String) {
        let reason = self.policy.dead_reason.unwrap_or(reason);
        let burial = Burial { item, reason, message, busy: true };
        match self.policy.destination {
            Some(_) => self.lot.handing.push_back(burial),
            None => self.lot.burying.push_back(burial),
        }
    }
}
