//! Where an event's ordering key comes from: a column, or a place in the payload.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

/// What a key in the payload begins with; a JSON pointer follows.
const PAYLOAD: &str = "payload:";
/// Steps that a pointer may have.
const MAX_STEPS: usize = 32;
/// Bytes that a pointer may have.
const MAX_POINTER: usize = 1 << 10;

/// `outbox.columns.key`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeySource {
    /// The column of this name.
    Column(String),
    /// `payload:/order_id`: a value within the payload.
    Payload(JsonPointer),
}

impl KeySource {
    /// The column, where it is one.
    #[must_use]
    pub fn column(&self) -> Option<&String> {
        match self {
            KeySource::Column(column) => Some(column),
            KeySource::Payload(_) => None,
        }
    }

    /// The pointer, where it is one.
    #[must_use]
    pub fn pointer(&self) -> Option<&JsonPointer> {
        match self {
            KeySource::Column(_) => None,
            KeySource::Payload(pointer) => Some(pointer),
        }
    }

    /// Reads a column's name, or `payload:` and a JSON pointer.
    ///
    /// # Errors
    /// What is wrong with the pointer.
    pub fn parse(text: &str) -> Result<Self, String> {
        match (text.strip_prefix(PAYLOAD), text.split_once(":/")) {
            (Some(pointer), _) => JsonPointer::parse(pointer).map(KeySource::Payload),
            (None, Some((_, pointer))) => {
                let shown: String = pointer.escape_debug().take(60).collect();
                Err(format!(
                    "a key in the payload begins with `{PAYLOAD}`, whatever its column is called: `{PAYLOAD}/{shown}`"
                ))
            }
            (None, None) => Ok(KeySource::Column(text.to_owned())),
        }
    }
}

impl fmt::Display for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySource::Column(column) => f.write_str(column),
            KeySource::Payload(pointer) => write!(f, "{PAYLOAD}{pointer}"),
        }
    }
}

impl<'de> Deserialize<'de> for KeySource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        KeySource::parse(&text).map_err(D::Error::custom)
    }
}

impl Serialize for KeySource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A JSON pointer (RFC 6901) to a value below the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPointer(Box<[Box<str>]>);

impl JsonPointer {
    /// Reads a pointer: `/order_id`, `/items/0/sku`, `/a~1b` for the member `a/b`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write a JSON pointer, such as `payload:/order_id` or `payload:/items/0/sku`";
        if text.is_empty() {
            return Err(format!("the pointer names the payload as a whole, and that is no key: {FORM}"));
        }
        if text.len() > MAX_POINTER {
            return Err(format!("the pointer has {} bytes, and {MAX_POINTER} are possible", text.len()));
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!("the pointer does not begin with `/`: {FORM}"));
        };
        let steps: Result<Box<[_]>, _> = rest.split('/').map(step).collect();
        let steps = steps?;
        if steps.len() > MAX_STEPS {
            return Err(format!("the pointer has {} steps, and {MAX_STEPS} are possible", steps.len()));
        }
        Ok(JsonPointer(steps))
    }

    /// Its steps, unescaped: names of members, or indices of elements.
    #[must_use]
    pub fn steps(&self) -> &[Box<str>] {
        &self.0
    }
}

fn step(text: &str) -> Result<Box<str>, String> {
    let mut unescaped = String::with_capacity(text.len());
    let mut parts = text.split('~');
    unescaped.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let (c, rest) = match part.strip_prefix('0') {
            Some(rest) => ('~', rest),
            None => match part.strip_prefix('1') {
                Some(rest) => ('/', rest),
                None => return Err("a `~` in a pointer is written `~0`, and a `/` within a name `~1`".to_owned()),
            },
        };
        unescaped.push(c);
        unescaped.push_str(rest);
    }
    Ok(unescaped.into())
}

impl fmt::Display for JsonPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "/{}", step.replace('~', "~0").replace('/', "~1")))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_pointer_is_told_from_a_column() {
        assert_eq!(KeySource::parse("aggregate_id"), Ok(KeySource::Column("aggregate_id".into())));
        let source = KeySource::parse("payload:/a~1b/~01/").unwrap();
        let steps: Vec<&str> = source.pointer().unwrap().steps().iter().map(|step| &**step).collect();
        assert_eq!(steps, ["a/b", "~1", ""]);
        assert_eq!(source.to_string(), "payload:/a~1b/~01/");
        for bad in
            ["payload:", "payload:order_id", "payload:$.id", "payload:#/id", "data:/id", "payload:/a~", "payload:/~2"]
        {
            assert!(KeySource::parse(bad).is_err(), "{bad}");
        }
        assert!(KeySource::parse(&format!("payload:{}", "/a".repeat(MAX_STEPS))).is_ok());
        assert!(KeySource::parse(&format!("payload:{}", "/a".repeat(MAX_STEPS + 1))).is_err());
        assert!(KeySource::parse(&format!("payload:/{}", "a".repeat(MAX_POINTER))).is_err());
    }

    proptest! {
        #[test]
        fn steps_survive_being_written(steps in proptest::collection::vec("[a~/01é]{0,4}", 1..5)) {
            let pointer = JsonPointer(steps.iter().map(|step| Box::from(step.as_str())).collect());
            prop_assert_eq!(JsonPointer::parse(&pointer.to_string()), Ok(pointer));
        }

        #[test]
        fn no_text_panics(text in "\\PC*|(payload:)?[/~01a$#]*") {
            if let Ok(source) = KeySource::parse(&text) {
                prop_assert_eq!(source.to_string(), text);
            }
        }
    }
}
