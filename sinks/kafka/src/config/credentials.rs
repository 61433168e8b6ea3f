//! SASL: who the sink is to the brokers.

use std::path::PathBuf;

use serde::Deserialize;
use walgate_sink::{ConfigIssue, Secret};

use super::issue;

/// `sasl:`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaslConfig {
    /// The mechanism.
    pub mechanism: Mechanism,
    /// User name, for PLAIN and SCRAM.
    pub username: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// File with a token for OAUTHBEARER, read anew before the one in it expires.
    pub token_file: Option<PathBuf>,
    /// Where tokens for OAUTHBEARER are asked for.
    pub oidc: Option<Oidc>,
}

/// `mechanism:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Mechanism {
    /// The password as it is.
    #[serde(rename = "plain")]
    Plain,
    /// A proof of the password (RFC 7677).
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
    /// The same with SHA-512.
    #[serde(rename = "scram-sha-512")]
    ScramSha512,
    /// A token (RFC 7628).
    #[serde(rename = "oauthbearer")]
    OauthBearer,
}

/// `oidc:`, the client credentials of OAuth 2.0 (RFC 6749, section 4.4).
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// The provider's token endpoint.
    pub token_url: String,
    /// The client.
    pub client_id: String,
    /// The client's secret.
    pub client_secret: Secret,
    /// The scope that is asked for.
    pub scope: Option<String>,
}

impl Mechanism {
    /// As Kafka names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
            Mechanism::OauthBearer => "OAUTHBEARER",
        }
    }
}

impl SaslConfig {
    pub(super) fn check(&self, issues: &mut Vec<ConfigIssue>) {
        let mut at = |key: &str, message: &str| issues.push(issue(&["sasl", key], message));
        if self.mechanism == Mechanism::OauthBearer {
            if self.username.is_some() {
                at("username", "it does not go with oauthbearer: the token says who it is");
            }
            if self.password.is_some() {
                at("password", "it does not go with oauthbearer: give `token_file` or `oidc`");
            }
            match (&self.token_file, &self.oidc) {
                (None, None) => at("mechanism", "oauthbearer needs `token_file` or `oidc`"),
                (Some(_), Some(_)) => at("oidc", "`token_file` is given already: write one of them"),
                _ => {}
            }
        } else {
            if self.username.as_ref().is_none_or(String::is_empty) {
                at("username", "it is missing: this mechanism needs a user");
            }
            if self.password.as_ref().is_none_or(|password| password.expose().is_empty()) {
                at("password", "it is missing: give it, or `password_file`");
            }
            if self.token_file.is_some() {
                at("token_file", "it goes with `mechanism: oauthbearer`");
            }
            if self.oidc.is_some() {
                at("oidc", "it goes with `mechanism: oauthbearer`");
            }
        }
        if let Some(oidc) = &self.oidc
            && !["https://", "http://"].iter().any(|scheme| oidc.token_url.starts_with(scheme))
        {
            issues.push(issue(&["sasl", "oidc", "token_url"], "it must be an http:// or https:// address"));
        }
    }

    /// Whether tokens come from a file.
    pub(super) fn is_token(&self) -> bool {
        self.token_file.is_some()
    }

    pub(super) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.password.iter().chain(self.oidc.iter().map(|oidc| &oidc.client_secret))
    }
}
