#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod config;
mod sink;
mod writer;

pub use config::StdoutConfig;
pub use sink::{StdoutFactory, StdoutSink};
