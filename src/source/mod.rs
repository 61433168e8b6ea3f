//! source

pub mod outbox;
pub mod pgoutput;
pub mod relation;

pub use outbox::{Inserted, MappingError, OutboxReader, Row, Unusable};
pub use pgoutput::{Change, DecodeError};
pub use relation::{Relation, TableName};
