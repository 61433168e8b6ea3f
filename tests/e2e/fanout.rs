//! One event, two sinks: a webhook and NATS JetStream beside each other while walgate and nats-server are killed, one of
//! the two is dead or slow, and PostgreSQL watches the clock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::both::Both;
use crate::support::oracle;
use crate::support::postgres::{Options, Postgres};
use crate::support::receiver::reply;
use crate::support::wait::{DEADLINE, watch_for, within};
use crate::support::walgate::{Setup, Walgate};
use crate::workload::{Stream, scale};

const KILLS: usize = 20;

#[test]
fn p1_twenty_kills_of_walgate_and_five_of_nats_server_lose_nothing_on_either_sink() {
    let begin = Instant::now();
    // One key moves one event a round trip, ten thousand as many as there is room for.
    let writers = [(1, 1_000), (100, 8_000), (10_000, 20_000)].map(|(keys, events)| {
        let name = match keys {
            1 => "one",
            100 => "hundred",
            _ => "many",
        };
        (Stream { name, keys, batch: 20, prepared: true }, events * scale())
    });
    let total: usize = writers.iter().map(|(_, events)| events).sum();
    let both = Both::on(&Postgres::start(Options::default()));
    let setup = both.setup("5s");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let mut nats_kills = 0;
    // Written until the last kill: else a sink that is ahead has nothing under way when its turn comes.
    let done = AtomicBool::new(false);

    std::thread::scope(|scope| {
        for (stream, events) in writers {
            let (both, done) = (&both, &done);
            // Not too far ahead, so that kills land while transactions are being written.
            scope.spawn(move || {
                let ended = || done.load(Ordering::SeqCst);
                let near = |at: usize| ended() || at * total / events < both.settled() + 6_000;
                let goes_on = |at: usize| (at < events || !ended()) && within(DEADLINE, || near(at));
                stream.write(&both.database, 0, goes_on);
            });
        }
        for kill in 1..=KILLS {
            // Not twice at the same place of the work: progress lies between any two kills.
            let goal = total * kill / (KILLS + 1);
            walgate.eventually(&format!("both have {goal} events"), || both.settled() >= goal);
            match kill % 4 {
                // Read, and not answered.
                0 => {
                    both.receiver.hold();
                    walgate.eventually("a delivery is unacknowledged", || both.receiver.in_flight() > 0);
                }
                // Done, and the answer is lost on the way.
                1 => {
                    let before = both.hook_link.dropped_bytes();
                    both.hook_link.drop_replies(true);
                    walgate.eventually("an answer is lost", || both.hook_link.dropped_bytes() > before);
                }
                2 => {
                    let before = both.bus.dropped_bytes();
                    both.bus.drop_replies(true);
                    walgate.eventually("an acknowledgement is lost", || both.bus.dropped_bytes() > before);
                }
                // With messages that nats-server has or has not stored.
                _ => {
                    both.server.kill9();
                    nats_kills += 1;
                }
            }
            if kill % 4 != 3 {
                both.kill(&mut walgate);
                walgate = Walgate::run_file(&setup, &file);
                continue;
            }
            // By turns walgate outlives the server and comes back to none.
            if kill % 8 == 3 {
                both.server.start_again();
                let before = both.bus.settled_count();
                walgate.eventually("it goes on with the new server", || both.bus.settled_count() > before);
                both.kill(&mut walgate);
            } else {
                both.kill(&mut walgate);
                walgate = Walgate::run_file(&setup, &file);
                // Repeats count: it may have had all that the writers are allowed to be ahead.
                let before = both.receiver.count();
                walgate.eventually("the other sink goes on", || both.receiver.count() > before);
                both.server.start_again();
                continue;
            }
            walgate = Walgate::run_file(&setup, &file);
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!((nats_kills, both.bus.garbled()), (5, 0));
    both.wait_for_all(&mut walgate);
    walgate.terminate();
    let ended = walgate.wait_for_end(DEADLINE);
    assert_eq!(ended.code, Some(0), "{}", ended.output());

    let committed = oracle::ledger(&both.database);
    assert!(committed.len() >= total, "{} of {total} events were written", committed.len());
    let outcome = both.assert_all(&committed);
    eprintln!("P1, two sinks: {outcome:?}, {} duplicates recognised, {:?}", both.bus.duplicates(), begin.elapsed());
}

/// Sinks that are dead or slow hold the slot's progress, and nothing else: statuses go on, memory stays bounded.
fn assert_watched(both: &Both, walgate: &Walgate) {
    let log = both.witness.log();
    assert_eq!(log.starts.len(), 1, "it was cut: {:?}", log.errors);
    drop(log);
    let peak = walgate.peak_memory_kib();
    assert!(peak < 64 * 1024, "{peak} KiB were resident");
}

/// PostgreSQL cuts whoever is silent for two seconds, and the setup leaves it at that.
fn watchful() -> Both {
    let both = Both::on(&Postgres::shared());
    both.database.sql(&format!("ALTER DATABASE {} SET wal_sender_timeout = '2s'", both.database.name));
    both
}

fn watched(both: &Both, timeout: &str) -> Setup {
    both.setup(timeout).in_source("wal_sender_timeout: server")
}

/// Waits until PostgreSQL has been told something so many times more.
fn wait_for_statuses(both: &Both, walgate: &mut Walgate, more: usize) {
    let before = both.witness.log().statuses.len();
    walgate.eventually("statuses go on", || both.witness.log().statuses.len() >= before + more);
}

#[test]
fn g1_nats_that_is_down_at_the_start_lets_the_webhook_go_on_until_the_window_is_full() {
    let both = watchful();
    both.server.stop();
    let mut walgate = Walgate::run(&watched(&both, "1s").more("limits: { inflight: 1MiB }"));
    both.insert(200, 20, 10);
    walgate.eventually("the webhook has all of a small backlog", || both.receiver.settled_count() == 200);
    // 40 MB: the window and the socket buffers on the way hold far less.
    both.insert(4000, 50, 10_000);
    let stands_still = || {
        let seen = both.receiver.settled_count();
        watch_for(Duration::from_millis(400));
        seen == both.receiver.settled_count()
    };
    walgate.eventually("the window is full", stands_still);
    let seen = both.receiver.settled_count();
    assert!(seen > 200 && seen < 4200, "{seen} events at the webhook");
    watch_for(Duration::from_secs(4));
    wait_for_statuses(&both, &mut walgate, 3);
    {
        let log = both.witness.log();
        assert!(log.flush() <= log.rows[0].commit_lsn, "nothing is confirmed");
    }
    assert_watched(&both, &walgate);
    both.server.start_again();
    both.wait_for_all(&mut walgate);
    assert_watched(&both, &walgate);
    both.assert_all(&both.committed());
}

#[test]
fn g1_a_stopped_nats_server_and_a_receiver_that_is_down_hold_only_their_own() {
    let both = watchful();
    let mut walgate = Walgate::run(&watched(&both, "1s"));
    both.insert(100, 20, 10);
    both.wait_for_all(&mut walgate);
    // It accepts connections and answers nothing.
    both.server.signal(Signal::STOP);
    both.insert(100, 20, 10);
    walgate.eventually("the webhook goes on", || both.receiver.settled_count() == 200);
    wait_for_statuses(&both, &mut walgate, 3);
    assert_eq!(both.bus.settled_count(), 100);
    both.server.signal(Signal::CONT);
    both.wait_for_all(&mut walgate);

    both.receiver.go_down();
    both.insert(100, 20, 10);
    walgate.eventually("NATS goes on", || both.bus.settled_count() == 300);
    wait_for_statuses(&both, &mut walgate, 3);
    assert_eq!(both.receiver.settled_count(), 200);
    both.receiver.come_back();
    both.wait_for_all(&mut walgate);
    assert_watched(&both, &walgate);
    both.assert_all(&both.committed());
}

#[test]
fn g3_a_slow_sink_slows_nobody_else() {
    let both = watchful();
    let mut walgate = Walgate::run(&watched(&both, "30s"));
    // Ten times faster than the row has it.
    both.receiver.script(|_| reply(200).after(Duration::from_secs(1)).into());
    both.insert(60, 20, 10);
    walgate.eventually("NATS has everything", || both.bus.settled_count() == 60);
    assert!(both.receiver.settled_count() < 60);
    both.wait_for_all(&mut walgate);
    both.receiver.accept_all();
    both.bus.delay(Duration::from_millis(500));
    both.insert(60, 20, 10);
    walgate.eventually("the webhook has everything", || both.receiver.settled_count() == 120);
    assert!(both.bus.settled_count() < 120);
    both.wait_for_all(&mut walgate);
    both.mend();
    assert_watched(&both, &walgate);
    let outcome = both.assert_all(&both.committed());
    assert_eq!((outcome.hook_repeats, outcome.bus_repeats), (0, 0), "nobody lost patience");
}

#[test]
fn s36_two_blocked_sinks_do_not_silence_walgate() {
    let both = watchful();
    let mut walgate = Walgate::run(&watched(&both, "30s").more("limits: { inflight: 64KiB }"));
    both.receiver.hold();
    both.insert(20, 5, 10);
    walgate.eventually("deliveries are under way", || both.receiver.in_flight() > 0);
    both.server.signal(Signal::STOP);
    both.insert(3000, 50, 10_000);
    // Three times what the server allows.
    watch_for(Duration::from_secs(6));
    wait_for_statuses(&both, &mut walgate, 3);
    assert_watched(&both, &walgate);
    both.server.signal(Signal::CONT);
    both.receiver.release_all();
    both.wait_for_all(&mut walgate);
    assert_watched(&both, &walgate);
    both.assert_all(&both.committed());
}

#[test]
fn s33_an_idle_outbox_on_a_busy_server_does_not_hold_the_wal_with_two_sinks() {
    let both = Both::on(&Postgres::start(Options::default()));
    let mut walgate = Walgate::run(&both.setup("5s"));
    both.insert(10, 2, 10);
    both.wait_for_all(&mut walgate);
    // 40 MB of WAL in a table that is not published, and in another database.
    let other = both.database.server.client("postgres");
    for client in [&both.database.client(), &other] {
        client.run("CREATE TABLE other AS SELECT i, repeat('x', 200) FROM generate_series(1, 80000) i");
    }
    let position = both.database.wal_position();
    walgate.eventually("the slot follows the keepalives", || both.database.confirmed_flush() >= position);
    both.insert(10, 2, 10);
    both.wait_for_all(&mut walgate);
    both.assert_all(&both.committed());
}

#[test]
fn p3_acknowledgements_that_came_while_walgate_was_stopped_are_stale_and_harmless() {
    let both = Both::on(&Postgres::shared());
    // Shorter than it is stopped.
    let mut walgate = Walgate::run(&both.setup("500ms"));
    let (stop, stream) = (AtomicBool::new(false), Stream { name: "p3", keys: 40, batch: 10, prepared: false });
    std::thread::scope(|scope| {
        let (both, stop) = (&both, &stop);
        scope.spawn(move || {
            let goes_on = |at| !stop.load(Ordering::SeqCst) && within(DEADLINE, || at < both.settled() + 2000);
            stream.write(&both.database, 0, goes_on);
        });
        for round in 1..=5 {
            walgate.eventually("both go on", || both.settled() >= round * 200);
            walgate.signal(Signal::STOP);
            watch_for(Duration::from_millis(1500));
            walgate.signal(Signal::CONT);
        }
        stop.store(true, Ordering::SeqCst);
    });
    both.wait_for_all(&mut walgate);
    let outcome = both.assert_all(&oracle::ledger(&both.database));
    eprintln!("P3, two sinks: {outcome:?}");
    assert!(!walgate.has_ended());
}
