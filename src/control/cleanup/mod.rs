//! The clean-up of rows that are settled on every sink: what may go, the statements, and the checks before them.
//!
//! A row is settled if its inserting transaction is older than a mark that the checkpoint has passed (`gateway`). What makes
//! that true, and what is asked for here before a row is touched:
//!
//! - *The mark is of this life of the server.* After a crash, or on a standby that was promoted, transaction numbers are
//!   handed out again. A [`Sweeper`]'s connection ends with the server's life, and a mark counts only if it became known after
//!   that connection was made ([`Sweeper::takes`]): it was taken, and written down, on a session that was alive then.
//! - *The server is the one that is streamed from*, and the table the same: both connections say so ([`place()`]).
//! - *The row was streamed at all.* Rows from before the slot's birth were not, and one that was updated since does not look
//!   like one. Nothing goes while [`past`] finds any, by their transaction or by their age.
//! - *The term is ours*: where the role may, each statement holds it.
//! - *In doubt it stays*: transaction numbers that are too far back to be told from younger ones, rows without an age.

mod facts;
mod findings;
mod partitions;
pub mod past;
mod statements;
mod survey;
mod sweep;
mod sweeper;
#[cfg(test)]
mod tests;

use crate::{
    config::{Cleanup, CleanupMode},
    control::names::TableName,
};

pub use facts::{AgeType, CleanupFacts, LeafFacts, Place, place, read_facts};
pub use findings::judge;
pub use survey::{Count, Measures, PartitionCount, Survey, survey};
pub use sweeper::{Round, Sweeper, SweeperError, elsewhere};

/// What is to be cleaned up, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// As the configuration has it.
    pub cleanup: Cleanup,
    /// The outbox.
    pub table: TableName,
    /// The slot whose marks count.
    pub slot: String,
}

impl Plan {
    /// The mode.
    #[must_use]
    pub fn mode(&self) -> CleanupMode {
        self.cleanup.mode
    }
}
