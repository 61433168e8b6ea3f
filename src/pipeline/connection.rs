//! One connection to the slot: from its first chunk to the reason of its end.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{
    intake::{Intake, IntakeError, Wait},
    status::{SourceState, StatusBoard},
    window::LIVE_CHUNKS,
};
use crate::{
    checkpoint::Checkpoint,
    config::Limits,
    control::{SessionEvent, SessionState},
    source::{Chunk, Frame, ReplicationStream, SourceError},
};

/// More keepalives a second that ask for an answer than this are a server that is shutting down and waits for us.
const KEEPALIVE_STORM: u32 = 50;

/// Why a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// The gateway stops; the stream is still open, for the last status.
    Stopped,
    /// The stream broke or was cut.
    Lost(SourceError),
    /// The SQL connection was cut: PostgreSQL shuts down, and waits for us while our stream is not read.
    SessionLost(String),
    /// PostgreSQL asks for answers in a storm: it shuts down and waits for us.
    ServerStopping,
    /// What came cannot be taken.
    Refused(IntakeError),
    /// Another configuration waits, and no transaction is open.
    Reload,
    /// The lane of this sink has panicked.
    Broken(String),
}

/// Counts keepalives that ask for an answer.
struct Storm {
    since: Instant,
    asked: u32,
}

impl Storm {
    fn asked(&mut self) -> bool {
        if self.since.elapsed() > Duration::from_secs(1) {
            *self = Storm { since: Instant::now(), asked: 0 };
        }
        self.asked += 1;
        self.asked > KEEPALIVE_STORM
    }
}

/// What the gateway may be asked for while it reads: true once it is.
pub struct Wishes<'a> {
    /// The end.
    pub stop: &'a mut watch::Receiver<bool>,
    /// Another configuration, at the end of a transaction.
    pub reload: &'a mut watch::Receiver<bool>,
}

/// Reads the stream until it ends. Whether the gateway stops, and then whether the SQL connection was lost, is looked at
/// before the next chunk is taken, and counts too while a full window keeps the stream from being read; the status goes
/// on by itself.
pub async fn run(
    stream: &mut ReplicationStream,
    intake: &mut Intake,
    checkpoint: &Checkpoint,
    limits: &Limits,
    session: &mut SessionGuard,
    board: &StatusBoard,
    wishes: &mut Wishes<'_>,
) -> Ended {
    let Wishes { stop, reload } = wishes;
    if intake.is_halted() {
        return halted(board, session, stop).await;
    }
    let mut storm = Storm { since: Instant::now(), asked: 0 };
    let mut flush = checkpoint.subscribe();
    loop {
        let chunk = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ended::Stopped,
            cause = session.lost() => return Ended::SessionLost(cause),
            _ = reload.wait_for(|reload| *reload), if !intake.in_transaction() => return Ended::Reload,
            chunk = stream.chunks.recv() => chunk,
        };
        let chunk: Chunk = match chunk {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Ended::Lost(error),
            None => return Ended::Lost(SourceError::Aborted),
        };
        let copy_out = stream.live_chunks() > LIVE_CHUNKS;
        for frame in chunk.frames() {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return Ended::Lost(error.into()),
            };
            // The reader has asked for the answer already.
            if matches!(frame, Frame::Keepalive { reply_requested: true, .. }) && storm.asked() {
                return Ended::ServerStopping;
            }
            let wait = match intake.take(&frame, copy_out) {
                Ok(wait) => wait,
                Err(error) => {
                    intake.flush();
                    return Ended::Refused(error);
                }
            };
            if *reload.borrow() && !intake.in_transaction() {
                // What is left of the chunk comes again.
                intake.flush();
                return Ended::Reload;
            }
            if wait == Wait::No {
                continue;
            }
            intake.flush();
            let room = async {
                match wait {
                    Wait::No | Wait::Route => {}
                    Wait::Room => checkpoint.wait_for_room(limits.inflight.0).await,
                    Wait::RunAhead(lsn) => loop {
                        let status = checkpoint.snapshot();
                        if status.unsettled_events == 0 || lsn.bytes_since(status.flush_lsn) <= limits.run_ahead.0 {
                            break;
                        }
                        if flush.changed().await.is_err() {
                            break;
                        }
                    },
                }
            };
            if wait == Wait::Route {
                return halted(board, session, stop).await;
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ended::Stopped,
                cause = session.lost() => return Ended::SessionLost(cause),
                () = room => {}
            }
        }
        intake.flush();
    }
}

/// Holds an event without a route: nothing more is read, while the status goes on by itself.
async fn halted(board: &StatusBoard, session: &mut SessionGuard, stop: &mut watch::Receiver<bool>) -> Ended {
    board.source(SourceState::Halted, Some("an event has no route, and `unrouted: halt` is set".to_owned()));
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
        cause = session.lost() => Ended::SessionLost(cause),
    }
}

/// The SQL connection that stood when the stream was opened.
pub struct SessionGuard {
    state: watch::Receiver<SessionState>,
    connection: u64,
}

impl SessionGuard {
    /// Guards the connection with this number.
    pub fn new(state: watch::Receiver<SessionState>, connection: u64) -> Self {
        SessionGuard { state, connection }
    }

    /// Waits until that connection is lost, and says why.
    async fn lost(&mut self) -> String {
        let connection = self.connection;
        match self.state.wait_for(|state| !state.is_up(connection)).await {
            Ok(state) => match &state.event {
                SessionEvent::Lost(error) => error.to_string(),
                SessionEvent::Up | SessionEvent::Connecting => "it was made anew".to_owned(),
            },
            // The session's task ends only with the gateway.
            Err(_) => std::future::pending().await,
        }
    }
}
