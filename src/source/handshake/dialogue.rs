//! Question and answer over a connection that is not streaming yet.

use std::{io, time::Duration};

use bytes::{Buf, BytesMut};
use fallible_iterator::FallibleIterator;
use postgres_protocol::message::{
    backend::{DataRowBody, Message},
    frontend,
};

use crate::{
    postgres::{ConnectError, Deadline, LinkReader, ServerError},
    source::{stream::ServerParameters, wire::HEADER},
};

/// The longest message that is taken before the stream starts.
const MESSAGE_LIMIT: usize = 1 << 20;
/// Bytes read at once.
const READ: usize = 8 << 10;
/// Time for a query, and for the start of the stream, where connect_timeout does not give more.
const QUERY_TIMEOUT: Duration = Duration::from_secs(60);

/// One question after another, over a connection that is not streaming yet.
pub(super) struct Dialogue {
    pub(super) reader: LinkReader,
    pub(super) inbox: BytesMut,
    pub(super) endpoint: String,
    pub(super) stage: &'static str,
    pub(super) deadline: Deadline,
    pub(super) server: ServerParameters,
}

pub(super) enum Incoming {
    Message(Message),
    CopyBoth,
}

/// Why a query had no result.
pub(super) enum QueryError {
    Server(ServerError),
    Connection(ConnectError),
}

impl Dialogue {
    pub(super) fn new(reader: LinkReader, endpoint: String, deadline: Deadline) -> Self {
        let inbox = BytesMut::with_capacity(READ);
        Dialogue { reader, inbox, endpoint, stage: "the login", deadline, server: ServerParameters::default() }
    }

    pub(super) fn begin(&mut self, stage: &'static str) {
        self.stage = stage;
        self.deadline = Deadline::after(Some(QUERY_TIMEOUT));
    }

    pub(super) fn query(&mut self, text: &str) -> Result<Vec<Row>, QueryError> {
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

    pub(super) fn send(&mut self, write: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> Result<(), ConnectError> {
        let mut buffer = BytesMut::new();
        write(&mut buffer).map_err(|error| self.unexpected(&error.to_string()))?;
        let link = self.reader.link();
        link.arm(self.deadline).and_then(|()| link.write_all(&buffer)).map_err(|error| self.broken(error))
    }

    /// The next message but for notices and parameters, which may come at any time.
    pub(super) fn message(&mut self) -> Result<Incoming, ConnectError> {
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

    pub(super) fn unexpected(&self, reason: &str) -> ConnectError {
        ConnectError::Protocol { endpoint: self.endpoint.clone(), stage: self.stage, reason: reason.to_owned() }
    }
}

pub(super) type Row = Vec<Option<String>>;

fn texts(body: &DataRowBody) -> io::Result<Row> {
    let mut ranges = body.ranges();
    let mut row = Vec::new();
    while let Some(range) = ranges.next()? {
        let text = range.and_then(|range| body.buffer().get(range)).map(|bytes| String::from_utf8_lossy(bytes).into());
        row.push(text);
    }
    Ok(row)
}

pub(super) fn cell(rows: &[Row], column: usize) -> Option<String> {
    rows.first()?.get(column)?.clone()
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
