//! How the lane uses walgate's own tables: see [`lot`](super::lot) for the states.
//!
//! What makes it safe to settle a delivery by its row: when the row of an event is written, everything before it of its
//! key is done, or in the table, or written with it. So a crash at any moment leaves, of each key, nothing to be delivered
//! before what is in the table but what is in the table; and what the stream sends again are repeats.

use std::time::{Duration, Instant};

use walgate_sink::{Delivery, Failure, Target, Timestamp};

use super::{
    Lane,
    backoff::delay,
    health::Permit,
    lot::{
        BATCH, Burial, Chore, DELETE, Done, KEY_PAGE, Leaving, MAX_KEYS, Mode, ParkedKey, REVIVE, Revival, Underway,
        WINDOW, rejection_of,
    },
    machine::Trouble,
    policy::LONGEST_PAUSE,
    work::{Debt, Finished, History, Item, Note, Work},
};
use crate::control::parking::{Attempted, Filter, HoldKey, Page, Parcel, Place, StoreError, Stored};

/// Pauses between attempts to use the tables.
const STORE_FIRST: Duration = Duration::from_millis(100);
const STORE_LONGEST: Duration = Duration::from_secs(10);
/// Kinds of operations that take turns.
const TURNS: u8 = 5;

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
    fn row_left(&mut self, held: bool, delivery: &Delivery, now: Instant) {
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
    fn wants_live(&self) -> bool {
        match self.health.permit() {
            Permit::Batches => !self.paused,
            Permit::Trial => !self.paused && self.queue.ready() == 0 && self.lot.is_full(),
            Permit::Nothing => false,
        }
    }

    /// Rows of parked keys are of use: the sink takes batches, or a trial is wanted and there is nothing else to try.
    fn wants_keys(&self) -> bool {
        match self.health.permit() {
            Permit::Batches => !self.paused,
            Permit::Trial => !self.paused && self.queue.ready() == 0,
            Permit::Nothing => false,
        }
    }

    /// Why everything that the sink owes should go to the table now.
    fn why_park(&self, now: Instant) -> Option<String> {
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
    fn give_up_live(&mut self) {
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

    fn begin_parking(&mut self, now: Instant, why: String, finished: &mut Finished) {
        self.lot.mode = Mode::On;
        self.lot.caught_up = false;
        self.lot.since = Some(now);
        self.lot.written = 0;
        finished.notes.push(Note::ParkingBegan { why });
        self.withdraw_live();
    }

    /// Everything from the stream that may leave memory does.
    fn withdraw_live(&mut self) {
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
    fn end_parking(&mut self, now: Instant, finished: &mut Finished) {
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
    fn release_keys(&mut self, now: Instant, finished: &mut Finished) {
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

    fn watch_budget(&mut self, finished: &mut Finished) {
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
                Debt::Stream(_) => self.lot.leave(Leaving { item, hold: Some(hold.clone()) }),
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
                Debt::Stream(_) => self.lot.leave(Leaving { item, hold: Some(hold.clone()) }),
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

    /// The delivery becomes a dead letter. Its key stays busy until it is one.
    pub(super) fn bury(&mut self, item: Item, reason: &'static str, message: String) {
        let reason = self.policy.dead_reason.unwrap_or(reason);
        self.lot.burying.push_back(Burial { item, reason, message, busy: true });
    }

    /// Dead letters are to be attempted again: `run` is appended to their dedup ids. The answer is [`Lane::revived`].
    pub fn revive(&mut self, request: i64, filter: Filter, before: i64, run: String) {
        self.lot.revivals.push_back(Revival { request, filter, before, run, rows: 0 });
    }

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

    fn bury_some(&mut self) -> Chore {
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
            letters.push(parcel);
        }
        self.lot.underway = Some(Underway::Bury(burials));
        Chore::Bury(letters, rows)
    }

    fn may_park(&self) -> bool {
        !self.lot.leaving.is_empty() && !self.lot.is_full()
    }

    fn park_some(&mut self) -> Option<Chore> {
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

    fn may_read(&self) -> bool {
        self.lot.mode == Mode::On && !self.lot.caught_up && self.lot.room().is_some()
    }

    fn read_some(&mut self) -> Option<Chore> {
        let limit = self.lot.room().filter(|_| self.may_read())?;
        self.lot.underway = Some(Underway::Page);
        Some(Chore::Page(self.lot.cursor, limit))
    }

    fn read_key(&mut self, now: Instant) -> Option<Chore> {
        if !self.wants_keys() || self.lot.loaded.len() >= WINDOW.rows || self.lot.loaded_bytes >= WINDOW.bytes {
            return None;
        }
        let hold = self.lot.due.first().filter(|(due, _)| *due <= now).map(|(_, hold)| hold.clone())?;
        let after = self.lot.keys.get(&hold).and_then(|key| key.cursor);
        self.lot.schedule(&hold, None);
        self.lot.underway = Some(Underway::PageOf(hold.clone()));
        Some(Chore::PageOf(hold, after, KEY_PAGE))
    }

    fn delete_some(&mut self) -> Option<Chore> {
        if self.lot.removed.is_empty() {
            return None;
        }
        let rest = self.lot.removed.split_off(self.lot.removed.len().min(DELETE));
        let rows = std::mem::replace(&mut self.lot.removed, rest);
        self.lot.underway = Some(Underway::Delete(rows.clone()));
        Some(Chore::Delivered(rows))
    }

    fn revive_some(&mut self) -> Option<Chore> {
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
        if self.lot.error.take().is_some() {
            finished.notes.push(Note::StoreWorks);
        }
        (self.lot.failures, self.lot.retry_at) = (0, None);
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

    fn chore_failed(
        &mut self,
        underway: Underway,
        error: StoreError,
        now: Instant,
        jitter: f64,
        finished: &mut Finished,
    ) {
        let pause = delay(STORE_FIRST, STORE_LONGEST, self.lot.failures, jitter);
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
    fn unwritable(&mut self, item: Item, hold: Option<HoldKey>, error: String, finished: &mut Finished) {
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
    fn unburiable(&mut self, burial: Burial, error: String, now: Instant, finished: &mut Finished) {
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
            Debt::Stream(_) => {
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

    fn parked(&mut self, leaving: Vec<Leaving>, rows: u64, bytes: u64, finished: &mut Finished) {
        self.lot.rows += rows;
        self.lot.bytes = self.lot.bytes.saturating_add(bytes);
        self.lot.written += rows;
        for leaving in leaving {
            self.lot.left(&leaving);
            let Leaving { item, hold } = leaving;
            self.lot.rewind_to(Place::of(&item.work.delivery), hold.as_ref());
            finished.parked.push(item.work.route);
            if let Debt::Stream(ticket) = item.work.debt {
                self.live_bytes = self.live_bytes.saturating_sub(super::machine::cost(&item.work.delivery.event));
                finished.settled.push(ticket);
            }
        }
    }

    fn buried(&mut self, burials: Vec<Burial>, now: Instant, finished: &mut Finished) {
        for Burial { item, reason, message, busy } in burials {
            self.lot.dead_letters += 1;
            let attempt = item.attempt();
            let delivery = &item.work.delivery;
            match item.work.debt {
                Debt::Stream(ticket) => {
                    self.live_bytes = self.live_bytes.saturating_sub(super::machine::cost(&delivery.event));
                    finished.settled.push(ticket);
                }
                Debt::Parked { row, held } => {
                    self.lot.loaded.remove(&row);
                    self.lot.rows = self.lot.rows.saturating_sub(1);
                    self.row_left(held, delivery, now);
                }
            }
            match busy {
                true => self.free(delivery, item.is_live()),
                false => self.lot.given_up = self.lot.given_up.saturating_sub(1),
            }
            self.progress_at = Some(now);
            finished.notes.push(Note::DeadLettered { attempt, reason, message });
        }
    }

    fn read(&mut self, page: Page, now: Instant) {
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

    fn read_of(&mut self, hold: &HoldKey, page: Page, now: Instant, finished: &mut Finished) {
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

    /// A row as a delivery in memory.
    fn item(&self, row: Stored, held: bool, now: Instant) -> Item {
        let policy = self.lot.policy.as_ref();
        let fields = policy.map_or(&[][..], |policy| policy.fields);
        let Stored { id, event, target, ordering_key, dedup_id, route, attempts, rejected, errors, .. } = row;
        let value = |name: &str| target.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let target = Target::new(fields, fields.iter().map(|field| value(field.name)));
        let number = policy.and_then(|policy| policy.routes.find(&route));
        let delivery = Delivery { event, target, ordering_key, dedup_id, attempt: 0 };
        let work = Work {
            delivery,
            debt: Debt::Parked { row: id, held },
            // A route that is there no more has no metrics.
            route: number.unwrap_or(u16::MAX),
            invalid: rejected.map(|(reason, message)| rejection_of(&reason, &message)),
        };
        let mut item = Item::new(work);
        item.attempts = attempts;
        if !errors.is_empty() {
            let mut history = History::new(now);
            errors.into_iter().for_each(|error| history.add(error));
            item.history = Some(Box::new(history));
        }
        item
    }

    /// A delivery as a row.
    fn parcel(&self, item: &Item, hold: Option<HoldKey>) -> Parcel {
        let mut delivery = item.work.delivery.clone();
        delivery.attempt = item.attempts;
        let label = self.lot.policy.as_ref().and_then(|policy| policy.routes.label(item.work.route));
        let invalid = item.work.invalid.as_ref();
        Parcel {
            delivery,
            route: label.map(|label| (&*label).into()).unwrap_or_default(),
            hold,
            reason: invalid.map(|rejection| rejection.reason.as_str().into()),
            message: invalid.map(|rejection| rejection.message.clone()),
            errors: item.history.as_ref().map(|history| history.errors.iter().cloned().collect()).unwrap_or_default(),
        }
    }

    /// The WAL budget is used up, and this sink is one of those that are given up: what it is owed, while it does not
    /// work and where it cannot be parked, becomes dead letters.
    pub fn sacrifice(&mut self, sacrificed: bool) {
        self.sacrificed = sacrificed;
    }

    /// Remembers a failed attempt.
    pub(super) fn remember(&self, item: &mut Item, error: &str, now: Instant) {
        if !self.lot.is_usable() {
            return;
        }
        let attempted = Attempted { at: self.wall(now), error: crate::telemetry::sentence(error) };
        item.history.get_or_insert_with(|| Box::new(History::new(now))).add(attempted);
    }

    /// The wall clock's time at `now`.
    pub(super) fn wall(&self, now: Instant) -> Timestamp {
        let (then, wall) = self.clock;
        let micros = i64::try_from(now.saturating_duration_since(then).as_micros()).unwrap_or(i64::MAX);
        Timestamp(wall.0.saturating_add(micros))
    }

    /// Why a delivery is not attempted again, though it may be taken one day.
    pub(super) fn given_up(&self, item: &Item, now: Instant) -> Option<(&'static str, String)> {
        if !self.lot.is_usable() {
            return None;
        }
        if self.policy.max_attempts.is_some_and(|most| item.attempts >= most) {
            return Some((
                "max_attempts",
                format!("{} attempts failed, as many as `max_attempts` allows", item.attempts),
            ));
        }
        let since = item.history.as_ref()?.since;
        let age = now.saturating_duration_since(since);
        let most = self.policy.max_age.filter(|most| age >= *most)?;
        Some((
            "max_age",
            format!("it has failed for {}, as long as `max_age` allows", humantime::format_duration(most)),
        ))
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
            if let Debt::Stream(ticket) = work.debt {
                self.live_bytes = self.live_bytes.saturating_sub(super::machine::cost(&work.delivery.event));
                finished.settled.push(ticket);
            }
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
            if let Debt::Stream(ticket) = work.debt {
                self.live_bytes = self.live_bytes.saturating_sub(super::machine::cost(&work.delivery.event));
                finished.settled.push(ticket);
            }
        }
        (finished.settled.len(), finished)
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

    /// The latest failure, for the status.
    pub(super) fn note_trouble(
        &mut self,
        item: &Item,
        message: &str,
        kind: &'static str,
        now: Instant,
        next_retry: Option<Instant>,
    ) {
        let event = Some((item.work.delivery.event.id.clone(), item.attempts));
        self.last_error = Some(Trouble { message: message.to_owned(), kind, at: now, next_retry, event });
    }
}
