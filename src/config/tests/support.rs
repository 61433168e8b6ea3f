//! Sinks as configurations know them, and short ways to load a text.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::Deserialize;
use walgate_sink::{
    Batch, ByteSize, Capabilities, ConfigIssue, DeliveryReport, ErasedFactory, Escape, Secret, Sink, SinkContext,
    SinkError, SinkFactory, TargetField, erase,
};

use super::super::*;

/// A sink that does nothing.
pub struct Nothing;

impl Sink for Nothing {
    async fn deliver(&self, _: &Batch, _: &DeliveryReport) {}

    async fn check(&self) -> Result<(), SinkError> {
        Ok(())
    }

    async fn close(&self) {}

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

macro_rules! connects_to_nothing {
    () => {
        type Sink = Nothing;

        async fn connect(_: &Self::Config, _: SinkContext) -> Result<Nothing, SinkError> {
            Ok(Nothing)
        }
    };
}

const fn field(name: &'static str, required: bool) -> TargetField {
    TargetField { name, required, ordering_key: false, escape: Escape::None }
}

pub struct Stdout;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "read by serde alone")]
pub struct StdoutConfig {}

impl SinkFactory for Stdout {
    const KIND: &'static str = "stdout";
    type Config = StdoutConfig;
    connects_to_nothing!();
}

pub struct Webhook;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "read by serde alone")]
pub struct WebhookConfig {
    pub url: String,
    pub secret: Option<Secret>,
    #[serde(default)]
    pub path: Option<String>,
    #[serde(default)]
    pub mode: Mode,
    #[serde(default)]
    pub compress: bool,
    pub max_body: Option<ByteSize>,
    #[serde(default)]
    pub headers: BTreeMap<String, Secret>,
    pub basic_auth: Option<BasicAuth>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    #[default]
    Single,
    Batch,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "read by serde alone")]
pub struct BasicAuth {
    pub user: String,
    pub password: Secret,
}

impl SinkFactory for Webhook {
    const KIND: &'static str = "webhook";
    const TARGET: &'static [TargetField] = &[field("path", false)];
    const SECRETS: &'static [&'static str] = &["secret", "basic_auth.password", "headers.*"];
    type Config = WebhookConfig;
    connects_to_nothing!();

    fn validate(config: &WebhookConfig) -> Vec<ConfigIssue> {
        let mut issues = Vec::new();
        if !config.url.starts_with("http") {
            issues.push(ConfigIssue::at("url", format!("`{}` is not a URL of http or https", config.url)));
        }
        if config.secret.as_ref().is_some_and(|secret| secret.expose().len() < 4) {
            let text = config.secret.as_ref().map(|secret| secret.expose().to_owned()).unwrap_or_default();
            issues.push(ConfigIssue::at("secret", format!("the secret `{text}` is too short")));
        }
        issues
    }
}

pub struct Kafka;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "read by serde alone")]
pub struct KafkaConfig {
    pub brokers: Vec<String>,
    #[serde(default)]
    pub topic: Option<String>,
    #[serde(default)]
    pub key: Option<String>,
}

impl SinkFactory for Kafka {
    const KIND: &'static str = "kafka";
    const TARGET: &'static [TargetField] = &[field("topic", true), field("key", false)];
    type Config = KafkaConfig;
    connects_to_nothing!();
}

/// `kafka`, `stdout` and `webhook`; `nats` exists and is not compiled in.
pub struct Catalog(BTreeMap<&'static str, Arc<dyn ErasedFactory>>);

impl Catalog {
    pub fn new() -> Self {
        Catalog([erase::<Stdout>(), erase::<Webhook>(), erase::<Kafka>()].map(|f| (f.kind(), f)).into())
    }
}

impl KindCatalog for Catalog {
    fn factory(&self, kind: &str) -> Option<&Arc<dyn ErasedFactory>> {
        self.0.get(kind)
    }

    fn kinds(&self) -> Vec<&str> {
        self.0.keys().copied().collect()
    }

    fn feature_of(&self, kind: &str) -> Option<&str> {
        (kind == "nats").then_some("nats")
    }
}

/// Pairs as an environment.
pub fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let map: HashMap<_, _> = pairs.iter().copied().collect();
    map.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

pub fn load_with(text: &str, pairs: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Result<Loaded, ConfigErrors> {
    let flags = flags.iter().map(|(flag, key, value)| Flag {
        flag: (*flag).to_owned(),
        key: (*key).to_owned(),
        value: (*value).to_owned(),
    });
    let file = FileSource::Text("walgate.yaml".into(), text.into());
    load(Sources { file, env: env(pairs), flags: flags.collect() }, &Catalog::new())
}

pub fn load_text(text: &str) -> Result<Loaded, ConfigErrors> {
    load_with(text, &[], &[])
}
