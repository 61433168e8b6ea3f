//! Why an operation failed, in words that hold nothing of an event.

use tokio_postgres::error::{DbError, SqlState};

use super::StoreError;
use crate::control::{link::LinkError, query::describe};

/// Why an operation failed.
pub(super) enum Failure {
    /// There is no connection.
    Connect(LinkError),
    /// A statement failed, or the connection did under it.
    Sql(tokio_postgres::Error),
    /// The connection ended, for this reason.
    Lost(String),
    /// It was done, but what must follow was not.
    Unfinished(String),
    /// A row of the table does not have the form that it should have.
    Row(String),
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Failure::Connect(error)
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Failure::Sql(error)
    }
}

impl Failure {
    /// Whether the connection is certainly as sound as it was before: the server refused a value.
    pub fn spares_the_connection(&self) -> bool {
        match self {
            Failure::Sql(error) => error.as_db_error().is_some_and(is_lasting),
            Failure::Unfinished(_) | Failure::Row(_) => true,
            Failure::Connect(_) | Failure::Lost(_) => false,
        }
    }

    /// The same for who asked.
    pub fn explain(self, what: &str) -> StoreError {
        let (said, lasting) = match self {
            Failure::Connect(error) => (error.message, false),
            Failure::Lost(said) | Failure::Unfinished(said) | Failure::Row(said) => (said, false),
            Failure::Sql(error) => match error.as_db_error() {
                Some(refusal) => (refused(refusal), is_lasting(refusal)),
                None => (describe(&error), false),
            },
        };
        StoreError { message: format!("cannot {what}: {said}"), lasting }
    }
}

/// Class 22 (a value that its type, or the database's encoding, cannot hold) and 54 (one that is too large for the
/// table): asking again does not help.
fn is_lasting(error: &DbError) -> bool {
    ["22", "54"].iter().any(|class| error.code().code().starts_with(class))
}

/// What PostgreSQL said, and what to do. Not its detail: that may hold the row.
fn refused(error: &DbError) -> String {
    let code = error.code();
    let said = format!("{} (SQLSTATE {})", error.message(), code.code());
    let advice = if *code == SqlState::INSUFFICIENT_PRIVILEGE {
        "walgate's role lacks rights on walgate's own tables: `walgate check --connect` shows the SQL that gives them"
    } else if *code == SqlState::UNDEFINED_TABLE || *code == SqlState::INVALID_SCHEMA_NAME {
        "walgate's own tables are missing in this database: `walgate init --apply` makes them"
    } else if *code == SqlState::UNDEFINED_COLUMN || *code == SqlState::INVALID_COLUMN_REFERENCE {
        "the table was made by another version, or changed: `walgate init --only sql` shows what it has to be"
    } else if *code == SqlState::LOCK_NOT_AVAILABLE {
        "another session holds a lock on it: pg_locks shows which"
    } else if *code == SqlState::READ_ONLY_SQL_TRANSACTION {
        "the server is a standby, or default_transaction_read_only is set for walgate's role"
    } else {
        return said;
    };
    format!("{said}; {advice}")
}
