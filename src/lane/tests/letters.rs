//! Random histories of two lanes, of which the first gives its dead letters to the second: sinks that are well or away,
//! events that the one or the other rejects, tables that fail before or after they have written, and crashes, after which
//! the stream sends again what was not confirmed. Whatever happens: what is confirmed is with the first sink, in a table,
//! or with the second sink; everything is settled once; and what both sinks get by their own routes is in order.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use proptest::{collection::vec, prelude::*};
use walgate_sink::{FailureKind, SinkError};

use super::{shelf::Shelf, *};
use crate::{
    config::LetterPayload,
    control::parking::StoreError,
    lane::{Chore, Destination, Done, ParkingPolicy},
    router::{Direct, Mapping, SinkTarget},
};

/// Which of the two lanes.
const FIRST: usize = 0;
const SECOND: usize = 1;

#[derive(Clone, Debug)]
enum Step {
    /// An event of this key (0: none) for the first sink, and for the second one too.
    Event {
        key: u8,
        kind: u8,
        both: bool,
    },
    Take {
        side: usize,
        max: usize,
    },
    Finish {
        side: usize,
        which: usize,
        lost: u8,
    },
    Chore {
        side: usize,
        fate: u8,
    },
    /// `fate`: 0: the second lane is not there; 1: it has settled everything before the first knows that it took it.
    Hand {
        fate: u8,
    },
    Tell,
    Advance {
        millis: u64,
    },
    Probe {
        side: usize,
    },
    Sink {
        side: usize,
        mood: Mood,
    },
    Press {
        side: usize,
        pressed: bool,
    },
    Crash,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Well,
    Away,
    Failing,
}

fn step() -> impl Strategy<Value = Step> {
    let side = || 0usize..2;
    let mood = prop_oneof![3 => Just(Mood::Well), 1 => Just(Mood::Away), 1 => Just(Mood::Failing)];
    prop_oneof![
        14 => (0u8..5, 0u8..10, any::<bool>()).prop_map(|(key, kind, both)| Step::Event { key, kind, both }),
        12 => (side(), 1usize..6).prop_map(|(side, max)| Step::Take { side, max }),
        14 => (side(), any::<usize>(), 0u8..10).prop_map(|(side, which, lost)| Step::Finish { side, which, lost }),
        20 => (side(), 0u8..12).prop_map(|(side, fate)| Step::Chore { side, fate }),
        10 => (0u8..8).prop_map(|fate| Step::Hand { fate }),
        5 => Just(Step::Tell),
        6 => (0u64..4_000).prop_map(|millis| Step::Advance { millis }),
        5 => side().prop_map(|side| Step::Probe { side }),
        4 => (side(), mood).prop_map(|(side, mood)| Step::Sink { side, mood }),
        3 => (side(), any::<bool>()).prop_map(|(side, pressed)| Step::Press { side, pressed }),
        1 => Just(Step::Crash),
    ]
}

#[derive(Clone, Debug)]
struct Committed {
    number: u64,
    key: u8,
    /// Of the first sink: 0: it rejects it; 1: it fails for ever; 2: it has no target; else it takes it. Of the second:
    /// 0 and 3: it rejects it; else it takes it.
    kind: u8,
    both: bool,
}

impl Committed {
    fn is_letter(&self) -> bool {
        self.kind < 3
    }

    fn is_taken(&self, side: usize) -> bool {
        if side == FIRST { !self.is_letter() } else { !matches!(self.kind, 0 | 3) }
    }

    fn deliveries(&self) -> u32 {
        1 + u32::from(self.both)
    }
}

struct Side {
    policy: LanePolicy,
    lane: Lane,
    shelf: Shelf,
    underway: Option<Chore>,
    flights: Vec<Flight>,
    mood: Mood,
    /// By name: what the sink has.
    received: BTreeSet<String>,
    /// What was left out.
    skipped: BTreeSet<String>,
}

impl Side {
    fn new(policy: LanePolicy) -> Self {
        Side {
            lane: Lane::new(policy.clone()),
            policy,
            shelf: Shelf::default(),
            underway: None,
            flights: Vec::new(),
            mood: Mood::Well,
            received: BTreeSet::new(),
            skipped: BTreeSet::new(),
        }
    }

    /// It is somewhere that survives a crash.
    fn is_safe(&self, name: &str) -> bool {
        let mut rows = self.shelf.parked.values().chain(self.shelf.dead.values());
        self.received.contains(name)
            || self.skipped.contains(name)
            || rows.any(|row| *row.parcel.delivery.dedup_id == *name)
    }
}

struct World {
    sides: [Side; 2],
    ring: Ring,
    names: HashMap<Ticket, u64>,
    now: Instant,
    stream: Vec<Committed>,
    confirmed: usize,
    settled: BTreeMap<u64, u32>,
    /// Names of letters by the number of their event.
    letters: BTreeMap<u64, String>,
    /// Rows that the second lane has settled, and the first does not know it.
    told: Vec<(u64, i64)>,
    /// Those that were told by this process.
    rows: BTreeSet<(u64, i64)>,
    process: u64,
    jitter: f64,
}

fn destination() -> Arc<Destination> {
    let bin = SinkTarget { name: "bin".into(), fields: &[], defaults: Vec::new(), check: |_, _| Ok(()) };
    let target = Direct::compile(&[bin], "bin", &Mapping::default()).unwrap();
    Arc::new(Destination { from: "first".into(), to: "bin".into(), target: Arc::new(target) })
}

impl World {
    fn new(tables: bool, outages: [bool; 2], second: OnReject) -> Self {
        let parking = |outages| ParkingPolicy {
            outages,
            park_after: Duration::from_secs(2),
            share: 4_000,
            max_rows: u64::MAX,
            max_bytes: u64::MAX,
            fields: &[],
            routes: crate::metrics::Routes::default(),
        };
        let policy = |outages, on_reject| LanePolicy {
            on_reject,
            parking: tables.then(|| parking(outages)),
            ..LanePolicy::default()
        };
        let mut first = policy(outages[FIRST], OnReject::DeadLetter);
        (first.destination, first.max_attempts) = (Some(destination()), Some(3));
        World {
            sides: [Side::new(first), Side::new(policy(outages[SECOND], second))],
            ring: ring(),
            names: HashMap::new(),
            now: Instant::now(),
            stream: Vec::new(),
            confirmed: 0,
            settled: BTreeMap::new(),
            letters: BTreeMap::new(),
            told: Vec::new(),
            rows: BTreeSet::new(),
            process: 1,
            jitter: 0.0,
        }
    }

    fn draw(&mut self) -> f64 {
        self.jitter = (self.jitter + 0.37) % 1.0;
        self.jitter
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Event { key, kind, both } => {
                let number = self.stream.len() as u64 + 1;
                self.stream.push(Committed { number, key, kind, both });
                self.push(self.stream.len() - 1);
            }
            Step::Take { side, max } => self.take(side, max),
            Step::Finish { side, which, lost } if !self.sides[side].flights.is_empty() => {
                let which = which % self.sides[side].flights.len();
                let flight = self.sides[side].flights.remove(which);
                self.finish(side, &flight, lost);
            }
            Step::Finish { .. } => {}
            Step::Chore { side, fate } => self.chore(side, fate),
            Step::Hand { fate } => self.hand(fate),
            Step::Tell => self.tell(),
            Step::Advance { millis } => self.now += Duration::from_millis(millis),
            Step::Probe { side } => self.probe(side),
            Step::Sink { side, mood } => self.sides[side].mood = mood,
            Step::Press { side, pressed } => self.sides[side].lane.press(pressed),
            Step::Crash => self.crash(),
        }
        self.tend();
        self.check();
    }

    fn push(&mut self, index: usize) {
        let event = self.stream[index].clone();
        let Committed { number, key, kind, .. } = event;
        let ticket = self.ring.track(NonZeroU32::new(event.deliveries()).unwrap(), 1);
        self.names.insert(ticket, number);
        for side in 0..event.deliveries() as usize {
            let name = if key == 0 { String::new() } else { format!("key {key}") };
            let mut work = work(number, &name, 0, ticket);
            if kind == 2 && side == FIRST {
                work.invalid = Some(Rejection::new(RejectReason::InvalidTarget, "planned"));
            }
            work.delivery.event.key = work.delivery.ordering_key.clone();
            self.sides[side].lane.push(work);
        }
    }

    fn tend(&mut self) {
        for side in [FIRST, SECOND] {
            let mut finished = Finished::default();
            self.sides[side].lane.tend(self.now, &mut finished);
            self.finished(side, finished);
            while self.sides[side].lane.has_invalid() {
                let decided = self.sides[side].lane.decide_invalid(self.now);
                self.finished(side, decided);
            }
        }
    }

    fn take(&mut self, side: usize, max: usize) {
        let now = self.now;
        let side = &mut self.sides[side];
        let Some(flight) = side.lane.take(now, max, usize::MAX) else { return };
        let mut flying: BTreeMap<String, Position> = BTreeMap::new();
        for delivery in side.flights.iter().chain([&flight]).flat_map(|flight| flight.batch.iter()) {
            let Some(key) = &delivery.ordering_key else { continue };
            let before = flying.insert(key.to_string(), delivery.event.position);
            assert!(before.is_none_or(|before| before == delivery.event.position), "two events of {key} in flight");
        }
        side.flights.push(flight);
    }

    fn outcome(&mut self, side: usize, delivery: &Delivery, lost: u8) -> Outcome {
        let number: usize = delivery.event.id.parse().unwrap();
        let event = self.stream[number - 1].clone();
        match self.sides[side].mood {
            Mood::Away => return failed(FailureKind::Connection),
            Mood::Failing => return failed(FailureKind::Unavailable),
            Mood::Well => {}
        }
        if side == FIRST && event.kind == 1 {
            return failed(FailureKind::Unavailable);
        }
        if !event.is_taken(side) {
            return rejected();
        }
        if is_letter(delivery) {
            assert_eq!(side, SECOND, "a letter of a letter");
        } else if event.key > 0 {
            // I3, of what comes by routes: nothing that the sink takes is skipped.
            for earlier in
                self.stream.iter().filter(|earlier| earlier.key == event.key && earlier.number < event.number)
            {
                let owed = earlier.is_taken(side) && (side == FIRST || earlier.both);
                // Away for so long, it may have cost `max_attempts`.
                let letter = side == FIRST && self.letters.contains_key(&earlier.number);
                let got = letter || self.sides[side].received.contains(&earlier.number.to_string());
                assert!(!owed || got, "{number} before {} of key {}", earlier.number, event.key);
            }
        }
        self.sides[side].received.insert(delivery.dedup_id.to_string());
        if lost == 0 { Outcome::Unknown } else { ACK }
    }

    fn finish(&mut self, side: usize, flight: &Flight, lost: u8) {
        let batch = flight.batch.clone();
        let outcomes = batch.iter().map(|delivery| self.outcome(side, delivery, lost)).collect();
        let jitter = self.draw();
        let before: Vec<String> = batch.iter().map(|delivery| delivery.dedup_id.to_string()).collect();
        let finished = self.sides[side].lane.finish(flight.id, outcomes, self.now, &mut || jitter);
        for note in &finished.notes {
            if let Note::Skipped { attempt, .. } = note {
                let gone = before.iter().filter(|name| name.split('-').next() == Some(&*attempt.event_id));
                self.sides[side].skipped.extend(gone.cloned());
            }
        }
        self.finished(side, finished);
    }

    fn finished(&mut self, side: usize, finished: Finished) {
        for row in &finished.rows {
            assert_eq!((side, row.0), (SECOND, self.process), "a row of another lane");
            assert!(self.rows.insert(*row), "a row was settled twice");
        }
        self.told.extend(finished.rows);
        for note in &finished.notes {
            if let (FIRST, Note::DeadLettered { to, .. }) = (side, note) {
                assert_eq!(to.as_deref(), Some("bin"));
            }
        }
        for ticket in finished.settled {
            assert_ne!(self.ring.settle(ticket), Settled::Stale, "settled twice");
            *self.settled.entry(self.names[&ticket]).or_default() += 1;
        }
        while self.confirmed < self.stream.len() {
            let event = &self.stream[self.confirmed];
            if self.settled.get(&event.number).copied().unwrap_or(0) < event.deliveries() {
                break;
            }
            self.confirmed += 1;
        }
    }

    /// What is confirmed does not come again: each delivery of it is in a place that survives.
    fn check(&self) {
        for event in &self.stream[..self.confirmed] {
            let name = event.number.to_string();
            let [first, second] = &self.sides;
            let letter = || self.letters.get(&event.number).is_some_and(|letter| second.is_safe(letter));
            assert!(first.is_safe(&name) || letter(), "{event:?} is confirmed, and lost");
            assert!(!event.both || second.is_safe(&name), "{event:?} is confirmed, and the second sink has not got it");
        }
        let live = self.sides.iter().any(|side| side.lane.holds_live());
        assert_eq!(live, self.ring.unsettled_events() > 0);
    }

    fn hand(&mut self, fate: u8) {
        let works = self.sides[FIRST].lane.hand_over(self.process);
        let taken = fate != 0;
        if taken {
            for work in works {
                let (delivery, number) = (&work.delivery, work.delivery.event.id.parse().unwrap());
                assert!(is_letter(delivery) && delivery.ordering_key == delivery.event.key);
                assert_eq!(delivery.event.headers.get("dead-letter-sink").map(|sink| &**sink), Some("first"));
                let before = self.letters.insert(number, delivery.dedup_id.to_string());
                assert!(before.is_none_or(|before| *before == *delivery.dedup_id), "another dedup id");
                self.sides[SECOND].lane.push(work);
            }
            if fate == 1 {
                self.take(SECOND, 9);
                for flight in std::mem::take(&mut self.sides[SECOND].flights) {
                    self.finish(SECOND, &flight, 1);
                }
                self.tell();
            }
        }
        let finished = self.sides[FIRST].lane.handed_over(taken, self.now);
        self.finished(FIRST, finished);
    }

    fn tell(&mut self) {
        for (process, row) in std::mem::take(&mut self.told) {
            assert_eq!(process, self.process);
            self.sides[FIRST].lane.row_settled(row);
        }
    }

    fn chore(&mut self, side: usize, fate: u8) {
        let now = self.now;
        let this = &mut self.sides[side];
        let Some(chore) = this.underway.take() else {
            this.underway = this.lane.next_chore(now, false);
            return;
        };
        let away = || StoreError { message: "away".into(), lasting: false };
        let result: Result<Done, StoreError> = match fate {
            0 => Err(away()),
            1 => {
                let _ = this.shelf.carry_out(chore);
                Err(away())
            }
            _ => this.shelf.carry_out(chore),
        };
        let jitter = self.draw();
        let finished = self.sides[side].lane.chore_done(result, now, &mut || jitter);
        self.finished(side, finished);
    }

    fn probe(&mut self, side: usize) {
        let (now, jitter) = (self.now, self.draw());
        let this = &mut self.sides[side];
        if this.lane.start_probe(now) {
            let result = if this.mood == Mood::Away { Err(SinkError::retryable("away")) } else { Ok(()) };
            this.lane.probed(result, now, &mut || jitter);
        }
    }

    /// The process is killed, and another begins where the confirmed one ends.
    fn crash(&mut self) {
        for side in [FIRST, SECOND] {
            for flight in std::mem::take(&mut self.sides[side].flights) {
                for delivery in flight.batch.iter() {
                    self.outcome(side, delivery, 0);
                }
            }
            let happens = self.draw() > 0.5;
            let this = &mut self.sides[side];
            if let Some(chore) = this.underway.take()
                && happens
            {
                let _ = this.shelf.carry_out(chore);
            }
            this.lane = Lane::new(this.policy.clone());
        }
        (self.ring, self.process) = (ring(), self.process + 1);
        (self.names, self.rows, self.told) = Default::default();
        let first = self.confirmed;
        self.settled.retain(|number, _| (*number as usize) <= first);
        for index in first..self.stream.len() {
            self.push(index);
        }
    }

    /// Both sinks and the tables work from now on.
    fn heal(&mut self) {
        for side in &mut self.sides {
            side.mood = Mood::Well;
            side.lane.press(false);
        }
        for _ in 0..3_000 {
            for side in [FIRST, SECOND] {
                for flight in std::mem::take(&mut self.sides[side].flights) {
                    self.finish(side, &flight, 1);
                }
                self.tend();
                self.probe(side);
                self.hand(2);
                self.tell();
                if self.sides[side].underway.is_none() {
                    self.chore(side, 9);
                }
                if self.sides[side].underway.is_some() {
                    self.chore(side, 9);
                }
                self.tend();
                self.take(side, 5);
            }
            self.check();
            let idle = |side: &Side| side.flights.is_empty() && side.underway.is_none() && !side.lane.has_letters();
            if self.told.is_empty() && self.sides.iter().all(idle) {
                let wakes = self.sides.iter().filter_map(|side| side.lane.next_wakeup(self.now));
                match wakes.min() {
                    Some(wake) => self.now = self.now.max(wake) + Duration::from_millis(1),
                    None => break,
                }
            }
        }
    }

    fn judge(&self) {
        let [first, second] = &self.sides;
        for event in &self.stream {
            let name = event.number.to_string();
            let arrived = |name: &str| {
                let dead = second.shelf.dead.values().any(|row| *row.parcel.delivery.dedup_id == *name);
                second.received.contains(name) || second.skipped.contains(name) || dead
            };
            let letter = self.letters.get(&event.number).is_some_and(|letter| arrived(letter));
            assert!(letter || first.received.contains(&name), "lost or stuck: {event:?}");
            assert!(letter || !event.is_letter(), "the first sink has taken what it rejects: {event:?}");
            assert!(!event.both || arrived(&name), "lost or stuck at the second sink: {event:?}");
        }
        assert_eq!(self.confirmed, self.stream.len(), "everything is confirmed");
        for side in &self.sides {
            assert!(side.shelf.parked.is_empty(), "rows are left: {:?}", side.shelf.parked);
            assert_eq!(side.lane.traces(), (0, 0, 0));
        }
        assert!(first.shelf.dead.is_empty(), "the table of dead letters has none of the first sink");
    }
}

fn ring() -> Ring {
    let mut ring = Ring::new(Lsn(1));
    ring.begin(Lsn(1));
    ring
}

fn is_letter(delivery: &Delivery) -> bool {
    delivery.dedup_id.contains("-dead-")
}

proptest! {
    #[test]
    fn what_is_handed_to_another_sink_is_settled_once_it_is_there(
        tables in prop_oneof![4 => Just(true), 1 => Just(false)],
        outages in [any::<bool>(), any::<bool>()],
        skips in any::<bool>(),
        steps in vec(step(), 1..200),
    ) {
        let second = if skips || !tables { OnReject::Skip } else { OnReject::DeadLetter };
        let mut world = World::new(tables, outages, second);
        for step in steps {
            world.step(step);
        }
        world.heal();
        world.judge();
    }
}

#[test]
fn a_letter_says_where_it_comes_from_and_holds_no_more_than_it_may() {
    for payload in [LetterPayload::Keep, LetterPayload::Omit] {
        let mut bench = Bench::with(|policy| {
            (policy.on_reject, policy.destination, policy.letters) =
                (OnReject::DeadLetter, Some(destination()), payload);
        });
        let mut work = bench.event("k", 1).remove(0);
        let event = &mut work.delivery.event;
        event.payload = Some("{}".into());
        event.headers = [("tenant", "acme"), ("Dead-Letter-Sink", "forged")]
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        event.key = Some("k".into());
        bench.lane.push(work);
        bench.push("k");
        assert_eq!(bench.round(&rejected()), ["1"]);
        assert_eq!(bench.sent(), [""; 0], "its key is held until somebody has it");
        let letter = bench.lane.hand_over(1).remove(0);
        let finished = bench.lane.handed_over(true, bench.now);
        assert!(finished.settled.is_empty(), "the other lane settles it");
        assert_eq!((bench.sent(), bench.status().unsettled), (vec!["2".to_owned()], 1));
        let headers: Vec<String> =
            letter.delivery.event.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect();
        let own = ["dead-letter-sink: first", "dead-letter-reason: refused", "dead-letter-attempts: 1"];
        if payload == LetterPayload::Keep {
            assert_eq!(headers, ["tenant: acme", own[0], own[1], "dead-letter-message: planned rejection", own[2]]);
            assert_eq!(letter.delivery.event.payload.as_deref(), Some(&b"{}"[..]));
        } else {
            assert_eq!(headers, own);
            assert_eq!(letter.delivery.event.payload, None);
        }
        // printf '\0\0\0\0\0\0\0\5first\0\0\0\0\0\0\0\0011' | sha256sum
        assert_eq!(letter.delivery.dedup_id, *"1-dead-ec3944fa731ef9e2");
        assert_eq!(letter.delivery.ordering_key.as_deref(), Some("k"));
    }
}
