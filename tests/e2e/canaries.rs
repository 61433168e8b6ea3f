//! X1, X2: a canary in every secret place of every kind of sink, at servers that are away and at servers that refuse it. None
//! shows in any log, however much is logged, on no page, in no command's output and in no error of a configuration.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::rig::Rig;
use crate::support::kafka::Kafka;
use crate::support::nats::NatsServer;
use crate::support::nats_wire::Login;
use crate::support::postgres::PASSWORD;
use crate::support::processes;
use crate::support::rabbitmq::Rabbit;
use crate::support::receiver::{SECRET, reply};
use crate::support::sqs::{KEY, Options, Server};
use crate::support::wait::{self, DEADLINE, eventually};
use crate::support::walgate::{Setup, Walgate};

/// What every canary ends with.
const MARK: &str = "9e41d7c8";
/// What cannot hold it: an nkey's seed, and base64 of `walgate:canary-basic-9e41d7c8`.
const SEED: &str = "SUANQDPB2RUOE4ETUA26CNX7FUKE5ZZKFCQIIW63OX225F2CO7UEXTM7ZY";
const BASIC: &str = "d2FsZ2F0ZTpjYW5hcnktYmFzaWMtOWU0MWQ3Yzg";
/// The mark as a list of bytes, and in hex.
const LISTS: [&str; 2] = ["57, 101, 52, 49, 100, 55, 99, 56", "3965343164376338"];

#[track_caller]
fn assert_silent(what: &str, text: &str) {
    let key = SECRET.trim_start_matches("whsec_");
    let canaries = [SEED, BASIC, key, PASSWORD, MARK].map(str::to_lowercase);
    let shown = |line: &str| {
        let line = line.to_lowercase();
        canaries.iter().map(String::as_str).chain(LISTS).any(|canary| line.contains(canary))
    };
    // The ends of long lines say whose they are.
    let end = |line: &str| line.chars().skip(line.chars().count().saturating_sub(300)).collect::<String>();
    let lines: BTreeSet<String> =
        text.lines().filter(|line| shown(line)).map(|line| format!("{line:.600} … {}", end(line))).collect();
    assert!(lines.is_empty(), "{what} shows what it must not:\n{}", Vec::from_iter(lines).join("\n"));
}

fn canary(place: &str) -> String {
    format!("canary-{place}-{MARK}")
}

/// Files with secrets in them.
struct Files(PathBuf);

impl Files {
    fn new() -> Files {
        Files(processes::folder("canaries"))
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    /// A private key that is encrypted with a passphrase.
    fn encrypted(&self, key: &Path, passphrase: &str) -> String {
        let path = self.0.join("encrypted.key").display().to_string();
        let mut command = Command::new("openssl");
        command.args(["pkcs8", "-topk8", "-in"]).arg(key).args(["-out", &path, "-passout"]);
        let output = command.arg(format!("pass:{passphrase}")).output().expect("openssl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        path
    }
}

/// Each sink by its name, its kind and the inside of that.
fn sinks(rig: &Rig, files: &Files, nats: &NatsServer, sqs: &Server) -> Vec<(&'static str, &'static str, String)> {
    let (kafka, rabbit, dead) = (Kafka::shared(), Rabbit::shared(), wait::free_port());
    let (sasl, certificates) = (kafka.ports().sasl, kafka.certificates());
    let file = |place: &str| files.write(place, &format!("{}\n", canary(place)));
    let creds = files.write(
        "creds",
        &format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{SEED}\n\
             ------END USER NKEY SEED------\n",
            canary("jwt")
        ),
    );
    let header = |kind: &str| format!("headers: {{ x-api-key: {} }}", canary(kind));
    let [key, cert] = ["client.key", "client.crt"].map(|name| certificates.join(name));
    let key = files.encrypted(&key, "another passphrase");
    let url = rig.receiver.url();
    vec![
        (
            "k_away",
            "kafka",
            format!(
                "brokers: [\"127.0.0.1:{dead}\"], topic: orders, {}, sasl: {{ mechanism: plain, username: walgate, \
                 password: \"${{K_PASSWORD}}\" }}",
                header("kafka-header")
            ),
        ),
        (
            "k_plain",
            "kafka",
            format!(
                "brokers: [\"127.0.0.1:{sasl}\"], topic: orders, sasl: {{ mechanism: plain, username: walgate, \
                 password: {} }}",
                canary("plain")
            ),
        ),
        (
            "k_scram",
            "kafka",
            format!(
                "brokers: [\"127.0.0.1:{sasl}\"], topic: orders, sasl: {{ mechanism: scram-sha-256, username: walgate, \
                 password_file: {:?} }}, properties: {{ debug: \"security,broker,conf\" }}",
                file("scram")
            ),
        ),
        (
            "k_token",
            "kafka",
            format!(
                "brokers: [\"127.0.0.1:{sasl}\"], topic: orders, sasl: {{ mechanism: oauthbearer, token_file: {:?} }}",
                file("token")
            ),
        ),
        (
            "k_tls",
            "kafka",
            format!(
                "brokers: [\"127.0.0.1:{dead}\"], topic: orders, tls: {{ cert_file: {cert:?}, key_file: {key:?}, \
                 key_password: {} }}",
                canary("passphrase")
            ),
        ),
        (
            "n_password",
            "nats",
            format!(
                "servers: [\"127.0.0.1:{}\"], subject: orders, user: walgate, password: {}, {}",
                nats.port(),
                canary("nats"),
                header("nats-header")
            ),
        ),
        (
            "n_token",
            "nats",
            format!("servers: [\"127.0.0.1:{}\"], subject: orders, token_file: {:?}", nats.port(), file("nats-token")),
        ),
        ("n_nkey", "nats", format!("servers: [\"127.0.0.1:{}\"], subject: orders, nkey: {SEED}", nats.port())),
        ("n_creds", "nats", format!("servers: [\"127.0.0.1:{dead}\"], subject: orders, creds_file: {creds:?}")),
        (
            "r_url",
            "rabbitmq",
            format!(
                "url: \"amqp://walgate:{}@127.0.0.1:{}\", routing_key: orders, {}",
                canary("rabbit"),
                rabbit.port(),
                header("rabbit-header")
            ),
        ),
        (
            "r_file",
            "rabbitmq",
            format!(
                "urls: [\"amqp://127.0.0.1:{}\", \"amqp://127.0.0.1:{dead}\"], routing_key: orders, user: walgate, \
                 password_file: {:?}",
                rabbit.port(),
                file("rabbit-file")
            ),
        ),
        (
            "s_key",
            "sqs",
            format!(
                "endpoint: \"http://127.0.0.1:{}\", region: us-east-1, queue: orders, access_key_id: AKIA{}, \
                 secret_access_key: \"${{S_SECRET}}\", session_token: {}",
                sqs.port(),
                MARK.to_uppercase(),
                canary("session")
            ),
        ),
        (
            "s_away",
            "sqs",
            format!(
                "endpoint: \"http://127.0.0.1:{dead}\", region: us-east-1, queue: orders, access_key_id: AKIA{}, \
                 secret_access_key_file: {:?}",
                MARK.to_uppercase(),
                file("sqs-file")
            ),
        ),
        (
            "w_refused",
            "webhook",
            format!(
                "url: \"{url}?token={}\", secret: {SECRET:?}, basic_auth: {{ username: walgate, password: {} }}, {}",
                canary("query"),
                canary("basic"),
                header("webhook-header")
            ),
        ),
        (
            "w_away",
            "webhook",
            format!(
                "url: \"http://127.0.0.1:{dead}/?token={}\", secret_file: {:?}, bearer_token: \"${{W_BEARER}}\"",
                canary("query"),
                files.write("webhook", SECRET)
            ),
        ),
    ]
}

/// The sinks that have an error to show.
fn failed(status: Option<Value>) -> BTreeSet<String> {
    let status = status.unwrap_or_default();
    let sinks = status["sinks"].as_array().cloned().unwrap_or_default();
    let names = sinks.iter().filter(|sink| sink["last_error"]["message"].is_string());
    names.filter_map(|sink| sink["name"].as_str().map(str::to_owned)).collect()
}

#[test]
fn x1_no_kind_of_sink_tells_a_secret_of_any_place() {
    let (rig, files) = (Rig::new(), Files::new());
    let login = Login { connect: Some(json!({ "user": "walgate", "pass": "right" })), tls: None };
    let nats = NatsServer::with("authorization { user: walgate, password: right }", login);
    let sqs = Server::with(Options { access_key_id: Some(KEY), ..Options::default() });
    // It says again whatever it was told.
    rig.receiver.script(|request| {
        let value = |name| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let said = format!("{} {} {}", value("x-api-key"), value("authorization"), request.path);
        reply(403).header("x-echo", &said).body(said).into()
    });
    let all = sinks(&rig, &files, &nats, &sqs);
    let names: Vec<&str> = all.iter().map(|(name, ..)| *name).collect();
    let mut setup = rig.source().route("**", &format!("[{}]", names.join(", ")));
    for (name, kind, inside) in &all {
        setup = setup.sink(&format!(
            "{name}: {{ {kind}: {{ {inside} }}, delivery: {{ timeout: 2s, retry: {{ initial: 50ms, max: 500ms, \
             connection_max: 200ms }} }} }}"
        ));
    }
    for (name, place) in [("K_PASSWORD", "kafka"), ("S_SECRET", "sqs"), ("W_BEARER", "bearer")] {
        setup = setup.env(name, &canary(place));
    }
    let event = rig.insert("k");
    // All that walgate and its libraries have to say; and those that are silent unless they are named.
    for (format, filter) in [("human", "trace"), ("json", "trace,async_nats=trace,aws_=trace,lapin=trace")] {
        let setup = setup.clone().env("WALGATE_LOG", filter).env("WALGATE_LOG_FORMAT", format);
        for arguments in [&["check", "--config", "{config}"][..], &["check", "--connect", "--config", "{config}"]] {
            let ended = Walgate::command(&setup, arguments);
            assert!(names.iter().all(|name| ended.output().contains(name)), "{}", ended.output());
            assert_silent(&format!("{arguments:?}, {filter}"), &ended.output());
        }
        let mut walgate = Walgate::run(&setup);
        let command_line = processes::command_line(walgate.pid());
        eventually(DEADLINE, "every sink has failed", || failed(walgate.status()).len() == all.len());
        for page in ["/status", "/metrics", "/readyz", "/livez", "/"] {
            assert_silent(page, &walgate.page(page).map(|(_, body)| body).unwrap_or_default());
        }
        for arguments in [&["status", "--config", "{config}"][..], &["status", "--json", "--config", "{config}"]] {
            assert_silent("status", &Walgate::command(&setup, arguments).output());
        }
        walgate.wait_log(&["librdkafka: "]);
        rig.assert_not_passed(&event);
        walgate.terminate();
        let ended = walgate.wait_for_end(DEADLINE);
        assert_silent(&format!("the log, {format}, {filter}"), &ended.output());
        assert_silent("the command line", &command_line);
        rig.database.confirmed_when_released();
    }
}

/// A sink of each kind with one secret in it, which stands where `CANARY` is.
const PLACES: [&str; 22] = [
    "kafka: { brokers: [localhost], topic: t, sasl: { mechanism: plain, username: u, password: CANARY } }",
    "kafka: { brokers: ['u:CANARY@localhost:1'], topic: t }",
    "kafka: { brokers: ['localhost:1'], topic: t, tls: { key_password: CANARY } }",
    "kafka: { brokers: ['localhost:1'], topic: t, headers: { walgate-x: CANARY } }",
    "kafka: { brokers: ['localhost:1'], topic: t, properties: { sasl.password: CANARY } }",
    "kafka: { brokers: ['localhost:1'], topic: t, properties: { batch.size: CANARY } }",
    "kafka: { brokers: ['localhost:1'], topic: t, sasl: { mechanism: oauthbearer, oidc: { token_url: 'ftp://u:CANARY@h', \
     client_id: i, client_secret: CANARY } } }",
    "nats: { servers: ['nats://u:CANARY@localhost'], subject: s }",
    "nats: { servers: ['localhost'], subject: s, password: CANARY }",
    "nats: { servers: ['localhost'], subject: s, user: u, password: p, token: CANARY }",
    "nats: { servers: ['localhost'], subject: s, nkey: CANARY }",
    "nats: { servers: ['localhost'], subject: s, creds: CANARY }",
    "nats: { servers: ['localhost'], subject: s, headers: { 'x y': CANARY } }",
    "rabbitmq: { url: 'amqp://u:CANARY@localhost:x', routing_key: r }",
    "rabbitmq: { url: 'http://u:CANARY@localhost', routing_key: r }",
    "rabbitmq: { url: 'amqp://localhost', password: CANARY, routing_key: r }",
    "rabbitmq: { url: 'amqp://localhost', headers: { 'x-y': CANARY, CC: CANARY }, routing_key: r }",
    "sqs: { queue: q, secret_access_key: CANARY }",
    "sqs: { queue: q, session_token: CANARY }",
    "sqs: { queue: q, access_key_id: CANARY }",
    "webhook: { url: 'http://u:CANARY@localhost/', secret: CANARY }",
    "webhook: { url: 'http://localhost/', secret: CANARY, bearer_token: CANARY, basic_auth: { username: u, password: CANARY } }",
];

#[test]
fn x1_no_error_of_a_sinks_configuration_tells_its_secret() {
    for place in PLACES {
        let (kind, inside) = place.split_once(": { ").expect("a kind");
        let variants = [
            place.replace("CANARY", &canary("x")),
            place.replace("CANARY", &format!("[{}]", canary("list"))),
            place.replace("CANARY", &format!("{{ a: {} }}", canary("map"))),
            format!("{kind}: {{ nonsense: 1, {}", inside.replace("CANARY", &canary("beside"))),
            format!("{kind}: {{ nonsense: {}, {}", canary("unknown"), inside.replace("CANARY", "x")),
            format!("{kind}: {}", canary("whole")),
        ];
        // A password in an address is a text.
        let in_address = |variant: &&String| !(place.contains(":CANARY@") && variant.contains("{ a: "));
        for variant in variants.iter().filter(in_address) {
            let text = format!(
                "source: {{ url: \"postgres://walgate@127.0.0.1:1/shop\" }}\nsinks:\n  a: {{ {variant} }}\n\
                 routes:\n  - {{ event_type: \"**\", to: a }}\n"
            );
            for arguments in [&["check", "--config", "{config}"][..], &["check", "--json", "--config", "{config}"]] {
                let ended = Walgate::command(&Setup::literal(text.clone()), arguments);
                assert_eq!(ended.code, Some(2), "{variant}: {}", ended.output());
                assert_silent(&variant.replace(MARK, "..."), &ended.output());
            }
        }
    }
}
