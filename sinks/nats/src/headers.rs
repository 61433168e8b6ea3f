//! Event fields as header values and names: what a header cannot carry is percent-encoded, so nothing is lost and
//! nothing can break out of its header.

use std::fmt::Write as _;

use async_nats::{HeaderMap, HeaderName, HeaderValue};

/// Headers of one message, and their length on the wire.
pub(crate) struct Headers {
    map: HeaderMap,
    length: usize,
}

impl Headers {
    pub(crate) fn new() -> Self {
        // `NATS/1.0`, and the empty line behind the last one.
        Headers { map: HeaderMap::new(), length: "NATS/1.0\r\n\r\n".len() }
    }

    /// Adds a header that is there once. False where its value is not a header's: then nothing was added.
    #[must_use]
    pub(crate) fn set(&mut self, name: &HeaderName, value: &str) -> bool {
        // The library takes values by assertion; this is its own check, made before.
        let Ok(value) = value.parse::<HeaderValue>() else { return false };
        self.length += AsRef::<str>::as_ref(name).len() + value.as_str().len() + ": \r\n".len();
        self.map.insert(name.clone(), value);
        true
    }

    /// Adds a header. False where its name is not a header's: then nothing was added.
    #[must_use]
    pub(crate) fn add(&mut self, name: &str, value: &str) -> bool {
        // The library takes both by assertion; these are its own checks, made before.
        let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) else {
            return false;
        };
        self.length += AsRef::<str>::as_ref(&name).len() + value.as_str().len() + ": \r\n".len();
        self.map.append(name, value);
        true
    }

    /// Bytes of the header block.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn into_map(self) -> HeaderMap {
        self.map
    }
}

/// A field of an event, or its dedup id: ASCII from space to `~` as it is, but for `%` and spaces at the ends.
pub(crate) fn field(text: &str) -> std::borrow::Cow<'_, str> {
    value(text, |byte| matches!(byte, b' '..=b'~') && byte != b'%')
}

/// A value that others define (`traceparent`, `tracestate`): `%` stays as it is.
pub(crate) fn foreign(text: &str) -> std::borrow::Cow<'_, str> {
    value(text, |byte| matches!(byte, b' '..=b'~'))
}

fn value(text: &str, plain: fn(u8) -> bool) -> std::borrow::Cow<'_, str> {
    let bytes = text.as_bytes();
    // Clients trim values.
    let spaced = bytes.first() == Some(&b' ') || bytes.last() == Some(&b' ');
    if !spaced && bytes.iter().copied().all(plain) {
        return text.into();
    }
    let inner = |index: usize| index > 0 && index + 1 < bytes.len();
    encode(bytes.iter().enumerate().map(|(index, byte)| (*byte, plain(*byte) && (*byte != b' ' || inner(index)))))
        .into()
}

/// The name under which a header of an event travels. The prefix keeps it apart from `Nats-`, which the server obeys
/// (`Nats-Rollup` can purge a stream), and from walgate's own.
pub(crate) fn forwarded_name(name: &str) -> String {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    format!("walgate-header-{}", encode(name.bytes().map(|byte| (byte, token(byte)))))
}

/// Whether a header of every message may have this name; why not otherwise.
pub(crate) fn check_static(name: &str, value: &str) -> Result<(), &'static str> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) {
        return Err("it is not a legal header name: use letters, digits and `-`");
    }
    let lower = name.to_ascii_lowercase();
    let own = ["id", "traceparent", "tracestate"];
    if lower.starts_with("nats-") || lower.starts_with("walgate-") || own.contains(&&*lower) {
        return Err("it is reserved: the name belongs to the server or to walgate");
    }
    if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Err("its value must be visible ASCII characters and spaces");
    }
    Ok(())
}

fn encode(bytes: impl Iterator<Item = (u8, bool)>) -> String {
    let mut encoded = String::new();
    for (byte, plain) in bytes {
        if plain {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_text_where_a_header_can_carry_it() {
        for (raw, encoded) in [
            ("", ""),
            ("order.created", "order.created"),
            ("two words", "two words"),
            (" edge ", "%20edge%20"),
            (" ", "%20"),
            ("a\r\nNats-Rollup: all", "a%0D%0ANats-Rollup: all"),
            ("tab\tdel\u{7f}é%", "tab%09del%7F%C3%A9%25"),
        ] {
            assert_eq!(field(raw), encoded);
        }
        assert_eq!(foreign("a=1%2,b\n"), "a=1%2,b%0A");
    }

    #[test]
    fn names_become_tokens_behind_a_prefix() {
        for (raw, name) in [
            ("Tenant", "walgate-header-Tenant"),
            ("Nats-Rollup", "walgate-header-Nats-Rollup"),
            ("a: b\r\n", "walgate-header-a%3A%20b%0D%0A"),
            ("", "walgate-header-"),
        ] {
            assert_eq!(forwarded_name(raw), name);
        }
    }

    #[test]
    fn whatever_an_event_holds_fits_into_a_header() {
        for byte in 0..=0x7f_u8 {
            for text in [format!("{}", char::from(byte)), format!("a{}b", char::from(byte))] {
                let mut headers = Headers::new();
                assert!(headers.add(&forwarded_name(&text), &field(&text)), "{text:?}");
                assert!(headers.add("walgate-key", &foreign(&text)), "{text:?}");
            }
        }
    }

    #[test]
    fn the_length_is_that_of_the_wire() {
        let mut headers = Headers::new();
        assert!(headers.add("Nats-Msg-Id", "e1"));
        assert!(headers.add("walgate-header-a", "1"));
        assert!(headers.add("walgate-header-a", "22"));
        let wire = "NATS/1.0\r\nNats-Msg-Id: e1\r\nwalgate-header-a: 1\r\nwalgate-header-a: 22\r\n\r\n";
        assert_eq!(headers.len(), wire.len());
        assert!(!headers.add("a: b", "x"), "not a name");
        assert!(!headers.add("a", "x\r\ny"), "not a value");
        assert_eq!(headers.len(), wire.len());
    }

    #[test]
    fn reserved_names_are_refused() {
        for name in ["Nats-Msg-Id", "nats-rollup", "NATS-TTL", "walgate-key", "id", "ID", "traceparent", "", "a b", "é"]
        {
            assert!(check_static(name, "x").is_err(), "{name}");
        }
        assert!(check_static("X-Region", "eu west").is_ok());
        assert!(check_static("content-type", "application/cloudevents").is_ok());
        assert!(check_static("X-Region", "a\nb").is_err());
    }
}
