//! Several walgates on one slot: one streams, the others wait; one of them takes over when that one is killed, frozen, cut
//! off or replaced, and they never fight. Each has a link of its own, with a witness on it; what the receiver got is
//! judged over all of them together.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use walgate::control::parking::create_sql;

use crate::support::database::Database;
use crate::support::lsn::Lsn;
use crate::support::oracle;
use crate::support::postgres::{Postgres, ROLE};
use crate::support::receiver::{Receiver, reply};
use crate::support::wait::{DEADLINE, eventually, watch_for, within};
use crate::support::walgate::{Setup, Walgate};
use crate::support::witness::{Log, PgWitness};
use crate::workload::Stream;

/// Three seconds until PostgreSQL gives up a silent client, half a second until that is seen, and a machine that has
/// other things to do.
const TAKEOVER: Duration = Duration::from_secs(20);

/// One database, one receiver, and so many links. Dropped in this order: those who talk before those who are talked to.
struct Team {
    links: Vec<PgWitness>,
    receiver: Receiver,
    database: Database,
    confirmed_before: Lsn,
}

impl Team {
    fn of(links: usize) -> Team {
        let database = Postgres::shared().database().with_keyed_outbox();
        let links = (0..links).map(|_| PgWitness::on(database.server.port())).collect();
        let confirmed_before = database.confirmed_flush();
        Team { links, receiver: Receiver::start(), database, confirmed_before }
    }

    fn setup(&self, link: usize) -> Setup {
        Setup::through(&self.database, self.links[link].port())
            .keyed()
            .called(&name(link))
            .webhook("hook", &self.receiver)
            .route("**", "hook")
    }

    /// A walgate on this link. What it takes over from is to be known: see [`Team::stands_by`].
    fn run(&self, link: usize) -> Walgate {
        Walgate::run(&self.setup(link))
    }

    /// The first one, which has delivered an event.
    fn leader(&self, link: usize) -> Walgate {
        let mut walgate = self.run(link);
        self.delivers(&mut walgate);
        assert_eq!(self.reader(), Some(link));
        walgate
    }

    /// One more, which waits.
    fn second(&self, link: usize) -> Walgate {
        let mut walgate = self.run(link);
        stands_by(&mut walgate);
        walgate
    }

    fn insert(&self, key: &str) -> String {
        self.database.insert("order.created", key, r#"{"total": 1}"#)
    }

    /// The link whose walgate streams, as PostgreSQL says.
    fn reader(&self) -> Option<usize> {
        let rows = self.database.sql(&format!(
            "SELECT a.application_name FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid \
             WHERE s.slot_name = '{}'",
            self.database.slot
        ));
        let name = rows.into_iter().next()?.into_iter().next()??;
        name.strip_prefix("walgate-")?.parse().ok()
    }

    fn walsender(&self) -> Option<u32> {
        self.database.server.walsender_of(&self.database.slot)
    }

    /// A fresh event arrives.
    fn delivers(&self, walgate: &mut Walgate) {
        let fresh = self.insert("fresh");
        walgate.eventually("a fresh event arrives", || self.receiver.has(&fresh));
    }

    /// Waits until this one streams, and for a fresh event; how long the former took.
    fn takes_over(&self, link: usize, walgate: &mut Walgate, since: Instant) {
        eventually(DEADLINE, "another one streams", || self.reader() == Some(link));
        let took = since.elapsed();
        eprintln!("{} took over within {took:?}", name(link));
        assert!(took < TAKEOVER, "{} took over only after {took:?}; it said:\n{}", name(link), walgate.said());
        self.delivers(walgate);
        let status = walgate.status().expect("a status");
        assert_eq!(status["source"]["state"], "streaming", "{status}");
    }

    /// Nobody takes the slot from anybody, for a while.
    fn assert_peace(&self) {
        let walsender = self.walsender();
        assert!(walsender.is_some());
        let starts = || self.links.iter().map(|link| link.log().starts.len()).sum::<usize>();
        let before = starts();
        watch_for(Duration::from_secs(2));
        assert_eq!((self.walsender(), starts()), (walsender, before), "they fight");
    }

    /// Everything was received, nothing skips forward, and nothing was confirmed too early, whoever did it. The repeats.
    #[track_caller]
    fn assert_all(&self) -> usize {
        let confirms = || self.links.iter().any(|link| link.log().statuses.iter().any(|status| status.flush != Lsn(0)));
        eventually(DEADLINE, "something is confirmed", confirms);
        let logs: Vec<_> = self.links.iter().map(PgWitness::log).collect();
        let log = Log::merged(&logs);
        drop(logs);
        let committed = oracle::outbox(&self.database, &log);
        let repeats = oracle::assert_reconciled(&committed, &self.receiver.receipts());
        assert_eq!(self.receiver.bad_signatures(), Vec::<String>::new());
        let settled = self.receiver.all_settled();
        oracle::assert_wire(&log, self.confirmed_before, |id| settled.get(id).copied());
        repeats
    }

    /// Everything that was committed has arrived.
    fn wait_for_all(&self) {
        let total: usize = self.database.value("SELECT count(*) FROM outbox_events").parse().expect("a number");
        let all = within(DEADLINE, || self.receiver.settled_count() >= total);
        let settled = self.receiver.settled_count();
        assert!(all, "{settled} of {total} events have arrived; link {:?} has the slot", self.reader());
    }
}

fn name(link: usize) -> String {
    format!("walgate-{link}")
}

fn state(walgate: &Walgate) -> String {
    walgate.status().and_then(|status| Some(status["source"]["state"].as_str()?.to_owned())).unwrap_or_default()
}

/// Waits until this one stands by.
#[track_caller]
fn stands_by(walgate: &mut Walgate) {
    within(DEADLINE, || walgate.has_ended() || state(walgate) == "standby");
    assert_eq!(state(walgate), "standby", "it said:\n{}", walgate.said());
    assert_eq!(walgate.page("/readyz").map(|(code, _)| code), Some(200));
    assert_eq!(walgate.metric("walgate_streaming", &[]), Some(0.0));
}

/// Lines of the log with this text.
fn lines(walgate: &Walgate, text: &str) -> usize {
    walgate.stderr().lines().filter(|line| line.contains(text)).count()
}

const TAKEN: &str = "another process has taken over";

#[test]
fn s5_a_standby_says_for_whom_it_waits_and_succeeds_a_killed_leader() {
    let team = Team::of(2);
    let mut first = team.leader(0);
    let mut second = team.second(1);
    let walsender = team.walsender().expect("a walsender");
    eventually(DEADLINE, "it says for whom", || {
        second.status().is_some_and(|status| status["source"]["detail"].to_string().contains("walgate-0"))
    });
    let status = second.status().expect("a status");
    let user = &status["server_slots"]["slot"]["user"];
    assert_eq!(user["pid"], walsender, "{status}");
    assert_eq!(user["application_name"], "walgate-0", "{status}");
    assert_eq!(user["client_addr"], "127.0.0.1", "{status}");
    let detail = status["source"]["detail"].as_str().expect("a detail");
    for text in [&walsender.to_string(), "walgate-0", "127.0.0.1", &team.database.slot] {
        assert!(detail.contains(text), "{text} is not in {detail:?}");
    }
    assert_eq!(second.metric("walgate_sink_up", &["sink=\"hook\""]), Some(1.0), "it is ready to deliver");
    team.assert_peace();
    assert_eq!(lines(&second, "standing by"), 1, "{}", second.said());

    let killed = Instant::now();
    first.kill9();
    team.takes_over(1, &mut second, killed);
    assert_eq!(second.metric("walgate_streaming", &[]), Some(1.0));
    team.assert_all();
}

#[test]
fn s4_p3_a_frozen_leader_is_succeeded_and_stands_by_when_it_wakes() {
    let team = Team::of(2);
    let mut first = team.leader(0);
    let mut second = team.second(1);
    // Some deliveries are under way, more are queued behind them.
    team.receiver.hold();
    let ids: Vec<String> = (0..60).map(|n| team.insert(&format!("k{}", n % 30))).collect();
    first.eventually("deliveries are under way", || team.receiver.in_flight() >= 8);
    let frozen = Instant::now();
    first.signal(Signal::STOP);
    team.receiver.release_all();
    team.takes_over(1, &mut second, frozen);
    second.eventually("all of them arrive", || ids.iter().all(|id| team.receiver.settled(id).is_some()));

    first.signal(Signal::CONT);
    first.wait_log(&[TAKEN]);
    stands_by(&mut first);
    let received = team.receiver.count();
    team.assert_peace();
    assert_eq!(team.receiver.count(), received, "a standby delivers nothing");
    assert_eq!(lines(&first, TAKEN), 1, "{}", first.said());
    assert!(first.status().is_some_and(|status| status["checkpoint"]["unsettled_events"] == 0));
    team.delivers(&mut second);

    let stopped = Instant::now();
    second.terminate();
    second.wait_for_end(DEADLINE).expect(0, &[]);
    team.takes_over(0, &mut first, stopped);
    team.assert_all();
}

#[test]
fn s4_a_leader_that_is_cut_off_is_succeeded_and_stands_by_when_it_is_back() {
    let team = Team::of(2);
    let mut first = team.leader(0);
    let mut second = team.second(1);
    team.links[0].black_hole(true);
    let cut_off = Instant::now();
    let during = team.insert("a");
    team.takes_over(1, &mut second, cut_off);
    assert!(team.receiver.has(&during));
    eventually(DEADLINE, "it notices", || state(&first) == "reconnecting");
    assert_eq!(first.page("/readyz").map(|(code, _)| code), Some(503), "{}", first.said());

    team.links[0].black_hole(false);
    stands_by(&mut first);
    assert_eq!(lines(&first, TAKEN), 1, "{}", first.said());
    team.assert_peace();
    let killed = Instant::now();
    second.kill9();
    team.takes_over(0, &mut first, killed);
    team.assert_all();
}

#[test]
fn s8_a_leader_whose_slot_was_anothers_in_between_begins_again_where_it_stands() {
    let team = Team::of(2);
    let mut first = team.leader(0);
    let mut second = team.second(1);
    // What it holds when it is cut off, the other one delivers.
    team.receiver.hold();
    let held: Vec<String> = (0..40).map(|n| team.insert(&format!("k{}", n % 20))).collect();
    first.eventually("deliveries are under way", || team.receiver.in_flight() >= 8);
    team.links[0].black_hole(true);
    let cut_off = Instant::now();
    eventually(DEADLINE, "another one streams", || team.reader() == Some(1));
    team.receiver.release_all();
    team.takes_over(1, &mut second, cut_off);
    second.eventually("all of it arrives", || held.iter().all(|id| team.receiver.settled(id).is_some()));
    second.terminate();
    second.wait_for_end(DEADLINE).expect(0, &[]);
    assert_eq!(team.walsender(), None);

    team.links[0].black_hole(false);
    let back = Instant::now();
    team.takes_over(0, &mut first, back);
    first.wait_log(&["another process has had the slot in between"]);
    team.assert_all();
}

#[test]
fn p2_a_rolling_deploy_hands_over_without_repeats() {
    let team = Team::of(3);
    let mut members = vec![team.leader(0)];
    let (stop, stream) = (AtomicBool::new(false), Stream { name: "deploy", keys: 30, batch: 8, prepared: false });
    std::thread::scope(|scope| {
        let (team, stop) = (&team, &stop);
        scope.spawn(move || {
            let goes_on =
                |at| !stop.load(Ordering::SeqCst) && within(DEADLINE, || at < team.receiver.settled_count() + 500);
            stream.write(&team.database, 0, goes_on);
        });
        for link in [1, 2] {
            let seen = team.receiver.settled_count();
            members[0].eventually("events flow", || team.receiver.settled_count() > seen + 200);
            members.push(team.second(link));
            let replaced = members.remove(0);
            replaced.terminate();
            replaced.wait_for_end(DEADLINE).expect(0, &[]);
            let stopped = Instant::now();
            team.takes_over(link, &mut members[0], stopped);
        }
        stop.store(true, Ordering::SeqCst);
    });
    team.wait_for_all();
    let repeats = team.assert_all();
    assert_eq!(repeats, 0, "the receiver took everything at once: nothing was in flight at the end");
}

#[test]
fn s5_of_two_standbys_one_takes_over_and_the_other_goes_on_waiting() {
    let team = Team::of(3);
    let mut first = team.leader(0);
    let mut others = [(1, team.second(1)), (2, team.second(2))];
    first.kill9();
    let killed = Instant::now();
    let mut winner = None;
    eventually(DEADLINE, "one of them takes over", || {
        winner = team.reader().filter(|link| *link != 0);
        winner.is_some()
    });
    if winner == Some(2) {
        others.reverse();
    }
    let [(link, leader), (other, waiting)] = &mut others;
    team.takes_over(*link, leader, killed);
    stands_by(waiting);
    team.assert_peace();
    leader.kill9();
    let killed = Instant::now();
    team.takes_over(*other, waiting, killed);
    team.assert_all();
}

#[test]
fn s4_p3_alone_it_goes_on_after_it_was_frozen_for_longer_than_the_timeout() {
    let team = Team::of(1);
    let mut walgate = team.leader(0);
    team.receiver.hold();
    let held = team.insert("a");
    walgate.eventually("it is under way", || team.receiver.in_flight() == 1);
    walgate.signal(Signal::STOP);
    eventually(DEADLINE, "PostgreSQL has cut it off", || team.walsender().is_none());
    walgate.signal(Signal::CONT);
    eventually(DEADLINE, "it streams again", || team.reader() == Some(0));
    team.receiver.release_all();
    team.delivers(&mut walgate);
    walgate.eventually("what it held is taken", || team.receiver.settled(&held).is_some());
    assert_eq!(team.assert_all(), 0, "nobody else had the slot: what it held stayed where it was");
    assert_eq!(lines(&walgate, TAKEN), 0, "{}", walgate.said());
}

#[test]
fn s4_a_frozen_walsender_holds_the_slot_against_everybody_until_it_ends() {
    let team = Team::of(2);
    let mut first = Walgate::run(&team.setup(0).in_source("wal_sender_timeout: 1s"));
    team.delivers(&mut first);
    let mut second = team.second(1);
    let walsender = team.walsender().expect("a walsender");
    team.database.server.signal_backend(walsender, Signal::STOP);
    let during = team.insert("a");
    let line = first.wait_log(&["not streaming", "in use"]);
    assert!(line.contains(&walsender.to_string()), "{line}");
    assert_eq!((state(&first).as_str(), state(&second).as_str()), ("reconnecting", "standby"));
    assert_eq!(first.page("/readyz").map(|(code, _)| code), Some(503));
    team.database.server.signal_backend(walsender, Signal::CONT);
    // Whoever is quicker.
    second.eventually("it arrives", || team.receiver.has(&during));
    let states = || [state(&first), state(&second)];
    eventually(DEADLINE, "one streams, one stands by", || {
        let mut states = states();
        states.sort();
        states == ["standby", "streaming"]
    });
    team.assert_peace();
    team.assert_all();
}

#[test]
fn s4_a_leader_that_wakes_up_with_a_full_window_sees_that_the_slot_is_anothers() {
    let team = Team::of(2);
    let mut first = Walgate::run(&team.setup(0).more("limits: { inflight: 64KiB }"));
    team.delivers(&mut first);
    let mut second = Walgate::run(&team.setup(1).more("limits: { inflight: 64KiB }"));
    stands_by(&mut second);
    // Nothing is taken by the receiver, so that neither of them reads its stream.
    team.receiver.script(|_| reply(503).into());
    team.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'k' || i % 50, jsonb_build_object('n', i, 'pad', repeat('x', 20000)) \
         FROM generate_series(1, 1000) i",
    );
    let full = |walgate: &Walgate| {
        walgate.status().and_then(|status| status["checkpoint"]["unsettled_bytes"].as_u64()).unwrap_or(0) > 64 << 10
    };
    eventually(DEADLINE, "the window is full", || full(&first));
    first.signal(Signal::STOP);
    eventually(DEADLINE, "another one streams", || team.reader() == Some(1));
    first.signal(Signal::CONT);
    stands_by(&mut first);
    assert_eq!(lines(&first, TAKEN), 1, "{}", first.said());
    team.assert_peace();
    team.receiver.accept_all();
    team.wait_for_all();
    team.assert_all();
}

/// What a leader does in walgate's own tables must not come behind its successor's back.
#[test]
fn s5_p3_parked_rows_are_handed_over_in_order() {
    const PARKS: &str = "timeout: 5s, retry: { initial: 20ms, max: 300ms, connection_max: 200ms }, park_after: 200ms";
    let team = Team::of(2);
    create_sql(ROLE).iter().for_each(|statement| drop(team.database.sql(statement)));
    let setup = |link: usize| {
        Setup::through(&team.database, team.links[link].port())
            .keyed()
            .called(&name(link))
            .webhook_at("hook", &team.receiver.url(), PARKS)
            .route("**", "hook")
    };
    let parked = || -> usize { team.database.value("SELECT count(*) FROM walgate.parked").parse().expect("a number") };
    let sick = |sick: bool| {
        team.receiver.script(move |request| match sick {
            true => reply(503).into(),
            // Some events fail alone now and then, and hold their keys.
            false if request.number % 37 == 0 => reply(500).into(),
            false => reply(200).after(Duration::from_millis(request.number % 5)).into(),
        });
    };
    let mut members = [(0, Walgate::run(&setup(0))), (1, Walgate::run(&setup(1)))];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let (team, stop) = (&team, &stop);
            let stream = Stream { name, keys: 20, batch: 6, prepared: false };
            scope.spawn(move || {
                let goes_on = |at| {
                    let room = || at < team.receiver.settled_count() / 2 + 400 || stop.load(Ordering::SeqCst);
                    within(DEADLINE, room) && !stop.load(Ordering::SeqCst)
                };
                stream.write(&team.database, 0, goes_on);
            });
        }
        for round in 0..4 {
            let seen = team.receiver.settled_count();
            eventually(DEADLINE, "events flow", || team.receiver.settled_count() > seen + 200);
            let (old, new) = if team.reader() == Some(members[0].0) { (0, 1) } else { (1, 0) };
            sick(true);
            eventually(DEADLINE, "deliveries are parked", || parked() > 100);
            // Two leaders are stopped while they park, two while they deliver what is parked.
            if round % 2 == 1 {
                sick(false);
                eventually(DEADLINE, "they are delivered", || parked() < 90);
            }
            let begin = Instant::now();
            let (link, leader) = &members[old];
            match round < 2 {
                true => leader.signal(Signal::STOP),
                false => team.links[*link].black_hole(true),
            }
            sick(false);
            let (link, next) = &mut members[new];
            team.takes_over(*link, next, begin);
            let (link, leader) = &mut members[old];
            match round < 2 {
                true => leader.signal(Signal::CONT),
                false => team.links[*link].black_hole(false),
            }
            stands_by(leader);
        }
        stop.store(true, Ordering::SeqCst);
    });
    team.receiver.accept_all();
    team.wait_for_all();
    eventually(DEADLINE, "nothing is parked any more", || parked() == 0);
    let committed = oracle::outbox(&team.database, &Log::merged(&[team.links[0].log(), team.links[1].log()]));
    let repeats = oracle::assert_reconciled(&committed, &team.receiver.receipts());
    eprintln!("{} events, {repeats} repeats", committed.len());
    for (_, member) in &members {
        assert!(!member.said().contains("panic"), "{}", member.said());
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Freeze,
    CutOff,
    Deploy,
}

#[test]
fn s5_p1_p3_under_load_leadership_goes_round_and_nothing_is_lost() {
    let faults = [Fault::Freeze, Fault::Kill, Fault::CutOff, Fault::Deploy, Fault::Freeze];
    let team = Team::of(2 + faults.len());
    // Slow enough that something is always in flight.
    team.receiver.script(|request| reply(200).after(Duration::from_millis(request.number % 7 * 3)).into());
    let mut members = vec![(0, team.leader(0)), (1, team.second(1))];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for name in ["a", "b"] {
            let (team, stop) = (&team, &stop);
            let stream = Stream { name, keys: 20, batch: 12, prepared: false };
            scope.spawn(move || {
                let goes_on = |at| {
                    !stop.load(Ordering::SeqCst) && within(DEADLINE, || at < team.receiver.settled_count() / 2 + 500)
                };
                stream.write(&team.database, 0, goes_on);
            });
        }
        for (round, fault) in faults.into_iter().enumerate() {
            let seen = team.receiver.settled_count();
            eventually(DEADLINE, "events flow", || team.receiver.settled_count() > seen + 300);
            let place = members.iter().position(|(link, _)| team.reader() == Some(*link)).expect("a leader");
            let (old, mut leader) = members.remove(place);
            let (link, next) = &mut members[0];
            let begin = Instant::now();
            match fault {
                Fault::Freeze => leader.signal(Signal::STOP),
                Fault::Kill => leader.kill9(),
                Fault::CutOff => team.links[old].black_hole(true),
                Fault::Deploy => leader.terminate(),
            }
            team.takes_over(*link, next, begin);
            let after = match fault {
                Fault::Freeze => {
                    leader.signal(Signal::CONT);
                    (old, leader)
                }
                Fault::CutOff => {
                    team.links[old].black_hole(false);
                    (old, leader)
                }
                Fault::Deploy => {
                    leader.wait_for_end(DEADLINE).expect(0, &[]);
                    (round + 2, team.run(round + 2))
                }
                Fault::Kill => (round + 2, team.run(round + 2)),
            };
            members.push(after);
            stands_by(&mut members[1].1);
        }
        stop.store(true, Ordering::SeqCst);
    });
    team.wait_for_all();
    let repeats = team.assert_all();
    eprintln!("{} events, {repeats} repeats", team.receiver.distinct());
}
