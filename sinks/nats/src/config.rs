//! What the sink can be told, and what of it is wrong.

use std::{collections::BTreeMap, path::PathBuf, str::FromStr as _};

use async_nats::{ConnectOptions, ServerAddr};
use serde::Deserialize;
use walgate_sink::{ConfigIssue, Envelope, PathSegment, Secret, tls};

use crate::{headers, message, subject};

/// What stands under `nats:`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NatsConfig {
    /// Addresses of the servers of one cluster: `nats://host:port`, `tls://host:port` or `host:port`. They are tried
    /// in this order. Kept as secrets, so that credentials written into one by mistake are not printed.
    pub servers: Vec<Secret>,
    /// Template of the subject. Routes may set their own.
    pub subject: Option<String>,
    /// User name; it goes with `password`.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// A token, for servers that ask for one.
    pub token: Option<Secret>,
    /// Seed of a user's nkey: `SU...`.
    pub nkey: Option<Secret>,
    /// The text of a credentials file: a user's JWT and the seed of its nkey.
    pub creds: Option<Secret>,
    /// TLS.
    pub tls: Option<TlsConfig>,
    /// Headers of every message.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// How an event is put into a message.
    #[serde(default)]
    pub envelope: Envelope,
    /// What becomes of an event to whose subject no stream listens.
    #[serde(default)]
    pub no_stream: NoStream,
    /// What addresses of replies begin with, where the user may not subscribe to `_INBOX.>`.
    pub inbox_prefix: Option<String>,
}

/// `tls:`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificates to trust, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the client's certificate, and those between it and its CA.
    pub cert_file: Option<PathBuf>,
    /// PEM file with the client's private key.
    pub key_file: Option<PathBuf>,
    /// Takes any certificate: whoever is on the way can read and answer.
    #[serde(default)]
    pub insecure_skip_verify: bool,
    /// Whether a server without TLS is refused.
    #[serde(default = "yes")]
    pub required: bool,
}

/// `no_stream:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoStream {
    /// It is tried again until there is a stream.
    #[default]
    Wait,
    /// It is rejected.
    Reject,
}

fn yes() -> bool {
    true
}

/// One server.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) address: ServerAddr,
    /// `host:port`.
    pub(crate) shown: String,
}

impl NatsConfig {
    /// The servers, or all that is wrong with the configuration.
    pub(crate) fn checked(&self) -> Result<Vec<Server>, Vec<ConfigIssue>> {
        let mut issues = Vec::new();
        let mut servers = Vec::new();
        for (index, text) in self.servers.iter().enumerate() {
            match server(text.expose()) {
                Ok(server) => servers.push(server),
                Err(message) => {
                    let path = vec![PathSegment::Key("servers".to_owned()), PathSegment::Index(index)];
                    issues.push(ConfigIssue { path, message });
                }
            }
        }
        if self.servers.is_empty() {
            issues.push(ConfigIssue::at("servers", "it is empty: name a server, such as nats://localhost:4222"));
        }
        if let Some(Err(why)) = self.subject.as_deref().map(subject::check_template) {
            let message = format!("{why}; a subject is tokens with dots between them, such as orders.{{event_type}}");
            issues.push(ConfigIssue::at("subject", message));
        }
        if let Some(prefix) = &self.inbox_prefix
            && let Err(why) = subject::check(&format!("{prefix}.x"))
            && prefix != "_INBOX"
        {
            issues.push(ConfigIssue::at("inbox_prefix", why));
        }
        self.check_credentials(&mut issues);
        issues.extend(self.tls_settings().issues());
        issues.extend(self.envelope.issues());
        for (name, value) in &self.headers {
            let mut checked = headers::check_static(name, value.expose());
            if self.envelope.reserves(name, message::CLOUDEVENTS) {
                checked = Err("it is one of those that `envelope` sets");
            }
            if let Err(message) = checked {
                let path = ["headers", name].map(|key| PathSegment::Key(key.to_owned())).into();
                issues.push(ConfigIssue { path, message: message.to_owned() });
            }
        }
        if issues.is_empty() { Ok(servers) } else { Err(issues) }
    }

    fn check_credentials(&self, issues: &mut Vec<ConfigIssue>) {
        let user = match (&self.user, &self.password) {
            (None, Some(_)) => {
                issues.push(ConfigIssue::at("password", "it goes with a `user`: give that too, or use `token`"));
                Some("password")
            }
            (Some(_), None) => {
                issues.push(ConfigIssue::at("user", "`password` is missing: give it, or `password_file`"));
                Some("user")
            }
            (Some(_), Some(_)) => Some("user"),
            (None, None) => None,
        };
        let token = self.token.as_ref().map(|_| "token");
        let nkey = self.nkey.as_ref().map(|_| "nkey");
        let creds = self.creds.as_ref().map(|_| "creds");
        let given: Vec<_> = [user, token, nkey, creds].into_iter().flatten().collect();
        if let [first, second, ..] = given[..] {
            let message = format!("`{first}` is given already, and a connection has one kind of credentials");
            issues.push(ConfigIssue::at(second, message));
        }
        if self.nkey.as_ref().is_some_and(|seed| !is_user_seed(seed.expose().trim())) {
            issues.push(ConfigIssue::at("nkey", "it must be the seed of a user's nkey: `SU` and 56 more characters"));
        }
        if self.creds.as_ref().is_some_and(|creds| credentials(creds).is_err()) {
            let message = "it must be the text of a credentials file, with a user JWT and an nkey seed between lines \
                           of dashes (`nsc generate creds` writes one); `creds_file` names such a file";
            issues.push(ConfigIssue::at("creds", message));
        }
    }

    /// `tls:` as the SDK knows it.
    pub(crate) fn tls_settings(&self) -> tls::TlsConfig {
        let Some(TlsConfig { ca_file, cert_file, key_file, insecure_skip_verify, required: _ }) = self.tls.clone()
        else {
            return tls::TlsConfig::default();
        };
        tls::TlsConfig { ca_file, cert_file, key_file, insecure_skip_verify }
    }

    /// What must not appear in an error text.
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        let plain = [&self.password, &self.token, &self.nkey].into_iter().flatten().chain(self.headers.values());
        let creds = self.creds.iter().flat_map(|creds| creds.expose().lines());
        let texts = plain.map(|secret| secret.expose().trim()).chain(creds);
        // Short ones would tear harmless words apart.
        texts.filter(|text| text.len() >= 6 && !text.starts_with("---")).map(Secret::new).collect()
    }
}

fn server(text: &str) -> Result<Server, String> {
    let address = ServerAddr::from_str(text)
        .map_err(|_| "it is not an address: write host:port, nats://host:port or tls://host:port".to_owned())?;
    if !matches!(address.scheme(), "nats" | "tls") {
        return Err("its scheme must be nats or tls".to_owned());
    }
    if address.username().is_some() || address.password().is_some() {
        return Err(
            "credentials do not belong into an address: write them under `user` and `password`, or `token`".to_owned()
        );
    }
    let url = address.clone().into_inner();
    if address.host().is_empty() {
        return Err("it has no host: write host:port".to_owned());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("nothing may follow the port: write host:port".to_owned());
    }
    let host = if address.host().contains(':') { format!("[{}]", address.host()) } else { address.host().to_owned() };
    Ok(Server { shown: format!("{host}:{}", address.port()), address })
}

/// The credentials in the text of a credentials file.
pub(crate) fn credentials(creds: &Secret) -> std::io::Result<ConnectOptions> {
    // The library finds the seed only where a line ends behind it, and a file's last line end is no part of a secret.
    ConnectOptions::with_credentials(&format!("{}\n", creds.expose()))
}

fn is_user_seed(text: &str) -> bool {
    text.len() == 58 && text.starts_with("SU") && text.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'))
}

#[cfg(test)]
mod tests;
