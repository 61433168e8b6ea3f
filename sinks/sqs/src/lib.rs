#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod attributes;
mod classify;
mod config;
mod connector;
mod ids;
mod message;
mod pack;
mod queue;
mod queues;
mod sink;
mod tls;

pub use config::{AssumedRole, SqsConfig};
pub use sink::{SqsFactory, SqsSink};
