//! Tests of the lane, and what they share.

mod failures;
mod letters;
mod order;
mod outage;
mod panics;
mod parking;
mod properties;
mod runner;
mod shelf;

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use walgate_sink::{
    Delivery, Event, Failure, FailureKind, Lsn, Outcome, Position, RejectReason, Rejection, Target, Timestamp,
};

use super::{Finished, Flight, Lane, LanePolicy, LaneState, LaneStatus, Note, Work};
use crate::{
    checkpoint::{Ring, Settled, Ticket},
    config::OnReject,
};

const SECOND: Duration = Duration::from_secs(1);

/// A lane with its clock, and a ring that knows what is settled.
struct Bench {
    lane: Lane,
    ring: Ring,
    now: Instant,
    start: Instant,
    events: u64,
    jitter: f64,
}

impl Bench {
    fn new() -> Self {
        Bench::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut LanePolicy)) -> Self {
        let mut policy = LanePolicy::default();
        change(&mut policy);
        let start = Instant::now();
        let mut ring = Ring::new(Lsn(1));
        ring.begin(Lsn(1));
        Bench { lane: Lane::new(policy), ring, now: start, start, events: 0, jitter: 1.0 }
    }

    fn skipping() -> Self {
        Bench::with(|policy| policy.on_reject = OnReject::Skip)
    }

    /// The next event: `key`, and one delivery for each of `targets`.
    fn event(&mut self, key: &str, targets: u32) -> Vec<Work> {
        self.events += 1;
        let ticket = self.ring.track(NonZeroU32::new(targets).unwrap(), 100);
        (0..targets).map(|target| work(self.events, key, target, ticket)).collect()
    }

    /// Pushes an event with one delivery, which is named by its number from 1.
    fn push(&mut self, key: &str) {
        self.push_to(key, 1);
    }

    fn push_to(&mut self, key: &str, targets: u32) {
        for work in self.event(key, targets) {
            self.lane.push(work);
        }
    }

    fn push_invalid(&mut self, key: &str) {
        for mut work in self.event(key, 1) {
            work.invalid = Some(Rejection::new(RejectReason::InvalidTarget, "empty topic"));
            self.lane.push(work);
        }
    }

    fn take(&mut self) -> Option<Flight> {
        self.lane.take(self.now, 100, usize::MAX)
    }

    /// Names of what goes out now; they stay in flight.
    fn sent(&mut self) -> Vec<String> {
        self.take().map(|flight| names(&flight)).unwrap_or_default()
    }

    fn finish(&mut self, flight: &Flight, outcomes: Vec<Outcome>) -> Finished {
        let jitter = self.jitter;
        let finished = self.lane.finish(flight.id, outcomes, self.now, &mut || jitter);
        self.settle(&finished);
        finished
    }

    /// Takes a batch and gives every delivery of it this outcome. Returns the batch's names.
    fn round(&mut self, outcome: &Outcome) -> Vec<String> {
        let Some(flight) = self.take() else { return Vec::new() };
        self.finish(&flight, vec![outcome.clone(); flight.batch.len()]);
        names(&flight)
    }

    fn decide(&mut self) -> Finished {
        let finished = self.lane.decide_invalid(self.now);
        self.settle(&finished);
        finished
    }

    fn settle(&mut self, finished: &Finished) {
        for ticket in &finished.settled {
            assert_ne!(self.ring.settle(*ticket), Settled::Stale, "a delivery was settled twice");
        }
    }

    fn probe(&mut self, result: Result<(), walgate_sink::SinkError>) -> Vec<Note> {
        assert!(self.lane.start_probe(self.now), "a probe is due");
        let jitter = self.jitter;
        self.lane.probed(result, self.now, &mut || jitter)
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
    }

    /// Time from now to the next thing that the lane wants to do.
    fn until_wakeup(&self) -> Option<Duration> {
        self.lane.next_wakeup(self.now).map(|at| at.saturating_duration_since(self.now))
    }

    fn status(&self) -> LaneStatus {
        let micros = (self.now - self.start).as_micros();
        self.lane.status(self.now, Timestamp(i64::try_from(micros).unwrap()))
    }

    fn state(&self) -> LaneState {
        self.status().state
    }
}

fn work(number: u64, key: &str, target: u32, ticket: Ticket) -> Work {
    let name = if target == 0 { format!("{number}") } else { format!("{number}.{target}") };
    let mut event = Event::new(name.clone(), "order.created");
    event.position = Position { commit_lsn: Lsn(number * 10), ordinal: 0 };
    let delivery = Delivery {
        event,
        target: Target::new(&[], []),
        ordering_key: (!key.is_empty()).then(|| key.into()),
        dedup_id: name.into(),
        attempt: 0,
    };
    Work { delivery, debt: ticket.into(), route: 7, invalid: None }
}

fn names(flight: &Flight) -> Vec<String> {
    flight.batch.iter().map(|delivery| delivery.dedup_id.to_string()).collect()
}

const ACK: Outcome = Outcome::Acknowledged { duplicate: false };

fn failed(kind: FailureKind) -> Outcome {
    Outcome::Failed(Failure::new(kind, "planned failure"))
}

fn retry_after(kind: FailureKind, after: Duration) -> Outcome {
    let mut failure = Failure::new(kind, "slow down");
    failure.retry_after = Some(after);
    Outcome::Failed(failure)
}

fn rejected() -> Outcome {
    Outcome::Rejected(Rejection::new(RejectReason::Refused, "planned rejection"))
}
