//! The HTTP client, and a look at the endpoint without a request.

use std::{sync::Arc, time::Duration};

use reqwest::{Client, Url, redirect};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use walgate_sink::{SinkError, text, tls};

use crate::guard::{Guard, Guarded, Lookup};

/// Time to connect at the most: a side that has come back is found soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that nobody uses is kept. Servers close theirs after 5 to 75 seconds.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The client. It takes nothing from the environment: no proxy, no certificates beyond `tls`.
///
/// With a guard it connects to no address that does not pass.
pub(crate) fn client(
    tls: ClientConfig,
    http2: bool,
    attempt: Duration,
    guard: Option<Guarded<impl Lookup>>,
) -> Result<Client, SinkError> {
    let builder = match guard {
        Some(guard) => Client::builder().dns_resolver(guard),
        None => Client::builder(),
    };
    let builder = builder
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .referer(false)
        // Attempts are the lane's, and are counted there.
        .retry(reqwest::retry::never())
        .connect_timeout(CONNECT_TIMEOUT.min(attempt))
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Duration::from_secs(15))
        // An HTTP/2 connection outlives its requests: without a ping a dead one would swallow each of them in turn.
        .http2_keep_alive_interval(Duration::from_secs(5))
        .http2_keep_alive_timeout(Duration::from_secs(5));
    let builder = if http2 { builder } else { builder.http1_only() };
    builder.build().map_err(|error| SinkError::fatal(format!("the HTTP client cannot be made: {error}")))
}

/// Resolves the endpoint's host, connects and, for https, shakes hands. No request is sent. With a guard it connects to no
/// address that does not pass: a probe must not tell what listens where no event may lead.
pub(crate) async fn probe(
    url: &Url,
    tls: Arc<ClientConfig>,
    attempt: Duration,
    guard: Option<&Guard>,
) -> Result<(), SinkError> {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = url.port_or_known_default().unwrap_or_default();
    let limit = CONNECT_TIMEOUT.min(attempt);
    let late = |what: &str| SinkError::retryable(format!("{what} took longer than {limit:?}"));

    let addresses: Vec<_> = timeout(limit, tokio::net::lookup_host((host, port)))
        .await
        .map_err(|_| late(&format!("the look-up of host {host}")))?
        .map_err(|error| SinkError::retryable(format!("host {host} cannot be resolved: {error}")))?
        .collect();
    let addresses = match guard {
        Some(guard) => {
            guard.pass(host, addresses.into_iter()).map_err(|refused| SinkError::fatal(refused.to_string()))?
        }
        None => addresses,
    };
    let stream = timeout(limit, TcpStream::connect(&*addresses))
        .await
        .map_err(|_| late(&format!("connecting to {host}:{port}")))?
        .map_err(|error| SinkError::retryable(format!("no connection to {host}:{port}: {error}")))?;
    if url.scheme() == "http" {
        return Ok(());
    }
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| SinkError::fatal(format!("{host} is not a host name that a certificate can have")))?;
    let handshake = TlsConnector::from(tls).connect(name, stream);
    match timeout(limit, handshake).await.map_err(|_| late(&format!("the TLS handshake with {host}:{port}")))? {
        Ok(_) => Ok(()),
        Err(error) => Err(match tls::certificate_fault(&error, tls::Terms::ENDPOINT) {
            Some(fault) => SinkError::fatal(format!("{host}:{port} is not trusted: {fault}")),
            None => {
                let cause = text::cause(&error, &[]);
                SinkError::retryable(format!("no TLS connection to {host}:{port}: {cause}"))
            }
        }),
    }
}
