//! Servers that are not who they should be (G8, X12): every sink at once, for each thing that can be wrong with a
//! certificate. None is believed, none is told anything, and the reason is there to be read.

use serde_json::Value;

use crate::parking::with_tables;
use crate::rig::Rig;
use crate::support::impostor::{FAULTS, Fault, Impostor, Trusted};
use crate::support::postgres::Postgres;
use crate::support::receiver::SECRET;
use crate::support::wait::{DEADLINE, eventually};
use crate::support::walgate::Walgate;

/// A kind of sink: what its servers say before TLS begins, and its configuration for a port and a CA file.
struct Kind {
    name: &'static str,
    greeting: &'static [u8],
    config: fn(u16, &str) -> String,
}

const KINDS: &[Kind] = &[
    #[cfg(feature = "webhook")]
    Kind {
        name: "webhook",
        greeting: b"",
        config: |port, ca| format!("url: \"https://localhost:{port}/hook\", secret: {SECRET:?}, ca_file: {ca:?}"),
    },
    #[cfg(feature = "kafka")]
    Kind {
        name: "kafka",
        greeting: b"",
        config: |port, ca| {
            format!(
                "brokers: [\"localhost:{port}\"], topic: orders, tls: {{ ca_file: {ca:?} }}, \
                 sasl: {{ mechanism: plain, username: walgate, password: {SECRET:?} }}"
            )
        },
    },
    #[cfg(feature = "rabbitmq")]
    Kind {
        name: "rabbitmq",
        greeting: b"",
        config: |port, ca| {
            format!(
                "url: \"amqps://walgate:{SECRET}@localhost:{port}\", routing_key: orders, tls: {{ ca_file: {ca:?} }}"
            )
        },
    },
    #[cfg(feature = "sqs")]
    Kind {
        name: "sqs",
        greeting: b"",
        config: |port, ca| {
            format!(
                "endpoint: \"https://localhost:{port}\", region: us-east-1, access_key_id: AKIAWALGATETEST00001, \
                 secret_access_key: {SECRET}, queue: orders, ca_file: {ca:?}"
            )
        },
    },
    #[cfg(feature = "nats")]
    Kind {
        name: "nats",
        greeting: b"INFO {\"server_id\":\"X\",\"version\":\"2.10.0\",\"proto\":1,\"headers\":true,\"jetstream\":true,\
            \"max_payload\":1048576,\"tls_required\":true}\r\n",
        config: |port, ca| {
            format!(
                "servers: [\"tls://localhost:{port}\"], subject: orders.all, user: walgate, password: {SECRET:?}, \
                 tls: {{ ca_file: {ca:?} }}"
            )
        },
    },
];

#[test]
fn g8_x12_no_sink_believes_a_server_with_a_bad_certificate() {
    let (rig, trusted) = (Rig::new(), Trusted::new());
    let ca = trusted.ca_file.to_str().expect("a path");
    let event = rig.insert("k");
    for fault in [Fault::None].into_iter().chain(FAULTS) {
        let impostors: Vec<Impostor> =
            KINDS.iter().map(|kind| Impostor::start(&trusted, fault, kind.greeting)).collect();
        let mut setup = rig.source();
        for (kind, impostor) in KINDS.iter().zip(&impostors) {
            let Kind { name, config, .. } = kind;
            let config = config(impostor.port(), ca);
            setup = setup.sink(&format!(
                "{name}: {{ {name}: {{ {config} }}, delivery: {{ timeout: 1s, retry: {{ initial: 20ms, max: 200ms, \
                 connection_max: 200ms }} }} }}"
            ));
        }
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let mut walgate = Walgate::run(&setup.route("**", &format!("[{}]", names.join(", "))));
        for (kind, impostor) in KINDS.iter().zip(&impostors) {
            let name = kind.name;
            if fault == Fault::None {
                eventually(DEADLINE, &format!("{name} believes the control"), || impostor.believed() > 0);
                continue;
            }
            let mut error = String::new();
            eventually(DEADLINE, &format!("{name} meets {fault:?} twice, and says what is wrong"), || {
                error = last_error(walgate.status(), name).unwrap_or_default();
                impostor.connections() >= 2 && error.contains("certificate")
            });
            assert!(error.contains("localhost"), "{name}, {fault:?}: {error}");
            assert_eq!(impostor.believed(), 0, "{name} believes {fault:?}");
            let heard = String::from_utf8_lossy(&impostor.heard()).into_owned();
            assert_eq!(heard, "", "{name} speaks to {fault:?}");
        }
        rig.assert_not_passed(&event);
        walgate.kill9();
        rig.database.confirmed_when_released();
    }
}

#[test]
fn x12_another_ca_in_the_same_file_is_taken_up_by_a_reload() {
    let rig = Rig::with(with_tables(Postgres::shared().database().with_keyed_outbox()));
    let (stranger, trusted) = (Trusted::new(), Trusted::new());
    // All of them trust a CA that has signed nothing.
    let ca = crate::support::processes::folder("ca").join("ca.crt");
    std::fs::copy(&stranger.ca_file, &ca).expect("a file");
    let impostors: Vec<Impostor> =
        KINDS.iter().map(|kind| Impostor::start(&trusted, Fault::None, kind.greeting)).collect();
    let mut setup = rig.source();
    for (kind, impostor) in KINDS.iter().zip(&impostors) {
        let name = kind.name;
        let config = (kind.config)(impostor.port(), ca.to_str().expect("a path"));
        setup = setup.sink(&format!(
            "{name}: {{ {name}: {{ {config} }}, delivery: {{ timeout: 1s, park_after: 1s, retry: {{ initial: 20ms, max: 200ms, \
             connection_max: 200ms }} }} }}"
        ));
    }
    let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let setup = setup.route("**", &format!("[{}]", names.join(", ")));
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let event = rig.insert("k");
    for (name, impostor) in names.iter().zip(&impostors) {
        eventually(DEADLINE, &format!("{name} does not believe it"), || {
            last_error(walgate.status(), name).is_some_and(|error| error.contains("certificate"))
        });
        assert_eq!(impostor.believed(), 0, "{name}");
    }
    rig.wait_confirmed(&mut walgate, &event);
    std::fs::copy(&trusted.ca_file, &ca).expect("a file");
    let line = crate::reload::hup(&mut walgate, &file, &setup.yaml());
    let all = format!("made anew: {}", names.join(", "));
    assert!(line.contains("configuration reloaded") && line.contains(&all), "{line}");
    for (name, impostor) in names.iter().zip(&impostors) {
        eventually(DEADLINE, &format!("{name} believes it now"), || impostor.believed() > 0);
    }
}

fn last_error(status: Option<Value>, name: &str) -> Option<String> {
    let status = status?;
    let sink = status["sinks"].as_array()?.iter().find(|sink| sink["name"] == name)?;
    Some(sink["last_error"]["message"].as_str()?.to_owned())
}
