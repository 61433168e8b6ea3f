//! Dead letters that are older than they may become.

use std::time::Duration;

use tokio_postgres::{Client, SimpleQueryMessage};

use super::{DEAD_LETTERS, GATEWAY};
use crate::control::{names::quote_literal, query::QueryError};

/// Rows that one call deletes at the most.
pub const EXPIRE_ROWS: u64 = 1000;

/// Dead letters of one sink that were deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The sink; empty: events without a route.
    pub sink: String,
    /// How many.
    pub rows: u64,
}

/// Deletes up to [`EXPIRE_ROWS`] dead letters of a slot that are older than `age`, the oldest first, in the term that the
/// caller has: whoever was frozen and wakes may not know yet that another one has begun. Rows that somebody has locked are
/// left for the next time.
///
/// The connection is one that others use too, so nothing here waits for long: not for a lock, and, because nothing hangs
/// on it that the rows are gone for good, not for a standby.
///
/// # Errors
/// A statement failed, or the connection broke.
pub async fn expire(client: &Client, slot: &str, term: i64, age: Duration) -> Result<Vec<Expired>, QueryError> {
    let failed =
        |source| QueryError::Sql { what: "delete dead letters that are older than `dead_letters.retain`", source };
    let messages = client.simple_query(&sql(slot, term, age)).await.map_err(failed)?;
    let mut expired = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            let sink = row.try_get(0).map_err(failed)?.unwrap_or_default().to_owned();
            let rows = row.try_get(1).map_err(failed)?.and_then(|rows| rows.parse().ok()).unwrap_or(0);
            expired.push(Expired { sink, rows });
        }
    }
    Ok(expired)
}

/// One transaction. The rows are found by the index on (slot, stored_at), also where there are no statistics yet, and
/// deleted by their numbers.
fn sql(slot: &str, term: i64, age: Duration) -> String {
    let (slot, seconds) = (quote_literal(slot), age.as_secs_f64());
    format!(
        "SET LOCAL lock_timeout = 1000; SET LOCAL statement_timeout = 5000; SET LOCAL synchronous_commit = off; \
         SET LOCAL enable_sort = off; \
         WITH old AS MATERIALIZED ( \
             SELECT id FROM {DEAD_LETTERS} \
             WHERE slot = {slot} AND stored_at < pg_catalog.now() - pg_catalog.make_interval(secs => {seconds:?}) \
                 AND EXISTS (SELECT 1 FROM {GATEWAY} g WHERE g.slot = {slot} AND g.term = {term}) \
             ORDER BY stored_at LIMIT {EXPIRE_ROWS} FOR UPDATE SKIP LOCKED \
         ), gone AS ( \
             DELETE FROM {DEAD_LETTERS} WHERE id = ANY (ARRAY(SELECT id FROM old)) RETURNING sink \
         ) \
         SELECT sink, pg_catalog.count(*) FROM gone GROUP BY sink"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slot_is_a_literal_and_the_age_in_seconds() {
        let sql = sql("wal'gate", 42, Duration::from_secs(30 * 86_400));
        assert!(sql.contains("slot = 'wal''gate' AND") && sql.contains("(secs => 2592000.0)"), "{sql}");
        assert!(sql.contains("g.slot = 'wal''gate' AND g.term = 42)"), "{sql}");
    }
}
