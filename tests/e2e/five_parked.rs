//! Five real brokers, and each of them away for as long as it takes to park thousands of events: the other four and the
//! checkpoint go on meanwhile, at the pace of the writer, and what was parked is delivered in order under the same load.
//!
//! Nothing here is a matter of time: an outage ends when events that were written long after its beginning have been
//! acknowledged by all others and confirmed to PostgreSQL, and the next one begins when the table is empty again.
//!
//! NATS and ministack are stopped and started again, the receiver refuses connections and cuts the open ones. Kafka's
//! broker and RabbitMQ's node would take too long to start: their links swallow everything, which is also the slower
//! way to find out that somebody is gone.

use std::cell::Cell;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::all_sinks::{AllSinks, Sink};
use crate::support::oracle;
use crate::support::postgres::{Options, Postgres};
use crate::support::wait::{DEADLINE, within};
use crate::support::walgate::Walgate;
use crate::workload::{Stream, scale};

/// Events that are written as fast as they are taken, to know how fast that is.
const MEASURED: usize = 1_000;
/// Events that are written during an outage before it may end.
const MEANWHILE: usize = 1_500;
/// Rows that are parked when PostgreSQL is restarted.
const BEFORE_RESTART: usize = 200;
/// Events by which the writer may be ahead of the slowest sink that is well: on a machine that has become slower since
/// the pace was taken.
const AHEAD: usize = 1_000;
/// KiB that walgate may have, with the client libraries of all five.
const RESIDENT: u64 = 96 * 1024;

struct Scene<'a> {
    all: &'a AllSinks,
    walgate: &'a mut Walgate,
    written: &'a AtomicUsize,
    /// The sinks that are away, or still have to catch up.
    away: &'a Mutex<Vec<Sink>>,
    begin: Instant,
}

/// Different events that all who are not away have acknowledged, at the most.
fn settled(all: &AllSinks, away: &Mutex<Vec<Sink>>) -> usize {
    let away = away.lock().expect("the sinks that are away").clone();
    let well = Sink::ALL.into_iter().filter(|sink| !away.contains(sink));
    well.map(|sink| all.settled_by(sink)).min().expect("a sink that is well")
}

impl Scene<'_> {
    fn written(&self) -> usize {
        self.written.load(Ordering::SeqCst)
    }

    fn end(&self, sink: Sink) {
        match sink {
            Sink::Kafka | Sink::Rabbitmq => self.all.link(sink).black_hole(true),
            Sink::Nats => self.all.stop(sink),
            Sink::Sqs | Sink::Webhook => self.all.end(sink),
        }
    }

    fn revive(&self, sink: Sink) {
        match sink {
            Sink::Kafka | Sink::Rabbitmq => self.all.mend(sink),
            Sink::Nats | Sink::Sqs | Sink::Webhook => self.all.start_again(sink),
        }
    }

    /// What is written from now on is acknowledged by all who are well, and confirmed, though these are owed all of it.
    fn others_go_on(&mut self, dead: &[Sink]) {
        let (all, written) = (self.all, self.written);
        for sink in dead {
            self.walgate.eventually(&format!("{} is parked", sink.name()), || all.parked(*sink) > 0);
        }
        let had: Vec<usize> = dead.iter().map(|sink| all.settled_by(*sink)).collect();
        let well = || Sink::ALL.into_iter().filter(|sink| !dead.contains(sink));
        let (first, before): (usize, Vec<usize>) = (self.written(), well().map(|sink| all.settled_by(sink)).collect());
        let goal = first + MEANWHILE * scale();
        // As long as it goes on, it may take its time.
        while self.written() < goal {
            let before = self.written();
            self.walgate.eventually("events are written", || written.load(Ordering::SeqCst) > before);
        }
        // What the others took of what was written, at the moment when the last of it was.
        let written_meanwhile = self.written() - first;
        let kept: Vec<String> = well()
            .zip(before)
            .map(|(sink, before)| {
                let ratio = (all.settled_by(sink) - before) as f64 / written_meanwhile as f64;
                format!("{} {ratio:.3}", sink.name())
            })
            .collect();
        let slot = &all.database.slot;
        let retained = all.database.value(&format!(
            "SELECT pg_size_pretty(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) FROM pg_replication_slots WHERE slot_name = '{slot}'"
        ));
        eprintln!("{dead:?} away: of {written_meanwhile} events the others took {kept:?}; {retained} of WAL are kept");
        let position = all.database.wal_position();
        for sink in Sink::ALL.into_iter().filter(|sink| !dead.contains(sink)) {
            let what = format!("{} has what was written while {dead:?} was away", sink.name());
            self.walgate.eventually(&what, || all.settled_by(sink) >= goal);
        }
        self.walgate
            .eventually("it is confirmed though somebody is away", || all.database.confirmed_flush() >= position);
        for (sink, had) in dead.iter().zip(had) {
            assert_eq!(all.settled_by(*sink), had, "{} was to be away", sink.name());
            // Everything that was confirmed and that the sink does not have.
            let (parked, name) = (all.parked(*sink), sink.name());
            assert!(parked + had >= goal, "{parked} events are parked for {name}, which has {had} of {goal}");
            let shown = self.walgate.metric("walgate_parked_events", &[&format!("sink=\"{name}\"")]).unwrap_or(0.0);
            assert!(shown >= (goal - had) as f64, "{shown} is shown as parked for {name}");
        }
    }

    /// An outage of these, from its beginning to the time when nothing of it is left, under load. `restart`: PostgreSQL
    /// is restarted once rows are parked, and walgate has to find them again.
    fn outage(&mut self, dead: &[Sink], restart: bool) {
        let (all, start) = (self.all, self.begin.elapsed());
        self.away.lock().expect("the sinks that are away").extend(dead);
        for sink in dead {
            self.end(*sink);
        }
        if restart {
            for sink in dead {
                self.walgate.eventually("rows are parked", || all.parked(*sink) >= BEFORE_RESTART);
            }
            all.database.server.stop_fast(DEADLINE);
            all.database.server.start_again();
        }
        self.others_go_on(dead);
        let (parked, back) = (dead.iter().map(|sink| all.parked(*sink)).collect::<Vec<_>>(), self.begin.elapsed());
        for sink in dead {
            self.revive(*sink);
        }
        for sink in dead {
            while all.parked(*sink) > 0 {
                let before = all.settled_by(*sink);
                let what = format!("{} takes what was parked for it", sink.name());
                self.walgate.eventually(&what, || all.settled_by(*sink) > before || all.parked(*sink) == 0);
            }
            // In memory from now on, or it would have been in the table.
            let goal = self.written();
            let what = format!("{} has caught up", sink.name());
            self.walgate.eventually(&what, || all.settled_by(*sink) >= goal);
        }
        self.away.lock().expect("the sinks that are away").clear();
        eprintln!(
            "{dead:?}: away at {start:?}, {parked:?} parked, back at {back:?}, well at {:?}",
            self.begin.elapsed()
        );
    }
}

#[test]
fn g1_p12_each_of_five_sinks_is_away_and_parked_and_the_other_four_go_on() {
    let begin = Instant::now();
    let all = AllSinks::that_park(&Postgres::start(Options::default()));
    let setup = all.setup("2s").more("limits: { inflight: 1MiB }");
    let mut walgate = Walgate::run(&setup);
    let (written, stop, away) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
    // Events a second; 0: as many as are taken.
    let pace = AtomicUsize::new(0);
    let stream = Stream { name: "paced", keys: 400, batch: 20, prepared: true };
    std::thread::scope(|scope| {
        let (all, written, stop, away, pace) = (&all, &written, &stop, &away, &pace);
        // Also when this panics: the scope waits for the writer.
        let _stopped = Stopped(stop);
        scope.spawn(move || {
            // Since when, and from which number on, there is a pace.
            let paced = Cell::new(None);
            stream.write(&all.database, 0, |at| {
                written.store(at, Ordering::SeqCst);
                let due = || match pace.load(Ordering::SeqCst) {
                    0 => true,
                    pace => {
                        let (since, from): (Instant, usize) = paced.get().unwrap_or_else(|| (Instant::now(), at));
                        paced.set(Some((since, from)));
                        at <= from + (since.elapsed().as_secs_f64() * pace as f64) as usize
                    }
                };
                let goes_on = || stop.load(Ordering::SeqCst) || (due() && at < settled(all, away) + AHEAD);
                within(DEADLINE, goes_on) && !stop.load(Ordering::SeqCst)
            });
        });
        walgate.eventually("the first event is everywhere", || all.settled() > 0);
        let (start, first) = (Instant::now(), all.settled());
        walgate.eventually("all sinks take what they can", || all.settled() >= first + MEASURED);
        let most = (all.settled() - first) as f64 / start.elapsed().as_secs_f64();
        pace.store((most / 2.0) as usize + 1, Ordering::SeqCst);
        let each = Sink::ALL.map(|sink| (sink.name(), all.settled_by(sink) - first));
        eprintln!("after {:?}: all take {most:.0} events a second, {each:?}; half of it is written", begin.elapsed());

        let mut scene = Scene { all, walgate: &mut walgate, written, away, begin };
        for sink in Sink::ALL {
            scene.outage(&[sink], false);
        }
        scene.outage(&[Sink::Nats, Sink::Webhook], false);
        scene.outage(&[Sink::Webhook], true);
        stop.store(true, Ordering::SeqCst);
    });
    all.wait_for_all(&mut walgate);
    let peak = walgate.peak_memory_kib();
    walgate.terminate();
    let ended = walgate.wait_for_end(DEADLINE);
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    let settled = begin.elapsed();
    let outcome = all.assert_all(&oracle::ledger(&all.database));
    for (sink, parked) in &outcome.parked {
        assert!(*parked >= MEANWHILE, "{parked} events were parked for {sink}");
    }
    eprintln!("{outcome:#?}\n{peak} KiB at the most; settled after {settled:?}, judged {:?}", begin.elapsed());
    assert!(peak < RESIDENT, "{peak} KiB were resident");
}

/// Ends the writer when it is dropped.
struct Stopped<'a>(&'a AtomicBool);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
