//! From a sink's configuration to a connected sink.

use std::{any::Any, fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration};

use serde::de::DeserializeOwned;

use crate::{BoxFuture, DynSink, Sink, SinkError, TargetField};

/// Makes sinks of one kind. The kind's name is the key under a sink's name in the configuration:
/// `sinks: { partner: { webhook: { url: ... } } }`.
pub trait SinkFactory: Send + Sync + 'static {
    /// The kind, such as `webhook`.
    const KIND: &'static str;

    /// The parts of an address. A key of the same name in [`SinkFactory::Config`] is taken by the gateway as the
    /// default template for routes that do not set it.
    const TARGET: &'static [TargetField] = &[];

    /// Keys of the configuration, with dots for nesting, that hold secrets: `bearer_token`, `basic_auth.password`.
    /// For each the gateway also takes `<key>_file`, the path of a file whose content (without trailing line ends)
    /// is the value, so the sink itself never sees that key.
    const SECRETS: &'static [&'static str] = &[];

    /// Keys of the configuration, with dots for nesting, whose values are paths of files that the sink reads when it is
    /// made: `ca_file`, `tls.key_file`. A reload makes the sink anew where the content of one has changed, as it does
    /// where the configuration itself has. The files of [`SinkFactory::SECRETS`] are not among them: the gateway reads
    /// those; nor is a file that the sink itself reads again while it runs.
    const FILES: &'static [&'static str] = &[];

    /// The typed configuration: `#[serde(deny_unknown_fields)]`, with [`crate::Secret`], [`crate::HumanDuration`]
    /// and [`crate::ByteSize`] where they fit.
    type Config: DeserializeOwned + Send + Sync + 'static;

    /// The sink itself.
    type Sink: Sink;

    /// Checks what types cannot say, offline. Returns every issue, not the first.
    fn validate(config: &Self::Config) -> Vec<ConfigIssue> {
        let _ = config;
        Vec::new()
    }

    /// Whether `value` can be the target field `field` by the sink's own grammar, offline: what the sink would reject
    /// for its form alone. The gateway asks it when a configuration is loaded, with `x` in place of each field of a
    /// template, and for `walgate route` and `walgate test`. A sink still checks what it is given to deliver.
    ///
    /// # Errors
    /// What is wrong with it, as a clause without the value: "it has a space".
    fn check_target(field: &str, value: &str) -> Result<(), String> {
        let _ = (field, value);
        Ok(())
    }

    /// Makes the sink. It should not wait for the other side: a sink that is away at the start must not keep the
    /// others waiting; it connects at its first delivery or check. Files (certificates, credentials) are read here.
    fn connect(
        config: &Self::Config,
        context: SinkContext,
    ) -> impl Future<Output = Result<Self::Sink, SinkError>> + Send;
}

/// [`SinkFactory::check_target`] of some kind of sink: the field's name and its value; what is wrong with it.
pub type TargetCheck = fn(field: &str, value: &str) -> Result<(), String>;

/// What a sink is told about its surroundings.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SinkContext {
    /// The sink's name in the configuration.
    pub name: Arc<str>,
    /// Time that one attempt of one delivery may take.
    pub timeout: Duration,
}

impl SinkContext {
    /// A context for the sink of this name.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, timeout: Duration) -> Self {
        SinkContext { name: name.into(), timeout }
    }
}

/// One fault in a sink's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigIssue {
    /// Where, from the sink's own configuration downwards; empty: the configuration as a whole.
    pub path: Vec<PathSegment>,
    /// What is wrong, and what is allowed.
    pub message: String,
}

/// One step into a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathSegment {
    /// The value of a key in a mapping.
    Key(String),
    /// An element of a list, from 0.
    Index(usize),
}

impl ConfigIssue {
    /// An issue with the value of one key.
    #[must_use]
    pub fn at(key: &str, message: impl Into<String>) -> Self {
        ConfigIssue { path: vec![PathSegment::Key(key.to_owned())], message: message.into() }
    }
}

impl fmt::Display for ConfigIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A configuration that its factory has accepted.
pub struct ParsedConfig(Box<dyn Any + Send + Sync>);

impl fmt::Debug for ParsedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ParsedConfig")
    }
}

/// [`SinkFactory`] as a trait object: what the gateway's registry holds. Made by [`erase`].
pub trait ErasedFactory: Send + Sync {
    /// See [`SinkFactory::KIND`].
    fn kind(&self) -> &'static str;
    /// See [`SinkFactory::TARGET`].
    fn target(&self) -> &'static [TargetField];
    /// See [`SinkFactory::SECRETS`].
    fn secrets(&self) -> &'static [&'static str];
    /// See [`SinkFactory::FILES`].
    fn files(&self) -> &'static [&'static str] {
        &[]
    }
    /// Deserializes one configuration.
    ///
    /// # Errors
    /// The first fault that serde finds, with its path. Its message is serde's own, without the value.
    fn parse(&self, config: serde_json::Value) -> Result<ParsedConfig, ConfigIssue>;
    /// See [`SinkFactory::validate`].
    fn validate(&self, config: &ParsedConfig) -> Vec<ConfigIssue>;
    /// See [`SinkFactory::check_target`].
    fn target_check(&self) -> TargetCheck {
        |_, _| Ok(())
    }
    /// See [`SinkFactory::connect`].
    fn connect<'a>(
        &'a self,
        config: &'a ParsedConfig,
        context: SinkContext,
    ) -> BoxFuture<'a, Result<Arc<dyn DynSink>, SinkError>>;
}

/// Turns a factory type into a trait object.
#[must_use]
pub fn erase<F: SinkFactory>() -> Arc<dyn ErasedFactory> {
    Arc::new(Erased::<F>(PhantomData))
}

struct Erased<F>(PhantomData<fn() -> F>);

impl<F: SinkFactory> ErasedFactory for Erased<F> {
    fn kind(&self) -> &'static str {
        F::KIND
    }

    fn target(&self) -> &'static [TargetField] {
        F::TARGET
    }

    fn secrets(&self) -> &'static [&'static str] {
        F::SECRETS
    }

    fn files(&self) -> &'static [&'static str] {
        F::FILES
    }

    fn parse(&self, config: serde_json::Value) -> Result<ParsedConfig, ConfigIssue> {
        // `stdout:` with nothing behind it is a configuration without keys.
        let config = if config.is_null() { serde_json::Value::Object(serde_json::Map::new()) } else { config };
        let read = crate::read_config::<F::Config>(&config).map_err(|issue| {
            let message = without_value(&issue.message);
            ConfigIssue { message, ..issue }
        });
        read.map(|config| ParsedConfig(Box::new(config)))
    }

    fn validate(&self, config: &ParsedConfig) -> Vec<ConfigIssue> {
        config.0.downcast_ref::<F::Config>().map(F::validate).unwrap_or_default()
    }

    fn target_check(&self) -> TargetCheck {
        F::check_target
    }

    fn connect<'a>(
        &'a self,
        config: &'a ParsedConfig,
        context: SinkContext,
    ) -> BoxFuture<'a, Result<Arc<dyn DynSink>, SinkError>> {
        Box::pin(async move {
            let config = config.0.downcast_ref::<F::Config>().ok_or_else(|| {
                SinkError::fatal(format!("the configuration of sink {} is not one of kind {}", context.name, F::KIND))
            })?;
            let sink = F::connect(config, context).await?;
            Ok(Arc::new(sink) as Arc<dyn DynSink>)
        })
    }
}

/// serde's message about a value of a wrong type, without the value: it may be a secret under the wrong key.
fn without_value(message: &str) -> String {
    const FOUND: [&str; 9] =
        ["string", "integer", "floating point", "boolean", "null", "sequence", "map", "unit", "character"];
    for start in ["invalid type: ", "invalid value: "] {
        let wrong = message.strip_prefix(start).and_then(|wrong| wrong.rsplit_once(", expected "));
        if let Some((found, expected)) = wrong {
            let kind = FOUND.iter().find(|kind| found.starts_with(**kind)).unwrap_or(&"something else");
            return format!("{start}{kind}, expected {expected}");
        }
    }
    message.to_owned()
}
