//! From a delivery to its message.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use walgate_sink::{Delivery, Envelope, Event, PayloadFormat, RejectReason, Rejection, envelope::DEBEZIUM_KEY, text};

use crate::{
    attributes::{self, Attributes},
    ids, queue,
};

/// The body of a message whose payload is NULL or empty: SQS takes no empty body.
const EMPTY: &str = "-";

/// A message, and its place in the lane's batch.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) index: usize,
    pub(crate) body: String,
    pub(crate) attributes: Attributes,
    pub(crate) group: Option<String>,
    pub(crate) dedup: Option<String>,
}

impl Message {
    /// The message of a delivery to a queue; `forwarded` names the headers that travel.
    pub(crate) fn build(
        index: usize,
        delivery: &Delivery,
        to: &str,
        forwarded: &[String],
        envelope: &Envelope,
    ) -> Result<Self, Rejection> {
        let event = &delivery.event;
        if event.id.is_empty() || delivery.dedup_id.is_empty() {
            let message = "the event's id is empty, and consumers deduplicate by it";
            return Err(Rejection::new(RejectReason::InvalidEvent, message));
        }
        let (body, attributes) = match envelope {
            Envelope::Raw => {
                let (body, encoding) = body_of(event.body(), event.format);
                (body, raw(event, encoding, forwarded))
            }
            envelope => enveloped(event, envelope, forwarded)?,
        };
        let (group, dedup) = if queue::is_fifo(to) {
            // An event without a key has no order to keep: a group of its own.
            let group = delivery.ordering_key.as_ref().unwrap_or(&delivery.dedup_id);
            (Some(ids::legal(group).into_owned()), Some(ids::legal(&delivery.dedup_id).into_owned()))
        } else {
            // On a standard queue a group makes shares fair, and keeps no order: only where somebody asked for it.
            let group = delivery.target.get("group").filter(|group| !group.is_empty());
            (group.map(|group| ids::legal(group).into_owned()), None)
        };
        Ok(Message { index, body, attributes, group, dedup })
    }

    /// What SQS counts: the body, and the attributes' names, types and values.
    pub(crate) fn size(&self) -> usize {
        self.body.len() + self.attributes.len()
    }

    /// Whether a queue that takes messages of `max` bytes takes this one.
    pub(crate) fn check_size(&self, max: usize, to: &str) -> Result<(), Rejection> {
        let (body, attributes) = (self.body.len(), self.attributes.len());
        if self.size() <= max {
            return Ok(());
        }
        let message = format!(
            "the message has {} bytes ({body} of body, {attributes} of attributes), and queue `{}` takes {max} at the \
             most: raise its MaximumMessageSize (1 MiB at the most), or publish less",
            self.size(),
            text::excerpt(to.as_bytes(), &[])
        );
        Err(Rejection::new(RejectReason::TooLarge, message))
    }
}

/// The body, and what was done to the payload for it.
fn body_of(bytes: &[u8], format: PayloadFormat) -> (String, Option<&'static str>) {
    if bytes.is_empty() {
        return (EMPTY.to_owned(), Some("empty"));
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if format != PayloadFormat::Binary && text.chars().all(is_legal) => (text.to_owned(), None),
        _ => (STANDARD.encode(bytes), Some("base64")),
    }
}

/// The characters that SQS takes: those of XML 1.0.
fn is_legal(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
}

/// Body and attributes in another envelope than `raw`.
fn enveloped(event: &Event, envelope: &Envelope, forwarded: &[String]) -> Result<(String, Attributes), Rejection> {
    let enveloped = envelope.wrap(event)?;
    // A document is text, whatever the payload in it.
    let format = match envelope {
        Envelope::CloudEvents(_) => PayloadFormat::Json,
        _ => event.format,
    };
    let (body, encoding) = body_of(enveloped.body.as_deref().unwrap_or_default(), format);
    let mut attributes = Attributes::default();
    if matches!(envelope, Envelope::CloudEvents(_)) {
        // The others are in the document; this one is for consumers that know no CloudEvents.
        attributes.add(attributes::ID, &event.id);
    }
    for (name, value) in enveloped.attributes.iter().filter(|(name, _)| !attributes::TRACE.contains(&&**name)) {
        attributes.add(name, value);
    }
    if let Some(key) = event.key.as_ref().filter(|_| *envelope == Envelope::Debezium) {
        attributes.add(DEBEZIUM_KEY, key);
    }
    if let Some(content_type) = enveloped.content_type {
        attributes.add(attributes::CONTENT_TYPE, content_type);
    }
    close(&mut attributes, event, encoding, forwarded);
    Ok((body, attributes))
}

/// What is the same in every envelope: what was done to the payload, and the headers that travel.
fn close(attributes: &mut Attributes, event: &Event, encoding: Option<&str>, forwarded: &[String]) {
    if let Some(encoding) = encoding {
        attributes.add(attributes::ENCODING, encoding);
    }
    for name in forwarded {
        if let Some((_, value)) = event.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)) {
            attributes.add(name, value);
        }
    }
}

fn raw(event: &Event, encoding: Option<&str>, forwarded: &[String]) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.add(attributes::ID, &event.id);
    attributes.add(attributes::EVENT_TYPE, &event.event_type);
    if let Some(key) = &event.key {
        attributes.add(attributes::KEY, key);
    }
    attributes.add(attributes::POSITION, &event.position.to_string());
    attributes.add(attributes::COMMITTED_AT, &event.committed_at.to_string());
    if event.payload.is_some() {
        attributes.add(attributes::CONTENT_TYPE, event.format.content_type());
    }
    close(&mut attributes, event, encoding, forwarded);
    attributes
}

#[cfg(test)]
pub(crate) mod tests {
    use walgate_sink::{Bytes, SinkFactory as _, Target, envelope::ContentMode};

    use super::*;
    use crate::SqsFactory;

    pub(crate) fn delivery(queue: &str, key: Option<&str>, payload: Option<&[u8]>, format: PayloadFormat) -> Delivery {
        let mut event = Event::new("e1", "order.created");
        event.key = key.map(Into::into);
        event.payload = payload.map(Bytes::copy_from_slice);
        event.format = format;
        Delivery {
            dedup_id: "e1-0123".into(),
            ordering_key: event.key.clone(),
            event,
            target: Target::new(SqsFactory::TARGET, [Some(queue.into())]),
            attempt: 1,
        }
    }

    fn build(delivery: &Delivery) -> Message {
        let to = delivery.target.get("queue").cloned().unwrap_or_default();
        Message::build(0, delivery, &to, &["Tenant".to_owned()], &Envelope::Raw).unwrap()
    }

    #[test]
    fn bodies_are_the_payload_or_say_what_was_done() {
        let body = |format, payload: Option<&[u8]>| {
            let message = build(&delivery("q", None, payload, format));
            let encoding = message.attributes.iter().find(|(name, _)| *name == "walgate-encoding");
            (message.body.clone(), encoding.map(|(_, value)| value.to_owned()))
        };
        let base64 = || Some("base64".to_owned());
        assert_eq!(
            body(PayloadFormat::Json, Some(b"{\"a\":\t\"\xc3\xa9\"}\r\n")),
            ("{\"a\":\t\"é\"}\r\n".into(), None)
        );
        assert_eq!(body(PayloadFormat::Text, Some(b"a\x01b")), ("YQFi".into(), base64()));
        assert_eq!(body(PayloadFormat::Text, Some("\u{fffe}".as_bytes())).1, base64());
        assert_eq!(body(PayloadFormat::Text, Some("\u{7f}\u{1f600}".as_bytes())).1, None);
        assert_eq!(body(PayloadFormat::Text, Some(&[0xff])), ("/w==".into(), base64()));
        assert_eq!(body(PayloadFormat::Binary, Some(b"abc")), ("YWJj".into(), base64()));
        assert_eq!(body(PayloadFormat::Json, None), ("-".into(), Some("empty".into())));
        assert_eq!(body(PayloadFormat::Text, Some(b"")), ("-".into(), Some("empty".into())));
    }

    #[test]
    fn attributes_are_never_more_than_ten() {
        let mut delivery = delivery("q", Some("k 1"), Some(b"\x00"), PayloadFormat::Text);
        let names = ["traceparent", "tracestate", "Tenant"];
        delivery.event.headers = names.map(|name| (name.into(), "v".into())).into_iter().collect();
        let message = Message::build(0, &delivery, "q", &names.map(str::to_owned), &Envelope::Raw).unwrap();
        let names: Vec<_> = message.attributes.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), attributes::MAX);
        assert_eq!(names[..7], attributes::OWN);
        assert_eq!(message.size(), message.body.len() + message.attributes.len());
        assert_eq!(message.check_size(message.size(), "q"), Ok(()));
        let rejection = message.check_size(message.size() - 1, "q").unwrap_err();
        assert_eq!(rejection.reason, RejectReason::TooLarge);
    }

    #[test]
    fn groups_and_dedup_ids_by_kind_of_queue() {
        let ids = |queue, key| {
            let message = build(&delivery(queue, key, Some(b"1"), PayloadFormat::Json));
            (message.group, message.dedup)
        };
        assert_eq!(ids("q.fifo", Some("k")), (Some("k".into()), Some("e1-0123".into())));
        assert_eq!(ids("q.fifo", None), (Some("e1-0123".into()), Some("e1-0123".into())));
        assert!(ids("q.fifo", Some("two words")).0.is_some_and(|group| group.starts_with("sha256-")));
        assert_eq!(ids("q", Some("k")), (None, None));
        let mut fair = delivery("q", None, Some(b"1"), PayloadFormat::Json);
        fair.target = Target::new(SqsFactory::TARGET, [Some("q".into()), Some("tenant 1".into())]);
        assert!(build(&fair).group.is_some_and(|group| group.starts_with("sha256-")));
    }

    #[test]
    fn other_envelopes_stay_within_the_attributes() {
        let mut delivery = delivery("q", Some("k 1"), Some(b"{\"n\":1}"), PayloadFormat::Json);
        delivery.event.headers = ["traceparent", "Tenant"].map(|name| (name.into(), "v".into())).into_iter().collect();
        let forwarded = ["traceparent", "tracestate", "Tenant"].map(str::to_owned);
        let seen = |delivery: &Delivery, envelope: serde_json::Value| {
            let envelope: Envelope = serde_json::from_value(envelope).unwrap();
            let message =
                Message::build(0, delivery, "q", &forwarded, &envelope.or_mode(ContentMode::Structured)).unwrap();
            let attributes = message.attributes.iter().map(|(name, value)| format!("{name}={value}"));
            (message.body.clone(), attributes.collect::<Vec<_>>().join(" "))
        };
        let (body, attributes) = seen(&delivery, "debezium".into());
        assert_eq!(body, "{\"n\":1}");
        assert_eq!(
            attributes,
            "id=e1 eventType=order.created aggregateid=k 1 content-type=application/json traceparent=v Tenant=v"
        );
        let (body, attributes) = seen(&delivery, "cloudevents".into());
        assert!(body.starts_with("{\"specversion\":\"1.0\",\"id\":\"e1\"") && body.contains("\"data\":{\"n\":1}"));
        assert_eq!(attributes, "id=e1 content-type=application/cloudevents+json traceparent=v Tenant=v");
        // SQS takes no U+FFFF, which JSON may hold.
        delivery.event.payload = Some(Bytes::from_static("\"\u{ffff}\"".as_bytes()));
        let (body, attributes) = seen(&delivery, "cloudevents".into());
        assert!(!body.contains('{') && attributes.contains("walgate-encoding=base64"), "{body} {attributes}");
    }
}
