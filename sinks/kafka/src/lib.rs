#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod classify;
mod config;
mod context;
mod flights;
mod generation;
mod held;
mod link;
mod look;
mod message;
mod notices;
mod properties;
mod sink;
mod statistics;
mod token;
mod topic;
mod topics;

pub use config::{Compression, CreateTopics, KafkaConfig, Mechanism, Oidc, Partitioner, SaslConfig, Scalar, TlsConfig};
pub use sink::{KafkaFactory, KafkaSink};
