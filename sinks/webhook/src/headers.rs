//! Event fields as header values: what HTTP cannot carry as it is, is percent-encoded, so nothing is lost and nothing
//! can break out of its header.

use std::fmt::Write as _;

use reqwest::header::{HeaderName, HeaderValue};
use walgate_sink::ByteString;

/// The event's id as `webhook-id`. Dots are encoded too: the signature is over `id.timestamp.body`.
pub(crate) fn id(text: &ByteString) -> Option<HeaderValue> {
    value(text, |byte| byte.is_ascii_graphic() && !matches!(byte, b'.' | b'%'))
}

/// Any other field of an event.
pub(crate) fn field(text: &ByteString) -> Option<HeaderValue> {
    value(text, |byte| matches!(byte, b' '..=b'~') && byte != b'%')
}

/// A value that others define (`traceparent`, `tracestate`): `%` stays as it is.
pub(crate) fn foreign(text: &ByteString) -> Option<HeaderValue> {
    value(text, |byte| matches!(byte, b' '..=b'~'))
}

/// `None` cannot happen: what is not plain is encoded.
fn value(text: &ByteString, plain: fn(u8) -> bool) -> Option<HeaderValue> {
    let bytes = text.as_bytes();
    let spaced = bytes.first() == Some(&b' ') || bytes.last() == Some(&b' ');
    if !spaced && bytes.iter().copied().all(plain) {
        return HeaderValue::from_maybe_shared(text.clone().into_bytes()).ok();
    }
    // Spaces at the ends do not survive HTTP.
    let inner = |index: usize| index > 0 && index + 1 < bytes.len();
    let encoded =
        encode(bytes.iter().enumerate().map(|(at, &byte)| (byte, plain(byte) && (byte != b' ' || inner(at)))));
    HeaderValue::from_str(&encoded).ok()
}

/// `walgate-header-` and the event's own name for it. Names are case-insensitive in HTTP and arrive in lower case.
pub(crate) fn forwarded_name(name: &str) -> Option<HeaderName> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    let encoded = encode(name.bytes().map(|byte| (byte, token(byte))));
    HeaderName::from_bytes(format!("walgate-header-{encoded}").as_bytes()).ok()
}

fn encode(bytes: impl Iterator<Item = (u8, bool)>) -> String {
    let mut encoded = String::new();
    for (byte, plain) in bytes {
        if plain {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: Option<HeaderValue>) -> String {
        value.unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn ids_cannot_confuse_the_signature() {
        for (raw, encoded) in [
            ("7f9c24e5-2f1b-4b1e-9d5e-000000000001", "7f9c24e5-2f1b-4b1e-9d5e-000000000001"),
            ("order:42/7_a~b", "order:42/7_a~b"),
            ("a.1700000000.{}", "a%2E1700000000%2E{}"),
            ("50%2E", "50%252E"),
            ("a b\r\nx: y", "a%20b%0D%0Ax:%20y"),
            ("é\0", "%C3%A9%00"),
        ] {
            assert_eq!(text(id(&raw.into())), encoded);
        }
    }

    #[test]
    fn fields_keep_their_text_where_http_can_carry_it() {
        for (raw, encoded) in [
            ("", ""),
            ("order.created", "order.created"),
            ("two words", "two words"),
            (" edge ", "%20edge%20"),
            (" ", "%20"),
            ("a\r\nset-cookie: x", "a%0D%0Aset-cookie: x"),
            ("tab\tdel\u{7f}é%", "tab%09del%7F%C3%A9%25"),
        ] {
            assert_eq!(text(field(&raw.into())), encoded);
        }
        assert_eq!(text(foreign(&"a=1%2,b\n".into())), "a=1%2,b%0A");
    }

    #[test]
    fn no_value_is_refused() {
        for byte in 0..=0x7f_u8 {
            for text in [format!("{}", char::from(byte)), format!("a{}b", char::from(byte))] {
                for value in [id(&text.clone().into()), field(&text.clone().into()), foreign(&text.clone().into())] {
                    assert!(value.unwrap().to_str().is_ok());
                }
                assert!(forwarded_name(&text).is_some(), "{text:?}");
            }
        }
    }

    #[test]
    fn names_become_tokens_behind_a_prefix() {
        for (raw, name) in [
            ("Tenant", "walgate-header-tenant"),
            ("webhook-id", "walgate-header-webhook-id"),
            ("a: b\r\n", "walgate-header-a%3a%20b%0d%0a"),
            ("", "walgate-header-"),
        ] {
            assert_eq!(forwarded_name(raw).unwrap().as_str(), name);
        }
    }
}
