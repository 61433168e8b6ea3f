//! Catalog queries: one text parameter list in, one JSON document out, in one round trip and with no prepared statement
//! (so that they work through a pooler in transaction mode too).

use serde::de::DeserializeOwned;
use tokio_postgres::{
    Client, Row,
    error::SqlState,
    types::{FromSql, ToSql, Type},
};

/// A query of the control plane failed.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// PostgreSQL refused it, or the connection broke.
    #[error("cannot {what}: {}", describe(source))]
    Sql {
        /// What was being done, such as `read the replication slots`.
        what: &'static str,
        /// What tokio-postgres said.
        source: tokio_postgres::Error,
    },
    /// The answer was not what the query asks for.
    #[error("cannot {what}: the answer does not have the expected form: {source}")]
    Shape {
        /// What was being done.
        what: &'static str,
        /// Where the answer departs from it.
        source: serde_json::Error,
    },
}

impl QueryError {
    /// The SQLSTATE, where PostgreSQL gave one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&SqlState> {
        match self {
            QueryError::Sql { source, .. } => source.code(),
            QueryError::Shape { .. } => None,
        }
    }
}

/// What a tokio-postgres error means: PostgreSQL's own message with its SQLSTATE, else the chain of causes.
/// tokio-postgres alone says "db error". Detail and hint of PostgreSQL are kept; neither holds parameters here.
#[must_use]
pub fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
        for more in [db.detail(), db.hint()].into_iter().flatten() {
            text.push_str("; ");
            text.push_str(more);
        }
        return text;
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// Runs a query whose rows have one column of JSON text, with text parameters, and reads each row.
pub(super) async fn json_rows<T: DeserializeOwned>(
    client: &Client,
    what: &'static str,
    sql: &str,
    params: &[&str],
) -> Result<Vec<T>, QueryError> {
    let params: Vec<(&(dyn ToSql + Sync), Type)> =
        params.iter().map(|param| (param as &(dyn ToSql + Sync), Type::TEXT)).collect();
    let rows = client.query_typed(sql, &params).await.map_err(|source| QueryError::Sql { what, source })?;
    rows.iter()
        .map(|row| {
            let text: &str = row.try_get(0).map_err(|source| QueryError::Sql { what, source })?;
            serde_json::from_str(text).map_err(|source| QueryError::Shape { what, source })
        })
        .collect()
}

/// As [`json_rows`], for a query that has one row or none.
pub(super) async fn json_row<T: DeserializeOwned>(
    client: &Client,
    what: &'static str,
    sql: &str,
    params: &[&str],
) -> Result<Option<T>, QueryError> {
    Ok(json_rows(client, what, sql, params).await?.into_iter().next())
}

/// The value of a row's column.
pub(super) fn column<'a, T: FromSql<'a>>(row: &'a Row, what: &'static str, index: usize) -> Result<T, QueryError> {
    row.try_get(index).map_err(|source| QueryError::Sql { what, source })
}

/// Runs statements that give no rows.
pub(super) async fn execute(client: &Client, what: &'static str, sql: &str) -> Result<(), QueryError> {
    client.batch_execute(sql).await.map_err(|source| QueryError::Sql { what, source })
}
