//! A blocking link to PostgreSQL, with or without TLS, that one thread reads while another writes.
//!
//! With TLS both need rustls's state, so that it stands under a lock. Ciphertext is read from the socket before the
//! lock is taken, and written after it was given back: neither direction can hold up the other while it waits for the
//! network, which would be a deadlock where the server waits for us to read.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::{ClientConnection, pki_types::ServerName};

use super::{
    channel_binding,
    conninfo::{ConnectSettings, Endpoint, Host, Transport},
    error::ConnectError,
    socket::Socket,
    tls,
};

/// Ciphertext that is read at once. As large as the reader's blocks, so that TLS does not undo the nap.
const CIPHERTEXT: usize = 512 << 10;

/// The writing side, shared by threads; also ends the connection from anywhere.
#[derive(Clone, Debug)]
pub struct Link(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: Socket,
    tls: Option<Mutex<ClientConnection>>,
    /// Held while bytes go out, so that TLS records leave in the order in which they were made. Taken before `tls`.
    writing: Mutex<()>,
    /// The server's certificate was checked against a root.
    verified: bool,
}

/// The reading side: one of them to a link.
#[derive(Debug)]
pub struct LinkReader {
    link: Link,
    /// What was read of the socket and not yet given to rustls.
    ciphertext: Vec<u8>,
    start: usize,
    end: usize,
}

/// When an attempt to connect ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// The whole time that was given, for the error's text.
    pub after: Duration,
    at: Option<Instant>,
}

impl Deadline {
    /// A deadline from now; none where no time is given.
    pub(crate) fn after(time: Option<Duration>) -> Self {
        Deadline { after: time.unwrap_or_default(), at: time.and_then(|time| Instant::now().checked_add(time)) }
    }

    /// What is left; an error of the kind `TimedOut` where nothing is.
    fn left(self) -> io::Result<Option<Duration>> {
        let Some(at) = self.at else { return Ok(None) };
        match at.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Ok(Some(left)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Connects to one address and agrees on TLS, as far as `transport` says.
pub(crate) fn open(
    settings: &ConnectSettings,
    endpoint: &Endpoint,
    address: Option<SocketAddr>,
    transport: Transport,
    deadline: Deadline,
) -> Result<LinkReader, ConnectError> {
    let failed = |stage: &'static str| {
        move |error: io::Error| match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
                ConnectError::Timeout { endpoint: endpoint.to_string(), stage, after: deadline.after }
            }
            _ if stage == CONNECTING => ConnectError::Unreachable { endpoint: endpoint.to_string(), error },
            _ => ConnectError::Closed { endpoint: endpoint.to_string(), stage, reason: error.to_string() },
        }
    };
    const CONNECTING: &str = "the connection";
    const ASKING: &str = "the request for TLS";
    let left = deadline.left().map_err(failed(CONNECTING))?;
    let socket = Socket::connect(settings, endpoint, address, left).map_err(failed(CONNECTING))?;
    let mut session = None;
    if transport != Transport::Plain {
        let mut request = BytesMut::new();
        frontend::ssl_request(&mut request);
        let mut answer = [0];
        arm(&socket, deadline)
            .and_then(|()| socket.write_all(&request))
            .and_then(|()| socket.read(&mut answer))
            .map_err(failed(ASKING))?;
        match answer[0] {
            // Exactly one byte was read: nothing unencrypted can be taken for a part of the TLS stream.
            b'S' => session = Some(handshake(settings, endpoint, &socket, deadline)?),
            b'N' | b'E' if transport == Transport::TlsIfOffered => {}
            b'N' | b'E' => {
                let mode = settings.tls.mode.name();
                return Err(ConnectError::TlsNotOffered { endpoint: endpoint.to_string(), mode });
            }
            0 => {
                let reason = "it closed the connection instead of answering".into();
                return Err(ConnectError::Closed { endpoint: endpoint.to_string(), stage: ASKING, reason });
            }
            other => {
                let reason = format!("the answer begins with byte {other:#04x}");
                return Err(ConnectError::Protocol { endpoint: endpoint.to_string(), stage: ASKING, reason });
            }
        }
    }
    let encrypted = session.is_some();
    let shared = Shared {
        socket,
        verified: encrypted && settings.tls.verifies(),
        tls: session.map(Mutex::new),
        writing: Mutex::new(()),
    };
    let ciphertext = if encrypted { vec![0; CIPHERTEXT] } else { Vec::new() };
    Ok(LinkReader { link: Link(Arc::new(shared)), ciphertext, start: 0, end: 0 })
}

fn arm(socket: &Socket, deadline: Deadline) -> io::Result<()> {
    let left = deadline.left()?;
    socket.set_timeouts(left, left)
}

fn handshake(
    settings: &ConnectSettings,
    endpoint: &Endpoint,
    socket: &Socket,
    deadline: Deadline,
) -> Result<ClientConnection, ConnectError> {
    let failed = |reason: String| ConnectError::TlsHandshake {
        endpoint: endpoint.to_string(),
        mode: settings.tls.mode.name(),
        reason,
    };
    let config = tls::client_config(&settings.tls)?;
    let name = match &endpoint.host {
        Host::Tcp(name) => ServerName::try_from(name.clone()),
        Host::Unix(_) => ServerName::try_from("localhost".to_owned()),
    };
    let name = name.map_err(|_| failed("the host's name cannot stand in a certificate".into()))?;
    let mut session = ClientConnection::new(config, name).map_err(|error| failed(tls::explain(&error)))?;
    session.set_buffer_limit(None);
    while session.is_handshaking() {
        let step = arm(socket, deadline).and_then(|()| session.complete_io(&mut &*socket));
        if let Err(error) = step {
            let tls_error = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            return Err(match (tls_error, error.kind()) {
                (Some(tls_error), _) => failed(tls::explain(tls_error)),
                (None, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => ConnectError::Timeout {
                    endpoint: endpoint.to_string(),
                    stage: "the TLS handshake",
                    after: deadline.after,
                },
                (None, _) => failed(format!("{error}: see the server's log")),
            });
        }
    }
    Ok(session)
}

impl Link {
    /// Whether bytes travel inside TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.0.tls.is_some()
    }

    /// Whether a password in clear text may be sent: on this machine, or to a server whose certificate was checked.
    #[must_use]
    pub fn is_private(&self) -> bool {
        self.0.verified || self.is_unix()
    }

    /// Whether this is a Unix-domain socket.
    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self.0.socket, Socket::Unix(_))
    }

    /// What a SCRAM login is bound to; `None` without TLS, or where the certificate has no such hash.
    #[must_use]
    pub fn end_point(&self) -> Option<Vec<u8>> {
        let session = lock(self.0.tls.as_ref()?);
        channel_binding::end_point(session.peer_certificates()?.first()?)
    }

    /// Writes it all.
    ///
    /// # Errors
    /// Those of the socket: after one, nothing further can be sent.
    pub fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        let _order = lock(&self.0.writing);
        let Some(tls) = &self.0.tls else { return self.0.socket.write_all(bytes) };
        let records = {
            let mut session = lock(tls);
            session.writer().write_all(bytes)?;
            records(&mut session)?
        };
        self.0.socket.write_all(&records)
    }

    /// Sends what rustls itself has to say, such as a key update.
    fn answer(&self) -> io::Result<()> {
        let Some(tls) = &self.0.tls else { return Ok(()) };
        let _order = lock(&self.0.writing);
        let records = records(&mut lock(tls))?;
        self.0.socket.write_all(&records)
    }

    /// How long a read and a write may wait; `None` for ever.
    ///
    /// # Errors
    /// Where the socket is closed, or a time is zero.
    pub fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        self.0.socket.set_timeouts(read, write)
    }

    /// Sets both timeouts to what is left until the deadline.
    pub(crate) fn arm(&self, deadline: Deadline) -> io::Result<()> {
        arm(&self.0.socket, deadline)
    }

    /// Ends the connection at once, from any thread: what waits on it returns.
    pub fn shutdown(&self) {
        self.0.socket.shutdown();
    }
}

impl LinkReader {
    /// The link that this reads.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Reads what there is, at least a byte; 0 at the end of the connection.
    ///
    /// # Errors
    /// Those of the socket, `WouldBlock` when the read timeout passed, `InvalidData` for broken TLS.
    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.link.0.tls else { return self.link.0.socket.read(buffer) };
        loop {
            let mut filled = 0;
            let (mut ended, answer);
            {
                let mut session = lock(tls);
                loop {
                    ended = drain(&mut session, buffer, &mut filled)?;
                    if ended || filled == buffer.len() || self.start == self.end {
                        break;
                    }
                    // 0: the server said that it sends no more.
                    let taken = session.read_tls(&mut &self.ciphertext[self.start..self.end])?;
                    ended = taken == 0;
                    self.start += taken;
                    session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    if ended {
                        break;
                    }
                }
                answer = session.wants_write();
            }
            if answer {
                self.link.answer()?;
            }
            if filled > 0 || ended || buffer.is_empty() {
                return Ok(filled);
            }
            self.start = 0;
            self.end = 0;
            self.end = self.link.0.socket.read(&mut self.ciphertext)?;
            if self.end == 0 {
                return Ok(0);
            }
        }
    }
}

/// Moves decrypted bytes into the buffer; whether the server has ended its side.
fn drain(session: &mut ClientConnection, buffer: &mut [u8], filled: &mut usize) -> io::Result<bool> {
    while *filled < buffer.len() {
        match session.reader().read(&mut buffer[*filled..]) {
            Ok(0) => return Ok(true),
            Ok(count) => *filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn records(session: &mut ClientConnection) -> io::Result<Vec<u8>> {
    let mut records = Vec::new();
    while session.wants_write() {
        session.write_tls(&mut records)?;
    }
    Ok(records)
}

/// A thread that panicked with the lock left nothing half done that matters: the connection is given up then.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
