//! What the end-to-end tests stand on: real servers, a proxy that reads the wire, a receiver that lies on demand,
//! and oracles that compare what was committed with what arrived.
//!
//! Nothing in here imports walgate: it decodes protocols by itself, so that it cannot share a mistake with what it
//! judges.

#[cfg(feature = "rabbitmq")]
pub mod amqp_wire;
#[cfg(feature = "rabbitmq")]
pub mod amqp_witness;
pub mod clock;
pub mod database;
pub mod dns;
pub mod everywhere;
pub mod http1;
pub mod http_get;
pub mod impostor;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "kafka")]
mod kafka_java;
#[cfg(feature = "kafka")]
pub mod kafka_records;
#[cfg(feature = "kafka")]
pub mod kafka_wire;
#[cfg(feature = "kafka")]
pub mod kafka_witness;
pub mod link_log;
pub mod listen;
pub mod lsn;
pub mod namespace;
#[cfg(feature = "nats")]
pub mod nats;
#[cfg(feature = "nats")]
pub mod nats_wire;
#[cfg(feature = "nats")]
pub mod nats_witness;
pub mod openmetrics;
pub mod oracle;
pub mod pgwire;
pub mod postgres;
pub mod processes;
pub mod proxy;
#[cfg(feature = "rabbitmq")]
pub mod rabbitmq;
pub mod receiver;
pub mod sql;
#[cfg(feature = "sqs")]
pub mod sqs;
#[cfg(feature = "sqs")]
pub mod sqs_witness;
pub mod wait;
pub mod walgate;
pub mod witness;

#[cfg(feature = "kafka")]
mod kafka_self_tests;
mod planted;
mod self_tests;
#[cfg(all(feature = "kafka", feature = "rabbitmq", feature = "sqs"))]
mod witness_self_tests;
