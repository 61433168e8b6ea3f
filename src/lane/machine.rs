//! The pure lane: what to send now, and what follows from what came of it.

use std::{collections::HashMap, time::Instant};

use bytestring::ByteString;
use walgate_sink::{Batch, Failure, FailureKind, Outcome, Rejection, SinkError, SinkErrorKind};

use super::{
    backoff::{Backoffs, delay},
    health::{Change, Evidence, Health, Permit, State},
    policy::LanePolicy,
    queue::Queue,
    rate::Bucket,
    work::{Acknowledged, Finished, Flight, FlightId, Item, Note, Work},
};
use crate::{checkpoint::Ticket, config::OnReject};

/// The keyed queue of one sink, with its attempts, backoffs and the state of the sink. Pure: time and jitter are
/// parameters, and nothing here waits or talks. See the [module](super) for what it keeps.
///
/// A jitter is a number from 0 to 1, drawn anew for each pause.
#[derive(Debug)]
pub struct Lane {
    policy: LanePolicy,
    pub(super) queue: Queue,
    pub(super) backoffs: Backoffs,
    pub(super) flights: HashMap<FlightId, Flying>,
    next_flight: u64,
    pub(super) in_flight: usize,
    /// Rejected and held for good, unsettled.
    pub(super) halted: Vec<Work>,
    pub(super) health: Health,
    rate: Option<Bucket>,
    /// Attempts that were started.
    pub(super) attempts: u64,
    pub(super) last_error: Option<Trouble>,
    /// When something was settled last, or the first batch was taken.
    pub(super) progress_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Flying {
    pub(super) batch: Batch,
    items: Vec<Remembered>,
}

/// What [`Item`] holds beside its delivery.
#[derive(Debug)]
struct Remembered {
    ticket: Ticket,
    route: u16,
    failures: u32,
    fatal_at: Option<u64>,
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
        Lane {
            rate: policy.rate_limit.map(Bucket::new),
            policy,
            queue: Queue::default(),
            backoffs: Backoffs::default(),
            flights: HashMap::new(),
            next_flight: 0,
            in_flight: 0,
            halted: Vec::new(),
            health: Health::new(),
            attempts: 0,
            last_error: None,
            progress_at: None,
        }
    }

    /// Takes in a delivery. Those of one ordering key come in the order of their events.
    pub fn push(&mut self, work: Work) {
        self.queue.push(work);
    }

    /// Deliveries that [`Lane::take`] would find without waiting for anything, backoffs that are due aside.
    #[must_use]
    pub fn available(&self) -> usize {
        match self.health.permit() {
            Permit::Batches | Permit::Trial => self.queue.ready(),
            Permit::Nothing => 0,
        }
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
        while let Some(mut item) = self.queue.pop_invalid() {
            match item.work.invalid.take() {
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
        let trial = match self.health.permit() {
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
            let Item { work, attempts, failures, fatal_at } = item;
            let mut delivery = work.delivery;
            delivery.attempt = attempts.saturating_add(1);
            batch.push(delivery);
            items.push(Remembered { ticket: work.ticket, route: work.route, failures, fatal_at });
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

        let mut outcomes = outcomes.into_iter();
        for (delivery, remembered) in batch.iter().zip(items) {
            let outcome = outcomes.next().unwrap_or_default();
            if let Outcome::Acknowledged { duplicate } = outcome {
                finished.settled.push(remembered.ticket);
                let committed_at = delivery.event.committed_at;
                finished.acknowledged.push(Acknowledged { route: remembered.route, duplicate, committed_at });
                self.queue.settled(delivery.ordering_key.as_ref());
                continue;
            }
            let Remembered { ticket, route, failures, fatal_at } = remembered;
            let work = Work { delivery: delivery.clone(), ticket, route, invalid: None };
            let item = Item { work, attempts: delivery.attempt, failures, fatal_at };
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
            finished.notes.push(self.back_off(item, failure, now, jitter()));
        }

        if !finished.settled.is_empty() {
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

    /// When to call [`Lane::take`] or [`Lane::start_probe`] again if nothing else happens before.
    #[must_use]
    pub fn next_wakeup(&self, now: Instant) -> Option<Instant> {
        match self.health.state() {
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
        self.queue.len() + self.backoffs.len() + self.in_flight + self.halted.len()
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
        self.health.judge(id, evidence, &self.policy, now, jitter())
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
        match self.policy.on_reject {
            OnReject::Skip => {
                finished.settled.push(item.work.ticket);
                self.queue.settled(item.key());
                finished.notes.push(Note::Skipped { attempt, rejection });
            }
            OnReject::Halt => {
                self.queue.halt(item.key());
                self.halted.push(item.work);
                finished.notes.push(Note::Halted { attempt, rejection });
            }
        }
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
