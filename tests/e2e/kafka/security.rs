//! X1, X12: TLS, and passwords that are taken or refused and never shown.

use std::path::Path;

use super::{check, strict};
use crate::rig::Rig;
use crate::support::impostor::Trusted;
use crate::support::kafka::{Kafka, token};
use crate::support::processes;
use crate::support::wait::DEADLINE;
use crate::support::walgate::{Setup, Walgate};

/// The inside of `delivery: { }`. A young broker takes its time for its first handshakes.
const PATIENT: &str = "timeout: 10s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }";
const WRONG: &str = "canary-kafka-password-77e1";

/// `tls:` with this CA.
fn tls(ca: &Path) -> String {
    format!(", tls: {{ ca_file: {ca:?} }}")
}

/// `sasl:` for the user that the brokers know.
fn sasl(mechanism: &str, password: &str) -> String {
    format!(", sasl: {{ mechanism: {mechanism}, username: walgate, password: {password:?} }}")
}

/// A sink of this name; `host` is as the configuration has it.
fn sink(setup: Setup, name: &str, host: &str, port: u16, topic: &str, more: &str) -> Setup {
    setup.sink(&format!(
        "{name}: {{ kafka: {{ brokers: [\"{host}:{port}\"], topic: {topic}{more} }}, delivery: {{ {PATIENT} }} }}"
    ))
}

#[test]
fn x12_every_way_to_log_in_works_with_and_without_tls() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let ports = kafka.ports();
    let trusted = tls(&kafka.certificates().join("ca.crt"));
    let file = processes::folder("token").join("token");
    std::fs::write(&file, token("walgate", std::time::Duration::from_secs(600))).expect("a token");
    let bearer = format!(", sasl: {{ mechanism: oauthbearer, token_file: {file:?} }}");
    let mut ways = vec![("tls".to_owned(), ports.tls, trusted.clone())];
    for (name, login) in [
        ("scram256", sasl("scram-sha-256", "secret")),
        ("scram512", sasl("scram-sha-512", "secret")),
        ("plain", sasl("plain", "secret")),
        ("bearer", bearer),
    ] {
        ways.push((name.to_owned(), ports.sasl, login.clone()));
        ways.push((format!("{name}-tls"), ports.sasl_tls, format!("{login}{trusted}")));
    }
    let topics: Vec<String> = ways.iter().map(|_| kafka.topic(1)).collect();
    let mut setup = rig.source();
    for ((name, port, more), topic) in ways.iter().zip(&topics) {
        setup = sink(setup, name, "localhost", *port, topic, more);
    }
    let names: Vec<&str> = ways.iter().map(|(name, ..)| &**name).collect();
    let setup = setup.route("**", &format!("[{}]", names.join(", ")));
    let answers: Vec<String> = names.iter().map(|name| format!("sink {name} (kafka) answers")).collect();
    check(&setup).expect(0, &answers.iter().map(String::as_str).collect::<Vec<_>>());
    let mut walgate = Walgate::run(&setup);
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    for (topic, name) in topics.iter().zip(&names) {
        let stored = kafka.wire().read_all(topic);
        assert_eq!((stored.len(), stored[0].id()), (1, &*id), "{name}");
    }
    // Who listens on the way reads these.
    for name in ["plain", "bearer"] {
        walgate.wait_log(&["WARN", &format!("\"sink\":\"{name}\""), "in clear text"]);
    }
}

#[test]
fn x12_who_is_not_trusted_is_told_why() {
    let (rig, kafka, strangers) = (Rig::new(), Kafka::shared(), Trusted::new());
    let (topic, ours) = (kafka.topic(1), kafka.certificates().join("ca.crt"));
    let ports = kafka.ports();
    let nowhere = Path::new("/nonexistent/ca.crt");
    for (more, port, says) in [
        (tls(&strangers.ca_file), ports.tls, vec!["certificate", "check `tls`"]),
        (tls(nowhere), ports.tls, vec!["/nonexistent/ca.crt", "check `tls`"]),
        (format!("{}{}", tls(&ours), sasl("scram-sha-512", WRONG)), ports.sasl_tls, vec!["check `sasl`"]),
    ] {
        let setup = sink(rig.source(), "bus", "localhost", port, &topic, &more).route("**", "bus");
        let ended = check(&setup);
        ended.expect(3, &[&[&*format!("localhost:{port}")], &says[..]].concat());
        assert!(!ended.output().contains("canary"), "{}", ended.output());
    }
    // Told to trust anybody, it does, and says so.
    let setup = sink(rig.source(), "bus", "localhost", ports.tls, &topic, ", tls: { insecure_skip_verify: true }");
    let mut walgate = Walgate::run(&setup.route("**", "bus"));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    walgate.wait_log(&["WARN", "tls.insecure_skip_verify is set"]);
}

#[test]
fn x12_a_broker_that_wants_a_certificate_gets_it() {
    let (rig, kafka) = (Rig::new(), strict());
    let (topic, port) = (kafka.topic(1), kafka.ports().tls);
    let file = |name: &str| kafka.certificates().join(name);
    let ca = format!("ca_file: {:?}", file("ca.crt"));
    let with = format!("{ca}, cert_file: {:?}, key_file: {:?}", file("client.crt"), file("client.key"));
    let setup = |tls: &str| {
        sink(rig.source(), "bus", "localhost", port, &topic, &format!(", tls: {{ {tls} }}")).route("**", "bus")
    };
    check(&setup(&with)).expect(0, &["sink bus (kafka) answers"]);
    let mut walgate = Walgate::run(&setup(&with));
    let id = rig.insert("k");
    rig.wait_confirmed(&mut walgate, &id);
    assert_eq!(kafka.wire().read_all(&topic)[0].id(), id);
    check(&setup(&ca)).expect(3, &[&format!("localhost:{port}"), "certificate"]);
}

#[test]
fn x1_a_wrong_password_is_told_and_not_shown() {
    let (rig, kafka) = (Rig::new(), Kafka::shared());
    let (topic, port) = (kafka.topic(1), kafka.ports().sasl);
    for mechanism in ["plain", "scram-sha-256", "scram-sha-512"] {
        let setup = sink(rig.source(), "bus", "localhost", port, &topic, &sasl(mechanism, WRONG)).route("**", "bus");
        let ended = check(&setup);
        ended.expect(3, &[&format!("localhost:{port}"), "does not accept the credentials"]);
        assert!(!ended.output().contains("canary"), "{}", ended.output());
    }
    let setup = sink(rig.source(), "bus", "localhost", port, &topic, &sasl("scram-sha-256", WRONG)).route("**", "bus");
    let mut walgate = Walgate::run(&setup.env("WALGATE_LOG", "debug"));
    let id = rig.insert("k");
    walgate.wait_log(&["does not accept the credentials", "check `sasl`"]);
    super::wait_sent(&rig, &mut walgate, &id);
    rig.assert_not_passed(&id);
    let mut seen = walgate.status().expect("a status").to_string();
    seen += &walgate.page("/metrics").expect("metrics").1;
    walgate.terminate();
    seen += &walgate.wait_for_end(DEADLINE).output();
    assert!(!seen.contains("canary"), "the password is shown in:\n{seen}");
    assert!(kafka.wire().read_all(&topic).is_empty());
}
