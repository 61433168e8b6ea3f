//! The beginning of a replication connection: startup, login, what the server is, and the start of the stream.

mod dialogue;
mod login;

use std::{io, time::Duration};

use bytes::BytesMut;
use postgres_protocol::message::{backend::Message, frontend};
use walgate_sink::Lsn;

use self::dialogue::{Dialogue, Incoming, QueryError, Row, cell};
use super::{
    error::{SourceError, quote_identifier},
    stream::{Identity, ServerParameters, StreamOptions},
};
use crate::postgres::{
    self, ConnectError, ConnectSettings, Deadline, Endpoint, LinkReader, ServerError, SessionAttrs, Transport,
};

/// Text output that does not depend on how the role or the database is set up.
const SESSION: &str = "SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET bytea_output = 'hex'";

/// What is in force on this session, and who serves it.
const IN_FORCE: &str = "SELECT pg_catalog.current_setting('wal_sender_timeout'), pg_catalog.pg_backend_pid()";

/// A connection in CopyBoth mode.
pub(super) struct Started {
    pub reader: LinkReader,
    /// What was read already of the stream.
    pub first: BytesMut,
    pub identity: Identity,
    pub server: ServerParameters,
}

/// Connects, logs in and starts the stream: endpoints, addresses and transports in libpq's order. Blocks.
pub(super) fn start(settings: &ConnectSettings, options: &StreamOptions) -> Result<Started, SourceError> {
    check_names(options)?;
    let mut dialogue = connect(settings)?;
    let identity = dialogue.identify()?;
    dialogue.ask("its settings", &session(options))?;
    let in_force = dialogue.ask("to show its settings", IN_FORCE)?;
    let timeout = cell(&in_force, 0).as_deref().and_then(parse_time);
    dialogue.server.wal_sender_timeout = timeout.filter(|time| !time.is_zero());
    dialogue.server.pid = cell(&in_force, 1).and_then(|pid| pid.parse().ok());
    dialogue.start_replication(options, &settings.user)?;
    Ok(Started { reader: dialogue.reader, first: dialogue.inbox, identity, server: dialogue.server })
}

/// A connection that is kept open for what hangs on it.
pub(super) struct Kept(#[allow(dead_code, reason = "it is closed when this is dropped")] Dialogue);

/// Makes a slot and exports its snapshot, in the form that all versions take. Blocks.
pub(super) fn create_slot(settings: &ConnectSettings, slot: &str) -> Result<(Lsn, String, Kept), SourceError> {
    check_slot(slot)?;
    let mut dialogue = connect(settings)?;
    let command = format!("CREATE_REPLICATION_SLOT {} LOGICAL pgoutput EXPORT_SNAPSHOT", quote_identifier(slot));
    let rows = dialogue.ask("to make the slot", &command)?;
    let point = cell(&rows, 1).and_then(|lsn| lsn.parse().ok());
    let Some((point, snapshot)) = point.zip(cell(&rows, 2)) else {
        return Err(dialogue.unexpected("an answer that is not that of CREATE_REPLICATION_SLOT").into());
    };
    Ok((point, snapshot, Kept(dialogue)))
}

/// The session's settings. `wal_sender_timeout` is set here and not in the startup packet: poolers refuse settings there
/// that they do not know. What came with the startup packet, from the URL's options, goes before it.
fn session(options: &StreamOptions) -> String {
    let Some(timeout) = options.wal_sender_timeout else { return SESSION.to_owned() };
    format!(
        "{SESSION}; SELECT pg_catalog.set_config(name, '{}ms', false) FROM pg_catalog.pg_settings \
         WHERE name = 'wal_sender_timeout' AND source <> 'client'",
        timeout.as_millis()
    )
}

/// PostgreSQL's own rules: those of a slot's name are narrow.
fn check_names(options: &StreamOptions) -> Result<(), SourceError> {
    check_slot(&options.slot)?;
    if !fits(&options.publication) || options.publication.contains('\0') {
        return Err(SourceError::Name { what: "publication", expected: "anything but null characters" });
    }
    Ok(())
}

fn check_slot(slot: &str) -> Result<(), SourceError> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !fits(slot) || !slot.bytes().all(plain) {
        let expected = "lower-case letters, digits and underscores";
        return Err(SourceError::Name { what: "replication slot", expected });
    }
    Ok(())
}

fn fits(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63
}

fn connect(settings: &ConnectSettings) -> Result<Dialogue, ConnectError> {
    let mut last = None;
    for endpoint in &settings.endpoints {
        let addresses = match postgres::addresses(endpoint) {
            Ok(addresses) => addresses,
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        for address in addresses {
            for transport in settings.tls.mode.transports(&endpoint.host) {
                match attempt(settings, endpoint, address, *transport) {
                    Ok(dialogue) => return Ok(dialogue),
                    Err(error) => {
                        let other = error.warrants_other_transport();
                        if other {
                            error.warn_of_other_transport(*transport);
                        }
                        last = Some(error);
                        if !other {
                            break;
                        }
                    }
                }
            }
            if let Some(error) = last.take_if(|error| !error.warrants_other_host()) {
                return Err(error);
            }
        }
    }
    Err(last.unwrap_or_else(|| ConnectError::Lookup {
        endpoint: settings.to_string(),
        error: io::Error::new(io::ErrorKind::NotFound, "no host is named"),
    }))
}

fn attempt(
    settings: &ConnectSettings,
    endpoint: &Endpoint,
    address: Option<std::net::SocketAddr>,
    transport: Transport,
) -> Result<Dialogue, ConnectError> {
    let deadline = Deadline::after(settings.connect_timeout);
    let reader = postgres::open(settings, endpoint, address, transport, deadline)?;
    let mut dialogue = Dialogue::new(reader, endpoint.to_string(), deadline);
    dialogue.log_in(settings, settings.password_for(endpoint))?;
    dialogue.check_session(settings.session_attrs)?;
    Ok(dialogue)
}

impl Dialogue {
    fn check_session(&mut self, wanted: SessionAttrs) -> Result<(), ConnectError> {
        if wanted == SessionAttrs::Any {
            return Ok(());
        }
        let rows = match self.query("SHOW transaction_read_only") {
            Ok(rows) => rows,
            Err(QueryError::Connection(error)) => return Err(error),
            Err(QueryError::Server(error)) => return Err(self.unexpected(&error.to_string())),
        };
        let read_only = cell(&rows, 0).as_deref() == Some("on");
        let endpoint = self.endpoint.clone();
        match (wanted, read_only) {
            (SessionAttrs::ReadWrite, true) => Err(ConnectError::WrongSession { endpoint, found: "read-only" }),
            (SessionAttrs::ReadOnly, false) => Err(ConnectError::WrongSession { endpoint, found: "not read-only" }),
            _ => Ok(()),
        }
    }

    fn identify(&mut self) -> Result<Identity, SourceError> {
        self.begin("IDENTIFY_SYSTEM");
        let rows = match self.query("IDENTIFY_SYSTEM") {
            Ok(rows) => rows,
            Err(QueryError::Connection(error)) => return Err(error.into()),
            Err(QueryError::Server(error)) if error.is("42601") => {
                return Err(SourceError::NotReplication { endpoint: self.endpoint.clone(), error });
            }
            Err(QueryError::Server(error)) => return Err(SourceError::Refused { what: "to identify itself", error }),
        };
        let parsed = cell(&rows, 0)
            .zip(cell(&rows, 1))
            .zip(cell(&rows, 2))
            .and_then(|((system_id, timeline), lsn)| Some((system_id, timeline.parse().ok()?, lsn.parse().ok()?)));
        let Some((system_id, timeline, xlogpos)) = parsed else {
            return Err(self.unexpected("an answer that is not that of IDENTIFY_SYSTEM").into());
        };
        Ok(Identity { system_id, timeline, xlogpos, dbname: cell(&rows, 3) })
    }

    fn ask(&mut self, what: &'static str, text: &str) -> Result<Vec<Row>, SourceError> {
        self.begin("a query");
        self.query(text).map_err(|error| match error {
            QueryError::Connection(error) => error.into(),
            QueryError::Server(error) => SourceError::Refused { what, error },
        })
    }

    /// At 0/0, so that the slot decides: a position ahead of the server would silently leave out what commits below it.
    fn start_replication(&mut self, options: &StreamOptions, user: &str) -> Result<(), SourceError> {
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL 0/0 (proto_version '1', publication_names '{}')",
            quote_identifier(&options.slot),
            quote_identifier(&options.publication).replace('\'', "''"),
        );
        self.begin("the start of the stream");
        self.send(|buffer| frontend::query(&command, buffer))?;
        match self.message()? {
            Incoming::CopyBoth => Ok(()),
            Incoming::Message(Message::ErrorResponse(body)) => {
                Err(SourceError::at_start(ServerError::from_fields(body.fields()), &options.slot, user))
            }
            Incoming::Message(_) => Err(self.unexpected("a message that does not start a stream").into()),
        }
    }
}

/// A time as PostgreSQL shows its settings: `0`, `500ms`, `1min`. A bare number is in milliseconds.
fn parse_time(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let milliseconds: u64 = match unit.trim() {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    Some(Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(milliseconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_is_set_unless_the_server_is_to_decide() {
        let mut options = StreamOptions::new("s", "p");
        assert_eq!(session(&options), SESSION);
        options.wal_sender_timeout = Some(Duration::from_millis(2500));
        let text = session(&options);
        assert!(text.starts_with(SESSION) && text.contains("set_config(name, '2500ms', false)"), "{text}");
    }

    #[test]
    fn settings_show_times_with_units() {
        for (text, expected) in [
            ("0", Some(0)),
            ("2s", Some(2000)),
            ("500ms", Some(500)),
            ("1min", Some(60_000)),
            ("2h", Some(7_200_000)),
            ("1d", Some(86_400_000)),
            ("60000", Some(60_000)),
            ("", None),
            ("min", None),
            ("1 fortnight", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(parse_time(text), expected.map(Duration::from_millis), "{text}");
        }
    }
}
