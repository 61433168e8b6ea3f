//! From a delivery to its record.

use std::fmt;

use rdkafka::message::{Header, OwnedHeaders};
use walgate_sink::{
    ByteString, Bytes, Delivery, Envelope, Event, RejectReason, Rejection, Secret, envelope::trace_context, text,
};

use crate::topic;

/// What the names of a CloudEvent's attributes begin with (Kafka protocol binding 1.0.2, section 3.2.3).
pub(crate) const CLOUDEVENTS: &str = "ce_";
/// What stands before the name of an event's own header.
const FORWARDED: &str = "walgate-header-";
const CONTENT_TYPE: &str = "content-type";
const TRACE: [&str; 2] = ["traceparent", "tracestate"];
/// Bytes of a record batch before its first record (Kafka's message format v2).
const BATCH_OVERHEAD: usize = 61;

/// Makes records out of deliveries. What is the same in all of them is made once.
pub(crate) struct Records {
    headers: Vec<(ByteString, Secret)>,
    /// `content-type` stands among the configured headers.
    typed: bool,
    envelope: Envelope,
    tombstones: bool,
    max_message: usize,
}

/// A record that can be sent.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) topic: ByteString,
    pub(crate) key: Option<ByteString>,
    /// `None`: a tombstone.
    pub(crate) value: Option<Bytes>,
    /// Milliseconds since the Unix epoch.
    pub(crate) timestamp: i64,
    headers: Vec<(ByteString, HeaderValue)>,
}

/// A header's value: of an event, or of the configuration.
#[derive(Clone)]
enum HeaderValue {
    Text(ByteString),
    Configured(Secret),
}

impl HeaderValue {
    fn as_str(&self) -> &str {
        match self {
            HeaderValue::Text(text) => text,
            HeaderValue::Configured(secret) => secret.expose(),
        }
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[value]")
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("envelope", &self.envelope).finish_non_exhaustive()
    }
}

impl Records {
    pub(crate) fn new(
        headers: impl IntoIterator<Item = (String, Secret)>,
        envelope: Envelope,
        tombstones: bool,
        max_message: u64,
    ) -> Self {
        let headers: Vec<(ByteString, Secret)> =
            headers.into_iter().map(|(name, value)| (ByteString::from(name), value)).collect();
        let typed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(CONTENT_TYPE));
        let max_message = usize::try_from(max_message).unwrap_or(usize::MAX);
        Records { headers, typed, envelope, tombstones, max_message }
    }

    /// The record of a delivery.
    pub(crate) fn build(&self, delivery: &Delivery) -> Result<Record, Rejection> {
        let event = &delivery.event;
        let topic = delivery.target.get("topic").cloned().unwrap_or_default();
        topic::check(&topic).map_err(|why| {
            let shown = text::excerpt(topic.as_bytes(), &[]);
            let message = format!("the rendered topic `{shown}` cannot be sent to: {why}");
            Rejection::new(RejectReason::InvalidTarget, message)
        })?;
        if event.id.is_empty() {
            let message = "the event's id is empty, and consumers deduplicate by it";
            return Err(Rejection::new(RejectReason::InvalidEvent, message));
        }
        let key = delivery.target.get("key").or(event.key.as_ref()).cloned();
        let enveloped = self.envelope.wrap(event)?;
        let mut headers =
            Vec::with_capacity(enveloped.attributes.len() + enveloped.headers.len() + self.headers.len() + 3);
        for (name, value) in enveloped.named(CLOUDEVENTS) {
            // The record has the key already; where the target gives it another one, the event's own stands here.
            if &*name != "walgate-key" || key != event.key {
                headers.push((name, HeaderValue::Text(value.clone())));
            }
        }
        if let Some(content_type) = enveloped.content_type.filter(|_| !self.typed) {
            let content_type = ByteString::from_static(content_type);
            headers.push((ByteString::from_static(CONTENT_TYPE), HeaderValue::Text(content_type)));
        }
        for (name, value) in &self.headers {
            headers.push((name.clone(), HeaderValue::Configured(value.clone())));
        }
        for (name, value) in trace_context(event) {
            if !headers.iter().any(|(known, _)| &**known == name) {
                headers.push((ByteString::from_static(name), HeaderValue::Text(value.clone())));
            }
        }
        for (name, value) in enveloped.headers {
            headers.push((format!("{FORWARDED}{name}").into(), HeaderValue::Text(value)));
        }
        let value = enveloped.body.or_else(|| (!self.tombstones).then(Bytes::new));
        let record = Record { topic, key, value, timestamp: timestamp(event), headers };
        self.check_size(&record)?;
        Ok(record)
    }

    fn check_size(&self, record: &Record) -> Result<(), Rejection> {
        let size = record.batch_size();
        if size <= self.max_message {
            return Ok(());
        }
        Err(Rejection::new(
            RejectReason::TooLarge,
            format!(
                "the record has {size} bytes, and `max_message` allows {}: raise it, and the topic's \
                 `max.message.bytes` with it",
                self.max_message
            ),
        ))
    }
}

fn timestamp(event: &Event) -> i64 {
    // 0 would stand for "now", and what is before the epoch for nothing.
    (event.committed_at.0 / 1_000).max(1)
}

impl Record {
    /// Headers as the client library takes them.
    pub(crate) fn headers(&self) -> OwnedHeaders {
        self.headers.iter().fold(OwnedHeaders::new_with_capacity(self.headers.len()), |headers, (name, value)| {
            headers.insert(Header { key: name, value: Some(value.as_str()) })
        })
    }

    /// Bytes of a record batch, not compressed, that holds this record alone: what a topic's `max.message.bytes` is
    /// compared with.
    pub(crate) fn batch_size(&self) -> usize {
        let text = |length: usize| varint(length) + length;
        let headers = self.headers.iter().map(|(name, value)| text(name.len()) + text(value.as_str().len()));
        // Attributes, and the differences of time and offset to the batch's first record.
        let record = 3
            + text(self.key.as_ref().map_or(0, |key| key.len()))
            + text(self.value.as_ref().map_or(0, Bytes::len))
            + varint(self.headers.len())
            + headers.sum::<usize>();
        BATCH_OVERHEAD + varint(record) + record
    }
}

/// Bytes of a length as Kafka writes it: zigzag, seven bits a byte.
fn varint(length: usize) -> usize {
    let bits = usize::BITS - length.leading_zeros() + 1;
    usize::try_from(bits.div_ceil(7)).unwrap_or(usize::MAX).max(1)
}

/// Whether a header of every record may have this name; why not otherwise.
pub(crate) fn check_static(name: &str, value: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > 255 || name.contains(char::is_control) {
        return Err("its name must have 1 to 255 bytes, without control characters");
    }
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("walgate-") || lower == "id" || TRACE.contains(&&*lower) {
        return Err("it is reserved: the name belongs to walgate");
    }
    if value.contains(char::is_control) {
        return Err("its value must not hold control characters");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
