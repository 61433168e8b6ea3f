//! Random histories of a lane with tables: a sink that is well, down, or slow to say so; events that it rejects, and events
//! that always fail; tables that are away, that fail after they have written, and that are full; pauses; and crashes,
//! after which the stream sends again what was not confirmed. Whatever happens: nothing is lost, of each key the receipts
//! never skip forward, and nothing is settled that is not in a place that survives.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};
use walgate_sink::{FailureKind, SinkError};

use super::{shelf::Shelf, *};
use crate::{
    control::parking::{Filter, StoreError},
    lane::{Chore, Done, ParkingPolicy},
};

#[derive(Clone, Debug)]
enum Step {
    /// An event of this key (0: none), with so many targets.
    Event {
        key: u8,
        targets: u32,
        kind: u8,
    },
    Take {
        max: usize,
    },
    /// What becomes of a batch in flight: see [`World::outcome`].
    Finish {
        which: usize,
        lost: u8,
    },
    Chore {
        fate: u8,
    },
    Advance {
        millis: u64,
    },
    Probe,
    Sink(Mood),
    Pause(bool),
    Press(bool),
    Sacrifice(bool),
    Crash,
    Revive {
        event: u64,
    },
    Skip {
        event: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    Away,
    Failing,
    Silent,
    Denied,
}

fn step() -> impl Strategy<Value = Step> {
    let mood = prop_oneof![
        4 => Just(Mood::Well),
        2 => Just(Mood::Away),
        1 => Just(Mood::Failing),
        1 => Just(Mood::Silent),
        1 => Just(Mood::Denied),
    ];
    prop_oneof![
        14 => (0u8..5, 1u32..3, 0u8..24).prop_map(|(key, targets, kind)| Step::Event { key, targets, kind }),
        12 => (1usize..6).prop_map(|max| Step::Take { max }),
        12 => (any::<usize>(), 0u8..10).prop_map(|(which, lost)| Step::Finish { which, lost }),
        16 => (0u8..12).prop_map(|fate| Step::Chore { fate }),
        6 => (0u64..4_000).prop_map(|millis| Step::Advance { millis }),
        5 => Just(Step::Probe),
        3 => mood.prop_map(Step::Sink),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => any::<bool>().prop_map(Step::Press),
        1 => any::<bool>().prop_map(Step::Sacrifice),
        1 => Just(Step::Crash),
        1 => (0u64..30).prop_map(|event| Step::Revive { event }),
        1 => (0u64..30).prop_map(|event| Step::Skip { event }),
    ]
}

/// An event of the stream.
#[derive(Clone, Debug)]
struct Committed {
    number: u64,
    key: u8,
    targets: u32,
    /// 0: it is always rejected; 1: it always fails; 2: it cannot be routed; else it is taken.
    kind: u8,
}

/// What the test knows of one delivery, by its name.
#[derive(Clone, Debug, Default)]
struct Fate {
    received: bool,
    skipped: bool,
}

struct World {
    policy: LanePolicy,
    lane: Lane,
    ring: Ring,
    tickets: BTreeMap<u64, Ticket>,
    names: std::collections::HashMap<Ticket, u64>,
    now: Instant,
    /// In the order of commits.
    stream: Vec<Committed>,
    /// The first event that a new process is sent.
    confirmed: usize,
    settled: BTreeMap<u64, u32>,
    fates: BTreeMap<String, Fate>,
    /// By key, the events received so far, repeats included: the highest number in the key's own order.
    reached: BTreeMap<u8, u64>,
    shelf: Shelf,
    underway: Option<Chore>,
    flights: Vec<Flight>,
    mood: Mood,
    jitter: f64,
    revived: BTreeSet<u64>,
    /// Dead letters that were made before their turn.
    sacrificed: BTreeSet<u64>,
}

impl World {
    fn new(on_reject: OnReject, outages: bool, max_rows: u64) -> Self {
        let parking = ParkingPolicy {
            outages,
            park_after: Duration::from_secs(2),
            share: 4_000,
            max_rows,
            max_bytes: u64::MAX,
            fields: &[],
            routes: crate::metrics::Routes::default(),
        };
        let policy = LanePolicy { on_reject, parking: Some(parking), ..LanePolicy::default() };
        let now = Instant::now();
        World {
            lane: Lane::new(policy.clone()),
            policy,
            ring: ring(),
            tickets: BTreeMap::new(),
            names: std::collections::HashMap::new(),
            now,
            stream: Vec::new(),
            confirmed: 0,
            settled: BTreeMap::new(),
            fates: BTreeMap::new(),
            reached: BTreeMap::new(),
            shelf: Shelf::default(),
            underway: None,
            flights: Vec::new(),
            mood: Mood::Well,
            jitter: 0.0,
            revived: BTreeSet::new(),
            sacrificed: BTreeSet::new(),
        }
    }

    fn draw(&mut self) -> f64 {
        self.jitter = (self.jitter + 0.37) % 1.0;
        self.jitter
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Event { key, targets, kind } => {
                let number = self.stream.len() as u64 + 1;
                self.stream.push(Committed { number, key, targets, kind });
                self.push(self.stream.len() - 1);
            }
            Step::Take { max } => self.take(max),
            Step::Finish { which, lost } if !self.flights.is_empty() => {
                let flight = self.flights.remove(which % self.flights.len());
                self.finish(&flight, lost);
            }
            Step::Finish { .. } => {}
            Step::Chore { fate } => self.chore(fate),
            Step::Advance { millis } => self.now += Duration::from_millis(millis),
            Step::Probe => self.probe(),
            Step::Sink(mood) => self.mood = mood,
            Step::Pause(paused) => self.lane.pause(paused, self.now),
            Step::Press(pressed) => self.lane.press(pressed),
            Step::Sacrifice(sacrificed) => self.lane.sacrifice(sacrificed),
            Step::Crash => self.crash(),
            Step::Revive { event } => self.revive(event),
            Step::Skip { event } => {
                if let Some(finished) = self.lane.skip(&event.to_string(), self.now) {
                    self.finished(finished);
                }
            }
        }
        self.tend();
    }

    fn tend(&mut self) {
        let mut finished = Finished::default();
        self.lane.tend(self.now, &mut finished);
        self.finished(finished);
        while self.lane.has_invalid() {
            let decided = self.lane.decide_invalid(self.now);
            self.finished(decided);
        }
        assert_eq!(self.lane.holds_live(), self.ring.unsettled_events() > 0);
    }

    fn push(&mut self, index: usize) {
        let Committed { number, key, targets, kind } = self.stream[index].clone();
        let ticket = self.ring.track(NonZeroU32::new(targets).unwrap(), 1);
        self.tickets.insert(number, ticket);
        self.names.insert(ticket, number);
        for target in 0..targets {
            let name = if key == 0 { String::new() } else { format!("key {key}") };
            let mut work = work(number, &name, target, ticket);
            work.delivery.event.id = number.to_string().into();
            work.route = 1;
            if kind == 2 {
                work.invalid = Some(Rejection::new(RejectReason::InvalidTarget, "planned"));
            }
            self.fates.entry(work.delivery.dedup_id.to_string()).or_default();
            self.lane.push(work);
        }
    }

    fn take(&mut self, max: usize) {
        let Some(flight) = self.lane.take(self.now, max, usize::MAX) else { return };
        // At most one event of a key is in flight.
        let mut flying: BTreeMap<String, Position> = BTreeMap::new();
        let all = self.flights.iter().chain([&flight]);
        for delivery in all.flat_map(|flight| flight.batch.iter()) {
            let Some(key) = &delivery.ordering_key else { continue };
            let before = flying.insert(key.to_string(), delivery.event.position);
            assert!(before.is_none_or(|before| before == delivery.event.position), "two events of {key} in flight");
        }
        self.flights.push(flight);
    }

    fn event(&self, delivery: &Delivery) -> Committed {
        let number: usize = delivery.event.id.parse().unwrap();
        self.stream[number - 1].clone()
    }

    /// What the sink does with a delivery, and what the lane hears of it. `lost`: now and then the answer is lost.
    fn outcome(&mut self, delivery: &Delivery, lost: u8) -> Outcome {
        let event = self.event(delivery);
        match self.mood {
            Mood::Away => return failed(FailureKind::Connection),
            Mood::Silent => return failed(FailureKind::Timeout),
            Mood::Denied => return failed(FailureKind::Fatal),
            Mood::Failing => return failed(FailureKind::Unavailable),
            Mood::Well => {}
        }
        match event.kind {
            0 => return rejected(),
            1 => return failed(FailureKind::Unavailable),
            _ => {}
        }
        self.receive(delivery);
        if lost == 0 { Outcome::Unknown } else { ACK }
    }

    fn receive(&mut self, delivery: &Delivery) {
        let event = self.event(delivery);
        let name = delivery.dedup_id.split("-r").next().unwrap().to_owned();
        self.fates.get_mut(&name).unwrap().received = true;
        // A sacrificed event is a dead letter before its turn: an operator who brings it back may bring it ahead of what is
        // parked of its key. Nobody else can.
        if event.key == 0 || (delivery.dedup_id.contains("-r") && self.sacrificed.contains(&event.number)) {
            return;
        }
        // I3: of the key, everything before it was received, left out, or is a dead letter.
        let reached = self.reached.get(&event.key).copied().unwrap_or(0);
        for earlier in &self.stream {
            if earlier.key == event.key && earlier.number < event.number && earlier.number > reached {
                for target in 0..earlier.targets {
                    let name = name_of(earlier.number, target);
                    let fate = &self.fates[&name];
                    let dead = self.is_dead(&name);
                    assert!(
                        fate.received || fate.skipped || dead,
                        "{} of key {} received before {name}: {fate:?}",
                        event.number,
                        event.key
                    );
                }
            }
        }
        self.reached.insert(event.key, reached.max(event.number));
    }

    fn is_dead(&self, name: &str) -> bool {
        self.shelf.dead.values().any(|row| is_named(&row.parcel.delivery, name))
            // Brought back by an operator, later than its turn: no order is kept with what has passed it.
            || self.revived.contains(&name.split('.').next().unwrap().parse().unwrap())
    }

    fn finish(&mut self, flight: &Flight, lost: u8) {
        let batch = flight.batch.clone();
        let outcomes = batch.iter().map(|delivery| self.outcome(delivery, lost)).collect();
        let jitter = self.draw();
        let finished = self.lane.finish(flight.id, outcomes, self.now, &mut || jitter);
        self.finished(finished);
    }

    fn finished(&mut self, finished: Finished) {
        for note in &finished.notes {
            if let Note::Skipped { attempt, .. } = note {
                let number: u64 = attempt.event_id.parse().unwrap();
                for target in 0..self.stream[usize::try_from(number).unwrap() - 1].targets {
                    self.fates.get_mut(&name_of(number, target)).unwrap().skipped = true;
                }
            }
        }
        for ticket in finished.settled {
            assert_ne!(self.ring.settle(ticket), Settled::Stale, "settled twice");
            let number = self.names[&ticket];
            let settled = self.settled.entry(number).or_default();
            *settled += 1;
            let settled = *settled;
            // What is settled is in a place that survives.
            let targets = self.stream[usize::try_from(number).unwrap() - 1].targets;
            for name in (0..targets).filter(|_| settled >= targets).map(|target| name_of(number, target)) {
                let fate = &self.fates[&name];
                let parked = self.shelf.parked.values().any(|row| is_named(&row.parcel.delivery, &name));
                assert!(fate.received || fate.skipped || parked || self.is_dead(&name), "{name} is settled: {fate:?}");
            }
        }
        while self.confirmed < self.stream.len() {
            let Committed { number, targets, .. } = self.stream[self.confirmed];
            if self.settled.get(&number).copied().unwrap_or(0) < targets {
                break;
            }
            self.confirmed += 1;
        }
    }

    /// Does an operation; before, it looks which dead letters were made before their turn.
    fn carry_out(&mut self, chore: Chore) -> Result<Done, StoreError> {
        let early = self.shelf.dead.values().filter(|row| row.parcel.reason.as_deref() == Some("sacrificed"));
        self.sacrificed.extend(early.map(|row| row.parcel.delivery.event.id.parse::<u64>().unwrap()));
        self.shelf.carry_out(chore)
    }

    /// Starts an operation, or ends the one that is under way. `fate`: 0: it fails; 1: it is done, and its answer lost.
    fn chore(&mut self, fate: u8) {
        let Some(chore) = self.underway.take() else {
            self.underway = self.lane.next_chore(self.now, false);
            return;
        };
        let away = || StoreError { message: "away".into(), lasting: false };
        let result = match fate {
            0 => Err(away()),
            1 => {
                let _ = self.carry_out(chore);
                Err(away())
            }
            _ => self.carry_out(chore),
        };
        self.done(result);
    }

    fn done(&mut self, result: Result<Done, StoreError>) {
        let jitter = self.draw();
        let finished = self.lane.chore_done(result, self.now, &mut || jitter);
        self.finished(finished);
    }

    fn probe(&mut self) {
        if !self.lane.start_probe(self.now) {
            return;
        }
        let result = match self.mood {
            Mood::Well | Mood::Failing => Ok(()),
            Mood::Denied => Err(SinkError::fatal("wrong password")),
            Mood::Away | Mood::Silent => Err(SinkError::retryable("away")),
        };
        let jitter = self.draw();
        self.lane.probed(result, self.now, &mut || jitter);
    }

    /// The process is killed, and another begins where the confirmed one ends. What is in flight may arrive still; an
    /// operation that is under way may have happened or not.
    fn crash(&mut self) {
        for flight in std::mem::take(&mut self.flights) {
            for delivery in flight.batch.iter() {
                self.outcome(delivery, 0);
            }
        }
        if let Some(chore) = self.underway.take()
            && self.draw() > 0.5
        {
            let _ = self.carry_out(chore);
        }
        self.lane = Lane::new(self.policy.clone());
        self.ring = ring();
        self.tickets.clear();
        self.names.clear();
        let first = self.confirmed;
        self.settled.retain(|number, _| (*number as usize) <= first);
        for index in first..self.stream.len() {
            self.push(index);
        }
    }

    fn revive(&mut self, event: u64) {
        let filter = Filter { event_id: Some(event.to_string()), ..Filter::default() };
        self.revived.insert(event);
        self.lane.revive(1, filter, 0, "r1".into());
    }

    /// The sink and the tables work from now on, nobody pauses anything: everything that is not held must arrive.
    fn heal(&mut self) {
        self.mood = Mood::Well;
        self.lane.pause(false, self.now);
        self.lane.press(false);
        self.lane.sacrifice(false);
        for _ in 0..5_000 {
            for flight in std::mem::take(&mut self.flights) {
                self.finish(&flight, 1);
            }
            self.tend();
            self.probe();
            if self.underway.is_none() {
                self.underway = self.lane.next_chore(self.now, false);
            }
            if self.underway.is_some() {
                self.chore(9);
            }
            self.tend();
            self.take(5);
            if self.flights.is_empty() && self.underway.is_none() {
                if self.is_over() {
                    break;
                }
                match self.lane.next_wakeup(self.now) {
                    Some(wake) => self.now = self.now.max(wake) + Duration::from_millis(1),
                    None => break,
                }
            }
        }
    }

    /// Nothing is left but what fails or is held for ever.
    fn is_over(&self) -> bool {
        self.fates.iter().all(|(name, fate)| fate.received || fate.skipped || self.is_dead(name) || self.is_held(name))
            && self.shelf.parked.values().all(|row| self.is_held(&plain(&row.parcel.delivery)))
    }

    /// It, or an event before it of its key, is rejected and holds the key, or always fails.
    fn is_held(&self, name: &str) -> bool {
        let number: usize = name.split('.').next().unwrap().parse().unwrap();
        let event = &self.stream[number - 1];
        self.stream.iter().any(|other| {
            let holds = match other.kind {
                0 | 2 => {
                    matches!(self.policy.on_reject, OnReject::Halt | OnReject::ParkKey)
                        || self.revived.contains(&other.number)
                }
                1 => true,
                _ => false,
            };
            holds
                && (other.number == event.number
                    || (event.key > 0 && other.key == event.key && other.number < event.number))
        })
    }

    fn judge(&self) {
        for (name, fate) in &self.fates {
            assert!(
                fate.received || fate.skipped || self.is_dead(name) || self.is_held(name),
                "lost or stuck: {name} {:?} {fate:?}\n{:?}",
                self.stream[name.split('.').next().unwrap().parse::<usize>().unwrap() - 1],
                self.lane.status(self.now, Timestamp(0)),
            );
        }
    }
}

fn ring() -> Ring {
    let mut ring = Ring::new(Lsn(1));
    ring.begin(Lsn(1));
    ring
}

fn name_of(number: u64, target: u32) -> String {
    if target == 0 { format!("{number}") } else { format!("{number}.{target}") }
}

/// The name of a delivery, without what a retry has added.
fn plain(delivery: &Delivery) -> String {
    delivery.dedup_id.split("-r").next().unwrap().to_owned()
}

fn is_named(delivery: &Delivery, name: &str) -> bool {
    plain(delivery) == name
}

fn on_reject() -> impl Strategy<Value = OnReject> {
    prop_oneof![
        3 => Just(OnReject::DeadLetter),
        1 => Just(OnReject::Skip),
        1 => Just(OnReject::Halt),
        2 => Just(OnReject::ParkKey),
    ]
}

#[test]
fn what_can_be_read_and_not_written_is_tried_with_growing_pauses() {
    let mut world = World::new(OnReject::DeadLetter, true, u64::MAX);
    world.step(Step::Event { key: 0, targets: 1, kind: 0 });
    world.step(Step::Press(true));
    let (mut parked, mut shown) = (Vec::new(), 0);
    while parked.len() < 12 {
        world.step(Step::Advance { millis: 20 });
        world.chore(2);
        if let Some(Chore::Park(_)) = &world.underway {
            parked.push(world.now);
            world.chore(0);
        }
        let status = world.lane.status(world.now, walgate_sink::Timestamp::now());
        shown += u32::from(parked.is_empty() || status.parking.unwrap().error.is_some());
        world.tend();
    }
    let pauses: Vec<Duration> = parked.windows(2).map(|two| two[1] - two[0]).collect();
    assert!(pauses[0] < Duration::from_millis(300) && pauses[10] > Duration::from_secs(4), "{pauses:?}");
    assert!(shown > 100, "the error is shown until something was written");
    world.heal();
    world.judge();
    assert_eq!(world.lane.status(world.now, walgate_sink::Timestamp::now()).parking.unwrap().error, None);
}

proptest! {

    #[test]
    fn nothing_is_lost_and_no_key_skips_forward_whatever_happens(
        on_reject in on_reject(),
        outages in prop_oneof![4 => Just(true), 1 => Just(false)],
        max_rows in prop_oneof![4 => Just(u64::MAX), 1 => 1u64..10],
        steps in vec(step(), 1..200),
    ) {
        let mut world = World::new(on_reject, outages, max_rows);
        for step in steps {
            world.step(step);
        }
        world.heal();
        world.judge();
    }
}
