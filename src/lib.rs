//! walgate: committed outbox events, from PostgreSQL's write-ahead log to every routed sink, at least once.
//!
//! The map is in `ARCHITECTURE.md`. Imports point one way only, and a test enforces it:
//! `error, metrics <- config, postgres <- { source | router | checkpoint | control } <- lane <- pipeline <- admin
//! <- app, registry, cli`.

pub mod admin;
pub mod app;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod control;
pub mod error;
pub mod lane;
pub mod metrics;
pub mod pipeline;
pub mod postgres;
pub mod registry;
pub mod router;
pub mod source;
pub mod telemetry;
