use serde_json::{Value, json};
use walgate_sink::erase;

use super::*;
use crate::WebhookFactory;

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn config(changes: Value) -> WebhookConfig {
    let mut config = json!({ "url": "https://a.example/hooks", "secret": SECRET });
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(key)),
            value => config[key] = value.clone(),
        }
    }
    serde_json::from_value(config).unwrap()
}

/// Issues as `path: message`.
fn issues(changes: Value) -> Vec<String> {
    let issues = config(changes).settings().err().unwrap_or_default();
    let path = |issue: &ConfigIssue| {
        let keys = issue.path.iter().map(|step| match step {
            PathSegment::Key(key) => key.clone(),
            PathSegment::Index(index) => index.to_string(),
        });
        keys.collect::<Vec<_>>().join(".")
    };
    issues.iter().map(|issue| format!("{}: {}", path(issue), issue.message)).collect()
}

#[test]
fn the_least_that_it_needs() {
    assert_eq!(issues(json!({})), Vec::<String>::new());
    let settings = config(json!({})).settings().unwrap();
    assert_eq!(settings.url.as_str(), "https://a.example/hooks");
    assert!(settings.signer.is_some());
    assert_eq!(settings.headers.len(), 1, "the user agent alone");
    assert!(config(json!({ "secret": null, "unsigned": true })).settings().unwrap().signer.is_none());
}

#[test]
fn every_fault_is_found_at_its_key() {
    for (changes, expected) in [
        (json!({ "url": "partner.example/hooks" }), "url: it is not a URL"),
        (json!({ "url": "" }), "url: it is not a URL"),
        (json!({ "url": "ftp://a.example" }), "url: its scheme"),
        (json!({ "url": "https://user:hunter2@a.example" }), "url: user name and password"),
        (json!({ "url": "https://a.example/#x" }), "url: a fragment"),
        (json!({ "secret": null }), ": `secret` is missing"),
        (json!({ "secret": "hunter2" }), "secret: a secret begins with `whsec_`"),
        (json!({ "unsigned": true }), "unsigned: there is a `secret`"),
        (json!({ "path": "orders/{key}" }), "path: a path is appended"),
        (
            json!({ "envelope": { "cloudevents": { "source": "a b" } } }),
            "envelope.cloudevents.source: it has a character",
        ),
        (
            json!({ "mode": "batch", "envelope": { "cloudevents": { "mode": "binary" } } }),
            "envelope.cloudevents.mode: a batch has no place",
        ),
        (json!({ "mode": "batch", "envelope": "debezium" }), "envelope: it names headers"),
        (json!({ "envelope": "cloudevents", "headers": { "ce-id": "x" } }), "headers.ce-id: it is one of those"),
        (json!({ "headers": { "webhook-id": "x" } }), "headers.webhook-id: `webhook-id` is reserved"),
        (json!({ "headers": { "Walgate-Key": "x" } }), "headers.Walgate-Key: `walgate-key` is reserved"),
        (json!({ "headers": { "Host": "x" } }), "headers.Host: `host` is reserved"),
        (json!({ "headers": { "content-length": "1" } }), "headers.content-length:"),
        (json!({ "headers": { "transfer-encoding": "chunked" } }), "headers.transfer-encoding:"),
        (json!({ "headers": { "connection": "close" } }), "headers.connection:"),
        (json!({ "headers": { "a b": "x" } }), "headers.a b: `a b` is not a legal header name"),
        (json!({ "headers": { "": "x" } }), "headers.: "),
        (json!({ "headers": { "x": "hunter2\r\ny: z" } }), "headers.x: its value must be"),
        (json!({ "headers": { "x": "é" } }), "headers.x: its value must be"),
        (json!({ "bearer_token": "hunter2\nx" }), "bearer_token: it must be visible"),
        (json!({ "bearer_token": " " }), "bearer_token: it must be visible"),
        (json!({ "basic_auth": { "username": "a:b", "password": "hunter2" } }), "basic_auth.username: a user name"),
        (
            json!({ "bearer_token": "x", "basic_auth": { "username": "a", "password": "b" } }),
            "basic_auth: `bearer_token` sets",
        ),
        (json!({ "bearer_token": "x", "headers": { "Authorization": "y" } }), "bearer_token: `headers.authorization`"),
        (json!({ "url": "http://a.example", "ca_file": "/x" }), "ca_file: it has no effect"),
        (json!({ "url": "http://a.example", "insecure_skip_verify": true }), "insecure_skip_verify: it has no effect"),
        (json!({ "ca_file": "/x", "insecure_skip_verify": true }), "insecure_skip_verify: with it `ca_file`"),
    ] {
        let issues = issues(changes.clone());
        assert_eq!(issues.len(), 1, "{changes}: {issues:?}");
        assert!(issues[0].starts_with(expected), "{changes}: {issues:?}");
        assert!(!issues[0].contains("hunter2"), "{issues:?}");
    }
    let all = issues(json!({ "url": "x", "secret": "x", "path": "x", "headers": { "te": "x", "host": "x" } }));
    assert_eq!(all.len(), 5, "{all:?}");
}

#[test]
fn types_and_unknown_keys_are_refused_without_their_values() {
    let factory = erase::<WebhookFactory>();
    for changes in [
        json!({ "url": "https://a.example", "sceret": "hunter2" }),
        json!({ "url": "https://a.example", "basic_auth": "user:hunter2" }),
        json!({ "url": "https://a.example", "basic_auth": { "username": "a", "pasword": "hunter2" } }),
        json!({ "url": "https://a.example", "headers": "x: hunter2" }),
        json!({ "url": ["hunter2"] }),
        json!({}),
    ] {
        let issue = factory.parse(changes.clone()).unwrap_err();
        assert!(!issue.message.contains("hunter2"), "{changes}: {issue}");
    }
}

#[test]
fn authorization_is_made_once_and_hidden() {
    let value = |changes| {
        let settings = config(changes).settings().unwrap();
        let value = settings.headers.get(AUTHORIZATION).unwrap().clone();
        assert!(value.is_sensitive());
        value.to_str().unwrap().to_owned()
    };
    assert_eq!(value(json!({ "bearer_token": "hunter2\n" })), "Bearer hunter2");
    assert_eq!(value(json!({ "headers": { "Authorization": "Token x" } })), "Token x");
    let basic = json!({ "basic_auth": { "username": "Aladdin", "password": "open sesame" } });
    assert_eq!(value(basic), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==", "RFC 7617's example");
}

#[test]
fn debug_shows_no_secret() {
    let config = config(json!({
        "url": "https://a.example/hooks/hunter2?token=hunter2",
        "headers": { "x-api-key": "hunter2" },
        "basic_auth": { "username": "user", "password": "hunter2" },
    }));
    let text = format!("{config:?}");
    assert!(!text.contains("hunter2") && !text.contains("C2FVs"), "{text}");
    let text = format!("{:?}", config.settings().unwrap().headers);
    assert!(!text.contains("hunter2") && !text.contains("Basic"), "{text}");
}
