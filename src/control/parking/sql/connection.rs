//! The connection of a store: how it is set up, what is prepared on it, and how it ends.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_postgres::{Client, Error, Row, Statement, types::ToSql};

use super::{failure::Failure, statements};
use crate::control::{link::Link, query::describe};

/// Where a store keeps its connection; locked while an operation uses it.
pub(super) type Slot = Mutex<Option<Connection>>;

/// How long the end of a connection is waited for, after which it is clear anyway.
const LAST_WORD: Duration = Duration::from_millis(200);

/// A connection that is set up.
pub(super) struct Connection {
    client: Client,
    driver: Driver,
    prepared: HashMap<&'static str, Statement>,
    number: u64,
    /// Whether the database's encoding is UTF8: it can hold every text.
    pub utf8: bool,
    /// Whether the server knows failover slots (PostgreSQL 17 and later).
    pub has_failover: bool,
    /// When something was done on it last.
    pub used: Instant,
}

/// Reads and writes the socket. Dropped, it closes it at once, whatever is under way.
struct Driver(JoinHandle<Result<(), Error>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Connection {
    /// Sets a connection up: what is written on it is as durable as the LSN that it releases, no statement outlives the
    /// operation that it belongs to, and plans do not depend on statistics that are older than the rows.
    pub async fn open(link: Link, patience: Duration, number: u64) -> Result<Self, Error> {
        let Link { client, driver } = link;
        let driver = Driver(tokio::spawn(driver));
        // PostgreSQL's bound, and 0 would be none.
        let millis = |part: f64| (patience.as_secs_f64() * part * 1000.0).clamp(1.0, f64::from(i32::MAX)).trunc();
        client
            .batch_execute(&format!(
                "SET search_path = pg_catalog; SET statement_timeout = {}; SET lock_timeout = {}; \
                 SET default_transaction_isolation = 'read committed'; SET enable_sort = off; \
                 SET enable_incremental_sort = off; SET jit = off",
                millis(0.9),
                millis(0.8)
            ))
            .await?;
        let row = client.query_typed_one(statements::SET_UP, &[]).await?;
        Ok(Connection {
            driver,
            prepared: HashMap::new(),
            number,
            utf8: row.try_get(1)?,
            has_failover: row.try_get(2)?,
            used: Instant::now(),
            client,
        })
    }

    /// Whether nothing has ended it as far as is known.
    pub fn stands(&self) -> bool {
        !self.client.is_closed()
    }

    /// The rows of a statement, which is prepared at its first use.
    pub async fn rows(&mut self, sql: &'static str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Failure> {
        let statement = self.prepared(sql).await?;
        Ok(self.client.query(&statement, parameters).await?)
    }

    /// As [`Connection::rows`], for a statement that has exactly one row.
    pub async fn row(&mut self, sql: &'static str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Row, Failure> {
        let statement = self.prepared(sql).await?;
        Ok(self.client.query_one(&statement, parameters).await?)
    }

    async fn prepared(&mut self, sql: &'static str) -> Result<Statement, Failure> {
        if let Some(statement) = self.prepared.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await?;
        self.prepared.insert(sql, statement.clone());
        Ok(statement)
    }

    /// Why the connection ended, which the statement that was under way may not have been told.
    pub async fn last_word(mut self, error: Error) -> Failure {
        match timeout(LAST_WORD, &mut self.driver.0).await {
            Ok(Ok(Err(end))) => Failure::Lost(describe(&end)),
            _ => Failure::Sql(error),
        }
    }

    /// Says good-bye to the server.
    async fn close(self) {
        let Connection { client, mut driver, prepared, .. } = self;
        drop((prepared, client));
        let _ = timeout(LAST_WORD, &mut driver.0).await;
    }
}

/// Closes a connection when nothing was done on it for a while; ends with it, or with its store.
pub(super) fn close_when_idle(slot: &Arc<Slot>, number: u64, idle: Duration) {
    let slot = Arc::downgrade(slot);
    tokio::spawn(async move {
        let mut next = Instant::now() + idle;
        loop {
            sleep_until(next).await;
            let Some(slot) = slot.upgrade() else { return };
            let mut slot = slot.lock().await;
            let Some(connection) = slot.take_if(|connection| connection.number == number) else { return };
            next = connection.used + idle;
            if next <= Instant::now() {
                drop(slot);
                return connection.close().await;
            }
            *slot = Some(connection);
        }
    });
}
