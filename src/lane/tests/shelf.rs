//! `walgate.parked` and `walgate.dead_letters` in memory, as [`ParkingStore`](crate::control::parking::ParkingStore) says
//! that they behave. Pure: it does what a [`Chore`] asks for.

use std::collections::BTreeMap;

use walgate_sink::Event;

use crate::{
    control::parking::{HoldKey, Opening, Page, PageLimit, Parcel, Place, Revived, StoreError, Stored},
    lane::{Chore, Done},
};

/// No page has more rows, so that a few rows are several pages.
const PAGE: usize = 3;

#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) id: i64,
    pub(super) parcel: Parcel,
}

/// Both tables.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    pub(super) parked: BTreeMap<Place, Row>,
    pub(super) dead: BTreeMap<Place, Row>,
    next: i64,
    /// Events with these ids cannot be written.
    pub(super) unwritable: Vec<String>,
}

impl Shelf {
    pub(super) fn carry_out(&mut self, chore: Chore) -> Result<Done, StoreError> {
        Ok(match chore {
            Chore::Open { max_keys } => Done::Opened(self.open(max_keys)),
            Chore::Park(parcels) => {
                self.check(&parcels)?;
                let (mut rows, mut bytes) = (0, 0);
                for parcel in parcels {
                    let place = Place::of(&parcel.delivery);
                    if !self.parked.contains_key(&place) {
                        rows += 1;
                        bytes += parcel.delivery.event.size() as u64;
                        self.next += 1;
                        self.parked.insert(place, Row { id: self.next, parcel });
                    }
                }
                Done::Parked(rows, bytes)
            }
            Chore::Bury(letters, rows) => {
                self.check(&letters)?;
                for parcel in letters {
                    self.next += 1;
                    self.dead.insert(Place::of(&parcel.delivery), Row { id: self.next, parcel });
                }
                self.delete(&rows);
                Done::Buried
            }
            Chore::Page(after, limit) => Done::Page(self.page(None, after, limit)),
            Chore::PageOf(key, after, limit) => Done::Page(self.page(Some(&key), after, limit)),
            Chore::Hold(rows) => {
                for (id, hold) in rows {
                    for row in self.parked.values_mut().filter(|row| row.id == id) {
                        row.parcel.hold = Some(hold.clone());
                    }
                }
                Done::Held
            }
            Chore::Delivered(rows) => {
                self.delete(&rows);
                Done::Deleted
            }
            Chore::Revive { filter, run, limit, .. } => {
                let wanted = |row: &Row| {
                    row.parcel.contents
                        && filter.event_id.as_ref().is_none_or(|id| **id == *row.parcel.delivery.event.id)
                };
                let places: Vec<Place> =
                    self.dead.iter().filter(|(_, row)| wanted(row)).map(|(place, _)| *place).take(limit + 1).collect();
                let mut revived = Revived { end: places.len() <= limit, ..Revived::default() };
                for place in places.into_iter().take(limit) {
                    let Some(mut row) = self.dead.remove(&place) else { continue };
                    let parcel = &mut row.parcel;
                    parcel.delivery.dedup_id = format!("{}-{run}", parcel.delivery.dedup_id).into();
                    (parcel.reason, parcel.message, parcel.delivery.attempt) = (None, None, 0);
                    revived.rows += 1;
                    revived.bytes += parcel.delivery.event.size() as u64;
                    revived.keys.extend(parcel.hold.clone());
                    self.next += 1;
                    row.id = self.next;
                    self.parked.insert(Place::of(&row.parcel.delivery), row);
                }
                Done::Revived(revived)
            }
        })
    }

    fn check(&self, parcels: &[Parcel]) -> Result<(), StoreError> {
        let bad = |event: &Event| self.unwritable.iter().any(|id| **id == *event.id);
        if parcels.iter().any(|parcel| bad(&parcel.delivery.event)) {
            return Err(StoreError { message: "a value that the table cannot hold".into(), lasting: true });
        }
        Ok(())
    }

    fn open(&self, max_keys: usize) -> Opening {
        let rows = self.parked.values();
        let mut keys: Vec<HoldKey> = rows.clone().filter_map(|row| row.parcel.hold.clone()).collect();
        keys.sort();
        keys.dedup();
        keys.truncate(max_keys);
        let held = rows.clone().filter(|row| row.parcel.hold.is_some()).count() as u64;
        Opening {
            rows: self.parked.len() as u64 - held,
            key_rows: held,
            bytes: rows.map(|row| row.parcel.delivery.event.size() as u64).sum(),
            keys,
            last: self.parked.last_key_value().map(|(place, _)| *place),
            dead_letters: self.dead.len() as u64,
        }
    }

    fn page(&self, hold: Option<&HoldKey>, after: Option<Place>, limit: PageLimit) -> Page {
        let (mut rows, mut bytes) = (Vec::new(), 0);
        let mine = |row: &&Row| row.parcel.hold.as_ref() == hold;
        let behind = self.parked.iter().filter(|(place, _)| after.is_none_or(|after| **place > after));
        for (place, row) in behind.filter(|(_, row)| mine(row)) {
            bytes += row.parcel.delivery.event.size();
            if !rows.is_empty() && (rows.len() >= limit.rows.min(PAGE) || bytes > limit.bytes) {
                return Page { rows, end: false };
            }
            rows.push(stored(*place, row));
        }
        Page { rows, end: true }
    }

    fn delete(&mut self, ids: &[i64]) {
        self.parked.retain(|_, row| !ids.contains(&row.id));
    }
}

fn stored(place: Place, row: &Row) -> Stored {
    let Row { id, parcel } = row.clone();
    Stored {
        id,
        place,
        event: parcel.delivery.event,
        target: parcel.delivery.target.iter().map(|(name, value)| (name.to_owned(), value.clone())).collect(),
        ordering_key: parcel.delivery.ordering_key,
        dedup_id: parcel.delivery.dedup_id,
        route: parcel.route,
        attempts: parcel.delivery.attempt,
        rejected: parcel.reason.zip(parcel.message),
        errors: parcel.errors,
    }
}
