//! The tables over SQL.
//!
//! Every operation is one statement, so it happens whole or not at all, and comes to the same when it is repeated. A
//! connection on which anything failed, or took too long, is closed rather than used again: what is still to be read
//! on it is not known, and a new one costs a few milliseconds.

mod connection;
mod failure;
mod rows;
mod standbys;
mod statements;
mod text;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{Mutex, MutexGuard},
    time::{Instant, timeout},
};
use tokio_postgres::types::{PgLsn, ToSql};

use self::{
    connection::{Connection, Slot, close_when_idle},
    failure::Failure,
    rows::{Columns, When, page, size},
};
use super::{Filter, HoldKey, Opening, Page, PageLimit, Parcel, ParkingStore, Place, Revived, StoreError};
use crate::control::{
    gateway::Term,
    link::{Link, LinkError},
};
use walgate_sink::{Lsn, Position, Timestamp};

/// Whose rows, and how the connection is kept.
#[derive(Clone, Debug)]
pub struct SqlStoreOptions {
    /// The slot of the gateway.
    pub slot: String,
    /// The sink; empty for events without a route.
    pub sink: String,
    /// Time that one operation may take, connecting included.
    pub patience: Duration,
    /// A connection that nothing was done on for so long is closed.
    pub idle: Duration,
    /// The term that is written in.
    pub term: Term,
}

/// The tables over a connection of its own: opened when something is to be done, closed when nothing was for a while.
pub struct SqlStore {
    options: SqlStoreOptions,
    connect: Box<dyn Fn() -> BoxFuture<'static, Result<Link, LinkError>> + Send + Sync>,
    slot: Arc<Slot>,
    connections: AtomicU64,
}

/// The connection while an operation uses it. It goes back where it was only by [`Held::done`]: when the operation is
/// dropped half-way, it is closed.
struct Held<'a> {
    slot: MutexGuard<'a, Option<Connection>>,
    connection: Connection,
}

impl Held<'_> {
    /// The operation has ended: keeps the connection where it stands for certain.
    async fn done<T>(mut self, result: Result<T, Failure>) -> Result<T, Failure> {
        match result {
            Err(Failure::Sql(error)) if error.is_closed() => Err(self.connection.last_word(error).await),
            Err(failure) if !failure.spares_the_connection() => Err(failure),
            result => {
                self.connection.used = Instant::now();
                *self.slot = Some(self.connection);
                result
            }
        }
    }
}

impl SqlStore {
    /// A store that is not connected yet.
    pub fn new<F, Fut>(options: SqlStoreOptions, connect: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Link, LinkError>> + Send + 'static,
    {
        SqlStore {
            options,
            connect: Box::new(move || Box::pin(connect())),
            slot: Arc::new(Mutex::new(None)),
            connections: AtomicU64::new(0),
        }
    }

    /// Does something within the time that an operation may take.
    async fn within<T>(
        &self,
        what: &'static str,
        operation: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, StoreError> {
        match timeout(self.options.patience, operation).await {
            Ok(result) => result.map_err(|failure| failure.explain(what)),
            Err(_) => Err(StoreError {
                message: format!("cannot {what}: not done within {} s", self.options.patience.as_secs_f32()),
                lasting: false,
            }),
        }
    }

    /// The connection that there is, or a new one.
    async fn hold_connection(&self) -> Result<Held<'_>, Failure> {
        let mut slot = self.slot.lock().await;
        if let Some(connection) = slot.take().filter(Connection::stands) {
            return Ok(Held { slot, connection });
        }
        let link = (self.connect)().await?;
        let number = self.connections.fetch_add(1, Ordering::Relaxed);
        let connection = Connection::open(link, self.options.patience, number).await?;
        close_when_idle(&self.slot, number, self.options.idle);
        Ok(Held { slot, connection })
    }

    async fn do_open(&self, max_keys: usize) -> Result<Opening, Failure> {
        let mut held = self.hold_connection().await?;
        let SqlStoreOptions { slot, sink, .. } = &self.options;
        let result = async {
            let found = held.connection.row(statements::OPEN, &[slot, sink, &size(max_keys)]).await?;
            let last = match found.try_get::<_, Option<PgLsn>>(4)? {
                None => None,
                Some(lsn) => {
                    let ordinal = u32::try_from(found.try_get::<_, i64>(5)?).unwrap_or(u32::MAX);
                    let position = Position { commit_lsn: Lsn(lsn.into()), ordinal };
                    Some(Place { position, delivery: found.try_get(6)? })
                }
            };
            let keys: Vec<String> = found.try_get(3)?;
            Ok(Opening {
                rows: count(found.try_get(0)?),
                key_rows: count(found.try_get(1)?),
                bytes: count(found.try_get(2)?),
                keys: keys.into_iter().map(HoldKey::from_text).collect(),
                last,
                dead_letters: count(found.try_get(7)?),
            })
        };
        let result = result.await;
        held.done(result).await
    }

    async fn do_park(&self, parcels: Vec<Parcel>) -> Result<(u64, u64), Failure> {
        let started = Instant::now();
        let mut held = self.hold_connection().await?;
        let SqlStoreOptions { slot, sink, .. } = &self.options;
        let result = async {
            let parcels: Vec<&Parcel> = parcels.iter().collect();
            let columns = Columns::of(&parcels, held.connection.utf8);
            let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![slot, sink];
            parameters.extend(columns.parameters());
            let term = self.options.term.get();
            parameters.push(&term);
            let new = held.connection.row(statements::PARK, &parameters).await?;
            in_term(&new, 2)?;
            standbys::wait(&mut held.connection, slot, started, self.options.patience).await?;
            Ok((count(new.try_get(0)?), count(new.try_get(1)?)))
        };
        let result = result.await;
        held.done(result).await
    }

    async fn do_bury(&self, letters: Vec<Parcel>, parked: Vec<i64>) -> Result<(), Failure> {
        let started = Instant::now();
        let mut held = self.hold_connection().await?;
        let SqlStoreOptions { slot, sink, .. } = &self.options;
        let result = async {
            // One statement cannot write a row twice: of letters with one place the last counts.
            let mut last: HashMap<Place, usize> = HashMap::with_capacity(letters.len());
            last.extend(letters.iter().enumerate().map(|(index, letter)| (Place::of(&letter.delivery), index)));
            let letters: Vec<&Parcel> = letters
                .iter()
                .enumerate()
                .filter(|(index, letter)| last.get(&Place::of(&letter.delivery)) == Some(index))
                .map(|(_, letter)| letter)
                .collect();
            let columns = Columns::of(&letters, held.connection.utf8);
            let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![slot, sink];
            parameters.extend(columns.parameters());
            let term = self.options.term.get();
            parameters.push(&term);
            parameters.push(&parked);
            in_term(&held.connection.row(statements::BURY, &parameters).await?, 0)?;
            standbys::wait(&mut held.connection, slot, started, self.options.patience).await
        };
        let result = result.await;
        held.done(result).await
    }

    async fn do_page(&self, key: Option<HoldKey>, after: Option<Place>, limit: PageLimit) -> Result<Page, Failure> {
        let mut held = self.hold_connection().await?;
        let SqlStoreOptions { slot, sink, .. } = &self.options;
        let result = async {
            // Before every place that there can be.
            let before = Place { position: Position::default(), delivery: i64::MIN };
            let ordinal = after.map_or(-1, |after| i64::from(after.position.ordinal));
            let after = after.unwrap_or(before);
            let commit_lsn = PgLsn::from(after.position.commit_lsn.0);
            let (rows, bytes) = (size(limit.rows.max(1)), size(limit.bytes));
            let mut parameters: Vec<&(dyn ToSql + Sync)> =
                vec![slot, sink, &commit_lsn, &ordinal, &after.delivery, &rows, &bytes];
            let key = key.as_ref().map(HoldKey::as_str);
            let statement = match &key {
                None => statements::PAGE,
                Some(key) => {
                    parameters.push(key);
                    statements::PAGE_OF
                }
            };
            page(&held.connection.rows(statement, &parameters).await?)
        };
        let result = result.await;
        held.done(result).await
    }

    async fn do_hold(&self, rows: Vec<(i64, HoldKey)>) -> Result<(), Failure> {
        let mut held = self.hold_connection().await?;
        let SqlStoreOptions { slot, sink, .. } = &self.options;
        let ids: Vec<i64> = rows.iter().map(|(id, _)| *id).collect();
        let keys: Vec<&str> = rows.iter().map(|(_, key)| key.as_str()).collect();
        let term = self.options.term.get();
        let result = async {
            let found = held.connection.row(statements::HOLD, &[slot, sink, &term, &ids, &keys]).await?;
            in_term(&found, 0)
        };
        let result = result.await;
        held.done(result).await
    }

    async fn do_delivered(&self, parked: Vec<i64>) -> Result<(), Failure> {
        let mut held = self.hold_connection().await?;
        let SqlStoreOptions { slot, sink, .. } = &self.options;
        let result = held.connection.rows(statements::DELIVERED, &[slot, sink, &parked]).await.map(drop);
        held.done(result).await
    }

    async fn do_revive(&self, filter: Filter, before: i64, run: String, limit: usize) -> Result<Revived, Failure> {
        let mut held = self.hold_connection().await?;
        let SqlStoreOptions { slot, sink, .. } = &self.options;
        let limit = size(limit);
        let Filter { ids, event_id, event_type, reason, key, older_than_seconds, newer_than_seconds } = filter;
        let ids = Some(ids).filter(|ids| !ids.is_empty());
        let ago = |seconds: u64| {
            let micros = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000);
            When(Timestamp(before.saturating_sub(micros).max(EARLIEST)))
        };
        let latest = older_than_seconds.map_or(When(Timestamp(before)), ago);
        let earliest = newer_than_seconds.map(ago);
        let term = self.options.term.get();
        let result = async {
            let found = held
                .connection
                .row(
                    statements::REVIVE,
                    &[slot, sink, &latest, &earliest, &ids, &event_id, &event_type, &reason, &key, &limit, &run, &term],
                )
                .await?;
            in_term(&found, 4)?;
            let keys: Vec<String> = found.try_get(3)?;
            Ok(Revived {
                rows: count(found.try_get(1)?),
                bytes: count(found.try_get(2)?),
                keys: keys.into_iter().map(HoldKey::from_text).collect(),
                end: found.try_get::<_, i64>(0)? < limit,
            })
        };
        let result = result.await;
        held.done(result).await
    }
}

impl ParkingStore for SqlStore {
    fn open(&self, max_keys: usize) -> BoxFuture<'_, Result<Opening, StoreError>> {
        Box::pin(self.within("look into walgate.parked", self.do_open(max_keys)))
    }

    fn park(&self, parcels: Vec<Parcel>) -> BoxFuture<'_, Result<(u64, u64), StoreError>> {
        if parcels.is_empty() {
            return done((0, 0));
        }
        Box::pin(self.within("write to walgate.parked", self.do_park(parcels)))
    }

    fn bury(&self, letters: Vec<Parcel>, parked: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>> {
        if letters.is_empty() && parked.is_empty() {
            return done(());
        }
        Box::pin(self.within("write to walgate.dead_letters", self.do_bury(letters, parked)))
    }

    fn page(&self, after: Option<Place>, limit: PageLimit) -> BoxFuture<'_, Result<Page, StoreError>> {
        Box::pin(self.within("read walgate.parked", self.do_page(None, after, limit)))
    }

    fn page_of(&self, key: HoldKey, after: Option<Place>, limit: PageLimit) -> BoxFuture<'_, Result<Page, StoreError>> {
        Box::pin(self.within("read walgate.parked", self.do_page(Some(key), after, limit)))
    }

    fn hold(&self, rows: Vec<(i64, HoldKey)>) -> BoxFuture<'_, Result<(), StoreError>> {
        if rows.is_empty() {
            return done(());
        }
        Box::pin(self.within("change rows of walgate.parked", self.do_hold(rows)))
    }

    fn delivered(&self, parked: Vec<i64>) -> BoxFuture<'_, Result<(), StoreError>> {
        if parked.is_empty() {
            return done(());
        }
        Box::pin(self.within("delete from walgate.parked", self.do_delivered(parked)))
    }

    fn revive(
        &self,
        filter: Filter,
        before: i64,
        run: String,
        limit: usize,
    ) -> BoxFuture<'_, Result<Revived, StoreError>> {
        let what = "move rows from walgate.dead_letters to walgate.parked";
        Box::pin(self.within(what, self.do_revive(filter, before, run, limit)))
    }
}

/// A moment of which nothing is older, and which PostgreSQL can hold: 1970 less 5,000 years.
const EARLIEST: i64 = -157_000_000_000_000_000;

/// One of the tables within somebody else's transaction: what a recovery puts there is there together with what it says
/// of the slot, or not at all.
pub struct Shelf<'a> {
    client: &'a tokio_postgres::Client,
    statement: tokio_postgres::Statement,
    letters: bool,
    utf8: bool,
}

impl<'a> Shelf<'a> {
    /// `walgate.parked`: what is put there is owed.
    ///
    /// # Errors
    /// The table is not there or must not be written, or the connection broke.
    pub async fn parked(client: &'a tokio_postgres::Client) -> Result<Self, StoreError> {
        Shelf::open(client, false).await
    }

    /// `walgate.dead_letters`: what is put there waits until somebody asks for it.
    ///
    /// # Errors
    /// As [`Shelf::parked`].
    pub async fn dead_letters(client: &'a tokio_postgres::Client) -> Result<Self, StoreError> {
        Shelf::open(client, true).await
    }

    async fn open(client: &'a tokio_postgres::Client, letters: bool) -> Result<Self, StoreError> {
        let sql = if letters { statements::BURY } else { statements::PARK };
        let open = async {
            let encoding = client.query_typed_one("SELECT pg_catalog.current_setting('server_encoding') = 'UTF8'", &[]);
            let utf8 = encoding.await?.try_get(0)?;
            Ok::<_, tokio_postgres::Error>((client.prepare(sql).await?, utf8))
        };
        let (statement, utf8) =
            open.await.map_err(|error| Failure::from(error).explain("open walgate's own tables"))?;
        Ok(Shelf { client, statement, letters, utf8 })
    }

    /// Puts deliveries of a sink there; how many of them were not there yet (of dead letters, all).
    ///
    /// # Errors
    /// The statement failed: so has the transaction.
    pub async fn put(&self, slot: &str, sink: &str, parcels: &[Parcel]) -> Result<u64, StoreError> {
        let all = parcels.len() as u64;
        let parcels: Vec<&Parcel> = parcels.iter().collect();
        let columns = Columns::of(&parcels, self.utf8);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&slot, &sink];
        parameters.extend(columns.parameters());
        parameters.push(&0_i64);
        let none: [i64; 0] = [];
        let none = none.as_slice();
        if self.letters {
            parameters.push(&none);
        }
        let put = self.client.query_one(&self.statement, &parameters).await;
        let new = put.and_then(|row| if self.letters { Ok(all) } else { row.try_get::<_, i64>(0).map(count) });
        new.map_err(|error| Failure::from(error).explain("write to walgate's own tables"))
    }
}

/// Refuses what was not done because another term has begun.
fn in_term(row: &tokio_postgres::Row, column: usize) -> Result<(), Failure> {
    match row.try_get::<_, Option<bool>>(column)? {
        Some(true) => Ok(()),
        _ => Err(Failure::Unfinished("another process has taken over the slot, and nothing was written".to_owned())),
    }
}

fn done<T: Send + 'static>(value: T) -> BoxFuture<'static, Result<T, StoreError>> {
    Box::pin(std::future::ready(Ok(value)))
}

/// A count or a sum of the table: never negative.
fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> SqlStoreOptions {
        let (patience, idle) = (Duration::from_millis(20), Duration::from_secs(1));
        SqlStoreOptions { slot: "walgate".into(), sink: "partner".into(), patience, idle, term: Term::default() }
    }

    #[tokio::test]
    async fn nothing_to_do_needs_no_connection() {
        let store = SqlStore::new(options(), std::future::pending);
        assert_eq!(store.park(Vec::new()).await, Ok((0, 0)));
        assert_eq!(store.bury(Vec::new(), Vec::new()).await, Ok(()));
        assert_eq!(store.hold(Vec::new()).await, Ok(()));
        assert_eq!(store.delivered(Vec::new()).await, Ok(()));
    }

    #[tokio::test]
    async fn a_server_that_cannot_be_reached_is_an_error_that_passes() {
        let store = SqlStore::new(options(), || async { Err(LinkError::new("connection refused")) });
        let error = store.delivered(vec![1]).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot delete from walgate.parked: connection refused");
        assert!(!error.lasting);
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_given_up() {
        let store = SqlStore::new(options(), std::future::pending);
        let error = store.open(10).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot look into walgate.parked: not done within 0.02 s");
    }
}
