//! Configuration: one YAML file, environment and flags, typed; every error with file, line and column, all at once.
//!
//! [`load`] reads the layers (flags over environment over file over defaults), expands `${VAR}`, reads `*_file`
//! secrets, and hands each sink's part to its factory. What cannot be known here (whether a route's sink exists) is
//! added by the caller with [`ConfigErrors::push_at`].

mod checks;
mod cleanup;
mod document;
mod errors;
mod expand;
mod explain;
mod key;
mod layers;
mod load;
mod loading;
mod model;
mod path;
mod percent;
mod rate;
mod redact;
mod retain;
mod secrets;
mod sender_timeout;
mod sinks;
mod snippet;
mod source_map;
mod stages;
#[cfg(test)]
mod tests;
mod text_form;
mod typed;
mod yaml;

pub use checks::{Listen, listen_address};
pub use cleanup::{Cleanup, CleanupMode};
pub use document::{Document, read_document};
pub use errors::{ConfigErrors, Warning};
pub use key::{JsonPointer, KeySource};
pub use load::{FileSource, Flag, Loaded, Readable, RouteCheck, Sources, load, load_with_routes};
pub use model::*;
pub use path::{KeyPath, Step};
pub use percent::Percent;
pub use rate::Rate;
pub use redact::{HIDDEN, redact};
pub use retain::Retain;
pub use sender_timeout::WalSenderTimeout;
pub use sinks::{KindCatalog, Sink};
pub(crate) use snippet::printable;
#[cfg(test)]
pub(crate) use tests::test_catalog;
