//! What the sink can be told, and what of it is wrong.

use std::{collections::BTreeMap, path::PathBuf};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT},
};
use serde::Deserialize;
use walgate_sink::{ByteSize, ConfigIssue, Envelope, PathSegment, Secret, envelope::ContentMode, tls::TlsConfig};

use crate::{
    guard::{self, Guard},
    signature::Signer,
};

/// What stands under `webhook:`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    /// Where requests go: `http` or `https`. It may hold a token in its path or query, so it is never printed whole.
    pub url: Secret,
    /// One event in a request, or several.
    #[serde(default)]
    pub mode: Mode,
    /// How an event is put into a request.
    #[serde(default)]
    pub envelope: Envelope,
    /// Template that is appended to the URL: a path, a query or both. Routes may set their own.
    pub path: Option<String>,
    /// The signing secret: `whsec_` and 24 to 64 bytes in base64. Several, with spaces between them, all sign.
    pub secret: Option<Secret>,
    /// Sends without signatures. It has to be spelled out, since a receiver cannot tell such requests from forged ones.
    #[serde(default)]
    pub unsigned: bool,
    /// Headers of every request.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// Sent as `authorization: Bearer ...`.
    pub bearer_token: Option<Secret>,
    /// Sent as `authorization: Basic ...`.
    pub basic_auth: Option<BasicAuth>,
    /// PEM file with the certificates to trust, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM file with the certificate, and its chain, that is shown to the endpoint.
    pub cert_file: Option<PathBuf>,
    /// PEM file with its private key.
    pub key_file: Option<PathBuf>,
    /// Takes any certificate: whoever is on the way can read and answer requests.
    #[serde(default)]
    pub insecure_skip_verify: bool,
    /// Whether HTTP/2 is offered to the server (over TLS only).
    #[serde(default = "yes")]
    pub http2: bool,
    /// Networks beyond the public Internet that requests with a path of their own may go to, where `url` names a host.
    #[serde(default)]
    pub allow_networks: Vec<String>,
    /// The largest body that the endpoint takes; an event with a larger one is rejected unsent. With `mode: batch` it
    /// bounds the batches too, to 1 MiB where it is left out.
    pub max_body: Option<ByteSize>,
}

/// `mode:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each event is a request, and its payload the body.
    #[default]
    Single,
    /// A request is a JSON array of events.
    Batch,
}

/// `basic_auth:`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BasicAuth {
    /// The user name; it cannot hold a colon.
    pub username: String,
    /// The password.
    pub password: Secret,
}

fn yes() -> bool {
    true
}

/// A configuration in the form that requests need.
pub(crate) struct Settings {
    pub(crate) url: Url,
    pub(crate) signer: Option<Signer>,
    pub(crate) headers: HeaderMap,
    pub(crate) envelope: Envelope,
    pub(crate) guard: Guard,
    /// What must not appear in an error text, such as in a piece of an answer that repeats the request.
    pub(crate) secrets: Vec<Secret>,
}

/// Headers that belong to the protocol or to walgate.
const RESERVED: [&str; 11] = [
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "expect",
];
/// What the names of a CloudEvent's attributes begin with.
pub(crate) const CLOUDEVENTS: &str = "ce-";
const RESERVED_PREFIXES: [&str; 2] = ["webhook-", "walgate-"];

impl WebhookConfig {
    /// The configuration in the form that requests need, or all that is wrong with it.
    pub(crate) fn settings(&self) -> Result<Settings, Vec<ConfigIssue>> {
        let mut issues = Vec::new();
        let url = keep(self.parsed_url(), &mut issues);
        let signer = keep(self.signer(), &mut issues);
        let headers = self.static_headers(&mut issues);
        let envelope = self.enveloped(&mut issues);
        let guard = self.guard(&mut issues);
        if let Some(path) = &self.path
            && !path.starts_with(['/', '?'])
        {
            issues.push(ConfigIssue::at("path", "a path is appended to `url` and begins with `/` or `?`"));
        }
        if url.as_ref().is_some_and(|url| url.scheme() == "http") {
            let unused = [
                ("ca_file", self.ca_file.is_some()),
                ("cert_file", self.cert_file.is_some()),
                ("key_file", self.key_file.is_some()),
                ("insecure_skip_verify", self.insecure_skip_verify),
            ];
            for (key, _) in unused.iter().filter(|(_, set)| *set) {
                issues.push(ConfigIssue::at(key, "it has no effect: `url` is not https"));
            }
        } else if self.ca_file.is_some() && self.insecure_skip_verify {
            issues.push(ConfigIssue::at("insecure_skip_verify", "with it `ca_file` has no effect: remove one of them"));
        }
        for (given, missing, lacks) in [
            ("cert_file", "key_file", self.cert_file.is_some() && self.key_file.is_none()),
            ("key_file", "cert_file", self.key_file.is_some() && self.cert_file.is_none()),
        ] {
            if lacks {
                issues.push(ConfigIssue::at(given, format!("a client certificate needs `{missing}` too")));
            }
        }
        match (url, signer) {
            (Some(url), Some(signer)) if issues.is_empty() => {
                let secrets = self.secrets(&url);
                Ok(Settings { url, signer, headers, envelope, guard, secrets })
            }
            _ => Err(issues),
        }
    }

    /// The envelope with its content mode: batches have no place for an event's attributes but around its payload.
    fn enveloped(&self, issues: &mut Vec<ConfigIssue>) -> Envelope {
        issues.extend(self.envelope.issues());
        let mode = match self.mode {
            Mode::Single => ContentMode::Binary,
            Mode::Batch => ContentMode::Structured,
        };
        let path = |keys: &[&str]| keys.iter().map(|key| PathSegment::Key((*key).to_owned())).collect();
        if self.mode == Mode::Batch && self.envelope.content_mode() == Some(ContentMode::Binary) {
            let message = "a batch has no place for the attributes of each event: leave it out, or say structured";
            let path = path(&["envelope", "cloudevents", "mode"]);
            issues.push(ConfigIssue { path, message: message.to_owned() });
        }
        if self.mode == Mode::Batch && self.envelope == Envelope::Debezium {
            let message = "it names headers, and a batch has none for each event: use raw or cloudevents";
            issues.push(ConfigIssue::at("envelope", message));
        }
        let envelope = self.envelope.clone().or_mode(mode);
        for name in self.headers.keys().filter(|name| envelope.reserves(name, CLOUDEVENTS)) {
            let message = "it is one of those that `envelope` sets".to_owned();
            issues.push(ConfigIssue { path: path(&["headers", name]), message });
        }
        envelope
    }

    fn guard(&self, issues: &mut Vec<ConfigIssue>) -> Guard {
        let mut networks = Vec::new();
        for (index, text) in self.allow_networks.iter().enumerate() {
            match guard::network(text) {
                Some(network) => networks.push(network),
                None => issues.push(ConfigIssue {
                    path: vec![PathSegment::Key("allow_networks".to_owned()), PathSegment::Index(index)],
                    message: "it is not a network: write one such as 10.0.0.0/8, fd00::/8 or 10.1.2.3".to_owned(),
                }),
            }
        }
        Guard::new(networks)
    }

    fn parsed_url(&self) -> Result<Url, ConfigIssue> {
        let issue = |message: &str| ConfigIssue::at("url", message);
        let url = Url::parse(self.url.expose()).map_err(|error| {
            issue(&format!("it is not a URL ({error}): write one such as https://example.com/hooks"))
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(issue("its scheme must be http or https"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(issue("user name and password do not belong into a URL: write them under `basic_auth`"));
        }
        if url.fragment().is_some() {
            return Err(issue("a fragment (`#...`) is never sent to a server: remove it"));
        }
        Ok(url)
    }

    fn signer(&self) -> Result<Option<Signer>, ConfigIssue> {
        match (&self.secret, self.unsigned) {
            (Some(secret), false) => {
                Signer::parse(secret.expose()).map(Some).map_err(|message| ConfigIssue::at("secret", message))
            }
            (None, true) => Ok(None),
            (Some(_), true) => Err(ConfigIssue::at("unsigned", "there is a `secret` to sign with: remove one of them")),
            (None, false) => Err(ConfigIssue {
                path: Vec::new(),
                message: "`secret` is missing: give `whsec_` and 24 to 64 random bytes in base64 (`printf \
                          'whsec_%s\\n' \"$(openssl rand -base64 32)\"` makes one), or say `unsigned: true`"
                    .to_owned(),
            }),
        }
    }

    fn static_headers(&self, issues: &mut Vec<ConfigIssue>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let user_agent = concat!("walgate/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(user_agent));
        for (name, value) in &self.headers {
            match static_header(name, value) {
                Ok((name, value)) => drop(headers.insert(name, value)),
                Err(message) => {
                    let path = ["headers", name].map(|key| PathSegment::Key(key.to_owned())).into();
                    issues.push(ConfigIssue { path, message });
                }
            }
        }
        let explicit = headers.contains_key(AUTHORIZATION).then_some("headers.authorization");
        let bearer = self.bearer_token.as_ref().map(|_| "bearer_token");
        let basic = self.basic_auth.as_ref().map(|_| "basic_auth");
        let given: Vec<_> = [explicit, bearer, basic].into_iter().flatten().collect();
        if let [first, second, ..] = given[..] {
            let message = format!("`{first}` sets the authorization header already: keep one of them");
            issues.push(ConfigIssue::at(second, message));
        }
        if let Some(token) = &self.bearer_token {
            match authorization("Bearer", token.expose().trim()) {
                Some(value) if !token.expose().trim().is_empty() => drop(headers.insert(AUTHORIZATION, value)),
                _ => issues.push(ConfigIssue::at("bearer_token", "it must be visible ASCII characters")),
            }
        }
        if let Some(BasicAuth { username, password }) = &self.basic_auth {
            if username.contains(':') {
                let path = ["basic_auth", "username"].map(|key| PathSegment::Key(key.to_owned())).into();
                issues.push(ConfigIssue { path, message: "a user name cannot hold a colon".to_owned() });
            }
            let value = authorization("Basic", &STANDARD.encode(format!("{username}:{}", password.expose())));
            headers.extend(value.map(|value| (AUTHORIZATION, value)));
        }
        headers
    }

    /// The keys of TLS as the SDK knows them.
    pub(crate) fn tls_settings(&self) -> TlsConfig {
        TlsConfig {
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            insecure_skip_verify: self.insecure_skip_verify,
        }
    }

    fn secrets(&self, url: &Url) -> Vec<Secret> {
        let signing = self.secret.iter().flat_map(|secret| secret.expose().split_ascii_whitespace());
        let keys = signing.clone().filter_map(|secret| secret.strip_prefix("whsec_"));
        let basic = self.basic_auth.as_ref().map(|auth| {
            [
                auth.password.expose().to_owned(),
                STANDARD.encode(format!("{}:{}", auth.username, auth.password.expose())),
            ]
        });
        let query =
            url.query().into_iter().flat_map(|query| query.split('&').filter_map(|pair| pair.split('=').nth(1)));
        let plain = self.headers.values().chain(&self.bearer_token).map(|secret| secret.expose().trim());
        let texts = signing.chain(keys).chain(query).chain(plain).map(str::to_owned);
        // Short ones would tear harmless words apart.
        texts.chain(basic.into_iter().flatten()).filter(|text| text.len() >= 6).map(Secret::new).collect()
    }
}

fn keep<T>(result: Result<T, ConfigIssue>, issues: &mut Vec<ConfigIssue>) -> Option<T> {
    result.map_err(|issue| issues.push(issue)).ok()
}

fn static_header(name: &str, value: &Secret) -> Result<(HeaderName, HeaderValue), String> {
    let name: HeaderName = name.parse().map_err(|_| format!("`{name}` is not a legal header name"))?;
    if RESERVED.contains(&name.as_str()) || RESERVED_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix)) {
        return Err(format!("`{name}` is reserved: it belongs to the protocol or to walgate"));
    }
    let value = HeaderValue::from_str(value.expose())
        .ok()
        .filter(|value| value.to_str().is_ok())
        .ok_or("its value must be visible ASCII characters and spaces")?;
    Ok((name.clone(), if name == CONTENT_TYPE { value } else { sensitive(value) }))
}

fn authorization(scheme: &str, value: &str) -> Option<HeaderValue> {
    let value = HeaderValue::from_str(&format!("{scheme} {value}")).ok()?;
    value.to_str().is_ok().then(|| sensitive(value.clone()))
}

/// Marked so that `Debug` hides it and HTTP/2 keeps it out of its compression table.
fn sensitive(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

#[cfg(test)]
mod tests;
