//! Another configuration while walgate runs: routes, sinks and limits change between two transactions; a broken file, and
//! what cannot be, is refused, and the old one stays in force.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::Signal;

use crate::parking::Pair;
use crate::rig::Rig;
use crate::support::http_get;
use crate::support::oracle;
use crate::support::receiver::Receiver;
use crate::support::wait::{DEADLINE, within};
use crate::support::walgate::{Setup, Walgate};
use crate::workload::Stream;

const QUICK: &str = "timeout: 5s, retry: { initial: 20ms, max: 300ms, connection_max: 200ms }";

/// Puts another configuration in the place of the running one.
fn rewrite(file: &Path, text: &str) {
    std::fs::write(file, text).expect("the configuration file");
}

pub(crate) fn hup(walgate: &mut Walgate, file: &Path, text: &str) -> String {
    let before = said(walgate);
    rewrite(file, text);
    walgate.signal(Signal::HUP);
    walgate.eventually("the reload is answered", || true);
    let mut line = String::new();
    let found = within(DEADLINE, || {
        let lines = said(walgate);
        if lines.len() > before.len() {
            line.clone_from(&lines[before.len()]);
        }
        !line.is_empty()
    });
    assert!(found, "no answer to SIGHUP:\n{}", walgate.said());
    line
}

/// What came of reloads so far, a line each.
fn said(walgate: &Walgate) -> Vec<String> {
    let stderr = walgate.stderr();
    stderr
        .lines()
        .filter(|line| line.contains("configuration reloaded") || line.contains("configuration not reloaded"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn c7_routes_and_sinks_change_while_it_is_busy_and_nothing_is_lost() {
    let rig = Rig::new();
    let second = Receiver::start();
    let base = rig.source().webhook("hook", &rig.receiver).route("**", "hook").more("limits: { inflight: 256KiB }");
    let with_second = base.clone().webhook("second", &second).route("order.*", "second");
    let changed = rig
        .source()
        .webhook_at("hook", &format!("{}/other", rig.receiver.url()), QUICK)
        .route("order.created", "hook")
        .more("limits: { inflight: 512KiB }");
    let file = base.write();
    let mut walgate = Walgate::run_file(&base, &file);
    let admin = |setup: &Setup| setup.yaml().replace(&setup.admin_port().to_string(), &base.admin_port().to_string());
    let (stop, stream) = (AtomicBool::new(false), Stream { name: "c7", keys: 30, batch: 20, prepared: false });
    std::thread::scope(|scope| {
        let (rig, stop) = (&rig, &stop);
        scope.spawn(move || {
            let ahead = |at| at < rig.receiver.settled_count() + 1_500;
            let goes_on =
                |at| !stop.load(Ordering::SeqCst) && within(DEADLINE, || stop.load(Ordering::SeqCst) || ahead(at));
            stream.write(&rig.database, 0, goes_on);
        });
        for round in 0..6 {
            let before = rig.receiver.settled_count();
            walgate.eventually("it goes on", || rig.receiver.settled_count() > before + 300);
            let (setup, expects): (&Setup, &[&str]) = match round % 3 {
                0 => (&with_second, &["reloaded", "added: second"]),
                1 => (&changed, &["reloaded", "made anew: hook", "removed: second"]),
                _ => (&base, &["reloaded", "made anew: hook"]),
            };
            let line = hup(&mut walgate, &file, &admin(setup));
            assert!(expects.iter().all(|text| line.contains(text)), "round {round}: {line}");
        }
        stop.store(true, Ordering::SeqCst);
    });
    let committed = oracle::ledger(&rig.database);
    walgate.eventually("everything has arrived", || rig.receiver.settled_count() == committed.len());
    let repeats = oracle::assert_reconciled(&committed, &rig.receiver.receipts());
    assert_eq!(repeats, 0, "nothing failed, so nothing is sent twice");
    assert!(second.settled_count() > 0, "the second sink had its share");
    let settled = rig.receiver.all_settled();
    oracle::assert_wire(&rig.witness.log(), rig.confirmed_before, |id| settled.get(id).copied());
    assert_eq!(walgate.metric("walgate_config_reloads_total", &["outcome=\"applied\""]), Some(6.0));
    let status = walgate.status().unwrap();
    assert_eq!(status["generation"], 7);
    walgate.terminate();
    assert_eq!(walgate.wait_for_end(DEADLINE).code, Some(0));
}

#[test]
fn c7_a_broken_file_and_what_needs_a_restart_is_refused() {
    let rig = Rig::new();
    let setup = rig.setup();
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    let good = setup.yaml();
    for (text, expects) in [
        (good.replace("to: hook", "to: hok"), "hok"),
        (good.replace("slot: slot_", "slot: other_"), "source.slot cannot change while walgate runs"),
        (
            good.replace("routes:\n", "routes:\n  - { event_type: a, to: { sink: hook, path: '/{column.nope}' } }\n"),
            "nope",
        ),
        (format!("{good}unrouted: dead_letter\n"), "unrouted: dead_letter"),
        ("\tnot yaml".to_owned(), "a mapping of the keys"),
    ] {
        let line = hup(&mut walgate, &file, &text);
        assert!(line.contains("not reloaded") && line.contains(expects), "{expects}: {line}");
    }
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(walgate.metric("walgate_config_reloads_total", &["outcome=\"refused\""]), Some(5.0));
    assert_eq!(rig.assert_all(), 0);
}

#[test]
fn c7_a_sink_that_owes_something_is_not_removed_unless_that_is_wanted() {
    let rig = Rig::new();
    let second = Receiver::start();
    let setup = rig.setup().webhook("second", &second).route("**", "second").more("shutdown_timeout: 1s");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    second.hold();
    let id = rig.insert("k");
    rig.wait_settled(&mut walgate, 1);
    walgate.eventually("it is under way", || second.in_flight() == 1);
    let without = setup
        .yaml()
        .lines()
        .filter(|line| !line.contains("second"))
        .map(|line| format!("{line}\n"))
        .collect::<String>();
    let line = hup(&mut walgate, &file, &without);
    assert!(line.contains("sink `second` still owes 1 deliveries"), "{line}");
    let more = rig.insert("k");
    rig.wait_settled(&mut walgate, 2);
    // What is in flight ends by its timeout; then it is given up.
    second.go_down();
    let line = hup(
        &mut walgate,
        &file,
        &format!("{without}removed_sinks: drop\n").replace("shutdown_timeout: 1s", "shutdown_timeout: 1s"),
    );
    assert!(line.contains("reloaded") && line.contains("removed: second"), "{line}");
    walgate.wait_log(&["the sink is removed: what it was owed is not delivered"]);
    rig.wait_confirmed(&mut walgate, &id);
    rig.wait_confirmed(&mut walgate, &more);
    assert_eq!(rig.assert_all(), 0);
}

#[test]
fn c7_a_sink_that_is_down_and_parked_is_mended_by_a_reload() {
    let pair = Pair::new();
    let setup = pair.setup("");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    pair.sick.go_down();
    pair.insert(200, 10);
    walgate.eventually("it is parked", || pair.parked() == 200);
    // The partner has moved.
    let moved = Receiver::start();
    let text = setup.yaml().replace(&pair.sick.url(), &moved.url());
    let line = hup(&mut walgate, &file, &text);
    assert!(line.contains("reloaded") && line.contains("made anew: sick"), "{line}");
    walgate.eventually("it is delivered to the new place", || moved.settled_count() == 200);
    walgate.eventually("nothing is parked", || pair.parked() == 0);
    pair.wait_confirmed(&mut walgate);
}

#[test]
fn x14_a_reload_over_http_wants_the_token() {
    let rig = Rig::new();
    let setup = rig.setup();
    let with_token = setup.yaml().replace("admin: { ", "admin: { token: canary-token-5512, ");
    let literal = Setup::literal(with_token);
    let file = literal.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    let post = |headers: &str| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, setup.admin_port())).expect("the admin port");
        let head = format!(
            "POST /reload HTTP/1.1\r\nHost: walgate\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    assert!(post("").starts_with("HTTP/1.1 401"));
    assert!(post("Authorization: Bearer canary-token-5513\r\n").starts_with("HTTP/1.1 401"));
    let said = post("Authorization: Bearer canary-token-5512\r\n");
    assert!(
        said.starts_with("HTTP/1.1 200") && said.contains("generation 2 is in force; no sink has changed"),
        "{said}"
    );
    rewrite(&file, "routes: 7");
    let said = post("Authorization: Bearer canary-token-5512\r\n");
    assert!(said.starts_with("HTTP/1.1 422") && said.contains("routes"), "{said}");
    assert_eq!(http_get::get(setup.admin_port(), "/reload").map(|page| page.0), Some(405));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    assert!(!walgate.said().contains("canary-token"), "{}", walgate.said());
}
