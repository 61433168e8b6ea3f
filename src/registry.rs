//! Which sinks are compiled in: the only file that knows.

use std::{collections::BTreeMap, sync::Arc};

use walgate_sink::{ErasedFactory, SinkFactory, erase};

/// Kinds that exist in this project but may be left out of a build, with the cargo feature that brings them.
pub const OPTIONAL_KINDS: &[(&str, &str)] = &[("webhook", "webhook")];

/// Sink factories by kind.
#[derive(Clone, Default)]
pub struct Registry {
    factories: BTreeMap<&'static str, Arc<dyn ErasedFactory>>,
}

impl Registry {
    /// Every sink that is compiled in.
    #[must_use]
    pub fn built_in() -> Self {
        let registry = Registry::default();
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
