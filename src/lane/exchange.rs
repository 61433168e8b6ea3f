//! Where the lanes of a process find each other: one that gives dead letters to another, and that one when it has settled
//! what was a row of the first.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{LaneHandle, Work, handle::Shared};

/// The lanes that there are. A clone is the same exchange.
///
/// A lane is looked up by its name each time that something is given to it, so that nobody keeps a lane which a reload has
/// replaced. It has a number as well, which no other lane ever has: what is told of a row to a lane that is gone is told to
/// nobody, and whoever came after it reads the row again.
#[derive(Clone, Default)]
pub struct Exchange(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    lanes: HashMap<u64, Weak<Shared>>,
    /// The newest lane of each name.
    names: HashMap<Arc<str>, u64>,
    last: u64,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exchange")
    }
}

impl Exchange {
    /// There is another lane; its number.
    pub(super) fn register(&self, lane: &Arc<Shared>) -> u64 {
        let mut book = self.book();
        book.lanes.retain(|_, lane| lane.strong_count() > 0);
        book.last += 1;
        let number = book.last;
        book.lanes.insert(number, Arc::downgrade(lane));
        book.names.insert(Arc::clone(&lane.name), number);
        number
    }

    /// Gives work to the lane of this name. False: it is not there at present, and has taken none of it.
    pub(super) fn push(&self, name: &str, works: Vec<Work>) -> bool {
        let lane = {
            let book = self.book();
            book.names.get(name).and_then(|number| book.lanes.get(number)).and_then(Weak::upgrade)
        };
        let Some(lane) = lane.map(LaneHandle).filter(|lane| !lane.has_ended()) else { return false };
        lane.push_all(works);
        true
    }

    /// These rows, each of the lane with this number, are settled.
    pub(super) fn settled(&self, rows: &[(u64, i64)]) {
        for same in rows.chunk_by(|one, next| one.0 == next.0) {
            let Some((number, _)) = same.first() else { continue };
            let lane = self.book().lanes.get(number).and_then(Weak::upgrade);
            if let Some(lane) = lane {
                LaneHandle(lane).rows_settled(same.iter().map(|(_, row)| *row));
            }
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
