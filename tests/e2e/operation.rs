//! What an operator sees: metrics, readiness, status, logs, the service manager. Nothing of it is told by an event.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use serde_json::Value;

use crate::rig::Rig;
use crate::support::openmetrics::Scrape;
use crate::support::postgres::PASSWORD;
use crate::support::processes;
use crate::support::receiver::{Receiver, SECRET, reply};
use crate::support::wait::{self, watch_for};
use crate::support::walgate::{Setup, Walgate};

const QUICK: &str = "timeout: 5s, retry: { initial: 20ms, max: 200ms, connection_max: 100ms }";

/// Sends these bytes and reads until the other side hangs up: head and body.
fn raw(port: u16, bytes: &[u8]) -> Option<(String, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(30))).ok()?;
    // It may answer, and hang up, before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(read) = stream.read(&mut piece) {
        if read == 0 {
            break;
        }
        answer.extend_from_slice(&piece[..read]);
    }
    let text = String::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.to_ascii_lowercase(), body.to_owned()))
}

fn get(port: u16, path: &str, headers: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: walgate\r\nConnection: close\r\n{headers}\r\n");
    raw(port, request.as_bytes()).expect("an answer")
}

fn scrape(port: u16) -> Scrape {
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3\r\n";
    let (head, body) = get(port, "/metrics", accept);
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    Scrape::parse(&body)
}

/// Every family: name, type, unit. Part of the interface, as the CHANGELOG says.
const FAMILIES: &[(&str, &str, Option<&str>)] = &[
    ("walgate_broker_duplicates", "counter", None),
    ("walgate_build", "info", None),
    ("walgate_catalog_ok", "gauge", None),
    ("walgate_checkpoint_lsn", "gauge", None),
    ("walgate_cleanup_blocked", "gauge", None),
    ("walgate_cleanup_errors", "counter", None),
    ("walgate_cleanup_kept_rows", "gauge", None),
    ("walgate_cleanup_oldest_settled_seconds", "gauge", Some("seconds")),
    ("walgate_cleanup_rows", "counter", None),
    ("walgate_commit_to_ack_seconds", "histogram", Some("seconds")),
    ("walgate_config_generation", "gauge", None),
    ("walgate_config_reloads", "counter", None),
    ("walgate_dead_letters", "counter", None),
    ("walgate_dead_letters_expired", "counter", None),
    ("walgate_delivery_seconds", "histogram", Some("seconds")),
    ("walgate_discarded_events", "counter", None),
    ("walgate_events", "counter", None),
    ("walgate_events_received", "counter", None),
    ("walgate_idle_slots", "gauge", None),
    ("walgate_idle_slots_retained_bytes", "gauge", Some("bytes")),
    ("walgate_ignored_rows", "counter", None),
    ("walgate_inflight_bytes", "gauge", Some("bytes")),
    ("walgate_inflight_events", "gauge", None),
    ("walgate_outbox_bytes", "gauge", Some("bytes")),
    ("walgate_outbox_dead_rows", "gauge", None),
    ("walgate_parked_bytes", "gauge", Some("bytes")),
    ("walgate_parked_events", "gauge", None),
    ("walgate_parked_keys", "gauge", None),
    ("walgate_reconnects", "counter", None),
    ("walgate_replication_lag_bytes", "gauge", Some("bytes")),
    ("walgate_retries", "counter", None),
    ("walgate_sink_up", "gauge", None),
    ("walgate_slot_retained_bytes", "gauge", Some("bytes")),
    ("walgate_start_time_seconds", "gauge", Some("seconds")),
    ("walgate_streaming", "gauge", None),
    ("walgate_wal_budget_bytes", "gauge", Some("bytes")),
    ("walgate_wal_budget_ratio", "gauge", None),
    ("walgate_wal_budget_seconds_left", "gauge", None),
];

#[test]
fn every_metric_says_what_happened() {
    // A server of its own: the slot's figures hold still when nobody writes.
    let (rig, second) = (Rig::alone(), Receiver::start());
    let setup = rig
        .source()
        .webhook_at("hook", &rig.receiver.url(), QUICK)
        .webhook_at("second", &second.url(), &format!("{QUICK}, on_reject: skip"))
        .route("order.*", "[hook, second]")
        .route("user.*", "hook");
    let mut walgate = Walgate::run(&setup);
    let port = setup.admin_port();
    let insert = |kind: &str, from: u32, to: u32| {
        rig.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
             SELECT '{kind}', 'k' || i, '{{}}' FROM generate_series({from}, {to}) i"
        ));
    };
    let started = SystemTime::now();
    insert("order.created", 1, 20);
    insert("user.created", 1, 5);
    insert("nobody.cares", 1, 3);
    let last = rig.insert("last");
    rig.wait_confirmed(&mut walgate, &last);
    walgate.eventually("the slot's figures are those of the server", || {
        let text = |sql: &str| rig.database.value(sql).parse::<f64>().ok();
        let slot = format!("FROM pg_replication_slots WHERE slot_name = '{}'", rig.database.slot);
        let scrape = scrape(port);
        let confirmed = text(&format!("SELECT confirmed_flush_lsn - '0/0' {slot}"));
        let lag = text(&format!("SELECT pg_current_wal_lsn() - confirmed_flush_lsn {slot}"));
        let retained = text(&format!("SELECT pg_current_wal_lsn() - restart_lsn {slot}"));
        [("checkpoint_lsn", confirmed), ("replication_lag_bytes", lag), ("slot_retained_bytes", retained)]
            .iter()
            .all(|(name, value)| value.is_some() && scrape.sample(&format!("walgate_{name}"), &[]) == *value)
    });

    let seen = scrape(port);
    let families: Vec<_> =
        seen.0.iter().map(|(name, family)| (name.as_str(), family.kind.as_str(), family.unit.as_deref())).collect();
    assert_eq!(families, FAMILIES);
    let events = |scrape: &Scrape, sink: &str, route: &str, outcome: &str| {
        scrape.sample("walgate_events_total", &[("sink", sink), ("route", route), ("outcome", outcome)])
    };
    assert_eq!(events(&seen, "hook", "order.*", "acknowledged"), Some(21.0));
    assert_eq!(events(&seen, "second", "order.*", "acknowledged"), Some(21.0));
    assert_eq!(events(&seen, "hook", "user.*", "acknowledged"), Some(5.0));
    assert_eq!(events(&seen, "second", "user.*", "acknowledged"), None, "that route does not lead there");
    for outcome in ["duplicate", "skipped", "halted"] {
        assert_eq!(events(&seen, "hook", "user.*", outcome), Some(0.0), "shown before it happens");
    }
    let count = |name: &str, sink: &str| seen.value(&format!("walgate_{name}"), &[("sink", sink)]);
    for (sink, events) in [("hook", 26.0), ("second", 21.0)] {
        assert_eq!(count("commit_to_ack_seconds_count", sink), events);
        assert_eq!(count("delivery_seconds_count", sink), events, "a webhook sends one event at a time");
        let most = started.elapsed().unwrap().as_secs_f64();
        for name in ["commit_to_ack_seconds_sum", "delivery_seconds_sum"] {
            let sum = count(name, sink);
            assert!(sum > 0.0 && sum < events * most, "{name} of {sink}: {sum}");
        }
        assert_eq!(count("sink_up", sink), 1.0);
        for name in ["inflight_events", "retries_total", "broker_duplicates_total"] {
            assert_eq!(count(name, sink), 0.0, "{name} of {sink}");
        }
    }
    for (name, value) in [("events_received_total", 29.0), ("inflight_bytes", 0.0), ("streaming", 1.0)] {
        assert_eq!(seen.value(&format!("walgate_{name}"), &[]), value, "{name}");
    }
    assert_eq!(seen.value("walgate_reconnects_total", &[]), 0.0);
    let discarded =
        |scrape: &Scrape, reason: &str| scrape.value("walgate_discarded_events_total", &[("reason", reason)]);
    assert_eq!((discarded(&seen, "unrouted"), discarded(&seen, "rejected")), (3.0, 0.0));
    for kind in ["update", "delete", "truncate"] {
        assert_eq!(seen.value("walgate_ignored_rows_total", &[("kind", kind)]), 0.0);
    }
    assert_eq!(seen.value("walgate_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((now - 300.0..=now).contains(&seen.value("walgate_start_time_seconds", &[])));

    // What is under way.
    rig.receiver.hold();
    insert("user.created", 1, 7);
    walgate.eventually("seven are under way", || {
        scrape(port).value("walgate_inflight_events", &[("sink", "hook")]) == 7.0
    });
    assert!(scrape(port).value("walgate_inflight_bytes", &[]) > 7.0);
    rig.receiver.release_all();
    rig.wait_settled(&mut walgate, 33);

    // A sink that is down, and one that is not.
    rig.receiver.go_down();
    insert("order.created", 1, 10);
    walgate.eventually("the sink is down", || scrape(port).value("walgate_sink_up", &[("sink", "hook")]) == 0.0);
    let seen = scrape(port);
    assert_eq!(seen.value("walgate_sink_up", &[("sink", "second")]), 1.0);
    assert!(seen.value("walgate_retries_total", &[("sink", "hook")]) > 0.0);
    assert_eq!(seen.value("walgate_retries_total", &[("sink", "second")]), 0.0);
    rig.receiver.come_back();
    walgate.eventually("it is up again", || scrape(port).value("walgate_sink_up", &[("sink", "hook")]) == 1.0);
    rig.wait_settled(&mut walgate, 43);

    // A rejected event, a lost connection, a row that is no event, and changes that are none.
    second.script(|request| reply(if request.attempt == 1 { 422 } else { 200 }).into());
    rig.insert("rejected");
    rig.database.sql("INSERT INTO outbox_events (event_type, payload) VALUES (NULL, '{}')");
    rig.database.sql(&format!("ALTER PUBLICATION {} SET (publish = 'insert, truncate')", rig.database.publication));
    rig.database.sql("TRUNCATE outbox_events");
    rig.witness.cut();
    walgate.eventually("all that is counted", || {
        let seen = scrape(port);
        events(&seen, "second", "order.*", "skipped") == Some(1.0)
            && (discarded(&seen, "rejected"), discarded(&seen, "null_column")) == (1.0, 1.0)
            && seen.value("walgate_reconnects_total", &[]) >= 1.0
            && seen.value("walgate_ignored_rows_total", &[("kind", "truncate")]) == 1.0
    });
}

#[test]
fn metrics_come_in_the_format_that_is_asked_for() {
    let rig = Rig::new();
    let setup = rig.setup();
    let mut walgate = Walgate::run(&setup);
    walgate.eventually("it serves", || walgate_is_up(&setup));
    for accept in ["", "Accept: */*\r\n", "Accept: text/plain;version=0.0.4\r\n"] {
        let (head, body) = get(setup.admin_port(), "/metrics", accept);
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{accept:?}: {head}");
        assert!(body.contains("# TYPE walgate_events_received_total counter\n"), "{body}");
        assert!(!body.contains("# EOF") && !body.contains("# UNIT"), "{body}");
    }
    scrape(setup.admin_port());
}

fn walgate_is_up(setup: &Setup) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, setup.admin_port())).is_ok()
}

#[test]
fn a_stuck_sink_makes_it_unready_by_name_until_it_heals() {
    let rig = Rig::new();
    let other = Receiver::start();
    let listen = format!("127.0.0.1:{}", wait::free_port());
    let port: u16 = listen.rsplit(':').next().unwrap().parse().unwrap();
    let yaml = rig.setup().webhook("other", &other).route("**", "other").yaml();
    let (before, _) = yaml.split_once("admin:").unwrap();
    let setup = Setup::literal(format!("{before}admin: {{ listen: \"{listen}\", stuck_after: 1s }}\n"));
    let mut walgate = Walgate::run(&setup);
    let ready = || crate::support::http_get::get(port, "/readyz");
    walgate.eventually("it is ready", || ready().is_some_and(|page| page == (200, "ready\n".into())));

    rig.receiver.go_down();
    let id = rig.insert("a");
    let mut page = String::new();
    walgate.eventually("it is not ready", || {
        ready().is_some_and(|(status, body)| {
            page = body;
            status == 503
        })
    });
    assert!(page.starts_with("not ready\nsink `hook` has settled nothing for "), "{page}");
    assert!(!page.contains("other"), "the other one moves: {page}");
    let (_, status) = crate::support::http_get::get(port, "/status").unwrap();
    let status: Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["not_ready"][0].as_str().map(|reason| page.contains(reason)), Some(true));
    let sink = |name: &str| status["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == name).unwrap();
    let hook = sink("hook");
    assert_eq!(hook["oldest"]["event_id"], Value::from(id.clone()));
    assert!(hook["last_error"]["message"].as_str().is_some_and(|error| error.contains("127.0.0.1")), "{hook}");
    assert_eq!(hook["last_error"]["kind"], "connection");
    assert_eq!(hook["unsettled"], 1);
    assert_eq!((&sink("other")["oldest"], &sink("other")["last_error"]), (&Value::Null, &Value::Null));
    assert!(status["wal_holder"].as_str().is_some_and(|holder| holder.contains(&id)), "{}", status["wal_holder"]);

    rig.receiver.come_back();
    walgate.eventually("it is ready again", || ready().is_some_and(|page| page.0 == 200));
    assert!(rig.receiver.settled(&id).is_some());
}

#[test]
fn x15_events_make_no_series_and_break_no_line() {
    for format in ["json", "human"] {
        let database = crate::support::postgres::Postgres::shared().database();
        database.sql(
            "CREATE TABLE outbox_events (id text NOT NULL, event_type text NOT NULL, payload jsonb NOT NULL, \
             headers jsonb)",
        );
        database.publish();
        database.create_slot();
        let rig = Rig::with(database);
        let setup = Setup::through(&rig.database, rig.witness.port())
            .webhook_at("hook", &rig.receiver.url(), &format!("{QUICK}, on_reject: skip"))
            .route("order.**", "hook")
            .more("outbox: { columns: { headers: headers } }")
            .env("WALGATE_LOG_FORMAT", format)
            .env("WALGATE_LOG", "debug,hyper=info,reqwest=info,h2=info,hyper_util=info");
        let hostile = "a\u{1b}[31m\u{1b}]0;title\u{7}\r\n{\"level\":\"ERROR\"}\n\u{9b}2J\u{202e}\u{0008}";
        let answer = format!("{hostile}{}", "x".repeat(100_000));
        rig.receiver.script(move |request| {
            let refused = request.number.is_multiple_of(3) && request.number < 1000;
            if refused { reply(422).body(answer.clone()).into() } else { reply(200).into() }
        });
        let mut walgate = Walgate::run(&setup);
        let port = setup.admin_port();
        walgate.eventually("it streams", || {
            let known = ["walgate_replication_lag_bytes", "walgate_catalog_ok", "walgate_idle_slots"];
            walgate_is_up(&setup) && known.iter().all(|name| scrape(port).sample(name, &[]).is_some())
        });
        let before = scrape(port).series();
        let literal = format!("E'{}'", hostile.escape_unicode_for_sql());
        // A thousand that are routed, and fifty thousand types that are not.
        rig.database.sql(&format!(
            "INSERT INTO outbox_events SELECT i || {literal} || repeat('y', 3000), 'order.' || i || {literal}, '{{}}', '{{}}' \
             FROM generate_series(1, 1000) i"
        ));
        rig.database.sql(&format!(
            "INSERT INTO outbox_events SELECT 'u' || i || {literal}, i || {literal} || i, '{{}}', '{{}}' \
             FROM generate_series(1, 50000) i"
        ));
        // Rows that are no events.
        rig.database.sql(&format!(
            "INSERT INTO outbox_events SELECT 'n' || i || {literal}, 'order.x', '{{}}', '[1]' FROM generate_series(1, 100) i"
        ));
        walgate.eventually("all of it was read and settled", || {
            let seen = scrape(port);
            seen.value("walgate_events_received_total", &[]) >= 51_100.0
                && seen.value("walgate_inflight_bytes", &[]) == 0.0
        });
        let seen = scrape(port);
        assert_eq!(seen.value("walgate_discarded_events_total", &[("reason", "unrouted")]), 50_000.0);
        assert_eq!(seen.value("walgate_discarded_events_total", &[("reason", "invalid_headers")]), 100.0);
        assert!(seen.value("walgate_discarded_events_total", &[("reason", "rejected")]) > 100.0);
        assert_eq!(seen.series(), before, "events add no series");
        let (_, status) = get(port, "/status", "");
        assert!(!status.contains(|c: char| c.is_control()), "{status:?}");
        walgate.terminate();
        let ended = walgate.wait_for_end(wait::DEADLINE);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        let lines: Vec<&str> = ended.stderr.split('\n').collect();
        assert!((200..3000).contains(&lines.len()), "{} lines", lines.len());
        for line in lines {
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
            assert!(line.len() < 4000, "{} bytes: {line}", line.len());
            if format == "json" {
                let fields: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
                for (name, value) in fields.as_object().unwrap() {
                    let length = value.as_str().map_or(0, str::len);
                    assert!(length <= 1024, "{name} has {length} bytes: {line}");
                    let text = value.as_str().unwrap_or_default();
                    assert!(
                        !text.contains(|c: char| c.is_control()),
                        "unescaped, {name} would break a terminal: {line}"
                    );
                }
            } else {
                assert!(line.starts_with("20") && !line.starts_with("{"), "a line of its own making: {line}");
            }
        }
    }
}

/// Characters as PostgreSQL's `E''` takes them.
trait ForSql {
    fn escape_unicode_for_sql(&self) -> String;
}

impl ForSql for str {
    fn escape_unicode_for_sql(&self) -> String {
        self.chars().map(|c| format!("\\U{:08X}", u32::from(c))).collect()
    }
}

#[test]
fn x14_the_admin_port_only_answers_and_gives_nothing_away() {
    const PAYLOAD: &str = "canary-payload-3b9d";
    let rig = Rig::new();
    let sink = format!(
        "hook: {{ webhook: {{ url: \"http://127.0.0.1:{}/hook?token=canary-query\", \
         secret: {SECRET:?}, headers: {{ x-api-key: canary-header }}, \
         basic_auth: {{ username: shop, password: canary-pass }} }}, delivery: {{ {QUICK} }} }}",
        rig.receiver.port()
    );
    let setup = rig.source().sink(&sink).route("**", "hook");
    let mut walgate = Walgate::run(&setup);
    let port = setup.admin_port();
    rig.receiver.script(|_| reply(503).into());
    let id = rig.database.insert("order.created", "k", &format!("{{\"iban\": \"{PAYLOAD}\"}}"));
    walgate.eventually("it fails", || {
        walgate_is_up(&setup) && get(port, "/status", "").1.contains(&id) && get(port, "/status", "").1.contains("503")
    });

    let paths = ["/livez", "/readyz", "/status", "/metrics"];
    for path in paths.iter().chain(&["/", "/admin", "/status/", "/../etc/passwd", "/debug/pprof", "/%00"]) {
        let (head, body) = get(port, path, "Origin: https://evil.example\r\n");
        let known = paths.contains(path);
        assert_eq!(head.starts_with("http/1.1 404"), !known, "{path}: {head}");
        for canary in [PASSWORD, SECRET, &SECRET[6..], "canary-", PAYLOAD] {
            assert!(!body.contains(canary) && !head.contains(canary), "{canary} is in {path}: {body}");
        }
        assert!(!head.contains("access-control"), "{path}: {head}");
        for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.example\r\nConnection: close\r\n\
                 Access-Control-Request-Method: POST\r\nContent-Length: 2\r\n\r\n{{}}"
            );
            let (head, _) = raw(port, request.as_bytes()).unwrap_or_else(|| panic!("{method} {path}"));
            let refused = ["405", "404", "400"].iter().any(|status| head.starts_with(&format!("http/1.1 {status}")));
            assert!(refused && !head.contains("access-control"), "{method} {path}: {head}");
        }
    }
    let (head, body) = raw(port, b"HEAD /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    assert!(head.starts_with("http/1.1 200") && body.is_empty(), "{head} {body}");

    // More than it takes: refused or cut, and never kept.
    let large = format!("GET /livez HTTP/1.1\r\nHost: x\r\nx: {}\r\n\r\n", "x".repeat(10 << 20));
    if let Some((head, _)) = raw(port, large.as_bytes()) {
        assert!(head.starts_with("http/1.1 431"), "{head}");
    }
    let large =
        format!("POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}", 64 << 20, "x".repeat(64 << 20));
    if let Some((head, _)) = raw(port, large.as_bytes()) {
        assert!(head.starts_with("http/1.1 405"), "{head}");
    }
    let memory = walgate.peak_memory_kib();
    assert!(memory < 200 << 10, "{memory} KiB");

    // Clients that never finish their request take every place, for ten seconds.
    let slow: Vec<TcpStream> = (0..200)
        .filter_map(|_| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nx:").ok()?;
            Some(stream)
        })
        .collect();
    let sockets = std::fs::read_dir(format!("/proc/{}/fd", walgate.pid())).unwrap().count();
    assert!(sockets < 64 + 64, "{sockets} descriptors");
    assert_eq!(slow.len(), 200);
    walgate.eventually("it answers again", || {
        raw(port, b"GET /livez HTTP/1.0\r\n\r\n").is_some_and(|(head, _)| head.starts_with("http/1.0 200"))
    });
    rig.receiver.accept_all();
    rig.wait_confirmed(&mut walgate, &id);
}

/// What a service manager hears.
struct Manager {
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
}

impl Manager {
    fn listen(socket: UnixDatagram) -> Manager {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = lines.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 64 << 10];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = std::str::from_utf8(&buffer[..length]).expect("text").to_owned();
                let now = Instant::now();
                heard.lock().unwrap().extend(text.lines().map(|line| (now, line.to_owned())));
            }
        });
        Manager { lines }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().iter().map(|(_, line)| line.clone()).collect()
    }

    fn heard(&self, line: &str) -> bool {
        self.lines().iter().any(|heard| heard == line)
    }

    fn count(&self, line: &str) -> usize {
        self.lines().iter().filter(|heard| *heard == line).count()
    }
}

#[test]
fn the_service_manager_hears_when_it_is_ready_how_it_is_and_that_it_lives() {
    let rig = Rig::new();
    let path = processes::folder("notify").join("socket");
    let manager = Manager::listen(UnixDatagram::bind(&path).unwrap());
    // Nobody answers at first: it starts, lives, and is not ready.
    let closed = wait::free_port();
    let proxy = rig.setup().source(rig.database.source(closed));
    let setup = proxy.env("NOTIFY_SOCKET", &path.display().to_string()).env("WATCHDOG_USEC", "1000000");
    let mut walgate = Walgate::run(&setup);
    walgate.eventually("the watchdog hears of it while it waits", || manager.count("WATCHDOG=1") >= 3);
    assert!(!manager.heard("READY=1"), "{:?}", manager.lines());
    let status = manager.lines().into_iter().find(|line| line.starts_with("STATUS=")).expect("a status");
    assert!(status.starts_with("STATUS=not ready: connecting to PostgreSQL"), "{status}");
    walgate.kill9();

    let setup = rig.setup().more("limits: { inflight: 64KiB }");
    let setup = setup.env("NOTIFY_SOCKET", &path.display().to_string()).env("WATCHDOG_USEC", "1000000");
    let mut walgate = Walgate::run(&setup);
    walgate.eventually("it is ready", || manager.heard("READY=1") && manager.heard("STATUS=streaming"));
    // Blocked, with its sink down and its window full, it lives.
    rig.receiver.go_down();
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'k' || i, '{}' FROM generate_series(1, 1000) i",
    );
    walgate.eventually("the window is full", || {
        scrape(setup.admin_port()).value("walgate_inflight_bytes", &[]) >= 65536.0
    });
    walgate.eventually("the state is told", || {
        manager.lines().iter().any(|line| line.starts_with("STATUS=streaming; not well: hook"))
    });
    let before = manager.count("WATCHDOG=1");
    walgate.eventually("it goes on living", || manager.count("WATCHDOG=1") >= before + 4);
    // Stopped, it does not; and nothing else speaks for it.
    walgate.signal(Signal::STOP);
    watch_for(Duration::from_millis(200));
    let before = manager.count("WATCHDOG=1");
    watch_for(Duration::from_millis(1500));
    assert_eq!(manager.count("WATCHDOG=1"), before, "a stopped process is silent");
    walgate.signal(Signal::CONT);
    rig.receiver.come_back();
    rig.wait_settled(&mut walgate, 1000);
    walgate.terminate();
    walgate.wait_for_end(wait::DEADLINE).expect(0, &[]);
    assert!(manager.heard("STOPPING=1"), "{:?}", manager.lines());
    assert_eq!(manager.count("READY=1"), 1);
}

#[test]
fn an_abstract_socket_works_and_without_a_watchdog_there_is_no_heartbeat() {
    let rig = Rig::new();
    let name = format!("walgate-test-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let manager = Manager::listen(socket);
    let other = std::process::id().to_string();
    // A watchdog that is meant for another process counts as none.
    let setup = rig.setup().env("NOTIFY_SOCKET", &format!("@{name}"));
    let setup = setup.env("WATCHDOG_USEC", "200000").env("WATCHDOG_PID", &other);
    let mut walgate = Walgate::run(&setup);
    walgate.eventually("it is ready", || manager.heard("READY=1"));
    let id = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &id);
    let heard: BTreeSet<String> = manager.lines().into_iter().collect();
    assert!(!heard.contains("WATCHDOG=1"), "{heard:?}");
}

/// A traceparent and a tracestate, and what somebody would like to smuggle in.
const TRACE: [&str; 2] =
    ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE%20"];

/// From two columns, and from the headers column; and values that are no such thing.
fn insert_traces(rig: &Rig) -> [String; 3] {
    rig.database.sql("ALTER TABLE outbox_events ADD COLUMN trace text, ADD COLUMN state text");
    let [parent, state] = TRACE;
    [
        format!("trace, state) VALUES ('order.created', 'k', '{{}}', '{parent}', '{state}')"),
        format!(
            "headers) VALUES ('order.created', 'k', '{{}}', '{{\"traceparent\": \"{parent}\", \"tracestate\": \"{state}\"}}')"
        ),
        "trace, state) VALUES ('order.created', 'k', '{}', E'00\\r\\nX-Evil: 1\\u00e9', repeat('s', 3000))".to_owned(),
    ]
    .map(|values| {
        rig.database.value(&format!("INSERT INTO outbox_events (event_type, aggregate_id, payload, {values} RETURNING id"))
    })
}

fn traced(rig: &Rig) -> Setup {
    Setup::through(&rig.database, rig.witness.port()).more(
        "outbox: { columns: { key: aggregate_id, headers: headers }, \
         header_columns: { traceparent: trace, tracestate: state } }",
    )
}

#[test]
fn trace_context_is_forwarded_as_it_is_to_webhooks() {
    let rig = Rig::new();
    let ids = insert_traces(&rig);
    let mut walgate = Walgate::run(&traced(&rig).webhook("hook", &rig.receiver).route("**", "hook"));
    rig.wait_settled(&mut walgate, 3);
    for id in &ids[..2] {
        let receipt = &rig.receiver.receipts_of(id)[0];
        assert_eq!(["traceparent", "tracestate"].map(|name| receipt.header(name)), TRACE.map(Some));
    }
    let hostile = &rig.receiver.receipts_of(&ids[2])[0];
    assert_eq!(hostile.header("traceparent"), Some("00%0D%0AX-Evil: 1%C3%A9"));
    assert_eq!(hostile.header("tracestate"), Some(&*"s".repeat(3000)));
    assert_eq!(hostile.header("x-evil"), None);
}

#[cfg(feature = "nats")]
#[test]
fn trace_context_is_forwarded_as_it_is_to_nats() {
    let (rig, server) = (Rig::new(), crate::support::nats::NatsServer::start());
    server.add_stream("ORDERS", &["orders.>"], serde_json::json!({}));
    let ids = insert_traces(&rig);
    let port = server.port();
    let sink = format!("bus: {{ nats: {{ servers: [\"127.0.0.1:{port}\"], subject: \"orders.{{event_type}}\" }} }}");
    let mut walgate = Walgate::run(&traced(&rig).sink(&sink).route("**", "bus"));
    rig.wait_confirmed(&mut walgate, &ids[2]);
    let stored = server.stored("ORDERS");
    assert_eq!(stored.iter().map(|message| message.id()).collect::<Vec<_>>(), ids);
    for message in &stored[..2] {
        assert_eq!(["traceparent", "tracestate"].map(|name| message.header(name)), TRACE.map(Some));
    }
    assert_eq!(stored[2].header("traceparent"), Some("00%0D%0AX-Evil: 1%C3%A9"));
    assert_eq!(stored[2].header("X-Evil"), None);
}
