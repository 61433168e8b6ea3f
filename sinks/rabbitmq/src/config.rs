//! What the sink can be told, and what of it is wrong.

use std::collections::BTreeMap;

use serde::Deserialize;
use walgate_sink::{ConfigIssue, Envelope, HumanDuration, PathSegment, Secret, tls::TlsConfig};

use crate::{
    Topology,
    address::{self, Address, MAX_SHORT},
    message, names,
};

/// What stands under `rabbitmq:`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RabbitmqConfig {
    /// Address of the server: `amqp://user:password@host:5672/vhost`, or `amqps://` for TLS.
    pub url: Option<Secret>,
    /// Addresses of the nodes of one cluster, in place of `url`. They are tried in this order.
    #[serde(default)]
    pub urls: Vec<Secret>,
    /// The virtual host, where the addresses do not name it.
    pub vhost: Option<String>,
    /// User name, where the addresses do not name it.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<Secret>,
    /// How the server is told who is there.
    #[serde(default)]
    pub auth: Auth,
    /// Template of the exchange. Routes may set their own; none: the default exchange.
    pub exchange: Option<String>,
    /// Template of the routing key; on the default exchange it names the queue. Routes may set their own.
    pub routing_key: Option<String>,
    /// Headers of every message.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// How an event is put into a message.
    #[serde(default)]
    pub envelope: Envelope,
    /// The property `app_id`.
    pub app_id: Option<String>,
    /// What becomes of an event that no queue takes.
    #[serde(default)]
    pub unroutable: Unroutable,
    /// How often an idle connection is tried; one that is silent for twice as long is dead. Whole seconds.
    pub heartbeat: Option<HumanDuration>,
    /// TLS.
    pub tls: Option<TlsConfig>,
    /// What is declared over each new connection.
    pub declare: Option<Topology>,
}

/// `auth:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Auth {
    /// User and password.
    #[default]
    Plain,
    /// The client's certificate.
    External,
}

/// `unroutable:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unroutable {
    /// It is rejected.
    #[default]
    Reject,
    /// It is tried again until a queue takes it.
    Wait,
}

/// A heartbeat that is not configured, in seconds.
const HEARTBEAT: u16 = 10;

impl RabbitmqConfig {
    /// The servers, or all that is wrong with the configuration.
    pub(crate) fn checked(&self) -> Result<Vec<Address>, Vec<ConfigIssue>> {
        let mut issues = Vec::new();
        let addresses = self.addresses(&mut issues);
        self.check_credentials(&addresses, &mut issues);
        self.check_tls(&addresses, &mut issues);
        let templates = [
            ("exchange", &self.exchange, names::check_exchange as fn(&str) -> Result<(), String>),
            ("routing_key", &self.routing_key, names::check_routing_key),
        ];
        for (key, template, check) in templates {
            if template.as_deref() == Some("") && key == "exchange" {
                issues.push(ConfigIssue::at(key, "it is empty: leave it out to publish to the default exchange"));
            } else if let Some(Err(why)) = template.as_deref().map(|template| names::check_template(template, check)) {
                issues.push(ConfigIssue::at(key, why));
            }
        }
        issues.extend(self.envelope.issues());
        for (name, value) in &self.headers {
            let mut checked = message::check_static(name, value.expose());
            // A receiver takes either prefix for that of an attribute.
            if [message::CLOUDEVENTS, "cloudEvents:"].iter().any(|prefix| self.envelope.reserves(name, prefix)) {
                checked = Err("it is one of those that `envelope` sets");
            }
            if let Err(message) = checked {
                let path = ["headers", name].map(|key| PathSegment::Key(key.to_owned())).into();
                issues.push(ConfigIssue { path, message: message.to_owned() });
            }
        }
        if self.app_id.as_ref().is_some_and(|id| names::check_short(id).is_err()) {
            let message = format!("it must have 1 to {MAX_SHORT} bytes, without control characters");
            issues.push(ConfigIssue::at("app_id", message));
        }
        if let Some(HumanDuration(heartbeat)) = self.heartbeat
            && (heartbeat.subsec_nanos() != 0 || !(1..=600).contains(&heartbeat.as_secs()))
        {
            issues.push(ConfigIssue::at("heartbeat", "it must be a number of whole seconds from 1s to 10m"));
        }
        if let Some(topology) = &self.declare {
            topology.check(&mut issues);
        }
        if issues.is_empty() { Ok(addresses) } else { Err(issues) }
    }

    fn addresses(&self, issues: &mut Vec<ConfigIssue>) -> Vec<Address> {
        let mut addresses = Vec::new();
        let many = self.urls.iter().enumerate().map(|(index, url)| {
            let path = vec![PathSegment::Key("urls".to_owned()), PathSegment::Index(index)];
            (path, url)
        });
        let one = self.url.iter().map(|url| (vec![PathSegment::Key("url".to_owned())], url));
        for (path, url) in one.chain(many) {
            match Address::parse(url.expose()) {
                Ok(address) => addresses.push(address),
                Err(message) => issues.push(ConfigIssue { path, message }),
            }
        }
        match (&self.url, self.urls.is_empty()) {
            (None, true) => {
                issues.push(ConfigIssue::at("url", "it is missing: name the server, such as amqp://localhost:5672"));
            }
            (Some(_), false) => issues.push(ConfigIssue::at("urls", "`url` is given already: write one of them")),
            _ => {}
        }
        if let Some(vhost) = &self.vhost {
            if let Err(why) = address::check_vhost(vhost) {
                issues.push(ConfigIssue::at("vhost", why));
            }
            if addresses.iter().any(|address| address.vhost.is_some()) {
                issues.push(ConfigIssue::at("vhost", "an address names a virtual host already: write it once"));
            }
        }
        addresses
    }

    fn check_credentials(&self, addresses: &[Address], issues: &mut Vec<ConfigIssue>) {
        let named = addresses.iter().any(|address| address.user.is_some());
        if self.user.as_ref().is_some_and(|user| names::check_short(user).is_err()) {
            issues.push(ConfigIssue::at(
                "user",
                format!("it must have 1 to {MAX_SHORT} bytes, and no control character"),
            ));
        }
        if self.user.is_some() && named {
            issues.push(ConfigIssue::at("user", "an address names a user already: write it once"));
        }
        if self.password.is_some() && addresses.iter().any(|address| address.password.is_some()) {
            issues.push(ConfigIssue::at("password", "an address holds a password already: write it once"));
        }
        match self.auth {
            Auth::Plain => {
                if self.password.is_some() && self.user.is_none() && !named {
                    issues.push(ConfigIssue::at("password", "it goes with a `user`: give that too"));
                }
                if self.user.is_some() && self.password.is_none() {
                    issues.push(ConfigIssue::at("user", "`password` is missing: give it, or `password_file`"));
                }
                if addresses
                    .iter()
                    .any(|address| address.user.is_some() && address.password.is_none() && self.password.is_none())
                {
                    issues.push(ConfigIssue::at(
                        "url",
                        "it names a user without a password: give it, or `password_file`",
                    ));
                }
            }
            Auth::External => {
                if self.user.is_some() || self.password.is_some() || named {
                    let message = "with `external` the certificate is the user: remove user and password";
                    issues.push(ConfigIssue::at("auth", message));
                }
                if self.tls.as_ref().is_none_or(|tls| tls.cert_file.is_none())
                    || addresses.iter().any(|address| !address.tls)
                {
                    let message = "`external` needs amqps:// addresses, `tls.cert_file` and `tls.key_file`";
                    issues.push(ConfigIssue::at("auth", message));
                }
            }
        }
    }

    fn check_tls(&self, addresses: &[Address], issues: &mut Vec<ConfigIssue>) {
        let Some(tls) = &self.tls else { return };
        if addresses.iter().any(|address| !address.tls) {
            issues.push(ConfigIssue::at("tls", "it has no effect on an amqp:// address: write amqps://"));
        }
        issues.extend(tls.issues());
    }

    /// Seconds between heartbeats.
    pub(crate) fn heartbeat(&self) -> u16 {
        let configured = self.heartbeat.and_then(|HumanDuration(time)| u16::try_from(time.as_secs()).ok());
        configured.unwrap_or(HEARTBEAT).max(1)
    }

    /// What must not appear in an error text.
    pub(crate) fn secrets(&self, addresses: &[Address]) -> Vec<Secret> {
        let passwords = addresses.iter().filter_map(|address| address.password.as_ref()).chain(&self.password);
        let plain = passwords.chain(self.headers.values());
        let texts = plain.map(|secret| secret.expose().trim());
        // Short ones would tear harmless words apart.
        texts.filter(|text| text.len() >= 6).map(Secret::new).collect()
    }
}

#[cfg(test)]
mod tests;
