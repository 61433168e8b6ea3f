//! One connection, from its making to its end, and nothing of it afterwards.
//!
//! The client library reconnects by itself, and then sends what was still in its queue. A publish whose fate is
//! unknown would so reach the server at a time of the library's choosing, behind later ones of the same key that went
//! out over another connection. Three things keep that from happening:
//!
//! - **It cannot reconnect.** Once it is connected, the pool of servers is replaced by an address where nothing can
//!   listen, before anything is published. What is in its queue when the connection breaks goes nowhere.
//! - **It has a thread and a runtime of its own**, and the library's tasks with their queue, their buffer and their
//!   socket are in there. [`Generation::stop`] ends them all, also where a write is stuck in a dead connection and the
//!   library would go on for minutes. The next generation begins once the last one has gone.
//! - **Whoever is in doubt stops it**: an acknowledgement that did not come in time, a delivery that was given up, a
//!   broken connection.
//!
//! What the kernel or the network still hold then cannot be called back. It is a repeat: an event of a key is sent only
//! after the one before it was acknowledged, so whatever comes late has come before, or its successor has not been sent.

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError,
    jetstream::{Context, context::ContextBuilder},
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
};

use crate::replies::Replies;

/// An address where nothing can listen: connecting to port 0 fails at once.
const NOWHERE: &str = "nats://127.0.0.1:0";
/// Refusals by the server that are remembered; each belongs to a publish whose sender is told within moments.
const MAX_DENIALS: usize = 1024;

/// What the server has said apart from answers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notices {
    /// Why the connection cannot be used any more.
    pub(crate) broken: Option<String>,
    /// The server's last complaint about the connection as a whole.
    pub(crate) complaint: Option<String>,
    /// Subjects, as the server quotes them, that the user may not publish to; each with its number.
    denials: Vec<(u64, String)>,
    denied: u64,
}

impl Notices {
    /// How many publishes were refused so far.
    pub(crate) fn denied(&self) -> u64 {
        self.denied
    }

    /// Whether a publish to the subject was refused after the first `since`.
    pub(crate) fn denies(&self, subject: &str, since: u64) -> bool {
        let quoted = format!("{subject:?}");
        self.denials.iter().any(|(number, denied)| *number > since && *denied == quoted)
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Disconnected | Event::Closed => {
                self.broken.get_or_insert_with(|| "the connection broke".to_owned());
            }
            Event::ServerError(ServerError::Other(text)) => self.complain(&text),
            Event::ServerError(error) => self.complain(error.to_string().trim_start_matches("nats: ")),
            _ => {}
        }
    }

    fn complain(&mut self, text: &str) {
        match text.strip_prefix("Permissions Violation for Publish to ") {
            Some(subject) => {
                self.denied += 1;
                if self.denials.len() == MAX_DENIALS {
                    self.denials.remove(0);
                }
                self.denials.push((self.denied, subject.to_owned()));
            }
            None => self.complaint = Some(walgate_sink::text::excerpt(text.as_bytes(), &[])),
        }
    }
}

/// A connection to one server.
pub(crate) struct Generation {
    pub(crate) client: Client,
    pub(crate) context: Context,
    runtime: Handle,
    /// Inboxes without an answer outstanding.
    inboxes: Mutex<Vec<Replies>>,
    /// `host:port`.
    pub(crate) server: String,
    notices: watch::Sender<Notices>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
    /// Its other end goes when everything else has gone.
    gone: watch::Receiver<()>,
}

impl Generation {
    /// Connects to one server. `options` hold how; what concerns reconnecting is set here. A dropped future leaves
    /// nothing behind.
    pub(crate) async fn connect(
        address: ServerAddr,
        server: String,
        options: ConnectOptions,
        ack_timeout: Duration,
    ) -> Result<Generation, ConnectError> {
        let notices = watch::Sender::new(Notices::default());
        let (stop, stopped) = oneshot::channel();
        let (ready, connected) = oneshot::channel();
        let (going, gone) = watch::channel(());
        let heard = notices.clone();
        let opening = async move {
            let options = options.ignore_discovered_servers().max_reconnects(1).event_callback(move |event| {
                heard.send_modify(|notices| notices.take_in(event));
                std::future::ready(())
            });
            let client = options.connect(address).await?;
            client
                .set_server_pool(NOWHERE)
                .await
                .map_err(|error| ConnectError::with_source(ConnectErrorKind::Io, error))?;
            // Made in here, since it starts a task too.
            let context = ContextBuilder::new().timeout(ack_timeout).build(client.clone());
            Ok((client, context, Handle::current()))
        };
        let thread = std::thread::Builder::new().name("walgate-nats".to_owned());
        let io = |error: std::io::Error| ConnectError::with_source(ConnectErrorKind::Io, error);
        thread.spawn(move || live(opening, ready, stopped, going)).map_err(io)?;
        // Held by this future until it is done: dropping it stops the thread.
        let (client, context, runtime) = connected
            .await
            .map_err(|_| io(std::io::Error::other("the thread of the connection ended by itself")))??;
        Ok(Generation {
            client,
            context,
            runtime,
            inboxes: Mutex::default(),
            server,
            notices,
            stop: Mutex::new(Some(stop)),
            gone,
        })
    }

    /// Does something on the connection's own thread. `None`: the connection has ended before it was done.
    pub(crate) async fn run<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Option<T> {
        self.runtime.spawn(work).await.ok()
    }

    /// An inbox for the answers to one batch; `None`: the connection has gone.
    pub(crate) async fn replies(&self) -> Option<Replies> {
        let kept = self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(replies) => Some(replies),
            None => Replies::open(&self.client).await.ok(),
        }
    }

    /// Keeps an inbox for the next batch. All its answers have come.
    pub(crate) fn keep(&self, replies: Replies) {
        self.inboxes.lock().unwrap_or_else(PoisonError::into_inner).push(replies);
    }

    /// Ends it, whatever it is about. Returns at once; may be called again.
    pub(crate) fn stop(&self, why: &str) {
        self.notices.send_modify(|notices| {
            notices.broken.get_or_insert_with(|| why.to_owned());
        });
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits until nothing is left of it. For one that was stopped.
    pub(crate) async fn gone(&self) {
        let mut gone = self.gone.clone();
        while gone.changed().await.is_ok() {}
    }

    /// Whether it can be used.
    pub(crate) fn is_sound(&self) -> bool {
        self.notices.borrow().broken.is_none()
    }

    /// What the server has said, as it comes.
    pub(crate) fn notices(&self) -> watch::Receiver<Notices> {
        self.notices.subscribe()
    }

    /// Why it cannot be used any more, for an error text.
    pub(crate) fn fault(&self) -> String {
        let notices = self.notices.borrow();
        let broken = notices.broken.as_deref().unwrap_or("the connection broke");
        match &notices.complaint {
            Some(complaint) => format!("{broken} (the server said: {complaint})"),
            None => broken.to_owned(),
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.stop("it is not used any more");
    }
}

/// The life of a generation's thread.
fn live<T: Send>(
    opening: impl Future<Output = Result<T, ConnectError>>,
    ready: oneshot::Sender<Result<T, ConnectError>>,
    mut stopped: oneshot::Receiver<()>,
    going: watch::Sender<()>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(ConnectError::with_source(ConnectErrorKind::Io, error)));
            return;
        }
    };
    runtime.block_on(async {
        let connected = tokio::select! {
            biased;
            _ = &mut stopped => return,
            connected = opening => connected,
        };
        let alive = connected.is_ok();
        if ready.send(connected).is_ok() && alive {
            // The tasks of the client run on this thread meanwhile.
            let _ = stopped.await;
        }
    });
    // Drops every task, and does not wait for a look-up of a name that is still under way.
    runtime.shutdown_background();
    drop(going);
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
            generation.stop("the connection was given up since an acknowledgement is missing");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaint(text: &str) -> Event {
        Event::ServerError(ServerError::Other(text.to_owned()))
    }

    #[test]
    fn refusals_are_told_from_complaints() {
        let mut notices = Notices::default();
        notices.take_in(complaint("Permissions Violation for Publish to \"orders.a\""));
        assert!(notices.denies("orders.a", 0));
        assert!(!notices.denies("orders.a", 1), "it was refused before");
        assert!(!notices.denies("orders", 0));
        notices.take_in(complaint("Stale Connection"));
        notices.take_in(Event::Disconnected);
        assert_eq!(notices.complaint.as_deref(), Some("Stale Connection"));
        assert!(notices.broken.is_some());
        for n in 0..3 * MAX_DENIALS {
            notices.take_in(complaint(&format!("Permissions Violation for Publish to \"s{n}\"")));
        }
        assert_eq!(notices.denials.len(), MAX_DENIALS);
        assert_eq!(notices.denied(), 3 * MAX_DENIALS as u64 + 1);
    }
}
