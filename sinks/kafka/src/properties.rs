//! From the configuration to librdkafka's own, and which of its settings nobody may pass through.

use std::time::Duration;

use rdkafka::{ClientConfig, config::RDKafkaLogLevel, error::KafkaError};
use walgate_sink::{ConfigIssue, Secret, text};

use crate::{
    KafkaConfig, Partitioner, SaslConfig, TlsConfig,
    config::{Compression, Mechanism, issue},
};

/// Records that librdkafka holds at the most, whatever their size.
const MAX_QUEUED: u32 = 16_384;
/// Milliseconds that a record waits for company, so that those of one batch share a request.
const LINGER: &str = "0.5";
/// The longest pause between two attempts to connect: a cluster that is back is found within it.
const RECONNECT: &str = "500";

/// Why a setting cannot be passed through. The first that fits counts; a name that ends with `*` is a prefix.
const REFUSED: &[(&str, &str)] = &[
    ("bootstrap.servers", "write it as `brokers`"),
    ("metadata.broker.list", "write it as `brokers`"),
    ("client.id", "write it as `client_id`"),
    ("message.max.bytes", "write it as `max_message`"),
    ("queue.buffering.max.kbytes", "write it as `buffer`"),
    ("queue.buffering.max.messages", "it follows from `buffer`"),
    ("compression.codec", "write it as `compression`"),
    ("compression.type", "write it as `compression`"),
    ("partitioner", "write it as `partitioner`"),
    ("statistics.interval.ms", "write it as `statistics`"),
    ("security.protocol", "it follows from `tls` and `sasl`"),
    ("ssl.cipher.suites", ""),
    ("ssl.curves.list", ""),
    ("ssl.sigalgs.list", ""),
    ("ssl.crl.location", ""),
    ("ssl.*", "write what belongs to TLS under `tls`"),
    ("enable.ssl.certificate.verification", "write it as `tls.insecure_skip_verify`"),
    ("sasl.*", "write credentials under `sasl`"),
    ("enable.sasl.oauthbearer.unsecure.jwt", "write credentials under `sasl`"),
    ("enable.gapless.guarantee", "without it a record that fails leaves a gap, and later ones of its key are written"),
    ("max.in.flight*", "idempotence, which keeps the order, sets it"),
    ("retries", "it is without a bound: what is given up leaves a gap in the order of its key"),
    ("message.send.max.retries", "it is without a bound: what is given up leaves a gap in the order of its key"),
    ("message.timeout.ms", "records never expire: one that did would leave a gap in the order of its key"),
    ("delivery.timeout.ms", "records never expire: one that did would leave a gap in the order of its key"),
    ("delivery.report.only.error", "without reports nothing would ever be acknowledged"),
    ("queuing.strategy", "it would send newer records first"),
    ("msg_order_cmp", "it would send records in another order"),
    ("transactional.id", "walgate sends without transactions: what it sends is never undone"),
    ("transaction.timeout.ms", "walgate sends without transactions: what it sends is never undone"),
    ("plugin.library.paths", "it would load foreign code"),
    ("interceptors", "it would load foreign code"),
    ("test.*", "it replaces the brokers"),
    ("log.queue", "walgate writes the client's log"),
    ("log_level", "the filter of walgate's own log decides"),
    ("enabled_events", "walgate sets it"),
];

/// Settings that name files, and the keys that they come from.
const TLS_FILES: [(&str, &str); 3] =
    [("ssl.ca.location", "ca_file"), ("ssl.certificate.location", "cert_file"), ("ssl.key.location", "key_file")];

/// What weakens an acknowledgement: only with `unsafe_acks: true`.
const UNSAFE: [&str; 3] = ["acks", "request.required.acks", "enable.idempotence"];

/// Every fault of `properties`, and of what is made out of the other keys.
pub(crate) fn check(config: &KafkaConfig, issues: &mut Vec<ConfigIssue>) {
    let mut oidc = ClientConfig::new();
    oidc.set_log_level(RDKafkaLogLevel::Warning);
    oidc.set("sasl.oauthbearer.method", "oidc");
    if config.sasl.as_ref().is_some_and(|sasl| sasl.oidc.is_some()) && oidc.create_native_config().is_err() {
        let message = "it is not compiled in: build walgate with `--features kafka-oidc` where libcurl's headers are, or \
                       give `token_file`";
        issues.push(issue(&["sasl", "oidc"], message));
    }
    let found = issues.len();
    for name in config.properties.keys() {
        if let Some(why) = refused(name, config.unsafe_acks) {
            issues.push(issue(&["properties", name], why));
        }
    }
    if issues.len() > found {
        return;
    }
    // librdkafka knows its own settings: it is asked for each, without being started.
    for (name, value) in &config.properties {
        let mut alone = ClientConfig::new();
        alone.set_log_level(RDKafkaLogLevel::Warning);
        alone.set(name, value.as_str());
        if let Err(error) = alone.create_native_config() {
            issues.push(issue(&["properties", name], describe(&error, value.as_str())));
        }
    }
}

fn refused(name: &str, unsafe_acks: bool) -> Option<String> {
    if UNSAFE.contains(&name) {
        return (!unsafe_acks).then(|| {
            "an acknowledgement would no longer mean that the record is safe, or in order: if that is wanted, \
             `unsafe_acks: true` allows it"
                .to_owned()
        });
    }
    let (_, why) = REFUSED.iter().find(|(refused, _)| match refused.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => *refused == name,
    })?;
    (!why.is_empty()).then(|| format!("it cannot be set here: {why}"))
}

/// What librdkafka has against a setting, without the value: it may be a secret at the wrong place.
fn describe(error: &KafkaError, value: &str) -> String {
    match error {
        KafkaError::ClientConfig(_, why, _, _) => {
            let secrets = [Secret::new(value)];
            let secrets: &[Secret] = if value.len() >= 6 { &secrets } else { &[] };
            format!("librdkafka does not take it: {}", text::excerpt(why.as_bytes(), secrets))
        }
        _ => "librdkafka does not take it".to_owned(),
    }
}

/// What librdkafka has against its settings as a whole. It does not name the file that it cannot use.
pub(crate) fn unusable(client: &ClientConfig, error: &KafkaError) -> String {
    let why = match error {
        KafkaError::ClientCreation(why) | KafkaError::ClientConfig(_, why, _, _) => why.clone(),
        other => other.to_string(),
    };
    let blamed = TLS_FILES.iter().find(|(name, _)| why.contains(name));
    let Some((file, key)) = blamed.and_then(|(name, key)| Some((client.get(name)?, key))) else { return why };
    let why = std::fs::File::open(file).err().map_or(why, |error| error.to_string());
    format!("the file {file} (`tls.{key}`) cannot be used: {why}")
}

/// What every client of the sink has: how the cluster is reached.
pub(crate) fn of_any_client(config: &KafkaConfig, timeout: Duration) -> ClientConfig {
    let mut client = ClientConfig::new();
    // Its lines become walgate's own at the level `debug`.
    client.set_log_level(RDKafkaLogLevel::Info);
    let patience = timeout.as_millis().clamp(100, 60_000).to_string();
    client
        .set("bootstrap.servers", config.brokers.join(","))
        .set("client.id", &config.client_id)
        .set("socket.keepalive.enable", "true")
        .set("socket.timeout.ms", &patience)
        .set("socket.connection.setup.timeout.ms", timeout.as_millis().clamp(1_000, 30_000).to_string())
        .set("api.version.request.timeout.ms", &patience)
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", RECONNECT)
        .set("log.connection.close", "false")
        .set("enable.metrics.push", "false")
        .set("message.max.bytes", config.max_message.0.to_string());
    set_security(&mut client, config.tls.as_ref(), config.sasl.as_ref());
    client
}

/// What the producer has.
pub(crate) fn of_producer(config: &KafkaConfig, timeout: Duration) -> ClientConfig {
    let mut client = of_any_client(config, timeout);
    let patience = timeout.as_millis().clamp(100, 60_000).to_string();
    client
        .set("linger.ms", LINGER)
        // 0: for ever. A record that expired would leave a gap in the order of its key.
        .set("message.timeout.ms", "0")
        // What was not answered by then is sent again, with the number that it has.
        .set("request.timeout.ms", &patience)
        .set("retry.backoff.ms", "50")
        .set("retry.backoff.max.ms", "1000")
        .set("topic.metadata.propagation.max.ms", "5000")
        .set("partitioner", partitioner(config.partitioner))
        .set("compression.codec", compression(config.compression))
        .set("queue.buffering.max.kbytes", (config.buffer.0 >> 10).max(1).to_string())
        .set("queue.buffering.max.messages", MAX_QUEUED.to_string())
        .set("statistics.interval.ms", config.statistics.0.as_millis().to_string());
    let weakened = config.unsafe_acks && UNSAFE.iter().any(|name| config.properties.contains_key(*name));
    if !weakened {
        client.set("acks", "all").set("enable.idempotence", "true").set("enable.gapless.guarantee", "true");
    }
    for (name, value) in &config.properties {
        client.set(name, value.as_str());
    }
    client
}

fn partitioner(partitioner: Partitioner) -> &'static str {
    match partitioner {
        Partitioner::Murmur2 => "murmur2_random",
        Partitioner::Crc32 => "consistent_random",
    }
}

fn compression(compression: Compression) -> &'static str {
    match compression {
        Compression::None => "none",
        Compression::Gzip => "gzip",
        Compression::Snappy => "snappy",
        Compression::Lz4 => "lz4",
        Compression::Zstd => "zstd",
    }
}

fn set_security(client: &mut ClientConfig, tls: Option<&TlsConfig>, sasl: Option<&SaslConfig>) {
    let protocol = match (tls.is_some(), sasl.is_some()) {
        (false, false) => "plaintext",
        (true, false) => "ssl",
        (false, true) => "sasl_plaintext",
        (true, true) => "sasl_ssl",
    };
    client.set("security.protocol", protocol);
    if let Some(tls) = tls {
        let files = [
            ("ssl.ca.location", &tls.ca_file),
            ("ssl.certificate.location", &tls.cert_file),
            ("ssl.key.location", &tls.key_file),
        ];
        for (name, file) in files {
            if let Some(file) = file {
                client.set(name, file.to_string_lossy());
            }
        }
        if let Some(password) = &tls.key_password {
            client.set("ssl.key.password", password.expose());
        }
        if tls.insecure_skip_verify {
            client.set("enable.ssl.certificate.verification", "false");
        }
        client.set("ssl.endpoint.identification.algorithm", if tls.insecure_skip_verify { "none" } else { "https" });
    }
    let Some(sasl) = sasl else { return };
    client.set("sasl.mechanism", sasl.mechanism.name());
    if sasl.mechanism != Mechanism::OauthBearer {
        client.set("sasl.username", sasl.username.as_deref().unwrap_or_default());
        client.set("sasl.password", sasl.password.as_ref().map(Secret::expose).unwrap_or_default());
    }
    if let Some(oidc) = &sasl.oidc {
        client
            .set("sasl.oauthbearer.method", "oidc")
            .set("sasl.oauthbearer.client.id", &oidc.client_id)
            .set("sasl.oauthbearer.client.secret", oidc.client_secret.expose())
            .set("sasl.oauthbearer.token.endpoint.url", &oidc.token_url);
        if let Some(scope) = &oidc.scope {
            client.set("sasl.oauthbearer.scope", scope);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn config(more: Value) -> KafkaConfig {
        let mut config = json!({ "brokers": ["localhost:9092"], "topic": "orders" });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        walgate_sink::read_config(&config).unwrap()
    }

    fn producer(more: Value) -> ClientConfig {
        of_producer(&config(more), Duration::from_secs(15))
    }

    fn faults(more: Value) -> Vec<String> {
        let mut issues = Vec::new();
        check(&config(more), &mut issues);
        issues.iter().map(|issue| format!("{:?}: {issue}", issue.path.last().unwrap())).collect()
    }

    #[test]
    fn k6_acknowledgements_are_everybodys_and_in_order() {
        let producer = producer(json!({}));
        for (name, value) in [
            ("acks", "all"),
            ("enable.idempotence", "true"),
            ("enable.gapless.guarantee", "true"),
            ("message.timeout.ms", "0"),
            ("partitioner", "murmur2_random"),
            ("queue.buffering.max.kbytes", "32768"),
            ("security.protocol", "plaintext"),
        ] {
            assert_eq!(producer.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn k6_nothing_weakens_them_but_a_key_that_says_so() {
        for (name, value) in
            [("acks", json!(1)), ("request.required.acks", json!("0")), ("enable.idempotence", json!(false))]
        {
            let faults = faults(json!({ "properties": { name: value } }));
            assert!(faults[0].contains("`unsafe_acks: true` allows it"), "{faults:?}");
            let weakened = json!({ "unsafe_acks": true, "properties": { name: value } });
            assert_eq!(self::faults(weakened.clone()), Vec::<String>::new());
            let producer = producer(weakened);
            assert_eq!(producer.get("enable.gapless.guarantee"), None);
        }
        assert_eq!(producer(json!({ "unsafe_acks": true })).get("acks"), Some("all"), "alone it weakens nothing");
    }

    #[test]
    fn dangerous_settings_are_refused_with_a_reason_and_others_pass() {
        for name in [
            "bootstrap.servers",
            "message.timeout.ms",
            "delivery.timeout.ms",
            "retries",
            "max.in.flight",
            "max.in.flight.requests.per.connection",
            "enable.gapless.guarantee",
            "delivery.report.only.error",
            "transactional.id",
            "plugin.library.paths",
            "sasl.password",
            "ssl.key.pem",
            "ssl.engine.location",
            "test.mock.num.brokers",
            "queuing.strategy",
        ] {
            let faults = faults(json!({ "properties": { name: "1" }, "unsafe_acks": true }));
            assert!(faults.len() == 1 && faults[0].contains("it cannot be set here: "), "{name}: {faults:?}");
        }
        let passed = json!({ "properties": { "linger.ms": 5, "socket.nagle.disable": false, "ssl.curves.list": "P-256",
            "client.rack": "eu-1" } });
        assert_eq!(faults(passed.clone()), Vec::<String>::new());
        assert_eq!(producer(passed).get("linger.ms"), Some("5"));
    }

    #[test]
    fn librdkafka_is_asked_about_the_rest_and_values_are_not_shown() {
        let faults = faults(json!({ "properties": { "linger.sm": 5, "batch.size": "canary-77", "acks.x": "y" } }));
        assert_eq!(faults.len(), 3);
        assert!(faults.iter().all(|fault| fault.contains("librdkafka does not take it: ")), "{faults:?}");
        assert!(!faults.concat().contains("canary-77"), "{faults:?}");
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named() {
        let no_pem = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        for (key, file, why) in [
            ("ca_file", "/nonexistent/ca.pem", "No such file"),
            ("ca_file", no_pem, "ssl.ca.location failed"),
            ("cert_file", "/nonexistent/client.pem", "No such file"),
            ("key_file", "/nonexistent/client.key", "No such file"),
        ] {
            let client = producer(json!({ "tls": { key: file } }));
            let error = client.create::<rdkafka::producer::BaseProducer>().err().unwrap();
            let said = unusable(&client, &error);
            assert!(said.starts_with(&format!("the file {file} (`tls.{key}`) cannot be used: ")), "{said}");
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn tls_and_credentials_decide_the_protocol() {
        let protocol = |more| producer(more).get("security.protocol").map(str::to_owned).unwrap();
        let sasl = json!({ "mechanism": "scram-sha-512", "username": "u", "password": "p" });
        assert_eq!(protocol(json!({ "tls": {} })), "ssl");
        assert_eq!(protocol(json!({ "sasl": sasl })), "sasl_plaintext");
        assert_eq!(protocol(json!({ "sasl": sasl, "tls": {} })), "sasl_ssl");
        let tls = producer(json!({ "tls": { "ca_file": "/ca.pem" } }));
        assert_eq!(tls.get("ssl.endpoint.identification.algorithm"), Some("https"));
        assert_eq!(tls.get("enable.ssl.certificate.verification"), None, "on by default");
        let open = producer(json!({ "tls": { "insecure_skip_verify": true } }));
        assert_eq!(open.get("enable.ssl.certificate.verification"), Some("false"));
    }
}
