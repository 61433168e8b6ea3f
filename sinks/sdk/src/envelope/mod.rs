//! How an event is put into a message: `envelope: raw | cloudevents | debezium` in a sink's configuration.
//!
//! [`Envelope::wrap`] says what the body is, which content type it has, and which attributes stand beside it. A sink
//! binds that to its protocol: attributes become headers, properties or message attributes, under the names that
//! [`Enveloped::named`] gives them. What an envelope cannot express is rejected, never bent.

mod cloudevents;
mod grammar;
mod settings;

use bytes::Bytes;
use bytestring::ByteString;

pub use cloudevents::{BATCH_CONTENT_TYPE, STRUCTURED_CONTENT_TYPE};
pub use grammar::percent_encoded;
pub use settings::{CloudEvents, ContentMode, Envelope};

use crate::{Event, RejectReason, Rejection};

/// W3C trace context: forwarded under its own names, whatever the envelope.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// Under which name the key travels with `envelope: debezium` where a protocol has no place for a key: the name of the
/// outbox event router's column.
pub const DEBEZIUM_KEY: &str = "aggregateid";

/// An event in its envelope, still without a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Enveloped {
    /// The body. `None`: the payload is NULL, and there is none (a tombstone, where the protocol has such).
    pub body: Option<Bytes>,
    /// What the body is; `None` without one.
    pub content_type: Option<&'static str>,
    /// Names without the protocol's prefix, and values; every name once. [`Enveloped::named`] adds the prefix.
    pub attributes: Vec<(ByteString, ByteString)>,
    /// The event's own headers as far as they are not among the attributes. Their names come from rows: a sink puts
    /// them behind a prefix wherever a header's name may mean something to the other side.
    pub headers: Vec<(ByteString, ByteString)>,
    /// Whether attributes carry the prefix that the protocol's CloudEvents binding asks for.
    is_cloudevent: bool,
}

impl Enveloped {
    /// The attributes under their names in the protocol. `prefix` is that of the protocol's CloudEvents binding: `ce-`
    /// for HTTP and NATS, `ce_` for Kafka, `cloudEvents_` for AMQP; other envelopes have none.
    pub fn named<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (ByteString, &'a ByteString)> {
        self.attributes.iter().map(move |(name, value)| {
            let name = if self.is_cloudevent { ByteString::from(format!("{prefix}{name}")) } else { name.clone() };
            (name, value)
        })
    }
}

impl Envelope {
    /// The event in this envelope.
    ///
    /// # Errors
    /// A [`RejectReason::InvalidEvent`] where the envelope's own specification does not allow what the event holds: an
    /// empty id or type, a control character in an attribute, a header whose name cannot be an attribute's.
    pub fn wrap(&self, event: &Event) -> Result<Enveloped, Rejection> {
        match self {
            Envelope::Raw => Ok(raw(event)),
            Envelope::CloudEvents(settings) => settings.wrap(event),
            Envelope::Debezium => debezium(event),
        }
    }
}

/// The values of `traceparent` and `tracestate` among the event's headers, whatever their case. The first of a name
/// counts: two of them would be none.
pub fn trace_context(event: &Event) -> impl Iterator<Item = (&'static str, &ByteString)> {
    TRACE.into_iter().filter_map(|trace| {
        let (_, value) = event.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(trace))?;
        Some((trace, value))
    })
}

/// The event's headers but for the trace context.
fn others(event: &Event) -> impl Iterator<Item = &(ByteString, ByteString)> {
    event.headers.iter().filter(|(name, _)| !TRACE.iter().any(|trace| name.eq_ignore_ascii_case(trace)))
}

fn plain(event: &Event, mut attributes: Vec<(ByteString, ByteString)>) -> Enveloped {
    attributes.extend(trace_context(event).map(|(name, value)| (ByteString::from_static(name), value.clone())));
    Enveloped {
        body: event.payload.clone(),
        content_type: event.payload.as_ref().map(|_| event.format.content_type()),
        attributes,
        headers: others(event).cloned().collect(),
        is_cloudevent: false,
    }
}

/// The payload as it is, and what is known beside it.
fn raw(event: &Event) -> Enveloped {
    let named = |name: &'static str, value: ByteString| (ByteString::from_static(name), value);
    let mut attributes = vec![named("id", event.id.clone()), named("walgate-event-type", event.event_type.clone())];
    attributes.extend(event.key.clone().map(|key| named("walgate-key", key)));
    attributes.push(named("walgate-position", event.position.to_string().into()));
    attributes.push(named("walgate-committed-at", event.committed_at.to_string().into()));
    plain(event, attributes)
}

/// The names of Debezium's outbox event router: the header `id`, and the type in `eventType`, where its documentation
/// places it. The key is the record's; see [`DEBEZIUM_KEY`] for protocols without records.
fn debezium(event: &Event) -> Result<Enveloped, Rejection> {
    if event.id.is_empty() {
        return Err(invalid("the event's id is empty, and consumers deduplicate on it".to_owned()));
    }
    let own = [("id", &event.id), ("eventType", &event.event_type)];
    let own = own.map(|(name, value)| (ByteString::from_static(name), value.clone()));
    Ok(plain(event, own.into()))
}

fn invalid(message: String) -> Rejection {
    Rejection::new(RejectReason::InvalidEvent, message)
}

#[cfg(test)]
mod tests;
