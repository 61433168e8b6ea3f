//! What operators ask a running gateway for, through the table `walgate.requests`: written by the command line, taken by
//! the gateway in the order of their numbers, and answered in the same row. Nobody needs to reach the gateway over the
//! network, what was asked for survives a restart, and who asked is on record.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_postgres::{
    Client, Row,
    error::SqlState,
    types::{FromSql, ToSql, Type},
};

use super::{finding::on_one_line, parking::Filter, query::QueryError};

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

/// $1: the slot; $2: the term of whoever asks, in which it has the slot (0: it does not know of terms).
const NEXT_SQL: &str = "\
SELECT r.id, COALESCE(r.sink, ''), r.verb, r.arguments::text, r.asked_by,
    (EXTRACT(epoch FROM r.asked_at) * 1000000)::bigint
FROM walgate.requests r
WHERE r.slot = $1 AND r.done_at IS NULL
    AND ($2 = 0 OR EXISTS (SELECT FROM walgate.gateway g WHERE g.slot = $1 AND g.term = $2))
ORDER BY r.id LIMIT 1";

/// $1: the number; what was answered stays so.
const ANSWER_SQL: &str = "\
UPDATE walgate.requests SET done_at = pg_catalog.now(), failed = $2, outcome = $3, affected = $4
WHERE id = $1 AND done_at IS NULL";

const ASK_SQL: &str = "\
INSERT INTO walgate.requests (slot, sink, verb, arguments) VALUES ($1, $2, $3, $4::json) RETURNING id";

const ANSWER_OF_SQL: &str = "\
SELECT COALESCE(r.failed, false), COALESCE(r.outcome, ''), COALESCE(r.affected, 0)
FROM walgate.requests r WHERE r.id = $1 AND r.done_at IS NOT NULL";

/// $1: the slot.
const PAUSED_SQL: &str = "\
SELECT n.sink
FROM (
    SELECT DISTINCT ON (COALESCE(r.sink, '')) COALESCE(r.sink, '') AS sink, r.verb
    FROM walgate.requests r
    WHERE r.slot = $1 AND r.verb IN ('pause', 'resume') AND r.failed IS NOT TRUE
    ORDER BY COALESCE(r.sink, ''), r.id DESC
) n
WHERE n.verb = 'pause' ORDER BY n.sink";

type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The oldest request for this slot that is not answered. One that cannot be read is answered as failed at once: it would
/// hold those behind it for ever.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn next(client: &Client, slot: &str, term: i64) -> Result<Option<Request>, QueryError> {
    let what = "read walgate.requests";
    loop {
        let Some(row) = rows(client, what, NEXT_SQL, &[(&slot, Type::TEXT), (&term, Type::INT8)]).await?.pop() else {
            return Ok(None);
        };
        let id: i64 = column(&row, what, 0)?;
        let (verb, arguments): (String, String) = (column(&row, what, 2)?, column(&row, what, 3)?);
        match read(&verb, &arguments) {
            Ok(verb) => {
                let (sink, asked_by, asked_at) =
                    (column(&row, what, 1)?, column(&row, what, 4)?, column(&row, what, 5)?);
                return Ok(Some(Request { id, sink, verb, asked_by, asked_at }));
            }
            Err(outcome) => {
                tracing::warn!(id, reason = %outcome, "request cannot be read");
                answer(client, id, &Answer { failed: true, outcome, affected: 0 }).await?;
            }
        }
    }
}

/// What is asked for, or why that cannot be read.
fn read(verb: &str, arguments: &str) -> Result<Verb, String> {
    // An object alone: a list would do for one, and an empty one would ask for everything.
    let arguments: serde_json::Map<String, Value> =
        serde_json::from_str(arguments).map_err(|error| format!("its arguments cannot be read: {error}"))?;
    serde_json::from_value(json!({ "verb": verb, "arguments": arguments })).map_err(|error| {
        let error = on_one_line(&error.to_string());
        format!("this version of walgate cannot carry out `{}`: {error}", on_one_line(verb))
    })
}

/// Writes what came of a request; what was written first stays.
///
/// # Errors
/// The statement failed, or the connection broke: it may be asked again.
pub async fn answer(client: &Client, id: i64, answer: &Answer) -> Result<(), QueryError> {
    let what = "answer a request in walgate.requests";
    let affected = i64::try_from(answer.affected).unwrap_or(i64::MAX);
    let mut outcome = answer.outcome.replace('\0', "");
    loop {
        let parameters: [Parameter<'_>; 4] =
            [(&id, Type::INT8), (&answer.failed, Type::BOOL), (&outcome, Type::TEXT), (&affected, Type::INT8)];
        match rows(client, what, ANSWER_SQL, &parameters).await {
            // The database's encoding lacks a character of it.
            Err(error) if error.sqlstate() == Some(&SqlState::UNTRANSLATABLE_CHARACTER) && !outcome.is_ascii() => {
                outcome = outcome.escape_default().to_string();
            }
            result => return result.map(drop),
        }
    }
}

/// Asks for something; returns the number of the request.
///
/// # Errors
/// The statement failed, or the connection broke.
pub async fn ask(client: &Client, slot: &str, sink: &str, verb: &Verb) -> Result<i64, QueryError> {
    let what = "write to walgate.requests";
    let arguments = arguments(verb).map_err(|source| QueryError::Shape { what, source })?;
    let parameters: [Parameter<'_>; 4] =
        [(&slot, Type::TEXT), (&sink, Type::TEXT), (&verb.as_str(), Type::TEXT), (&arguments, Type::TEXT)];
    let row = client.query_typed_one(ASK_SQL, &parameters).await.map_err(|source| QueryError::Sql { what, source })?;
    column(&row, what, 0)
}

/// What is asked for more precisely, as JSON in ASCII: a database in any encoding holds it.
fn arguments(verb: &Verb) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_value(verb)?.get("arguments").unwrap_or(&json!({})).to_string();
    if !text.is_ascii() {
        // Outside of strings JSON is ASCII.
        let escaped = text.encode_utf16().map(|unit| match u8::try_from(unit) {
            Ok(byte) if byte.is_ascii() => char::from(byte).to_string(),
            _ => format!("\\u{unit:04x}"),
        });
        text = escaped.collect();
    }
    Ok(text)
}

/// What came of a request; none: it is not answered yet.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn answer_of(client: &Client, id: i64) -> Result<Option<Answer>, QueryError> {
    let what = "read an answer in walgate.requests";
    let Some(row) = rows(client, what, ANSWER_OF_SQL, &[(&id, Type::INT8)]).await?.pop() else { return Ok(None) };
    let affected: i64 = column(&row, what, 2)?;
    Ok(Some(Answer {
        failed: column(&row, what, 0)?,
        outcome: column(&row, what, 1)?,
        affected: u64::try_from(affected).unwrap_or(0),
    }))
}

/// The sinks that are to send nothing: the newest request of the kind is a pause, answered or not. One that failed does
/// not count.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn paused(client: &Client, slot: &str) -> Result<Vec<String>, QueryError> {
    let what = "read walgate.requests";
    let rows = rows(client, what, PAUSED_SQL, &[(&slot, Type::TEXT)]).await?;
    rows.iter().map(|row| column(row, what, 0)).collect()
}

async fn rows(
    client: &Client,
    what: &'static str,
    sql: &str,
    parameters: &[Parameter<'_>],
) -> Result<Vec<Row>, QueryError> {
    client.query_typed(sql, parameters).await.map_err(|source| QueryError::Sql { what, source })
}

fn column<'a, T: FromSql<'a>>(row: &'a Row, what: &'static str, index: usize) -> Result<T, QueryError> {
    row.try_get(index).map_err(|source| QueryError::Sql { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_goes_both_ways() {
        let filter = Filter {
            ids: vec![1, -2],
            key: Some("größer \u{1F600} \"\\\0".into()),
            older_than_seconds: Some(u64::MAX),
            ..Filter::default()
        };
        for verb in [
            Verb::Retry(filter),
            Verb::Drop(Filter::default()),
            Verb::Pause {},
            Verb::Resume {},
            Verb::Skip { event_id: "é".into() },
        ] {
            let text = arguments(&verb).unwrap();
            assert!(text.is_ascii(), "{text}");
            assert_eq!(read(verb.as_str(), &text), Ok(verb));
        }
        assert_eq!(arguments(&Verb::Pause {}).unwrap(), "{}");
    }

    #[test]
    fn what_cannot_be_carried_out_is_said() {
        for (verb, arguments, said) in [
            ("retry", "{", "its arguments cannot be read"),
            ("retry", "{\"keyy\": \"a\"}", "unknown field `keyy`"),
            ("drop", "[]", "invalid type: sequence"),
            ("sk\nip", "{}", "cannot carry out `sk\\nip`: unknown variant"),
            ("skip", "{}", "missing field `event_id`"),
        ] {
            let error = read(verb, arguments).unwrap_err();
            assert!(error.contains(said) && !error.contains('\n'), "{error}");
        }
    }
}
