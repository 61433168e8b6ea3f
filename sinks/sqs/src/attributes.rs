//! Message attributes: names, values, and what they weigh.

use std::{borrow::Cow, fmt::Write as _};

/// Attributes of one message at the most: what SQS takes.
pub(crate) const MAX: usize = 10;
/// Names that belong to walgate. Not all of them stand in every message.
pub(crate) const OWN: [&str; 7] = [ID, EVENT_TYPE, KEY, POSITION, COMMITTED_AT, CONTENT_TYPE, ENCODING];

pub(crate) const ID: &str = "id";
pub(crate) const EVENT_TYPE: &str = "walgate-event-type";
pub(crate) const KEY: &str = "walgate-key";
pub(crate) const POSITION: &str = "walgate-position";
pub(crate) const COMMITTED_AT: &str = "walgate-committed-at";
pub(crate) const CONTENT_TYPE: &str = "content-type";
pub(crate) const ENCODING: &str = "walgate-encoding";

/// The type of all of them.
const STRING: &str = "String";
/// Characters of a name at the most.
const MAX_NAME: usize = 256;
/// W3C trace context: its values are forwarded as they are.
pub(crate) const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// Names and values of one message's attributes, all of type `String`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes(Vec<(String, String)>);

impl Attributes {
    /// Adds one; not where its value is empty, which SQS refuses.
    pub(crate) fn add(&mut self, name: &str, value: &str) {
        let value = if TRACE.contains(&name) { foreign(value) } else { field(value) };
        if !value.is_empty() {
            self.0.push((name.to_owned(), value.into_owned()));
        }
    }

    /// What SQS counts of them: names, types and values.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + STRING.len() + value.len()).sum()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(crate) fn data_type() -> &'static str {
        STRING
    }
}

/// A field of an event: ASCII from space to `~` as it is, but for `%`; the rest percent-encoded.
fn field(text: &str) -> Cow<'_, str> {
    encoded(text, |byte| matches!(byte, b' '..=b'~') && byte != b'%')
}

/// A value that others define (`traceparent`, `tracestate`): `%` stays as it is.
fn foreign(text: &str) -> Cow<'_, str> {
    encoded(text, |byte| matches!(byte, b' '..=b'~'))
}

fn encoded(text: &str, plain: fn(u8) -> bool) -> Cow<'_, str> {
    if text.bytes().all(plain) {
        return text.into();
    }
    let mut encoded = String::new();
    for byte in text.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded.into()
}

/// Whether a header of this name can be forwarded as an attribute; why not otherwise.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(legal) {
        return Err(format!(
            "it cannot be the name of an attribute: letters, digits, `-`, `_` and `.`, {MAX_NAME} at the most"
        ));
    }
    if name.starts_with('.') || name.ends_with('.') || name.contains("..") {
        return Err("it cannot be the name of an attribute: a dot stands at an end, or beside another".to_owned());
    }
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("aws.") || lower.starts_with("amazon.") || lower.starts_with("walgate-") {
        return Err("it is reserved: the name belongs to Amazon or to walgate".to_owned());
    }
    if OWN.contains(&&*lower) {
        return Err("it is reserved: walgate sets an attribute of that name itself".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_encoded_and_empty_ones_left_out() {
        let mut attributes = Attributes::default();
        attributes.add("tenant", "a%\r\nb é");
        attributes.add("tracestate", "a=1%2");
        attributes.add("empty", "");
        let seen: Vec<_> = attributes.iter().collect();
        assert_eq!(seen, [("tenant", "a%25%0D%0Ab %C3%A9"), ("tracestate", "a=1%2")]);
        assert_eq!(attributes.len(), 6 + 6 + 18 + 10 + 6 + 5);
    }

    #[test]
    fn names_have_a_grammar() {
        for good in ["traceparent", "X-Tenant", "a.b_c"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        let long = "x".repeat(257);
        for bad in
            ["", ".a", "a.", "a..b", "a b", "é", "AWS.x", "amazon.x", "id", "ID", "walgate-key", "Content-Type", &long]
        {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
