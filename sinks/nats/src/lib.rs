#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod classify;
mod config;
mod connector;
mod flight;
mod generation;
mod headers;
mod link;
mod message;
mod replies;
mod sink;
mod streams;
mod subject;

pub use config::{NatsConfig, NoStream, TlsConfig};
pub use sink::{NatsFactory, NatsSink};
