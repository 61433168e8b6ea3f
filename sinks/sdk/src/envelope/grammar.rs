//! What CloudEvents 1.0.2 allows in names, values and URIs, and how HTTP carries values.

use std::{borrow::Cow, fmt::Write as _};

/// Whether it can be the value of an attribute of type String; the character that cannot otherwise. CloudEvents 1.0.2,
/// section "Type System": no control characters and no noncharacters.
pub(super) fn text(value: &str) -> Result<(), char> {
    value.chars().find(|c| c.is_control() || is_noncharacter(*c)).map_or(Ok(()), Err)
}

fn is_noncharacter(c: char) -> bool {
    let code = u32::from(c);
    code & 0xFFFE == 0xFFFE || (0xFDD0..=0xFDEF).contains(&code)
}

/// Whether it can be the name of an attribute: lower-case ASCII letters and digits.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// Whether it is a URI-reference that is not empty, by the characters that RFC 3986 allows; why not otherwise.
pub(super) fn uri_reference(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty, and must be a URI-reference");
    }
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => {
                let is_hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
                if !is_hex(bytes.next()) || !is_hex(bytes.next()) {
                    return Err("a `%` in a URI stands before two hexadecimal digits");
                }
            }
            byte if byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(&byte) => {}
            _ => return Err("it has a character that a URI cannot hold unless it is percent-encoded"),
        }
    }
    if text.matches('#').count() > 1 {
        return Err("a URI has one fragment (`#`) at the most");
    }
    Ok(())
}

/// An attribute's value as HTTP carries it (HTTP binding 1.0.2, section 3.1.3.2): space, `"`, `%` and everything but
/// printable ASCII is percent-encoded as UTF-8.
#[must_use]
pub fn percent_encoded(value: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'%');
    if value.bytes().all(plain) {
        return Cow::Borrowed(value);
    }
    let mut encoded = String::with_capacity(value.len() + 16);
    for byte in value.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    Cow::Owned(encoded)
}
