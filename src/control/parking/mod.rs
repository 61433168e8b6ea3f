//! walgate's own tables in the source database: `walgate.parked` and `walgate.dead_letters`, of one shape, and
//! `walgate.requests`, what operators ask for.
//!
//! A row of `parked` is a delivery that is owed: it was taken out of memory and settled, because this row is as durable
//! as the LSN that it released. It goes out by itself. A row of `dead_letters` is a delivery that is not going to be
//! attempted unless somebody asks for it.
//!
//! # Which rows wait for what
//!
//! A parked row waits for its **sink** (`hold_key` is NULL), or for its **key** ([`HoldKey`]). Rows that wait for the sink
//! are read in the order of their [`Place`]s, from the unique index; rows that wait for a key are read by that key in the
//! same order, from a partial index that holds nothing but them. Both are cheap however many rows there are: nothing is
//! ever sorted, and what was deleted is not walked over again, because reading goes on behind the last place.
//!
//! Every table names the slot in its rows: two gateways in one database do not see each other's.

mod discard;
mod expire;
mod parcel;
mod schema;
mod sql;

pub use discard::discard;
pub use expire::{EXPIRE_ROWS, Expired, expire};
pub use parcel::{Attempted, HoldKey, KEPT_ERRORS, Parcel, Place, Stored};
pub use schema::{DEAD_LETTERS, GATEWAY, OMITTED, PARKED, REQUESTS, SCHEMA, create_sql, drop_sql};
pub(in crate::control) use schema::{columns, grant_sql};
pub use sql::{Shelf, SqlStore, SqlStoreOptions};

use futures_util::future::BoxFuture;

/// A store could not do what it was asked for. Nothing of it was done, or it may be asked again: every operation
/// comes to the same when it is repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// What failed and why, for the operator; no payload, no secret.
    pub message: String,
    /// Rows that can never be written (a value that the table cannot hold) rather than a server that is away: asking
    /// again does not help.
    pub lasting: bool,
}

/// How much is read at once: whatever is reached first, but always one row if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageLimit {
    /// Rows.
    pub rows: usize,
    /// Bytes of their events, as [`walgate_sink::Event::size`] counts them.
    pub bytes: usize,
}

/// What is in `walgate.parked` for one sink when a gateway starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Rows that wait for the sink.
    pub rows: u64,
    /// Rows that wait for their key.
    pub key_rows: u64,
    /// Bytes of the events of both.
    pub bytes: u64,
    /// The keys that rows wait for, at most as many as were asked for.
    pub keys: Vec<HoldKey>,
    /// The last place of all, by which it is known what comes behind it.
    pub last: Option<Place>,
    /// Rows in `walgate.dead_letters`.
    pub dead_letters: u64,
}

/// A part of the rows, in the order of their places.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// The rows.
    pub rows: Vec<Stored>,
    /// There were no more when it was read.
    pub end: bool,
}

/// Which dead letters an operator means: all that fit every condition given.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Their numbers (`dead_letters.id`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<i64>,
    /// The event's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The event's type, exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// The class of the rejection: `too_large`, `refused`, `unrouted`, `max_attempts` ...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The event's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Dead for at least so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub older_than_seconds: Option<u64>,
    /// Dead for at most so many seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub newer_than_seconds: Option<u64>,
}

/// Dead letters that became parked rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revived {
    /// How many.
    pub rows: u64,
    /// Bytes of their events.
    pub bytes: u64,
    /// The keys that they wait for.
    pub keys: Vec<HoldKey>,
    /// There are no more.
    pub end: bool,
}

/// The tables as the lane of one sink sees them. One operation at a time; each is one transaction, and has happened,
/// durably, when it returns `Ok`.
pub trait ParkingStore: Send + Sync {
    /// Looks what is there. The first thing that a lane asks for.
    fn open(&self, max_keys: usize) -> BoxFuture<'_, Result<Opening, StoreError>>;

    /// Writes rows into `parked`; those that are there already (the same place) are left as they are, and not counted.
    /// Returns how many are new and the bytes of their events.
    fn park(&self, parcels: Vec<Parcel>) -> BoxFuture<'_, Result<(u64, u64), StoreError>>;

    /// Writes rows into `dead_letters` (a row of the same place is replaced) and deletes the `parked` rows with these
    /// numbers, in one transaction.
    fn bury(&self, letters: Vec<Parcel>, parked: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Rows that wait for the sink, behind a place.
    fn page(&self, after: Option<Place>, limit: PageLimit) -> BoxFuture<'_, Result<Page, StoreError>>;

    /// Rows that wait for a key, behind a place.
    fn page_of(&self, key: HoldKey, after: Option<Place>, limit: PageLimit) -> BoxFuture<'_, Result<Page, StoreError>>;

    /// These `parked` rows wait for their keys from now on.
    fn hold(&self, rows: Vec<(i64, HoldKey)>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Deletes `parked` rows: the sink has them.
    fn delivered(&self, parked: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Moves up to `limit` dead letters into `parked`, oldest place first: those that fit the filter, were dead at `before`
    /// (microseconds since 1970) and have their contents. Each waits for its key, and has `run` appended to its dedup id, or a broker
    /// that deduplicates would swallow it.
    fn revive(
        &self,
        filter: Filter,
        before: i64,
        run: String,
        limit: usize,
    ) -> BoxFuture<'_, Result<Revived, StoreError>>;
}
