//! Where in the sink a delivery goes.

use std::sync::Arc;

use bytestring::ByteString;

/// One part of an address in the sink's own words: `topic`, `subject`, `exchange`, `routing_key`, `queue`, `path`.
///
/// A route may set it to a template (`topic: "orders.{event_type}"`); the sink's own configuration may give the
/// default under the same key.
#[derive(Clone, Copy, Debug)]
pub struct TargetField {
    /// The key in routes and in the sink's configuration.
    pub name: &'static str,
    /// Whether a delivery without it makes no sense: then either the sink or every route must give it.
    pub required: bool,
    /// Whether the rendered value replaces the event's key as the ordering key (Kafka's record key, SQS's group).
    pub ordering_key: bool,
    /// How values taken from the event are written into it.
    pub escape: Escape,
}

/// How a template writes the values that come from an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Escape {
    /// As they are; the sink checks the rendered name against its own grammar.
    None,
    /// As a segment of a URL's path: everything but unreserved characters percent-encoded, `/` too. (The sink
    /// refuses a segment that comes to `.` or `..`: encoded or not, servers take it for a step.)
    UrlPath,
}

/// A rendered address: one value for each [`TargetField`] of the sink, in their order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Target {
    fields: &'static [TargetField],
    values: Arc<[Option<ByteString>]>,
}

impl Target {
    /// A target whose values stand in the order of `fields`; missing ones are `None`, surplus ones are dropped.
    #[must_use]
    pub fn new(fields: &'static [TargetField], values: impl IntoIterator<Item = Option<ByteString>>) -> Self {
        let mut values: Vec<_> = values.into_iter().take(fields.len()).collect();
        values.resize(fields.len(), None);
        Target { fields, values: values.into() }
    }

    /// The value of the field with this name, if the route or the sink gives one.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&ByteString> {
        let index = self.fields.iter().position(|field| field.name == name)?;
        self.values.get(index)?.as_ref()
    }

    /// Names and values that are set, in the order of the sink's fields.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &ByteString)> {
        self.fields.iter().zip(self.values.iter()).filter_map(|(field, value)| Some((field.name, value.as_ref()?)))
    }
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Target {}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (name, value)) in self.iter().enumerate() {
            write!(f, "{}{name}={value}", if index == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}
