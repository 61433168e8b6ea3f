#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod address;
mod classify;
mod config;
mod connector;
mod generation;
mod link;
mod message;
mod names;
mod sink;
mod topology;
mod window;

pub use config::{Auth, RabbitmqConfig, Unroutable};
pub use sink::{RabbitmqFactory, RabbitmqSink};
pub use topology::{Binding, Exchange, Queue, QueueKind, Topology};
