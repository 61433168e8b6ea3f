//! What this module needs to know of a connection: a client, the future that drives it, and why it failed.

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio_postgres::{Client, error::SqlState};

use super::query::describe;

/// An SQL connection: nothing moves on the client unless the driver is polled.
pub struct Link {
    /// Runs queries.
    pub client: Client,
    /// Reads and writes the socket; ends with the connection.
    pub driver: BoxFuture<'static, Result<(), tokio_postgres::Error>>,
}

impl Link {
    /// Joins what `tokio_postgres::Config::connect` returns, whatever TLS is under it.
    pub fn new<C>(client: Client, connection: C) -> Self
    where
        C: Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    {
        Link { client, driver: connection.boxed() }
    }
}

/// A connection could not be made, or was lost.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct LinkError {
    /// What happened, in words; holds no secret.
    pub message: String,
    /// The SQLSTATE, where PostgreSQL gave one.
    pub sqlstate: Option<SqlState>,
}

impl LinkError {
    /// A failure that is not PostgreSQL's own.
    pub fn new(message: impl Into<String>) -> Self {
        LinkError { message: message.into(), sqlstate: None }
    }

    /// Whether the server is going down, or is not up yet: 57P01 (an administrator ended the connection, or a fast
    /// shutdown), 57P02 (another process crashed), 57P03 (cannot connect now).
    #[must_use]
    pub fn server_is_going(&self) -> bool {
        self.sqlstate.as_ref().is_some_and(|state| {
            *state == SqlState::ADMIN_SHUTDOWN
                || *state == SqlState::CRASH_SHUTDOWN
                || *state == SqlState::CANNOT_CONNECT_NOW
        })
    }

    /// Whether trying again soon is pointless: class 28 (wrong password, no `pg_hba.conf` entry, role gone), or the
    /// database does not exist. Somebody has to mend something.
    #[must_use]
    pub fn needs_somebody(&self) -> bool {
        self.sqlstate.as_ref().is_some_and(|state| state.code().starts_with("28") || state.code() == "3D000")
    }
}

impl From<tokio_postgres::Error> for LinkError {
    fn from(error: tokio_postgres::Error) -> Self {
        LinkError { message: describe(&error), sqlstate: error.code().cloned() }
    }
}
