//! K3, G8: rights that are denied or taken away, and tokens that expire.

use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::{assert_flushes, assert_stored, bus, check, kept, last_error, strict, wait_sent};
use crate::rig::Rig;
use crate::support::kafka::{Kafka, token};
use crate::support::kafka_wire::{Acl, Operation};
use crate::support::processes;
use crate::support::wait::{DEADLINE, eventually, watch_for};
use crate::support::walgate::{Setup, Walgate};

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

/// A file for tokens.
fn file() -> PathBuf {
    processes::folder("token").join("token")
}

/// Replaces the file whole, as those do who issue tokens.
fn issue(file: &Path, user: &str, lifetime: Duration) {
    let new = file.with_extension("new");
    std::fs::write(&new, token(user, lifetime)).expect("a token");
    std::fs::rename(&new, file).expect("the token in its place");
}

/// Everything goes to the topic, with the token in the file.
fn by_token(rig: &Rig, kafka: &Kafka, file: &Path, topic: &str, delivery: &str) -> Setup {
    let more = format!(", topic: \"{topic}\", sasl: {{ mechanism: oauthbearer, token_file: {file:?} }}");
    rig.source().sink(&bus(kafka.ports().sasl, &more, delivery)).route("**", "bus")
}

/// The broker knows each user by the token alone: one for every test.
fn denied<'a>(topic: &'a str, principal: &'a str, operation: Operation) -> Acl<'a> {
    Acl { topic, principal, operation, allow: false }
}

#[test]
fn k3_g8_a_right_that_is_taken_away_holds_the_sink_until_it_is_given_back() {
    let (rig, kafka, file) = (Rig::new(), strict(), file());
    let (topic, mut wire) = (kafka.topic(2), kafka.wire());
    issue(&file, "clerk", LONG);
    let setup = by_token(&rig, kafka, &file, &topic, super::IMPATIENT);
    let mut walgate = Walgate::run(&setup);
    let first = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &first);
    let says = format!("topic `{topic}` on 127.0.0.1:{} is denied to the user: grant it", kafka.ports().sasl);
    // The right to look at the topic goes with that to write; without it, the refusal comes with the record.
    for operation in [Operation::All, Operation::Write] {
        let denied = denied(&topic, "User:clerk", operation);
        wire.add_acl(&denied);
        let waits = rig.insert("k1");
        super::insert(&rig, 0, 200, 10);
        wait_sent(&rig, &mut walgate, &waits);
        eventually(DEADLINE, "the refusal is told", || last_error(&walgate).contains(&says));
        if operation == Operation::All {
            check(&setup).expect(3, &[&says]);
        }
        rig.assert_not_passed(&waits);
        wire.remove_acl(&denied);
        rig.wait_confirmed(&mut walgate, &waits);
    }
    walgate.wait_log(&[&says]);
    let last = rig.insert("k0");
    rig.wait_confirmed(&mut walgate, &last);
    let repeats = assert_stored(&rig.committed(), &wire.read_all(&topic));
    eprintln!("{repeats} repeats");
    assert_flushes(&rig);
}

#[test]
fn k3_a_denied_topic_that_an_event_names_is_that_events_fault() {
    let (rig, kafka, file) = (Rig::new(), strict(), file());
    let (good, bad, hidden) = (kafka.topic(1), kafka.topic(1), kafka.topic(1));
    let mut wire = kafka.wire();
    issue(&file, "porter", LONG);
    wire.add_acl(&denied(&bad, "User:porter", Operation::Write));
    wire.add_acl(&denied(&hidden, "User:porter", Operation::All));
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT CASE i % 10 WHEN 3 THEN '{bad}' \
         WHEN 6 THEN '{hidden}' ELSE '{good}' END, 'k' || i % 10, '{{}}' FROM generate_series(1, 200) i"
    ));
    let delivery = format!("{}, on_reject: skip", super::IMPATIENT);
    let mut walgate = Walgate::run(&by_token(&rig, kafka, &file, "{event_type}", &delivery));
    let last = rig.database.insert(&good, "k0", "{}");
    rig.wait_confirmed(&mut walgate, &last);
    for topic in [&bad, &hidden] {
        walgate.wait_log(&[&format!("topic `{topic}` on"), "is denied to the user: grant it the operation Write"]);
        assert!(wire.read_all(topic).is_empty(), "{topic}");
    }
    assert_eq!(super::rejected(&walgate), 40);
    let committed = kept(rig.committed(), |event| !["k3", "k6"].contains(&event.key.as_deref().expect("a key")));
    let repeats = assert_stored(&committed, &wire.read_all(&good));
    eprintln!("{repeats} repeats");
}

#[test]
fn k3_a_user_without_the_right_to_write_in_order_is_told_which_right_that_is() {
    let (rig, kafka, file) = (Rig::new(), strict(), file());
    let (topic, mut wire) = (kafka.topic(1), kafka.wire());
    issue(&file, "guest", LONG);
    let cluster = denied("*", "User:guest", Operation::IdempotentWrite);
    // Whoever may write to some topic may have a producer's number, since Kafka 2.8.
    let any = denied("*", "User:guest", Operation::Write);
    wire.add_acl(&cluster);
    wire.add_acl(&any);
    let mut walgate = Walgate::run(&by_token(&rig, kafka, &file, &topic, super::IMPATIENT));
    let id = rig.insert("k");
    wait_sent(&rig, &mut walgate, &id);
    walgate.wait_log(&["grant the user the operation IdempotentWrite on the cluster"]);
    rig.assert_not_passed(&id);
    wire.remove_acl(&any);
    wire.remove_acl(&cluster);
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(assert_stored(&rig.committed(), &wire.read_all(&topic)), 0);
}

#[test]
fn g8_a_token_is_replaced_before_it_expires() {
    let (rig, kafka, file) = (Rig::new(), strict(), file());
    let (topic, lifetime) = (kafka.topic(1), Duration::from_secs(5));
    issue(&file, "walgate", lifetime);
    let mut walgate = Walgate::run(&by_token(&rig, kafka, &file, &topic, super::IMPATIENT));
    std::thread::scope(|scope| {
        let (over, told) = std::sync::mpsc::channel::<()>();
        // A new one every second, until the other end is gone.
        scope.spawn(move || {
            while told.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
                issue(&file, "walgate", lifetime);
            }
        });
        let first = rig.insert("k");
        rig.wait_confirmed(&mut walgate, &first);
        // The broker ends a session with its token, and takes no token that has expired.
        for _ in 0..2 {
            watch_for(lifetime + Duration::from_secs(1));
            let id = rig.insert("k");
            rig.wait_confirmed(&mut walgate, &id);
        }
        drop(over);
    });
    assert_eq!(assert_stored(&rig.committed(), &kafka.wire().read_all(&topic)), 0);
}

#[test]
fn g8_a_token_that_has_expired_is_told_by_its_file_and_a_new_one_heals() {
    let (rig, kafka, file) = (Rig::new(), strict(), file());
    let topic = kafka.topic(1);
    issue(&file, "walgate", Duration::ZERO);
    let setup = by_token(&rig, kafka, &file, &topic, super::IMPATIENT);
    let name = file.display().to_string();
    check(&setup).expect(3, &["token file", &name, "expired"]);
    let mut walgate = Walgate::run(&setup);
    let id = rig.insert("k");
    walgate.wait_log(&["token file", &name, "expired"]);
    wait_sent(&rig, &mut walgate, &id);
    rig.assert_not_passed(&id);
    let shown = std::fs::read_to_string(&file).expect("the token");
    assert!(!walgate.said().contains(&shown), "the token is shown");
    issue(&file, "walgate", LONG);
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(assert_stored(&rig.committed(), &kafka.wire().read_all(&topic)), 0);
}

/// In a build with `--features full,kafka-oidc`.
#[cfg(feature = "kafka-oidc")]
#[test]
fn tokens_come_from_a_provider() {
    use crate::support::receiver::{Receiver, reply};

    let (rig, kafka) = (Rig::new(), strict());
    let (topic, provider) = (kafka.topic(1), Receiver::unsigned());
    provider.script(|request| {
        let grant =
            serde_json::json!({ "access_token": token("walgate", LONG), "expires_in": 3600, "token_type": "Bearer" });
        match request.path {
            "/token" => reply(200).header("content-type", "application/json").body(grant.to_string()).into(),
            _ => reply(404).into(),
        }
    });
    let oidc = |path: &str| {
        let url = format!("http://127.0.0.1:{}{path}", provider.port());
        format!(
            ", topic: \"{topic}\", sasl: {{ mechanism: oauthbearer, oidc: {{ token_url: {url:?}, client_id: shop, \
             client_secret: hunter2-hunter2 }} }}"
        )
    };
    let port = kafka.ports().sasl;
    check(&rig.source().sink(&bus(port, &oidc("/nothing"), super::IMPATIENT)).route("**", "bus"))
        .expect(3, &["does not accept the credentials"]);
    let mut walgate =
        Walgate::run(&rig.source().sink(&bus(port, &oidc("/token"), super::IMPATIENT)).route("**", "bus"));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(assert_stored(&rig.committed(), &kafka.wire().read_all(&topic)), 0);
}
