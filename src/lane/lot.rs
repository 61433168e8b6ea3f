//! What a lane keeps outside of memory: the state of its rows in `walgate.parked`, and what is on its way there.
//!
//! ```text
//!             rows are there            outage, for park_after or with half of the window
//!   Unread ------------------> On <-------------------------------------------------- Off
//!      |                        |                                                      ^
//!      |                        +------ everything is read, and the sink is up --------+
//!      +------------------------- there are no rows -----------------------------------+
//! ```
//!
//! - **Unread**: nothing is sent before it is known what is there; what is pushed waits.
//! - **Off**: what is pushed goes through memory.
//! - **On**: what is pushed goes to the table. What is in the table is read in the order of commits, as long as little of
//!   it is in memory, and goes out like everything else. Once a read found the end, everything that the table still has is
//!   in memory too: then what was not written yet goes behind it, in memory, and live traffic after that.
//!
//! A **parked key** has a state of its own in either mode: its rows are read by that key, a few at a time, when its pause
//! is over. Nothing of it is in memory meanwhile.
//!
//! One operation of the store is under way at a time, so that each sees what the one before it did.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use bytestring::ByteString;
use walgate_sink::{Rejection, TargetField};

use super::work::{History, Item};
use crate::control::parking::{Filter, HoldKey, Opening, Page, PageLimit, Parcel, Place, Revived};
use crate::metrics::Routes;

/// Keys that may be parked on their own at a time. More that fail are held in memory, and the checkpoint with them.
pub(super) const MAX_KEYS: usize = 10_000;
/// Rows that are in memory at a time, and bytes of their events.
pub(super) const WINDOW: PageLimit = PageLimit { rows: 4096, bytes: 4 << 20 };
/// Rows that are read of a parked key at a time.
pub(super) const KEY_PAGE: PageLimit = PageLimit { rows: 64, bytes: 256 << 10 };
/// Rows and bytes that are written at a time.
pub(super) const BATCH: PageLimit = PageLimit { rows: 2048, bytes: 4 << 20 };
/// Rows that are deleted at a time, and how many of them make it urgent.
pub(super) const DELETE: usize = 4096;
/// Dead letters that are taken up again at a time.
pub(super) const REVIVE: usize = 500;

/// How a lane uses walgate's own tables.
#[derive(Clone, Debug)]
pub struct ParkingPolicy {
    /// Whether an outage is parked; else it is held.
    pub outages: bool,
    /// How long an outage, or the failing of one event, is waited out first.
    pub park_after: Duration,
    /// Bytes of deliveries from the stream; an outage in which the lane holds more is not waited out.
    pub share: u64,
    /// Rows that the table may hold of this sink.
    pub max_rows: u64,
    /// Bytes of their events.
    pub max_bytes: u64,
    /// The sink's fields, to read targets with.
    pub fields: &'static [TargetField],
    /// Routes, as metrics call them.
    pub routes: Routes,
}

/// One operation of the store. Whatever comes of it, [`Lane::chore_done`](super::Lane::chore_done) is called.
#[derive(Clone, Debug)]
pub enum Chore {
    /// See [`ParkingStore::open`](crate::control::parking::ParkingStore::open), and so on.
    Open {
        /// Keys that are wanted at the most.
        max_keys: usize,
    },
    /// Write parked rows.
    Park(Vec<Parcel>),
    /// Write dead letters; delete parked rows.
    Bury(Vec<Parcel>, Vec<i64>),
    /// Read rows that wait for the sink.
    Page(Option<Place>, PageLimit),
    /// Read rows that wait for a key.
    PageOf(HoldKey, Option<Place>, PageLimit),
    /// Rows wait for their keys from now on.
    Hold(Vec<(i64, HoldKey)>),
    /// Delete rows that the sink has.
    Delivered(Vec<i64>),
    /// Make parked rows of dead letters.
    Revive {
        /// Which.
        filter: Filter,
        /// Those that were dead then.
        before: i64,
        /// What is appended to their dedup ids.
        run: String,
        /// How many at the most.
        limit: usize,
    },
}

/// What came of one.
#[derive(Clone, Debug)]
pub enum Done {
    /// Of [`Chore::Open`].
    Opened(Opening),
    /// Of [`Chore::Park`]: new rows, and bytes of their events.
    Parked(u64, u64),
    /// Of [`Chore::Bury`].
    Buried,
    /// Of [`Chore::Page`] and [`Chore::PageOf`].
    Page(Page),
    /// Of [`Chore::Hold`].
    Held,
    /// Of [`Chore::Delivered`].
    Deleted,
    /// Of [`Chore::Revive`].
    Revived(Revived),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// There are no tables, or they may not be used.
    Absent,
    Unread,
    Off,
    On,
}

/// A delivery from the stream that is on its way into the table.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) item: Item,
    /// It waits for its key; else for its sink.
    pub(super) hold: Option<HoldKey>,
}

/// A delivery that becomes a dead letter. Its key is busy until it is one.
#[derive(Debug)]
pub(super) struct Burial {
    pub(super) item: Item,
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// Its key waits for it in the queue.
    pub(super) busy: bool,
}

/// What is under way.
#[derive(Debug)]
pub(super) enum Underway {
    Open,
    Park(Vec<Leaving>),
    Bury(Vec<Burial>),
    Page,
    PageOf(HoldKey),
    Hold(Vec<(i64, HoldKey)>),
    Delete(Vec<i64>),
    Revive,
}

impl Underway {
    /// Whether it changes the tables.
    pub(super) fn writes(&self) -> bool {
        match self {
            Underway::Open | Underway::Page | Underway::PageOf(_) => false,
            Underway::Park(_) | Underway::Bury(_) | Underway::Hold(_) | Underway::Delete(_) | Underway::Revive => true,
        }
    }
}

/// A key whose deliveries are in the table.
#[derive(Debug)]
pub(super) struct ParkedKey {
    /// When its rows are read next; `None`: not before somebody asks for it.
    pub(super) due: Option<Instant>,
    /// Pauses so far.
    pub(super) failures: u32,
    /// Rows of it in memory that are not acknowledged.
    pub(super) loaded: usize,
    /// Behind which place its rows are read next.
    pub(super) cursor: Option<Place>,
    /// The last read found the end, and nothing was written since.
    pub(super) end: bool,
    /// Deliveries of it that are on their way into the table.
    pub(super) leaving: usize,
    /// Rows of it whose mark in the table is on its way.
    pub(super) marking: usize,
    /// The event that everything waits for, as far as it is known.
    pub(super) head: Option<ByteString>,
    /// Attempts of it, and what went wrong.
    pub(super) attempts: u32,
    pub(super) history: Option<Box<History>>,
    /// Leave out this event.
    pub(super) skip: Option<ByteString>,
}

impl ParkedKey {
    pub(super) fn new(due: Option<Instant>) -> Self {
        ParkedKey {
            due,
            failures: 0,
            loaded: 0,
            cursor: None,
            end: false,
            leaving: 0,
            marking: 0,
            head: None,
            attempts: 0,
            history: None,
            skip: None,
        }
    }

    /// All of its rows that there were are acknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.end && self.loaded == 0 && self.marking == 0
    }
}

/// Dead letters that somebody wants attempted again.
#[derive(Clone, Debug)]
pub(super) struct Revival {
    pub(super) request: i64,
    pub(super) filter: Filter,
    pub(super) before: i64,
    pub(super) run: String,
    pub(super) rows: u64,
}

#[derive(Debug)]
pub(super) struct Lot {
    pub(super) mode: Mode,
    pub(super) policy: Option<ParkingPolicy>,
    pub(super) leaving: VecDeque<Leaving>,
    pub(super) burying: VecDeque<Burial>,
    /// Dead letters for another sink; see [`letters`](super::letters).
    pub(super) handing: VecDeque<Burial>,
    /// Those that are being given to it now.
    pub(super) passing: Vec<Burial>,
    /// Rows whose deliveries it has, with the bytes of their events: they are deleted once it has settled them.
    pub(super) handed: HashMap<i64, usize>,
    /// Those of them that were given up for the sake of the WAL: nothing is sent before they are dead letters, because
    /// nothing else keeps what follows of their keys behind them.
    pub(super) given_up: usize,
    /// Rows that the sink has.
    pub(super) removed: Vec<i64>,
    /// Rows that wait for their keys from now on.
    pub(super) marking: Vec<(i64, HoldKey)>,
    pub(super) underway: Option<Underway>,
    /// Rows that were read and are not deleted yet.
    pub(super) loaded: HashSet<i64>,
    /// Bytes of the events of those that are not acknowledged, by this sink or by the one that they were handed to.
    pub(super) loaded_bytes: usize,
    /// Behind which place the rows that wait for the sink are read next.
    pub(super) cursor: Option<Place>,
    /// The last read found the end, and nothing was written since.
    pub(super) caught_up: bool,
    /// Rows in the table, and bytes of their events, as far as is known.
    pub(super) rows: u64,
    pub(super) bytes: u64,
    pub(super) dead_letters: u64,
    /// Since when it is on, and how many were written.
    pub(super) since: Option<Instant>,
    pub(super) written: u64,
    pub(super) keys: HashMap<HoldKey, ParkedKey>,
    /// When each is due.
    pub(super) due: BTreeSet<(Instant, HoldKey)>,
    pub(super) revivals: VecDeque<Revival>,
    /// The store failed: not before then, so often in a row, for this reason.
    pub(super) retry_at: Option<Instant>,
    pub(super) failures: u32,
    pub(super) error: Option<String>,
    /// It was a write that failed: that something can be read does not mend it.
    pub(super) unwritten: bool,
    /// An operation failed, and may have happened all the same: what is there is looked at again.
    pub(super) look_again: bool,
    /// Rows that are written at a time: fewer while one of them cannot be.
    pub(super) batch: usize,
    /// What was done last, so that each kind has its turn.
    pub(super) last: u8,
    pub(super) full: bool,
}

impl Lot {
    pub(super) fn new(policy: Option<ParkingPolicy>) -> Self {
        Lot {
            mode: if policy.is_some() { Mode::Unread } else { Mode::Absent },
            policy,
            leaving: VecDeque::new(),
            burying: VecDeque::new(),
            handing: VecDeque::new(),
            passing: Vec::new(),
            handed: HashMap::new(),
            given_up: 0,
            removed: Vec::new(),
            marking: Vec::new(),
            underway: None,
            loaded: HashSet::new(),
            loaded_bytes: 0,
            cursor: None,
            caught_up: false,
            rows: 0,
            bytes: 0,
            dead_letters: 0,
            since: None,
            written: 0,
            keys: HashMap::new(),
            due: BTreeSet::new(),
            revivals: VecDeque::new(),
            retry_at: None,
            failures: 0,
            error: None,
            unwritten: false,
            look_again: false,
            batch: BATCH.rows,
            last: 0,
            full: false,
        }
    }

    /// Whether something is to be written.
    pub(super) fn writes(&self) -> bool {
        !(self.leaving.is_empty()
            && self.burying.is_empty()
            && self.marking.is_empty()
            && self.removed.is_empty()
            && self.revivals.is_empty())
    }

    /// Whether deliveries can go to the tables.
    pub(super) fn is_usable(&self) -> bool {
        self.mode != Mode::Absent
    }

    /// Whether this delivery's key is parked: then it goes behind what is there.
    pub(super) fn holds(&self, item: &Item) -> Option<HoldKey> {
        if self.keys.is_empty() {
            return None;
        }
        Some(HoldKey::of(&item.work.delivery)).filter(|key| self.keys.contains_key(key))
    }

    /// Deliveries that are on their way into a table, or to another sink.
    pub(super) fn unsettled(&self) -> usize {
        let underway = match &self.underway {
            Some(Underway::Park(leaving)) => leaving.len(),
            Some(Underway::Bury(burials)) => burials.len(),
            _ => 0,
        };
        self.leaving.len() + self.burying.len() + self.handing.len() + self.passing.len() + underway
    }

    /// Those deliveries.
    pub(super) fn items(&self) -> impl Iterator<Item = &Item> {
        let (parking, burying): (&[Leaving], &[Burial]) = match &self.underway {
            Some(Underway::Park(leaving)) => (leaving, &[]),
            Some(Underway::Bury(burials)) => (&[], burials),
            _ => (&[], &[]),
        };
        let leaving = self.leaving.iter().chain(parking).map(|leaving| &leaving.item);
        let dying = self.burying.iter().chain(burying).chain(&self.handing).chain(&self.passing);
        leaving.chain(dying.map(|burial| &burial.item))
    }

    /// A delivery goes to the table, behind those that are on their way.
    pub(super) fn leave(&mut self, leaving: Leaving) {
        if let Some(key) = leaving.hold.as_ref().and_then(|key| self.keys.get_mut(key)) {
            key.leaving += 1;
        }
        self.leaving.push_back(leaving);
    }

    /// It is in the table, or goes through memory after all.
    pub(super) fn left(&mut self, leaving: &Leaving) {
        if let Some(key) = leaving.hold.as_ref().and_then(|key| self.keys.get_mut(key)) {
            key.leaving = key.leaving.saturating_sub(1);
        }
    }

    /// A row waits for its key from now on.
    pub(super) fn mark(&mut self, row: i64, hold: HoldKey) {
        if let Some(key) = self.keys.get_mut(&hold) {
            key.marking += 1;
            key.end = false;
        }
        self.marking.push((row, hold));
    }

    /// When this key's rows are to be read next.
    pub(super) fn schedule(&mut self, hold: &HoldKey, due: Option<Instant>) {
        let Some(key) = self.keys.get_mut(hold) else { return };
        if let Some(before) = std::mem::replace(&mut key.due, due) {
            self.due.remove(&(before, hold.clone()));
        }
        if let Some(due) = due {
            self.due.insert((due, hold.clone()));
        }
    }

    /// The key is parked from now on, and its rows are read when it is due.
    pub(super) fn add_key(&mut self, hold: HoldKey, due: Option<Instant>) {
        self.keys.entry(hold.clone()).or_insert_with(|| ParkedKey::new(None));
        self.schedule(&hold, due);
    }

    /// Nothing of this key is in the table any more.
    pub(super) fn remove_key(&mut self, hold: &HoldKey) {
        self.schedule(hold, None);
        self.keys.remove(hold);
    }

    /// Whether another row would be more than the configuration allows.
    pub(super) fn is_full(&self) -> bool {
        self.policy.as_ref().is_some_and(|policy| self.rows >= policy.max_rows || self.bytes >= policy.max_bytes)
    }

    /// What may be read now, if anything: half of the window has to be free.
    pub(super) fn room(&self) -> Option<PageLimit> {
        let rows = WINDOW.rows.saturating_sub(self.loaded.len());
        let bytes = WINDOW.bytes.saturating_sub(self.loaded_bytes);
        (rows >= WINDOW.rows / 2 && bytes >= WINDOW.bytes / 2).then_some(PageLimit { rows, bytes })
    }

    /// A row is written: reading goes back to it where it has passed its place.
    pub(super) fn rewind_to(&mut self, place: Place, hold: Option<&HoldKey>) {
        let before = just_before(place);
        match hold {
            None => {
                self.caught_up = false;
                if self.cursor.is_some_and(|cursor| cursor >= place) {
                    self.cursor = Some(before);
                }
            }
            Some(hold) => {
                if let Some(key) = self.keys.get_mut(hold) {
                    key.end = false;
                    if key.cursor.is_some_and(|cursor| cursor >= place) {
                        key.cursor = Some(before);
                    }
                }
            }
        }
    }
}

/// The greatest place that is less than this one.
fn just_before(place: Place) -> Place {
    match place.delivery.checked_sub(1) {
        Some(delivery) => Place { delivery, ..place },
        None => {
            let mut position = place.position;
            position.ordinal = position.ordinal.checked_sub(1).unwrap_or_else(|| {
                position.commit_lsn.0 = position.commit_lsn.0.saturating_sub(1);
                u32::MAX
            });
            Place { position, delivery: i64::MAX }
        }
    }
}

/// A rejection as it stands in a row, and back.
pub(super) fn rejection_of(reason: &str, message: &str) -> Rejection {
    use walgate_sink::RejectReason::{InvalidEvent, InvalidTarget, Refused, TooLarge, UnknownTarget};
    let known = [TooLarge, InvalidTarget, UnknownTarget, InvalidEvent, Refused];
    let reason = known.into_iter().find(|known| known.as_str() == reason).unwrap_or(InvalidTarget);
    Rejection::new(reason, message)
}
