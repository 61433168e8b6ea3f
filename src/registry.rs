//! Which sinks are compiled in: the only file that knows.

use std::{collections::BTreeMap, sync::Arc};

use walgate_sink::{ErasedFactory, SinkFactory, erase};

use crate::config::KindCatalog;

/// Sinks that may be left out of a build: the kind, which is also the name of its cargo feature, and its factory.
macro_rules! optional_sinks {
    ($($kind:literal => $factory:path,)*) => {
        /// Kinds that exist in this project but may be left out of a build, with the cargo feature that brings them.
        pub const OPTIONAL_KINDS: &[(&str, &str)] = &[$(($kind, $kind)),*];

        /// Which of them are compiled in, in the same order.
        #[cfg(test)]
        const COMPILED_IN: &[bool] = &[$(cfg!(feature = $kind)),*];

        fn with_optional(registry: Registry) -> Registry {
            $(
                #[cfg(feature = $kind)]
                let registry = registry.with::<$factory>();
            )*
            registry
        }
    };
}

optional_sinks! {
    "kafka" => walgate_sink_kafka::KafkaFactory,
    "nats" => walgate_sink_nats::NatsFactory,
    "rabbitmq" => walgate_sink_rabbitmq::RabbitmqFactory,
    "sqs" => walgate_sink_sqs::SqsFactory,
    "webhook" => walgate_sink_webhook::WebhookFactory,
}

/// Sink factories by kind.
#[derive(Clone, Default)]
pub struct Registry {
    factories: BTreeMap<&'static str, Arc<dyn ErasedFactory>>,
}

impl Registry {
    /// Every sink that is compiled in.
    #[must_use]
    pub fn built_in() -> Self {
        with_optional(
            Registry::default()
                .with::<walgate_sink_stdout::StdoutFactory>()
                .with::<walgate_sink_discard::DiscardFactory>(),
        )
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
        for ((kind, feature), compiled_in) in OPTIONAL_KINDS.iter().zip(COMPILED_IN) {
            assert_eq!(registry.get(kind).is_some(), *compiled_in, "{kind} comes with feature {feature}");
        }
        assert!(registry.kinds().is_sorted());
        assert!(registry.get("kafak").is_none());
    }
}
