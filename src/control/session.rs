//! The SQL connection as the second signal.
//!
//! While the WAL stream is not being read (the byte window is full), neither a shutdown's keepalive storm nor 57P01
//! can be seen on it, and PostgreSQL's fast shutdown waits for us. This connection has nothing in flight most of the
//! time, so its end is seen at once: whoever streams closes the replication socket as soon as the session is lost.
//! It also reads the slots every few seconds, for `status` and the metrics.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_postgres::Client;

use super::{
    link::{Link, LinkError},
    query::QueryError,
    slot::{SlotReport, slot_report},
};

/// How the session keeps its connection.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The slot whose status is read.
    pub slot: String,
    /// Time between two looks at the slots.
    pub every: Duration,
    /// Time that connecting may take, and that one look may take, before the connection counts as lost.
    pub patience: Duration,
    /// Pause before the second attempt to reconnect; it doubles with each further one. Jitter takes off up to half.
    pub backoff: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
    /// The pause where somebody has to mend something first: wrong password, no `pg_hba.conf` entry, no database.
    pub backoff_refused: Duration,
}

impl SessionOptions {
    /// The defaults, for a slot.
    pub fn new(slot: impl Into<String>) -> Self {
        SessionOptions {
            slot: slot.into(),
            every: Duration::from_secs(2),
            patience: Duration::from_secs(10),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
            backoff_refused: Duration::from_secs(30),
        }
    }
}

/// What the session last went through.
#[derive(Clone, Debug)]
pub enum SessionEvent {
    /// The first attempt to connect is under way.
    Connecting,
    /// Connected, and the server answers.
    Up,
    /// The connection ended, did not answer in time, or could not be made.
    Lost(LinkError),
}

/// The session at one moment.
///
/// A watch keeps only its newest value: a loss that is followed at once by a new connection could be overlooked by its
/// event alone. Compare `connection` too: another number than before means that a connection was lost in between.
#[derive(Clone, Debug)]
pub struct SessionState {
    /// What happened last.
    pub event: SessionEvent,
    /// Connections made so far.
    pub connection: u64,
    /// The loss of the last connection, and attempts that failed since then.
    pub failed_attempts: u32,
}

impl SessionState {
    /// Whether the connection with this number still stands.
    #[must_use]
    pub fn is_up(&self, connection: u64) -> bool {
        self.connection == connection && matches!(self.event, SessionEvent::Up)
    }
}

/// The SQL connection, kept alive by a task of its own until this is dropped.
#[derive(Debug)]
pub struct Session {
    state: watch::Receiver<SessionState>,
    slots: watch::Receiver<Option<Arc<SlotReport>>>,
    client: watch::Receiver<Option<Arc<Client>>>,
    task: JoinHandle<()>,
}

impl Session {
    /// Starts the task: `connect` is called for the first connection and for each one after a loss.
    pub fn spawn<F, Fut>(options: SessionOptions, connect: F) -> Session
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Link, LinkError>> + Send + 'static,
    {
        let connecting = SessionState { event: SessionEvent::Connecting, connection: 0, failed_attempts: 0 };
        let (state_sender, state) = watch::channel(connecting);
        let (slots_sender, slots) = watch::channel(None);
        let (client_sender, client) = watch::channel(None);
        let keeper = Keeper { options, state: state_sender, slots: slots_sender, client: client_sender };
        let task = tokio::spawn(async move { keeper.keep(connect).await });
        Session { state, slots, client, task }
    }

    /// The state, and a signal at each change of it.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<SessionState> {
        self.state.clone()
    }

    /// The newest look at the slots, and a signal at each new one. It is kept while the connection is lost: then it
    /// is as old as the loss.
    #[must_use]
    pub fn slots(&self) -> watch::Receiver<Option<Arc<SlotReport>>> {
        self.slots.clone()
    }

    /// The client of the connection that stands, for further queries; none while there is none. They share the
    /// connection with the look at the slots, so a query that may take long needs a timeout shorter than `patience`.
    #[must_use]
    pub fn client(&self) -> Option<Arc<Client>> {
        self.client.borrow().clone()
    }

    /// As [`Session::client`], for whoever lives longer than a look.
    #[must_use]
    pub fn clients(&self) -> watch::Receiver<Option<Arc<Client>>> {
        self.client.clone()
    }

    /// Waits for a connection that stands and returns its number.
    ///
    /// # Errors
    /// The first loss or failed attempt after this was called; the session goes on trying.
    pub async fn up(&self) -> Result<u64, LinkError> {
        let mut state = self.state.clone();
        loop {
            let now = state.borrow_and_update().clone();
            match now.event {
                SessionEvent::Up => return Ok(now.connection),
                SessionEvent::Lost(error) => return Err(error),
                SessionEvent::Connecting => {}
            }
            if state.changed().await.is_err() {
                return Err(LinkError::new("the SQL session has ended"));
            }
        }
    }

    /// Ends the connection and waits for its task.
    pub async fn close(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeper {
    options: SessionOptions,
    state: watch::Sender<SessionState>,
    slots: watch::Sender<Option<Arc<SlotReport>>>,
    client: watch::Sender<Option<Arc<Client>>>,
}

impl Keeper {
    async fn keep<F, Fut>(self, connect: F)
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Link, LinkError>>,
    {
        let mut failed_attempts = 0u32;
        loop {
            let error = match timeout(self.options.patience, connect()).await {
                Ok(Ok(link)) => {
                    let (error, answered) = self.hold(link).await;
                    self.client.send_replace(None);
                    if answered {
                        failed_attempts = 0;
                    }
                    error
                }
                Ok(Err(error)) => error,
                Err(_) => LinkError::new(format!(
                    "the SQL connection could not be made within {} s",
                    self.options.patience.as_secs_f32()
                )),
            };
            failed_attempts = failed_attempts.saturating_add(1);
            let pause = pause(&self.options, &error, failed_attempts, fastrand::f64());
            tracing::warn!(
                error = %error,
                sqlstate = error.sqlstate.as_ref().map(|state| state.code().to_owned()),
                retry_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
                "sql connection lost"
            );
            self.state.send_modify(|state| {
                state.event = SessionEvent::Lost(error);
                state.failed_attempts = failed_attempts;
            });
            sleep(pause).await;
        }
    }

    /// Holds one connection until it is lost. The flag says whether the server ever answered on it.
    async fn hold(&self, link: Link) -> (LinkError, bool) {
        let Link { client, mut driver } = link;
        let client = Arc::new(client);
        let mut answered = false;
        let ended = |end: Result<(), tokio_postgres::Error>| match end {
            Err(error) => LinkError::from(error),
            Ok(()) => LinkError::new("the SQL connection was closed"),
        };
        loop {
            let next = Instant::now() + self.options.every;
            let mut look = Box::pin(timeout(self.options.patience, slot_report(&client, &self.options.slot)));
            let result = tokio::select! {
                biased;
                end = &mut driver => {
                    // The server's last word may have gone to the query that was under way.
                    let said = match look.as_mut().now_or_never() {
                        Some(Ok(Err(QueryError::Sql { source, .. }))) if source.code().is_some() => Some(source),
                        _ => None,
                    };
                    return (said.map_or_else(|| ended(end), LinkError::from), answered);
                }
                result = look.as_mut() => result,
            };
            drop(look);
            match result {
                Ok(Ok(report)) => {
                    self.slots.send_replace(Some(Arc::new(report)));
                    if !answered {
                        answered = true;
                        self.client.send_replace(Some(client.clone()));
                        self.state.send_modify(|state| {
                            state.event = SessionEvent::Up;
                            state.connection += 1;
                            state.failed_attempts = 0;
                        });
                        tracing::debug!("sql connection up");
                    }
                }
                // The connection itself is over: its own end says why, unless the server has said so here.
                Ok(Err(error)) if client.is_closed() || is_fatal(&error) => {
                    let said = match error {
                        QueryError::Sql { source, .. } if source.code().is_some() => Some(LinkError::from(source)),
                        _ => None,
                    };
                    if let Some(said) = said {
                        return (said, answered);
                    }
                    let end = timeout(self.options.patience, &mut driver).await;
                    return (end.map_or_else(|_| LinkError::new("the SQL connection was closed"), ended), answered);
                }
                // One look failed (a statement timeout, say) on a connection that stands.
                Ok(Err(error)) => tracing::warn!(error = %error, "cannot read the replication slots"),
                Err(_) => {
                    let patience = self.options.patience.as_secs_f32();
                    let message = format!("the server did not answer on the SQL connection within {patience} s");
                    return (LinkError::new(message), answered);
                }
            }
            tokio::select! {
                biased;
                end = &mut driver => return (ended(end), answered),
                () = sleep_until(next) => {}
            }
        }
    }
}

/// Class 57P (the server ends the connection) and class 08 (it is broken) mean the end of a connection even where its
/// socket has not said so yet.
fn is_fatal(error: &QueryError) -> bool {
    let QueryError::Sql { source, .. } = error else { return false };
    source.code().is_none_or(|state| state.code().starts_with("57P") || state.code().starts_with("08"))
}

/// The pause before the next attempt; `random` is in [0, 1).
fn pause(options: &SessionOptions, error: &LinkError, failed_attempts: u32, random: f64) -> Duration {
    let longest = options.backoff_max;
    let pause = if error.needs_somebody() {
        options.backoff_refused
    } else {
        let doublings = failed_attempts.saturating_sub(1).min(20);
        options.backoff.saturating_mul(1 << doublings).min(longest)
    };
    pause.mul_f64(1.0 - random.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_postgres::error::SqlState;

    #[test]
    fn pauses_double_up_to_a_bound_and_jitter_takes_off_up_to_half() {
        let options = SessionOptions::new("walgate");
        let reset = LinkError::new("connection reset by peer");
        let millis = |attempt, random| pause(&options, &reset, attempt, random).as_millis();
        assert_eq!([1, 2, 3, 4].map(|attempt| millis(attempt, 0.0)), [100, 200, 400, 800]);
        assert_eq!([1, 2].map(|attempt| millis(attempt, 1.0)), [50, 100]);
        assert_eq!(millis(u32::MAX, 0.0), 1_000);
    }

    #[test]
    fn what_somebody_must_mend_is_tried_slowly() {
        let options = SessionOptions::new("walgate");
        for state in [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION] {
            let error = LinkError { message: "no".into(), sqlstate: Some(state) };
            assert_eq!(pause(&options, &error, 1, 0.0), Duration::from_secs(30));
            assert!(!error.server_is_going());
        }
        let going = LinkError { message: "bye".into(), sqlstate: Some(SqlState::ADMIN_SHUTDOWN) };
        assert!(going.server_is_going() && !going.needs_somebody());
    }

    #[tokio::test]
    async fn an_attempt_that_fails_is_reported_and_tried_again() {
        let (attempt, mut attempts) = watch::channel(0u32);
        let options = SessionOptions { backoff: Duration::from_millis(1), ..SessionOptions::new("walgate") };
        let session = Session::spawn(options, move || {
            attempt.send_modify(|count| *count += 1);
            async { Err(LinkError::new("refused")) }
        });
        assert_eq!(session.up().await.unwrap_err().message, "refused");
        attempts.wait_for(|count| *count >= 3).await.unwrap();
        let mut states = session.state();
        let state = states.wait_for(|state| state.failed_attempts >= 2).await.unwrap().clone();
        assert!(!state.is_up(0) && session.client().is_none());
        session.close().await;
    }

    #[tokio::test]
    async fn an_attempt_that_hangs_is_given_up() {
        let options = SessionOptions { patience: Duration::from_millis(5), ..SessionOptions::new("walgate") };
        let session = Session::spawn(options, std::future::pending);
        assert!(session.up().await.unwrap_err().message.contains("could not be made within"));
    }
}
