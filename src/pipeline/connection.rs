//! One connection to the slot: from its first chunk to the reason of its end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    intake::{Intake, IntakeError, Wait},
    status::{SourceState, StatusBoard},
    window::LIVE_CHUNKS,
};
use crate::{
    checkpoint::Checkpoint,
    config::Limits,
    control::{Session, SessionEvent, SessionState, SlotReport},
    source::{Chunk, Frame, ReplicationStream, SourceError},
};

/// More keepalives a second that ask for an answer than this are a server that is shutting down and waits for us.
const KEEPALIVE_STORM: u32 = 50;

/// How long the rest of a transaction is read after the gateway was told to stop.
const TRANSACTION_END: Duration = Duration::from_millis(500);

/// Why a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// The gateway stops; the stream is still open, for the last status.
    Stopped,
    /// The stream broke or was cut.
    Lost(SourceError),
    /// The SQL connection was cut: PostgreSQL shuts down, and waits for us while our stream is not read.
    SessionLost(String),
    /// Another process has the slot, or nobody: the stream has ended on the server.
    SlotLost(String),
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
    guard: &mut Guard,
    board: &StatusBoard,
    wishes: &mut Wishes<'_>,
) -> Ended {
    let Wishes { stop, reload } = wishes;
    if intake.is_halted() {
        return halted(board, guard, stop).await;
    }
    let mut storm = Storm { since: Instant::now(), asked: 0 };
    let mut flush = checkpoint.subscribe();
    let mut told = None;
    loop {
        let chunk = tokio::select! {
            biased;
            () = may_stop(stop, intake.in_transaction(), &mut told) => return Ended::Stopped,
            loss = guard.lost() => return loss.into(),
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
            if !intake.in_transaction() && (*stop.borrow() || *reload.borrow()) {
                // What is left of the chunk comes again.
                intake.flush();
                return if *stop.borrow() { Ended::Stopped } else { Ended::Reload };
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
                return halted(board, guard, stop).await;
            }
            // The sink that holds the checkpoint is parked meanwhile, where it may be.
            let _far_ahead = matches!(wait, Wait::RunAhead(_)).then(|| FarAhead::new(board));
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ended::Stopped,
                loss = guard.lost() => return loss.into(),
                () = room => {}
            }
        }
        intake.flush();
    }
}

/// Waits until the gateway is to stop, and then for the end of the transaction that is being read, which would all be sent
/// again otherwise; but not for long.
async fn may_stop(stop: &mut watch::Receiver<bool>, in_transaction: bool, told: &mut Option<Instant>) {
    let _ = stop.wait_for(|stop| *stop).await;
    if in_transaction {
        let since = *told.get_or_insert_with(Instant::now);
        tokio::time::sleep_until((since + TRANSACTION_END).into()).await;
    }
}

/// `limits.run_ahead` is reached, for as long as this lives.
struct FarAhead<'a>(&'a StatusBoard);

impl<'a> FarAhead<'a> {
    fn new(board: &'a StatusBoard) -> Self {
        board.set_far_ahead(true);
        FarAhead(board)
    }
}

impl Drop for FarAhead<'_> {
    fn drop(&mut self) {
        self.0.set_far_ahead(false);
    }
}

/// Holds an event without a route: nothing more is read, while the status goes on by itself.
async fn halted(board: &StatusBoard, guard: &mut Guard, stop: &mut watch::Receiver<bool>) -> Ended {
    board.source(SourceState::Halted, Some("an event has no route, and `unrouted: halt` is set".to_owned()));
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => Ended::Stopped,
        loss = guard.lost() => loss.into(),
    }
}

/// What ends a connection though its stream is not being read.
#[derive(Debug)]
pub enum Loss {
    /// The SQL connection was cut.
    Session(String),
    /// The slot is not read by our server process any more.
    Slot(String),
}

impl From<Loss> for Ended {
    fn from(loss: Loss) -> Self {
        match loss {
            Loss::Session(why) => Ended::SessionLost(why),
            Loss::Slot(why) => Ended::SlotLost(why),
        }
    }
}

/// The SQL connection that stood when the stream was opened, and what it says of the slot. A process that was frozen may
/// wake up with a full window, or with an event that has no route: then it does not read the stream, and would not see
/// its end.
pub struct Guard {
    state: watch::Receiver<SessionState>,
    connection: u64,
    slots: watch::Receiver<Option<Arc<SlotReport>>>,
    pid: Option<u32>,
    /// Looks in a row that found another process, or none. One may be older than the stream.
    amiss: u32,
}

impl Guard {
    /// Guards the connection with this number of the session, and the stream that the process with this PID serves.
    pub fn new(session: &Session, connection: u64, pid: Option<u32>) -> Self {
        let mut slots = session.slots();
        slots.mark_unchanged();
        Guard { state: session.state(), connection, slots, pid, amiss: 0 }
    }

    /// Waits until one of them is lost, and says why.
    async fn lost(&mut self) -> Loss {
        let Guard { state, connection, slots, pid, amiss } = self;
        tokio::select! {
            biased;
            why = session_lost(state, *connection) => Loss::Session(why),
            why = slot_lost(slots, *pid, amiss) => Loss::Slot(why),
        }
    }
}

async fn session_lost(state: &mut watch::Receiver<SessionState>, connection: u64) -> String {
    match state.wait_for(|state| !state.is_up(connection)).await {
        Ok(state) => match &state.event {
            SessionEvent::Lost(error) => error.to_string(),
            SessionEvent::Up | SessionEvent::Connecting => "it was made anew".to_owned(),
        },
        // The session's task ends only with the gateway.
        Err(_) => std::future::pending().await,
    }
}

async fn slot_lost(slots: &mut watch::Receiver<Option<Arc<SlotReport>>>, pid: Option<u32>, amiss: &mut u32) -> String {
    let Some(pid) = pid else { return std::future::pending().await };
    while slots.changed().await.is_ok() {
        let Some(report) = slots.borrow_and_update().clone() else { continue };
        let user = report.slot.as_ref().and_then(|slot| slot.user.as_ref());
        if user.is_some_and(|user| u32::try_from(user.pid) == Ok(pid)) {
            *amiss = 0;
            continue;
        }
        *amiss += 1;
        if *amiss > 1 {
            let user = user.map_or_else(|| "nobody".to_owned(), ToString::to_string);
            return format!("the slot is not read by our server process (PID {pid}) any more, but by {user}");
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::control::slot::{SlotUser, WalStatus};

    fn look(pid: Option<i32>) -> Option<Arc<SlotReport>> {
        let mut report = SlotReport::sample(None, None, WalStatus::Reserved);
        let user = pid.map(|pid| SlotUser { pid, user: None, application_name: None, client_addr: None });
        report.slot.as_mut().unwrap().user = user;
        Some(Arc::new(report))
    }

    #[tokio::test]
    async fn the_slot_is_lost_when_two_looks_in_a_row_say_so() {
        let (sender, mut slots) = watch::channel(None);
        let mut amiss = 0;
        for (seen, lost) in [(Some(7), false), (None, false), (Some(7), false), (Some(8), false), (None, true)] {
            sender.send_replace(look(seen));
            let said = slot_lost(&mut slots, Some(7), &mut amiss).now_or_never();
            assert_eq!(said.is_some(), lost, "{seen:?}: {said:?}");
        }
        sender.send_replace(look(Some(8)));
        let said = slot_lost(&mut slots, Some(7), &mut amiss).now_or_never().unwrap();
        assert!(said.contains("PID 7") && said.contains("PID 8"), "{said}");
        sender.send_replace(look(Some(8)));
        assert!(slot_lost(&mut slots, None, &mut amiss).now_or_never().is_none(), "whose PID is not known");
    }
}
