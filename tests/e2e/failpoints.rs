//! SIGKILL at places that were chosen beforehand (`src/telemetry/failpoint.rs`), under load: while a sink is parked and
//! drained, while events are rejected, fail and are retried on request, while the configuration changes, and around each
//! step of an event. One database goes through all kills of a test; at the end nothing may be missing.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::parking::Pair;
use crate::support::oracle::{self, Committed};
use crate::support::receiver::{Answer, Receiver, Request, ok, reply};
use crate::support::wait::{DEADLINE, within};
use crate::support::walgate::{Setup, Walgate};
use crate::workload::Stream;

/// Short pauses, so that each place is reached soon.
const DELIVERY: &str = "timeout: 5s, retry: { initial: 20ms, max: 100ms, connection_max: 100ms }, park_after: ";
const SOON: &str = "200ms";
/// Another configuration of the same sink.
const OTHERWISE: &str = "250ms";

/// What is done, and to what state, so that walgate comes to the place.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lead {
    /// Nothing but events.
    Events,
    /// The sink is down.
    Down,
    /// Much is parked, and the sink is still down.
    Parked,
    /// Much is parked, and the sink comes back.
    Drained,
    /// Much is parked, the sink comes back, and one event fails again and again.
    DrainedFailing,
    /// Much is parked, the sink comes back, and rejects some of it.
    DrainedRejected,
    /// A key is parked, and its first event still fails.
    Key,
    /// Events are rejected.
    Rejected,
    /// There are dead letters, and an operator asks for them.
    Retried,
    /// An operator pauses the sink.
    Paused,
    /// The configuration changes.
    Reloaded,
    /// The same, while much is parked for the sink that is made anew.
    ReloadedParked,
}

/// A place, the pass at which it kills, and how walgate is led there.
type Point = (&'static str, u32, Lead);

/// What the sick sink does to events, by their ids.
#[derive(Default)]
struct Temper {
    /// New events that are still let pass before one is chosen to fail.
    fails_in: Option<u32>,
    failing: HashSet<String>,
    /// The same for rejections, and how many are chosen.
    rejects: u32,
    rejecting: HashSet<String>,
    /// Whatever was rejected at least once: it may have become a dead letter.
    rejected: HashSet<String>,
    seen: HashSet<String>,
}

impl Temper {
    fn answer(&mut self, request: &Request<'_>) -> Answer {
        if self.seen.insert(request.id.to_owned()) {
            match self.fails_in {
                Some(0) => {
                    self.fails_in = None;
                    self.failing.insert(request.id.to_owned());
                }
                left => self.fails_in = left.map(|left| left - 1),
            }
            if self.rejects > 0 && !self.failing.contains(request.id) {
                self.rejects -= 1;
                self.rejecting.insert(request.id.to_owned());
            }
        }
        if self.rejecting.contains(request.id) {
            self.rejected.insert(request.id.to_owned());
            return reply(422).into();
        }
        if self.failing.contains(request.id) { reply(500).into() } else { ok() }
    }
}

struct Scenario {
    pair: Pair,
    /// A third sink, which is there in one of the two configurations.
    third: Receiver,
    setup: Setup,
    /// The configuration, and the other one.
    texts: [String; 2],
    file: PathBuf,
    temper: Arc<Mutex<Temper>>,
}

impl Scenario {
    fn new() -> Scenario {
        let pair = Pair::new();
        let third = Receiver::start();
        let setup = Scenario::configuration(&pair, SOON);
        let other = Scenario::configuration(&pair, OTHERWISE).webhook("third", &third).route("order.*", "third");
        let port = |setup: &Setup| setup.admin_port().to_string();
        let texts = [setup.yaml(), other.yaml().replace(&port(&other), &port(&setup))];
        let temper = Arc::<Mutex<Temper>>::default();
        let answers = Arc::clone(&temper);
        pair.sick.script(move |request| answers.lock().unwrap().answer(request));
        let file = setup.write();
        Scenario { pair, third, setup, texts, file, temper }
    }

    fn configuration(pair: &Pair, park_after: &str) -> Setup {
        Setup::of(&pair.database)
            .keyed()
            .webhook("well", &pair.well)
            .webhook_at("sick", &pair.sick.url(), &format!("{DELIVERY}{park_after}"))
            .route("**", "[well, sick]")
            .more("limits: { inflight: 256KiB }")
    }

    fn temper(&self, change: impl FnOnce(&mut Temper)) {
        change(&mut self.temper.lock().unwrap());
    }

    fn waiting_for_keys(&self) -> usize {
        let sql = "SELECT count(*) FROM walgate.parked WHERE sink = 'sick' AND hold_key IS NOT NULL";
        self.pair.database.value(sql).parse().unwrap()
    }

    fn ask(&self, verb: &str) {
        let slot = &self.pair.database.slot;
        self.pair.database.sql(&format!(
            "INSERT INTO walgate.requests (slot, verb, sink, arguments) VALUES ('{slot}', '{verb}', 'sick', '{{}}')"
        ));
    }

    /// Starts walgate without a failpoint and lets it come to the state that the next point begins with.
    fn prepare(&self, lead: Lead) {
        let mut walgate = Walgate::run_file(&self.setup, &self.file);
        let before = self.pair.well.settled_count();
        walgate.eventually("it goes on", || self.pair.well.settled_count() > before);
        match lead {
            Lead::Parked | Lead::Drained | Lead::DrainedFailing | Lead::DrainedRejected | Lead::ReloadedParked => {
                self.pair.sick.go_down();
                walgate.eventually("much is parked", || self.pair.parked() >= 40);
            }
            Lead::Key => {
                self.temper(|temper| temper.fails_in = Some(0));
                walgate.eventually("a key is parked", || self.waiting_for_keys() > 0);
            }
            Lead::Retried => {
                self.temper(|temper| temper.rejects = 2);
                walgate.eventually("there are dead letters", || self.pair.dead() > 0);
            }
            _ => {}
        }
        walgate.kill9();
    }

    /// Does what leads to the point, once the process that is to die there is up.
    fn lead(&self, walgate: &mut Walgate, lead: Lead, reloads: &mut usize) {
        match lead {
            Lead::Retried => {
                self.temper(|temper| temper.rejecting.clear());
                self.ask("retry");
            }
            Lead::Paused => self.ask("pause"),
            Lead::Reloaded | Lead::ReloadedParked => {
                // Before that the signal would end it, as any process.
                let up = within(DEADLINE, || walgate.has_ended() || walgate.stderr().contains("waiting for the next"));
                assert!(up, "it is not up:\n{}", walgate.said());
                self.reload(walgate, reloads);
            }
            _ => {}
        }
    }

    fn reload(&self, walgate: &mut Walgate, reloads: &mut usize) {
        *reloads += 1;
        std::fs::write(&self.file, &self.texts[*reloads % 2]).unwrap();
        if !walgate.has_ended() {
            walgate.signal(Signal::HUP);
        }
    }

    /// Before the process that is to die starts.
    fn before(&self, lead: Lead) {
        match lead {
            Lead::Down => self.pair.sick.go_down(),
            Lead::Drained => self.pair.sick.come_back(),
            Lead::DrainedFailing => {
                self.temper(|temper| temper.fails_in = Some(5));
                self.pair.sick.come_back();
            }
            Lead::DrainedRejected => {
                self.temper(|temper| temper.rejects = 3);
                self.pair.sick.come_back();
            }
            Lead::Rejected => self.temper(|temper| temper.rejects = 3),
            _ => {}
        }
    }

    /// One point: a process without failpoints, then one that kills itself there.
    fn die_at(&self, (place, pass, lead): Point, reloads: &mut usize) {
        self.prepare(lead);
        self.wait_until_deserted();
        self.before(lead);
        let armed = self.setup.clone().env("WALGATE_FAILPOINT", &format!("{place}:{pass}"));
        let mut walgate = Walgate::run_file(&armed, &self.file);
        self.lead(&mut walgate, lead, reloads);
        let mut again = Instant::now() + Duration::from_secs(2);
        let ended = within(DEADLINE, || {
            // A place that takes more than one of these to be reached.
            if Instant::now() >= again && !walgate.has_ended() {
                again = Instant::now() + Duration::from_secs(2);
                match lead {
                    Lead::Rejected | Lead::DrainedRejected => self.temper(|temper| temper.rejects = 3),
                    Lead::Reloaded | Lead::ReloadedParked => self.reload(&mut walgate, reloads),
                    _ => {}
                }
            }
            walgate.has_ended()
        });
        assert!(ended, "{place}:{pass} was not reached; walgate said:\n{}", walgate.said());
        assert_eq!(walgate.killed_by(), Some(Signal::KILL.as_raw()), "{place}:{pass}:\n{}", walgate.said());
        self.wait_until_deserted();
        // All is well again, but for what lies in the tables.
        self.pair.sick.come_back();
        self.temper(|temper| {
            (temper.fails_in, temper.rejects) = (None, 0);
            temper.failing.clear();
            temper.rejecting.clear();
        });
        if lead == Lead::Paused {
            self.ask("resume");
        }
    }

    fn wait_until_deserted(&self) {
        for receiver in [&self.pair.well, &self.pair.sick, &self.third] {
            receiver.wait_until_deserted();
        }
    }

    fn judge(&self, name: &str) {
        let pair = &self.pair;
        let mut walgate = Walgate::run_file(&self.setup, &self.file);
        pair.wait_confirmed(&mut walgate);
        walgate.eventually("nothing is parked", || pair.parked() == 0);
        walgate.eventually("every request is answered", || {
            pair.database.value("SELECT count(*) FROM walgate.requests WHERE done_at IS NULL") == "0"
        });
        walgate.eventually("and what they revived is delivered", || pair.parked() == 0);
        pair.wait_confirmed(&mut walgate);
        let committed = pair.committed();
        let repeats = oracle::assert_reconciled(&committed, &pair.well.receipts());
        // Of the sick sink, what was rejected has its own rule: received, or a dead letter.
        let rejected = self.temper.lock().unwrap().rejected.clone();
        let letters = pair.database.sql("SELECT event_id FROM walgate.dead_letters WHERE sink = 'sick'");
        let letters: HashSet<String> = letters.into_iter().filter_map(|row| row.into_iter().next()?).collect();
        for id in &rejected {
            assert!(pair.sick.settled(id).is_some() || letters.contains(id), "{id} was rejected, and is lost");
            assert!(committed.iter().any(|event| event.id == *id), "{id} was never committed");
        }
        assert!(letters.is_subset(&rejected), "what was never rejected is no dead letter");
        let mut receipts = pair.sick.receipts();
        receipts.retain(|receipt| !rejected.contains(&receipt.id));
        let others = without(committed.clone(), &rejected);
        let sick_repeats = oracle::assert_reconciled(&others, &receipts);
        for receipt in self.third.receipts() {
            assert!(committed.iter().any(|event| event.id == receipt.id && event.hash == receipt.hash));
        }
        for receiver in [&pair.well, &pair.sick, &self.third] {
            assert_eq!(receiver.bad_signatures(), Vec::<String>::new());
        }
        eprintln!(
            "{name}: {} events, {} rejected, {} dead letters; {repeats} and {sick_repeats} repeats",
            committed.len(),
            rejected.len(),
            letters.len()
        );
    }
}

/// The others, numbered anew within their keys.
fn without(mut committed: Vec<Committed>, left_out: &HashSet<String>) -> Vec<Committed> {
    committed.sort_by_key(|event| event.n);
    committed.retain(|event| !left_out.contains(&event.id));
    let mut last = std::collections::HashMap::<Option<String>, u64>::new();
    for event in &mut committed {
        let last = last.entry(event.key.clone()).or_default();
        *last += 1;
        event.n = *last;
    }
    committed
}

/// Kills walgate at each of the points, under load, and judges at the end.
fn run(name: &'static str, points: &[Point]) {
    let scenario = Scenario::new();
    let (stop, stream) = (AtomicBool::new(false), Stream { name, keys: 30, batch: 8, prepared: false });
    std::thread::scope(|scope| {
        let (scenario, stop) = (&scenario, &stop);
        let writer = scope.spawn(move || {
            stream.write(&scenario.pair.database, 0, |at| {
                // About a hundred a second, and not far ahead of the sink that is well.
                within(Duration::from_millis(40), || stop.load(Ordering::SeqCst));
                let ahead = || at > scenario.pair.well.settled_count() + 300;
                within(DEADLINE, || stop.load(Ordering::SeqCst) || !ahead()) && !stop.load(Ordering::SeqCst)
            });
        });
        // The writer must not go on for ever where a point fails.
        let points = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut reloads = 0;
            for point in points {
                let begun = Instant::now();
                scenario.die_at(*point, &mut reloads);
                eprintln!("{name}: {}:{} after {:.1?}", point.0, point.1, begun.elapsed());
            }
        }));
        stop.store(true, Ordering::SeqCst);
        writer.join().unwrap();
        if let Err(panic) = points {
            std::panic::resume_unwind(panic);
        }
    });
    scenario.judge(name);
}

const OUTAGE: &[Point] = &[
    ("open.before", 1, Lead::Parked),
    ("open.after", 1, Lead::Parked),
    ("open.before", 2, Lead::Drained),
    ("open.after", 2, Lead::Drained),
    ("park.before", 1, Lead::Down),
    ("park.after", 1, Lead::Down),
    ("park.before", 3, Lead::Down),
    ("park.after", 3, Lead::Down),
    ("settle.before", 10, Lead::Down),
    ("settle.after", 10, Lead::Down),
    ("page.before", 1, Lead::Parked),
    ("page.after", 1, Lead::Parked),
    ("page.before", 1, Lead::Drained),
    ("page.after", 1, Lead::Drained),
    ("send.before", 20, Lead::Drained),
    ("send.after", 20, Lead::Drained),
    ("delivered.before", 1, Lead::Drained),
    ("delivered.after", 1, Lead::Drained),
    ("delivered.before", 3, Lead::Drained),
    ("delivered.after", 3, Lead::Drained),
];

const KEYS: &[Point] = &[
    ("park.before", 1, Lead::Key),
    ("park.after", 1, Lead::Key),
    ("page_of.before", 1, Lead::Key),
    ("page_of.after", 1, Lead::Key),
    ("page_of.before", 3, Lead::Key),
    ("page_of.after", 3, Lead::Key),
    ("hold.before", 1, Lead::DrainedFailing),
    ("hold.after", 1, Lead::DrainedFailing),
    ("bury.before", 1, Lead::Rejected),
    ("bury.after", 1, Lead::Rejected),
    ("bury.before", 1, Lead::DrainedRejected),
    ("bury.after", 1, Lead::DrainedRejected),
    ("revive.before", 1, Lead::Retried),
    ("revive.after", 1, Lead::Retried),
    ("page_of.after", 1, Lead::Retried),
    ("delivered.after", 1, Lead::Retried),
    ("request.taken", 1, Lead::Retried),
    ("request.carried_out", 1, Lead::Retried),
    ("answer.before", 1, Lead::Retried),
    ("answer.after", 1, Lead::Retried),
    ("request.carried_out", 1, Lead::Paused),
    ("answer.after", 1, Lead::Paused),
];

const STREAM: &[Point] = &[
    ("barrier.before", 1, Lead::Reloaded),
    ("barrier.after", 1, Lead::Reloaded),
    ("lane.ended", 1, Lead::Reloaded),
    ("lanes.replaced", 1, Lead::Reloaded),
    ("intake.changed", 1, Lead::Reloaded),
    ("barrier.after", 2, Lead::Reloaded),
    ("lane.ended", 2, Lead::Reloaded),
    ("intake.changed", 2, Lead::Reloaded),
    ("barrier.before", 1, Lead::ReloadedParked),
    ("barrier.after", 1, Lead::ReloadedParked),
    ("lanes.replaced", 1, Lead::ReloadedParked),
    ("intake.changed", 1, Lead::ReloadedParked),
    ("event.tracked", 1, Lead::Events),
    ("event.pushed", 30, Lead::Events),
    ("transaction.closed", 3, Lead::Events),
    ("send.before", 1, Lead::Events),
    ("send.after", 1, Lead::Events),
    ("settle.before", 5, Lead::Events),
    ("settle.after", 5, Lead::Events),
    ("status.before", 1, Lead::Events),
    ("status.after", 1, Lead::Events),
    ("status.before", 3, Lead::Events),
    ("status.after", 3, Lead::Events),
];

#[test]
fn p1_killed_at_every_step_of_parking_and_draining() {
    run("outage", OUTAGE);
}

#[test]
fn p1_killed_at_every_step_of_dead_letters_parked_keys_and_requests() {
    run("keys", KEYS);
}

#[test]
fn p1_killed_at_every_step_of_an_event_and_of_a_reload() {
    run("stream", STREAM);
}

const RECORD: &[Point] = &[
    ("term.begun", 1, Lead::Events),
    ("record.before", 1, Lead::Events),
    ("record.after", 1, Lead::Events),
    ("record.before", 3, Lead::Events),
    ("record.after", 3, Lead::Events),
    ("status.before", 5, Lead::Events),
    ("record.after", 2, Lead::Down),
];

#[test]
fn p1_killed_between_the_record_and_the_status() {
    run("record", RECORD);
}
