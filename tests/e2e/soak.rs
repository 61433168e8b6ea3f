//! Faults at random against a fan-out to two sinks, and a reckoning at the end. Not part of `make test`: `make soak`.
//!
//! `SOAK_MINUTES` is how long (10), `SOAK_SEED` repeats the choice of faults (not their timing).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::both::Both;
use crate::support::clock::{self, Tick};
use crate::support::oracle;
use crate::support::postgres::{Options, Postgres};
use crate::support::receiver::reply;
use crate::support::wait::{DEADLINE, watch_for, within};
use crate::support::walgate::{Setup, Walgate};
use crate::workload::Stream;

/// Between two transactions of a writer.
const PAUSE: Duration = Duration::from_millis(100);
/// Events that the writers may be ahead of the slower sink.
const AHEAD: usize = 20_000;

const FAULTS: [&str; 16] = [
    "walgate: KILL",
    "walgate: TERM",
    "walgate: STOP and CONT",
    "nats-server: KILL",
    "nats-server: TERM",
    "nats-server: STOP and CONT",
    "postgres: KILL",
    "postgres: immediate shutdown",
    "postgres: fast shutdown",
    "receiver: down",
    "receiver: 500 and 429",
    "a link: cut",
    "a link: reset",
    "a sink's link: answers lost",
    "a sink's link: black hole",
    "a sink's link: slow",
];

struct Soak<'a> {
    both: &'a Both,
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
    /// tells it again, but for a walgate that is terminated before it has a connection again: only then may the next one
    /// begin lower.
    fn note_end(&self) {
        let (said, confirmed) = (self.both.witness.flush(), self.both.database.confirmed_when_released());
        if confirmed < said {
            let last = self.both.witness.log().statuses.last().map_or(0, |status| status.tick);
            let told = self.ended.is_none_or(|end| last > end);
            assert!(!told, "the slot is at {confirmed}, though {said} was confirmed since PostgreSQL's last end");
        }
        self.both.witness.note_kill(confirmed);
    }

    fn for_a_while(&mut self) {
        watch_for(Duration::from_millis(self.random.u64(200..3_000)));
    }

    fn fault(&mut self, mut walgate: Walgate) -> Walgate {
        let both = self.both;
        let fault = self.random.usize(..FAULTS.len());
        self.counts[fault] += 1;
        let server = &both.database.server;
        match FAULTS[fault] {
            "walgate: KILL" => {
                both.kill(&mut walgate);
                return self.run();
            }
            "walgate: TERM" => {
                walgate.terminate();
                let ended = walgate.wait_for_end(DEADLINE);
                assert_eq!(ended.code, Some(0), "{}", ended.output());
                self.note_end();
                return self.run();
            }
            "walgate: STOP and CONT" => {
                walgate.signal(Signal::STOP);
                self.for_a_while();
                walgate.signal(Signal::CONT);
            }
            "nats-server: KILL" => {
                both.server.kill9();
                self.for_a_while();
                both.server.start_again();
            }
            "nats-server: TERM" => {
                both.server.stop();
                self.for_a_while();
                both.server.start_again();
            }
            "nats-server: STOP and CONT" => {
                both.server.signal(Signal::STOP);
                self.for_a_while();
                both.server.signal(Signal::CONT);
            }
            "postgres: KILL" => {
                server.kill9();
                self.ended = Some(clock::tick());
                server.start_again();
            }
            "postgres: immediate shutdown" => {
                server.stop_immediate();
                self.ended = Some(clock::tick());
                server.start_again();
            }
            "postgres: fast shutdown" => {
                server.stop_fast(DEADLINE);
                self.ended = Some(clock::tick());
                server.start_again();
            }
            "receiver: down" => {
                both.receiver.go_down();
                self.for_a_while();
                both.receiver.come_back();
            }
            "receiver: 500 and 429" => {
                both.receiver.script(|request| match request.number % 3 {
                    0 => reply(500).into(),
                    1 => reply(429).into(),
                    _ => reply(200).into(),
                });
                self.for_a_while();
                both.receiver.accept_all();
            }
            "a link: cut" => match self.random.u8(..3) {
                0 => both.hook_link.cut(),
                1 => both.bus.cut(),
                _ => both.witness.cut(),
            },
            "a link: reset" => match self.random.u8(..3) {
                0 => both.hook_link.reset(),
                1 => both.bus.reset(),
                _ => both.witness.reset(),
            },
            other => {
                let link = if self.random.bool() { &both.hook_link } else { &*both.bus };
                match other {
                    "a sink's link: answers lost" => link.drop_replies(true),
                    "a sink's link: black hole" => link.black_hole(true),
                    _ => link.delay(Duration::from_millis(300)),
                }
                self.for_a_while();
                both.mend();
                // What was lost in the middle of a connection leaves it in no state to go on.
                link.cut();
            }
        }
        walgate
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
fn soak_faults_at_random_lose_nothing_on_either_sink() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<f64>().ok());
    let time = Duration::from_secs_f64(60.0 * number("SOAK_MINUTES").unwrap_or(10.0));
    let seed = number("SOAK_SEED").map_or_else(|| fastrand::u64(1..1_000_000), |seed| seed as u64);
    eprintln!("soak: {time:?} with SOAK_SEED={seed}");
    let both = Both::on(&Postgres::start(Options::default()));
    let setup = both.setup("2s");
    let random = fastrand::Rng::with_seed(seed);
    let mut soak =
        Soak { both: &both, setup: &setup, file: setup.write(), random, counts: [0; FAULTS.len()], ended: None };
    let mut first = soak.run();
    first.eventually("it runs", || both.database.is_streaming());
    let stop = AtomicBool::new(false);
    let mut peak = 0;
    let mut walgate = std::thread::scope(|scope| {
        let mut walgate = first;
        for (name, keys) in [("one", 1), ("hundred", 100), ("many", 10_000)] {
            let (both, stop) = (&both, &stop);
            scope.spawn(move || {
                let stream = Stream { name, keys, batch: 20, prepared: true };
                stream.write(&both.database, 0, |at| {
                    watch_for(PAUSE);
                    let near = || stop.load(Ordering::SeqCst) || at < both.settled() + AHEAD;
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
            let before = both.settled();
            walgate.eventually("both sinks go on", || both.settled() > before);
            peak = peak.max(walgate.peak_memory_kib());
            walgate = soak.fault(walgate);
        }
        drop(writers);
        walgate
    });
    both.mend();
    both.wait_for_all(&mut walgate);
    peak = peak.max(walgate.peak_memory_kib());
    walgate.terminate();
    let ended = walgate.wait_for_end(DEADLINE);
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let outcome = both.assert_all(&oracle::ledger(&both.database));
    let faults: Vec<String> =
        FAULTS.iter().zip(soak.counts).map(|(fault, count)| format!("{count} x {fault}")).collect();
    eprintln!("soak: seed {seed}, {outcome:?}, peak memory {peak} KiB\nsoak: {}", faults.join(", "));
    assert!(peak < 64 * 1024, "{peak} KiB were resident");
}
