//! The write-ahead log as a stream: the replication connection, its framing, and what stands in it.

mod error;
mod feedback;
mod framer;
mod handshake;
mod nap;
pub mod outbox;
pub mod pgoutput;
mod reader;
pub mod relation;
mod snapshot;
mod stream;
mod wire;

pub use error::{Retry, SourceError};
pub use feedback::Feedback;
pub use outbox::{Inserted, MappingError, NoKey, OutboxReader, Row, Unusable, UnusableReason};
pub use pgoutput::{Change, DecodeError};
pub use relation::{Relation, TableName};
pub use snapshot::ExportedSlot;
pub use stream::{Identity, ReplicationStream, ServerParameters, Shutdown, StreamCloser, StreamOptions};
pub use wire::{Chunk, Frame, Frames, Status, WireError, decode};
