#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod config;
mod sink;

pub use config::DiscardConfig;
pub use sink::{DiscardFactory, DiscardSink};
