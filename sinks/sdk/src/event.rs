//! The event as it was committed.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use crate::{Position, Timestamp};

/// One committed row of the outbox. Cheap to clone: its text and its payload are shared slices.
///
/// Every field is the same in each attempt to deliver the event, across restarts too.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Event {
    /// The row's identity, as text. Consumers deduplicate on it.
    pub id: ByteString,
    /// What happened, such as `order.created`. Routes are keyed by it.
    pub event_type: ByteString,
    /// The ordering key, such as the order's id. Events of one key reach a sink in commit order.
    /// `None`: the event has no order to keep.
    pub key: Option<ByteString>,
    /// The payload's bytes as PostgreSQL sent them, never parsed. `None`: the column is NULL.
    pub payload: Option<Bytes>,
    /// What the payload's bytes are.
    pub format: PayloadFormat,
    /// Headers from the headers column and from mapped columns.
    pub headers: Headers,
    /// Where the event stands in the order of commits.
    pub position: Position,
    /// When its transaction committed, by the server's clock.
    pub committed_at: Timestamp,
}

impl Event {
    /// An event without key, headers or payload, at position 0/0#0: the rest is set on its fields.
    #[must_use]
    pub fn new(id: impl Into<ByteString>, event_type: impl Into<ByteString>) -> Self {
        Event {
            id: id.into(),
            event_type: event_type.into(),
            key: None,
            payload: None,
            format: PayloadFormat::Json,
            headers: Headers::default(),
            position: Position::default(),
            committed_at: Timestamp::default(),
        }
    }

    /// The payload's bytes; empty where the payload is NULL.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.payload.as_deref().unwrap_or_default()
    }

    /// Bytes of row data that this event keeps alive: what the byte window counts, without overhead.
    #[must_use]
    pub fn size(&self) -> usize {
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.id.len()
            + self.event_type.len()
            + self.key.as_ref().map_or(0, |key| key.len())
            + self.body().len()
            + headers
    }
}

/// What the bytes of a payload are, by the type of its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PayloadFormat {
    /// `json` or `jsonb`: valid JSON text.
    Json,
    /// `text` and every other type: UTF-8 text.
    Text,
    /// `bytea`: the raw bytes, decoded from PostgreSQL's hexadecimal form.
    Binary,
}

impl PayloadFormat {
    /// The media type: `application/json`, `text/plain; charset=utf-8` or `application/octet-stream`.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            PayloadFormat::Json => "application/json",
            PayloadFormat::Text => "text/plain; charset=utf-8",
            PayloadFormat::Binary => "application/octet-stream",
        }
    }
}

/// Names and values that travel beside the payload; empty for most outboxes, and then without an allocation.
#[derive(Clone, Debug, Default)]
pub struct Headers(Option<Arc<[(ByteString, ByteString)]>>);

impl Headers {
    /// The value of the first header with this exact name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ByteString> {
        self.iter().find(|(header, _)| &**header == name).map(|(_, value)| value)
    }

    /// The headers in order.
    pub fn iter(&self) -> impl Iterator<Item = &(ByteString, ByteString)> {
        self.0.as_deref().unwrap_or_default().iter()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.as_deref().is_none_or(<[_]>::is_empty)
    }
}

impl FromIterator<(ByteString, ByteString)> for Headers {
    fn from_iter<I: IntoIterator<Item = (ByteString, ByteString)>>(headers: I) -> Self {
        let headers: Vec<_> = headers.into_iter().collect();
        Headers((!headers.is_empty()).then(|| headers.into()))
    }
}
