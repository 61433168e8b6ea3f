//! The gateway: wires the source, the router, the checkpoint and the lanes together, and keeps them going.
//!
//! [`Gateway::run`] connects, streams, reconnects with a pause, and at the end drains. What it does about each way in
//! which a connection ends stands in one place, `Gateway::after`.

mod budget;
mod catalog;
mod cleanup;
mod connection;
mod idle_slots;
mod intake;
mod lanes;
mod pressure;
mod pulse;
mod recorder;
mod reload;
mod requests;
mod retention;
mod standby;
mod status;
mod stop;
mod window;

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use walgate_sink::Lsn;

pub use self::{
    budget::BudgetWatch,
    catalog::{Connect, TermBegun},
    cleanup::{CleanupState, CleanupStatus},
    intake::{Course, Intake, IntakeError},
    lanes::{Ending, Endings, LanePlan, Lanes, NamedLane},
    pulse::{Pulse, is_alive},
    reload::{Generation, Reload},
    status::{GatewayStatus, Identity, SinkStatus, SourceState, StatusBoard},
};
use self::{
    catalog::CatalogWatch,
    connection::{Ended, Guard},
    recorder::Recorder,
};
use crate::{
    checkpoint::Checkpoint,
    config::{DeadLetters, Limits, WalBudget},
    control::{Bounds, Session, Term, Wanted, cleanup::Plan},
    postgres::ConnectSettings,
    source::{Identity as ServerIdentity, ReplicationStream, Retry, Shutdown, SourceError, StreamOptions},
    telemetry::failpoint,
};

/// Pauses between two attempts to reach the slot.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_LONGEST: Duration = Duration::from_secs(1);
/// Where somebody has to mend something first.
const RECONNECT_SLOWLY: Duration = Duration::from_secs(30);
/// Time for the end of a stream before a reload, and the least that its barrier gets.
const RELOAD_CLOSE: Duration = Duration::from_secs(2);
/// The `wal_sender_timeout` up to which a server that was silent is given longer.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

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
    /// The slot has confirmed what walgate has not.
    #[error("{0}")]
    Gap(String),
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
    /// The term that is written in.
    pub term: Term,
    /// Whether a slot that was moved by somebody else is gone on from, at the first connection.
    pub accept_gap: bool,
    /// Which rows of the outbox are settled; none while another process has the slot, while the catalogs are not in order,
    /// or without walgate's own tables.
    pub bounds: watch::Sender<Option<Bounds>>,
    /// Tells of each term that begins.
    pub terms: watch::Sender<Option<TermBegun>>,
    /// What is looked for in the catalogs.
    pub wanted: watch::Sender<Wanted>,
    /// Opens a further SQL connection.
    pub connect: Connect,
    /// What becomes of settled rows.
    pub cleanup: watch::Sender<Plan>,
    /// Makes the clean-up's connection.
    pub cleanup_connect: Connect,
}

/// What follows from the end of a connection, or of an attempt to make one.
enum Next {
    /// Another attempt, after a pause, and why.
    Reconnect { pause: Pause, why: String },
    /// Another configuration, and then another connection.
    Reload,
    /// Another process has the slot.
    StandBy(String),
    /// The end.
    Stop,
    /// The end, with an error.
    Fail(GatewayError),
}

/// What is remembered from one connection to the next.
#[derive(Default)]
struct Attempts {
    first: Option<ServerIdentity>,
    /// The server process of the last stream: while it has not ended, the slot is in use, by ourselves.
    pid: Option<u32>,
    failures: u32,
    /// Streams in a row that fell silent without having got any further.
    silences: u32,
    /// The lanes may hold something.
    begun: bool,
    /// A configuration that waits for the end of a transaction.
    reload: Option<Reload>,
}

impl Attempts {
    /// Another configuration is wanted. The newest counts.
    fn want(&mut self, reload: Reload) {
        if let Some(before) = self.reload.replace(reload) {
            let _ = before.answer.send(Err("a newer configuration came before it".to_owned()));
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pause {
    Short,
    Slow,
}

/// A stream, and what tells it how far it may confirm.
struct Open {
    stream: ReplicationStream,
    recorder: Option<Recorder>,
}

impl Open {
    /// Ends it so that the last status arrives.
    async fn shutdown(self, deadline: std::time::Instant) -> Shutdown {
        if let Some(recorder) = self.recorder {
            // Half of the time for each.
            let now = std::time::Instant::now();
            recorder.finish((now + deadline.saturating_duration_since(now) / 2).into()).await;
        }
        self.stream.shutdown(deadline).await
    }
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
        beside.spawn(idle_slots::serve(self.session.slots(), self.board.clone()));
        beside.spawn(
            CatalogWatch {
                wanted: self.wanted.subscribe(),
                term: self.terms.subscribe(),
                bounds: self.bounds.clone(),
                board: self.board.clone(),
                connect: self.connect.clone(),
            }
            .serve(),
        );
        if self.tables {
            let (clients, slot) = (self.session.clients(), self.options.slot.clone());
            beside.spawn(requests::serve(clients.clone(), slot.clone(), self.term.clone(), self.board.clone()));
            let (terms, letters) = (self.terms.subscribe(), self.dead_letters.subscribe());
            beside.spawn(retention::serve(clients, slot, terms, letters, self.board.clone()));
            beside.spawn(cleanup::serve(self.around_cleanup()));
        }
        let mut stopped = stop.subscribe();
        let mut state = Attempts::default();
        let (open, result) = loop {
            let (open, next) = self.one_connection(&mut state, &mut stopped).await;
            if let Some(reload) = state.reload.take_if(|_| !self.intake.in_transaction() && !self.intake.is_halted()) {
                // In order, so that its walsender has gone when the next one comes.
                if let (Some(open), Next::Reload) = (open, next) {
                    open.shutdown(std::time::Instant::now() + RELOAD_CLOSE).await;
                }
                self.take_up(reload, &wal_budget).await;
                continue;
            }
            match next {
                Next::Reload => {}
                Next::Stop => break (open, Ok(())),
                Next::Fail(error) => break (open, Err(error)),
                Next::StandBy(why) => {
                    drop(open);
                    self.stand_by(why, &mut state, &mut stopped).await;
                }
                Next::Reconnect { pause, why } => {
                    drop(open);
                    state.failures = state.failures.saturating_add(1);
                    let pause = self.announce(pause, &why, state.failures);
                    tokio::select! {
                        _ = stopped.wait_for(|stop| *stop) => break (None, Ok(())),
                        () = tokio::time::sleep(pause) => {}
                    }
                }
            }
        };
        let summary = stop::stop(self, open).await;
        result.map(|()| summary)
    }

    fn around_cleanup(&self) -> cleanup::Around {
        cleanup::Around {
            plans: self.cleanup.subscribe(),
            connect: self.cleanup_connect.clone(),
            clients: self.session.clients(),
            bounds: self.bounds.clone(),
            term: self.term.clone(),
            board: self.board.clone(),
        }
    }

    async fn one_connection(
        &mut self,
        attempts: &mut Attempts,
        stop: &mut watch::Receiver<bool>,
    ) -> (Option<Open>, Next) {
        // Nothing is confirmed before it is known whose the slot was.
        let confirmed = watch::Sender::new(Lsn::ZERO);
        let connect = async {
            // The SQL connection first: it is the second signal, and must stand while the stream does.
            let connection = self.session.up().await.map_err(|error| Next::Reconnect {
                pause: if error.needs_somebody() { Pause::Slow } else { Pause::Short },
                why: error.to_string(),
            })?;
            let options = with_patience(&self.options, attempts.silences);
            let stream = ReplicationStream::connect(&self.settings, options, confirmed.subscribe()).await;
            Ok((connection, stream.map_err(|error| after_error(error, attempts.pid))?))
        };
        let connected = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return (None, Next::Stop),
            connected = connect => connected,
        };
        let (connection, stream) = match connected {
            Ok(connected) => connected,
            Err(next) => return (None, next),
        };
        attempts.pid = stream.server().pid;
        let identity = stream.identity().clone();
        let mut open = Open { stream, recorder: None };
        if let Err(error) = same_history(attempts.first.as_ref(), &identity, self.checkpoint.snapshot().received_lsn) {
            return (Some(open), Next::Fail(error));
        }
        match self.begin_term(&identity, confirmed, attempts).await {
            Ok(recorder) => open.recorder = Some(recorder),
            Err(next) => return (Some(open), next),
        }
        let Open { stream, recorder: Some(recorder) } = &mut open else { return (Some(open), Next::Stop) };
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
        attempts.begun = true;
        self.lanes.wake();
        self.intake.on_connect();
        self.board.source(SourceState::Streaming, None);
        let mut guard = Guard::new(&self.session, connection, attempts.pid);
        let (started, received) = (std::time::Instant::now(), self.checkpoint.snapshot().received_lsn);
        let wanted = watch::Sender::new(attempts.reload.is_some());
        let mut asked = wanted.subscribe();
        let ended = {
            let mut wishes = connection::Wishes { stop, reload: &mut asked };
            let reading = connection::run(
                stream,
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
                    () = recorder.lost() => break Ended::SlotLost("another process has begun to read the slot".to_owned()),
                    Some(reload) = self.reloads.recv() => {
                        attempts.want(reload);
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
            return (Some(open), Next::Fail(GatewayError::Lane(sink)));
        }
        let got_on = self.checkpoint.snapshot().received_lsn > received;
        // One that gets nowhere must not be made again and again at once.
        if started.elapsed() > RECONNECT_LONGEST || got_on {
            attempts.failures = 0;
        }
        attempts.silences = match &ended {
            Ended::Lost(SourceError::Silent { .. }) if !got_on => attempts.silences.saturating_add(1),
            _ => 0,
        };
        let next = Self::after(ended, attempts.pid);
        (Some(open), next)
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
                self.wanted.send_replace(generation.wanted);
                self.dead_letters.send_replace(generation.dead_letters);
                self.cleanup.send_replace(generation.cleanup);
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
    fn after(ended: Ended, own: Option<u32>) -> Next {
        match ended {
            Ended::Stopped => Next::Stop,
            Ended::Reload => Next::Reload,
            Ended::Broken(sink) => Next::Fail(GatewayError::Lane(sink)),
            Ended::Lost(error) => after_error(error, own),
            Ended::SlotLost(why) => Next::Reconnect { pause: Pause::Short, why },
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
        let wait = match pause {
            Pause::Short => doubled.min(RECONNECT_LONGEST).mul_f64(jitter),
            Pause::Slow => RECONNECT_SLOWLY.mul_f64(jitter),
        };
        let retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        // The first failures, then a line now and then: an outage of a day must not fill the log.
        if failures <= 3 || failures.is_multiple_of(30) || pause == Pause::Slow {
            tracing::warn!(error = why, attempt = failures, retry_in_ms, "not streaming; connecting again");
        }
        self.board.source(SourceState::Reconnecting, Some(why.to_owned()));
        wait
    }
}

/// A slot in use is another's, unless it is our own last connection that has not ended on the server.
fn after_error(error: SourceError, own: Option<u32>) -> Next {
    let why = error.to_string();
    match error.retry() {
        Retry::Soon => match error {
            SourceError::SlotActive { pid, .. } if pid.is_none() || pid != own => Next::StandBy(why),
            _ => Next::Reconnect { pause: Pause::Short, why },
        },
        Retry::Slowly => Next::Reconnect { pause: Pause::Slow, why },
        Retry::Never => Next::Fail(error.into()),
    }
}

/// A server that sends nothing may be busy: decoding a transaction of a million changes, say, none of which is for us.
/// With the same patience it would be given up at the same place for ever.
fn with_patience(options: &StreamOptions, silences: u32) -> StreamOptions {
    let longer = |timeout: Duration| timeout.saturating_mul(1 << silences.min(16)).min(LONGEST_TIMEOUT.max(timeout));
    StreamOptions { wal_sender_timeout: options.wal_sender_timeout.map(longer), ..options.clone() }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s5_a_slot_in_use_is_anothers_unless_our_last_connection_has_not_ended() {
        let active = |pid| SourceError::SlotActive { slot: "walgate".into(), pid };
        for (pid, own, taken) in [
            (Some(4711), None, true),
            (Some(4711), Some(4712), true),
            (Some(4711), Some(4711), false),
            (None, Some(4711), true),
            (None, None, true),
        ] {
            let next = after_error(active(pid), own);
            assert_eq!(matches!(next, Next::StandBy(_)), taken, "{pid:?} {own:?}");
            assert!(taken || matches!(next, Next::Reconnect { pause: Pause::Short, .. }));
        }
    }

    #[test]
    fn patience_doubles_with_each_silence_up_to_a_minute() {
        let timeout = |timeout: u64, silences| {
            let own = StreamOptions {
                wal_sender_timeout: Some(Duration::from_secs(timeout)),
                ..StreamOptions::new("s", "p")
            };
            with_patience(&own, silences).wal_sender_timeout.map(|timeout| timeout.as_secs())
        };
        assert_eq!([0, 1, 2, 4, 5, u32::MAX].map(|silences| timeout(3, silences)), [3, 6, 12, 48, 60, 60].map(Some));
        assert_eq!([0, 5].map(|silences| timeout(120, silences)), [Some(120); 2]);
        assert_eq!(with_patience(&StreamOptions::new("s", "p"), 3).wal_sender_timeout, None, "the server's own stays");
    }
}
