//! Random histories against a naive model: order per key (I3), settled once and nothing forgotten, bounds of batches and
//! pauses (I12), and no trace of what is settled.

use std::collections::{BTreeMap, HashMap};

use proptest::{collection::vec, prelude::*};
use walgate_sink::{FailureKind, SinkError};

use super::*;
use crate::{config::Rate, lane::FlightId};

#[derive(Clone, Debug)]
enum Step {
    Push { key: u8, targets: u32, size: u16, invalid: u8 },
    Decide,
    Take { max: usize, bytes: usize },
    Finish { which: usize, outcomes: Vec<Code> },
    FinishUnknownFlight,
    Advance { millis: u64 },
    Probe { result: u8 },
}

#[derive(Clone, Copy, Debug)]
enum Code {
    Ack,
    Reject,
    Unknown,
    Fail(FailureKind),
    RetryAfter(u64),
}

impl Code {
    fn outcome(self) -> Outcome {
        match self {
            Code::Ack => ACK,
            Code::Reject => rejected(),
            Code::Unknown => Outcome::Unknown,
            Code::Fail(kind) => failed(kind),
            Code::RetryAfter(millis) => retry_after(FailureKind::Throttled, Duration::from_millis(millis)),
        }
    }
}

fn code() -> impl Strategy<Value = Code> {
    prop_oneof![
        8 => Just(Code::Ack),
        2 => Just(Code::Reject),
        2 => Just(Code::Unknown),
        3 => Just(Code::Fail(FailureKind::Connection)),
        2 => Just(Code::Fail(FailureKind::Timeout)),
        2 => Just(Code::Fail(FailureKind::Unavailable)),
        1 => Just(Code::Fail(FailureKind::Fatal)),
        2 => (0u64..90_000).prop_map(Code::RetryAfter),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0u8..5, 1u32..4, 0u16..300, 0u8..12)
            .prop_map(|(key, targets, size, invalid)| Step::Push { key, targets, size, invalid }),
        3 => Just(Step::Decide),
        8 => (0usize..6, 0usize..600).prop_map(|(max, bytes)| Step::Take { max, bytes }),
        8 => (any::<usize>(), vec(code(), 0..7)).prop_map(|(which, outcomes)| Step::Finish { which, outcomes }),
        1 => Just(Step::FinishUnknownFlight),
        4 => (0u64..3_000).prop_map(|millis| Step::Advance { millis }),
        1 => (0u64..90_000).prop_map(|millis| Step::Advance { millis }),
        4 => (0u8..4).prop_map(|result| Step::Probe { result }),
    ]
}

/// What is known of one delivery.
#[derive(Debug, Default)]
struct Known {
    key: u8,
    event: u64,
    invalid: bool,
    flying: bool,
    settled: bool,
    halted: bool,
    attempts: u32,
    /// Not to be sent before, whatever happens: the sink's own wish.
    asked: Option<Instant>,
    /// Not to be sent before, unless an outage has ended since.
    paused: Option<Instant>,
}

struct World {
    lane: Lane,
    policy: LanePolicy,
    ring: Ring,
    now: Instant,
    events: u64,
    /// By name.
    known: BTreeMap<String, Known>,
    flights: Vec<Flight>,
    /// Tickets say no more than which event was settled.
    tickets: HashMap<Ticket, u64>,
    settled_of: HashMap<u64, u32>,
    start: Instant,
    /// Attempts so far.
    sent: u128,
    jitter: f64,
    down: bool,
    trial: bool,
    /// Failures without any answer, since the last one.
    silent: usize,
}

impl World {
    fn new(on_reject: OnReject, rate_limit: Option<Rate>) -> Self {
        let policy = LanePolicy { on_reject, rate_limit, ..LanePolicy::default() };
        let now = Instant::now();
        let mut ring = Ring::new(Lsn(1));
        ring.begin(Lsn(1));
        World {
            lane: Lane::new(policy.clone()),
            policy,
            ring,
            now,
            start: now,
            sent: 0,
            events: 0,
            known: BTreeMap::new(),
            flights: Vec::new(),
            tickets: HashMap::new(),
            settled_of: HashMap::new(),
            jitter: 0.0,
            down: false,
            trial: false,
            silent: 0,
        }
    }

    fn draw(&mut self) -> f64 {
        self.jitter = (self.jitter + 0.37) % 1.0;
        self.jitter
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Push { key, targets, size, invalid } => self.push(key, targets, size, invalid),
            Step::Decide => self.decide(),
            Step::Take { max, bytes } => self.take(max, bytes),
            Step::Finish { which, outcomes } if !self.flights.is_empty() => {
                let flight = self.flights.remove(which % self.flights.len());
                self.finish(&flight, &outcomes);
            }
            Step::Finish { .. } => {}
            Step::FinishUnknownFlight => {
                let finished = self.lane.finish(FlightId(u64::MAX), vec![ACK; 3], self.now, &mut || 0.5);
                assert!(finished.settled.is_empty() && finished.notes.is_empty());
            }
            Step::Advance { millis } => self.now += Duration::from_millis(millis),
            Step::Probe { result } => self.probe(result),
        }
        self.check();
    }

    fn push(&mut self, key: u8, targets: u32, size: u16, invalid: u8) {
        self.events += 1;
        let ticket = self.ring.track(NonZeroU32::new(targets).unwrap(), 1);
        self.tickets.insert(ticket, self.events);
        for target in 0..targets {
            let name = if key == 0 { String::new() } else { format!("key {key}") };
            let mut work = work(self.events, &name, target, ticket);
            work.delivery.event.payload = Some(vec![0; size.into()].into());
            let invalid = u32::from(invalid) == target;
            work.invalid = invalid.then(|| Rejection::new(RejectReason::InvalidTarget, "planned"));
            let known = Known { key, event: self.events, invalid, ..Known::default() };
            self.known.insert(work.delivery.dedup_id.to_string(), known);
            self.lane.push(work);
        }
    }

    fn decide(&mut self) {
        let finished = self.lane.decide_invalid(self.now);
        for note in &finished.notes {
            let (Note::Skipped { attempt, .. } | Note::Halted { attempt, .. }) = note else { panic!("{note:?}") };
            assert_eq!(attempt.number, 0);
            assert!(self.known[&*attempt.event_id].invalid);
            self.in_turn(&attempt.event_id);
            self.note(note);
        }
        self.settle(&finished);
    }

    /// I3: every earlier event of the key is settled.
    fn in_turn(&self, name: &str) {
        let this = &self.known[name];
        if this.key > 0 {
            for (other, known) in &self.known {
                let earlier = known.key == this.key && known.event < this.event;
                assert!(!earlier || known.settled, "{name} has its turn, and {other} is not settled: {known:?}");
            }
        }
    }

    fn take(&mut self, max: usize, bytes: usize) {
        let Some(flight) = self.lane.take(self.now, max, bytes) else { return };
        assert!(!self.down || self.trial, "the sink is down, and something was sent");
        assert!(!self.down || flight.batch.len() == 1, "a trial is one delivery");
        self.trial = false;
        assert!((1..=max.max(1)).contains(&flight.batch.len()));
        let size: usize = flight.batch.iter().map(|delivery| delivery.event.size()).sum();
        assert!(size <= bytes || flight.batch.len() == 1, "{size} bytes of {bytes}");
        self.sent += flight.batch.len() as u128;
        if let Some(rate) = self.policy.rate_limit {
            let (count, period) = (u128::from(rate.count().get()), rate.period().as_nanos());
            let elapsed = (self.now - self.start).as_nanos();
            let allowed = ((count * 1_000_000_000).max(period) + elapsed * count) / period;
            assert!(self.sent <= allowed, "{} attempts, and {allowed} are allowed", self.sent);
        }
        for delivery in flight.batch.iter() {
            let name = delivery.dedup_id.to_string();
            self.in_turn(&name);
            let now = self.now;
            let known = self.known.get_mut(&name).unwrap();
            assert!(!known.flying && !known.settled && !known.halted && !known.invalid, "{name}: {known:?}");
            assert!(known.asked.is_none_or(|asked| asked <= now), "{name}: sooner than the sink asked for");
            assert!(known.paused.is_none_or(|paused| paused <= now) || self.down, "{name}: sooner than its pause");
            known.flying = true;
            known.attempts += 1;
            assert_eq!(delivery.attempt, known.attempts);
        }
        self.flights.push(flight);
    }

    fn finish(&mut self, flight: &Flight, codes: &[Code]) {
        let outcomes: Vec<_> = codes.iter().map(|code| code.outcome()).collect();
        for (index, delivery) in flight.batch.iter().enumerate() {
            let known = self.known.get_mut(&*delivery.dedup_id).unwrap();
            known.flying = false;
            if matches!(codes.get(index), Some(Code::Ack)) {
                known.settled = true;
            }
            known.asked = match codes.get(index) {
                Some(Code::RetryAfter(millis)) => Some(self.now + Duration::from_millis(*millis).min(self.policy.max)),
                _ => None,
            };
        }
        self.listen(&codes[..codes.len().min(flight.batch.len())]);
        let jitter = self.draw();
        let finished = self.lane.finish(flight.id, outcomes, self.now, &mut || jitter);
        let acks = codes.iter().take(flight.batch.len()).filter(|code| matches!(code, Code::Ack)).count();
        assert_eq!(finished.acknowledged.len(), acks);
        self.notes(&finished);
        self.settle(&finished);
    }

    /// An answer after much silence: nothing that failed needs to wait for its pause.
    fn listen(&mut self, codes: &[Code]) {
        let silent = |code: &&Code| matches!(code, Code::Fail(FailureKind::Connection | FailureKind::Timeout));
        let silence = codes.iter().filter(silent).count();
        let unknown = codes.iter().filter(|code| matches!(code, Code::Unknown)).count();
        if silence + unknown < codes.len() {
            if self.silent >= self.policy.unreachable_after as usize {
                self.known.values_mut().for_each(|known| known.paused = None);
            }
            self.silent = 0;
        } else {
            self.silent += silence;
        }
    }

    fn notes(&mut self, finished: &Finished) {
        for note in &finished.notes {
            self.note(note);
        }
    }

    fn note(&mut self, note: &Note) {
        match note {
            Note::Retry { attempt, kind, delay, .. } => {
                let known = self.known.get_mut(&*attempt.event_id).unwrap();
                let cap = if *kind == FailureKind::Connection { self.policy.connection_max } else { self.policy.max };
                let asked = known.asked.map_or(Duration::ZERO, |asked| asked - self.now);
                assert!(*delay >= self.policy.initial / 2 && *delay >= asked, "{delay:?}, asked for {asked:?}");
                assert!(*delay <= cap.max(asked), "{delay:?} is more than {cap:?} and {asked:?}");
                known.paused = Some(self.now + *delay);
            }
            Note::Skipped { attempt, .. } => {
                assert_eq!(self.policy.on_reject, OnReject::Skip);
                self.known.get_mut(&*attempt.event_id).unwrap().settled = true;
            }
            Note::Halted { attempt, .. } => {
                assert_eq!(self.policy.on_reject, OnReject::Halt);
                self.known.get_mut(&*attempt.event_id).unwrap().halted = true;
            }
            Note::SinkDown { .. } => self.down = true,
            Note::SinkUp { .. } => {
                self.down = false;
                self.known.values_mut().for_each(|known| known.paused = None);
            }
            Note::ProbeFailed { .. } => assert!(self.down),
            note => panic!("there is no such thing without tables, and nobody closed it: {note:?}"),
        }
    }

    fn settle(&mut self, finished: &Finished) {
        for ticket in &finished.settled {
            assert_ne!(self.ring.settle(*ticket), Settled::Stale, "settled twice");
            *self.settled_of.entry(self.tickets[ticket]).or_default() += 1;
        }
    }

    fn probe(&mut self, result: u8) {
        if !self.lane.start_probe(self.now) {
            return;
        }
        assert!(self.down);
        let result = match result {
            0 => Err(SinkError::retryable("away")),
            1 => Err(SinkError::fatal("wrong password")),
            _ => Ok(()),
        };
        self.trial = result.is_ok();
        let jitter = self.draw();
        let notes = self.lane.probed(result, self.now, &mut || jitter);
        self.notes(&Finished { notes, ..Finished::default() });
    }

    /// What holds after every step.
    fn check(&self) {
        let open: Vec<_> = self.known.values().filter(|known| !known.settled).collect();
        let status = self.lane.status(self.now, Timestamp(0));
        assert_eq!(status.unsettled, open.len());
        assert_eq!(status.in_flight, open.iter().filter(|known| known.flying).count());
        let oldest = open.iter().map(|known| Lsn(known.event * 10)).min();
        assert_eq!(status.oldest.map(|oldest| oldest.position.commit_lsn), oldest);
        let mut settled_of: HashMap<u64, u32> = HashMap::new();
        for known in self.known.values().filter(|known| known.settled) {
            *settled_of.entry(known.event).or_default() += 1;
        }
        assert_eq!(self.settled_of, settled_of, "settlements by event");
        let mut busy: Vec<_> = open.iter().map(|known| known.key).filter(|key| *key > 0).collect();
        busy.sort_unstable();
        busy.dedup();
        assert_eq!(self.lane.traces().0, busy.len(), "keys in memory are those that are busy");
    }

    /// The sink works from now on: everything that is not held must go through.
    fn heal(&mut self) {
        for _ in 0..10_000 {
            for flight in std::mem::take(&mut self.flights) {
                self.finish(&flight, &vec![Code::Ack; flight.batch.len()]);
            }
            self.decide();
            self.probe(2);
            self.take(4, 400);
            if self.flights.is_empty() && !self.lane.has_invalid() {
                match self.lane.next_wakeup(self.now) {
                    Some(wake) => {
                        assert!(wake > self.now, "something can be done now, and is not done");
                        self.now = wake;
                    }
                    None => break,
                }
            }
            self.check();
        }
        self.check();
        assert!(!self.down, "a sink that works is up");
        let halted: Vec<_> =
            self.known.values().filter(|known| known.halted).map(|known| (known.key, known.event)).collect();
        for (name, known) in &self.known {
            let held =
                known.halted || halted.iter().any(|(key, event)| *key > 0 && *key == known.key && *event < known.event);
            assert!(known.settled || held, "forgotten: {name} {known:?}");
        }
        if halted.is_empty() {
            assert_eq!(self.lane.traces(), (0, 0, 0), "everything is settled, and something is left");
            assert_eq!(self.ring.unsettled_events(), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_history_keeps_order_settles_once_and_forgets_nothing(
        skip in any::<bool>(),
        rate in prop_oneof![3 => Just(None), 1 => Just(Some("5/s")), 1 => Just(Some("20/m")), 1 => Just(Some("3/h"))],
        steps in vec(step(), 1..150),
    ) {
        let rate = rate.map(|rate| rate.parse().unwrap());
        let mut world = World::new(if skip { OnReject::Skip } else { OnReject::Halt }, rate);
        for step in steps {
            world.step(step);
        }
        world.heal();
    }
}
