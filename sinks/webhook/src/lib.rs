#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod address;
mod batch;
mod classify;
mod client;
mod config;
mod guard;
mod headers;
mod request;
mod signature;
mod sink;

pub use config::{BasicAuth, Mode, WebhookConfig};
pub use sink::{WebhookFactory, WebhookSink};
