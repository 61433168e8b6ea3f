//! The pure lane: what to send now, and what follows from what came of it.

use std::{collections::HashMap, time::Instant};

use bytestring::ByteString;
use walgate_sink::{
    Batch, Delivery, Event, Failure, FailureKind, Outcome, Rejection, SinkError, SinkErrorKind, Timestamp,
};

use super::{
    backoff::{Backoffs, delay},
    health::{Change, Evidence, Health, Patience, Permit, State},
    lot::{Leaving, Lot, Mode},
    pace::Pace,
    policy::LanePolicy,
    queue::Queue,
    rate::Bucket,
    work::{Acknowledged, Debt, Finished, Flight, FlightId, History, Item, Note, Work},
};
use crate::config::OnReject;

/// What a delivery costs in memory beside its event.
const OVERHEAD: u64 = 384;

/// What a delivery from the stream counts in [`Lane::live_bytes`].
pub(super) fn cost(event: &Event) -> u64 {
    OVERHEAD.saturating_add(event.size() as u64)
}

/// The keyed queue of one sink, with its attempts, backoffs and the state of the sink. Pure: time and jitter are
/// parameters, and nothing here waits or talks. See the [module](super) for what it keeps.
///
/// A jitter is a number from 0 to 1, drawn anew for each pause.
#[derive(Debug)]
pub struct Lane {
    pub(super) policy: LanePolicy,
    pub(super) queue: Queue,
    pub(super) backoffs: Backoffs,
    pub(super) flights: HashMap<FlightId, Flying>,
    next_flight: u64,
    pub(super) in_flight: usize,
    /// Rejected and held for good, unsettled.
    pub(super) halted: Vec<Work>,
    pub(super) health: Health,
    rate: Option<Bucket>,
    pace: Pace,
    /// Attempts that were started.
    pub(super) attempts: u64,
    pub(super) last_error: Option<Trouble>,
    /// When something was settled last, or the first batch was taken.
    pub(super) progress_at: Option<Instant>,
    /// What is, or will be, in walgate's own tables.
    pub(super) lot: Lot,
    /// Bytes of deliveries that memory alone holds, from the stream and from other lanes.
    pub(super) live_bytes: u64,
    /// Deliveries from the stream that are not settled, and that no other lane has.
    pub(super) from_stream: usize,
    /// An operator wants nothing to be sent, since then.
    pub(super) paused: bool,
    pub(super) paused_since: Option<Instant>,
    /// PostgreSQL keeps more WAL than the budget allows.
    pub(super) pressed: bool,
    /// The budget is used up, and this sink is one of those that are given up.
    pub(super) sacrificed: bool,
    /// The slot is not ours yet: what is parked is not looked at, lest another process delivers it as well.
    pub(super) dormant: bool,
    /// A moment, and the wall clock's time then.
    pub(super) clock: (Instant, Timestamp),
}

#[derive(Debug)]
pub(super) struct Flying {
    pub(super) batch: Batch,
    items: Vec<Remembered>,
}

impl Flying {
    /// The deliveries that came from the stream.
    pub(super) fn live(&self) -> impl Iterator<Item = &Delivery> {
        let live = |remembered: &Remembered| remembered.debt.is_live();
        self.batch.iter().zip(&self.items).filter(move |(_, item)| live(item)).map(|(delivery, _)| delivery)
    }
}

/// What [`Item`] holds beside its delivery.
#[derive(Debug)]
struct Remembered {
    debt: Debt,
    route: u16,
    failures: u32,
    fatal_at: Option<u64>,
    history: Option<Box<History>>,
}

impl From<Change> for Note {
    fn from(change: Change) -> Self {
        match change {
            Change::Down { cause, error, delay } => Note::SinkDown { cause, error, delay },
            Change::StillDown { error, delay } => Note::ProbeFailed { error, delay },
            Change::Closed { error } => Note::SinkClosed { error },
            Change::Up { outage } => Note::SinkUp { outage },
        }
    }
}

/// The latest failure, for the status.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) message: String,
    pub(super) kind: &'static str,
    pub(super) at: Instant,
    pub(super) next_retry: Option<Instant>,
    pub(super) event: Option<(ByteString, u32)>,
}

impl Lane {
    /// An empty lane over a sink that is thought to work.
    #[must_use]
    pub fn new(policy: LanePolicy) -> Self {
        Lane::at(policy, Instant::now(), Timestamp::now())
    }

    /// As [`Lane::new`]; `wall` is the wall clock's time at `now`.
    #[must_use]
    pub fn at(policy: LanePolicy, now: Instant, wall: Timestamp) -> Self {
        Lane {
            lot: Lot::new(policy.parking.clone()),
            live_bytes: 0,
            from_stream: 0,
            paused: false,
            paused_since: None,
            pressed: false,
            sacrificed: false,
            dormant: policy.dormant,
            clock: (now, wall),
            rate: policy.rate_limit.map(Bucket::new),
            policy,
            queue: Queue::default(),
            backoffs: Backoffs::default(),
            flights: HashMap::new(),
            next_flight: 0,
            in_flight: 0,
            halted: Vec::new(),
            health: Health::new(),
            pace: Pace::new(),
            attempts: 0,
            last_error: None,
            progress_at: None,
        }
    }

    /// Takes in a delivery. Those of one ordering key come in the order of their events.
    pub fn push(&mut self, work: Work) {
        if work.is_live() {
            self.live_bytes = self.live_bytes.saturating_add(cost(&work.delivery.event));
        }
        self.from_stream += usize::from(matches!(work.debt, Debt::Stream(_)));
        if let Some(item) = self.divert(Item::new(work)) {
            self.queue.push(item);
        }
    }

    /// Deliveries that [`Lane::take`] would find without waiting for anything, backoffs that are due aside.
    #[must_use]
    pub fn available(&self) -> usize {
        match self.permit() {
            Permit::Batches | Permit::Trial => self.queue.ready(),
            Permit::Nothing => 0,
        }
    }

    /// What may be sent at present.
    fn permit(&self) -> Permit {
        if self.paused || self.lot.given_up > 0 { Permit::Nothing } else { self.health.permit() }
    }

    /// Something is on its way into walgate's own tables, and nothing is under way there: the runner is to look.
    #[must_use]
    pub fn wants_chore(&self) -> bool {
        self.lot.underway.is_none()
            && self.lot.retry_at.is_none()
            && !self.lot.leaving.is_empty()
            && !self.lot.is_full()
    }

    /// Of `most` places for batches in flight, those that may be taken at present: fewer after the sink was throttling.
    #[must_use]
    pub fn places(&self, most: usize) -> usize {
        self.pace.places(most)
    }

    /// Whether [`Lane::decide_invalid`] has something to do.
    #[must_use]
    pub fn has_invalid(&self) -> bool {
        self.queue.invalid() > 0
    }

    /// Decides about deliveries whose turn it is and that cannot be sent, as `on_reject` says. To be called before
    /// [`Lane::take`]: it may give others their turn.
    pub fn decide_invalid(&mut self, now: Instant) -> Finished {
        let mut finished = Finished::default();
        while let Some(item) = self.queue.pop_invalid() {
            match item.work.invalid.clone() {
                Some(rejection) => self.reject(item, rejection, now, &mut finished),
                None => self.queue.again(item),
            }
        }
        if !finished.settled.is_empty() {
            self.progress_at = Some(now);
        }
        finished
    }

    /// Forms the next batch: at most `max` deliveries (at least one) and `max_bytes` bytes of events; a single larger
    /// one goes alone. `None`: there is nothing to send now.
    pub fn take(&mut self, now: Instant, max: usize, max_bytes: usize) -> Option<Flight> {
        let trial = match self.permit() {
            Permit::Nothing => return None,
            Permit::Batches => false,
            Permit::Trial => true,
        };
        while let Some(item) = self.backoffs.pop_due(now, trial) {
            self.queue.again(item);
        }
        if trial && self.queue.ready() == 0 {
            let item = self.backoffs.pop_trial(now)?;
            self.queue.again(item);
        }
        let allowed = self.rate.as_mut().map_or(usize::MAX, |rate| rate.available(now));
        let max = if trial { 1 } else { max.max(1) }.min(allowed);
        let places = self.queue.ready().min(max);
        if places == 0 {
            return None;
        }
        let (mut batch, mut items) = (Vec::with_capacity(places), Vec::with_capacity(places));
        let mut bytes = 0usize;
        while batch.len() < max {
            // In a trial, never tried ones first: one bad delivery must not be every trial.
            let Some(next) = self.queue.peek(trial) else { break };
            bytes = bytes.saturating_add(next.work.delivery.event.size());
            if bytes > max_bytes && !batch.is_empty() {
                break;
            }
            let Some(item) = self.queue.pop(trial) else { break };
            let Item { work, attempts, failures, fatal_at, history } = item;
            let mut delivery = work.delivery;
            delivery.attempt = attempts.saturating_add(1);
            batch.push(delivery);
            items.push(Remembered { debt: work.debt, route: work.route, failures, fatal_at, history });
        }
        if let Some(rate) = &mut self.rate {
            rate.take(batch.len());
        }
        self.progress_at.get_or_insert(now);
        let id = FlightId(self.next_flight);
        self.next_flight += 1;
        self.in_flight += batch.len();
        self.attempts += batch.len() as u64;
        let batch = Batch::new(batch);
        self.flights.insert(id, Flying { batch: batch.clone(), items });
        if trial {
            self.health.trial_sent(id);
        }
        Some(Flight { id, batch })
    }

    /// Takes in what became of a batch: one outcome for each delivery, in order; missing ones are unknown. A batch
    /// that is not in flight is ignored.
    pub fn finish(
        &mut self,
        id: FlightId,
        outcomes: Vec<Outcome>,
        now: Instant,
        jitter: &mut dyn FnMut() -> f64,
    ) -> Finished {
        let mut finished = Finished::default();
        let Some(Flying { batch, items }) = self.flights.remove(&id) else { return finished };
        self.in_flight -= items.len();
        self.pace.judge(id, &outcomes, self.flights.len() + 1, FlightId(self.next_flight));
        let outage = self.health.in_outage(&self.policy);
        let change = self.judge(id, &outcomes, &items, now, jitter);
        if outage && !self.health.in_outage(&self.policy) {
            // The sink answers again: whom the outage made wait need not wait any longer.
            for item in self.backoffs.release_outage(now) {
                self.queue.again(item);
            }
        }
        let all_rejected = self.health.rejects_everything(&self.policy);
        finished.settled.reserve(items.len());
        finished.acknowledged.reserve(items.len());

        let mut progress = false;
        let mut outcomes = outcomes.into_iter();
        for (delivery, remembered) in batch.iter().zip(items) {
            let outcome = outcomes.next().unwrap_or_default();
            if let Outcome::Acknowledged { duplicate } = outcome {
                let committed_at = delivery.event.committed_at;
                finished.acknowledged.push(Acknowledged { route: remembered.route, duplicate, committed_at });
                self.done(remembered.debt, delivery, now, &mut finished);
                progress = true;
                continue;
            }
            let Remembered { debt, route, failures, fatal_at, history } = remembered;
            let work = Work { delivery: delivery.clone(), debt, route, invalid: None };
            let item = Item { work, attempts: delivery.attempt, failures, fatal_at, history };
            let failure = match outcome {
                Outcome::Rejected(rejection) if !all_rejected => {
                    self.reject(item, rejection, now, &mut finished);
                    continue;
                }
                Outcome::Rejected(rejection) => Failure::new(FailureKind::Unavailable, rejection.message),
                Outcome::Failed(failure) => failure,
                _ => Failure::new(
                    FailureKind::Timeout,
                    "the sink did not say what became of the delivery: it may have arrived, and is sent again",
                ),
            };
            self.failed(item, failure, now, jitter(), &mut finished);
        }

        if progress || !finished.settled.is_empty() || !finished.rows.is_empty() {
            self.progress_at = Some(now);
        }
        if let Some(change) = change {
            finished.notes.push(change.into());
        }
        if self.unsettled() == 0 {
            self.queue.shrink();
        }
        finished
    }

    /// When to look again if nothing else happens before: to send, to probe, or to use walgate's own tables.
    #[must_use]
    pub fn next_wakeup(&self, now: Instant) -> Option<Instant> {
        [self.next_send(now), self.next_table(now)].into_iter().flatten().min()
    }

    /// When to call [`Lane::take`] or [`Lane::start_probe`] again if nothing else happens before.
    fn next_send(&self, now: Instant) -> Option<Instant> {
        match self.health.state() {
            State::Up | State::Trial { flight: None } if self.permit() == Permit::Nothing => None,
            State::Closed | State::Checking | State::Trial { flight: Some(_) } => None,
            State::Down { probe_at } => Some(probe_at),
            State::Up | State::Trial { flight: None } if self.queue.ready() > 0 => {
                Some(self.limited_until(now).unwrap_or(now))
            }
            State::Up => self.backoffs.first_due(),
            State::Trial { flight: None } => self.backoffs.first_trial(),
        }
    }

    /// Until when `delivery.rate_limit` keeps back what could be sent now; `None`: it keeps back nothing.
    #[must_use]
    pub fn limited_until(&self, now: Instant) -> Option<Instant> {
        if self.available() == 0 {
            return None;
        }
        self.rate.as_ref()?.next(now)
    }

    /// When the next probe is due, if the sink is down.
    #[must_use]
    pub fn next_probe(&self) -> Option<Instant> {
        match self.health.state() {
            State::Down { probe_at } => Some(probe_at),
            _ => None,
        }
    }

    /// The sink is down, and it is time to look whether it still is.
    #[must_use]
    pub fn probe_due(&self, now: Instant) -> bool {
        self.health.probe_due(now)
    }

    /// Starts a probe if one is due: then the caller checks the sink and calls [`Lane::probed`].
    pub fn start_probe(&mut self, now: Instant) -> bool {
        self.health.start_probe(now)
    }

    /// Takes in what a probe found, or that the sink could not be made.
    pub fn probed(
        &mut self,
        result: Result<(), SinkError>,
        now: Instant,
        jitter: &mut dyn FnMut() -> f64,
    ) -> Vec<Note> {
        let kind = match &result {
            Err(error) if error.kind == SinkErrorKind::Fatal => FailureKind::Fatal,
            _ => FailureKind::Connection,
        };
        let Some(change) = self.health.probed(result, &self.policy, now, jitter()) else { return Vec::new() };
        if let Change::Down { error, delay, .. } | Change::StillDown { error, delay } = &change {
            self.last_error = Some(Trouble {
                message: error.clone(),
                kind: kind.as_str(),
                at: now,
                next_retry: Some(now + *delay),
                event: None,
            });
        }
        vec![change.into()]
    }

    /// Deliveries that are not settled.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.queue.len() + self.backoffs.len() + self.in_flight + self.halted.len() + self.lot.unsettled()
    }

    /// Whether a delivery from the stream is not settled. What was read from walgate's own tables, by this lane or another,
    /// does not count: it is there still, for whoever comes next.
    #[must_use]
    pub fn holds_live(&self) -> bool {
        self.from_stream > 0
    }

    /// Deliveries in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Whether the sink works, as far as is known.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.health.state() == State::Up
    }

    /// Asks what the outcomes say about the sink as a whole, before any delivery is dealt with on its own.
    fn judge(
        &mut self,
        id: FlightId,
        outcomes: &[Outcome],
        items: &[Remembered],
        now: Instant,
        jitter: &mut dyn FnMut() -> f64,
    ) -> Option<Change> {
        let trial = self.health.state() == State::Trial { flight: Some(id) };
        let some_taken = outcomes.iter().any(|outcome| matches!(outcome, Outcome::Acknowledged { .. }));
        let successes = self.health.successes();
        let mut evidence = Evidence::default();
        let outcomes = outcomes.iter().chain(std::iter::repeat(&Outcome::Unknown));
        for (item, outcome) in items.iter().zip(outcomes) {
            // The sink takes others while it fails this one: a missing topic among good ones.
            let others_pass = some_taken || item.fatal_at.is_some_and(|at| at != successes);
            evidence.add(outcome, others_pass && !trial);
        }
        let patience = self
            .lot
            .policy
            .as_ref()
            .filter(|policy| policy.outages)
            .map(|policy| Patience { after: policy.park_after, none: self.live_bytes >= policy.share });
        self.health.judge(id, evidence, &self.policy, patience, now, jitter())
    }

    /// The sink can never accept this delivery: leaves it out or holds it.
    fn reject(&mut self, item: Item, rejection: Rejection, now: Instant, finished: &mut Finished) {
        let attempt = item.attempt();
        self.last_error = Some(Trouble {
            message: rejection.message.clone(),
            kind: rejection.reason.as_str(),
            at: now,
            next_retry: None,
            event: Some((attempt.event_id.clone(), attempt.number)),
        });
        let stores = self.lot.is_usable();
        match self.policy.on_reject {
            OnReject::Skip => {
                self.done(item.work.debt, &item.work.delivery, now, finished);
                finished.notes.push(Note::Skipped { attempt, rejection });
            }
            OnReject::DeadLetter if stores || self.policy.destination.is_some() => {
                self.bury(item, rejection.reason.as_str(), rejection.message)
            }
            OnReject::ParkKey if stores => self.hold_key(item, rejection, now, finished),
            // A row that is settled already holds nothing but its key.
            _ if !item.is_live() => self.hold_key(item, rejection, now, finished),
            OnReject::Halt | OnReject::DeadLetter | OnReject::ParkKey => {
                self.queue.halt(item.key());
                self.halted.push(item.work);
                finished.notes.push(Note::Halted { attempt, rejection });
            }
        }
    }

    /// The key waits in the table until somebody decides about this event.
    fn hold_key(&mut self, mut item: Item, rejection: Rejection, now: Instant, finished: &mut Finished) {
        let error = rejection.message;
        self.remember(&mut item, rejection.reason.as_str(), &error, now);
        match self.lot.holds(&item) {
            Some(hold) if !item.is_live() => {
                finished.notes.push(Note::KeyParked { attempt: item.attempt(), halted: true, error });
                self.put_back(item, &hold, None, now, 0.0);
            }
            _ => self.park_key(item, None, error, finished),
        }
    }

    /// The delivery is done with: it is settled, and the next event of its key has its turn.
    pub(super) fn done(&mut self, debt: Debt, delivery: &Delivery, now: Instant, finished: &mut Finished) {
        match debt {
            Debt::Parked { row, held } => self.row_done(row, held, delivery, now),
            debt => self.settle(debt, &delivery.event, finished),
        }
        self.free(delivery, debt.is_live());
    }

    /// What was owed for a delivery that is not in this lane's table is settled.
    pub(super) fn settle(&mut self, debt: Debt, event: &Event, finished: &mut Finished) {
        self.let_go(debt, event);
        match debt {
            Debt::Stream(ticket) => finished.settled.push(ticket),
            Debt::Handed { lane, row } => finished.rows.push((lane, row)),
            Debt::Parked { .. } => {}
        }
    }

    /// A delivery that is not in this lane's table is this lane's no more.
    pub(super) fn let_go(&mut self, debt: Debt, event: &Event) {
        if debt.is_live() {
            self.live_bytes = self.live_bytes.saturating_sub(cost(event));
        }
        if let Debt::Stream(_) = debt {
            self.from_stream = self.from_stream.saturating_sub(1);
        }
    }

    /// This attempt failed: what follows from it.
    fn failed(&mut self, mut item: Item, failure: Failure, now: Instant, jitter: f64, finished: &mut Finished) {
        self.remember(&mut item, failure.kind.as_str(), &failure.message, now);
        if let Some((reason, message)) = self.given_up(&item, now) {
            self.note_trouble(&item, &failure.message, failure.kind.as_str(), now, None);
            return self.bury(item, reason, format!("{message}; the last time: {}", failure.message));
        }
        let retry = |attempt, delay| Note::Retry { attempt, kind: failure.kind, error: failure.message.clone(), delay };
        let attempt = item.attempt();
        if let Some(hold) = self.lot.holds(&item).filter(|_| !item.is_live()) {
            let pause = self.put_back(item, &hold, Some(&failure), now, jitter);
            return finished.notes.push(retry(attempt, pause));
        }
        if item.is_live() && (self.lot.mode == Mode::On || self.lot.holds(&item).is_some()) {
            let hold = if self.lot.mode == Mode::On { None } else { self.lot.holds(&item) };
            self.note_trouble(&item, &failure.message, failure.kind.as_str(), now, None);
            let delivery = item.work.delivery.clone();
            self.lot.leave(Leaving { item, hold });
            self.free(&delivery, true);
            return finished.notes.push(retry(attempt, std::time::Duration::ZERO));
        }
        if self.fails_alone(&item, now) {
            let pause = delay(self.policy.initial, self.policy.max, item.failures, jitter);
            self.note_trouble(&item, &failure.message, failure.kind.as_str(), now, Some(now + pause));
            return self.park_key(item, Some(now + pause), failure.message, finished);
        }
        finished.notes.push(self.back_off(item, failure, now, jitter));
    }

    /// This attempt failed: the delivery waits, and its key with it.
    fn back_off(&mut self, mut item: Item, failure: Failure, now: Instant, jitter: f64) -> Note {
        let cap = match failure.kind {
            FailureKind::Connection => self.policy.connection_max,
            _ => self.policy.max,
        };
        let pause = delay(self.policy.initial, cap, item.failures, jitter);
        let asked = self.policy.bounded(failure.retry_after.unwrap_or_default());
        let pause = pause.max(asked);
        item.failures = item.failures.saturating_add(1);
        if failure.kind == FailureKind::Fatal {
            item.fatal_at = Some(self.health.successes());
        }
        let attempt = item.attempt();
        self.last_error = Some(Trouble {
            message: failure.message.clone(),
            kind: failure.kind.as_str(),
            at: now,
            next_retry: Some(now + pause),
            event: Some((attempt.event_id.clone(), attempt.number)),
        });
        let outage = self.health.in_outage(&self.policy);
        self.backoffs.insert(item, now + pause, now + asked, outage);
        Note::Retry { attempt, kind: failure.kind, error: failure.message, delay: pause }
    }
}

#[cfg(test)]
impl Lane {
    /// Busy keys, and entries of any kind: all 0 in a lane that has settled everything.
    pub(super) fn traces(&self) -> (usize, usize, usize) {
        (self.queue.busy_keys(), self.unsettled(), self.flights.len())
    }
}
