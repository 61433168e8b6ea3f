//! What operators ask a running gateway for, through the table `walgate.requests`: written by the command line, taken by
//! the gateway in the order of their numbers, and answered in the same row. Nobody needs to reach the gateway over the
//! network, what was asked for survives a restart, and who asked is on record.

use serde::{Deserialize, Serialize};

use super::parking::Filter;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", content = "arguments", rename_all = "snake_case")]
pub enum Verb {
    /// Attempt these dead letters of a sink again, each with a new dedup id.
    Retry(Filter),
    /// Delete these dead letters of a sink for good.
    Drop(Filter),
    /// Send nothing to a sink until it is resumed. It survives restarts, because the request stays the newest of its
    /// kind.
    Pause {},
    /// Go on after `Pause`.
    Resume {},
    /// Leave out the event that holds its key (`on_reject: halt` or `park_key`) and go on with the next of the key.
    Skip {
        /// The event's id.
        event_id: String,
    },
}

impl Verb {
    /// As it stands in the table.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Verb::Retry(_) => "retry",
            Verb::Drop(_) => "drop",
            Verb::Pause {} => "pause",
            Verb::Resume {} => "resume",
            Verb::Skip { .. } => "skip",
        }
    }
}

/// One request that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its number.
    pub id: i64,
    /// The sink that it is about; for dead letters of events without a route it is empty.
    pub sink: String,
    /// What is asked for.
    pub verb: Verb,
    /// Who asked: a role of the database.
    pub asked_by: String,
    /// When, in microseconds since 1970.
    pub asked_at: i64,
}

/// What came of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// It could not be done.
    pub failed: bool,
    /// A sentence for the operator.
    pub outcome: String,
    /// Rows that it concerned.
    pub affected: u64,
}
