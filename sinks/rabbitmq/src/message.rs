//! From a delivery to its message.

use std::fmt;

use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use walgate_sink::{
    ByteString, Bytes, Delivery, Envelope, Enveloped, Event, RejectReason, Rejection, Secret,
    envelope::{DEBEZIUM_KEY, trace_context},
    text,
};

use crate::{address::MAX_SHORT, names};

/// W3C trace context: forwarded under its own names.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];
/// What stands before the name of an event's header. It keeps it apart from those that the broker obeys (`CC` and `BCC`
/// send a message to more queues), and from walgate's own.
const FORWARDED: &str = "walgate-header-";
/// What the names of a CloudEvent's attributes begin with (AMQP binding, 3.1.3.1). The binding is that of AMQP 1.0, whose
/// application properties RabbitMQ makes of these headers.
pub(crate) const CLOUDEVENTS: &str = "cloudEvents_";
/// The property `app_id` that is not configured.
const APP_ID: &str = "walgate";
/// The message is written to disk.
const PERSISTENT: u8 = 2;

/// Makes messages out of deliveries. What is the same in all of them is made once.
pub(crate) struct Messages {
    headers: Vec<(ShortString, LongString)>,
    app_id: ShortString,
    exchange: Option<String>,
    routing_key: Option<String>,
    envelope: Envelope,
}

/// A message that can be sent.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// Empty: the default exchange.
    pub(crate) exchange: ByteString,
    pub(crate) routing_key: ByteString,
    pub(crate) properties: BasicProperties,
    pub(crate) payload: Bytes,
    /// Bytes of the frame that holds the properties.
    header_frame: usize,
}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Messages")
            .field("exchange", &self.exchange)
            .field("routing_key", &self.routing_key)
            .finish_non_exhaustive()
    }
}

/// What a delivery's target says: the exchange, empty for the default one, and the routing key.
pub(crate) fn target(delivery: &Delivery) -> (ByteString, ByteString) {
    let field = |name| delivery.target.get(name).cloned().unwrap_or_default();
    (field("exchange"), field("routing_key"))
}

impl Messages {
    /// `exchange` and `routing_key` are the configuration's own templates.
    pub(crate) fn new(
        headers: impl IntoIterator<Item = (String, Secret)>,
        app_id: Option<&str>,
        exchange: Option<&str>,
        routing_key: Option<&str>,
        envelope: Envelope,
    ) -> Self {
        let fixed = |template: &&str| !names::is_template(template);
        let headers = headers.into_iter();
        Messages {
            headers: headers.map(|(name, value)| (name.into(), LongString::from(value.expose()))).collect(),
            app_id: app_id.unwrap_or(APP_ID).into(),
            exchange: exchange.filter(fixed).map(str::to_owned),
            routing_key: routing_key.filter(fixed).map(str::to_owned),
            envelope,
        }
    }

    /// Whether every event goes to this exchange.
    pub(crate) fn is_fixed_exchange(&self, exchange: &str) -> bool {
        self.exchange.as_deref().unwrap_or_default() == exchange
    }

    /// Whether every event goes there.
    pub(crate) fn is_fixed(&self, exchange: &str, routing_key: &str) -> bool {
        self.is_fixed_exchange(exchange) && self.routing_key.as_deref() == Some(routing_key)
    }

    /// The message of a delivery.
    pub(crate) fn build(&self, delivery: &Delivery) -> Result<Message, Rejection> {
        let event = &delivery.event;
        let (exchange, routing_key) = target(delivery);
        let invalid_name = |what: &str, name: &str, why: &str| {
            let shown = text::excerpt(name.as_bytes(), &[]);
            let message = format!("the rendered {what} `{shown}` cannot be published to: {why}");
            Rejection::new(RejectReason::InvalidTarget, message)
        };
        // A template that renders to nothing must not end up on the default exchange, which leads to every queue.
        if delivery.target.get("exchange").is_some() {
            names::check_exchange(&exchange).map_err(|why| invalid_name("exchange", &exchange, &why))?;
        }
        names::check_routing_key(&routing_key).map_err(|why| invalid_name("routing key", &routing_key, &why))?;
        if event.id.is_empty() || event.id.len() > MAX_SHORT {
            let message = format!("the event's id has {} bytes: a message's id has 1 to {MAX_SHORT}", event.id.len());
            return Err(Rejection::new(RejectReason::InvalidEvent, message));
        }
        let (headers, content_type, payload) = match &self.envelope {
            Envelope::Raw => {
                let content_type = event.payload.as_ref().map(|_| event.format.content_type());
                (self.headers_of(event)?, content_type, event.payload.clone())
            }
            envelope => {
                let enveloped = envelope.wrap(event)?;
                (self.enveloped(&enveloped, event)?, enveloped.content_type, enveloped.body)
            }
        };
        let mut properties = BasicProperties::default()
            .with_message_id(short(&event.id))
            .with_timestamp(u64::try_from(event.committed_at.0 / 1_000_000).unwrap_or(0))
            .with_app_id(self.app_id.clone())
            .with_delivery_mode(PERSISTENT)
            .with_headers(headers.0);
        if event.event_type.len() <= MAX_SHORT {
            properties = properties.with_type(short(&event.event_type));
        }
        if let Some(content_type) = content_type {
            properties = properties.with_content_type(content_type.into());
        }
        let header_frame = frame_of(&properties);
        Ok(Message { exchange, routing_key, properties, payload: payload.unwrap_or_default(), header_frame })
    }

    /// Those of the configuration.
    fn headers(&self) -> Headers {
        let mut table = FieldTable::default();
        for (name, value) in &self.headers {
            table.insert(name.clone(), AMQPValue::LongString(value.clone()));
        }
        Headers(table)
    }

    fn headers_of(&self, event: &Event) -> Result<Headers, Rejection> {
        let mut headers = self.headers();
        headers.set("id", &event.id);
        headers.set("walgate-event-type", &event.event_type);
        if let Some(key) = &event.key {
            headers.set("walgate-key", key);
        }
        headers.set("walgate-position", &event.position.to_string());
        headers.set("walgate-committed-at", &event.committed_at.to_string());
        for (name, value) in event.headers.iter() {
            match TRACE.iter().find(|trace| name.eq_ignore_ascii_case(trace)) {
                Some(trace) => headers.set(trace, value),
                None => headers.forward(name, value)?,
            }
        }
        Ok(headers)
    }

    /// The headers of another envelope than `raw`, whose headers are made without a list of them.
    fn enveloped(&self, enveloped: &Enveloped, event: &Event) -> Result<Headers, Rejection> {
        let mut headers = self.headers();
        for (name, value) in trace_context(event) {
            headers.set(name, value);
        }
        for (name, value) in enveloped.named(CLOUDEVENTS) {
            headers.set_foreign(CLOUDEVENTS, &name, value)?;
        }
        if let Some(key) = event.key.as_ref().filter(|_| self.envelope == Envelope::Debezium) {
            headers.set(DEBEZIUM_KEY, key);
        }
        for (name, value) in &enveloped.headers {
            headers.forward(name, value)?;
        }
        Ok(headers)
    }
}

/// The headers of one message. Of two with one name the first counts.
struct Headers(FieldTable);

impl Headers {
    /// Sets one whose name is short.
    fn set(&mut self, name: &str, value: &str) {
        if !self.0.contains_key(name) {
            self.0.insert(name.into(), AMQPValue::LongString(LongString::from(value)));
        }
    }

    /// Sets one whose name, behind the prefix, comes from an event.
    fn set_foreign(&mut self, prefix: &str, name: &str, value: &str) -> Result<(), Rejection> {
        if name.len() > MAX_SHORT {
            let message = format!(
                "the name of one of the event's headers has {} bytes: AMQP has room for {}",
                name.len() - prefix.len(),
                MAX_SHORT - prefix.len()
            );
            return Err(Rejection::new(RejectReason::InvalidEvent, message));
        }
        self.set(name, value);
        Ok(())
    }

    /// Sets one of the event's own.
    fn forward(&mut self, name: &str, value: &str) -> Result<(), Rejection> {
        self.set_foreign(FORWARDED, &format!("{FORWARDED}{name}"), value)
    }
}

impl Message {
    /// Whether a server whose frames have `frame_max` bytes takes this one: properties cannot be split. How much payload
    /// it takes is not said by the protocol.
    pub(crate) fn check_size(&self, frame_max: u32, server: &str) -> Result<(), Rejection> {
        let max = usize::try_from(frame_max).unwrap_or(usize::MAX);
        if max == 0 || self.header_frame <= max {
            return Ok(());
        }
        let message = format!(
            "the message's headers have {} bytes, and {server} takes {max} at the most (its `frame_max`): send less in \
             headers",
            self.header_frame
        );
        Err(Rejection::new(RejectReason::TooLarge, message))
    }
}

/// Whether a header of every message may have this name; why not otherwise.
pub(crate) fn check_static(name: &str, value: &str) -> Result<(), &'static str> {
    if names::check_short(name).is_err() {
        return Err("its name must have 1 to 255 bytes, without control characters");
    }
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("walgate-") || ["id", "traceparent", "tracestate"].contains(&&*lower) {
        return Err("it is reserved: the name belongs to walgate");
    }
    if ["cc", "bcc", "x-death"].contains(&&*lower) {
        return Err("it is reserved: the broker obeys it, and sends the message elsewhere");
    }
    if value.contains(char::is_control) {
        return Err("its value must not hold control characters");
    }
    Ok(())
}

/// A text that is known to be short enough.
fn short(text: &str) -> ShortString {
    text.into()
}

/// Bytes of a content header frame: 7 before and 1 behind its body, of which 14 are the class, the weight, the size of
/// the payload and the flags (AMQP 0-9-1, 4.2.6.1).
fn frame_of(properties: &BasicProperties) -> usize {
    let short = |text: &Option<ShortString>| text.as_ref().map_or(0, |text| 1 + text.as_str().len());
    let headers = properties.headers().as_ref().map_or(0, |table| {
        let entry = |(name, value): (&ShortString, &AMQPValue)| {
            let value = if let AMQPValue::LongString(value) = value { value.as_bytes().len() } else { 0 };
            1 + name.as_str().len() + 1 + 4 + value
        };
        4 + table.into_iter().map(entry).sum::<usize>()
    });
    // One byte of delivery mode and eight of time.
    7 + 14
        + 1
        + 1
        + 8
        + headers
        + short(properties.message_id())
        + short(properties.app_id())
        + short(properties.kind())
        + short(properties.content_type())
}

#[cfg(test)]
mod tests;
