//! The beginning of a replication connection: startup, login, what the server is, and the start of the stream.

use std::{io, time::Duration};

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{self, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, DataRowBody, Message},
        frontend,
    },
};
use walgate_sink::Secret;

use super::{
    error::{SourceError, quote_identifier},
    stream::{Identity, ServerParameters, StreamOptions},
    wire::HEADER,
};
use crate::postgres::{
    self, ChannelBinding, ConnectError, ConnectSettings, Deadline, Endpoint, LinkReader, ServerError, SessionAttrs,
    Transport,
};

/// The longest message that is taken before the stream starts.
const MESSAGE_LIMIT: usize = 1 << 20;
/// Bytes read at once.
const READ: usize = 8 << 10;
/// Time for a query, and for the start of the stream, where connect_timeout does not give more.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Text output that does not depend on how the role or the database is set up.
const SESSION: &str = "SET datestyle = 'ISO'; SET intervalstyle = 'postgres'; SET bytea_output = 'hex'";

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
    dialogue.ask("its settings", SESSION)?;
    let timeout = dialogue.show("wal_sender_timeout")?;
    dialogue.server.wal_sender_timeout = timeout.as_deref().and_then(parse_time).filter(|time| !time.is_zero());
    dialogue.start_replication(options, &settings.user)?;
    Ok(Started { reader: dialogue.reader, first: dialogue.inbox, identity, server: dialogue.server })
}

/// PostgreSQL's own rules: those of a slot's name are narrow.
fn check_names(options: &StreamOptions) -> Result<(), SourceError> {
    let fits = |name: &str| !name.is_empty() && name.len() <= 63;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if !fits(&options.slot) || !options.slot.bytes().all(plain) {
        let expected = "lower-case letters, digits and underscores";
        return Err(SourceError::Name { what: "replication slot", expected });
    }
    if !fits(&options.publication) || options.publication.contains('\0') {
        return Err(SourceError::Name { what: "publication", expected: "anything but null characters" });
    }
    Ok(())
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
    let mut dialogue = Dialogue {
        reader,
        inbox: BytesMut::with_capacity(READ),
        endpoint: endpoint.to_string(),
        stage: "the login",
        deadline,
        server: ServerParameters::default(),
    };
    dialogue.log_in(settings, settings.password_for(endpoint))?;
    dialogue.check_session(settings.session_attrs)?;
    Ok(dialogue)
}

/// One question after another, over a connection that is not streaming yet.
struct Dialogue {
    reader: LinkReader,
    inbox: BytesMut,
    endpoint: String,
    stage: &'static str,
    deadline: Deadline,
    server: ServerParameters,
}

enum Incoming {
    Message(Message),
    CopyBoth,
}

/// Why a query had no result.
enum QueryError {
    Server(ServerError),
    Connection(ConnectError),
}

impl Dialogue {
    fn log_in(&mut self, settings: &ConnectSettings, password: Option<&Secret>) -> Result<(), ConnectError> {
        let mut parameters = vec![
            ("user", settings.user.as_str()),
            ("database", settings.dbname.as_str()),
            ("replication", "database"),
            ("application_name", settings.application_name.as_str()),
            ("client_encoding", "UTF8"),
        ];
        parameters.extend(settings.options.as_deref().map(|options| ("options", options)));
        self.send(|buffer| frontend::startup_message(parameters, buffer))?;
        let mut bound = false;
        loop {
            let method = match self.message()? {
                Incoming::Message(Message::AuthenticationOk) => break,
                Incoming::Message(Message::AuthenticationCleartextPassword) => {
                    if !self.reader.link().is_private() {
                        return Err(ConnectError::CleartextRefused { endpoint: self.endpoint.clone() });
                    }
                    let password = self.password(settings, password)?;
                    self.send(|buffer| frontend::password_message(password.expose().as_bytes(), buffer))?;
                    continue;
                }
                Incoming::Message(Message::AuthenticationMd5Password(body)) => {
                    let password = self.password(settings, password)?;
                    tracing::warn!(
                        role = settings.user,
                        "md5 password authentication is weak: set password_encryption=scram-sha-256 and set the password again"
                    );
                    let hash = md5_hash(settings.user.as_bytes(), password.expose().as_bytes(), body.salt());
                    self.send(|buffer| frontend::password_message(hash.as_bytes(), buffer))?;
                    continue;
                }
                Incoming::Message(Message::AuthenticationSasl(body)) => {
                    bound = self.scram(settings, self.password(settings, password)?, &body)?;
                    continue;
                }
                Incoming::Message(Message::ErrorResponse(body)) => {
                    return Err(self.refused(settings, ServerError::from_fields(body.fields())));
                }
                Incoming::Message(Message::AuthenticationGss | Message::AuthenticationSspi) => "GSSAPI",
                Incoming::Message(Message::AuthenticationKerberosV5) => "Kerberos",
                _ => return Err(self.unexpected("a message that does not belong to a login")),
            };
            return Err(ConnectError::AuthenticationMethod { endpoint: self.endpoint.clone(), method });
        }
        if settings.channel_binding == ChannelBinding::Require && !bound {
            return Err(ConnectError::ChannelBindingMissing { endpoint: self.endpoint.clone() });
        }
        loop {
            match self.message()? {
                Incoming::Message(Message::ReadyForQuery(_)) => return Ok(()),
                Incoming::Message(Message::BackendKeyData(_)) => {}
                Incoming::Message(Message::ErrorResponse(body)) => {
                    return Err(self.refused(settings, ServerError::from_fields(body.fields())));
                }
                _ => return Err(self.unexpected("a message that does not belong to a login")),
            }
        }
    }

    fn refused(&self, settings: &ConnectSettings, error: ServerError) -> ConnectError {
        ConnectError::Refused {
            endpoint: self.endpoint.clone(),
            user: settings.user.clone(),
            dbname: settings.dbname.clone(),
            error,
            tls: self.reader.link().is_tls(),
        }
    }

    fn password<'a>(
        &self,
        settings: &ConnectSettings,
        password: Option<&'a Secret>,
    ) -> Result<&'a Secret, ConnectError> {
        password.filter(|password| !password.expose().is_empty()).ok_or_else(|| ConnectError::PasswordMissing {
            endpoint: self.endpoint.clone(),
            user: settings.user.clone(),
            note: settings.password_note().map(str::to_owned),
        })
    }

    /// SCRAM-SHA-256, bound to the TLS connection where both sides can; whether it was.
    fn scram(
        &mut self,
        settings: &ConnectSettings,
        password: &Secret,
        offered: &AuthenticationSaslBody,
    ) -> Result<bool, ConnectError> {
        let (mut plain, mut plus) = (false, false);
        let mut mechanisms = offered.mechanisms();
        while let Some(mechanism) = mechanisms.next().map_err(|error| self.unexpected(&error.to_string()))? {
            plain |= mechanism == sasl::SCRAM_SHA_256;
            plus |= mechanism == sasl::SCRAM_SHA_256_PLUS;
        }
        let end_point = match settings.channel_binding {
            ChannelBinding::Disable => None,
            ChannelBinding::Prefer | ChannelBinding::Require => self.reader.link().end_point(),
        };
        let (mechanism, binding, bound) = match end_point {
            Some(hash) if plus => (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(hash), true),
            _ if settings.channel_binding == ChannelBinding::Require => {
                return Err(ConnectError::ChannelBindingMissing { endpoint: self.endpoint.clone() });
            }
            // "We could, and you did not offer it": the server notices if somebody took its offer away.
            Some(_) if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), false),
            None if plain => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), false),
            _ => {
                let (endpoint, method) = (self.endpoint.clone(), "an unknown kind of SASL");
                return Err(ConnectError::AuthenticationMethod { endpoint, method });
            }
        };
        let failed = |endpoint: &str, error: io::Error| ConnectError::Scram {
            endpoint: endpoint.to_owned(),
            reason: error.to_string(),
        };
        let mut scram = ScramSha256::new(password.expose().as_bytes(), binding);
        self.send(|buffer| frontend::sasl_initial_response(mechanism, scram.message(), buffer))?;
        match self.message()? {
            Incoming::Message(Message::AuthenticationSaslContinue(body)) => {
                scram.update(body.data()).map_err(|error| failed(&self.endpoint, error))?;
            }
            Incoming::Message(Message::ErrorResponse(body)) => {
                return Err(self.refused(settings, ServerError::from_fields(body.fields())));
            }
            _ => return Err(self.unexpected("a message that does not belong to SCRAM")),
        }
        self.send(|buffer| frontend::sasl_response(scram.message(), buffer))?;
        match self.message()? {
            Incoming::Message(Message::AuthenticationSaslFinal(body)) => {
                scram.finish(body.data()).map_err(|error| failed(&self.endpoint, error))?;
            }
            Incoming::Message(Message::ErrorResponse(body)) => {
                return Err(self.refused(settings, ServerError::from_fields(body.fields())));
            }
            _ => return Err(self.unexpected("a message that does not belong to SCRAM")),
        }
        Ok(bound)
    }

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

    fn show(&mut self, setting: &str) -> Result<Option<String>, SourceError> {
        self.ask("to show a setting", &format!("SHOW {setting}")).map(|rows| cell(&rows, 0))
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

    fn begin(&mut self, stage: &'static str) {
        self.stage = stage;
        self.deadline = Deadline::after(Some(QUERY_TIMEOUT));
    }

    fn query(&mut self, text: &str) -> Result<Vec<Row>, QueryError> {
        self.send(|buffer| frontend::query(text, buffer)).map_err(QueryError::Connection)?;
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            match self.message().map_err(QueryError::Connection)? {
                Incoming::Message(Message::DataRow(body)) => {
                    // One row is all that is ever asked for.
                    if rows.is_empty() {
                        rows.push(
                            texts(&body)
                                .map_err(|error| QueryError::Connection(self.unexpected(&error.to_string())))?,
                        );
                    }
                }
                Incoming::Message(Message::ErrorResponse(body)) => {
                    failed = Some(ServerError::from_fields(body.fields()));
                }
                Incoming::Message(Message::ReadyForQuery(_)) => {
                    return failed.map_or(Ok(rows), |error| Err(QueryError::Server(error)));
                }
                Incoming::Message(
                    Message::RowDescription(_) | Message::CommandComplete(_) | Message::EmptyQueryResponse,
                ) => {}
                _ => return Err(QueryError::Connection(self.unexpected("a message that does not answer a query"))),
            }
        }
    }

    fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), ConnectError> {
        let mut buffer = BytesMut::new();
        write(&mut buffer).map_err(|error| self.unexpected(&error.to_string()))?;
        let link = self.reader.link();
        link.arm(self.deadline).and_then(|()| link.write_all(&buffer)).map_err(|error| self.broken(error))
    }

    /// The next message but for notices and parameters, which may come at any time.
    fn message(&mut self) -> Result<Incoming, ConnectError> {
        loop {
            let (tag, length) = self.whole_message()?;
            match tag {
                b'W' => {
                    self.inbox.advance(length);
                    return Ok(Incoming::CopyBoth);
                }
                // NegotiateProtocolVersion: an option that the server does not know.
                b'v' => self.inbox.advance(length),
                _ => {
                    let mut bytes = self.inbox.split_to(length);
                    match Message::parse(&mut bytes) {
                        Ok(Some(Message::NoticeResponse(_))) => {}
                        Ok(Some(Message::ParameterStatus(body))) => {
                            if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                                self.server.set(name, value);
                            }
                        }
                        Ok(Some(message)) => return Ok(Incoming::Message(message)),
                        Ok(None) => return Err(self.unexpected("an incomplete message")),
                        Err(error) => return Err(self.unexpected(&error.to_string())),
                    }
                }
            }
        }
    }

    /// Reads until a whole message stands at the front of the inbox.
    fn whole_message(&mut self) -> Result<(u8, usize), ConnectError> {
        let mut buffer = [0; READ];
        loop {
            if let [tag, a, b, c, d, ..] = *self.inbox {
                let length = u32::from_be_bytes([a, b, c, d]) as usize + 1;
                if !(HEADER..=MESSAGE_LIMIT).contains(&length) {
                    return Err(self.unexpected(&format!("a message of {length} bytes with tag {tag:#04x}")));
                }
                if self.inbox.len() >= length {
                    return Ok((tag, length));
                }
            }
            let read = self.reader.link().arm(self.deadline).and_then(|()| self.reader.read(&mut buffer));
            match read {
                Ok(0) => {
                    return Err(ConnectError::Closed {
                        endpoint: self.endpoint.clone(),
                        stage: self.stage,
                        reason: "no reason was given: see the server's log".into(),
                    });
                }
                Ok(count) => self.inbox.extend_from_slice(&buffer[..count]),
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    fn broken(&self, error: io::Error) -> ConnectError {
        let (endpoint, stage) = (self.endpoint.clone(), self.stage);
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ConnectError::Timeout { endpoint, stage, after: self.deadline.after }
            }
            _ => ConnectError::Closed { endpoint, stage, reason: error.to_string() },
        }
    }

    fn unexpected(&self, reason: &str) -> ConnectError {
        ConnectError::Protocol { endpoint: self.endpoint.clone(), stage: self.stage, reason: reason.to_owned() }
    }
}

type Row = Vec<Option<String>>;

fn texts(body: &DataRowBody) -> io::Result<Row> {
    let mut ranges = body.ranges();
    let mut row = Vec::new();
    while let Some(range) = ranges.next()? {
        let text = range.and_then(|range| body.buffer().get(range)).map(|bytes| String::from_utf8_lossy(bytes).into());
        row.push(text);
    }
    Ok(row)
}

fn cell(rows: &[Row], column: usize) -> Option<String> {
    rows.first()?.get(column)?.clone()
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

impl ServerParameters {
    fn set(&mut self, name: &str, value: &str) {
        match name {
            "server_version" => value.clone_into(&mut self.version),
            "server_encoding" => value.clone_into(&mut self.encoding),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
