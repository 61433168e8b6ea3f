//! What is scarce: memory (P5), file descriptors (P6), and rows that would take much of it (X17).

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::rig::Rig;
use crate::support::http_get;
use crate::support::processes;
use crate::support::receiver::{Receiver, reply};
use crate::support::wait::{DEADLINE, eventually, watch_for};
use crate::support::walgate::{Setup, Walgate};

/// walgate, under a limit of the shell's `ulimit`.
fn limited(limit: &str) -> PathBuf {
    let program = processes::folder("limited").join("walgate");
    let own = env!("CARGO_BIN_EXE_walgate");
    std::fs::write(&program, format!("#!/bin/sh\nulimit {limit} || exit 9\nexec '{own}' \"$@\"\n")).expect("a script");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    program
}

/// So many events of 20 kB that do not compress, with 40 keys, in transactions of a thousand.
fn insert_large(rig: &Rig, events: usize) {
    for from in (0..events).step_by(1000) {
        rig.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
             SELECT 'order.created', 'k' || i % 40, jsonb_build_object('i', i, 'pad', \
               (SELECT string_agg(md5((i * 1000 + j)::text), '') FROM generate_series(1, 640) j)) \
             FROM generate_series({from}, {from} + 999) i"
        ));
    }
}

#[test]
fn p5_under_a_memory_limit_much_that_is_owed_is_left_in_the_wal() {
    const EVENTS: usize = 10_000;
    let mut rig = Rig::new();
    rig.receiver = Receiver::lean();
    // What it takes without a backlog, address space and resident.
    let mut walgate = rig.run();
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    let address_space = processes::memory_kib(walgate.pid(), "VmPeak").expect("a running walgate");
    walgate.terminate();
    assert_eq!(walgate.wait_for_end(DEADLINE).code, Some(0));
    rig.database.confirmed_when_released();

    // 64 MiB more than that: a third of what will be owed.
    let setup = rig
        .source()
        .webhook_at("hook", &rig.receiver.url(), "timeout: 2m")
        .route("**", "hook")
        .program(&limited(&format!("-v {}", address_space + 64 * 1024)));
    let mut walgate = Walgate::run(&setup);
    rig.receiver.hold();
    insert_large(&rig, EVENTS);
    let owed: u64 = rig.database.value("SELECT sum(octet_length(payload::text)) FROM outbox_events").parse().unwrap();
    assert!(owed > 200_000_000, "{owed}");
    walgate.eventually("its window is full", || inflight_bytes(setup.admin_port()) >= Some(8.0 * 1024.0 * 1024.0));
    watch_for(Duration::from_secs(3));
    assert!(!walgate.has_ended(), "{}", walgate.said());
    let received = rig.witness.log().rows.len();
    assert!(received < EVENTS / 2, "{received} events were read from the stream, and nobody takes them");
    let held = walgate.peak_memory_kib();
    rig.receiver.release_all();
    rig.wait_settled(&mut walgate, EVENTS + 1);
    let last = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(rig.assert_all(), 0, "nothing failed");
    let peak = walgate.peak_memory_kib();
    eprintln!("200 MB owed: {held} KiB resident while blocked, {peak} KiB at the most");
    assert!(peak < 96 * 1024, "{peak} KiB were resident");
}

fn inflight_bytes(port: u16) -> Option<f64> {
    let (_, page) = http_get::get(port, "/metrics")?;
    page.lines().find_map(|line| line.strip_prefix("walgate_inflight_bytes ")?.parse().ok())
}

/// Lets a process have so many descriptors from now on.
fn set_descriptors(pid: u32, limit: u64) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let maximum = prlimit(pid, Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(4096) });
    maximum.expect("a limit that can be set");
}

fn descriptors(pid: u32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a running process").count() as u64
}

#[test]
fn p6_without_file_descriptors_it_tries_again_and_goes_on_when_there_are_some() {
    let rig = Rig::new();
    let setup = rig.setup();
    let mut walgate = Walgate::run(&setup);
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    // A connection for each request: and none can be made.
    rig.receiver.script(|_| reply(200).then_close().into());
    let (pid, before) = (walgate.pid(), walgate.metric("walgate_retries_total", &[]).unwrap_or_default());
    rig.receiver.cut();
    set_descriptors(pid, 3);
    for n in 0..50 {
        rig.insert(&format!("k{}", n % 10));
    }
    walgate.wait_log(&["delivery failed", "oo many open files"]);
    // A scrape waits for a descriptor too.
    let scrape = std::net::TcpStream::connect(("127.0.0.1", setup.admin_port())).expect("the admin port");
    // Now PostgreSQL is lost too, and cannot be reached.
    let slot = &rig.database.slot;
    rig.database
        .sql(&format!("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'"));
    walgate.wait_log(&["not streaming; connecting again", "oo many open files"]);
    watch_for(Duration::from_secs(2));
    assert!(!walgate.has_ended(), "{}", walgate.said());
    let cpu = processes::cpu_ticks(pid);
    watch_for(Duration::from_secs(2));
    let used = processes::cpu_ticks(pid) - cpu;
    assert!(used < 100, "it spins: {used} hundredths of a second in two seconds");
    set_descriptors(pid, 1024);
    drop(scrape);
    rig.wait_settled(&mut walgate, 51);
    let last = rig.insert("last");
    rig.wait_confirmed(&mut walgate, &last);
    rig.assert_all();
    assert!(walgate.metric("walgate_retries_total", &[]).unwrap_or_default() > before);
    assert!(!walgate.stderr().contains("panic"), "{}", walgate.said());
    eventually(DEADLINE, "nothing is left open", || descriptors(pid) < 40);
}

#[test]
fn p6_with_few_file_descriptors_from_the_start_everything_arrives() {
    let rig = Rig::new();
    // Each request has a connection of its own, and sixteen at once are wanted: there is room for fewer.
    rig.receiver.script(|_| reply(200).after(Duration::from_millis(20)).then_close().into());
    let mut walgate = Walgate::run(&rig.setup().program(&limited("-n 24")));
    for n in 0..300 {
        rig.insert(&format!("k{n}"));
    }
    rig.wait_settled(&mut walgate, 300);
    let last = rig.insert("last");
    rig.wait_confirmed(&mut walgate, &last);
    rig.assert_all();
    walgate.wait_log(&["oo many open files"]);
    assert!(!walgate.stderr().contains("panic"), "{}", walgate.said());
}

#[test]
fn x17_a_million_keys_take_no_more_memory_than_fifty_thousand() {
    let rig = Rig::new();
    let setup = Setup::of(&rig.database)
        .keyed()
        .sink("void: { discard: {} }")
        .webhook("hook", &rig.receiver)
        .route("order.*", "void")
        .route("last", "hook");
    let mut walgate = Walgate::run(&setup);
    let mut keys = 0;
    let mut write = |walgate: &mut Walgate, to: u32| {
        while keys < to {
            rig.database.sql(&format!(
                "INSERT INTO outbox_events (event_type, aggregate_id, payload)                  SELECT 'order.created', 'customer-' || i, '{{}}' FROM generate_series({keys}, {keys} + 49999) i"
            ));
            keys += 50_000;
        }
        let last = rig.database.insert("last", "k", "{}");
        walgate.eventually("all of them are through", || rig.receiver.settled(&last).is_some());
        let position = rig.database.wal_position();
        walgate.eventually("and confirmed", || rig.database.confirmed_flush() >= position);
        assert_eq!(walgate.metric("walgate_events_total", &["sink=\"void\""]), Some(f64::from(to)));
        walgate.peak_memory_kib()
    };
    let few = write(&mut walgate, 50_000);
    let many = write(&mut walgate, 1_000_000);
    eprintln!("keys: {few} KiB after 50,000, {many} KiB after 1,000,000");
    assert!(many < few + 16 * 1024, "{many} KiB after a million keys, {few} KiB after 50,000");

    // And while nobody takes them: of those that wait there are as many as the window holds.
    rig.receiver.hold();
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload)          SELECT 'last', 'other-' || i, '{}' FROM generate_series(1, 200000) i",
    );
    walgate.eventually("its window is full", || inflight_bytes(setup.admin_port()) >= Some(8.0 * 1024.0 * 1024.0));
    watch_for(Duration::from_secs(1));
    let held = walgate.peak_memory_kib();
    eprintln!("keys: {held} KiB with a window of busy ones");
    assert!(held < many + 32 * 1024, "{held} KiB with a window of busy keys");
}
