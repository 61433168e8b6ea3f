//! What an operator sees of `walgate.dead_letters` and `walgate.parked`: counts, lists, and one row whole. Nothing is
//! changed here: what is to become of rows is asked for through [`super::requests`], so that the gateway keeps their
//! order.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, types::ToSql, types::Type};

use super::{
    parking::{DEAD_LETTERS, Filter, OMITTED, PARKED},
    query::{QueryError, json_row, json_rows},
};
use crate::telemetry::clip;

/// Which of the two tables, which have one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Shelf {
    /// Deliveries that are not attempted any more.
    DeadLetters,
    /// Deliveries that are owed, and go out by themselves.
    Parked,
}

impl Shelf {
    /// The table.
    #[must_use]
    pub fn table(self) -> &'static str {
        match self {
            Shelf::DeadLetters => DEAD_LETTERS,
            Shelf::Parked => PARKED,
        }
    }

    fn reading(self) -> &'static str {
        match self {
            Shelf::DeadLetters => "read walgate.dead_letters",
            Shelf::Parked => "read walgate.parked",
        }
    }

    /// Dead letters by when they came, the newest first; parked rows in the order in which they go out. Both orders have
    /// an index.
    fn order(self) -> &'static str {
        match self {
            Shelf::DeadLetters => "id DESC",
            Shelf::Parked => "sink, commit_lsn, ordinal, delivery",
        }
    }
}

/// Which rows: those of one gateway that fit every condition given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The gateway's slot.
    pub slot: String,
    /// The sink; empty: events without a route; none: any.
    pub sink: Option<String>,
    /// What else must hold.
    pub filter: Filter,
}

/// Rows of one sink that are there for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The sink; empty: events without a route.
    pub sink: String,
    /// Why; none: nothing stands against sending them.
    pub reason: Option<String>,
    /// How many.
    pub rows: u64,
    /// Bytes of their events.
    pub bytes: u64,
    /// How many of them are kept without their payload (`dead_letters.payload: omit`): those cannot be sent.
    #[serde(default)]
    pub without_payload: u64,
    /// Since when the first of them is there, as RFC 3339.
    pub oldest: String,
    /// And the last.
    pub newest: String,
}

/// One row in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number in the table.
    pub id: i64,
    /// The sink; empty: an event without a route.
    pub sink: String,
    /// Since when it is there, as RFC 3339.
    pub stored_at: String,
    /// The event's type.
    pub event_type: String,
    /// The event's id.
    pub event_id: String,
    /// The event's key.
    pub event_key: Option<String>,
    /// Why it is there: a class.
    pub reason: Option<String>,
    /// What it waits for; none: its sink.
    pub hold_key: Option<String>,
    /// Attempts that were made.
    pub attempts: i64,
    /// It is kept without payload and headers (`dead_letters.payload: omit`): it cannot be sent.
    #[serde(default)]
    pub without_payload: bool,
}

/// Everything of one row but its payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// What a list shows.
    #[serde(flatten)]
    pub line: Line,
    /// Why it is there, in a sentence.
    pub message: Option<String>,
    /// The LSN of the event's commit.
    pub commit_lsn: String,
    /// The number of the event's row in its transaction.
    pub ordinal: i64,
    /// When the event was committed, as RFC 3339.
    pub committed_at: String,
    /// The route that asked for it.
    pub route: String,
    /// The target: names and values.
    pub target: serde_json::Value,
    /// The ordering key.
    pub ordering_key: Option<String>,
    /// What the receiver deduplicates on.
    pub dedup_id: String,
    /// The event's headers: names and values, as pairs.
    pub headers: Option<serde_json::Value>,
    /// The last attempts that failed, oldest first: `at` and `error` of each.
    pub errors: Option<serde_json::Value>,
    /// What the payload's bytes are: json, text or binary; omitted: they are not kept.
    pub payload_format: String,
    /// How many there are; none: the event has no payload.
    pub payload_bytes: Option<u64>,
}

/// A point in time as text.
fn rfc3339(column: &str) -> String {
    format!("pg_catalog.to_char({column} AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
}

/// What must hold, and the parameters of it, all of them texts.
fn conditions(selection: &Selection) -> (String, Vec<String>) {
    let Selection { slot, sink, filter } = selection;
    let mut parameters = vec![slot.clone()];
    let mut sql = "slot = $1".to_owned();
    let mut and = |condition: &str, value: String| {
        parameters.push(value);
        // Writing into a String cannot fail.
        let _ = write!(sql, " AND {}", condition.replace('?', &format!("${}", parameters.len())));
    };
    let texts = [
        ("sink = ?", sink),
        ("event_id = ?", &filter.event_id),
        ("event_type = ?", &filter.event_type),
        ("reason = ?", &filter.reason),
        ("event_key = ?", &filter.key),
    ];
    for (condition, value) in texts {
        if let Some(value) = value {
            and(condition, value.clone());
        }
    }
    if !filter.ids.is_empty() {
        let ids: Vec<String> = filter.ids.iter().map(i64::to_string).collect();
        and("id = ANY (?::bigint[])", format!("{{{}}}", ids.join(",")));
    }
    let ago = "pg_catalog.now() - pg_catalog.make_interval(secs => ?::double precision)";
    if let Some(seconds) = filter.older_than_seconds {
        and(&format!("stored_at <= {ago}"), seconds.to_string());
    }
    if let Some(seconds) = filter.newer_than_seconds {
        and(&format!("stored_at >= {ago}"), seconds.to_string());
    }
    (sql, parameters)
}

/// How many there are, by sink and reason; those with the most rows first.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn count(client: &Client, shelf: Shelf, selection: &Selection) -> Result<Vec<Group>, QueryError> {
    let (conditions, parameters) = conditions(selection);
    let sql = format!(
        "SELECT pg_catalog.json_build_object('sink', sink, 'reason', reason, 'rows', rows, 'bytes', bytes, \
             'without_payload', without_payload, 'oldest', {}, 'newest', {})::text \
         FROM (SELECT sink, reason, pg_catalog.count(*) AS rows, pg_catalog.sum(bytes)::bigint AS bytes, \
                   pg_catalog.count(*) FILTER (WHERE payload_format = '{OMITTED}') AS without_payload, \
                   pg_catalog.min(stored_at) AS oldest, pg_catalog.max(stored_at) AS newest \
               FROM {} WHERE {conditions} GROUP BY sink, reason) groups \
         ORDER BY rows DESC, sink, reason",
        rfc3339("oldest"),
        rfc3339("newest"),
        shelf.table(),
    );
    json_rows(client, shelf.reading(), &sql, &borrowed(&parameters)).await
}

/// The columns of a [`Line`], as arguments of `json_build_object`.
fn line_columns() -> String {
    format!(
        "'id', id, 'sink', sink, 'stored_at', {}, 'event_type', event_type, 'event_id', event_id, \
         'event_key', event_key, 'reason', reason, 'hold_key', hold_key, 'attempts', attempts, \
         'without_payload', payload_format = '{OMITTED}'",
        rfc3339("stored_at")
    )
}

/// Up to `limit` rows.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn list(client: &Client, shelf: Shelf, selection: &Selection, limit: u32) -> Result<Vec<Line>, QueryError> {
    let (conditions, parameters) = conditions(selection);
    let sql = format!(
        "SELECT pg_catalog.json_build_object({})::text FROM {} WHERE {conditions} ORDER BY {} LIMIT {limit}",
        line_columns(),
        shelf.table(),
        shelf.order(),
    );
    json_rows(client, shelf.reading(), &sql, &borrowed(&parameters)).await
}

/// Everything of the row with this number but its payload; none: there is no such row.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn whole(client: &Client, shelf: Shelf, slot: &str, id: i64) -> Result<Option<Whole>, QueryError> {
    let sql = format!(
        "SELECT pg_catalog.json_build_object({}, 'message', message, 'commit_lsn', commit_lsn, 'ordinal', ordinal, \
             'committed_at', {}, 'route', route, 'target', target, 'ordering_key', ordering_key, \
             'dedup_id', dedup_id, 'headers', headers, 'errors', errors, \
             'payload_format', payload_format, 'payload_bytes', pg_catalog.octet_length(payload))::text \
         FROM {} WHERE slot = $1 AND id = $2::bigint",
        line_columns(),
        rfc3339("committed_at"),
        shelf.table(),
    );
    json_row(client, shelf.reading(), &sql, &[slot, &id.to_string()]).await
}

/// The payload of the row with this number; none: there is no such row, or it has none.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn payload(client: &Client, shelf: Shelf, slot: &str, id: i64) -> Result<Option<Vec<u8>>, QueryError> {
    let failed = |source| QueryError::Sql { what: shelf.reading(), source };
    let id = id.to_string();
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&slot, Type::TEXT), (&id, Type::TEXT)];
    let sql = format!("SELECT payload FROM {} WHERE slot = $1 AND id = $2::bigint", shelf.table());
    let rows = client.query_typed(&sql, &parameters).await.map_err(failed)?;
    rows.first().map_or(Ok(None), |row| row.try_get(0).map_err(failed))
}

/// Dead letters that are kept without their payload, and so cannot be attempted again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unsendable {
    /// How many there are.
    pub rows: u64,
    /// How many others fit as well, which can be.
    pub others: u64,
    /// The ids of the newest of their events.
    pub event_ids: Vec<String>,
}

/// Ids that a sentence names at the most.
const NAMED: u32 = 20;

impl Unsendable {
    /// Why they are not attempted again, and what to do; none: there are none.
    #[must_use]
    pub fn sentence(&self, sink: &str) -> Option<String> {
        if self.rows == 0 {
            return None;
        }
        let more = self.rows.saturating_sub(self.event_ids.len() as u64);
        let ids = self.event_ids.iter().map(|id| clip(id)).collect::<Vec<_>>().join(", ");
        let and_more = if more > 0 { format!(" and {more} more, as `walgate dlq list` shows") } else { String::new() };
        let of = if sink.is_empty() { "of events without a route".to_owned() } else { format!("of sink `{sink}`") };
        Some(format!(
            "{} dead letters {of} cannot be attempted again: they were kept without their payload \
             (`dead_letters.payload: omit`). Insert these events into the outbox once more, as copies under new ids, from \
             its rows with the ids {ids}{and_more}; then drop the letters",
            self.rows
        ))
    }
}

/// Which of these dead letters cannot be attempted again.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn unsendable(client: &Client, selection: &Selection) -> Result<Unsendable, QueryError> {
    let (conditions, parameters) = conditions(selection);
    let parameters = borrowed(&parameters);
    let table = Shelf::DeadLetters.table();
    let reading = Shelf::DeadLetters.reading();
    let counted: Option<(u64, u64)> = json_row(
        client,
        reading,
        &format!(
            "SELECT pg_catalog.json_build_array(pg_catalog.count(*) FILTER (WHERE payload_format = '{OMITTED}'), \
                 pg_catalog.count(*) FILTER (WHERE payload_format <> '{OMITTED}'))::text FROM {table} WHERE {conditions}"
        ),
        &parameters,
    )
    .await?;
    let (rows, others) = counted.unwrap_or_default();
    if rows == 0 {
        return Ok(Unsendable { rows, others, event_ids: Vec::new() });
    }
    let sql = format!(
        "SELECT pg_catalog.to_json(event_id)::text FROM {table} \
         WHERE {conditions} AND payload_format = '{OMITTED}' ORDER BY id DESC LIMIT {NAMED}"
    );
    let event_ids = json_rows(client, reading, &sql, &parameters).await?;
    Ok(Unsendable { rows, others, event_ids })
}

fn borrowed(parameters: &[String]) -> Vec<&str> {
    parameters.iter().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_is_a_parameter() {
        let filter = Filter {
            ids: vec![3, 14],
            event_id: Some("'; DROP TABLE x".into()),
            event_type: Some("order.created".into()),
            reason: Some("refused".into()),
            key: Some("?".into()),
            older_than_seconds: Some(60),
            newer_than_seconds: Some(3600),
        };
        let selection = Selection { slot: "walgate".into(), sink: Some(String::new()), filter };
        let (sql, parameters) = conditions(&selection);
        assert_eq!(
            sql,
            "slot = $1 AND sink = $2 AND event_id = $3 AND event_type = $4 AND reason = $5 AND event_key = $6 \
             AND id = ANY ($7::bigint[]) \
             AND stored_at <= pg_catalog.now() - pg_catalog.make_interval(secs => $8::double precision) \
             AND stored_at >= pg_catalog.now() - pg_catalog.make_interval(secs => $9::double precision)"
        );
        assert_eq!(
            parameters,
            ["walgate", "", "'; DROP TABLE x", "order.created", "refused", "?", "{3,14}", "60", "3600"]
        );
        let (sql, parameters) = conditions(&Selection { slot: "s".into(), ..Selection::default() });
        assert_eq!((sql.as_str(), parameters.as_slice()), ("slot = $1", ["s".to_owned()].as_slice()));
    }
}
