//! Blocking sockets to PostgreSQL, TCP or Unix-domain.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs},
    os::unix::net::UnixStream,
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};

use super::{
    conninfo::{ConnectSettings, Endpoint, Host},
    error::ConnectError,
};

/// A connected socket. Reading and writing take `&self`: two threads share it.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The addresses of an endpoint, in the resolver's order; one `None` for a Unix-domain socket.
///
/// # Errors
/// Where the name cannot be looked up.
pub(crate) fn addresses(endpoint: &Endpoint) -> Result<Vec<Option<SocketAddr>>, ConnectError> {
    let name = match (&endpoint.host, endpoint.address) {
        (Host::Unix(_), _) => return Ok(vec![None]),
        (_, Some(address)) => return Ok(vec![Some(SocketAddr::new(address, endpoint.port))]),
        (Host::Tcp(name), None) => name,
    };
    let failed = |error| ConnectError::Lookup { endpoint: endpoint.to_string(), error };
    let found: Vec<_> = (name.as_str(), endpoint.port).to_socket_addrs().map_err(failed)?.map(Some).collect();
    if found.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    }
    Ok(found)
}

impl Socket {
    /// Connects, within `timeout` where there is one.
    pub(super) fn connect(
        settings: &ConnectSettings,
        endpoint: &Endpoint,
        address: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> io::Result<Self> {
        let Some(address) = address else {
            return UnixStream::connect(endpoint.socket_path()).map(Socket::Unix);
        };
        let stream = match timeout {
            Some(timeout) => TcpStream::connect_timeout(&address, timeout)?,
            None => TcpStream::connect(address)?,
        };
        stream.set_nodelay(true)?;
        let socket = SockRef::from(&stream);
        if settings.keepalives.enabled {
            let mut keepalive = TcpKeepalive::new();
            if let Some(idle) = settings.keepalives.idle {
                keepalive = keepalive.with_time(idle);
            }
            if let Some(interval) = settings.keepalives.interval {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(count) = settings.keepalives.count {
                keepalive = keepalive.with_retries(count);
            }
            socket.set_tcp_keepalive(&keepalive)?;
        }
        #[cfg(target_os = "linux")]
        if let Some(timeout) = settings.tcp_user_timeout {
            socket.set_tcp_user_timeout(Some(timeout))?;
        }
        Ok(Socket::Tcp(stream))
    }

    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match self {
                Socket::Tcp(stream) => (&mut &*stream).read(buffer),
                Socket::Unix(stream) => (&mut &*stream).read(buffer),
            };
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    pub(super) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => (&mut &*stream).write_all(bytes),
            Socket::Unix(stream) => (&mut &*stream).write_all(bytes),
        }
    }

    pub(super) fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match self {
            Socket::Tcp(stream) => stream.set_read_timeout(read).and_then(|()| stream.set_write_timeout(write)),
            Socket::Unix(stream) => stream.set_read_timeout(read).and_then(|()| stream.set_write_timeout(write)),
        }
    }

    /// Ends both directions: a read or write that waits on it, in any thread, returns.
    pub(super) fn shutdown(&self) {
        // An error says that it is closed already.
        let _ = match self {
            Socket::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Socket::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

/// `Read` and `Write` for rustls's handshake.
impl Read for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Socket::read(self, buffer)
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // By its path: `self.write_all` would be the trait's, which calls this.
        Socket::write_all(self, bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
