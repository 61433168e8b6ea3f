//! The gateway: wires the source, the router, the checkpoint and the lanes together, and keeps them going.
//!
//! [`Gateway::run`] connects, streams, reconnects with a pause, and at the end drains. What it does about each way in
//! which a connection ends stands in one place, `Gateway::after`.

mod budget;
mod connection;
mod intake;
mod lanes;
mod pressure;
mod pulse;
mod reload;
mod requests;
mod retention;
mod status;
mod stop;
mod window;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use walgate_sink::Lsn;

use self::connection::{Ended, SessionGuard};
pub use self::{
    budget::BudgetWatch,
    intake::{Course, Intake, IntakeError},
    lanes::{Ending, Endings, LanePlan, Lanes, NamedLane},
    pulse::{Pulse, is_alive},
    reload::{Generation, Reload},
    status::{GatewayStatus, Identity, SinkStatus, SourceState, StatusBoard},
};
use crate::{
    checkpoint::Checkpoint,
    config::{DeadLetters, Limits, WalBudget},
    control::Session,
    postgres::ConnectSettings,
    source::{Identity as ServerIdentity, ReplicationStream, Retry, SourceError, StreamOptions},
    telemetry::failpoint,
};

/// Pauses between two attempts to reach the slot.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LONGEST: Duration = Duration::from_secs(1);
/// Where somebody has to mend something first.
const RECONNECT_SLOWLY: Duration = Duration::from_secs(30);
/// Time for the end of a stream before a reload, and the least that its barrier gets.
const RELOAD_CLOSE: Duration = Duration::from_secs(2);
/// Where another process reads the slot.
const STANDBY: Duration = Duration::from_secs(1);

/// Why the gateway has stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The source cannot go on, and trying again would not help.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What came from the source cannot be taken.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The server is not the one that was streamed from before.
    #[error("{0}")]
    OtherHistory(String),
    /// A lane's task panicked.
    #[error(
        "the lane of sink `{0}` broke by a fault in walgate (a panic; see the log): what it held is delivered again \
         after a restart. Please report it"
    )]
    Lane(String),
}

/// Everything that the gateway is made of.
pub struct Gateway {
    /// Where PostgreSQL is.
    pub settings: ConnectSettings,
    /// Slot, publication, nap, bounds.
    pub options: StreamOptions,
    /// Takes the stream apart.
    pub intake: Intake,
    /// What is settled.
    pub checkpoint: Checkpoint,
    /// The sinks' lanes, in the order of the configuration.
    pub lanes: Lanes,
    /// Tells of lanes that end by themselves.
    pub endings: Endings,
    /// Wishes for another configuration.
    pub reloads: mpsc::Receiver<Reload>,
    /// The SQL connection.
    pub session: Session,
    /// How much of the WAL budget is used: its level says when a lane has to let go.
    pub budget: BudgetWatch,
    /// Bounds.
    pub limits: Limits,
    /// Where the state is shown.
    pub board: StatusBoard,
    /// Time that the end may take.
    pub shutdown_timeout: Duration,
    /// What is done about WAL that is kept.
    pub wal_budget: WalBudget,
    /// What is kept of dead letters, for as long as anybody wants to know.
    pub dead_letters: watch::Sender<DeadLetters>,
    /// Whether walgate's own tables may be used.
    pub tables: bool,
}

/// What follows from the end of a connection, or of an attempt to make one.
enum Next {
    /// Another attempt, after a pause, and why.
    Reconnect { pause: Pause, why: String },
    /// Another configuration, and then another connection.
    Reload,
    /// The end.
    Stop,
    /// The end, with an error.
    Fail(GatewayError),
}

/// What is remembered from one connection to the next.
struct Attempts {
    first: Option<ServerIdentity>,
    failures: u32,
    /// A configuration that waits for the end of a transaction.
    reload: Option<Reload>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    Short,
    Slow,
    Standby,
}

impl Gateway {
    /// Streams until `stop` becomes true or nothing can go on, then drains.
    ///
    /// # Errors
    /// The gateway stopped by itself; everything that was settled until then has been confirmed.
    pub async fn run(mut self, stop: watch::Sender<bool>) -> Result<Summary, GatewayError> {
        self.board.set_lanes(self.checkpoint.clone(), self.lanes.named());
        self.board.generation(1);
        self.board.set_slot(self.session.slots());
        let mut beside = tokio::task::JoinSet::new();
        let wal_budget = watch::Sender::new(self.wal_budget.clone());
        beside.spawn(pressure::serve(self.budget.level(), wal_budget.subscribe(), self.board.clone()));
        if self.tables {
            let (clients, slot) = (self.session.clients(), self.options.slot.clone());
            beside.spawn(requests::serve(clients.clone(), slot.clone(), self.board.clone()));
            beside.spawn(retention::serve(clients, slot, self.dead_letters.subscribe(), self.board.clone()));
        }
        let mut stopped = stop.subscribe();
        let mut state = Attempts { first: None, failures: 0, reload: None };
        let (stream, result) = loop {
            let (stream, next) = self.one_connection(&mut state, &mut stopped).await;
            if let Some(reload) = state.reload.take_if(|_| !self.intake.in_transaction() && !self.intake.is_halted()) {
                // In order, so that its walsender has gone when the next one comes.
                if let (Some(stream), Next::Reload) = (stream, next) {
                    stream.shutdown(std::time::Instant::now() + RELOAD_CLOSE).await;
                    self.take_up(reload, &wal_budget).await;
                    continue;
                }
                self.take_up(reload, &wal_budget).await;
                continue;
            }
            match next {
                Next::Reload => {}
                Next::Stop => break (stream, Ok(())),
                Next::Fail(error) => break (stream, Err(error)),
                Next::Reconnect { pause, why } => {
                    if let Some(stream) = stream {
                        stream.abort();
                    }
                    state.failures = state.failures.saturating_add(1);
                    let pause = self.announce(pause, &why, state.failures);
                    tokio::select! {
                        _ = stopped.wait_for(|stop| *stop) => break (None, Ok(())),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        };
        let summary = stop::stop(self, stream).await;
        result.map(|()| summary)
    }

    async fn one_connection(
        &mut self,
        attempts: &mut Attempts,
        stop: &mut watch::Receiver<bool>,
    ) -> (Option<ReplicationStream>, Next) {
        let connect = async {
            // The SQL connection first: it is the second signal, and must stand while the stream does.
            let connection = self.session.up().await.map_err(|error| Next::Reconnect {
                pause: if error.needs_somebody() { Pause::Slow } else { Pause::Short },
                why: error.to_string(),
            })?;
            let flush = self.checkpoint.subscribe();
            let stream =
                ReplicationStream::connect(&self.settings, self.options.clone(), flush).await.map_err(after_error)?;
            Ok((connection, stream))
        };
        let connected = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return (None, Next::Stop),
            connected = connect => connected,
        };
        let (connection, mut stream) = match connected {
            Ok(connected) => connected,
            Err(next) => return (None, next),
        };
        let identity = stream.identity().clone();
        if let Err(error) = same_history(attempts.first.as_ref(), &identity, self.checkpoint.snapshot().received_lsn) {
            return (Some(stream), Next::Fail(error));
        }
        if attempts.first.is_none() || attempts.failures > 0 {
            let timeout = stream.server().wal_sender_timeout;
            let timeout = timeout.map(|timeout| humantime::format_duration(timeout).to_string());
            tracing::info!(
                slot = self.options.slot,
                publication = self.options.publication,
                server_version = stream.server().version,
                system_id = identity.system_id,
                wal_sender_timeout = timeout.unwrap_or_else(|| "off".to_owned()),
                lsn = %self.checkpoint.snapshot().flush_lsn,
                "streaming; waiting for the next event"
            );
        }
        attempts.first = Some(identity);
        self.lanes.wake();
        self.intake.on_connect();
        self.board.source(SourceState::Streaming, None);
        self.board.set_walsender(stream.server().pid);
        let mut guard = SessionGuard::new(self.session.state(), connection);
        let (started, received) = (std::time::Instant::now(), self.checkpoint.snapshot().received_lsn);
        let wanted = watch::Sender::new(attempts.reload.is_some());
        let mut asked = wanted.subscribe();
        let ended = {
            let mut wishes = connection::Wishes { stop, reload: &mut asked };
            let reading = connection::run(
                &mut stream,
                &mut self.intake,
                &self.checkpoint,
                &self.limits,
                &mut guard,
                &self.board,
                &mut wishes,
            );
            let mut reading = std::pin::pin!(reading);
            loop {
                tokio::select! {
                    ended = &mut reading => break ended,
                    Some(reload) = self.reloads.recv() => {
                        // The newest counts.
                        if let Some(before) = attempts.reload.replace(reload) {
                            let _ = before.answer.send(Err("a newer configuration came before it".to_owned()));
                        }
                        wanted.send_replace(true);
                    }
                    (sink, ending) = self.endings.next() => match ending {
                        Ending::Closed | Ending::Stopped => {
                            tracing::info!(sink, "the sink's receiver has gone: stopping in order");
                            break Ended::Stopped;
                        }
                        Ending::Panicked => {
                            break Ended::Broken(sink);
                        }
                    },
                }
            }
        };
        if let Ended::Broken(sink) = ended {
            return (Some(stream), Next::Fail(GatewayError::Lane(sink)));
        }
        // One that gets nowhere must not be made again and again at once.
        if started.elapsed() > RECONNECT_LONGEST || self.checkpoint.snapshot().received_lsn > received {
            attempts.failures = 0;
        }
        let next = Self::after(ended);
        (Some(stream), next)
    }

    /// Goes over to another configuration, or says why not. The stream is not read meanwhile.
    async fn take_up(&mut self, reload: Reload, wal_budget: &watch::Sender<WalBudget>) {
        let Reload { generation, answer } = reload;
        let deadline = tokio::time::Instant::now() + self.shutdown_timeout.max(RELOAD_CLOSE);
        let (changed, removed) = self.lanes.leaving(&generation.plans);
        failpoint("barrier.before");
        let passed = reload::barrier(&changed, &removed, generation.removed, deadline).await;
        failpoint("barrier.after");
        let said = match passed {
            Err(why) => Err(why),
            Ok(()) => {
                let generation = *generation;
                let summary = reload::summary(&self.lanes, &generation.plans);
                self.lanes.replace(generation.plans, deadline).await;
                failpoint("lanes.replaced");
                self.intake.change(Course {
                    reader: generation.reader,
                    router: generation.router,
                    route_numbers: generation.route_numbers,
                    lanes: self.lanes.handles(),
                    unrouted: generation.unrouted,
                    limits: generation.limits.clone(),
                });
                failpoint("intake.changed");
                self.limits = generation.limits;
                wal_budget.send_replace(generation.wal_budget);
                self.dead_letters.send_replace(generation.dead_letters);
                self.board.set_lanes(self.checkpoint.clone(), self.lanes.named());
                Ok(format!("generation {} is in force; {summary}", self.board.next_generation()))
            }
        };
        match &said {
            Ok(said) => tracing::info!("configuration reloaded: {said}"),
            Err(why) => tracing::error!("configuration not reloaded, the old one stays in force: {why}"),
        }
        let _ = answer.send(said);
    }

    /// What each end of a connection leads to.
    fn after(ended: Ended) -> Next {
        match ended {
            Ended::Stopped => Next::Stop,
            Ended::Reload => Next::Reload,
            Ended::Broken(sink) => Next::Fail(GatewayError::Lane(sink)),
            Ended::Lost(error) => after_error(error),
            Ended::SessionLost(why) => {
                Next::Reconnect { pause: Pause::Short, why: format!("the SQL connection was lost: {why}") }
            }
            Ended::ServerStopping => Next::Reconnect {
                pause: Pause::Short,
                why: "PostgreSQL is shutting down and waits for walgate; the stream was closed to let it".to_owned(),
            },
            // What was damaged on its way comes again whole.
            Ended::Refused(error) if error.is_damage() => {
                Next::Reconnect { pause: Pause::Short, why: error.to_string() }
            }
            Ended::Refused(error) => Next::Fail(error.into()),
        }
    }

    /// Logs and shows that the connection is lost; returns the pause before the next attempt.
    fn announce(&self, pause: Pause, why: &str, failures: u32) -> Duration {
        let jitter = 0.5 + fastrand::f64() / 2.0;
        let doubled = RECONNECT_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10));
        let (state, wait) = match pause {
            Pause::Short => (SourceState::Reconnecting, doubled.min(RECONNECT_LONGEST).mul_f64(jitter)),
            Pause::Slow => (SourceState::Reconnecting, RECONNECT_SLOWLY.mul_f64(jitter)),
            Pause::Standby => (SourceState::Standby, STANDBY.mul_f64(jitter)),
        };
        let retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        // The first failures, then a line now and then: an outage of a day must not fill the log.
        if failures <= 3 || failures.is_multiple_of(30) || pause == Pause::Slow {
            tracing::warn!(error = why, attempt = failures, retry_in_ms, "not streaming; connecting again");
        }
        self.board.source(state, Some(why.to_owned()));
        wait
    }
}

fn after_error(error: SourceError) -> Next {
    let why = error.to_string();
    match error.retry() {
        Retry::Soon if matches!(error, SourceError::SlotActive { .. }) => {
            Next::Reconnect { pause: Pause::Standby, why }
        }
        Retry::Soon => Next::Reconnect { pause: Pause::Short, why },
        Retry::Slowly => Next::Reconnect { pause: Pause::Slow, why },
        Retry::Never => Next::Fail(error.into()),
    }
}

/// Refuses to go on over another history: what it holds below the positions that were received would be skipped.
fn same_history(first: Option<&ServerIdentity>, now: &ServerIdentity, received: Lsn) -> Result<(), GatewayError> {
    let Some(before) = first else { return Ok(()) };
    if before.system_id != now.system_id {
        return Err(GatewayError::OtherHistory(format!(
            "this is another PostgreSQL cluster: system identifier {} instead of {}. If that is meant, start walgate \
             again; it then goes on from what the slot there has confirmed",
            now.system_id, before.system_id
        )));
    }
    if before.timeline != now.timeline {
        return Err(GatewayError::OtherHistory(format!(
            "the server is on timeline {} instead of {}: a standby was promoted, or a backup restored. Start walgate \
             again; it then goes on from what the slot has confirmed, which may repeat events",
            now.timeline, before.timeline
        )));
    }
    if now.xlogpos < received {
        return Err(GatewayError::OtherHistory(format!(
            "the server's WAL ends at {}, below {received}, which was received from it before: it was restored from a \
             backup, or lost WAL in a crash. Start walgate again; it then goes on from what the slot has confirmed, \
             and events that it delivered from the lost WAL are phantoms",
            now.xlogpos
        )));
    }
    Ok(())
}

/// How it ended.
#[derive(Clone, Debug)]
pub struct Summary {
    /// What is confirmed to PostgreSQL.
    pub flush_lsn: Lsn,
    /// Events that were received and are not settled: they come again at the next start.
    pub unsettled: u64,
    /// Whether the server was told the last flush LSN, as far as can be known.
    pub confirmed: bool,
}
