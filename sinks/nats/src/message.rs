//! From a delivery to its message.

use std::fmt;

use async_nats::{HeaderMap, HeaderName, Subject};
use walgate_sink::{
    ByteString, Bytes, Delivery, Envelope, Enveloped, Event, RejectReason, Rejection, Secret,
    envelope::{DEBEZIUM_KEY, percent_encoded, trace_context},
    text,
};

use crate::{
    headers::{self, Headers},
    subject,
};

/// W3C trace context: forwarded under its own names.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// walgate's own headers. Names that cost nothing.
static MSG_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
static ID: HeaderName = HeaderName::from_static("id");
static EVENT_TYPE: HeaderName = HeaderName::from_static("walgate-event-type");
static KEY: HeaderName = HeaderName::from_static("walgate-key");
static POSITION: HeaderName = HeaderName::from_static("walgate-position");
static COMMITTED_AT: HeaderName = HeaderName::from_static("walgate-committed-at");
static CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");

/// Bytes of headers that a stream takes at the most: it keeps their length in 16 bits.
const MAX_HEADERS: usize = u16::MAX as usize;

/// What the names of a CloudEvent's attributes begin with.
pub(crate) const CLOUDEVENTS: &str = "ce-";

/// Makes messages out of deliveries. What is the same in all of them is made once.
pub(crate) struct Messages {
    headers: Vec<(String, Secret)>,
    /// `content-type` stands among the configured headers.
    typed: bool,
    /// The configured subject, where it is the same for every event.
    fixed: Option<String>,
    envelope: Envelope,
}

/// A message, and what its server has to be asked before it is sent.
pub(crate) struct Message {
    pub(crate) subject: Subject,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Bytes,
    /// Bytes of the header block.
    header_block: usize,
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages").field("fixed", &self.fixed).finish_non_exhaustive()
    }
}

impl Messages {
    /// `subject` is the configuration's own template.
    pub(crate) fn new(headers: Vec<(String, Secret)>, subject: Option<&str>, envelope: Envelope) -> Self {
        let typed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
        let fixed = subject.filter(|subject| !subject::is_template(subject)).map(str::to_owned);
        Messages { headers, typed, fixed, envelope }
    }

    /// The message of a delivery.
    pub(crate) fn build(&self, delivery: &Delivery) -> Result<Message, Rejection> {
        let event = &delivery.event;
        let subject = delivery.target.get("subject").cloned().unwrap_or_default();
        subject::check(&subject).map_err(|why| {
            let shown = text::excerpt(subject.as_bytes(), &[]);
            let message = format!("the rendered subject `{shown}` cannot be published to: {why}");
            Rejection::new(RejectReason::InvalidTarget, message)
        })?;
        if event.id.is_empty() || delivery.dedup_id.is_empty() {
            return Err(invalid("the event's id is empty, and the server deduplicates by it"));
        }
        let (headers, payload) = match &self.envelope {
            Envelope::Raw => (self.headers_of(event, &delivery.dedup_id)?, event.payload.clone()),
            envelope => {
                let enveloped = envelope.wrap(event)?;
                (self.enveloped(&enveloped, event, &delivery.dedup_id)?, enveloped.body)
            }
        };
        Ok(Message {
            subject: shared(subject)?,
            payload: payload.unwrap_or_default(),
            header_block: headers.len(),
            headers: headers.into_map(),
        })
    }

    /// Whether every event goes to this subject.
    pub(crate) fn is_fixed(&self, subject: &str) -> bool {
        self.fixed.as_deref() == Some(subject)
    }

    fn headers_of(&self, event: &Event, dedup_id: &str) -> Result<Headers, Rejection> {
        let mut headers = Headers::new();
        let mut fits = headers.set(&MSG_ID, &headers::field(dedup_id));
        fits &= headers.set(&ID, &headers::field(&event.id));
        fits &= headers.set(&EVENT_TYPE, &headers::field(&event.event_type));
        if let Some(key) = &event.key {
            fits &= headers.set(&KEY, &headers::field(key));
        }
        fits &= headers.set(&POSITION, &event.position.to_string());
        fits &= headers.set(&COMMITTED_AT, &event.committed_at.to_string());
        if event.payload.is_some() && !self.typed {
            fits &= headers.set(&CONTENT_TYPE, event.format.content_type());
        }
        for (name, value) in &self.headers {
            fits &= headers.add(name, value.expose());
        }
        let mut traced = [false; TRACE.len()];
        for (name, value) in event.headers.iter() {
            match TRACE.iter().position(|trace| name.eq_ignore_ascii_case(trace)) {
                Some(index) => {
                    // Two of them would be none.
                    if !std::mem::replace(&mut traced[index], true) {
                        fits &= headers.add(TRACE[index], &headers::foreign(value));
                    }
                }
                None => fits &= headers.add(&headers::forwarded_name(name), &headers::field(value)),
            }
        }
        if fits { Ok(headers) } else { Err(unfit()) }
    }

    /// The headers of another envelope than `raw`, whose headers are made without a list of them.
    fn enveloped(&self, enveloped: &Enveloped, event: &Event, dedup_id: &str) -> Result<Headers, Rejection> {
        let mut headers = Headers::new();
        let mut fits = headers.set(&MSG_ID, &headers::field(dedup_id));
        if let Some(content_type) = enveloped.content_type.filter(|_| !self.typed) {
            fits &= headers.set(&CONTENT_TYPE, content_type);
        }
        for (name, value) in &self.headers {
            fits &= headers.add(name, value.expose());
        }
        for (name, value) in trace_context(event) {
            fits &= headers.add(name, &headers::foreign(value));
        }
        for (name, value) in enveloped.named(CLOUDEVENTS).filter(|(name, _)| !TRACE.contains(&&**name)) {
            let is_cloudevent = matches!(self.envelope, Envelope::CloudEvents(_));
            fits &= headers.add(&name, &if is_cloudevent { percent_encoded(value) } else { headers::field(value) });
        }
        if let Some(key) = event.key.as_ref().filter(|_| self.envelope == Envelope::Debezium) {
            fits &= headers.add(DEBEZIUM_KEY, &headers::field(key));
        }
        for (name, value) in &enveloped.headers {
            fits &= headers.add(&headers::forwarded_name(name), &headers::field(value));
        }
        if fits { Ok(headers) } else { Err(unfit()) }
    }
}

impl Message {
    /// Whether a server that takes messages of `max_payload` bytes takes this one. One that its stream refuses would still
    /// reach those who subscribe without a stream.
    pub(crate) fn check_size(&self, max_payload: usize, server: &str) -> Result<(), Rejection> {
        let (payload, headers) = (self.payload.len(), self.header_block);
        let size = payload + headers;
        if headers > MAX_HEADERS {
            let message =
                format!("the message has {headers} bytes of headers, and a stream takes {MAX_HEADERS} at the most");
            return Err(Rejection::new(RejectReason::TooLarge, message));
        }
        if size <= max_payload {
            return Ok(());
        }
        let message = format!(
            "the message has {size} bytes ({payload} of payload, {headers} of headers), and {server} takes {max_payload} \
             at the most: raise its `max_payload`, or publish less"
        );
        Err(Rejection::new(RejectReason::TooLarge, message))
    }
}

/// The same bytes as the library's type.
fn shared(subject: ByteString) -> Result<Subject, Rejection> {
    Subject::from_utf8(subject.into_bytes()).map_err(|_| invalid("the subject is not UTF-8"))
}

fn unfit() -> Rejection {
    invalid("a field of the event does not fit into a header")
}

fn invalid(message: &str) -> Rejection {
    Rejection::new(RejectReason::InvalidEvent, message)
}

#[cfg(test)]
mod tests {
    use walgate_sink::{Bytes, SinkFactory as _, Target};

    use super::*;
    use crate::NatsFactory;

    fn delivery(subject: &str, event: Event) -> Delivery {
        Delivery {
            dedup_id: format!("{}-0123", event.id).into(),
            event,
            target: Target::new(NatsFactory::TARGET, [Some(subject.into())]),
            ordering_key: None,
            attempt: 1,
        }
    }

    /// The header block as the server sees it, line by line in order of the names.
    fn lines(headers: Headers) -> Vec<String> {
        let map = headers.into_map();
        let mut lines: Vec<String> = map
            .iter()
            .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {}", value.as_str())))
            .collect();
        lines.sort();
        lines
    }

    fn event() -> Event {
        let mut event = Event::new("e1", "order.created");
        event.key = Some("k 1".into());
        event.payload = Some(Bytes::from_static(b"{}"));
        event.headers = [("Tenant", "t%"), ("TraceParent", "00-a"), ("traceparent", "00-b"), ("Nats-Rollup", "all")]
            .map(|(name, value)| (name.into(), value.into()))
            .into_iter()
            .collect();
        event
    }

    #[test]
    fn headers_carry_what_is_not_the_payload() {
        let messages = Messages::new(vec![("x-region".into(), Secret::new("eu"))], Some("orders"), Envelope::Raw);
        let lines = lines(messages.headers_of(&event(), "e1-0123").unwrap());
        assert_eq!(
            lines,
            [
                "Nats-Msg-Id: e1-0123",
                "content-type: application/json",
                "id: e1",
                "traceparent: 00-a",
                "walgate-committed-at: 1970-01-01T00:00:00.000000Z",
                "walgate-event-type: order.created",
                "walgate-header-Nats-Rollup: all",
                "walgate-header-Tenant: t%25",
                "walgate-key: k 1",
                "walgate-position: 0/0#0",
                "x-region: eu",
            ]
        );
    }

    #[test]
    fn a_null_payload_has_no_type_and_configured_types_stay() {
        let mut event = Event::new("e1", "t");
        let plain = Messages::new(Vec::new(), None, Envelope::Raw);
        assert!(!lines(plain.headers_of(&event, "e1").unwrap()).iter().any(|line| line.starts_with("content-type")));
        event.payload = Some(Bytes::new());
        let typed = Messages::new(vec![("Content-Type".into(), Secret::new("x/y"))], None, Envelope::Raw);
        let lines = lines(typed.headers_of(&event, "e1").unwrap());
        assert!(lines.contains(&"Content-Type: x/y".to_owned()));
        assert!(!lines.iter().any(|line| line.starts_with("content-type")));
    }

    #[test]
    fn sizes_are_known_before_sending() {
        let messages = Messages::new(Vec::new(), Some("orders"), Envelope::Raw);
        let message = messages.build(&delivery("orders", event())).unwrap();
        assert!(messages.is_fixed(&message.subject));
        let size = message.payload.len() + message.header_block;
        assert_eq!(message.check_size(size, "127.0.0.1:4222"), Ok(()));
        let rejection = message.check_size(size - 1, "127.0.0.1:4222").unwrap_err();
        assert_eq!(rejection.reason, RejectReason::TooLarge);
        let expected = format!("has {size} bytes (2 of payload, {} of headers)", size - 2);
        assert!(rejection.message.contains(&expected), "{rejection}");
        assert!(rejection.message.contains("127.0.0.1:4222 takes"), "{rejection}");
        assert!(!messages.is_fixed("orders.x"));

        let room = MAX_HEADERS - message.header_block - "walgate-header-pad: \r\n".len();
        for (length, taken) in [(room, true), (room + 1, false)] {
            let mut padded = event();
            padded.headers =
                padded.headers.iter().cloned().chain([("pad".into(), "x".repeat(length).into())]).collect();
            let message = messages.build(&delivery("orders", padded)).unwrap();
            assert_eq!(message.check_size(1 << 20, "127.0.0.1:4222").is_ok(), taken, "{}", message.header_block);
        }
    }

    #[test]
    fn bad_subjects_and_empty_ids_are_rejected() {
        let messages = Messages::new(Vec::new(), None, Envelope::Raw);
        let reason = |subject: &str, id: &str| {
            let mut delivery = delivery(subject, Event::new(id, "t"));
            delivery.dedup_id = id.into();
            messages.build(&delivery).err().unwrap()
        };
        for subject in ["", "a b", "a.*", "a\r\nPUB b 0\r\n\r\n", "$JS.API.STREAM.PURGE.x", "a..b"] {
            let rejection = reason(subject, "e1");
            assert_eq!(rejection.reason, RejectReason::InvalidTarget, "{subject:?}");
            assert!(!rejection.message.contains(['\r', '\n']), "{rejection}");
        }
        assert_eq!(reason("orders", "").reason, RejectReason::InvalidEvent);
    }

    fn enveloped(envelope: Envelope, event: Event) -> (Vec<String>, Bytes) {
        let messages = Messages::new(Vec::new(), None, envelope);
        let message = messages.build(&delivery("orders", event)).unwrap();
        let headers = message.headers.iter();
        let mut lines: Vec<String> = headers
            .flat_map(|(name, values)| values.iter().map(move |value| format!("{name}: {}", value.as_str())))
            .collect();
        lines.sort();
        (lines, message.payload)
    }

    fn cloudevents(mode: &str) -> Envelope {
        let config = serde_json::json!({ "cloudevents": { "mode": mode, "source": "/shop" } });
        walgate_sink::read_config(&config).unwrap()
    }

    #[test]
    fn a_cloudevent_has_its_attributes_in_headers_or_in_the_payload() {
        let mut event = event();
        event.headers = [("Tenant", "t% ä"), ("TraceParent", "00-a")]
            .map(|(name, value)| (name.into(), value.into()))
            .into_iter()
            .collect();
        let (lines, payload) = enveloped(cloudevents("binary"), event.clone());
        assert_eq!(
            lines,
            [
                "Nats-Msg-Id: e1-0123",
                "ce-id: e1",
                "ce-source: /shop",
                "ce-specversion: 1.0",
                "ce-subject: k%201",
                "ce-tenant: t%25%20%C3%A4",
                "ce-time: 1970-01-01T00:00:00.000000Z",
                "ce-traceparent: 00-a",
                "ce-type: order.created",
                "content-type: application/json",
                "traceparent: 00-a",
            ]
        );
        assert_eq!(&payload[..], b"{}");
        let (lines, payload) = enveloped(cloudevents("structured"), event.clone());
        assert_eq!(lines, ["Nats-Msg-Id: e1-0123", "content-type: application/cloudevents+json", "traceparent: 00-a"]);
        let document: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        assert_eq!((&document["tenant"], &document["data"]), (&"t% ä".into(), &serde_json::json!({})));
        event.headers = [("tenant-id".into(), "x".into())].into_iter().collect();
        let messages = Messages::new(Vec::new(), None, cloudevents("binary"));
        let rejection = messages.build(&delivery("orders", event)).err().unwrap();
        assert_eq!(rejection.reason, RejectReason::InvalidEvent);
    }

    #[test]
    fn debezium_names_what_its_router_names() {
        let (lines, payload) = enveloped(Envelope::Debezium, event());
        assert_eq!(
            lines,
            [
                "Nats-Msg-Id: e1-0123",
                "aggregateid: k 1",
                "content-type: application/json",
                "eventType: order.created",
                "id: e1",
                "traceparent: 00-a",
                "walgate-header-Nats-Rollup: all",
                "walgate-header-Tenant: t%25",
            ]
        );
        assert_eq!(&payload[..], b"{}");
    }
}
