//! Which sinks are compiled in: the only file that knows.

use std::{collections::BTreeMap, sync::Arc};

use walgate_sink::{ErasedFactory, SinkFactory, erase};

use crate::config::KindCatalog;

/// Kinds that exist in this project but may be left out of a build, with the cargo feature that brings them.
pub const OPTIONAL_KINDS: &[(&str, &str)] =
    &[("kafka", "kafka"), ("nats", "nats"), ("rabbitmq", "rabbitmq"), ("sqs", "sqs"), ("webhook", "webhook")];

/// Sink factories by kind.
#[derive(Clone, Default)]
pub struct Registry {
    factories: BTreeMap<&'static str, Arc<dyn ErasedFactory>>,
}

impl Registry {
    /// Every sink that is compiled in.
    #[must_use]
    pub fn built_in() -> Self {
        let registry = Registry::default()
            .with::<walgate_sink_stdout::StdoutFactory>()
            .with::<walgate_sink_discard::DiscardFactory>();
        #[cfg(feature = "kafka")]
        let registry = registry.with::<walgate_sink_kafka::KafkaFactory>();
        #[cfg(feature = "nats")]
        let registry = registry.with::<walgate_sink_nats::NatsFactory>();
        #[cfg(feature = "rabbitmq")]
        let registry = registry.with::<walgate_sink_rabbitmq::RabbitmqFactory>();
        #[cfg(feature = "sqs")]
        let registry = registry.with::<walgate_sink_sqs::SqsFactory>();
        #[cfg(feature = "webhook")]
        let registry = registry.with::<walgate_sink_webhook::WebhookFactory>();
        registry
    }

    /// Adds a kind; one of the same name is replaced.
    #[must_use]
    pub fn with<F: SinkFactory>(mut self) -> Self {
        self.factories.insert(F::KIND, erase::<F>());
        self
    }

    /// The factory of a kind.
    #[must_use]
    pub fn get(&self, kind: &str) -> Option<&Arc<dyn ErasedFactory>> {
        self.factories.get(kind)
    }

    /// The kinds that are compiled in, in alphabetical order.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> {
        self.factories.keys().copied()
    }
}

impl KindCatalog for Registry {
    fn factory(&self, kind: &str) -> Option<&Arc<dyn ErasedFactory>> {
        self.get(kind)
    }

    fn kinds(&self) -> Vec<&str> {
        Registry::kinds(self).collect()
    }

    fn feature_of(&self, kind: &str) -> Option<&str> {
        OPTIONAL_KINDS.iter().find(|(name, _)| *name == kind).map(|(_, feature)| *feature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_built_in_or_named_with_its_feature() {
        let registry = Registry::built_in();
        for kind in ["stdout", "discard"] {
            assert_eq!(registry.get(kind).map(|factory| factory.kind()), Some(kind));
        }
        let compiled = [
            ("kafka", cfg!(feature = "kafka")),
            ("nats", cfg!(feature = "nats")),
            ("rabbitmq", cfg!(feature = "rabbitmq")),
            ("sqs", cfg!(feature = "sqs")),
            ("webhook", cfg!(feature = "webhook")),
        ];
        assert_eq!(compiled.map(|(kind, _)| kind), *OPTIONAL_KINDS.iter().map(|(kind, _)| *kind).collect::<Vec<_>>());
        for ((kind, feature), (_, compiled)) in OPTIONAL_KINDS.iter().zip(compiled) {
            assert_eq!(registry.get(kind).is_some(), compiled, "{kind} comes with feature {feature}");
        }
        assert!(registry.kinds().is_sorted());
        assert!(registry.get("kafak").is_none());
    }
}
