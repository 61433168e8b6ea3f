//! One connection, from its making to its end, and nothing of it afterwards.
//!
//! A publish whose fate is unknown must not reach the server at a time of the client library's choosing, behind later
//! ones of the same key that went out over another connection. Three things keep that from happening:
//!
//! - **It cannot reconnect.** The library is handed a socket that is connected already, once; it has no address.
//! - **Its end can be forced.** Another handle of the socket is kept here: [`Generation::stop`] shuts it down, and from
//!   then on nothing that is still in the library's queue can be written, also where the library waits for a dead peer.
//! - **Whoever is in doubt stops it**: a confirm that did not come in time, a delivery that was given up, a channel or a
//!   connection that broke.
//!
//! What the kernel or the network still hold then cannot be called back. It is a repeat: an event of a key is sent only
//! after the one before it was confirmed, so whatever comes late has come before, or its successor has not been sent.

use std::{
    io,
    net::{Shutdown, TcpStream as Socket},
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
};

use async_compat::Compat;
use futures_util::StreamExt as _;
use lapin::{
    AsyncTcpStream, Channel, Connection, ConnectionProperties, Event,
    options::ConfirmSelectOptions,
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism},
};
use tokio::{
    net::TcpStream,
    sync::{OnceCell, watch},
    task::JoinHandle,
};
use walgate_sink::{Secret, SinkError, text};

use crate::{
    classify::{self, Place},
    connector::Server,
};

/// Who is there.
#[derive(Clone, Debug)]
pub(crate) enum Credentials {
    /// SASL PLAIN.
    Plain { user: String, password: Secret },
    /// SASL EXTERNAL: the certificate says it.
    External,
}

/// What the server has said apart from confirms.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notices {
    /// Why the connection cannot be used any more.
    pub(crate) broken: Option<String>,
    /// `connection.blocked`, with the server's reason.
    pub(crate) blocked: Option<String>,
}

/// A connection to one server.
pub(crate) struct Generation {
    pub(crate) connection: Connection,
    pub(crate) place: Place,
    /// What the configuration declares was declared over it.
    pub(crate) declared: OnceCell<()>,
    socket: Hold,
    notices: watch::Sender<Notices>,
    /// Channels with confirms switched on and none outstanding.
    idle: Mutex<Vec<Channel>>,
    listener: JoinHandle<()>,
}

/// A handle of a socket that takes the whole connection with it.
struct Hold(Socket);

impl Drop for Hold {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Generation {
    /// Connects to one server. A dropped future leaves nothing behind.
    pub(crate) async fn connect(server: &Server) -> Result<Generation, SinkError> {
        let place = server.place.clone();
        let unopened = |error: io::Error| classify::unopened(&error.into(), &place);
        let stream = dial(&server.host, server.port).await.map_err(unopened)?;
        stream.set_nodelay(true).map_err(unopened)?;
        let socket = Hold(stream.as_fd().try_clone_to_owned().map_err(unopened)?.into());
        let mut stream = AsyncTcpStream::Plain(Compat::new(stream));
        if let Some(connector) = &server.tls {
            stream = stream.into_rustls(connector, &server.host).await.map_err(unopened)?;
        }
        let connection = Box::pin(open(server, stream)).await.map_err(|error| classify::unopened(&error, &place))?;
        let notices = watch::Sender::new(Notices::default());
        let listener = tokio::spawn(listen(
            connection.events_listener(),
            notices.clone(),
            Arc::clone(&server.sink),
            place.clone(),
        ));
        Ok(Generation {
            connection,
            place,
            declared: OnceCell::new(),
            socket,
            notices,
            idle: Mutex::default(),
            listener,
        })
    }

    /// The largest frame that the server takes; 0: any.
    pub(crate) fn frame_max(&self) -> u32 {
        self.connection.configuration().frame_max()
    }

    /// A channel for publishing, to one batch at a time.
    pub(crate) async fn publishing_channel(&self) -> lapin::Result<Channel> {
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        if let Some(channel) = kept.filter(|channel| channel.status().connected()) {
            return Ok(channel);
        }
        let channel = self.connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Keeps a channel for the next batch. Every confirm of it has come.
    pub(crate) fn keep(&self, channel: Channel) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
    }

    /// A channel for declarations.
    pub(crate) async fn plain_channel(&self) -> Result<Channel, SinkError> {
        self.connection.create_channel().await.map_err(|error| {
            let why = text::cause(&error, &self.place.secrets);
            SinkError::retryable(format!("no channel on {}: {why}", self.place))
        })
    }

    /// Ends it, whatever it is about. Returns at once; may be called again.
    pub(crate) fn stop(&self, why: &str) {
        self.notices.send_modify(|notices| {
            notices.broken.get_or_insert_with(|| why.to_owned());
        });
        let _ = self.socket.0.shutdown(Shutdown::Both);
    }

    /// Whether it can be used.
    pub(crate) fn is_sound(&self) -> bool {
        self.notices.borrow().broken.is_none() && self.connection.status().connected()
    }

    /// What the server has said, as it comes.
    pub(crate) fn notices(&self) -> watch::Receiver<Notices> {
        self.notices.subscribe()
    }

    /// Why the server takes nothing for the time being.
    pub(crate) fn blocked(&self) -> Option<String> {
        self.notices.borrow().blocked.clone()
    }

    /// Why it cannot be used any more, for an error text.
    pub(crate) fn fault(&self) -> String {
        self.notices.borrow().broken.clone().unwrap_or_else(|| "the connection broke".to_owned())
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation").field("place", &self.place).finish_non_exhaustive()
    }
}

/// A connection to the first address of the host that takes one.
async fn dial(host: &str, port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((host, port)).await
}

/// The protocol's first words over a socket.
async fn open(server: &Server, stream: AsyncTcpStream<Compat<TcpStream>>) -> lapin::Result<Connection> {
    let (userinfo, mechanism) = match &server.credentials {
        Credentials::Plain { user, password } => {
            (AMQPUserInfo { username: user.clone(), password: password.expose().to_owned() }, SASLMechanism::Plain)
        }
        Credentials::External => {
            (AMQPUserInfo { username: String::new(), password: String::new() }, SASLMechanism::External)
        }
    };
    let uri = AMQPUri {
        scheme: if server.tls.is_some() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority { userinfo, host: server.host.clone(), port: server.port },
        vhost: server.place.vhost.clone(),
        query: AMQPQueryString {
            heartbeat: Some(server.heartbeat),
            auth_mechanism: Some(mechanism),
            ..AMQPQueryString::default()
        },
    };
    // The library recovers nothing by itself unless it is told to, and there is no second socket for it.
    let properties = ConnectionProperties::default().with_connection_name(server.name.as_bytes().into());
    let once = Mutex::new(Some(stream));
    let connect = move |_: AMQPUri, _| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        let gone = || io::Error::new(io::ErrorKind::ConnectionAborted, "the server closed the connection");
        std::future::ready(stream.ok_or_else(|| gone().into()))
    };
    Connection::connector(uri, lapin::runtime::default_runtime()?, connect, properties).await
}

/// Takes in what the server says, until the connection ends.
async fn listen(
    events: impl futures_util::Stream<Item = Event> + Send,
    notices: watch::Sender<Notices>,
    sink: Arc<str>,
    place: Place,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                let reason = text::excerpt(reason.as_bytes(), &place.secrets);
                tracing::warn!(sink = %sink, server = %place, reason, "the server blocks its publishers: waiting until it has room again");
                notices.send_modify(|notices| notices.blocked = Some(reason));
            }
            Event::ConnectionUnblocked => {
                tracing::info!(sink = %sink, server = %place, "the server takes messages again");
                notices.send_modify(|notices| notices.blocked = None);
            }
            Event::Error(error) => {
                let why = match classify::reply(&error) {
                    Some(reply) => format!("the server said `{}`", classify::said(reply, &place.secrets)),
                    None => text::cause(&error, &place.secrets),
                };
                // One that closed a channel is the channel's.
                if !error.is_amqp_soft_error() {
                    notices.send_modify(|notices| {
                        notices.broken.get_or_insert(why);
                    });
                }
            }
            _ => {}
        }
    }
}

/// Stops a generation unless it is told that nothing is in doubt: also when a future is dropped.
pub(crate) struct Doubt(Option<Arc<Generation>>);

impl Doubt {
    pub(crate) fn over(generation: &Arc<Generation>) -> Self {
        Doubt(Some(Arc::clone(generation)))
    }

    /// Every answer is there.
    pub(crate) fn dispel(mut self) {
        self.0 = None;
    }
}

impl Drop for Doubt {
    fn drop(&mut self) {
        if let Some(generation) = self.0.take() {
            generation.stop("the connection was given up since a confirm is missing");
        }
    }
}
