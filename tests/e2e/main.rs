//! End-to-end tests: the walgate binary between a real PostgreSQL and a receiver that lies on demand.
//! `tests/README.md` says which row of the fault catalogue is where.

// The whole crate is tests; clippy's leave for them covers `#[test]` functions only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr, clippy::large_futures)]
#![allow(dead_code, reason = "instruments that not every set of features uses")]

#[path = "../support/mod.rs"]
mod support;

#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "sqs", feature = "webhook"))]
mod all_sinks;
#[cfg(feature = "nats")]
mod both;
#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "sqs", feature = "webhook"))]
mod canaries;
mod catalog;
mod cleanup;
mod configuration;
mod conformance;
mod consumers;
mod crash;
mod custom_sink;
mod dead_letters;
#[cfg(feature = "demo")]
mod demo;
mod destination;
mod disturbances;
mod docker;
#[cfg(feature = "webhook")]
mod envelopes;
#[cfg(debug_assertions)]
mod failpoints;
#[cfg(feature = "nats")]
mod fanout;
#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "sqs", feature = "webhook"))]
mod five;
#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "sqs", feature = "webhook"))]
mod five_parked;
mod full_disk;
mod hostile;
mod impostors;
#[cfg(feature = "webhook")]
mod inward;
#[cfg(feature = "kafka")]
mod kafka;
mod letters;
#[cfg(feature = "nats")]
mod nats;
mod operation;
mod parking;
mod parking_store;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
mod receivers;
mod recover;
mod reload;
mod replay;
mod revoked;
mod rig;
mod routing;
mod scarce;
mod secrets;
mod shipped;
mod skeleton;
#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "sqs", feature = "webhook"))]
mod soak;
mod source_faults;
#[cfg(feature = "sqs")]
mod sqs;
mod standby;
mod streams;
#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "sqs", feature = "webhook"))]
mod tasks;
mod wal_budget;
mod wal_positions;
#[cfg(feature = "webhook")]
mod webhook;
mod workload;
