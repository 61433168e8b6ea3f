//! Why PostgreSQL could not be reached or did not let us in: said the same way for both connections.

use std::{fmt, io, time::Duration};

use postgres_protocol::message::backend::ErrorFields;

use super::{conninfo::Transport, tls::TlsError};

/// What an error message from the server may be long: it can quote a whole statement.
const TEXT_LIMIT: usize = 2000;

/// An error that the server sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerError {
    /// Five characters that say what it is.
    pub sqlstate: String,
    /// The server's text, in the server's language.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

impl ServerError {
    /// Reads the fields of an ErrorResponse; what is malformed is left out.
    pub(crate) fn from_fields(mut fields: ErrorFields<'_>) -> Self {
        use fallible_iterator::FallibleIterator;
        let mut error = ServerError::default();
        while let Ok(Some(field)) = fields.next() {
            let text = clean(&String::from_utf8_lossy(field.value_bytes()));
            match field.type_() {
                b'C' => error.sqlstate = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        error
    }

    /// Whether the code begins so; two characters name a class.
    #[must_use]
    pub fn is(&self, sqlstate: &str) -> bool {
        self.sqlstate.starts_with(sqlstate)
    }
}

/// Control characters escaped, and not too long: the text goes to logs.
fn clean(text: &str) -> String {
    text.chars()
        .take(TEXT_LIMIT)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        ServerError {
            sqlstate: error.code().code().to_owned(),
            message: clean(error.message()),
            detail: error.detail().map(clean),
            hint: error.hint().map(clean),
        }
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)?;
        if let Some(detail) = &self.detail {
            write!(f, "; detail: {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host's name has no address.
    #[error("cannot look up PostgreSQL's host {endpoint}: {error}: check the name")]
    Lookup {
        /// Where it was tried.
        endpoint: String,
        /// What the resolver said.
        error: io::Error,
    },
    /// Nobody listens there, or nothing leads there.
    #[error(
        "cannot reach PostgreSQL at {endpoint}: {error}: check that it runs, that it listens there, and that nothing blocks the way"
    )]
    Unreachable {
        /// Where it was tried.
        endpoint: String,
        /// What the system said.
        error: io::Error,
    },
    /// It took too long.
    #[error("PostgreSQL at {endpoint} did not finish {stage} within {} s: check that it runs and that nothing swallows packets, or raise connect_timeout", .after.as_secs())]
    Timeout {
        /// Where it was tried.
        endpoint: String,
        /// What was being done.
        stage: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection ended before it was ready.
    #[error("PostgreSQL at {endpoint} closed the connection during {stage}: {reason}")]
    Closed {
        /// Where it was tried.
        endpoint: String,
        /// What was being done.
        stage: &'static str,
        /// What was seen.
        reason: String,
    },
    /// The server has no TLS, and the settings ask for it.
    #[error(
        "PostgreSQL at {endpoint} does not offer TLS and sslmode={mode} requires it: set `ssl = on` there with a certificate, or use a weaker sslmode on a network that you trust"
    )]
    TlsNotOffered {
        /// Where it was tried.
        endpoint: String,
        /// The `sslmode`.
        mode: &'static str,
    },
    /// The TLS handshake failed.
    #[error("TLS handshake with PostgreSQL at {endpoint} failed (sslmode={mode}): {reason}")]
    TlsHandshake {
        /// Where it was tried.
        endpoint: String,
        /// The `sslmode`.
        mode: &'static str,
        /// What was wrong, and what to look at.
        reason: String,
    },
    /// Certificates or keys on our side cannot be used.
    #[error(transparent)]
    TlsFiles(#[from] TlsError),
    /// The server asks for a password and there is none.
    #[error("PostgreSQL at {endpoint} asks for a password for role `{user}` and none is set: set `password_file`, PGPASSWORD or a password file{}", .note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default())]
    PasswordMissing {
        /// Where it was tried.
        endpoint: String,
        /// The role.
        user: String,
        /// Why a password file was not used.
        note: Option<String>,
    },
    /// The password would have travelled readable.
    #[error(
        "PostgreSQL at {endpoint} asks for the password in clear text over a connection on which others could read it (without TLS, or without a verified certificate), which is refused: use scram-sha-256 in pg_hba.conf, or sslmode=verify-full"
    )]
    CleartextRefused {
        /// Where it was tried.
        endpoint: String,
    },
    /// A method that walgate does not have.
    #[error(
        "PostgreSQL at {endpoint} asks for {method} authentication, which is not supported: use scram-sha-256 or a client certificate in pg_hba.conf"
    )]
    AuthenticationMethod {
        /// Where it was tried.
        endpoint: String,
        /// What it asked for.
        method: &'static str,
    },
    /// `channel_binding=require` and the server did not do it.
    #[error(
        "PostgreSQL at {endpoint} did not use channel binding and channel_binding=require asks for it: it needs TLS and scram-sha-256 in pg_hba.conf"
    )]
    ChannelBindingMissing {
        /// Where it was tried.
        endpoint: String,
    },
    /// The server could not prove that it knows the password, or its SCRAM messages are wrong.
    #[error(
        "SCRAM exchange with PostgreSQL at {endpoint} failed: {reason}: this may not be the server that it claims to be"
    )]
    Scram {
        /// Where it was tried.
        endpoint: String,
        /// What was wrong.
        reason: String,
    },
    /// Not the kind of server that `target_session_attrs` asks for.
    #[error(
        "PostgreSQL at {endpoint} is {found}, and target_session_attrs asks for another kind: check the list of hosts"
    )]
    WrongSession {
        /// Where it was tried.
        endpoint: String,
        /// What it is.
        found: &'static str,
    },
    /// The server said no.
    #[error(
        "PostgreSQL at {endpoint} refused the connection of role `{user}` to database `{dbname}`: {error}: {}",
        advice(error)
    )]
    Refused {
        /// Where it was tried.
        endpoint: String,
        /// The role.
        user: String,
        /// The database.
        dbname: String,
        /// What the server said.
        error: ServerError,
        /// Whether this was said inside TLS.
        tls: bool,
    },
    /// What came is not PostgreSQL's protocol.
    #[error(
        "PostgreSQL at {endpoint} sent what is not its protocol during {stage}: {reason}: check that the port is PostgreSQL's"
    )]
    Protocol {
        /// Where it was tried.
        endpoint: String,
        /// What was being done.
        stage: &'static str,
        /// What was wrong.
        reason: String,
    },
}

impl ConnectError {
    /// Whether the same address should be tried with the next transport that the `sslmode` allows: the first was
    /// `used`. libpq does so after every error in the login; a wrong password stays wrong, so it is left out here.
    #[must_use]
    pub fn warrants_other_transport(&self) -> bool {
        match self {
            ConnectError::TlsHandshake { .. } => true,
            // pg_hba.conf has no line for this transport.
            ConnectError::Refused { error, .. } => error.is("28000"),
            _ => false,
        }
    }

    /// Says that TLS is given up, where the `sslmode` allows that: somebody may have made it fail.
    pub(crate) fn warn_of_other_transport(&self, used: Transport) {
        if used == Transport::TlsIfOffered {
            tracing::warn!(error = %self, "tls failed: connecting without it, as the sslmode allows");
        }
    }

    /// Whether another address or host should be tried, as libpq does: not where a server gave its answer.
    #[must_use]
    pub fn warrants_other_host(&self) -> bool {
        match self {
            ConnectError::Refused { error, .. } => error.is("57P03"),
            ConnectError::Lookup { .. }
            | ConnectError::Unreachable { .. }
            | ConnectError::Timeout { .. }
            | ConnectError::Closed { .. }
            | ConnectError::TlsNotOffered { .. }
            | ConnectError::TlsHandshake { .. }
            | ConnectError::WrongSession { .. }
            | ConnectError::Protocol { .. } => true,
            ConnectError::TlsFiles(_)
            | ConnectError::PasswordMissing { .. }
            | ConnectError::CleartextRefused { .. }
            | ConnectError::AuthenticationMethod { .. }
            | ConnectError::ChannelBindingMissing { .. }
            | ConnectError::Scram { .. } => false,
        }
    }
}

/// What to do about a refusal.
fn advice(error: &ServerError) -> &'static str {
    let unsupported_startup = error.is("08P01") && error.message.contains("unsupported startup parameter");
    if unsupported_startup && error.message.contains("replication") {
        return "this is a pooler that does not pass replication connections on (PgBouncer does from 1.23): connect to PostgreSQL itself";
    }
    match error.sqlstate.as_str() {
        "28P01" => "check the password, and that the role has one",
        code if code.starts_with("28") => {
            "check that the role exists and may log in, and that pg_hba.conf has a line for this role, database and address (for the stream too a line with the database's name is needed: `replication` there does not match it)"
        }
        "42501" => "let the role stream: `ALTER ROLE ... REPLICATION` (on RDS `GRANT rds_replication TO ...`)",
        "3D000" => "check the name of the database",
        "53300" => "raise max_wal_senders or max_connections there, or free a connection",
        "57P03" => "the server is starting, stopping or recovering: it is tried again",
        "08P01" if unsupported_startup => {
            "this is a pooler that does not know the parameter: leave it out, or connect to PostgreSQL itself"
        }
        "08P01" => "if this is a pooler, connect to PostgreSQL itself",
        _ => "see PostgreSQL's log",
    }
}
