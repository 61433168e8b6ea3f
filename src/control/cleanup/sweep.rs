//! How a sweep goes through one table, a page at a time, so that rows that have to stay are looked at once. Pure.

/// Blocks that are looked at together where rows are not read by age.
const BLOCKS: u64 = 128;
/// A page of rows of which few may go grows, up to so many batches.
const MOST_BATCHES: u64 = 32;

/// Where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    /// By the age column, through its index.
    Age(ByAge),
    /// By the table's blocks.
    Place(ByPlace),
}

/// Rows from this age on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ByAge {
    /// As PostgreSQL wrote it.
    pub from: String,
    /// Rows of exactly that age are skipped: there are more of them than a page holds, and none may go.
    pub skip: bool,
    /// Rows to look at.
    pub look: u64,
    /// The first row that had to stay.
    kept: Option<String>,
}

/// Rows from this block on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByPlace {
    pub block: u64,
}

impl ByPlace {
    pub fn end(self) -> u64 {
        self.block + BLOCKS
    }

    /// Goes on behind a page; true: there is nothing more.
    pub fn after(&mut self, touched: u64, batch: u64, blocks: u64) -> bool {
        if touched < batch {
            self.block = self.end();
        }
        self.block >= blocks
    }
}

/// What a page came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub touched: u64,
    pub looked: u64,
    pub next: Option<String>,
    pub first_kept: Option<String>,
}

impl ByAge {
    /// From the oldest row on.
    pub fn new(batch: u64) -> Self {
        ByAge { from: "-infinity".to_owned(), skip: false, look: batch, kept: None }
    }

    /// Goes on behind a page; true: there is nothing more.
    pub fn after(&mut self, seen: Seen, batch: u64) -> bool {
        if self.kept.is_none() {
            self.kept = seen.first_kept;
        }
        let full = seen.looked >= self.look;
        let most = batch.saturating_mul(MOST_BATCHES);
        let Some(next) = seen.next.filter(|_| full) else { return true };
        if next == self.from && seen.touched == 0 && !self.skip {
            if self.look < most {
                self.look = (self.look * 4).min(most)
            } else {
                self.skip = true
            }
            return false;
        }
        (self.from, self.skip) = (next, false);
        self.look = if seen.touched * 2 < batch { (self.look * 2).min(most) } else { batch };
        false
    }

    /// Another sweep of rows that stay in the table when they are done: from the first that had to stay, or from where
    /// this one ended.
    pub fn again(&self, batch: u64) -> Self {
        let from = self.kept.clone().unwrap_or_else(|| self.from.clone());
        ByAge { from, skip: false, look: batch, kept: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(looked: u64, touched: u64, next: &str) -> Seen {
        Seen { touched, looked, next: Some(next.to_owned()), first_kept: None }
    }

    #[test]
    fn a_walk_by_age_goes_forward_and_ends() {
        let mut walk = ByAge::new(10);
        assert!(!walk.after(seen(10, 10, "b"), 10));
        assert_eq!((walk.from.as_str(), walk.look), ("b", 10));
        // Few may go: more are looked at.
        assert!(!walk.after(seen(10, 1, "c"), 10));
        assert_eq!((walk.from.as_str(), walk.look), ("c", 20));
        assert!(walk.after(seen(19, 3, "d"), 10), "the page was not full");
        assert!(ByAge::new(10).after(Seen::default(), 10), "an empty table");
    }

    #[test]
    fn more_rows_of_one_age_than_a_page_holds_are_passed_in_the_end() {
        let mut walk = ByAge::new(10);
        assert!(!walk.after(seen(10, 0, "b"), 10));
        let mut rounds = 0;
        while !walk.skip {
            let look = walk.look;
            assert!(!walk.after(seen(look, 0, "b"), 10));
            rounds += 1;
            assert!(rounds < 10);
        }
        let look = walk.look;
        assert_eq!(look, 10 * MOST_BATCHES);
        assert!(!walk.after(seen(look, 0, "c"), 10));
        assert_eq!((walk.from.as_str(), walk.skip), ("c", false));
        assert!(walk.after(Seen { looked: 0, ..Seen::default() }, 10));
    }

    #[test]
    fn the_next_walk_begins_at_the_first_row_that_had_to_stay() {
        let mut walk = ByAge::new(10);
        walk.after(Seen { first_kept: Some("a".to_owned()), ..seen(10, 9, "b") }, 10);
        walk.after(Seen { first_kept: Some("c".to_owned()), ..seen(10, 9, "d") }, 10);
        assert_eq!(walk.again(10).from, "a");
        let mut walk = ByAge::new(10);
        walk.after(seen(10, 10, "b"), 10);
        assert_eq!(walk.again(10).from, "b");
    }

    #[test]
    fn a_walk_by_place_stays_where_there_is_more_to_do() {
        let mut walk = ByPlace { block: 0 };
        assert!(!walk.after(10, 10, BLOCKS + 1));
        assert_eq!(walk.block, 0);
        assert!(!walk.after(9, 10, BLOCKS + 1));
        assert!(walk.after(0, 10, BLOCKS + 1));
        assert!(ByPlace { block: 0 }.after(0, 10, 0), "an empty table");
    }
}
