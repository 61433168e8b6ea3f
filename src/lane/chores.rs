//! Operations on walgate's own tables: which is next, and what follows from what came of it.

use std::time::{Duration, Instant};

use super::{
    Lane,
    backoff::delay,
    lot::{BATCH, Burial, Chore, DELETE, Done, KEY_PAGE, Leaving, MAX_KEYS, Mode, REVIVE, Revival, Underway, WINDOW},
    work::{Debt, Finished, Item, Note},
};
use crate::{
    config::LetterPayload,
    control::parking::{HoldKey, Page, Place, StoreError},
};

/// Pauses between attempts to use the tables.
const STORE_FIRST: Duration = Duration::from_millis(100);
const STORE_LONGEST: Duration = Duration::from_secs(10);
/// Kinds of operations that take turns.
const TURNS: u8 = 5;

impl Lane {
    /// The next operation on walgate's tables, if there is something to be done and none is under way. `ending`: the lane
    /// ends, so that only what settles something is done.
    pub fn next_chore(&mut self, now: Instant, ending: bool) -> Option<Chore> {
        let lot = &self.lot;
        if !lot.is_usable() || lot.underway.is_some() || lot.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        if lot.mode == Mode::Unread {
            if ending || self.dormant {
                return None;
            }
            self.lot.underway = Some(Underway::Open);
            return Some(Chore::Open { max_keys: MAX_KEYS });
        }
        if lot.look_again && !ending {
            self.lot.underway = Some(Underway::Open);
            return Some(Chore::Open { max_keys: MAX_KEYS });
        }
        if !lot.burying.is_empty() {
            return Some(self.bury_some());
        }
        if !lot.marking.is_empty() {
            let rows: Vec<_> = std::mem::take(&mut self.lot.marking);
            self.lot.underway = Some(Underway::Hold(rows.clone()));
            return Some(Chore::Hold(rows));
        }
        if lot.removed.len() >= WINDOW.rows / 4 {
            return self.delete_some();
        }
        for turn in 1..=TURNS {
            let kind = (self.lot.last + turn) % TURNS;
            let chore = match kind {
                0 => self.park_some(),
                1 if !ending => self.read_some(),
                2 if !ending => self.read_key(now),
                3 => self.delete_some(),
                4 if !ending => self.revive_some(),
                _ => None,
            };
            if chore.is_some() {
                self.lot.last = kind;
                return chore;
            }
        }
        None
    }

    /// When the tables are to be looked after, or parking begins, if nothing else happens before.
    pub(super) fn next_table(&self, now: Instant) -> Option<Instant> {
        [self.next_chore_at(now), self.parks_at()].into_iter().flatten().min()
    }

    /// When [`Lane::next_chore`] has something to do, if nothing else happens before.
    pub(super) fn next_chore_at(&self, now: Instant) -> Option<Instant> {
        if !self.lot.is_usable() || self.lot.underway.is_some() {
            return None;
        }
        let waits = (self.lot.mode == Mode::Unread && !self.dormant)
            || self.lot.look_again
            || !self.lot.burying.is_empty()
            || !self.lot.marking.is_empty()
            || !self.lot.removed.is_empty()
            || self.may_park()
            || self.may_read()
            || !self.lot.revivals.is_empty() && self.lot.keys.len() < MAX_KEYS;
        let due = self.lot.due.first().filter(|_| self.wants_keys()).map(|(due, _)| *due);
        let at = if waits { Some(now) } else { due };
        at.map(|at| self.lot.retry_at.map_or(at, |retry| at.max(retry)))
    }

    pub(super) fn bury_some(&mut self) -> Chore {
        let mut burials = Vec::new();
        let mut bytes = 0usize;
        while let Some(burial) = self.lot.burying.front() {
            bytes = bytes.saturating_add(burial.item.work.delivery.event.size());
            if !burials.is_empty() && (burials.len() >= self.lot.batch || bytes > BATCH.bytes) {
                break;
            }
            burials.extend(self.lot.burying.pop_front());
        }
        let mut rows = Vec::new();
        let mut letters = Vec::with_capacity(burials.len());
        for burial in &burials {
            if let Debt::Parked { row, .. } = burial.item.work.debt {
                rows.push(row);
            }
            let hold = HoldKey::of(&burial.item.work.delivery);
            let mut parcel = self.parcel(&burial.item, Some(hold));
            parcel.reason = Some(burial.reason.into());
            parcel.message = Some(burial.message.clone());
            if self.policy.letters == LetterPayload::Omit {
                parcel.omit_contents();
            }
            letters.push(parcel);
        }
        self.lot.underway = Some(Underway::Bury(burials));
        Chore::Bury(letters, rows)
    }

    pub(super) fn may_park(&self) -> bool {
        !self.lot.leaving.is_empty() && !self.lot.is_full()
    }

    pub(super) fn park_some(&mut self) -> Option<Chore> {
        if !self.may_park() {
            return None;
        }
        let mut leaving = Vec::new();
        let mut bytes = 0usize;
        while let Some(next) = self.lot.leaving.front() {
            bytes = bytes.saturating_add(next.item.work.delivery.event.size());
            if !leaving.is_empty() && (leaving.len() >= self.lot.batch || bytes > BATCH.bytes) {
                break;
            }
            leaving.extend(self.lot.leaving.pop_front());
        }
        let parcels =
            leaving.iter().map(|leaving: &Leaving| self.parcel(&leaving.item, leaving.hold.clone())).collect();
        self.lot.underway = Some(Underway::Park(leaving));
        Some(Chore::Park(parcels))
    }

    pub(super) fn may_read(&self) -> bool {
        self.lot.mode == Mode::On && !self.lot.caught_up && self.lot.room().is_some()
    }

    pub(super) fn read_some(&mut self) -> Option<Chore> {
        let limit = self.lot.room().filter(|_| self.may_read())?;
        self.lot.underway = Some(Underway::Page);
        Some(Chore::Page(self.lot.cursor, limit))
    }

    pub(super) fn read_key(&mut self, now: Instant) -> Option<Chore> {
        if !self.wants_keys() || self.lot.loaded.len() >= WINDOW.rows || self.lot.loaded_bytes >= WINDOW.bytes {
            return None;
        }
        let hold = self.lot.due.first().filter(|(due, _)| *due <= now).map(|(_, hold)| hold.clone())?;
        let after = self.lot.keys.get(&hold).and_then(|key| key.cursor);
        self.lot.schedule(&hold, None);
        self.lot.underway = Some(Underway::PageOf(hold.clone()));
        Some(Chore::PageOf(hold, after, KEY_PAGE))
    }

    pub(super) fn delete_some(&mut self) -> Option<Chore> {
        if self.lot.removed.is_empty() {
            return None;
        }
        let rest = self.lot.removed.split_off(self.lot.removed.len().min(DELETE));
        let rows = std::mem::replace(&mut self.lot.removed, rest);
        self.lot.underway = Some(Underway::Delete(rows.clone()));
        Some(Chore::Delivered(rows))
    }

    pub(super) fn revive_some(&mut self) -> Option<Chore> {
        let room = MAX_KEYS.saturating_sub(self.lot.keys.len());
        let Revival { filter, before, run, .. } = self.lot.revivals.front().filter(|_| room > 0)?.clone();
        self.lot.underway = Some(Underway::Revive);
        Some(Chore::Revive { filter, before, run, limit: room.min(REVIVE) })
    }

    /// Takes in what came of an operation.
    pub fn chore_done(
        &mut self,
        result: Result<Done, StoreError>,
        now: Instant,
        jitter: &mut dyn FnMut() -> f64,
    ) -> Finished {
        let mut finished = Finished::default();
        let Some(underway) = self.lot.underway.take() else { return finished };
        let done = match result {
            Ok(done) => done,
            Err(error) => {
                self.chore_failed(underway, error, now, jitter(), &mut finished);
                return finished;
            }
        };
        // A full disk, or a right that is missing, can be read all the while: the pauses between attempts to write grow.
        if !self.lot.unwritten || underway.writes() || !self.lot.writes() {
            if self.lot.error.take().is_some() {
                finished.notes.push(Note::StoreWorks);
            }
            (self.lot.failures, self.lot.unwritten) = (0, false);
        }
        self.lot.retry_at = None;
        match (underway, done) {
            (Underway::Open, Done::Opened(opening)) => {
                (self.lot.rows, self.lot.bytes) = (opening.rows + opening.key_rows, opening.bytes);
                self.lot.dead_letters = opening.dead_letters;
                self.lot.look_again = false;
                for hold in opening.keys {
                    if !self.lot.keys.contains_key(&hold) {
                        self.lot.add_key(hold, Some(now));
                    }
                }
                if self.lot.mode != Mode::Unread {
                    return finished;
                }
                // Off at once where there is nothing: `caught_up` says so.
                self.lot.mode = Mode::On;
                self.lot.caught_up = opening.rows == 0;
                self.lot.since = Some(now);
                if opening.rows > 0 {
                    let why = format!("{} deliveries are parked from before", opening.rows);
                    finished.notes.push(Note::ParkingBegan { why });
                } else {
                    let mut silent = Finished::default();
                    self.end_parking(now, &mut silent);
                }
            }
            (Underway::Park(leaving), Done::Parked(rows, bytes)) => {
                self.lot.batch = (self.lot.batch * 2).min(BATCH.rows);
                self.parked(leaving, rows, bytes, &mut finished);
            }
            (Underway::Bury(burials), Done::Buried) => {
                self.lot.batch = (self.lot.batch * 2).min(BATCH.rows);
                self.buried(burials, now, &mut finished);
            }
            (Underway::Page, Done::Page(page)) => self.read(page, now),
            (Underway::PageOf(hold), Done::Page(page)) => self.read_of(&hold, page, now, &mut finished),
            (Underway::Hold(rows), Done::Held) => {
                for (row, hold) in rows {
                    self.lot.loaded.remove(&row);
                    if let Some(key) = self.lot.keys.get_mut(&hold) {
                        key.marking = key.marking.saturating_sub(1);
                        (key.end, key.cursor) = (false, None);
                    }
                }
            }
            (Underway::Delete(rows), Done::Deleted) => {
                let count = rows.len() as u64;
                let mean = self.lot.bytes / self.lot.rows.max(1);
                self.lot.rows = self.lot.rows.saturating_sub(count);
                self.lot.bytes = if self.lot.rows == 0 { 0 } else { self.lot.bytes.saturating_sub(mean * count) };
                for row in rows {
                    self.lot.loaded.remove(&row);
                }
            }
            (Underway::Revive, Done::Revived(revived)) => {
                self.lot.rows += revived.rows;
                self.lot.bytes = self.lot.bytes.saturating_add(revived.bytes);
                self.lot.dead_letters = self.lot.dead_letters.saturating_sub(revived.rows);
                for hold in revived.keys {
                    self.lot.add_key(hold.clone(), Some(now));
                    if let Some(key) = self.lot.keys.get_mut(&hold) {
                        (key.end, key.cursor) = (false, None);
                    }
                }
                if let Some(revival) = self.lot.revivals.front_mut() {
                    revival.rows += revived.rows;
                }
                if revived.end
                    && let Some(revival) = self.lot.revivals.pop_front()
                {
                    finished.revived.push((revival.request, revival.rows));
                }
            }
            // An answer to something else: a fault of the caller. What was under way is not known to have happened.
            (underway, _) => {
                let error = StoreError { message: "an answer that does not fit the question".into(), lasting: false };
                self.chore_failed(underway, error, now, jitter(), &mut finished);
            }
        }
        self.tend(now, &mut finished);
        finished
    }

    pub(super) fn chore_failed(
        &mut self,
        underway: Underway,
        error: StoreError,
        now: Instant,
        jitter: f64,
        finished: &mut Finished,
    ) {
        let pause = delay(STORE_FIRST, STORE_LONGEST, self.lot.failures, jitter);
        self.lot.unwritten |= underway.writes();
        self.lot.look_again |= !error.lasting && self.lot.mode != Mode::Unread;
        if let Underway::Park(leaving) = &underway {
            // They may be there all the same, and what comes behind them of their keys will be.
            for Leaving { item, hold } in leaving {
                self.lot.rewind_to(Place::of(&item.work.delivery), hold.as_ref());
            }
        }
        match underway {
            Underway::Park(mut leaving) if error.lasting && leaving.len() == 1 => {
                if let Some(Leaving { item, hold }) = leaving.pop() {
                    self.unwritable(item, hold, error.message, finished);
                }
                return;
            }
            Underway::Bury(mut burials) if error.lasting && burials.len() == 1 => {
                if let Some(burial) = burials.pop() {
                    self.unburiable(burial, error.message, now, finished);
                }
                return;
            }
            Underway::Park(leaving) => {
                // One of them is to blame, and is found by halves.
                self.lot.batch = if error.lasting { (leaving.len() / 2).max(1) } else { self.lot.batch };
                for leaving in leaving.into_iter().rev() {
                    self.lot.leaving.push_front(leaving);
                }
            }
            Underway::Bury(burials) => {
                self.lot.batch = if error.lasting { (burials.len() / 2).max(1) } else { self.lot.batch };
                for burial in burials.into_iter().rev() {
                    self.lot.burying.push_front(burial);
                }
            }
            Underway::PageOf(hold) => self.lot.schedule(&hold, Some(now + pause)),
            Underway::Hold(mut rows) => {
                rows.append(&mut self.lot.marking);
                self.lot.marking = rows;
            }
            Underway::Delete(mut rows) => {
                rows.append(&mut self.lot.removed);
                self.lot.removed = rows;
            }
            Underway::Open | Underway::Page | Underway::Revive => {}
        }
        if error.lasting && self.lot.batch < BATCH.rows {
            return;
        }
        self.lot.failures = self.lot.failures.saturating_add(1);
        self.lot.retry_at = Some(now + pause);
        self.lot.error = Some(error.message.clone());
        finished.notes.push(Note::StoreFailed { error: error.message, delay: pause });
    }

    /// The table cannot hold this delivery: it stays in memory, and what follows of its key behind it.
    pub(super) fn unwritable(&mut self, item: Item, hold: Option<HoldKey>, error: String, finished: &mut Finished) {
        finished.notes.push(Note::StoreFailed { error, delay: Duration::ZERO });
        self.lot.left(&Leaving { item: Item::new(item.work.clone()), hold });
        let key = item.key().cloned();
        self.queue.push(item);
        let mine = |leaving: &Leaving| key.is_some() && leaving.item.key() == key.as_ref();
        let (behind, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.lot.leaving).into_iter().partition(mine);
        self.lot.leaving = rest.into();
        for leaving in behind {
            self.lot.left(&leaving);
            self.queue.push(leaving.item);
        }
    }

    /// The table cannot hold this dead letter: its key waits.
    pub(super) fn unburiable(&mut self, burial: Burial, error: String, now: Instant, finished: &mut Finished) {
        let Burial { item, message, busy, .. } = burial;
        if !busy {
            // Given up for the sake of the WAL, and there is no room for it: it is owed still.
            self.lot.given_up = self.lot.given_up.saturating_sub(1);
            self.lot.leave(Leaving { item, hold: None });
            return;
        }
        let attempt = item.attempt();
        let message = format!("{message}; and it cannot be written into the table of dead letters: {error}");
        let rejection = walgate_sink::Rejection::new(walgate_sink::RejectReason::InvalidEvent, message);
        match item.work.debt {
            Debt::Stream(_) | Debt::Handed { .. } => {
                self.queue.halt(item.key());
                self.halted.push(item.work);
            }
            Debt::Parked { .. } => {
                let hold = HoldKey::of(&item.work.delivery);
                if self.lot.keys.contains_key(&hold) {
                    self.put_back(item, &hold, None, now, 0.0);
                } else {
                    self.park_key(item, None, rejection.message.clone(), finished);
                }
            }
        }
        finished.notes.push(Note::Halted { attempt, rejection });
    }

    pub(super) fn parked(&mut self, leaving: Vec<Leaving>, rows: u64, bytes: u64, finished: &mut Finished) {
        self.lot.rows += rows;
        self.lot.bytes = self.lot.bytes.saturating_add(bytes);
        self.lot.written += rows;
        for leaving in leaving {
            self.lot.left(&leaving);
            let Leaving { item, hold } = leaving;
            self.lot.rewind_to(Place::of(&item.work.delivery), hold.as_ref());
            finished.parked.push(item.work.route);
            self.settle(item.work.debt, &item.work.delivery.event, finished);
        }
    }

    pub(super) fn buried(&mut self, burials: Vec<Burial>, now: Instant, finished: &mut Finished) {
        for Burial { item, reason, message, busy } in burials {
            self.lot.dead_letters += 1;
            let attempt = item.attempt();
            let delivery = &item.work.delivery;
            match item.work.debt {
                Debt::Parked { row, held } => {
                    self.lot.loaded.remove(&row);
                    self.lot.rows = self.lot.rows.saturating_sub(1);
                    self.row_left(held, delivery, now);
                }
                debt => self.settle(debt, &delivery.event, finished),
            }
            match busy {
                true => self.free(delivery, item.is_live()),
                false => self.lot.given_up = self.lot.given_up.saturating_sub(1),
            }
            self.progress_at = Some(now);
            let message = (self.policy.letters == LetterPayload::Keep).then_some(message);
            finished.notes.push(Note::DeadLettered { attempt, reason, message, to: None });
        }
    }

    pub(super) fn read(&mut self, page: Page, now: Instant) {
        let Page { rows, end } = page;
        self.lot.caught_up = end;
        for row in rows {
            self.lot.cursor = Some(row.place);
            if self.lot.loaded.contains(&row.id) {
                continue;
            }
            let id = row.id;
            let item = self.item(row, false, now);
            self.lot.loaded.insert(id);
            match self.lot.holds(&item) {
                Some(hold) => self.lot.mark(id, hold),
                None => {
                    self.lot.loaded_bytes += item.work.delivery.event.size();
                    self.queue.push(item);
                }
            }
        }
    }

    pub(super) fn read_of(&mut self, hold: &HoldKey, page: Page, now: Instant, finished: &mut Finished) {
        let Page { rows, end } = page;
        let Some(key) = self.lot.keys.get(hold) else { return };
        if key.marking > 0 {
            // Rows of the key that do not wait for it yet lie between: it is read again when they do.
            self.lot.schedule(hold, Some(now));
            return;
        }
        let skip = key.skip.clone();
        let head = (key.head.clone(), key.attempts, key.history.clone());
        let mut taken = 0;
        let mut last = None;
        for row in rows {
            last = Some(row.place);
            if self.lot.loaded.contains(&row.id) {
                continue;
            }
            let id = row.id;
            let mut item = self.item(row, true, now);
            self.lot.loaded.insert(id);
            if skip.as_ref() == Some(&item.work.delivery.event.id) {
                finished.notes.push(Note::Skipped {
                    attempt: item.attempt(),
                    rejection: walgate_sink::Rejection::new(
                        walgate_sink::RejectReason::Refused,
                        "left out on an operator's request",
                    ),
                });
                self.lot.removed.push(id);
                continue;
            }
            if head.0.as_ref() == Some(&item.work.delivery.event.id) {
                item.attempts = item.attempts.max(head.1);
                item.history = head.2.clone().or(item.history);
            }
            self.lot.loaded_bytes += item.work.delivery.event.size();
            taken += 1;
            self.queue.push(item);
        }
        if let Some(key) = self.lot.keys.get_mut(hold) {
            key.skip = None;
            key.loaded += taken;
            key.cursor = last.or(key.cursor);
            key.end = end;
        }
        if taken == 0 {
            // To go on, or to be released.
            self.lot.schedule(hold, Some(now));
        }
    }
}
