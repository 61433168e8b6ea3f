//! One event, five real brokers, all at once: walgate is killed ten times and each of the five three times, under load.
//!
//! Kafka's broker, nats-server and RabbitMQ's node are killed with SIGKILL and started again on what they had written.
//! Two of the five cannot be killed so:
//!
//! - No SQS emulator keeps over SIGKILL all that it has acknowledged (tests/README.md). ministack's fault is a link
//!   that swallows everything and is cut, and then SIGTERM, at which it writes its queues down, and a start.
//! - The webhook receiver is the oracle of what it was sent, so its memory must survive: it refuses connections and
//!   cuts the open ones, and comes back.
//!
//! The order of the faults and their places in the work follow from a seed; what else happens at such a place, does not.
//! Two brokers may be away at once, and walgate is killed while they are.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::all_sinks::{AllSinks, Sink};
use crate::support::oracle;
use crate::support::postgres::{Options, Postgres};
use crate::support::wait::{DEADLINE, within};
use crate::support::walgate::Walgate;
use crate::workload::{Stream, scale};

/// Of walgate.
const KILLS: usize = 10;
/// Of each sink.
const FAULTS: usize = 3;
/// Sinks that are away at once, at the most.
const AWAY: usize = 2;
/// Events by which the writers may be ahead of the slowest sink that is there.
const AHEAD: usize = 2_000;
/// Deliveries that the others take while a sink is away, if the window lets them.
const MEANWHILE: usize = 400;

#[derive(Clone, Copy, Debug)]
enum Fault {
    Walgate,
    Sink(Sink),
}

/// The faults in their order: in each round each sink once, and walgate in between.
fn schedule(random: &mut fastrand::Rng) -> Vec<Fault> {
    let rounds = (0..FAULTS).flat_map(|round| {
        let kills = KILLS * (round + 1) / FAULTS - KILLS * round / FAULTS;
        let mut faults = vec![Fault::Walgate; kills];
        faults.extend(Sink::ALL.map(Fault::Sink));
        random.shuffle(&mut faults);
        faults
    });
    rounds.collect()
}

/// `WALGATE_TEST_SEED`, 5 where it is left out.
fn seed() -> u64 {
    std::env::var("WALGATE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

struct Nemesis<'a> {
    all: &'a AllSinks,
    /// The sinks that are hurt at the moment.
    away: Mutex<Vec<Sink>>,
}

impl Nemesis<'_> {
    fn is_away(&self, sink: Sink) -> bool {
        self.away.lock().expect("the sinks that are away").contains(&sink)
    }

    /// Different events that all who are there have acknowledged, at the most.
    fn settled(&self) -> usize {
        let there = Sink::ALL.into_iter().filter(|sink| !self.is_away(*sink));
        there.map(|sink| self.all.settled_by(sink)).min().expect("a sink that is there")
    }

    /// Lets the others go on for a while without this sink: not for ever, since one that is away fills the window.
    fn meanwhile(&self, sink: Sink) {
        let others = || {
            let others = Sink::ALL.into_iter().filter(|other| *other != sink);
            others.map(|other| self.all.count(other)).sum::<usize>()
        };
        let before = others();
        within(Duration::from_secs(3), || others() >= before + MEANWHILE);
    }

    /// A sink goes away and comes back.
    fn hurt(&self, sink: Sink) {
        let all = self.all;
        if sink == Sink::Sqs {
            all.link(sink).black_hole(true);
            self.meanwhile(sink);
            all.mend(sink);
        }
        all.end(sink);
        self.meanwhile(sink);
        all.start_again(sink);
        self.away.lock().expect("the sinks that are away").retain(|other| *other != sink);
    }

    /// Kills walgate with a delivery to this sink under way, or to the next one that is there: one whose answer is
    /// lost, or which has just left.
    fn kill(&self, walgate: &mut Walgate, sink: Sink, answer_is_lost: bool) {
        let next = |offset| Sink::ALL[(sink as usize + offset) % Sink::ALL.len()];
        let sink = (0..).map(next).find(|sink| !self.is_away(*sink)).expect("a sink that is there");
        let link = self.all.link(sink);
        let (lost, sent) = (link.dropped_bytes(), self.all.count(sink));
        link.drop_replies(answer_is_lost);
        walgate.eventually(&format!("a delivery to {} is under way", sink.name()), || {
            if answer_is_lost { link.dropped_bytes() > lost } else { self.all.count(sink) > sent }
        });
        self.all.kill(walgate);
        link.drop_replies(false);
    }
}

#[test]
fn p1_ten_kills_of_walgate_and_three_of_each_of_five_brokers_lose_nothing_on_any() {
    let begin = Instant::now();
    // One key moves one event a round trip of the slowest sink, thousands of keys as many as there is room for.
    let writers = [("one", 1, 200), ("hundred", 100, 6_000), ("many", 5_000, 13_800)]
        .map(|(name, keys, events)| (Stream { name, keys, batch: 20, prepared: true }, events * scale()));
    let total: usize = writers.iter().map(|(_, events)| events).sum();
    let all = AllSinks::on(&Postgres::start(Options::default()));
    let setup = all.setup("5s");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let mut random = fastrand::Rng::with_seed(seed());
    let faults = schedule(&mut random);
    let nemesis = Nemesis { all: &all, away: Mutex::default() };
    let ready = begin.elapsed();
    // Written until the last fault: else a sink that is ahead has nothing under way when its turn comes.
    let done = AtomicBool::new(false);

    std::thread::scope(|scope| {
        for (stream, events) in writers {
            let (all, nemesis, done) = (&all, &nemesis, &done);
            // Not too far ahead, so that faults come while transactions are being written.
            scope.spawn(move || {
                let ended = || done.load(Ordering::SeqCst);
                let near = |at: usize| ended() || at * total / events < nemesis.settled() + AHEAD;
                let goes_on = |at: usize| (at < events || !ended()) && within(DEADLINE, || near(at));
                stream.write(&all.database, 0, goes_on);
            });
        }
        let mut kills = 0;
        for (place, fault) in faults.iter().enumerate() {
            // Somewhere in its own share of the work: progress lies between any two faults.
            let goal = total * place / faults.len() + random.usize(..total / faults.len() / 2);
            walgate.eventually(&format!("{goal} events are acknowledged"), || nemesis.settled() >= goal);
            match *fault {
                Fault::Walgate => {
                    kills += 1;
                    nemesis.kill(&mut walgate, Sink::ALL[kills % 5], kills <= KILLS / 2);
                    walgate = Walgate::run_file(&setup, &file);
                }
                Fault::Sink(sink) => {
                    let free = || {
                        let away = nemesis.away.lock().expect("the sinks that are away");
                        away.len() < AWAY && !away.contains(&sink)
                    };
                    walgate.eventually("a sink is back", free);
                    nemesis.away.lock().expect("the sinks that are away").push(sink);
                    let nemesis = &nemesis;
                    scope.spawn(move || nemesis.hurt(sink));
                }
            }
        }
        walgate.eventually("the sinks are back", || nemesis.away.lock().expect("the sinks that are away").is_empty());
        done.store(true, Ordering::SeqCst);
    });
    let healed = begin.elapsed();
    all.wait_for_all(&mut walgate);
    walgate.terminate();
    let ended = walgate.wait_for_end(DEADLINE);
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let settled = begin.elapsed();

    let committed = oracle::ledger(&all.database);
    assert!(committed.len() >= total, "{} of {total} events were written", committed.len());
    let outcome = all.assert_all(&committed);
    eprintln!(
        "P1, five sinks: seed {}, {KILLS} kills of walgate, {FAULTS} of each sink, {outcome:#?}\n\
         ready after {ready:?}, healed {healed:?}, settled {settled:?}, judged {:?}",
        seed(),
        begin.elapsed()
    );
}
