//! What the sink can be told, and what of it is wrong.

use std::path::PathBuf;

use serde::Deserialize;
use walgate_sink::{ConfigIssue, Envelope, PathSegment, Secret, envelope::ContentMode};

use crate::{attributes, queue};

/// What stands under `sqs:`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqsConfig {
    /// Template of the queue: a name, or a URL. Routes may set their own.
    pub queue: Option<String>,
    /// Template of the message group, which replaces the ordering key. Routes may set their own.
    pub group: Option<String>,
    /// The region; without it that of a queue's URL, of the profile or of the environment.
    pub region: Option<String>,
    /// Where SQS, or something like it, is asked: `http://localhost:9324`. Without it Amazon's address in the region.
    pub endpoint: Option<String>,
    /// The id of an access key; it goes with `secret_access_key`.
    pub access_key_id: Option<Secret>,
    /// The access key's secret.
    pub secret_access_key: Option<Secret>,
    /// The session's token, where the access key is a temporary one.
    pub session_token: Option<Secret>,
    /// A profile in the AWS configuration files, which may name a role to assume.
    pub profile: Option<String>,
    /// Roles to assume, one with the credentials of the one before it.
    #[serde(default)]
    pub assume_roles: Vec<AssumedRole>,
    /// PEM file with the certificates to trust, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// Headers of an event that travel as attributes: three at the most.
    #[serde(default = "trace")]
    pub forward_headers: Vec<String>,
    /// How an event is put into a message.
    #[serde(default)]
    pub envelope: Envelope,
}

/// One of `assume_roles`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AssumedRole {
    /// The role's ARN: `arn:aws:iam::123456789012:role/orders`.
    pub role_arn: String,
    /// What the role's trust policy asks of whoever is not of its account.
    pub external_id: Option<String>,
    /// The session's name in the account's logs.
    #[serde(default = "session_name")]
    pub session_name: String,
}

fn session_name() -> String {
    "walgate".to_owned()
}

fn trace() -> Vec<String> {
    ["traceparent", "tracestate"].map(str::to_owned).into()
}

impl SqsConfig {
    /// All that is wrong with the configuration.
    pub(crate) fn issues(&self) -> Vec<ConfigIssue> {
        let mut issues = Vec::new();
        if let Some(Err(why)) = self.queue.as_deref().map(queue::check_template) {
            issues.push(ConfigIssue::at("queue", why));
        }
        if self.region.as_deref().is_some_and(|region| !is_region(region)) {
            issues.push(ConfigIssue::at("region", "it is not a region: write one such as eu-central-1"));
        }
        let of_url = self.queue.as_deref().and_then(queue::region);
        if let (Some(given), Some(named)) = (&self.region, of_url)
            && given != named
        {
            issues.push(ConfigIssue::at("region", format!("the URL in `queue` is of region {named}: write that one")));
        }
        if let Some(Err(why)) = self.endpoint.as_deref().map(check_endpoint) {
            issues.push(ConfigIssue::at("endpoint", why));
        }
        if self.ca_file.is_some() && self.plain() {
            issues.push(ConfigIssue::at("ca_file", "it has no effect: `endpoint` is not https"));
        }
        self.check_credentials(&mut issues);
        self.check_roles(&mut issues);
        issues.extend(self.envelope.issues());
        if self.envelope.content_mode() == Some(ContentMode::Binary) {
            let path = ["envelope", "cloudevents", "mode"].map(|key| PathSegment::Key(key.to_owned()));
            let message = "SQS has too few attributes for it, and no binding: write structured".to_owned();
            issues.push(ConfigIssue { path: path.into(), message });
        }
        self.check_headers(&mut issues);
        issues
    }

    /// Whether SQS is asked without TLS.
    pub(crate) fn plain(&self) -> bool {
        self.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"))
    }

    fn check_credentials(&self, issues: &mut Vec<ConfigIssue>) {
        let empty = |secret: &Option<Secret>| secret.as_ref().is_some_and(|secret| secret.expose().trim().is_empty());
        for (key, secret) in [("access_key_id", &self.access_key_id), ("secret_access_key", &self.secret_access_key)] {
            if empty(secret) {
                issues.push(ConfigIssue::at(key, "it is empty"));
            }
        }
        match (&self.access_key_id, &self.secret_access_key) {
            (Some(_), None) => {
                let message = "`secret_access_key` is missing: give it, or `secret_access_key_file`";
                issues.push(ConfigIssue::at("access_key_id", message));
            }
            (None, Some(_)) => {
                issues.push(ConfigIssue::at("secret_access_key", "`access_key_id` is missing: they go together"));
            }
            (None, None) if self.session_token.is_some() => {
                issues.push(ConfigIssue::at("session_token", "it goes with `access_key_id` and `secret_access_key`"));
            }
            (Some(_), Some(_)) if self.profile.is_some() => {
                let message = "`access_key_id` is given already: remove one of them";
                issues.push(ConfigIssue::at("profile", message));
            }
            _ => {}
        }
    }

    fn check_roles(&self, issues: &mut Vec<ConfigIssue>) {
        let mut wrong = |index: usize, key: &str, message: String| {
            let path = ["assume_roles", key].map(|key| PathSegment::Key(key.to_owned()));
            let [list, key] = path;
            issues.push(ConfigIssue { path: vec![list, PathSegment::Index(index), key], message });
        };
        // The grammars of STS's AssumeRole.
        let of = |text: &str, min: usize, max: usize, marks: &str| {
            (min..=max).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c))
        };
        for (index, role) in self.assume_roles.iter().enumerate() {
            if index >= MAX_ROLES {
                wrong(index, "role_arn", format!("a chain has {MAX_ROLES} roles at the most"));
                break;
            }
            let arn = role.role_arn.strip_prefix("arn:").and_then(|rest| rest.split_once(":iam::"));
            let is_role = |rest: &str| {
                rest.split_once(":role/").is_some_and(|(account, name)| {
                    of(account, 12, 12, "")
                        && account.bytes().all(|b| b.is_ascii_digit())
                        && of(name, 1, 512, "_+=,.@-/")
                })
            };
            if !arn.is_some_and(|(partition, rest)| of(partition, 1, 32, "-") && is_role(rest)) {
                let message = "it is not a role's ARN: write one such as arn:aws:iam::123456789012:role/orders";
                wrong(index, "role_arn", message.to_owned());
            }
            if role.external_id.as_deref().is_some_and(|id| !of(id, 2, 1224, "_+=,.@:/-")) {
                let message = "it must be 2 to 1224 letters, digits and characters of `_+=,.@:/-`";
                wrong(index, "external_id", message.to_owned());
            }
            if !of(&role.session_name, 2, 64, "_=,.@-+") {
                let message = "it must be 2 to 64 letters, digits and characters of `_=,.@-+`";
                wrong(index, "session_name", message.to_owned());
            }
        }
    }

    fn check_headers(&self, issues: &mut Vec<ConfigIssue>) {
        let room = attributes::MAX - attributes::OWN.len();
        if self.forward_headers.len() > room {
            let message = format!(
                "a message has {} attributes at the most, and walgate sets {}: name {room} headers at the most",
                attributes::MAX,
                attributes::OWN.len()
            );
            issues.push(ConfigIssue::at("forward_headers", message));
        }
        for (index, name) in self.forward_headers.iter().enumerate() {
            let twice = self.forward_headers.iter().take(index).any(|other| other.eq_ignore_ascii_case(name));
            let fault = if twice { Err("it is named twice".to_owned()) } else { attributes::check_name(name) };
            let fault = match fault {
                Ok(()) if self.envelope.reserves(name, "") && !matches!(self.envelope, Envelope::CloudEvents(_)) => {
                    Err("it is one of those that `envelope` sets".to_owned())
                }
                checked => checked,
            };
            if let Err(message) = fault {
                let path = vec![PathSegment::Key("forward_headers".to_owned()), PathSegment::Index(index)];
                issues.push(ConfigIssue { path, message });
            }
        }
    }

    /// What must not appear in an error text.
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        let all = [&self.access_key_id, &self.secret_access_key, &self.session_token].into_iter().flatten();
        // Short ones would tear harmless words apart.
        all.map(|secret| secret.expose().trim()).filter(|text| text.len() >= 6).map(Secret::new).collect()
    }
}

/// Roles of a chain at the most: each is a request more before the first message.
const MAX_ROLES: usize = 5;

fn is_region(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    let rest = rest.ok_or("it must begin with https:// or http://")?;
    if rest.contains('@') {
        return Err("credentials do not belong into it: write them under `access_key_id`".to_owned());
    }
    let host = rest.trim_end_matches('/');
    let in_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(in_host) {
        return Err("it must be a host and a port, such as http://localhost:9324".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:iam::123456789012:role/path/orders";

    fn issues(yaml: serde_json::Value) -> Vec<String> {
        let config: SqsConfig = walgate_sink::read_config(&yaml).unwrap();
        let path = |issue: &ConfigIssue| format!("{:?}", issue.path);
        config.issues().iter().map(|issue| format!("{} {issue}", path(issue))).collect()
    }

    #[test]
    fn sound_configurations_have_no_issue() {
        use serde_json::json;
        for sound in [
            json!({}),
            json!({"queue": "orders", "region": "eu-central-1"}),
            json!({"queue": "https://sqs.eu-central-1.amazonaws.com/123456789012/o-{key}.fifo", "region": "eu-central-1"}),
            json!({"queue": "o", "endpoint": "http://localhost:9324/", "access_key_id": "a", "secret_access_key": "b"}),
            json!({"assume_roles": [{"role_arn": ARN}, {"role_arn": ARN, "external_id": "x:1", "session_name": "wg"}]}),
            json!({"envelope": "debezium"}),
            json!({"envelope": {"cloudevents": {"source": "/shop", "mode": "structured"}}}),
            json!({"profile": "p", "ca_file": "/x", "forward_headers": ["traceparent", "X-Tenant", "a.b"]}),
        ] {
            assert_eq!(issues(sound.clone()), Vec::<String>::new(), "{sound}");
        }
    }

    #[test]
    fn every_fault_is_named() {
        use serde_json::json;
        for (broken, says) in [
            (json!({"queue": "a b"}), "\"queue\""),
            (json!({"queue": "https://{key}/1/q"}), "only the queue's name"),
            (json!({"region": "Frankfurt"}), "it is not a region"),
            (json!({"region": "us-east-1", "queue": "https://sqs.eu-west-1.amazonaws.com/1/q"}), "of region eu-west-1"),
            (json!({"endpoint": "localhost:9324"}), "must begin with https://"),
            (json!({"endpoint": "http://u:p@localhost"}), "credentials do not belong"),
            (json!({"endpoint": "http://localhost", "ca_file": "x"}), "it has no effect"),
            (json!({"access_key_id": "a"}), "`secret_access_key` is missing"),
            (json!({"secret_access_key": "a"}), "`access_key_id` is missing"),
            (json!({"session_token": "a"}), "goes with"),
            (json!({"access_key_id": "a", "secret_access_key": "b", "profile": "p"}), "given already"),
            (json!({"access_key_id": " ", "secret_access_key": "b"}), "it is empty"),
            (json!({"assume_roles": [{"role_arn": "orders"}]}), "\"role_arn\""),
            (json!({"assume_roles": [{"role_arn": ARN}, {"role_arn": ARN, "external_id": "a b"}]}), "Index(1)"),
            (json!({"assume_roles": [{"role_arn": ARN, "session_name": "x"}]}), "2 to 64"),
            (json!({"assume_roles": vec![json!({"role_arn": ARN}); 6]}), "5 roles at the most"),
            (json!({"envelope": {"cloudevents": {"mode": "binary"}}}), "write structured"),
            (json!({"envelope": {"cloudevents": {"source": ""}}}), "it is empty"),
            (json!({"envelope": "debezium", "forward_headers": ["eventtype"]}), "that `envelope` sets"),
            (json!({"forward_headers": ["a", "b", "c", "d"]}), "name 3 headers at the most"),
            (json!({"forward_headers": ["a", "A"]}), "named twice"),
            (json!({"forward_headers": ["id"]}), "Index(0)"),
        ] {
            let found = issues(broken.clone());
            assert!(found.len() == 1 && found[0].contains(says), "{broken}: {found:?}");
        }
    }

    #[test]
    fn debug_holds_no_secret() {
        let yaml = serde_json::json!({"access_key_id": "AKIACANARY", "secret_access_key": "canary-secret"});
        let config: SqsConfig = walgate_sink::read_config(&yaml).unwrap();
        assert!(!format!("{config:?}").to_lowercase().contains("canary"), "{config:?}");
        assert_eq!(config.secrets().len(), 2);
    }
}
