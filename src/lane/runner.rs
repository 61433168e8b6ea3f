//! Drives one lane: a task that sends what the lane says and tells it what came of it.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, PoisonError},
    time::{Duration, Instant as StdInstant},
};

use tokio::{
    sync::watch,
    task::{self, JoinError, JoinHandle, JoinSet},
    time::{Instant, sleep_until, timeout},
};
use tower::{BoxError, ServiceExt};
use walgate_sink::{Capabilities, DeliveryReport, DynSink, SinkError};

use super::{
    Chore, Done, Finished, FlightId, Lane, LaneHandle, LaneSettings, Note, Observer, SinkSource,
    handle::{Core, Shared},
    journal::Journal,
    policy::LONGEST_PAUSE,
    service::{Request, SinkStack, backstop, stack},
};
use crate::{
    checkpoint::Checkpoint,
    control::parking::{ParkingStore, StoreError},
    telemetry::failpoint,
};

/// What a dropped batch gets to let go, and a sink to close, once the time to drain is over.
const LET_GO: Duration = Duration::from_secs(1);

/// Time to the next look for a sink that was not there to take dead letters.
const REFUSED: Duration = Duration::from_millis(100);

/// What a check may take beyond the time of one attempt.
const CHECK_GRACE: Duration = Duration::from_secs(5);

/// Tells a lane to stop: the time until which batches in flight may go on. `None`: run on. If the sender goes away,
/// the lane stops at once.
pub type StopSignal = watch::Receiver<Option<Instant>>;

/// Why a lane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneEnd {
    /// It was told to stop.
    Stopped,
    /// The sink's receiver has gone for good: the gateway is to stop in order.
    SinkClosed,
}

/// Starts the lane of one sink on the current runtime.
///
/// The sink is made by the lane's own task, so one that takes its time keeps no other waiting.
pub fn spawn(
    name: impl Into<Arc<str>>,
    source: SinkSource,
    settings: LaneSettings,
    store: Option<Arc<dyn ParkingStore>>,
    checkpoint: Checkpoint,
    observer: Arc<dyn Observer>,
    stop: StopSignal,
) -> (LaneHandle, JoinHandle<LaneEnd>) {
    let name = name.into();
    let shared = Arc::new(Shared::new(Arc::clone(&name), Lane::new(settings.policy.clone())));
    let place = settings.exchange.register(&shared);
    let runner = Runner {
        shared: Arc::clone(&shared),
        place,
        refused: false,
        source,
        settings,
        store,
        checkpoint,
        journal: Journal::new(name, observer),
        sink: None,
        tasks: JoinSet::new(),
        running: HashMap::new(),
        flights: 0,
        storing: false,
        linger_until: None,
        end: None,
    };
    (LaneHandle(shared), tokio::spawn(Box::pin(runner.run(stop))))
}

struct Runner {
    shared: Arc<Shared>,
    /// The lane's number in the exchange.
    place: u64,
    /// The sink that gets the dead letters was not there the last time.
    refused: bool,
    source: SinkSource,
    settings: LaneSettings,
    /// walgate's own tables; where the lane's policy uses none, there is none.
    store: Option<Arc<dyn ParkingStore>>,
    checkpoint: Checkpoint,
    journal: Journal,
    sink: Option<Connected>,
    /// Batches and probes, each in a task of its own: a panic in a sink ends that task and nothing else.
    tasks: JoinSet<Output>,
    running: HashMap<task::Id, Running>,
    flights: usize,
    /// An operation on walgate's own tables is under way.
    storing: bool,
    /// A batch that is not full waits until then.
    linger_until: Option<StdInstant>,
    /// The lane is ending: no new batches, and those in flight have until then.
    end: Option<(LaneEnd, Instant)>,
}

struct Connected {
    sink: Arc<dyn DynSink>,
    stack: SinkStack,
    concurrency: usize,
    batch: usize,
    bytes: usize,
}

enum Running {
    Flight { id: FlightId, report: DeliveryReport, started: Instant },
    Probe,
    Chore,
}

enum Output {
    Returned(Result<(), BoxError>),
    Stored(Result<Done, StoreError>),
    Probed {
        /// The sink, if it had to be made.
        made: Option<(Arc<dyn DynSink>, Capabilities)>,
        result: Result<(), SinkError>,
    },
}

impl Runner {
    async fn run(mut self, mut stop: StopSignal) -> LaneEnd {
        let mut listening = true;
        self.observe_stop(&mut stop);
        if self.end.is_none() {
            self.probe(false);
        }
        loop {
            self.shared.turn();
            let wake = match self.end {
                Some((_, deadline)) if deadline <= Instant::now() => break,
                Some((_, deadline)) => {
                    self.start_chore(true);
                    if self.flights == 0 && !self.storing {
                        break;
                    }
                    Some(deadline)
                }
                None => self.advance().map(Instant::from_std),
            };
            tokio::select! {
                changed = stop.changed(), if listening => match changed {
                    Ok(()) => self.observe_stop(&mut stop),
                    Err(_) => {
                        listening = false;
                        self.end.get_or_insert((LaneEnd::Stopped, Instant::now()));
                    }
                },
                Some(joined) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.joined(joined),
                () = self.shared.wake.notified() => {}
                () = sleep_or_never(wake) => {}
            }
        }
        self.shared.end();
        // What was decided just before it was told to end counts: nobody else settles it.
        let decided = std::mem::take(&mut *self.shared.decided.lock().unwrap_or_else(PoisonError::into_inner));
        for finished in decided {
            self.settle(finished, Instant::now().into_std());
        }
        self.abandon_rest().await;
        self.close().await;
        self.end.map_or(LaneEnd::Stopped, |(end, _)| end)
    }

    fn observe_stop(&mut self, stop: &mut StopSignal) {
        if let Some(deadline) = *stop.borrow_and_update() {
            let end = self.end.map_or(LaneEnd::Stopped, |(end, _)| end);
            self.end = Some((end, deadline));
        }
    }

    /// Starts whatever can be started. Returns when to look again if nothing happens before.
    fn advance(&mut self) -> Option<StdInstant> {
        let now = Instant::now().into_std();
        let shared = Arc::clone(&self.shared);
        let mut decided = std::mem::take(&mut *shared.decided.lock().unwrap_or_else(PoisonError::into_inner));
        self.hand_over(now, &mut decided);
        let mut core = shared.lock();
        core.parked = None;
        let mut tended = Finished::default();
        core.lane.tend(now, &mut tended);
        decided.push(tended);
        if core.lane.has_invalid() {
            decided.push(core.lane.decide_invalid(now));
        }
        let probe = core.lane.start_probe(now);
        let mut flights = Vec::new();
        if let Some(sink) = &self.sink {
            while self.flights + flights.len() < core.lane.places(sink.concurrency) {
                if lingers(&mut self.linger_until, self.settings.linger, &core.lane, sink.batch, now) {
                    break;
                }
                let Some(flight) = core.lane.take(now, sink.batch, sink.bytes) else { break };
                self.linger_until = None;
                flights.push(flight);
            }
        }
        drop(core);
        for finished in decided {
            self.settle(finished, now);
        }
        self.start_chore(false);
        let mut core = shared.lock();
        let mut wake = self.park(&mut core, flights.len(), now);
        if core.lane.has_letters() {
            let again = if self.refused { now + REFUSED } else { now };
            wake = Some(wake.map_or(again, |wake| wake.min(again)));
        }
        let in_flight = core.lane.in_flight();
        drop(core);

        if probe {
            self.probe(true);
        }
        if let Some(sink) = &self.sink {
            for flight in flights {
                let report = DeliveryReport::new(flight.batch.len());
                let call = sink.stack.clone().oneshot(Request { batch: flight.batch, report: report.clone() });
                let task = self.tasks.spawn(async move {
                    failpoint("send.before");
                    let returned = call.await;
                    failpoint("send.after");
                    Output::Returned(returned)
                });
                self.running.insert(task.id(), Running::Flight { id: flight.id, report, started: Instant::now() });
                self.flights += 1;
                self.journal.observer().in_flight(in_flight);
            }
        }
        wake
    }

    /// Gives dead letters to the sink that gets them, and decides about what has its turn by that and cannot be sent.
    fn hand_over(&mut self, now: StdInstant, decided: &mut Vec<Finished>) {
        let Some(destination) = self.settings.policy.destination.clone() else { return };
        loop {
            let mut core = self.shared.lock();
            if core.lane.has_invalid() {
                decided.push(core.lane.decide_invalid(now));
            }
            let letters = core.lane.hand_over(self.place);
            drop(core);
            if letters.is_empty() {
                return;
            }
            failpoint("hand_over.before");
            // Nothing is locked: the other lane's task may be about to tell this one of its rows.
            let taken = self.settings.exchange.push(&destination.to, letters);
            failpoint("hand_over.after");
            self.refused = !taken;
            decided.push(self.shared.lock().lane.handed_over(taken, now));
            if !taken {
                return;
            }
        }
    }

    /// Starts the next operation on walgate's own tables, if there is one to be done. `ending`: only what settles.
    fn start_chore(&mut self, ending: bool) {
        let Some(store) = self.store.as_ref().filter(|_| !self.storing) else { return };
        let chore = self.shared.lock().lane.next_chore(Instant::now().into_std(), ending);
        let Some(chore) = chore else { return };
        let store = Arc::clone(store);
        let task = self.tasks.spawn(async move { Output::Stored(carry_out(&*store, chore).await) });
        self.running.insert(task.id(), Running::Chore);
        self.storing = true;
    }

    /// An operation has ended.
    fn stored(&mut self, result: Result<Done, StoreError>, now: StdInstant) {
        self.storing = false;
        let mut finished = self.shared.lock().lane.chore_done(result, now, &mut fastrand::f64);
        if !finished.revived.is_empty() {
            self.shared.revived.lock().unwrap_or_else(PoisonError::into_inner).append(&mut finished.revived);
        }
        self.settle(finished, now);
    }

    /// Says what the runner is to be woken for, and returns when it wakes by itself.
    fn park(&self, core: &mut Core, started: usize, now: StdInstant) -> Option<StdInstant> {
        let places = |sink: &&Connected| self.flights + started < core.lane.places(sink.concurrency);
        let sink = self.sink.as_ref().filter(places);
        let (wanted, wake) = match (sink, self.linger_until) {
            // Every place is taken: the end of a batch wakes the runner, whatever is pushed.
            (None, _) => (usize::MAX, [core.lane.next_probe(), core.lane.next_table(now)].into_iter().flatten().min()),
            // What is pushed changes nothing before the rate allows another delivery.
            (Some(_), _) if core.lane.limited_until(now).is_some() => (usize::MAX, core.lane.next_wakeup(now)),
            (Some(sink), Some(until)) => (sink.batch, Some(until)),
            (Some(_), None) => (1, core.lane.next_wakeup(now)),
        };
        core.parked = Some(wanted);
        wake
    }

    /// Checks the sink, or makes it where there is none yet. `check`: also look whether one that was just made works.
    fn probe(&mut self, check: bool) {
        let present = self.sink.as_ref().map(|connected| Arc::clone(&connected.sink));
        let connect = self.source.connect();
        let limit = self.settings.timeout.saturating_add(CHECK_GRACE);
        let task = self.tasks.spawn(async move {
            let (sink, made) = match present {
                Some(sink) => (sink, false),
                None => match within(limit, connect).await {
                    Ok(sink) => (sink, true),
                    Err(error) => return Output::Probed { made: None, result: Err(error) },
                },
            };
            let result = if check { within(limit, sink.check()).await } else { Ok(()) };
            let made = made.then(|| (Arc::clone(&sink), sink.capabilities()));
            Output::Probed { made, result }
        });
        self.running.insert(task.id(), Running::Probe);
    }

    /// A task has ended, whichever way.
    fn joined(&mut self, joined: Result<(task::Id, Output), JoinError>) {
        let id = joined.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let Some(running) = self.running.remove(&id) else { return };
        let now = Instant::now();
        match (running, joined) {
            (Running::Flight { id, report, started }, joined) => {
                match joined {
                    Ok((_, Output::Returned(Err(_)))) => self.journal.broken("timeout", now.into_std()),
                    Err(error) if error.is_panic() => self.journal.broken("panic", now.into_std()),
                    _ => {}
                }
                self.journal.observer().delivery_seconds(now.saturating_duration_since(started));
                self.finish(id, &report, now.into_std());
            }
            (Running::Chore, Ok((_, Output::Stored(result)))) => self.stored(result, now.into_std()),
            (Running::Chore, _) => {
                // Nothing is known of it: it is done once more.
                let message = "the operation broke off; this is a fault in walgate".to_owned();
                self.stored(Err(StoreError { message, lasting: false }), now.into_std());
            }
            (Running::Probe, Ok((_, Output::Probed { made, result }))) => {
                if let Some((sink, capabilities)) = made {
                    self.use_sink(sink, capabilities, result.is_ok());
                }
                self.probed(result, now.into_std());
            }
            (Running::Probe, _) => {
                let error = SinkError::retryable("the sink failed in its check; this is a fault in the sink");
                self.probed(Err(error), now.into_std());
            }
        }
    }

    fn use_sink(&mut self, sink: Arc<dyn DynSink>, capabilities: Capabilities, works: bool) {
        let limit = capabilities.max_batch.max(1);
        let batch = self.settings.batch.map_or(limit, |batch| batch.clamp(1, limit));
        let concurrency = self.settings.concurrency.unwrap_or(capabilities.concurrency).max(1);
        let stack = stack(Arc::clone(&sink), concurrency, backstop(self.settings.timeout, batch));
        self.shared.connected(&sink);
        self.sink = Some(Connected { sink, stack, concurrency, batch, bytes: capabilities.max_batch_bytes });
        if works {
            self.journal.connected();
        }
    }

    fn probed(&mut self, result: Result<(), SinkError>, now: StdInstant) {
        let notes = self.shared.lock().lane.probed(result, now, &mut fastrand::f64);
        self.journal.notes(&notes, now);
    }

    /// A batch has landed: what its report says counts.
    fn finish(&mut self, id: FlightId, report: &DeliveryReport, now: StdInstant) {
        let outcomes = report.take();
        let mut core = self.shared.lock();
        let finished = core.lane.finish(id, outcomes, now, &mut fastrand::f64);
        let in_flight = core.lane.in_flight();
        drop(core);
        self.flights -= 1;
        self.journal.observer().in_flight(in_flight);
        self.settle(finished, now);
    }

    fn settle(&mut self, finished: Finished, now: StdInstant) {
        self.journal.finished(&finished, now);
        if finished.notes.iter().any(|note| matches!(note, Note::SinkClosed { .. })) && self.end.is_none() {
            self.end = Some((LaneEnd::SinkClosed, Instant::from_std(now) + self.settings.timeout.min(LONGEST_PAUSE)));
        }
        self.settings.exchange.settled(&finished.rows);
        if !finished.settled.is_empty() {
            failpoint("settle.before");
            self.checkpoint.settle_all(finished.settled);
            failpoint("settle.after");
        }
    }

    /// Drops what is still in flight. What was marked until now counts.
    async fn abandon_rest(&mut self) {
        self.tasks.abort_all();
        let deadline = Instant::now() + LET_GO;
        while let Ok(Some(joined)) = tokio::time::timeout_at(deadline, self.tasks.join_next_with_id()).await {
            if let Err(error) = &joined
                && error.is_cancelled()
            {
                continue;
            }
            self.joined(joined);
        }
        let now = Instant::now().into_std();
        for (_, running) in std::mem::take(&mut self.running) {
            if let Running::Flight { id, report, .. } = running {
                self.finish(id, &report, now);
            }
        }
    }

    /// Closes the sink, in a task of its own: a panic there must not hide how the lane ended.
    async fn close(&mut self) {
        let Some(connected) = self.sink.take() else { return };
        let left = self.end.map_or(Duration::ZERO, |(_, deadline)| deadline.saturating_duration_since(Instant::now()));
        let closing = tokio::spawn(async move { connected.sink.close().await });
        if !matches!(timeout(left.max(LET_GO), closing).await, Ok(Ok(()))) {
            tracing::warn!(sink = %self.shared.name, "the sink did not close in order");
        }
    }
}

/// Does one operation.
async fn carry_out(store: &dyn ParkingStore, chore: Chore) -> Result<Done, StoreError> {
    Ok(match chore {
        Chore::Open { max_keys } => Done::Opened(between("open.before", store.open(max_keys), "open.after").await?),
        Chore::Park(parcels) => {
            let (rows, bytes) = between("park.before", store.park(parcels), "park.after").await?;
            Done::Parked(rows, bytes)
        }
        Chore::Bury(letters, rows) => {
            between("bury.before", store.bury(letters, rows), "bury.after").await?;
            Done::Buried
        }
        Chore::Page(after, limit) => Done::Page(between("page.before", store.page(after, limit), "page.after").await?),
        Chore::PageOf(key, after, limit) => {
            Done::Page(between("page_of.before", store.page_of(key, after, limit), "page_of.after").await?)
        }
        Chore::Hold(rows) => {
            between("hold.before", store.hold(rows), "hold.after").await?;
            Done::Held
        }
        Chore::Delivered(rows) => {
            between("delivered.before", store.delivered(rows), "delivered.after").await?;
            Done::Deleted
        }
        Chore::Revive { filter, before, run, limit } => {
            let revive = store.revive(filter, before, run, limit);
            Done::Revived(between("revive.before", revive, "revive.after").await?)
        }
    })
}

/// Does it between two failpoints.
async fn between<T>(before: &str, operation: impl Future<Output = T>, after: &str) -> T {
    failpoint(before);
    let done = operation.await;
    failpoint(after);
    done
}

/// Whether a batch that is not full is to wait for more.
fn lingers(until: &mut Option<StdInstant>, linger: Duration, lane: &Lane, batch: usize, now: StdInstant) -> bool {
    if linger.is_zero() || !lane.is_up() {
        *until = None;
        return false;
    }
    let available = lane.available();
    if available == 0 || available >= batch {
        *until = None;
        return false;
    }
    let until = *until.get_or_insert(now + linger.min(LONGEST_PAUSE));
    now < until
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, SinkError>>) -> Result<T, SinkError> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(limit);
        Err(SinkError::retryable(format!("the sink gave no answer to a check within {limit}")))
    })
}

async fn sleep_or_never(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}
