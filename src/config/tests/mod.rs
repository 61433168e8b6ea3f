//! Tests of the whole of `config::load`.

mod broken;
mod canary;
mod layering;
mod reference;
mod secret_files;
mod support;

/// Kinds of sinks for tests: `kafka`, `stdout` and `webhook`; `nats` exists and is not compiled in.
pub(crate) fn test_catalog() -> impl super::KindCatalog {
    support::Catalog::new()
}
