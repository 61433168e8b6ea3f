#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod classify;
mod client;
mod config;
mod headers;
mod request;
mod signature;
mod sink;
mod text;
mod tls;

pub use config::{BasicAuth, WebhookConfig};
pub use sink::{WebhookFactory, WebhookSink};
