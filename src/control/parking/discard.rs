//! Dead letters that an operator wants gone.

use tokio_postgres::{
    Client,
    types::{ToSql, Type},
};

use super::Filter;
use crate::control::query::QueryError;

const DISCARD_SQL: &str = "\
DELETE FROM walgate.dead_letters
WHERE slot = $1 AND sink = $2
    AND (cardinality($3::bigint[]) = 0 OR id = ANY ($3))
    AND ($4::text IS NULL OR event_id = $4)
    AND ($5::text IS NULL OR event_type = $5)
    AND ($6::text IS NULL OR reason = $6)
    AND ($7::text IS NULL OR event_key = $7)
    AND ($8::float8 IS NULL OR stored_at <= now() - $8 * interval '1 second')
    AND ($9::float8 IS NULL OR stored_at >= now() - $9 * interval '1 second')";

/// Deletes dead letters of a sink for good. Returns how many.
///
/// # Errors
/// The statement failed, or the connection broke.
#[allow(clippy::cast_precision_loss, reason = "ages in seconds")]
pub async fn discard(client: &Client, slot: &str, sink: &str, filter: &Filter) -> Result<u64, QueryError> {
    let what = "delete dead letters";
    let (older, newer) =
        (filter.older_than_seconds.map(|age| age as f64), filter.newer_than_seconds.map(|age| age as f64));
    let parameters: [(&(dyn ToSql + Sync), Type); 9] = [
        (&slot, Type::TEXT),
        (&sink, Type::TEXT),
        (&filter.ids, Type::INT8_ARRAY),
        (&filter.event_id, Type::TEXT),
        (&filter.event_type, Type::TEXT),
        (&filter.reason, Type::TEXT),
        (&filter.key, Type::TEXT),
        (&older, Type::FLOAT8),
        (&newer, Type::FLOAT8),
    ];
    // A row of its own tells how many there were: what the statement says itself is not given here.
    let sql = format!("WITH gone AS ({DISCARD_SQL} RETURNING 1) SELECT count(*) FROM gone");
    let failed = |source| QueryError::Sql { what, source };
    let rows = client.query_typed(&sql, &parameters).await.map_err(failed)?;
    let count: i64 = rows.first().map_or(Ok(0), |row| row.try_get(0)).map_err(failed)?;
    Ok(u64::try_from(count).unwrap_or(0))
}
