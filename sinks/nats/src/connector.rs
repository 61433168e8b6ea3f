//! How connections are made: to which servers, as whom, over what.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_nats::{ConnectError, ConnectOptions};
use rustls::ClientConfig;
use walgate_sink::{
    Secret, SinkError, SinkErrorKind,
    tls::{self, Spoken, Terms},
};

use crate::{
    NatsConfig, classify,
    config::{self, Server},
    generation::Generation,
};

/// Time to connect to one server at the most: one that has come back is found soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an idle connection is tried. One that answers none of three is dead.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Connector {
    servers: Vec<Server>,
    /// The server that answered last is asked first.
    first: AtomicUsize,
    config: NatsConfig,
    tls: ClientConfig,
    secrets: Vec<Secret>,
    name: String,
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
        config: &NatsConfig,
        servers: Vec<Server>,
        name: &str,
        timeout: Duration,
    ) -> Result<Self, SinkError> {
        let wanted = config.tls.is_some() || servers.iter().any(|server| server.address.tls_required());
        // A server may ask for TLS without that.
        let spoken = if wanted { Spoken::Always } else { Spoken::Perhaps };
        Ok(Connector {
            servers,
            first: AtomicUsize::new(0),
            tls: tls::client_config(&config.tls_settings(), spoken, Terms::SERVERS)?,
            secrets: config.secrets(),
            config: config.clone(),
            name: format!("walgate {name}"),
            timeout,
        })
    }

    /// The servers, for texts.
    pub(crate) fn names(&self) -> String {
        self.servers.iter().map(|server| server.shown.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// What must not appear in an error text.
    pub(crate) fn secrets(&self) -> &[Secret] {
        &self.secrets
    }

    /// Connects to the first server that takes it.
    pub(crate) async fn connect(&self) -> Result<Generation, SinkError> {
        let first = self.first.load(Ordering::Relaxed);
        let mut faults: Vec<SinkError> = Vec::new();
        for offset in 0..self.servers.len() {
            let index = (first + offset) % self.servers.len();
            let Some(server) = self.servers.get(index) else { continue };
            match self.connect_to(server).await {
                Ok(generation) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(generation);
                }
                Err(error) => faults.push(classify::unconnected(&error, &server.shown, &self.secrets)),
            }
        }
        // What somebody has to mend outweighs what may pass.
        faults.sort_by_key(|fault| fault.kind != SinkErrorKind::Fatal);
        let kind = faults.first().map_or(SinkErrorKind::Retryable, |fault| fault.kind);
        let message = faults.into_iter().map(|fault| fault.message).collect::<Vec<_>>().join("; ");
        Err(SinkError { kind, message })
    }

    async fn connect_to(&self, server: &Server) -> Result<Generation, ConnectError> {
        let options = self.options()?;
        Generation::connect(server.address.clone(), server.shown.clone(), options, self.timeout).await
    }

    fn options(&self) -> Result<ConnectOptions, std::io::Error> {
        let NatsConfig { user, password, token, nkey, creds, .. } = &self.config;
        let options = match (user, password, token, nkey, creds) {
            (Some(user), Some(password), ..) => {
                ConnectOptions::with_user_and_password(user.clone(), password.expose().to_owned())
            }
            (_, _, Some(token), ..) => ConnectOptions::with_token(token.expose().to_owned()),
            (_, _, _, Some(seed), _) => ConnectOptions::with_nkey(seed.expose().trim().to_owned()),
            (_, _, _, _, Some(creds)) => config::credentials(creds)?,
            _ => ConnectOptions::new(),
        };
        let options = match &self.config.inbox_prefix {
            Some(prefix) => options.custom_inbox_prefix(prefix),
            None => options,
        };
        Ok(options
            .name(&self.name)
            .require_tls(self.config.tls.as_ref().is_some_and(|tls| tls.required))
            .tls_client_config(self.tls.clone())
            .connection_timeout(CONNECT_TIMEOUT.min(self.timeout))
            .request_timeout(Some(self.timeout))
            .ping_interval(PING_INTERVAL))
    }
}
