//! Faults at random against a fan-out to all five sinks, and a reckoning at the end. Not part of `make test`, but
//! `make soak`.
//!
//! walgate has its own tables, so an outage that lasts for more than a second, or fills half of the window, is parked, and
//! faults of every kind fall into the parking and the draining too. What was confirmed to PostgreSQL is judged by
//! acknowledgements and by what was ever parked ([`AllSinks::assert_all`]).
//!
//! `SOAK_MINUTES` is how long (10), `SOAK_SEED` repeats the choice of faults (not their timing).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::all_sinks::{AllSinks, Sink};
use crate::support::clock::{self, Tick};
use crate::support::oracle;
use crate::support::postgres::{Options, Postgres};
use crate::support::receiver::reply;
use crate::support::wait::{DEADLINE, watch_for, within};
use crate::support::walgate::{Setup, Walgate};
use crate::workload::Stream;

/// Between two transactions of a writer.
const PAUSE: Duration = Duration::from_millis(100);
/// Events that the writers together may be ahead of the slowest sink: what it lacks at the end it still has to take.
const AHEAD: usize = 3_000;
/// KiB that walgate may have, with the client libraries of all five.
const RESIDENT: u64 = 96 * 1024;

/// Of the sinks: ministack does not keep over SIGKILL all that it has acknowledged, and the receiver's memory is the
/// oracle of what it was sent; so neither is killed.
const FAULTS: [&str; 25] = [
    "walgate: KILL",
    "walgate: TERM",
    "walgate: STOP and CONT",
    "postgres: KILL",
    "postgres: immediate shutdown",
    "postgres: fast shutdown",
    "kafka: KILL",
    "kafka: TERM",
    "kafka: STOP and CONT",
    "nats: KILL",
    "nats: TERM",
    "nats: STOP and CONT",
    "rabbitmq: KILL",
    "rabbitmq: TERM",
    "rabbitmq: STOP and CONT",
    "sqs: TERM",
    "sqs: STOP and CONT",
    "webhook: down",
    "webhook: silent",
    "webhook: 500 and 429",
    "a link: cut",
    "a link: reset",
    "a sink's link: answers lost",
    "a sink's link: black hole",
    "a sink's link: slow",
];

struct Soak<'a> {
    all: &'a AllSinks,
    setup: &'a Setup,
    file: std::path::PathBuf,
    random: fastrand::Rng,
    counts: [usize; FAULTS.len()],
    /// When PostgreSQL was last ended.
    ended: Option<Tick>,
}

impl Soak<'_> {
    fn run(&self) -> Walgate {
        Walgate::run_file(self.setup, &self.file)
    }

    /// A PostgreSQL that ends forgets the slot's newest position (up to version 16 after a clean shutdown too). walgate
    /// tells it again, but for a walgate that is terminated before it has a connection again: only then may the next
    /// one begin lower.
    fn note_end(&self) {
        let (said, confirmed) = (self.all.witness.flush(), self.all.database.confirmed_when_released());
        if confirmed < said {
            let last = self.all.witness.log().statuses.last().map_or(0, |status| status.tick);
            let told = self.ended.is_none_or(|end| last > end);
            assert!(!told, "the slot is at {confirmed}, though {said} was confirmed since PostgreSQL's last end");
        }
        self.all.witness.note_kill(confirmed);
    }

    fn for_a_while(&mut self) {
        watch_for(Duration::from_millis(self.random.u64(200..3_000)));
    }

    fn fault(&mut self, mut walgate: Walgate) -> Walgate {
        let all = self.all;
        let fault = self.random.usize(..FAULTS.len());
        self.counts[fault] += 1;
        let (whose, what) = FAULTS[fault].split_once(": ").expect("two parts");
        match (whose, Sink::named(whose)) {
            ("walgate", _) => match what {
                "KILL" => {
                    all.kill(&mut walgate);
                    return self.run();
                }
                "TERM" => {
                    walgate.terminate();
                    let ended = walgate.wait_for_end(DEADLINE);
                    assert_eq!(ended.code, Some(0), "{}", ended.output());
                    self.note_end();
                    return self.run();
                }
                _ => {
                    walgate.signal(Signal::STOP);
                    self.for_a_while();
                    walgate.signal(Signal::CONT);
                }
            },
            ("postgres", _) => {
                let server = &all.database.server;
                match what {
                    "KILL" => server.kill9(),
                    "immediate shutdown" => server.stop_immediate(),
                    _ => drop(server.stop_fast(DEADLINE)),
                }
                self.ended = Some(clock::tick());
                server.start_again();
            }
            (_, Some(sink)) => self.hurt(sink, what),
            ("a link", _) => {
                // Every sink's, and PostgreSQL's.
                let link = match self.random.usize(..=Sink::ALL.len()) {
                    number if number < Sink::ALL.len() => all.link(Sink::ALL[number]),
                    _ => &*all.witness,
                };
                if what == "cut" { link.cut() } else { link.reset() }
            }
            _ => {
                let sink = Sink::ALL[self.random.usize(..Sink::ALL.len())];
                match what {
                    "answers lost" => all.link(sink).drop_replies(true),
                    "black hole" => all.link(sink).black_hole(true),
                    _ => all.link(sink).delay(Duration::from_millis(300)),
                }
                self.for_a_while();
                all.mend(sink);
            }
        }
        walgate
    }

    fn hurt(&mut self, sink: Sink, what: &str) {
        let all = self.all;
        match what {
            "500 and 429" => {
                all.receiver.script(|request| match request.number % 3 {
                    0 => reply(500).into(),
                    1 => reply(429).into(),
                    _ => reply(200).into(),
                });
                self.for_a_while();
                all.receiver.accept_all();
            }
            "STOP and CONT" | "silent" => {
                all.freeze(sink);
                self.for_a_while();
                all.thaw(sink);
            }
            _ => {
                if what == "TERM" {
                    all.stop(sink)
                } else {
                    all.end(sink)
                }
                self.for_a_while();
                all.start_again(sink);
            }
        }
    }
}

/// Ends the writers when it is dropped.
struct Writers<'a>(&'a AtomicBool);

impl Drop for Writers<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
#[ignore = "ten minutes: make soak"]
fn soak_faults_at_random_lose_nothing_on_any_of_five_sinks() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<f64>().ok());
    let time = Duration::from_secs_f64(60.0 * number("SOAK_MINUTES").unwrap_or(10.0));
    let seed = number("SOAK_SEED").map_or_else(|| fastrand::u64(1..1_000_000), |seed| seed as u64);
    eprintln!("soak: {time:?} with SOAK_SEED={seed}");
    let all = AllSinks::that_park(&Postgres::start(Options::default()));
    let setup = all.setup("2s");
    let random = fastrand::Rng::with_seed(seed);
    let mut soak =
        Soak { all: &all, setup: &setup, file: setup.write(), random, counts: [0; FAULTS.len()], ended: None };
    let mut first = soak.run();
    first.eventually("it runs", || all.database.is_streaming());
    let (stop, written) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; 3]);
    let mut peak = 0;
    let mut walgate = std::thread::scope(|scope| {
        let mut walgate = first;
        // One key moves one event a round trip of the slowest sink: it gets the less.
        for (writer, (name, keys, batch)) in
            [("one", 1, 3), ("hundred", 100, 20), ("many", 10_000, 20)].into_iter().enumerate()
        {
            let (all, stop, written) = (&all, &stop, &written);
            scope.spawn(move || {
                let stream = Stream { name, keys, batch, prepared: true };
                stream.write(&all.database, 0, |at| {
                    watch_for(PAUSE);
                    written[writer].store(at, Ordering::SeqCst);
                    let sum = || written.iter().map(|at| at.load(Ordering::SeqCst)).sum::<usize>();
                    let near = || stop.load(Ordering::SeqCst) || sum() < all.settled() + AHEAD;
                    while !near() {
                        within(Duration::from_secs(1), near);
                    }
                    !stop.load(Ordering::SeqCst)
                });
            });
        }
        // Also when this panics: the scope waits for the writers.
        let writers = Writers(&stop);
        let begin = Instant::now();
        while begin.elapsed() < time {
            let before = all.settled();
            walgate.eventually("all sinks go on", || all.settled() > before);
            peak = peak.max(walgate.peak_memory_kib());
            walgate = soak.fault(walgate);
        }
        drop(writers);
        walgate
    });
    all.wait_for_all(&mut walgate);
    peak = peak.max(walgate.peak_memory_kib());
    walgate.terminate();
    let ended = walgate.wait_for_end(DEADLINE);
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let outcome = all.assert_all(&oracle::ledger(&all.database));
    let faults: Vec<String> =
        FAULTS.iter().zip(soak.counts).map(|(fault, count)| format!("{count} x {fault}")).collect();
    eprintln!("soak: seed {seed}, {outcome:?}, peak memory {peak} KiB\nsoak: {}", faults.join(", "));
    assert!(peak < RESIDENT, "{peak} KiB were resident");
}
