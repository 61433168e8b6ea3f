use serde_json::{Value, json};
use walgate_sink::erase;

use super::*;
use crate::RabbitmqFactory;

/// The issues of a configuration, each with its path.
fn issues(config: Value) -> Vec<String> {
    let factory = erase::<RabbitmqFactory>();
    let show = |issue: &ConfigIssue| {
        let path: Vec<String> = issue
            .path
            .iter()
            .map(|segment| match segment {
                PathSegment::Key(key) => key.clone(),
                PathSegment::Index(index) => index.to_string(),
            })
            .collect();
        format!("{}: {issue}", path.join("."))
    };
    match factory.parse(config) {
        Ok(parsed) => factory.validate(&parsed).iter().map(show).collect(),
        Err(issue) => vec![show(&issue)],
    }
}

fn with(more: Value) -> Value {
    let mut config = json!({ "url": "amqp://localhost", "exchange": "orders", "routing_key": "{event_type}" });
    let (Some(map), Value::Object(more)) = (config.as_object_mut(), more) else { panic!("objects") };
    for (key, value) in more {
        if value.is_null() {
            map.remove(&key);
        } else {
            map.insert(key, value);
        }
    }
    config
}

#[test]
fn sound_configurations_have_no_issues() {
    for more in [
        json!({}),
        json!({ "url": null, "urls": ["amqp://a", "amqp://b:5673/shop"] }),
        json!({ "exchange": null, "routing_key": "orders" }),
        json!({ "url": "amqp://u:p@a/%2F" }),
        json!({ "user": "walgate", "password": "x", "vhost": "shop" }),
        json!({ "url": "amqp://u@a", "password": "x" }),
        json!({ "url": "amqps://a", "tls": { "ca_file": "ca.pem" } }),
        json!({ "url": "amqps://a", "tls": { "insecure_skip_verify": true } }),
        json!({ "url": "amqps://a", "auth": "external", "tls": { "cert_file": "c.pem", "key_file": "k.pem" } }),
        json!({ "envelope": "debezium" }),
        json!({ "envelope": { "cloudevents": { "source": "/shop", "mode": "structured" } } }),
        json!({ "headers": { "x-region": "eu" }, "app_id": "shop", "unroutable": "wait", "heartbeat": "30s" }),
        json!({ "declare": {
            "exchanges": [{ "name": "orders" }, { "name": "all", "type": "fanout" }],
            "queues": [{ "name": "q", "arguments": { "x-max-length": 5 } }, { "name": "r", "type": "classic" }],
            "bindings": [{ "queue": "q", "exchange": "orders", "routing_key": "#" }, { "queue": "q", "exchange": "all" }],
        }}),
    ] {
        assert_eq!(issues(with(more.clone())), Vec::<String>::new(), "{more}");
    }
}

#[test]
fn every_fault_is_told_with_its_place() {
    for (more, expected) in [
        (json!({ "url": null }), "url: it is missing"),
        (json!({ "urls": ["amqp://b"] }), "urls: `url` is given already"),
        (json!({ "url": null, "urls": ["amqp://a", "http://b"] }), "urls.1: it is not an address"),
        (json!({ "url": "amqp://u:hunter2@a/" }), "url: its virtual host is empty"),
        (json!({ "url": "amqp://a/v", "vhost": "w" }), "vhost: an address names a virtual host already"),
        (json!({ "vhost": "" }), "vhost: a virtual host's name"),
        (json!({ "url": "amqp://u:hunter2@a", "user": "v", "password": "x" }), "user: an address names a user already"),
        (json!({ "url": "amqp://u:hunter2@a", "password": "x" }), "password: an address holds a password already"),
        (json!({ "password": "hunter2" }), "password: it goes with a `user`"),
        (json!({ "user": "u" }), "user: `password` is missing"),
        (json!({ "url": "amqp://u@a" }), "url: it names a user without a password"),
        (json!({ "auth": "external" }), "auth: `external` needs amqps://"),
        (json!({ "auth": "external", "user": "u", "password": "hunter2" }), "auth: with `external` the certificate"),
        (json!({ "auth": "token" }), "auth"),
        (json!({ "tls": {} }), "tls: it has no effect on an amqp:// address"),
        (json!({ "url": "amqps://a", "tls": { "cert_file": "c" } }), "tls.cert_file: `key_file` is missing"),
        (json!({ "url": "amqps://a", "tls": { "key_file": "c" } }), "tls.key_file: `cert_file` is missing"),
        (
            json!({ "url": "amqps://a", "tls": { "ca_file": "c", "insecure_skip_verify": true } }),
            "tls.insecure_skip_verify: with it",
        ),
        (json!({ "exchange": "" }), "exchange: it is empty: leave it out"),
        (json!({ "exchange": "a\nb" }), "exchange: it holds a control character"),
        (json!({ "routing_key": "" }), "routing_key: it is empty"),
        (json!({ "routing_key": "k".repeat(256) }), "routing_key: it has 256 bytes"),
        (json!({ "headers": { "CC": "other" } }), "headers.CC: it is reserved"),
        (
            json!({ "envelope": { "cloudevents": { "source": "a b" } } }),
            "envelope.cloudevents.source: it has a character",
        ),
        (
            json!({ "envelope": "cloudevents", "headers": { "cloudEvents_x": "y" } }),
            "headers.cloudEvents_x: it is one of those that `envelope` sets",
        ),
        (json!({ "envelope": "cloudevents", "headers": { "cloudevents:x": "y" } }), "headers.cloudevents:x: it is one"),
        (json!({ "envelope": "debezium", "headers": { "eventtype": "y" } }), "headers.eventtype: it is one"),
        (json!({ "app_id": "" }), "app_id: it must have"),
        (json!({ "heartbeat": "500ms" }), "heartbeat: it must be a number of whole seconds"),
        (json!({ "heartbeat": "1h" }), "heartbeat: it must be"),
        (json!({ "declare": { "queues": [{ "name": "" }] } }), "declare.queues.0.name: it is empty"),
        (json!({ "declare": { "exchanges": [{ "name": "amq.x" }] } }), "declare.exchanges.0.name: names that begin"),
        (
            json!({ "declare": { "queues": [{ "name": "q", "arguments": { "x": [1] } }] } }),
            "declare.queues.0.arguments.x: it must be a text",
        ),
        (
            json!({ "declare": { "queues": [{ "name": "q", "arguments": { "x-queue-type": "quorum" } }] } }),
            "declare.queues.0.arguments.x-queue-type: its `type` says that",
        ),
        (json!({ "declare": { "bindings": [{ "queue": "q", "exchange": "" }] } }), "declare.bindings.0.exchange"),
        (json!({ "ulr": "x" }), "ulr: unknown field `ulr`"),
    ] {
        let found = issues(with(more.clone()));
        assert!(found.iter().any(|issue| issue.starts_with(expected)), "{more}: {found:?}");
        assert!(!found.concat().contains("hunter2"), "{found:?}");
    }
}

#[test]
fn debug_shows_no_secret() {
    let config: RabbitmqConfig = walgate_sink::read_config(&with(json!({
        "url": "amqp://u:hunter2@a", "urls": ["amqp://u:hunter2@b"], "password": "hunter2", "headers": { "x": "hunter2" },
    })))
    .unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
    let address = Address::parse("amqp://u:hunter2@a").unwrap();
    assert!(!format!("{address:?}").contains("hunter2"));
}

#[test]
fn heartbeats_are_whole_seconds() {
    let heartbeat = |more| walgate_sink::read_config::<RabbitmqConfig>(&with(more)).unwrap().heartbeat();
    assert_eq!(heartbeat(json!({})), HEARTBEAT);
    assert_eq!(heartbeat(json!({ "heartbeat": "2m" })), 120);
}
