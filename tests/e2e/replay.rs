//! `walgate replay`: a part of the past once more to one sink, while live traffic flows to all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::parking::Pair;
use crate::support::postgres::ROLE;
use crate::support::wait::{DEADLINE, within};
use crate::support::walgate::{Ended, Setup, Walgate};
use crate::workload::Stream;

struct Scene {
    pair: Pair,
    setup: Setup,
}

impl Scene {
    fn new() -> Scene {
        let pair = Pair::new();
        pair.database.sql(&format!("GRANT SELECT ON outbox_events TO {ROLE}"));
        let setup = pair.setup("");
        Scene { pair, setup }
    }

    fn replay(&self, arguments: &[&str]) -> Ended {
        let all = ["replay", "--config", "{config}", "--json", "--sink", "sick"];
        Walgate::command(&self.setup, &[&all, arguments].concat())
    }

    #[track_caller]
    fn report(&self, arguments: &[&str]) -> Value {
        let ended = self.replay(arguments);
        ended.expect(0, &[]);
        serde_json::from_str(ended.stdout.trim()).expect("a report")
    }

    /// Everything that was committed until now counts as settled.
    fn wait_settled(&self, walgate: &mut Walgate) {
        let database = &self.pair.database;
        let position = database.wal_position();
        walgate.eventually("a mark is passed", || {
            database.insert("tick", "tick", "{}");
            within(Duration::from_millis(300), || false);
            let sql = format!("SELECT COALESCE(mark_lsn >= '{position}', false) FROM walgate.gateway");
            database.value(&sql) == "t"
        });
    }

    /// Receipts of the sink that carry the header of a replay: ids in the order in which they came.
    fn replayed(&self) -> Vec<String> {
        let receipts = self.pair.sick.receipts();
        receipts
            .into_iter()
            .filter(|receipt| receipt.header("walgate-header-replay").is_some())
            .map(|receipt| receipt.id)
            .collect()
    }
}

#[test]
fn a_part_of_the_past_is_sent_once_more_while_events_flow() {
    let scene = Scene::new();
    let pair = &scene.pair;
    let mut walgate = Walgate::run(&scene.setup);
    walgate.wait_log(&["waiting for the next event"]);
    pair.insert(700, 30);
    pair.database
        .sql("INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('user.created', 'u', '{}')");
    walgate.eventually("all of it arrives", || pair.sick.settled_count() >= 701);
    let middle = pair.database.value("SELECT pg_sleep(0.01)::text || clock_timestamp()");
    scene.wait_settled(&mut walgate);
    let well = pair.well.count();

    let all = scene.report(&["--event-type", "order.*", "--to", &middle, "--dry-run"]);
    assert_eq!((&all["deliveries"], &all["taken"]), (&700.into(), &0.into()), "{all}");
    let one = scene.report(&["--key", "k3", "--key", "u", "--event-type", "user.**", "--dry-run"]);
    assert_eq!(one["deliveries"], 1, "{one}");
    assert_eq!(scene.report(&["--from", &middle, "--event-type", "order.*", "--dry-run"])["deliveries"], 0);
    assert_eq!(pair.dead(), 0);

    let (stop, stream) = (AtomicBool::new(false), Stream { name: "live", keys: 30, batch: 4, prepared: false });
    std::thread::scope(|scope| {
        let stop = &stop;
        scope.spawn(move || {
            stream.write(&pair.database, 0, |at| {
                within(Duration::from_millis(10), || stop.load(Ordering::SeqCst));
                at < 3000 && !stop.load(Ordering::SeqCst)
            });
        });
        let report = scene.report(&["--event-type", "order.created", "--to", &middle, "--rate", "5000/s"]);
        assert_eq!((&report["deliveries"], &report["taken"]), (&700.into(), &700.into()), "{report}");
        walgate.eventually("all of it comes once more", || scene.replayed().len() >= 700);
        stop.store(true, Ordering::SeqCst);
    });
    walgate.eventually("nothing is left", || pair.parked() == 0 && pair.dead() == 0);
    // In the order of each key, to this sink alone, and every one once.
    let replayed = scene.replayed();
    let order = "SELECT id FROM outbox_events WHERE event_type = 'order.created' AND aggregate_id = 'k4' \
                 AND created_at < '{}' ORDER BY created_at, ctid";
    let expected: Vec<String> =
        pair.database.sql(&order.replace("{}", &middle)).into_iter().map(|row| row[0].clone().unwrap()).collect();
    let of_key: Vec<String> = replayed.iter().filter(|id| expected.contains(id)).cloned().collect();
    assert_eq!(of_key, expected);
    assert_eq!(replayed.len(), 700);
    assert!(pair.well.receipts().iter().all(|receipt| receipt.header("walgate-header-replay").is_none()));
    assert!(pair.well.count() > well);
    let shown = walgate.status().expect("a status");
    assert_eq!(shown["sinks"][1]["parking"]["dead_letters"], 0, "{shown}");
}

#[test]
fn what_is_interrupted_or_refused_can_be_gone_on_with() {
    let scene = Scene::new();
    let pair = &scene.pair;
    scene.replay(&[]).expect(3, &["nothing is known to be settled yet"]);
    let mut walgate = Walgate::run(&scene.setup);
    walgate.wait_log(&["waiting for the next event"]);
    pair.insert(60, 10);
    walgate.eventually("all of it arrives", || pair.sick.settled_count() >= 60);
    scene.wait_settled(&mut walgate);
    // Rows that are not settled are not sent.
    pair.sick.hold();
    let held = pair.database.insert("order.created", "held", "{}");
    walgate.eventually("it is under way", || pair.sick.in_flight() > 0);
    let dry = scene.report(&["--id", &held, "--dry-run"]);
    assert_eq!(dry["deliveries"], 0, "{dry}");
    pair.sick.release_all();
    walgate.terminate();
    walgate.wait_for_end(DEADLINE).expect(0, &[]);

    // Without a gateway it waits.
    let ended = scene.replay(&["--event-type", "order.*"]);
    ended.expect(1, &["no gateway reads slot", "--resume"]);
    assert!(pair.dead() >= 60);
    scene.replay(&["--event-type", "order.*"]).expect(1, &["an earlier replay"]);
    let mut walgate = Walgate::run(&scene.setup);
    walgate.wait_log(&["waiting for the next event"]);
    let waiting = pair.dead() as u64;
    let report = scene.report(&["--resume"]);
    assert_eq!(report["taken"], waiting, "{report}");
    walgate.eventually("all of it comes once more", || scene.replayed().len() as u64 >= waiting);

    scene.replay(&["--from", "yesterday-ish"]).expect(3, &["yesterday-ish"]);
    scene.replay(&["--event-type", "a..b"]).expect(2, &["--event-type"]);
    // Not past what is parked.
    scene.wait_settled(&mut walgate);
    pair.sick.go_down();
    pair.insert(40, 5);
    walgate.eventually("something is parked", || pair.parked() > 0);
    scene.replay(&["--event-type", "order.*"]).expect(1, &["deliveries are parked for it"]);
}
