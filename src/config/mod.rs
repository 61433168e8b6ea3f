//! Configuration: one YAML file, environment and flags, typed; every error with file, line and column, all at once.

mod model;

pub use model::*;
