//! G and W rows: receivers that fail, lie, or cannot be reached.

use std::time::Duration;

use crate::rig::Rig;
use crate::support::oracle;
use crate::support::proxy::Proxy;
use crate::support::receiver::{Answer, Receiver, ok, reply};
use crate::support::wait::{DEADLINE, eventually, watch_for};
use crate::support::walgate::Walgate;

/// The inside of `delivery: { }` with a short attempt.
const IMPATIENT: &str = "timeout: 1s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }";

#[test]
fn g2_a_lost_answer_is_followed_by_the_same_event_under_the_same_id() {
    let rig = Rig::new();
    let proxy = Proxy::to(rig.receiver.port());
    let url = format!("http://127.0.0.1:{}/hook", proxy.port());
    let mut walgate = Walgate::run(&rig.source().webhook_at("hook", &url, IMPATIENT).route("**", "hook"));
    let first = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &first);
    proxy.drop_replies(true);
    let id = rig.insert("k");
    let next = rig.insert("k");
    walgate.eventually("its answer is lost twice", || rig.receiver.receipts_of(&id).len() >= 2);
    rig.assert_not_passed(&id);
    assert!(!rig.receiver.has(&next), "the next event of the key waits");
    proxy.drop_replies(false);
    rig.wait_confirmed(&mut walgate, &next);
    let receipts = rig.receiver.receipts_of(&id);
    assert!(receipts.iter().all(|receipt| receipt.body == receipts[0].body && receipt.path == receipts[0].path));
    assert!(rig.assert_all() >= 1);
}

#[test]
fn w1_what_may_pass_is_tried_again() {
    let rig = Rig::new();
    rig.receiver.script(|request| match request.attempt {
        1 => reply([408, 425, 429, 500, 502, 503, 504][(request.number % 7) as usize]).into(),
        2 => Answer::CloseAfterBody,
        _ => ok(),
    });
    let mut walgate = rig.run();
    let ids: Vec<String> = (0..14).map(|n| rig.insert(&format!("k{}", n % 7))).collect();
    rig.wait_settled(&mut walgate, 14);
    for id in &ids {
        rig.wait_confirmed(&mut walgate, id);
    }
    assert_eq!(rig.assert_all(), 28, "three attempts each");
}

#[test]
fn w1_retry_after_is_honoured() {
    let rig = Rig::new();
    rig.receiver.script(|request| match request.attempt {
        1 => reply(429).header("Retry-After", "2").into(),
        _ => ok(),
    });
    let url = rig.receiver.url();
    let delivery = "retry: { initial: 20ms, max: 30s }";
    let mut walgate = Walgate::run(&rig.source().webhook_at("hook", &url, delivery).route("**", "hook"));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    let receipts = rig.receiver.receipts_of(&id);
    let pause = receipts[1].at - receipts[0].at;
    // Only too early is wrong: a busy machine makes it later.
    assert!(pause >= Duration::from_millis(1950), "the second attempt came after {pause:?}");
    rig.assert_all();
}

#[test]
fn w2_a_rejected_event_holds_its_key_and_no_other() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    let sound = rig.insert("well");
    rig.wait_confirmed(&mut walgate, &sound);
    rig.receiver.script(|request| if request.path.is_empty() { ok() } else { reply(422).into() });
    let poison = rig.insert("sick");
    walgate.eventually("it is rejected", || rig.receiver.has(&poison));
    rig.receiver.accept_all();
    let behind = rig.insert("sick");
    let other = rig.insert("well");
    walgate.eventually("the other key goes on", || rig.receiver.settled(&other).is_some());
    watch_for(Duration::from_millis(1500));
    assert!(!rig.receiver.has(&behind), "what follows in its key waits");
    rig.assert_not_passed(&poison);
    let line = walgate.wait_log(&[&poison]);
    assert!(line.contains("422") || walgate.stderr().contains("422"), "{line}");

    // Nothing is lost: it is still the slot's.
    rig.kill(&mut walgate);
    let mut walgate = rig.run();
    rig.wait_confirmed(&mut walgate, &other);
    rig.assert_all();
}

#[test]
fn w2_a_rejected_event_is_skipped_where_the_configuration_says_so() {
    let rig = Rig::new();
    let (url, delivery) = (rig.receiver.url(), format!("{IMPATIENT}, on_reject: skip"));
    let mut walgate = Walgate::run(&rig.source().webhook_at("hook", &url, &delivery).route("**", "hook"));
    let sound = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &sound);
    let poison = rig.database.insert("order.poison", "k", r#"{"poison": true}"#);
    // Only this one.
    let id = poison.clone();
    rig.receiver.script(move |request| if request.id == id { reply(400).into() } else { ok() });
    let next = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &next);
    if rig.receiver.settled(&poison).is_none() {
        walgate.wait_log(&[&poison]);
        assert!(walgate.metric("walgate_discarded_events_total", &[]).unwrap_or_default() >= 1.0, "it was counted");
    }
}

#[test]
fn w3_a_redirect_is_a_failure_and_is_never_followed() {
    let rig = Rig::new();
    let canary = Receiver::unsigned();
    let location = canary.url();
    rig.receiver.script(move |request| {
        let status = [301, 302, 303, 307, 308][(request.number % 5) as usize];
        reply(status).header("Location", &location).into()
    });
    let mut walgate = rig.run();
    let ids: Vec<String> = (0..5).map(|n| rig.insert(&format!("k{n}"))).collect();
    walgate.eventually("each is refused by a redirect", || ids.iter().all(|id| rig.receiver.has(id)));
    watch_for(Duration::from_millis(1500));
    assert_eq!(canary.accepted(), 0, "the redirect was followed");
    ids.iter().for_each(|id| rig.assert_not_passed(id));

    rig.kill(&mut walgate);
    rig.receiver.accept_all();
    let mut walgate = rig.run();
    rig.wait_settled(&mut walgate, 5);
    rig.wait_confirmed(&mut walgate, &ids[4]);
    rig.assert_all();
    assert_eq!(canary.accepted(), 0);
}

#[test]
fn w4_resets_and_answers_without_an_end_do_not_stop_it() {
    let rig = Rig::new();
    rig.receiver.script(|request| match request.attempt {
        1 => Answer::Reset,
        2 => Answer::CloseBeforeBody,
        3 => Answer::Never,
        // A head, and a body that goes on for longer than anybody should read.
        4 => Answer::Raw([&b"HTTP/1.1 500 no\r\ncontent-length: 90000000\r\n\r\n"[..], &[b'x'; 1 << 20]].concat()),
        _ => ok(),
    });
    let url = rig.receiver.url();
    let mut walgate = Walgate::run(&rig.source().webhook_at("hook", &url, IMPATIENT).route("**", "hook"));
    let ids: Vec<String> = (0..3).map(|n| rig.insert(&format!("k{n}"))).collect();
    rig.wait_settled(&mut walgate, 3);
    rig.wait_confirmed(&mut walgate, &ids[2]);
    rig.assert_all();
}

#[test]
fn w5_only_a_whole_status_line_for_that_request_counts() {
    let rig = Rig::new();
    rig.receiver.script(|request| match request.attempt {
        1 => Answer::Raw(b"HTTP/1.1 20".to_vec()),
        2 => Answer::Raw(Vec::new()),
        // Too late: whoever asked has gone, and must not take it for the next request's.
        3 => reply(200).after(Duration::from_millis(1600)).into(),
        4 => reply(503).into(),
        _ => ok(),
    });
    let url = rig.receiver.url();
    let mut walgate = Walgate::run(&rig.source().webhook_at("hook", &url, IMPATIENT).route("**", "hook"));
    let ids: Vec<String> = (0..3).map(|n| rig.insert(&format!("k{n}"))).collect();
    for id in &ids {
        walgate.eventually("five attempts", || rig.receiver.receipts_of(id).len() >= 5);
        rig.wait_confirmed(&mut walgate, id);
    }
    rig.assert_all();
}

#[test]
fn w5_connections_that_close_behind_an_answer_lose_nothing() {
    let rig = Rig::new();
    rig.receiver.script(|request| match request.number % 3 {
        0 => reply(200).then_close().into(),
        1 => reply(200).early().into(),
        _ => ok(),
    });
    let mut walgate = rig.run();
    let mut last = String::new();
    for n in 0..120 {
        last = rig.insert(&format!("k{}", n % 4));
    }
    rig.wait_settled(&mut walgate, 120);
    rig.wait_confirmed(&mut walgate, &last);
    rig.assert_all();
}

#[test]
fn i8_one_sick_sink_does_not_stop_another() {
    let rig = Rig::new();
    let sick = Receiver::start();
    sick.script(|_| reply(500).into());
    let setup = rig.source().webhook("well", &rig.receiver).webhook("sick", &sick).route("**", "[well, sick]");
    let mut walgate = Walgate::run(&setup);
    rig.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'k' || i % 20, jsonb_build_object('n', i) FROM generate_series(1, 500) i",
    );
    rig.wait_settled(&mut walgate, 500);
    let last = rig.insert("k");
    walgate.eventually("a fresh event passes the sick sink", || rig.receiver.settled(&last).is_some());
    assert_eq!(sick.settled_count(), 0);
    rig.assert_not_passed(&last);
    {
        let log = rig.witness.log();
        assert!(log.flush() <= log.rows[0].commit_lsn, "nothing is confirmed");
    }

    sick.accept_all();
    walgate.eventually("the sick sink catches up", || sick.settled_count() == 501);
    rig.wait_confirmed(&mut walgate, &last);
    let committed = rig.committed();
    assert_eq!(oracle::assert_reconciled(&committed, &rig.receiver.receipts()), 0);
    oracle::assert_reconciled(&committed, &sick.receipts());
    let (one, other) = (rig.receiver.all_settled(), sick.all_settled());
    let both = |id: &str| Some(*one.get(id)?.max(other.get(id)?));
    oracle::assert_wire(&rig.witness.log(), rig.confirmed_before, both);
}

#[test]
fn g1_a_receiver_that_is_down_is_found_again() {
    let rig = Rig::new();
    rig.receiver.go_down();
    let mut walgate = rig.run();
    let first = rig.insert("k");
    walgate.eventually("it is sent by PostgreSQL", || rig.witness.log().commit_end(&first).is_some());
    watch_for(Duration::from_millis(1500));
    rig.assert_not_passed(&first);
    rig.receiver.come_back();
    rig.wait_confirmed(&mut walgate, &first);
    // And again in mid-stream.
    rig.receiver.go_down();
    let second = rig.insert("k");
    watch_for(Duration::from_millis(500));
    rig.receiver.come_back();
    rig.wait_confirmed(&mut walgate, &second);
    rig.assert_all();
}

#[test]
fn g7_acknowledgements_out_of_order_confirm_nothing_before_the_oldest() {
    let rig = Rig::new();
    let mut walgate = rig.run();
    rig.receiver.hold();
    let ids: Vec<String> = (0..10).map(|number| rig.insert(&format!("k{number}"))).collect();
    eventually(DEADLINE, "all are on their way at once", || ids.iter().all(|id| rig.receiver.has(id)));
    // From the last to the second: each counts for itself, and the checkpoint waits for the first.
    for id in ids[1..].iter().rev() {
        rig.receiver.release(id);
    }
    eventually(DEADLINE, "all but the first are acknowledged", || rig.receiver.settled_count() == ids.len() - 1);
    rig.assert_not_passed(&ids[0]);
    rig.receiver.release(&ids[0]);
    rig.wait_confirmed(&mut walgate, &ids[9]);
    rig.receiver.release_all();
    rig.assert_all();
}
