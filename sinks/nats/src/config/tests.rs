use serde_json::{Value, json};
use walgate_sink::erase;

use super::*;
use crate::NatsFactory;

const SEED: &str = "SUANQDPB2RUOE4ETUA26CNX7FUKE5ZZKFCQIIW63OX225F2CO7UEXTM7ZY";

/// The issues of a configuration, each with its path.
fn issues(config: Value) -> Vec<String> {
    let factory = erase::<NatsFactory>();
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
    let mut config = json!({ "servers": ["nats://localhost:4222"], "subject": "orders.{event_type}" });
    let (Some(config_map), Value::Object(more)) = (config.as_object_mut(), more) else { panic!("objects") };
    config_map.extend(more);
    config
}

#[test]
fn sound_configurations_have_no_issues() {
    for more in [
        json!({}),
        json!({ "servers": ["a", "b:4223", "nats://c", "tls://d:4443", "nats://[::1]:4222"] }),
        json!({ "user": "walgate", "password": "x" }),
        json!({ "token": "x" }),
        json!({ "nkey": SEED }),
        json!({ "tls": {} }),
        json!({ "tls": { "ca_file": "ca.pem", "cert_file": "c.pem", "key_file": "k.pem", "required": false } }),
        json!({ "tls": { "insecure_skip_verify": true } }),
        json!({ "headers": { "x-region": "eu" }, "no_stream": "reject", "inbox_prefix": "_INBOX_walgate" }),
    ] {
        assert_eq!(issues(with(more.clone())), Vec::<String>::new(), "{more}");
    }
}

#[test]
fn servers_are_shown_without_anything_but_host_and_port() {
    let shown = |text| server(text).unwrap().shown;
    assert_eq!(shown("a"), "a:4222");
    assert_eq!(shown("tls://b.example:4443"), "b.example:4443");
    assert_eq!(shown("nats://[::1]"), "[::1]:4222");
}

#[test]
fn every_fault_is_told_with_its_place() {
    for (more, expected) in [
        (json!({ "servers": [] }), "servers: it is empty"),
        (json!({ "envelope": "avro" }), "envelope: unknown variant `avro`"),
        (json!({ "envelope": { "cloudevents": { "source": "" } } }), "envelope.cloudevents.source: it is empty"),
        (json!({ "envelope": "cloudevents", "headers": { "Ce-Id": "x" } }), "headers.Ce-Id: it is one of those"),
        (json!({ "envelope": "debezium", "headers": { "eventType": "x" } }), "headers.eventType: it is one of those"),
        (json!({ "servers": ["a", "http://b"] }), "servers.1: it is not an address"),
        (json!({ "servers": ["ws://b"] }), "servers.0: its scheme must be nats or tls"),
        (json!({ "servers": ["nats://a:99999"] }), "servers.0: it is not an address"),
        (json!({ "servers": ["nats://u:hunter2@a"] }), "servers.0: credentials do not belong into an address"),
        (json!({ "servers": ["nats://hunter2@a"] }), "servers.0: credentials do not belong into an address"),
        (json!({ "servers": ["nats://a/x"] }), "servers.0: nothing may follow the port"),
        (json!({ "subject": "orders.*" }), "subject: it holds the wildcard `*`"),
        (json!({ "subject": "or ders.{key}" }), "subject: it holds white space"),
        (json!({ "subject": "$JS.x" }), "subject: subjects that begin with `$`"),
        (json!({ "user": "u" }), "user: `password` is missing"),
        (json!({ "password": "hunter2" }), "password: it goes with a `user`"),
        (json!({ "token": "t", "nkey": SEED }), "nkey: `token` is given already"),
        (json!({ "user": "u", "password": "p", "token": "t" }), "token: `user` is given already"),
        (json!({ "nkey": "UAhunter2" }), "nkey: it must be the seed of a user's nkey"),
        (json!({ "creds": "hunter2" }), "creds: it must be the text of a credentials file"),
        (json!({ "tls": { "cert_file": "c" } }), "tls.cert_file: `key_file` is missing"),
        (json!({ "tls": { "key_file": "c" } }), "tls.key_file: `cert_file` is missing"),
        (json!({ "tls": { "ca_file": "c", "insecure_skip_verify": true } }), "tls.insecure_skip_verify: with it"),
        (json!({ "headers": { "Nats-Rollup": "all" } }), "headers.Nats-Rollup: it is reserved"),
        (json!({ "headers": { "x": "a\nb" } }), "headers.x: its value must be"),
        (json!({ "inbox_prefix": "a b" }), "inbox_prefix: it holds white space"),
        (json!({ "no_stream": "drop" }), "no_stream"),
        (json!({ "sevrers": [] }), "sevrers: unknown field `sevrers`"),
    ] {
        let found = issues(with(more.clone()));
        assert!(found.iter().any(|issue| issue.starts_with(expected)), "{more}: {found:?}");
        assert!(!found.concat().contains("hunter2"), "{found:?}");
    }
    assert_eq!(issues(with(json!({ "servers": ["http://a"], "user": "u", "tls": { "cert_file": "c" } }))).len(), 3);
}

#[test]
fn a_credentials_file_may_end_with_its_last_line() {
    let creds = format!(
        "-----BEGIN NATS USER JWT-----\na.b.c\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{SEED}\n\
         ------END USER NKEY SEED------"
    );
    for end in ["", "\n", "\r\n", "\n\n*****\n"] {
        assert_eq!(issues(with(json!({ "creds": format!("{creds}{end}") }))), Vec::<String>::new(), "{end:?}");
    }
}

#[test]
fn debug_shows_no_secret() {
    let config: NatsConfig = walgate_sink::read_config(&with(json!({
        "servers": ["nats://u:hunter2@a"], "password": "hunter2", "token": "hunter2", "nkey": "hunter2",
        "creds": "hunter2", "headers": { "x": "hunter2" },
    })))
    .unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}
