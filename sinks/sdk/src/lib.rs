#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod batch;
#[cfg(feature = "conformance")]
pub mod conformance;
mod document;
pub mod envelope;
mod event;
mod factory;
mod lsn;
mod reading;
mod report;
mod secret;
mod sink;
mod strict;
mod target;
pub mod text;
mod timestamp;
#[cfg(feature = "tls")]
pub mod tls;
mod units;

pub use batch::{Batch, Delivery};
pub use document::append_document;
pub use envelope::{Envelope, Enveloped};
pub use event::{Event, Headers, PayloadFormat};
pub use factory::{
    ConfigIssue, ErasedFactory, ParsedConfig, PathSegment, SinkContext, SinkFactory, TargetCheck, erase,
};
pub use lsn::{Lsn, ParseLsnError, Position};
pub use reading::{Reading, ReadingKind};
pub use report::{DeliveryReport, Failure, FailureKind, Outcome, RejectReason, Rejection};
pub use secret::Secret;
pub use sink::{BoxFuture, Capabilities, DynSink, Sink, SinkError, SinkErrorKind};
pub use strict::read_config;
pub use target::{Escape, Target, TargetField};
pub use timestamp::Timestamp;
pub use units::{ByteSize, HumanDuration};

pub use bytes::Bytes;
pub use bytestring::ByteString;
