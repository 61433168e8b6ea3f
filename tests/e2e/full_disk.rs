//! S41: PostgreSQL's disk is full. Its data are on a small disk of their own, in a namespace with mounts of its own (root).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::dead_letters::End;
use crate::parking::{Pair, with_tables};
use crate::rig::Rig;
use crate::support::namespace;
use crate::support::oracle;
use crate::support::postgres::{Options, Postgres};
use crate::support::receiver::Receiver;
use crate::support::wait::{DEADLINE, eventually, watch_for, within};
use crate::support::walgate::Walgate;
use crate::workload::Stream;

fn server() -> Arc<Postgres> {
    Postgres::start(Options { disk: Some(160), settings: vec!["max_wal_size=64MB".into()], ..Options::default() })
}

fn is_full(server: &Postgres) -> bool {
    server.log().contains("No space left on device")
}

#[test]
fn s41_a_full_disk_stops_postgresql_and_costs_no_event() {
    namespace::of_its_own("full_disk::s41_a_full_disk_stops_postgresql_and_costs_no_event", || {
        let server = server();
        let rig = Rig::on(&server);
        let mut walgate = rig.run();
        let (stop, stream) = (AtomicBool::new(false), Stream { name: "s41", keys: 30, batch: 20, prepared: false });
        std::thread::scope(|scope| {
            let (rig, stop) = (&rig, &stop);
            scope.spawn(move || {
                let ahead = |at| at < rig.receiver.settled_count() + 300;
                let stopped = || stop.load(Ordering::SeqCst);
                stream.write(&rig.database, 0, |at| !stopped() && within(DEADLINE, || stopped() || ahead(at)));
            });
            let _end = End(stop);
            rig.wait_settled(&mut walgate, 500);
            server.fill_disk();
            // First tables cannot grow: transactions fail, and the server goes on.
            let ballast = "CREATE TABLE more AS SELECT repeat('x', 1000) FROM generate_series(1, 1000)";
            assert!(rig.database.client().try_run(ballast).is_err(), "there is room");
            assert!(is_full(&server) && server.pid().is_some());
            // Then there is no room for WAL, and that ends it.
            let ends = || {
                let client = crate::support::sql::Sql::superuser(&server.sockets(), server.port(), &rig.database.name);
                let Ok(client) = client else { return server.has_given_up() };
                let _ = client.try_run("SELECT pg_switch_wal(), pg_current_xact_id()");
                false
            };
            eventually(DEADLINE, "PostgreSQL gives up", ends);
            assert!(server.log().contains("PANIC"), "{}", server.log());
            walgate.wait_log(&["not streaming; connecting again"]);
            watch_for(Duration::from_secs(3));
            assert!(!walgate.has_ended(), "{}", walgate.said());
            let settled = rig.receiver.settled_count();
            server.relieve_disk();
            server.start_again();
            rig.wait_settled(&mut walgate, settled + 500);
        });
        let committed = oracle::ledger(&rig.database);
        rig.wait_settled(&mut walgate, committed.len());
        let last = rig.insert("last");
        rig.wait_confirmed(&mut walgate, &last);
        let repeats = rig.assert_all();
        eprintln!("a full disk: {} events, {repeats} repeats", committed.len());
    });
}

#[test]
fn s41_what_cannot_be_parked_on_a_full_disk_is_held() {
    namespace::of_its_own("full_disk::s41_what_cannot_be_parked_on_a_full_disk_is_held", || {
        let server = server();
        let database = with_tables(server.database().with_keyed_outbox());
        let pair = Pair { database, well: Receiver::start(), sick: Receiver::start() };
        let mut walgate = Walgate::run(&pair.setup("").more("limits: { inflight: 1MiB }"));
        pair.database.insert("order.created", "first", r#"{"i": -1}"#);
        walgate.eventually("both have it", || pair.sick.settled_count() == 1 && pair.well.settled_count() == 1);
        pair.wait_confirmed(&mut walgate);
        // Nobody is looked after before the disk is full.
        pair.sick.hold();
        pair.insert(1_000, 50);
        let position = pair.database.wal_position();
        walgate.eventually("some are under way", || pair.sick.in_flight() > 0);
        server.fill_disk();
        pair.sick.go_down();
        walgate.wait_log(&["parking: what the sink is owed goes to walgate.parked"]);
        walgate.wait_log(&["walgate's own tables cannot be used", "No space left on device"]);
        walgate.eventually("the other sink has everything", || pair.well.settled_count() == 1_001);
        watch_for(Duration::from_secs(2));
        assert!(pair.database.confirmed_flush() < position, "what is neither delivered nor written is not confirmed");
        assert_eq!(pair.parked(), 0);
        let status = walgate.status().expect("a status");
        let error = status["sinks"][1]["parking"]["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains("No space left on device"), "{status}");
        server.relieve_disk();
        walgate.eventually("it is parked", || pair.parked() > 0);
        pair.wait_confirmed(&mut walgate);
        walgate.wait_log(&["walgate's own tables can be used again"]);
        pair.sick.release_all();
        pair.sick.come_back();
        walgate.eventually("the sick sink has everything", || pair.sick.settled_count() == 1_001);
        walgate.eventually("the table is empty", || pair.parked() == 0);
        pair.wait_confirmed(&mut walgate);
        crate::parking::assert_order(&pair, &pair.sick, &[]);
    });
}
