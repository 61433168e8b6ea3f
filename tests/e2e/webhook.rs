//! The webhook sink where `receivers` is not about it: batches, secrets, connections, what events may not do to requests.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::HeaderMap;
use standardwebhooks::Webhook;

use crate::rig::Rig;
use crate::support::database::Database;
use crate::support::oracle;
use crate::support::postgres::Postgres;
use crate::support::receiver::{Answer, Receipt, Receiver, SECRET, ok, reply};
use crate::support::wait::{DEADLINE, watch_for, within};
use crate::support::walgate::{Setup, Walgate};
use crate::workload::Stream;

/// The inside of `delivery: { }`.
const QUICK: &str = "timeout: 5s, retry: { initial: 20ms, max: 500ms, connection_max: 200ms }";

/// A rig whose receiver takes batches.
fn batch_rig() -> Rig {
    let mut rig = Rig::new();
    rig.receiver = Receiver::batches();
    rig
}

/// A line under `sinks:`; `more` begins with a comma.
fn hook(receiver: &Receiver, more: &str, delivery: &str) -> String {
    let url = receiver.url();
    format!("hook: {{ webhook: {{ url: {url:?}, secret: {SECRET:?}{more} }}, delivery: {{ {delivery} }} }}")
}

fn batch_setup(rig: &Rig, delivery: &str) -> Setup {
    rig.source().sink(&hook(&rig.receiver, ", mode: batch", delivery)).route("**", "hook")
}

/// Events in one transaction, with so many keys.
fn insert(rig: &Rig, from: usize, to: usize, keys: usize) {
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'k' || i % {keys}, jsonb_build_object('i', i) FROM generate_series({from}, {to} - 1) i"
    ));
}

/// The receipts of each request.
fn requests(receiver: &Receiver) -> Vec<Vec<Receipt>> {
    let mut requests: HashMap<u64, Vec<Receipt>> = HashMap::new();
    for receipt in receiver.receipts() {
        requests.entry(receipt.request).or_default().push(receipt);
    }
    requests.into_values().collect()
}

/// An event of this id and key.
fn insert_as(rig: &Rig, id: &str, key: &str) {
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (id, event_type, aggregate_id, payload) VALUES ('{id}', 'order.created', '{key}', '{{}}')"
    ));
}

#[test]
fn the_example_and_the_reference_load() {
    let example = include_str!("../../examples/webhook.yaml");
    crate::shipped::assert_true("webhook", "partner", example, &[("PARTNER_SECRET", SECRET)]);
}

#[test]
fn g2_p1_batches_lose_nothing_and_keep_the_order_of_each_key_through_kills() {
    const EVENTS: usize = 5_000;
    let rig = batch_rig();
    rig.receiver.hold();
    // Patient: after a timeout fewer batches would be under way at once.
    let setup = batch_setup(&rig, &QUICK.replace("timeout: 5s", "timeout: 1m"));
    let mut walgate = Walgate::run(&setup);
    insert(&rig, 0, EVENTS, 250);
    // Four batches are with the receiver, and their answers never arrive.
    walgate.eventually("batches are under way", || rig.receiver.in_flight() == 4);
    rig.kill(&mut walgate);
    rig.receiver.release_all();
    rig.receiver.script(|_| reply(200).after(Duration::from_millis(20)).into());
    for settled in [EVENTS / 4, EVENTS / 2] {
        let mut walgate = Walgate::run(&setup);
        rig.wait_settled(&mut walgate, settled);
        rig.kill(&mut walgate);
    }
    let mut walgate = Walgate::run(&setup);
    rig.wait_settled(&mut walgate, EVENTS);
    let last = rig.insert("last");
    rig.wait_confirmed(&mut walgate, &last);
    let repeats = rig.assert_all();
    assert!(repeats >= 100, "{repeats}: what was with the receiver at the first kill came again");

    let committed = rig.committed();
    let keys: HashMap<&str, &str> =
        committed.iter().map(|event| (event.id.as_str(), event.key.as_deref().expect("a key"))).collect();
    let requests = requests(&rig.receiver);
    for request in &requests {
        assert!(request.len() <= 100, "{} in one request", request.len());
        let distinct: HashSet<&str> = request.iter().map(|receipt| keys[receipt.id.as_str()]).collect();
        assert_eq!(distinct.len(), request.len(), "two events of a key in one request");
        let id = request[0].header("webhook-id").unwrap_or_default();
        assert!(id.starts_with("batch_"), "{id}");
        assert_eq!(request[0].header("content-type"), Some("application/json"));
        let own: Vec<&str> =
            request[0].headers.keys().map(|name| name.as_str()).filter(|name| name.starts_with("walgate-")).collect();
        assert_eq!(own, [""; 0], "headers of one event on a batch");
    }
    assert!(requests.len() < EVENTS / 10, "{} requests for {EVENTS} events", requests.len());
}

const POISON: &str = "00000000-0000-4000-8000-00000000dead";

/// 120 events of 60 keys, one of them `POISON` with a key of its own, and two more of that key; the receiver refuses
/// every batch with the poison in it. Returns the ids of the two.
fn poison(rig: &Rig) -> [String; 2] {
    rig.receiver.script(|request| if request.id == POISON { reply(422).body("bad order").into() } else { ok() });
    insert(rig, 0, 60, 60);
    insert_as(rig, POISON, "sick");
    let behind = [rig.insert("sick"), rig.insert("sick")];
    insert(rig, 60, 117, 60);
    behind
}

#[test]
fn w2_a_poison_event_in_a_batch_is_found_and_skipped() {
    let rig = batch_rig();
    let behind = poison(&rig);
    let mut walgate = Walgate::run(&batch_setup(&rig, &format!("{QUICK}, on_reject: skip")));
    rig.wait_settled(&mut walgate, 119);
    rig.wait_confirmed(&mut walgate, &behind[1]);
    let line = walgate.wait_log(&[POISON]);
    assert!(line.contains("422") && line.contains("bad order"), "{line}");
    assert_eq!(walgate.metric("walgate_discarded_events_total", &[]), Some(1.0), "it alone");
    assert_eq!(rig.receiver.settled(POISON), None);
    let alone = requests(&rig.receiver).into_iter().filter(|request| request.len() == 1 && request[0].id == POISON);
    assert_eq!(alone.count(), 1, "asked for by itself, once");

    // The oracles, with the poison settled by its refusal.
    let verdict = oracle::reconcile(&rig.committed(), &rig.receiver.receipts());
    assert_eq!(verdict.missing, [POISON]);
    assert_eq!((&verdict.phantoms, &verdict.altered), (&Vec::new(), &Vec::new()));
    assert!(verdict.skips.iter().all(|skip| behind.iter().any(|id| skip.contains(id))), "{:?}", verdict.skips);
    let settled = rig.receiver.all_settled();
    let refused = rig.receiver.receipts_of(POISON).last().and_then(|receipt| receipt.answered).expect("a refusal").0;
    oracle::assert_wire(&rig.witness.log(), rig.confirmed_before, |id| {
        if id == POISON { Some(refused) } else { settled.get(id).copied() }
    });
}

#[test]
fn w2_a_poison_event_in_a_batch_holds_its_key_and_no_other() {
    let rig = batch_rig();
    let behind = poison(&rig);
    let setup = batch_setup(&rig, QUICK);
    let mut walgate = Walgate::run(&setup);
    rig.wait_settled(&mut walgate, 117);
    let line = walgate.wait_log(&[POISON]);
    assert!(line.contains("422"), "{line}");
    let fresh = rig.insert("well");
    walgate.eventually("other keys go on", || rig.receiver.settled(&fresh).is_some());
    watch_for(Duration::from_secs(1));
    assert!(behind.iter().all(|id| !rig.receiver.has(id)), "what follows in its key waits");
    rig.assert_not_passed(POISON);

    rig.kill(&mut walgate);
    rig.receiver.accept_all();
    let mut walgate = Walgate::run(&setup);
    rig.wait_confirmed(&mut walgate, &fresh);
    rig.assert_all();
}

#[test]
fn one_event_to_two_paths_arrives_at_both() {
    for batch in [false, true] {
        let rig = if batch { batch_rig() } else { Rig::new() };
        let mode = if batch { ", mode: batch" } else { "" };
        let to = "[{ sink: hook, path: \"/by-key/{key}\" }, { sink: hook, path: /all }]";
        let setup = rig.source().sink(&hook(&rig.receiver, mode, QUICK)).route("**", to);
        let mut walgate = Walgate::run(&setup);
        insert(&rig, 0, 60, 7);
        let last = rig.insert("k1");
        rig.wait_confirmed(&mut walgate, &last);
        let committed = rig.committed();
        assert_eq!(committed.len(), 61);
        for event in &committed {
            let mut paths: Vec<String> =
                rig.receiver.receipts_of(&event.id).into_iter().map(|receipt| receipt.path).collect();
            paths.sort();
            let key = event.key.as_deref().expect("a key");
            assert_eq!(paths, ["/hook/all".to_owned(), format!("/hook/by-key/{key}")], "batch: {batch}");
        }
        // Each path sees every event of a key in order, as if it were a sink of its own.
        for path in ["/hook/all", "/hook/by-key/"] {
            let receipts: Vec<Receipt> =
                rig.receiver.receipts().into_iter().filter(|receipt| receipt.path.starts_with(path)).collect();
            assert_eq!(oracle::assert_reconciled(&committed, &receipts), 0);
        }
        assert_eq!(rig.receiver.bad_signatures(), Vec::<String>::new());
        // Settled by the later of the two.
        let mut settled: HashMap<String, u64> = HashMap::new();
        for receipt in rig.receiver.receipts() {
            let (tick, _) = receipt.answered.expect("an answer");
            let latest = settled.entry(receipt.id).or_default();
            *latest = (*latest).max(tick);
        }
        oracle::assert_wire(&rig.witness.log(), rig.confirmed_before, |id| settled.get(id).copied());
    }
}

/// Whether a receiver that knows only this secret takes the request.
fn verifies(secret: &str, receipt: &Receipt) -> bool {
    Webhook::new(secret).expect("a secret").verify(&receipt.body, &receipt.headers).is_ok()
}

#[test]
fn w6_both_secrets_sign_while_one_replaces_the_other() {
    const OLD: &str = "whsec_b2xkLXNlY3JldC1vZi10aGUtcmVjZWl2ZXItMDE=";
    let rig = Rig::new();
    let folder = crate::support::processes::folder("secret");
    let file = folder.join("secret");
    let url = rig.receiver.url();
    let setup = |secret: &str| {
        let sink = format!("hook: {{ webhook: {{ url: {url:?}, {secret} }}, delivery: {{ {QUICK} }} }}");
        rig.source().sink(&sink).route("**", "hook")
    };
    let in_file = format!("secret_file: {:?}", file.display().to_string());
    let rounds = [
        (format!("secret: {OLD:?}"), None, [true, false]),
        (format!("secret: \"{SECRET} {OLD}\""), None, [true, true]),
        (in_file.clone(), Some(format!("{SECRET}\n{OLD}\n")), [true, true]),
        (in_file, Some(format!("{SECRET}\n")), [false, true]),
    ];
    for (secret, text, expected) in rounds {
        if let Some(text) = text {
            std::fs::write(&file, text).expect("the secret's file");
        }
        let mut walgate = Walgate::run(&setup(&secret));
        let id = rig.insert("k");
        rig.wait_confirmed(&mut walgate, &id);
        let [receipt] = &rig.receiver.receipts_of(&id)[..] else { panic!("one receipt") };
        assert_eq!([OLD, SECRET].map(|secret| verifies(secret, receipt)), expected, "{receipt:?}");
        let signatures = receipt.header("webhook-signature").expect("a signature");
        assert_eq!(signatures.split(' ').count(), expected.iter().filter(|holds| **holds).count(), "{signatures}");
        rig.kill(&mut walgate);
    }
    assert_eq!(rig.receiver.bad_signatures().len(), 1, "of the first round only");
}

#[test]
fn w6_a_secret_in_a_file_is_replaced_by_reloads_and_nothing_is_lost() {
    const OLD: &str = "whsec_b2xkLXNlY3JldC1vZi10aGUtcmVjZWl2ZXItMDE=";
    let mut rig = Rig::new();
    // Whoever looks at the receipts verifies them, with the one secret and with the other.
    rig.receiver = Receiver::unsigned();
    let secret = crate::support::processes::folder("secret").join("secret");
    let replace = |text: &str| {
        std::fs::write(&secret, text).expect("the secret's file");
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).expect("chmod");
    };
    replace(OLD);
    let (url, path) = (rig.receiver.url(), secret.display().to_string());
    let sink = format!("hook: {{ webhook: {{ url: {url:?}, secret_file: {path:?} }}, delivery: {{ {QUICK} }} }}");
    let setup = rig.source().sink(&sink).route("**", "hook");
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let stop = AtomicBool::new(false);
    let stream = Stream { name: "w6", keys: 40, batch: 20, prepared: false };
    let mut phases = Vec::new();
    std::thread::scope(|scope| {
        let (rig, stop) = (&rig, &stop);
        scope.spawn(move || {
            let ahead = |at| at < rig.receiver.settled_count() + 500;
            let stopped = || stop.load(Ordering::SeqCst);
            stream.write(&rig.database, 0, |at| !stopped() && within(DEADLINE, || stopped() || ahead(at)));
        });
        // It ends with this, however this ends.
        let _end = crate::dead_letters::End(stop);
        for (text, verified) in [
            (None, [true, false]),
            (Some(format!("{SECRET}\n{OLD}\n")), [true, true]),
            (Some(format!("{SECRET}\n")), [false, true]),
        ] {
            if let Some(text) = text {
                replace(&text);
                let line = crate::reload::hup(&mut walgate, &file, &setup.yaml());
                assert!(line.contains("configuration reloaded") && line.contains("made anew: hook"), "{line}");
            }
            let from = rig.receiver.count();
            walgate.eventually("events go on", || rig.receiver.count() > from + 300);
            phases.push((from..from + 300, verified));
        }
        let line = crate::reload::hup(&mut walgate, &file, &setup.yaml());
        assert!(line.contains("no sink has changed"), "{line}");
    });
    let committed = oracle::ledger(&rig.database);
    walgate.eventually("everything has arrived", || rig.receiver.settled_count() == committed.len());
    let receipts = rig.receiver.receipts();
    assert_eq!(oracle::assert_reconciled(&committed, &receipts), 0, "nothing failed, so nothing is sent twice");
    for (range, verified) in phases {
        for receipt in &receipts[range] {
            assert_eq!([OLD, SECRET].map(|secret| verifies(secret, receipt)), verified, "{receipt:?}");
        }
    }
    // At no time was there one that neither of them verifies.
    assert!(receipts.iter().all(|receipt| verifies(OLD, receipt) || verifies(SECRET, receipt)));
    let settled = rig.receiver.all_settled();
    oracle::assert_wire(&rig.witness.log(), rig.confirmed_before, |id| settled.get(id).copied());
    let said = format!("{}{}", walgate.stdout(), walgate.stderr());
    assert!(!said.contains(OLD) && !said.contains(SECRET), "{}", walgate.said());
}

/// A database whose ids are text; otherwise the keyed outbox.
fn text_ids() -> Database {
    let database = Postgres::shared().database();
    database.sql(
        "CREATE TABLE outbox_events (id TEXT PRIMARY KEY, event_type TEXT, aggregate_id TEXT, payload JSONB, headers JSONB, \
         note TEXT)",
    );
    database.publish();
    database.create_slot();
    database
}

/// What percent-encoding stands for.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        if bytes[at] == b'%' {
            plain.push(u8::from_str_radix(&text[at + 1..at + 3], 16).expect("two digits"));
            at += 3;
        } else {
            plain.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(plain).expect("UTF-8")
}

#[test]
fn x9_no_id_moves_the_boundaries_of_what_is_signed() {
    let rig = Rig::with(text_ids());
    let mut walgate = rig.run();
    let now = std::time::UNIX_EPOCH.elapsed().expect("a clock").as_secs();
    // Unencoded, the signature of this event would be one of the id `msg`, this timestamp and a body that begins with
    // `{"paid": true}`.
    let shifting = format!("msg.{now}.{{\"paid\": true}}");
    let ids = [shifting.as_str(), "a.b", "a%2Eb", "..", "1.5"];
    for id in ids {
        rig.database.sql(&format!(
            "INSERT INTO outbox_events (id, event_type, aggregate_id, payload) VALUES ('{id}', 'order.created', 'k', '{{}}')"
        ));
    }
    rig.wait_confirmed(&mut walgate, "1.5");
    let receipts = rig.receiver.receipts();
    let sent: Vec<String> = receipts.iter().map(|receipt| decoded(&receipt.id)).collect();
    assert_eq!(sent, ids);
    assert!(receipts.iter().all(|receipt| !receipt.id.contains('.')), "{sent:?}");
    assert_eq!(rig.receiver.bad_signatures(), Vec::<String>::new());

    let genuine = &receipts[0];
    let mut forged = HeaderMap::new();
    for (name, value) in [("webhook-id", "msg"), ("webhook-timestamp", &now.to_string())] {
        forged.insert(name, value.parse().expect("a value"));
    }
    forged.insert("webhook-signature", genuine.headers["webhook-signature"].clone());
    let timestamp = genuine.header("webhook-timestamp").expect("a timestamp");
    let body = format!("{{\"paid\": true}}.{timestamp}.{}", genuine.text());
    let verifier = Webhook::new(SECRET).expect("a secret");
    assert!(verifier.verify(body.as_bytes(), &forged).is_err(), "a forged request passes");
    // Nor does another body, id or time.
    for (name, value) in [("webhook-id", "other"), ("webhook-timestamp", "1")] {
        let mut headers = genuine.headers.clone();
        headers.insert(name, value.parse().expect("a value"));
        assert!(verifier.verify(&genuine.body, &headers).is_err(), "{name}");
    }
    assert!(verifier.verify(b"{\"paid\": true}", &genuine.headers).is_err());
}

#[test]
fn connections_are_kept_between_requests() {
    let rig = Rig::new();
    let mut walgate = Walgate::run(&rig.source().sink(&hook(&rig.receiver, "", QUICK)).route("**", "hook"));
    for part in 0..4 {
        insert(&rig, part * 500, (part + 1) * 500, 500);
        rig.wait_settled(&mut walgate, (part + 1) * 500);
    }
    let last = rig.insert("last");
    rig.wait_confirmed(&mut walgate, &last);
    assert_eq!(rig.receiver.requests(), 2001);
    // Sixteen requests at once need sixteen connections; the client may open some more while one is being returned.
    assert!(rig.receiver.accepted() <= 64, "{} connections for 2001 requests", rig.receiver.accepted());
    rig.assert_all();
}

#[test]
fn x5_a_proxy_in_the_environment_is_not_used() {
    let (rig, canary) = (Rig::new(), Receiver::unsigned());
    let mut setup = rig.source().sink(&hook(&rig.receiver, "", QUICK)).route("**", "hook");
    for name in ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        setup = setup.env(name, &format!("http://127.0.0.1:{}", canary.port()));
    }
    let mut walgate = Walgate::run(&setup);
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    Walgate::command(&setup, &["check", "--connect", "--config", "{config}"]).expect(0, &["hook"]);
    assert_eq!(canary.accepted(), 0);
}

#[test]
fn x6_nothing_in_a_row_gets_out_of_its_place_in_the_request() {
    let rig = Rig::new();
    let setup = rig
        .source()
        .sink(&hook(&rig.receiver, "", &format!("{QUICK}, on_reject: skip")))
        .route("**", "{ sink: hook, path: \"/of/{key}?tenant={header.tenant}\" }");
    let mut walgate = Walgate::run(&setup);
    let hostile = [
        "plain",
        "a/b?c=d#e",
        "x HTTP/1.1\r\nhost: evil\r\n\r\nGET /stolen HTTP/1.1\r\n\r\n",
        "line\nbreak\ttab\u{1}\u{7f}",
        "percent%0d%0aX-Canary: 1",
        "& =+;,:@",
        "é\u{202e}\u{1f600}",
        "//evil.example/",
        "user:pw@evil.example",
        "\\evil",
    ];
    for text in hostile {
        // E'\\UXXXXXXXX' stands for any character.
        let sql: String = text.chars().map(|c| format!("\\U{:08X}", u32::from(c))).collect();
        rig.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) \
             VALUES ('order.created', E'{sql}', '{{}}', jsonb_build_object('tenant', E'{sql}', E'X-{sql}', E'{sql}'))"
        ));
    }
    let last = rig.database.value(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, headers) \
         VALUES ('order.created', 'last', '{}', '{\"tenant\": \"last\"}') RETURNING id",
    );
    rig.wait_confirmed(&mut walgate, &last);
    let receipts = rig.receiver.receipts();
    assert_eq!(rig.receiver.requests(), hostile.len() as u64 + 1, "a request for each event, and no other");
    let mut keys = Vec::new();
    for receipt in receipts.iter().filter(|receipt| receipt.id != last) {
        let key = decoded(receipt.header("walgate-key").expect("the key"));
        let path = receipt.path.strip_prefix("/hook/of/").unwrap_or_else(|| panic!("{}", receipt.path));
        let (segment, tenant) = path.split_once("?tenant=").expect("a query");
        assert!(!segment.contains('/') && !tenant.contains(['&', '#']), "{path}");
        assert_eq!([decoded(segment), decoded(tenant)], [key.clone(), key.clone()]);
        assert_eq!(decoded(receipt.header("walgate-header-tenant").expect("the header")), key);
        for name in receipt.headers.keys() {
            let known = ["host", "content-type", "content-length", "user-agent", "accept"].contains(&name.as_str());
            assert!(known || name.as_str().starts_with("walgate-") || name.as_str().starts_with("webhook-"), "{name}");
        }
        keys.push(key);
    }
    keys.sort();
    let mut expected: Vec<&str> = hostile.to_vec();
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(rig.receiver.bad_signatures(), Vec::<String>::new());
}

#[test]
fn x10_answers_that_do_harm_cost_little_memory_and_few_words() {
    const EVENTS: usize = 64;
    let rig = Rig::new();
    let setup = rig.source().sink(&hook(&rig.receiver, "", &format!("{QUICK}, on_reject: skip"))).route("**", "hook");
    let mut walgate = Walgate::run(&setup);
    let first = rig.insert("first");
    rig.wait_confirmed(&mut walgate, &first);
    let before = walgate.peak_memory_kib();

    let head = |status: &str, more: &str| format!("HTTP/1.1 {status} x\r\n{more}\r\n");
    let many: String = (0..10_000).map(|n| format!("x-{n}: {n}\r\n")).collect();
    let long = format!("x: {}\r\n", "y".repeat(1 << 20));
    let body = |status: &str, more: &str| [head(status, more).into_bytes(), b"canary-body ".repeat(2 << 20)].concat();
    // In turn: heads without measure, bodies of 24 MiB with a refusal and with a success, interim answers.
    let attacks = [
        head("200", &many).into_bytes(),
        head("200", &long).into_bytes(),
        head("100", "").repeat(100_000).into_bytes(),
        body("422", "content-length: 25165824\r\n"),
        body("200", "content-encoding: gzip\r\n"),
    ];
    rig.receiver.script(move |request| {
        // The first three are no answers: the event comes again, and gets another.
        let turn = usize::try_from(request.number).expect("a number") % 2 + 3;
        Answer::Raw(attacks[if request.attempt <= 3 { request.attempt as usize - 1 } else { turn }].clone())
    });
    insert(&rig, 0, EVENTS, EVENTS);
    walgate.eventually("every event had all of it", || rig.receiver.requests() > 4 * EVENTS as u64);
    rig.receiver.accept_all();
    let last = rig.insert("last");
    rig.wait_confirmed(&mut walgate, &last);
    let skipped = walgate.metric("walgate_events_total", &["outcome=\"skipped\""]);
    assert!(skipped.is_some_and(|count| (1.0..=EVENTS as f64).contains(&count)), "{skipped:?}");
    let grown = walgate.peak_memory_kib() - before;
    assert!(grown < 64 << 10, "{grown} KiB for answers of 24 MiB, sixteen at a time");
    walgate.terminate();
    let said = walgate.wait_for_end(DEADLINE).output();
    let longest = said.lines().map(str::len).max().unwrap_or_default();
    assert!(longest < 4096 && !said.contains("yyyy"), "a line of {longest} bytes");
    let repeated = said.lines().map(|line| line.matches("canary-body").count()).max();
    assert!(repeated.is_some_and(|count| (1..=20).contains(&count)), "{repeated:?}: a piece of the refusal is shown");
}

#[test]
fn w2_an_endpoint_that_is_gone_is_held_and_found_again_when_it_is_mended() {
    let rig = Rig::new();
    let mut walgate = Walgate::run(&rig.source().sink(&hook(&rig.receiver, "", QUICK)).route("**", "hook"));
    rig.receiver.script(|_| reply(410).into());
    let id = rig.insert("k");
    let line = walgate.wait_log(&["sink down", "410"]);
    assert!(line.contains("gone for good"), "{line}");
    let red = || walgate.metric("walgate_sink_up", &["sink=\"hook\""]) == Some(0.0);
    assert!(within(DEADLINE, red), "it is red");
    watch_for(Duration::from_millis(500));
    rig.assert_not_passed(&id);
    rig.receiver.accept_all();
    rig.wait_confirmed(&mut walgate, &id);
    rig.assert_all();
}
