//! What the sink can be told, and what of it is wrong.

mod credentials;
mod scalar;

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use walgate_sink::{ByteSize, ConfigIssue, Envelope, HumanDuration, PathSegment, Secret, envelope::ContentMode};

pub use self::{
    credentials::{Mechanism, Oidc, SaslConfig},
    scalar::Scalar,
};
use crate::{message, properties, topic};

/// What stands under `kafka:`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KafkaConfig {
    /// Brokers of the cluster to begin with, as `host:port`; the others are learned from them.
    pub brokers: Vec<String>,
    /// Template of the topic. Routes may set their own.
    pub topic: Option<String>,
    /// Template of the record's key, which replaces the ordering key. Routes may set their own.
    pub key: Option<String>,
    /// Headers of every record.
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    /// How an event is put into a record.
    #[serde(default)]
    pub envelope: Envelope,
    /// Whether an event whose payload is NULL becomes a tombstone, a record without a value.
    #[serde(default)]
    pub tombstones: bool,
    /// How the partition of a key is found.
    #[serde(default)]
    pub partitioner: Partitioner,
    /// How record sets are compressed.
    #[serde(default)]
    pub compression: Compression,
    /// Bytes of one record at the most, as the client counts them.
    #[serde(default = "max_message")]
    pub max_message: ByteSize,
    /// Bytes of records that the client holds at the most.
    #[serde(default = "buffer")]
    pub buffer: ByteSize,
    /// How often the client counts what it does, for the metrics; 0s: never.
    #[serde(default = "statistics")]
    pub statistics: HumanDuration,
    /// What the client calls itself.
    #[serde(default = "client_id")]
    pub client_id: String,
    /// TLS.
    pub tls: Option<TlsConfig>,
    /// How the brokers are told who is there.
    pub sasl: Option<SaslConfig>,
    /// Makes topics that are missing.
    pub create_topics: Option<CreateTopics>,
    /// Lets `properties` weaken what an acknowledgement is.
    #[serde(default)]
    pub unsafe_acks: bool,
    /// Other settings of the client library, librdkafka, by their own names.
    #[serde(default)]
    pub properties: BTreeMap<String, Scalar>,
}

/// `partitioner:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partitioner {
    /// As Java's producers.
    #[default]
    Murmur2,
    /// As librdkafka's own default.
    Crc32,
}

/// `compression:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names of the algorithms")]
pub enum Compression {
    #[default]
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
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
    /// The private key's passphrase.
    pub key_password: Option<Secret>,
    /// Takes any certificate: whoever is on the way can read and answer.
    #[serde(default)]
    pub insecure_skip_verify: bool,
}

/// `create_topics:`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateTopics {
    /// Partitions; without it what the brokers' own default is.
    pub partitions: Option<u32>,
    /// Replicas of each partition; without it what the brokers' own default is.
    pub replication: Option<u16>,
    /// Settings of the topic, by Kafka's own names.
    #[serde(default)]
    pub config: BTreeMap<String, Scalar>,
}

fn max_message() -> ByteSize {
    ByteSize(1_000_000)
}

fn buffer() -> ByteSize {
    ByteSize(32 << 20)
}

fn statistics() -> HumanDuration {
    HumanDuration(std::time::Duration::from_secs(5))
}

fn client_id() -> String {
    "walgate".to_owned()
}

impl KafkaConfig {
    /// All that is wrong with the configuration.
    pub(crate) fn issues(&self) -> Vec<ConfigIssue> {
        let mut issues = Vec::new();
        if self.brokers.is_empty() {
            issues.push(ConfigIssue::at("brokers", "it is empty: name a broker, such as localhost:9092"));
        }
        for (index, broker) in self.brokers.iter().enumerate() {
            if let Err(why) = check_broker(broker) {
                let path = vec![PathSegment::Key("brokers".to_owned()), PathSegment::Index(index)];
                issues.push(ConfigIssue { path, message: why.to_owned() });
            }
        }
        if let Some(Err(why)) = self.topic.as_deref().map(topic::check_template) {
            issues.push(ConfigIssue::at("topic", why));
        }
        for (name, value) in &self.headers {
            let mut checked = message::check_static(name, value.expose());
            if self.envelope.reserves(name, message::CLOUDEVENTS) {
                checked = Err("it is one of those that `envelope` sets");
            }
            if let Err(why) = checked {
                issues.push(issue(&["headers", name], why));
            }
        }
        issues.extend(self.envelope.issues());
        if self.tombstones && self.envelope.content_mode() == Some(ContentMode::Structured) {
            issues.push(ConfigIssue::at(
                "tombstones",
                "it has no effect: a structured CloudEvent is never without a value",
            ));
        }
        self.check_sizes(&mut issues);
        if self.client_id.is_empty() || self.client_id.len() > 255 || self.client_id.contains(char::is_control) {
            issues.push(ConfigIssue::at("client_id", "it must have 1 to 255 bytes, without control characters"));
        }
        if self.statistics.0.as_secs() > 86_400 || (!self.statistics.0.is_zero() && self.statistics.0.as_millis() < 100)
        {
            issues.push(ConfigIssue::at("statistics", "it must be 100ms to 1 day, or 0s for none"));
        }
        self.check_tls(&mut issues);
        if let Some(sasl) = &self.sasl {
            sasl.check(&mut issues);
        }
        self.check_created(&mut issues);
        properties::check(self, &mut issues);
        issues
    }

    fn check_sizes(&self, issues: &mut Vec<ConfigIssue>) {
        if !(1_000..=1_000_000_000).contains(&self.max_message.0) {
            issues.push(ConfigIssue::at("max_message", "it must be 1000B to 1GB"));
        }
        if !(1 << 10..=1 << 40).contains(&self.buffer.0) {
            issues.push(ConfigIssue::at("buffer", "it must be 1KiB to 1TiB"));
        } else if self.buffer.0 < self.max_message.0 {
            issues.push(ConfigIssue::at(
                "buffer",
                "it is smaller than `max_message`: the largest record would never fit",
            ));
        }
    }

    fn check_tls(&self, issues: &mut Vec<ConfigIssue>) {
        let Some(tls) = &self.tls else { return };
        match (&tls.cert_file, &tls.key_file) {
            (Some(_), None) => {
                issues.push(issue(
                    &["tls", "cert_file"],
                    "`key_file` is missing: a certificate goes with its private key",
                ));
            }
            (None, Some(_)) => {
                issues.push(issue(
                    &["tls", "key_file"],
                    "`cert_file` is missing: a private key goes with its certificate",
                ));
            }
            (None, None) if tls.key_password.is_some() => {
                issues.push(issue(&["tls", "key_password"], "it goes with `key_file`: give that too"));
            }
            _ => {}
        }
        if tls.ca_file.is_some() && tls.insecure_skip_verify {
            issues.push(issue(&["tls", "insecure_skip_verify"], "with it `ca_file` has no effect: remove one of them"));
        }
    }

    fn check_created(&self, issues: &mut Vec<ConfigIssue>) {
        let Some(created) = &self.create_topics else { return };
        if created.partitions.is_some_and(|count| !(1..=100_000).contains(&count)) {
            issues.push(issue(&["create_topics", "partitions"], "it must be 1 to 100000"));
        }
        if created.replication.is_some_and(|count| !(1..=1_000).contains(&count)) {
            issues.push(issue(&["create_topics", "replication"], "it must be 1 to 1000"));
        }
        if self.sasl.as_ref().is_some_and(SaslConfig::is_token) {
            issues.push(ConfigIssue::at(
                "create_topics",
                "it does not go with tokens of a file: the client library's administration does not read them; make the \
                 topics by other means",
            ));
        }
    }

    /// What must not appear in an error text.
    pub(crate) fn secrets(&self) -> Vec<Secret> {
        let sasl = self.sasl.iter().flat_map(SaslConfig::secrets);
        let tls = self.tls.iter().filter_map(|tls| tls.key_password.as_ref());
        let texts = sasl.chain(tls).chain(self.headers.values()).map(|secret| secret.expose().trim());
        // Short ones would tear harmless words apart.
        texts.filter(|text| text.len() >= 6).map(Secret::new).collect()
    }

    /// The one topic of the configuration.
    pub(crate) fn fixed_topic(&self) -> Option<&str> {
        self.topic.as_deref().filter(|topic| !topic::is_template(topic))
    }

    /// The brokers, for texts.
    pub(crate) fn place(&self) -> String {
        const SHOWN: usize = 3;
        let mut place = self.brokers.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if self.brokers.len() > SHOWN {
            place.push_str(", …");
        }
        place
    }
}

/// An issue below the sink's own keys.
pub(crate) fn issue(path: &[&str], message: impl Into<String>) -> ConfigIssue {
    let path = path.iter().map(|key| PathSegment::Key((*key).to_owned())).collect();
    ConfigIssue { path, message: message.into() }
}

/// `host:port`, with the host in brackets where it is an IPv6 address.
fn check_broker(text: &str) -> Result<(), &'static str> {
    const FORM: &str = "it is not an address: write host:port, such as localhost:9092";
    if text.contains("://") {
        return Err("it has a scheme: write host:port, and `tls: {}` for TLS");
    }
    if text.contains('@') {
        return Err("credentials do not belong into an address: write them under `sasl`");
    }
    let (host, port) = text.rsplit_once(':').ok_or(FORM)?;
    let named = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
        }
    };
    let numbered = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if named && numbered { Ok(()) } else { Err(FORM) }
}

#[cfg(test)]
mod tests;
