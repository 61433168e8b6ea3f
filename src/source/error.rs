//! Why the stream could not be started, or ended.

use std::time::Duration;

use super::wire::WireError;
use crate::postgres::{ConnectError, ServerError};

/// Whether trying again can help, and how soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// It passes by itself: reconnect with a backoff that begins with a fraction of a second.
    Soon,
    /// Somebody must do something, and may do so while we run: say so loudly and try every 30 s or so.
    Slowly,
    /// Nothing that happens to the same slot can mend it: stop, and say what the operator can do.
    Never,
}

/// Why the stream could not be started, or ended. The texts say what to do next.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// No connection, or no login.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// 42704 at the start.
    #[error(
        "replication slot `{slot}` does not exist in this database: if this is the first start, create it with `walgate init`; if it existed before, events since it was dropped are not in the stream any more: recover them from the outbox table before a new slot is made ({error})"
    )]
    SlotMissing {
        /// The slot.
        slot: String,
        /// What the server said.
        error: ServerError,
    },
    /// 42704 in the stream.
    #[error(
        "publication `{publication}` does not exist at the position that slot `{slot}` has reached ({error}): it was dropped, or created after the slot, and this slot cannot get past that place even if the publication is made again: create the publication first and then a new slot, and adopt the rows of the outbox table that were not delivered"
    )]
    PublicationMissing {
        /// The publication.
        publication: String,
        /// The slot.
        slot: String,
        /// What the server said.
        error: ServerError,
    },
    /// 55006
    #[error("replication slot `{slot}` is in use{}: another walgate streams from it, or a lost connection has not ended yet there (it does after wal_sender_timeout); it is tried again", .pid.map(|pid| format!(" by the server process with PID {pid}")).unwrap_or_default())]
    SlotActive {
        /// The slot.
        slot: String,
        /// The walsender that holds it.
        pid: Option<u32>,
    },
    /// 55000: the WAL that the slot needs is gone.
    #[error(
        "replication slot `{slot}` is lost, because PostgreSQL has removed WAL that it needed ({error}): what was not delivered can only come from the outbox table: drop the slot, create a new one, and adopt the rows that were not delivered; to keep it from happening again raise max_slot_wal_keep_size"
    )]
    SlotLost {
        /// The slot.
        slot: String,
        /// What the server said.
        error: ServerError,
    },
    /// 55000 otherwise: `wal_level`, recovery, a slot of another database or kind.
    #[error(
        "PostgreSQL cannot stream from slot `{slot}` as things are ({error}): check wal_level=logical, that the server is not in recovery, and that the slot is a logical one of this database"
    )]
    Prerequisite {
        /// The slot.
        slot: String,
        /// What the server said.
        error: ServerError,
    },
    /// 42501
    #[error("role `{user}` may not stream ({error}): run `ALTER ROLE {} REPLICATION` (on RDS `GRANT rds_replication TO ...`)", quote_identifier(.user))]
    NoReplicationRight {
        /// The role.
        user: String,
        /// What the server said.
        error: ServerError,
    },
    /// What answers takes replication commands for SQL.
    #[error(
        "what answers at {endpoint} does not understand replication commands ({error}): a pooler stands in between (PgBouncer passes replication on from 1.23): connect to PostgreSQL itself"
    )]
    NotReplication {
        /// Where it was tried.
        endpoint: String,
        /// What it said.
        error: ServerError,
    },
    /// The server would not start the stream, for another reason.
    #[error("PostgreSQL refused {what}: {error}: see its log")]
    Refused {
        /// Which command.
        what: &'static str,
        /// What the server said.
        error: ServerError,
    },
    /// A name that cannot be sent.
    #[error("the name of the {what} cannot be: it has 1 to 63 bytes, of {expected}")]
    Name {
        /// Slot or publication.
        what: &'static str,
        /// What it may consist of.
        expected: &'static str,
    },
    /// The server ended the stream with an error.
    #[error("PostgreSQL ended the stream: {error}: {}", advice(error))]
    Stream {
        /// What the server said.
        error: ServerError,
    },
    /// The server ended the stream without one: it shuts down.
    #[error("PostgreSQL ended the stream, as it does when it shuts down: it is tried again")]
    Ended,
    /// The connection broke.
    #[error("lost the connection to PostgreSQL: {reason}: it is tried again")]
    Lost {
        /// What was seen.
        reason: String,
    },
    /// Nothing came for too long, not even an answer to a request for one.
    #[error("PostgreSQL has sent nothing for {} s, although it was asked to: the link or the server is dead or frozen; it is tried again", .after.as_secs_f32())]
    Silent {
        /// How long nothing came.
        after: Duration,
    },
    /// A message longer than allowed.
    #[error(
        "the stream holds a message of {length} bytes and at most {limit} are taken: raise limits.event above the largest row that is published"
    )]
    Oversized {
        /// The length that it announces.
        length: usize,
        /// `max_frame`.
        limit: usize,
    },
    /// What came is not the protocol.
    #[error("PostgreSQL's stream is damaged: {0}: the connection is opened again")]
    Wire(#[from] WireError),
    /// We closed it ourselves.
    #[error("the stream was closed on this side")]
    Aborted,
    /// The operating system gives no thread.
    #[error("cannot start a thread for the stream: {reason}: check the limits of the process")]
    Thread {
        /// What the system said.
        reason: String,
    },
}

impl SourceError {
    /// Whether trying again can help, and how soon.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            SourceError::Connect(error) => match error {
                ConnectError::Lookup { .. }
                | ConnectError::Unreachable { .. }
                | ConnectError::Timeout { .. }
                | ConnectError::Closed { .. }
                | ConnectError::WrongSession { .. } => Retry::Soon,
                ConnectError::Refused { error, .. } => by_code(error),
                ConnectError::TlsNotOffered { .. }
                | ConnectError::TlsHandshake { .. }
                | ConnectError::TlsFiles(_)
                | ConnectError::PasswordMissing { .. }
                | ConnectError::CleartextRefused { .. }
                | ConnectError::AuthenticationMethod { .. }
                | ConnectError::ChannelBindingMissing { .. }
                | ConnectError::Scram { .. }
                | ConnectError::Protocol { .. } => Retry::Slowly,
            },
            SourceError::SlotMissing { .. }
            | SourceError::PublicationMissing { .. }
            | SourceError::SlotLost { .. }
            | SourceError::Name { .. } => Retry::Never,
            SourceError::SlotActive { .. }
            | SourceError::Ended
            | SourceError::Lost { .. }
            | SourceError::Silent { .. }
            | SourceError::Wire(_)
            | SourceError::Aborted
            | SourceError::Thread { .. } => Retry::Soon,
            SourceError::Prerequisite { .. }
            | SourceError::NoReplicationRight { .. }
            | SourceError::NotReplication { .. }
            | SourceError::Oversized { .. } => Retry::Slowly,
            SourceError::Refused { error, .. } | SourceError::Stream { error } => by_code(error),
        }
    }

    /// What the server said, where it said something.
    #[must_use]
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            SourceError::Connect(ConnectError::Refused { error, .. })
            | SourceError::SlotMissing { error, .. }
            | SourceError::PublicationMissing { error, .. }
            | SourceError::SlotLost { error, .. }
            | SourceError::Prerequisite { error, .. }
            | SourceError::NoReplicationRight { error, .. }
            | SourceError::NotReplication { error, .. }
            | SourceError::Refused { error, .. }
            | SourceError::Stream { error } => Some(error),
            _ => None,
        }
    }

    /// The answer to START_REPLICATION was an error.
    pub(super) fn at_start(error: ServerError, slot: &str, user: &str) -> Self {
        let slot = slot.to_owned();
        match error.sqlstate.as_str() {
            "42704" => SourceError::SlotMissing { slot, error },
            "55006" => SourceError::SlotActive { slot, pid: last_number(&error.message) },
            "55000" if is_lost(&error) => SourceError::SlotLost { slot, error },
            "55000" => SourceError::Prerequisite { slot, error },
            "42501" => SourceError::NoReplicationRight { user: user.to_owned(), error },
            _ => SourceError::Refused { what: "to start the stream", error },
        }
    }

    /// An error came in the stream.
    pub(super) fn in_stream(error: ServerError, slot: &str, publication: &str) -> Self {
        let slot = slot.to_owned();
        match error.sqlstate.as_str() {
            "42704" => SourceError::PublicationMissing { publication: publication.to_owned(), slot, error },
            "55000" if is_lost(&error) => SourceError::SlotLost { slot, error },
            _ => SourceError::Stream { error },
        }
    }
}

/// PostgreSQL has one code for a lost slot and for a server that is not set up for one; the texts differ by version.
fn is_lost(error: &ServerError) -> bool {
    let said = |text: &str| error.message.contains(text) || error.detail.as_ref().is_some_and(|d| d.contains(text));
    said("invalidated") || said("cannot read from logical replication slot") || said("can no longer")
}

fn by_code(error: &ServerError) -> Retry {
    match error.sqlstate.get(..2) {
        // Shutting down, starting up, cancelled; connection trouble; too many connections.
        Some("57" | "08") if !error.message.contains("unsupported startup parameter") => Retry::Soon,
        Some("53") if error.is("53300") => Retry::Soon,
        Some("40") => Retry::Soon,
        _ => Retry::Slowly,
    }
}

fn advice(error: &ServerError) -> &'static str {
    match error.sqlstate.as_str() {
        "XX000" if error.message.contains("invalid memory alloc request size") => {
            "a row is too large for PostgreSQL to send, and the slot cannot get past it: advance the slot beyond it with pg_replication_slot_advance, and deliver that row by hand"
        }
        "22021" => {
            "a text in the WAL is not valid in the connection's encoding, and the slot cannot get past it: advance the slot beyond it with pg_replication_slot_advance, and deliver that row by hand"
        }
        code if code.starts_with("57") => "it is tried again",
        code if code.starts_with("53") => "the server is short of something: see its log",
        _ => "see its log",
    }
}

/// The PID in `... is active for PID 123`, whatever the language.
fn last_number(text: &str) -> Option<u32> {
    text.rsplit(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
}

pub(super) fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(sqlstate: &str, message: &str) -> ServerError {
        ServerError { sqlstate: sqlstate.into(), message: message.into(), ..ServerError::default() }
    }

    #[test]
    fn errors_of_the_start_are_told_apart() {
        let start = |code: &str, text: &str| SourceError::at_start(server(code, text), "s1", "bob");
        let active = start("55006", "replication slot \"s1\" is active for PID 4711");
        assert!(matches!(active, SourceError::SlotActive { pid: Some(4711), .. }));
        assert!(active.to_string().contains("PID 4711"));
        for (error, retry, says) in [
            (active, Retry::Soon, "`s1`"),
            (start("42704", "replication slot \"s1\" does not exist"), Retry::Never, "walgate init"),
            (start("55000", "cannot read from logical replication slot \"s1\""), Retry::Never, "is lost"),
            (start("55000", "logical decoding requires wal_level >= logical"), Retry::Slowly, "wal_level"),
            (start("42501", "must be superuser"), Retry::Slowly, "ALTER ROLE \"bob\" REPLICATION"),
            (start("XX000", "something"), Retry::Slowly, "something"),
            (start("57P01", "terminating"), Retry::Soon, "terminating"),
        ] {
            assert_eq!(error.retry(), retry, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn errors_of_the_stream_are_told_apart() {
        let stream = |code: &str, text: &str| SourceError::in_stream(server(code, text), "s1", "p1");
        for (error, retry, says) in [
            (stream("42704", "publication \"p1\" does not exist"), Retry::Never, "`p1`"),
            (stream("57P01", "terminating connection"), Retry::Soon, "tried again"),
            (stream("XX000", "invalid memory alloc request size 1200000003"), Retry::Slowly, "slot_advance"),
            (stream("22021", "invalid byte sequence"), Retry::Slowly, "encoding"),
            (SourceError::Lost { reason: "reset".into() }, Retry::Soon, "reset"),
            (SourceError::Oversized { length: 10, limit: 5 }, Retry::Slowly, "limits.event"),
        ] {
            assert_eq!(error.retry(), retry, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn a_pooler_is_named() {
        let refused = |message: &str| {
            SourceError::Connect(ConnectError::Refused {
                endpoint: "db:6432".into(),
                user: "u".into(),
                dbname: "d".into(),
                error: server("08P01", message),
                tls: false,
            })
        };
        let error = refused("unsupported startup parameter: replication");
        assert_eq!(error.retry(), Retry::Slowly);
        assert!(error.to_string().contains("PgBouncer"), "{error}");
    }
}
