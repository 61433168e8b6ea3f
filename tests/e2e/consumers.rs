//! The consumers of examples/consumers: events come again and again, the work is done once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::Signal;

use crate::custom_sink::build;
use crate::rig::Rig;
use crate::support::processes::Process;
use crate::support::wait::{DEADLINE, eventually};
use crate::support::walgate::{Setup, Walgate};

/// The folder of the examples' programs, built as their users build them.
fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| build("walgate-example-consumers"))
}

const ROUNDS: usize = 5;
const EVENTS: usize = 300;

/// Kills walgate each round and the consumer in one of them, while events flow, and starts them again; what was done must be what was
/// committed.
fn once_each(rig: &Rig, setup: &Setup, consumer: impl Fn(&str) -> Command) {
    let postgres = &rig.database.server;
    let database = format!("{}_inbox", rig.database.name);
    postgres.sql(&format!("CREATE DATABASE {database}"));
    let url = format!("host={} port={} dbname={database} user=postgres", postgres.sockets().display(), postgres.port());
    let done = || {
        let inbox = postgres.client(&database);
        let rows = inbox.run("SELECT coalesce(sum(events), 0), (SELECT count(*) FROM inbox) FROM totals");
        rows[0]
            .iter()
            .map(|value| value.as_deref().expect("a number").parse::<usize>().expect("a number"))
            .collect::<Vec<_>>()
    };
    let start = || {
        let mut command = consumer(&url);
        Process::spawn(command.stdin(Stdio::null()), Signal::KILL)
    };
    let file = setup.write();
    let mut taker = start();
    eventually(DEADLINE, "the consumer has made its tables", || {
        taker.ended().is_none() && postgres.client(&database).run("SELECT to_regclass('totals')")[0][0].is_some()
    });
    for round in 1..=ROUNDS {
        let mut walgate = Walgate::run_file(setup, &file);
        rig.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'order.created', 'k' || i % 7, \
             jsonb_build_object('i', i) FROM generate_series(1, {EVENTS}) i"
        ));
        eventually(DEADLINE, "half of it is done", || done()[1] >= (round - 1) * EVENTS + EVENTS / 2);
        if round == 3 {
            drop(taker);
            taker = start();
        }
        walgate.kill9();
        rig.database.confirmed_when_released();
    }
    let mut walgate = Walgate::run_file(setup, &file);
    eventually(DEADLINE, "all of it is done", || done()[1] == ROUNDS * EVENTS);
    let last = rig.insert("last");
    rig.wait_confirmed(&mut walgate, &last);
    eventually(DEADLINE, "the last one too", || done()[1] > ROUNDS * EVENTS);
    assert_eq!(done(), [ROUNDS * EVENTS + 1, ROUNDS * EVENTS + 1], "effects and events");
}

#[cfg(feature = "nats")]
#[test]
fn nats_in_rust_does_its_work_once_per_event() {
    let (rig, server) = (Rig::new(), crate::support::nats::NatsServer::start());
    // A window that lets repeats through.
    server.add_stream("ORDERS", &["orders.>"], serde_json::json!({ "duplicate_window": 100_000_000 }));
    let sink =
        format!("bus: {{ nats: {{ servers: [\"127.0.0.1:{}\"], subject: \"orders.{{key}}\" }} }}", server.port());
    let program = programs().join("consume-nats");
    once_each(&rig, &rig.source().sink(&sink).route("**", "bus"), |database| {
        let mut command = Command::new(&program);
        command.env("DATABASE_URL", database).env("NATS_STREAM", "ORDERS");
        command.env("NATS_URL", format!("nats://127.0.0.1:{}", server.port()));
        command
    });
    assert!(server.count("ORDERS") >= (ROUNDS * EVENTS) as u64);
}
