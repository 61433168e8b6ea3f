//! How connections are made: to which servers, as whom, over what.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapin::tcp::RustlsConnector;
use tokio::time::timeout;
use walgate_sink::{
    Secret, SinkError, SinkErrorKind,
    tls::{self, Spoken, Terms},
};

use crate::{
    Auth, RabbitmqConfig,
    address::Address,
    classify::Place,
    generation::{Credentials, Generation},
};

/// Time to connect to one server at the most: one that has come back is found soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The user of a server that was not told of any.
const GUEST: &str = "guest";

/// One server, and what is needed to connect to it.
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Option<RustlsConnector>,
    pub(crate) place: Place,
    pub(crate) credentials: Credentials,
    /// Seconds.
    pub(crate) heartbeat: u16,
    /// What the server calls the connection.
    pub(crate) name: Arc<str>,
    /// The sink's name, for the log.
    pub(crate) sink: Arc<str>,
}

/// See the module.
pub(crate) struct Connector {
    servers: Vec<Server>,
    /// The server that answered last is asked first.
    first: AtomicUsize,
    timeout: Duration,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("servers", &self.names()).finish_non_exhaustive()
    }
}

impl Connector {
    /// Reads the files that the configuration names. `timeout` is that of an attempt.
    pub(crate) fn new(
        config: &RabbitmqConfig,
        addresses: Vec<Address>,
        sink: &Arc<str>,
        timeout: Duration,
    ) -> Result<Self, SinkError> {
        let secrets = config.secrets(&addresses);
        let tls = if addresses.iter().any(|address| address.tls) {
            let settings = config.tls.clone().unwrap_or_default();
            Some(Arc::new(tls::client_config(&settings, Spoken::Always, Terms::SERVERS)?))
        } else {
            None
        };
        let name: Arc<str> = format!("walgate {sink}").into();
        let server = |address: Address| {
            let credentials = match config.auth {
                Auth::External => Credentials::External,
                Auth::Plain => Credentials::Plain {
                    user: address.user.clone().or_else(|| config.user.clone()).unwrap_or_else(|| GUEST.to_owned()),
                    password: address
                        .password
                        .clone()
                        .or_else(|| config.password.clone())
                        .unwrap_or_else(|| Secret::new(GUEST)),
                },
            };
            let shown = address.shown();
            let vhost = address.vhost.or_else(|| config.vhost.clone()).unwrap_or_else(|| "/".to_owned());
            Server {
                tls: tls.as_ref().filter(|_| address.tls).map(|tls| RustlsConnector::from(Arc::clone(tls))),
                host: address.host,
                port: address.port,
                place: Place { server: shown, vhost, secrets: secrets.clone() },
                credentials,
                heartbeat: config.heartbeat(),
                name: Arc::clone(&name),
                sink: Arc::clone(sink),
            }
        };
        Ok(Connector { servers: addresses.into_iter().map(server).collect(), first: AtomicUsize::new(0), timeout })
    }

    /// The servers, for texts.
    pub(crate) fn names(&self) -> String {
        self.servers.iter().map(|server| server.place.server.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Connects to the first server that takes it.
    pub(crate) async fn connect(&self) -> Result<Generation, SinkError> {
        let first = self.first.load(Ordering::Relaxed);
        let mut faults: Vec<SinkError> = Vec::new();
        for offset in 0..self.servers.len() {
            let index = (first + offset) % self.servers.len();
            let Some(server) = self.servers.get(index) else { continue };
            let connecting = Generation::connect(server);
            match timeout(CONNECT_TIMEOUT.min(self.timeout), Box::pin(connecting)).await {
                Ok(Ok(generation)) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(generation);
                }
                Ok(Err(error)) => faults.push(error),
                Err(_) => faults.push(SinkError::retryable(format!("{} does not answer", server.place))),
            }
        }
        // What somebody has to mend outweighs what may pass.
        faults.sort_by_key(|fault| fault.kind != SinkErrorKind::Fatal);
        let kind = faults.first().map_or(SinkErrorKind::Retryable, |fault| fault.kind);
        let message = faults.into_iter().map(|fault| fault.message).collect::<Vec<_>>().join("; ");
        Err(SinkError { kind, message })
    }
}
