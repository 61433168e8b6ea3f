//! `walgate recover`: the slot is gone, lost, advanced or made again; or rows are older than it. In the end every committed
//! event has arrived, in the order of its key, and only what may have been undelivered is repeated.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use walgate::control::parking::create_sql;

use crate::support::database::Database;
use crate::support::oracle::{self, Committed};
use crate::support::postgres::{Options, Postgres, ROLE};
use crate::support::receiver::{Receiver, reply};
use crate::support::wait::{DEADLINE, within};
use crate::support::walgate::{Ended, Setup, Walgate};
use crate::workload::Stream;

struct Shop {
    database: Database,
    receiver: Receiver,
}

impl Shop {
    fn new() -> Shop {
        Shop::on(Postgres::shared().database().with_keyed_outbox())
    }

    fn on(database: Database) -> Shop {
        create_sql(ROLE).iter().for_each(|statement| drop(database.sql(statement)));
        database.sql(&format!("GRANT SELECT ON outbox_events TO {ROLE}"));
        let _ = database.connection();
        Shop { database, receiver: Receiver::start() }
    }

    fn setup(&self) -> Setup {
        Setup::of(&self.database).keyed().webhook("hook", &self.receiver).route("**", "hook")
    }

    fn insert(&self, count: usize) {
        for n in 0..count {
            self.database.insert("order.created", &format!("k{}", n % 7), "{\"total\": 1}");
        }
    }

    fn total(&self) -> usize {
        self.database.value("SELECT count(*) FROM outbox_events").parse().expect("a number")
    }

    /// A gateway that has delivered so many, and has passed a mark behind them.
    fn had_a_gateway(&self, events: usize) {
        let before = self.receiver.settled_count();
        let mut walgate = Walgate::run(&self.setup());
        walgate.wait_log(&["waiting for the next event"]);
        self.insert(events);
        walgate.eventually("they are delivered", || self.receiver.settled_count() >= before + events);
        let position = self.database.wal_position();
        walgate.eventually("a mark is passed", || {
            self.database.insert("order.created", "tick", "{}");
            let sql = "SELECT COALESCE(mark_lsn >= '{}', false) FROM walgate.gateway";
            within(std::time::Duration::from_millis(500), || false);
            self.database.value(&sql.replace("{}", &position.to_string())) == "t"
        });
        walgate.terminate();
        walgate.wait_for_end(DEADLINE).expect(0, &[]);
    }

    fn recover(&self, arguments: &[&str]) -> Ended {
        let all = ["recover", "--config", "{config}", "--json"];
        Walgate::command(&self.setup(), &[&all, arguments].concat())
    }

    #[track_caller]
    fn report(&self, arguments: &[&str]) -> Value {
        let ended = self.recover(arguments);
        ended.expect(0, &[]);
        serde_json::from_str(ended.stdout.trim()).expect("a report")
    }

    /// Refused without a recovery; then recovered, and all of it arrives in order. The report, and repeats.
    #[track_caller]
    fn assert_recovers(&self, says: &[&str]) -> (Value, usize) {
        Walgate::run(&self.setup()).wait_for_end(DEADLINE).expect(3, &[&self.database.slot]);
        let before = self.report(&["--dry-run"]);
        for text in says {
            assert!(before["found"].as_str().is_some_and(|found| found.contains(text)), "{before}");
        }
        assert_eq!(before["done"], false);
        let report = self.report(&["--yes"]);
        assert_eq!((&report["wanted"], &report["events"]), (&before["wanted"], &before["wanted"]), "{report}");
        assert_eq!(report["done"], true);
        // What is committed from now on comes by the slot, behind what is parked.
        self.insert(20);
        (report, self.assert_all())
    }

    /// The outbox in the order of its insertion: one writer at a time.
    fn committed(&self) -> Vec<Committed> {
        let hash = "encode(sha256(convert_to(payload::text, 'UTF8')), 'hex')";
        let sql = format!("SELECT id, aggregate_id, {hash} FROM outbox_events ORDER BY created_at, ctid");
        let mut last: HashMap<Option<String>, u64> = HashMap::new();
        let number = |row: Vec<Option<String>>| {
            let [Some(id), key, Some(hash)] = <[Option<String>; 3]>::try_from(row).expect("three columns") else {
                panic!("a null in the outbox");
            };
            let last = last.entry(key.clone()).or_default();
            *last += 1;
            Committed { id, key, n: *last, hash }
        };
        self.database.sql(&sql).into_iter().map(number).collect()
    }

    fn assert_all(&self) -> usize {
        let mut walgate = Walgate::run(&self.setup());
        let total = self.total();
        walgate.eventually("everything arrives", || self.receiver.settled_count() >= total);
        walgate.eventually("nothing is parked", || self.database.value("SELECT count(*) FROM walgate.parked") == "0");
        let committed = self.committed();
        oracle::assert_reconciled(&committed, &self.receiver.receipts())
    }
}

#[test]
fn s7_a_dropped_slot_is_replaced_and_nothing_is_lost() {
    let shop = Shop::new();
    shop.had_a_gateway(50);
    shop.database.sql(&format!("SELECT pg_drop_replication_slot('{}')", shop.database.slot));
    shop.insert(30);
    let (report, repeats) = shop.assert_recovers(&["does not exist"]);
    let (rows, wanted) = (report["rows"].as_u64().unwrap(), report["wanted"].as_u64().unwrap());
    assert!(wanted >= 30 && wanted < rows - 40, "only what may be undelivered: {report}");
    assert!(repeats as u64 <= wanted - 30, "{repeats} repeats; {report}");
}

#[test]
fn s8_an_advanced_slot_and_one_that_was_made_again_are_replaced() {
    let shop = Shop::new();
    shop.had_a_gateway(20);
    let slot = shop.database.slot.clone();
    shop.insert(20);
    shop.database.sql(&format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"));
    shop.insert(5);
    let (report, _) = shop.assert_recovers(&["advanced or made again"]);
    assert!(report["wanted"].as_u64() >= Some(25), "{report}");

    shop.had_a_gateway(20);
    shop.database.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    shop.insert(20);
    shop.database.create_slot();
    shop.assert_recovers(&["advanced or made again"]);
}

/// Restored into another cluster: what the row says of settled rows is about other transactions.
#[test]
fn s40_in_another_cluster_every_row_may_be_undelivered() {
    let shop = Shop::new();
    shop.had_a_gateway(30);
    shop.database.sql("UPDATE walgate.gateway SET system_id = '7000000000000000001'");
    let (report, repeats) = shop.assert_recovers(&["another PostgreSQL cluster"]);
    assert_eq!(report["wanted"], report["rows"], "{report}");
    assert!(repeats >= 30);
}

#[test]
fn s9_a_lost_slot_is_replaced_and_nothing_is_lost() {
    let server = Postgres::start(Options {
        settings: vec!["max_slot_wal_keep_size=32MB".into(), "max_wal_size=64MB".into()],
        ..Options::default()
    });
    let shop = Shop::on(server.database().with_keyed_outbox());
    shop.had_a_gateway(20);
    shop.insert(20);
    let lost = format!("SELECT wal_status FROM pg_replication_slots WHERE slot_name = '{}'", shop.database.slot);
    let gone = within(DEADLINE, || {
        shop.database
            .sql("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000)) FROM generate_series(1, 20)");
        shop.database.sql("SELECT pg_switch_wal()");
        shop.database.sql("CHECKPOINT");
        shop.database.value(&lost) == "lost"
    });
    assert!(gone, "the slot is not lost");
    shop.assert_recovers(&["is lost"]);
}

/// The outbox is older than walgate.
#[test]
fn rows_from_before_the_slot_are_adopted_in_order_while_events_are_written() {
    let shop = Shop::new();
    shop.database.sql(&format!("SELECT pg_drop_replication_slot('{}')", shop.database.slot));
    shop.insert(300);
    shop.database.create_slot();
    let (stop, stream) = (AtomicBool::new(false), Stream { name: "k", keys: 7, batch: 3, prepared: false });
    std::thread::scope(|scope| {
        let (shop, stop) = (&shop, &stop);
        scope.spawn(move || {
            stream.write(&shop.database, 0, |at| {
                within(std::time::Duration::from_millis(20), || stop.load(Ordering::SeqCst));
                at < 2000 && !stop.load(Ordering::SeqCst)
            });
        });
        let report = shop.report(&["--adopt", "--yes"]);
        assert!(report["events"].as_u64() >= Some(300), "{report}");
        // A second time there is nothing to adopt.
        let again = shop.report(&["--adopt", "--yes"]);
        assert!(again["found"].as_str().is_some_and(|found| found.contains("nothing to adopt")), "{again}");
        stop.store(true, Ordering::SeqCst);
    });
    shop.assert_all();
}

#[test]
fn p1_killed_anywhere_it_is_run_again_and_nothing_is_lost() {
    let shop = Shop::new();
    shop.had_a_gateway(30);
    let slot = shop.database.slot.clone();
    for place in ["recover.dropped", "recover.created", "recover.parked"] {
        shop.insert(10);
        // Of no use, in one way or another.
        let exists = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'");
        if shop.database.value(&exists) == "1" {
            let inactive = format!("SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{slot}'");
            assert!(within(DEADLINE, || shop.database.value(&inactive) == "t"));
            shop.database.sql(&format!("SELECT pg_replication_slot_advance('{slot}', pg_current_wal_lsn())"));
        }
        let killed = Walgate::command(
            &shop.setup().env("WALGATE_FAILPOINT", place),
            &["recover", "--config", "{config}", "--yes"],
        );
        assert_ne!(killed.code, Some(0), "{place}: {}", killed.output());
        assert_eq!(shop.database.value("SELECT count(*) FROM walgate.parked"), "0", "{place}");
    }
    shop.assert_recovers(&[]);
}

#[test]
fn it_asks_and_refuses_where_it_must() {
    let shop = Shop::new();
    let mut walgate = Walgate::run(&shop.setup());
    walgate.wait_log(&["waiting for the next event"]);
    shop.recover(&["--yes"]).expect(3, &["is being read by", "stop walgate first"]);
    walgate.terminate();
    walgate.wait_for_end(DEADLINE).expect(0, &[]);
    let report = shop.report(&["--yes"]);
    assert!(report["found"].as_str().is_some_and(|found| found.contains("nothing to recover")), "{report}");
    shop.database.sql(&format!("SELECT pg_drop_replication_slot('{}')", shop.database.slot));
    shop.recover(&[]).expect(2, &["nothing was done", "--yes", "--dry-run"]);
    shop.recover(&["--adopt", "--yes"]).expect(3, &["does not exist", "without --adopt first"]);
    shop.database.sql(&format!("REVOKE SELECT ON outbox_events FROM {ROLE}"));
    shop.recover(&["--yes"]).expect(3, &["permission denied"]);
    let exists = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}'", shop.database.slot);
    assert_eq!(shop.database.value(&exists), "0", "nothing was done");
    shop.receiver.script(|_| reply(200).into());
}

/// What may not be left out by the stream may not be by a recovery.
#[test]
fn rows_without_a_route_are_left_out_by_leave_only() {
    let shop = Shop::new();
    let setup = || {
        let narrow = Setup::of(&shop.database).keyed().webhook("hook", &shop.receiver).route("order.*", "hook");
        narrow.more("unrouted: dead_letter")
    };
    shop.insert(5);
    shop.database.insert("user.created", "u", "{}");
    let recover = ["recover", "--config", "{config}", "--adopt", "--yes"];
    Walgate::command(&setup(), &recover)
        .expect(1, &["1 rows match no route", "--set unrouted=drop", "Nothing was parked"]);
    assert_eq!(shop.database.value("SELECT count(*) FROM walgate.parked"), "0");
    let leave: Vec<&str> = recover.into_iter().chain(["--set", "unrouted=drop"]).collect();
    Walgate::command(&setup(), &leave).expect(0, &["5 deliveries are parked", "1 rows match no route"]);
}
