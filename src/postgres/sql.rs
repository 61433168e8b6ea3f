//! The SQL connection, by the same rules as the stream: hosts in order, TLS by `sslmode`, no password in clear text.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::{
    Client, SimpleQueryMessage,
    tls::{MakeTlsConnect, TlsConnect},
};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    cleartext::{Seen, Watched},
    conninfo::{ConnectSettings, Endpoint, Host, SessionAttrs, Transport},
    error::{ConnectError, ServerError},
    socket::{Socket, addresses},
    tls,
};

/// What must be polled for the client to work; it ends when the connection does, with the server's reason where it gave
/// one (57P01 when it shuts down).
pub type SqlConnection = Pin<Box<dyn Future<Output = Result<(), tokio_postgres::Error>> + Send>>;

/// Connects for SQL: the first endpoint, address and transport that works, in libpq's order. The client cannot cancel
/// statements (`cancel_token` does not know the address): set `statement_timeout` instead.
///
/// # Errors
/// Why the last of them did not work.
pub async fn connect_sql(settings: &ConnectSettings) -> Result<(Client, SqlConnection), ConnectError> {
    let mut last = None;
    for endpoint in &settings.endpoints {
        let wanted = endpoint.clone();
        let found = tokio::task::spawn_blocking(move || addresses(&wanted)).await;
        let found = match found.unwrap_or_else(|error| Err(stopped(endpoint, &error))) {
            Ok(found) => found,
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        for address in found {
            for transport in settings.tls.mode.transports(&endpoint.host) {
                match attempt(settings, endpoint, address, *transport).await {
                    Ok(connected) => return Ok(connected),
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

fn stopped(endpoint: &Endpoint, error: &tokio::task::JoinError) -> ConnectError {
    ConnectError::Unreachable { endpoint: endpoint.to_string(), error: io::Error::other(error.to_string()) }
}

async fn attempt(
    settings: &ConnectSettings,
    endpoint: &Endpoint,
    address: Option<SocketAddr>,
    transport: Transport,
) -> Result<(Client, SqlConnection), ConnectError> {
    let login = Box::pin(login(settings, endpoint, address, transport));
    match settings.connect_timeout {
        None => login.await,
        Some(after) => tokio::time::timeout(after, login).await.unwrap_or_else(|_| {
            Err(ConnectError::Timeout { endpoint: endpoint.to_string(), stage: "the login", after })
        }),
    }
}

/// A socket of either kind. A type of its own rather than a trait object: with one, the compiler cannot show that the
/// future of a connection is `Send`.
enum Wire {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Wire::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Wire::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Wire::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

async fn login(
    settings: &ConnectSettings,
    endpoint: &Endpoint,
    address: Option<SocketAddr>,
    transport: Transport,
) -> Result<(Client, SqlConnection), ConnectError> {
    let stream = dial(settings, endpoint, address).await?;
    let seen = Seen::default();
    let local = matches!(endpoint.host, Host::Unix(_));
    let stream = match local {
        true => Watched::off(stream, seen.clone()),
        false => Watched::new(stream, transport != Transport::Plain, seen.clone()),
    };
    let config = settings.to_tokio_postgres(endpoint, transport);
    let broken = Arc::new(Mutex::new(None));
    let (client, mut connection): (Client, SqlConnection) = if transport == Transport::Plain {
        let (client, connection) = config
            .connect_raw(stream, tokio_postgres::NoTls)
            .await
            .map_err(|error| explain(settings, endpoint, transport, &seen, None, &error))?;
        (client, Box::pin(connection))
    } else {
        let certificates = tls::client_config(&settings.tls)?;
        let watched = watched_tls(settings, endpoint, certificates, &seen, &broken);
        let (client, connection) = config.connect_raw(stream, watched).await.map_err(|error| {
            let broken = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
            explain(settings, endpoint, transport, &seen, broken, &error)
        })?;
        (client, Box::pin(connection))
    };
    check_session(settings, endpoint, &client, &mut connection).await?;
    Ok((client, connection))
}

fn watched_tls(
    settings: &ConnectSettings,
    endpoint: &Endpoint,
    certificates: Arc<rustls::ClientConfig>,
    seen: &Seen,
    broken: &Arc<Mutex<Option<String>>>,
) -> WatchedTls<<MakeRustlsConnect as MakeTlsConnect<Watched<Wire>>>::TlsConnect> {
    let name = match &endpoint.host {
        Host::Tcp(name) => name.as_str(),
        Host::Unix(_) => "localhost",
    };
    let mut make = MakeRustlsConnect::new(Arc::unwrap_or_clone(certificates));
    let inner =
        MakeTlsConnect::<Watched<Wire>>::make_tls_connect(&mut make, name).unwrap_or_else(|never| match never {});
    WatchedTls { inner, verified: settings.tls.verifies(), seen: seen.clone(), broken: Arc::clone(broken) }
}

async fn dial(
    settings: &ConnectSettings,
    endpoint: &Endpoint,
    address: Option<SocketAddr>,
) -> Result<Wire, ConnectError> {
    let (owned, wanted) = (settings.clone(), endpoint.clone());
    let socket =
        tokio::task::spawn_blocking(move || Socket::connect(&owned, &wanted, address, owned.connect_timeout)).await;
    let unreachable = |error| ConnectError::Unreachable { endpoint: endpoint.to_string(), error };
    match socket.map_err(|error| stopped(endpoint, &error))?.map_err(unreachable)? {
        Socket::Tcp(stream) => {
            stream.set_nonblocking(true).map_err(unreachable)?;
            tokio::net::TcpStream::from_std(stream).map(Wire::Tcp).map_err(unreachable)
        }
        Socket::Unix(stream) => {
            stream.set_nonblocking(true).map_err(unreachable)?;
            tokio::net::UnixStream::from_std(stream).map(Wire::Unix).map_err(unreachable)
        }
    }
}

/// `target_session_attrs`, asked as libpq does.
async fn check_session(
    settings: &ConnectSettings,
    endpoint: &Endpoint,
    client: &Client,
    connection: &mut SqlConnection,
) -> Result<(), ConnectError> {
    let wanted = settings.session_attrs;
    if wanted == SessionAttrs::Any {
        return Ok(());
    }
    let closed = |reason: String| ConnectError::Closed { endpoint: endpoint.to_string(), stage: "the login", reason };
    let answer = tokio::select! {
        answer = client.simple_query("SHOW transaction_read_only") => answer.map_err(|error| closed(error.to_string()))?,
        ended = connection => return Err(closed(ended.err().map(|error| error.to_string()).unwrap_or_default())),
    };
    let read_only = answer.iter().any(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0) == Some("on"),
        _ => false,
    });
    match (wanted, read_only) {
        (SessionAttrs::ReadWrite, true) => {
            Err(ConnectError::WrongSession { endpoint: endpoint.to_string(), found: "read-only" })
        }
        (SessionAttrs::ReadOnly, false) => {
            Err(ConnectError::WrongSession { endpoint: endpoint.to_string(), found: "not read-only" })
        }
        _ => Ok(()),
    }
}

fn explain(
    settings: &ConnectSettings,
    endpoint: &Endpoint,
    transport: Transport,
    seen: &Seen,
    broken: Option<String>,
    error: &tokio_postgres::Error,
) -> ConnectError {
    let (place, mode) = (endpoint.to_string(), settings.tls.mode.name());
    let tls = seen.tls.load(Ordering::Relaxed);
    if seen.cleartext.load(Ordering::Relaxed) {
        return ConnectError::CleartextRefused { endpoint: place };
    }
    if let Some(reason) = broken {
        return ConnectError::TlsHandshake { endpoint: place, mode, reason };
    }
    if let Some(error) = error.as_db_error() {
        return ConnectError::Refused {
            endpoint: place,
            user: settings.user.clone(),
            dbname: settings.dbname.clone(),
            error: ServerError::from(error),
            tls,
        };
    }
    let cause = std::error::Error::source(error);
    let socket = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
    if transport == Transport::TlsRequired && !tls && socket.is_none() {
        return ConnectError::TlsNotOffered { endpoint: place, mode };
    }
    let text = cause.map(ToString::to_string).unwrap_or_else(|| error.to_string());
    if text.contains("password missing") {
        let note = settings.password_note().map(str::to_owned);
        return ConnectError::PasswordMissing { endpoint: place, user: settings.user.clone(), note };
    }
    if text.contains("channel binding") {
        return ConnectError::ChannelBindingMissing { endpoint: place };
    }
    match socket.map(io::Error::kind) {
        Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::Other) => {
            ConnectError::Scram { endpoint: place, reason: text }
        }
        _ => ConnectError::Closed { endpoint: place, stage: "the login", reason: text },
    }
}

/// Notes why a handshake failed, which `tokio_postgres` does not say, and watches what comes inside TLS.
struct WatchedTls<C> {
    inner: C,
    verified: bool,
    seen: Seen,
    broken: Arc<Mutex<Option<String>>>,
}

impl<S, C> TlsConnect<S> for WatchedTls<C>
where
    C: TlsConnect<S, Error = io::Error>,
    C::Stream: Unpin,
    C::Future: Send + 'static,
{
    type Stream = Watched<C::Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Stream>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let (verified, seen, broken) = (self.verified, self.seen, self.broken);
        let handshake = self.inner.connect(stream);
        Box::pin(async move {
            match handshake.await {
                Ok(stream) if verified => Ok(Watched::off(stream, seen)),
                Ok(stream) => Ok(Watched::new(stream, false, seen)),
                Err(error) => {
                    let reason = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                        Some(error) => tls::explain(error),
                        None => format!("{error}: see the server's log"),
                    };
                    *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                    Err(error)
                }
            }
        })
    }
}
