//! Writers: transactions of 1 to 20 events, some of them followed by a rollback, across the server's deaths. What was
//! committed, the ledger says.

use std::time::Duration;

use crate::support::database::Database;
use crate::support::sql::Sql;
use crate::support::wait::within;

/// The events of one writer: number `i` has the key `NAME-(i modulo keys)`.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    pub name: &'static str,
    pub keys: usize,
    /// Events in a transaction at the most.
    pub batch: usize,
    /// Some transactions are prepared first: for servers that have `max_prepared_transactions`.
    pub prepared: bool,
}

impl Stream {
    /// The rows `from..to`, in the outbox and in the ledger, in one statement.
    fn rows(&self, from: usize, to: usize) -> String {
        let Stream { name, keys, .. } = self;
        format!(
            "WITH e AS (INSERT INTO outbox_events (event_type, aggregate_id, payload) \
               SELECT 'order.created', '{name}-' || i % {keys}, jsonb_build_object('i', i, 'pad', md5(i::text)) \
               FROM generate_series({from}, {to} - 1) i RETURNING id, aggregate_id, payload) \
             INSERT INTO ledger SELECT id, aggregate_id, (payload->>'i')::int / {keys} + 1, \
               encode(sha256(convert_to(payload::text, 'UTF8')), 'hex') FROM e"
        )
    }

    /// Rows that are rolled back, and so must never arrive.
    fn ghosts(&self) -> String {
        let Stream { name, keys, .. } = self;
        format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
             SELECT 'order.created', '{name}-' || i % {keys}, '{{\"ghost\": true}}' FROM generate_series(1, 5) i"
        )
    }

    /// Of twenty rounds three hold a rollback, two a savepoint's, one a prepared transaction.
    fn round(&self, client: &Sql, round: usize, from: usize, to: usize) -> Result<(), tokio_postgres::Error> {
        let (good, ghosts) = (self.rows(from, to), self.ghosts());
        let gid = format!("{}_{round}", self.name);
        match round % 20 {
            3 | 9 | 15 => client.try_run(&format!("BEGIN; {ghosts}; ROLLBACK; {good}"))?,
            6 | 12 => client.try_run(&format!("BEGIN; SAVEPOINT s; {ghosts}; ROLLBACK TO s; {good}; COMMIT"))?,
            17 if self.prepared => {
                client.try_run(&format!("BEGIN; {ghosts}; PREPARE TRANSACTION '{gid}'"))?;
                client.try_run(&format!("ROLLBACK PREPARED '{gid}'"))?;
                client.try_run(&format!("BEGIN; {good}; PREPARE TRANSACTION '{gid}'"))?;
                client.try_run(&format!("COMMIT PREPARED '{gid}'"))?
            }
            _ => client.try_run(&good)?,
        };
        Ok(())
    }

    /// Writes from number `at` on until `goes_on` says no for the number that comes next; asked before each
    /// transaction. A lost connection is made again, and what its last transaction came to is read from the ledger.
    pub fn write(&self, database: &Database, at: usize, goes_on: impl Fn(usize) -> bool) -> usize {
        let (mut at, mut round) = (at, self.keys);
        let mut client = None;
        while goes_on(at) {
            let open = match client.take() {
                Some(open) => open,
                None => match self.connect(database) {
                    Ok((open, next)) => {
                        at = next;
                        open
                    }
                    Err(_) => {
                        within(Duration::from_millis(30), || !goes_on(at));
                        continue;
                    }
                },
            };
            let to = at + 1 + round * 7 % self.batch;
            if self.round(&open, round, at, to).is_ok() {
                (at, client) = (to, Some(open));
            }
            round += 1;
        }
        at
    }

    /// A connection, and the number of the next event. What a dead one has left prepared is rolled back.
    fn connect(&self, database: &Database) -> Result<(Sql, usize), tokio_postgres::Error> {
        let server = &database.server;
        let client = Sql::superuser(&server.sockets(), server.port(), &database.name)?;
        let name = self.name;
        let first = |rows: Vec<Vec<Option<String>>>| rows.into_iter().next()?.into_iter().next()?;
        let prepared = format!(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND gid LIKE '{name}\\_%' LIMIT 1"
        );
        while let Some(gid) = first(client.try_run(&prepared)?) {
            client.try_run(&format!("ROLLBACK PREPARED '{gid}'"))?;
        }
        let count = client.try_run(&format!("SELECT count(*) FROM ledger WHERE key LIKE '{name}-%'"))?;
        Ok((client, first(count).and_then(|count| count.parse().ok()).unwrap_or_default()))
    }
}

/// How much longer a run is than `make test` has time for: `WALGATE_TEST_SCALE`, 1 where it is left out.
pub fn scale() -> usize {
    std::env::var("WALGATE_TEST_SCALE").ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}
