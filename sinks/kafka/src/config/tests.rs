use serde_json::{Value, json};
use walgate_sink::erase;

use super::*;
use crate::KafkaFactory;

/// The issues of a configuration, each with its path.
fn issues(config: Value) -> Vec<String> {
    let factory = erase::<KafkaFactory>();
    let show = |issue: &ConfigIssue| {
        let segment = |segment: &PathSegment| match segment {
            PathSegment::Key(key) => key.clone(),
            PathSegment::Index(index) => index.to_string(),
        };
        format!("{}: {issue}", issue.path.iter().map(segment).collect::<Vec<_>>().join("."))
    };
    match factory.parse(config) {
        Ok(parsed) => factory.validate(&parsed).iter().map(show).collect(),
        Err(issue) => vec![show(&issue)],
    }
}

fn with(more: Value) -> Value {
    let mut config = json!({ "brokers": ["localhost:9092"], "topic": "orders.{event_type}" });
    let (Some(keys), Value::Object(more)) = (config.as_object_mut(), more) else { panic!("objects") };
    keys.extend(more);
    config
}

fn scram() -> Value {
    json!({ "mechanism": "scram-sha-256", "username": "walgate", "password": "canary-9f" })
}

#[test]
fn sound_configurations_have_no_issues() {
    for more in [
        json!({}),
        json!({ "brokers": ["a:1", "b.example:9092", "[::1]:9092", "10.0.0.1:65535"] }),
        json!({ "topic": null, "key": "{header.tenant}" }),
        json!({ "sasl": scram() }),
        json!({ "sasl": { "mechanism": "plain", "username": "u", "password": "p" }, "tls": {} }),
        json!({ "sasl": { "mechanism": "oauthbearer", "token_file": "/run/token" } }),
        json!({ "tls": { "ca_file": "ca.pem", "cert_file": "c.pem", "key_file": "k.pem", "key_password": "p" } }),
        json!({ "tls": { "insecure_skip_verify": true } }),
        json!({ "create_topics": {} }),
        json!({ "create_topics": { "partitions": 6, "replication": 3, "config": { "retention.ms": 604_800_000 } } }),
        json!({ "compression": "zstd", "partitioner": "crc32", "tombstones": true, "max_message": "5MiB" }),
        json!({ "statistics": "0s", "buffer": "1MiB", "client_id": "shop" }),
        json!({ "headers": { "x-region": "eu" }, "envelope": { "cloudevents": { "source": "/shop" } } }),
        json!({ "properties": { "linger.ms": 5, "client.rack": "a", "socket.nagle.disable": true } }),
    ] {
        assert_eq!(issues(with(more.clone())), Vec::<String>::new(), "{more}");
    }
}

#[test]
fn each_fault_stands_at_its_place() {
    for (more, expected) in [
        (json!({ "brokers": [] }), "brokers: it is empty"),
        (json!({ "brokers": ["a:1", "b"] }), "brokers.1: it is not an address"),
        (json!({ "brokers": ["a:0"] }), "brokers.0: it is not an address"),
        (json!({ "brokers": ["a:+1"] }), "brokers.0: it is not an address"),
        (json!({ "brokers": ["a,b:1"] }), "brokers.0: it is not an address"),
        (json!({ "brokers": ["::1:9092"] }), "brokers.0: it is not an address"),
        (json!({ "brokers": ["ssl://a:1"] }), "brokers.0: it has a scheme"),
        (json!({ "brokers": ["u:canary-1@a:1"] }), "brokers.0: credentials do not belong"),
        (json!({ "topic": "a b" }), "topic: it holds ` `"),
        (json!({ "headers": { "id": "x" } }), "headers.id: it is reserved"),
        (json!({ "headers": { "ce_x": "x" }, "envelope": "cloudevents" }), "headers.ce_x: it is one of those"),
        (json!({ "max_message": "1B" }), "max_message: it must be 1000B to 1GB"),
        (json!({ "buffer": "1KiB" }), "buffer: it is smaller than `max_message`"),
        (json!({ "statistics": "1ms" }), "statistics: it must be 100ms"),
        (json!({ "client_id": "" }), "client_id: it must have"),
        (json!({ "tls": { "cert_file": "c" } }), "tls.cert_file: `key_file` is missing"),
        (json!({ "tls": { "key_file": "c" } }), "tls.key_file: `cert_file` is missing"),
        (json!({ "tls": { "key_password": "c" } }), "tls.key_password: it goes with `key_file`"),
        (json!({ "tls": { "ca_file": "c", "insecure_skip_verify": true } }), "tls.insecure_skip_verify: with it"),
        (json!({ "sasl": { "mechanism": "plain", "username": "u" } }), "sasl.password: it is missing"),
        (json!({ "sasl": { "mechanism": "plain", "password": "u" } }), "sasl.username: it is missing"),
        (json!({ "sasl": { "mechanism": "oauthbearer" } }), "sasl.mechanism: oauthbearer needs"),
        (json!({ "sasl": { "mechanism": "gssapi" } }), "sasl.mechanism: unknown variant"),
        (json!({ "create_topics": { "partitions": 0 } }), "create_topics.partitions: it must be"),
        (
            json!({ "create_topics": {}, "sasl": { "mechanism": "oauthbearer", "token_file": "t" } }),
            "create_topics: it does not go with tokens",
        ),
        (json!({ "properties": { "acks": 1 } }), "properties.acks: an acknowledgement would no longer mean"),
        (json!({ "properties": { "message.timeout.ms": 1 } }), "properties.message.timeout.ms: it cannot be set here"),
        (json!({ "properties": { "a": [1] } }), "properties.a: invalid type: sequence"),
        (json!({ "tombstones": true, "envelope": { "cloudevents": { "mode": "structured" } } }), "tombstones: "),
        (json!({ "topics": "x" }), "topics: unknown field `topics`"),
    ] {
        let found = issues(with(more.clone()));
        assert!(found.len() == 1 && found[0].starts_with(expected), "{more}: {found:#?}");
        assert!(!found[0].contains("canary"), "{found:?}");
    }
}

#[cfg(not(feature = "oidc"))]
#[test]
fn what_is_not_compiled_in_is_named_with_its_feature() {
    let oidc = json!({ "token_url": "https://id.example/token", "client_id": "walgate", "client_secret": "canary-3" });
    let found = issues(with(json!({ "sasl": { "mechanism": "oauthbearer", "oidc": oidc } })));
    assert!(found.len() == 1 && found[0].contains("--features kafka-oidc"), "{found:?}");
}

#[test]
fn x1_debug_shows_no_secret() {
    let config: KafkaConfig = walgate_sink::read_config(&with(json!({
        "sasl": scram(),
        "headers": { "x-token": "canary-aa" },
        "tls": { "cert_file": "c", "key_file": "k", "key_password": "canary-bb" },
        "properties": { "client.rack": "canary-cc" },
    })))
    .unwrap();
    assert!(!format!("{config:?}").contains("canary"), "{config:?}");
    assert_eq!(config.secrets().len(), 3);
}
