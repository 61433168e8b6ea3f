//! The text forms of bytea: hex (`\x6869`, the default) and escape (`hi\000`, by `bytea_output`).

use bytes::Bytes;

/// The bytes of a bytea's text; `None`: it is in neither form.
pub(super) fn decode(text: &Bytes) -> Option<Bytes> {
    match text.strip_prefix(b"\\x") {
        Some(digits) => hex(digits),
        // No backslash: the escape form is the bytes themselves.
        None if !text.contains(&b'\\') => Some(text.clone()),
        None => escape(text),
    }
}

/// The value of each hex digit; 0xFF for every other byte.
const DIGITS: [u8; 256] = {
    let mut digits = [0xFF; 256];
    let mut value = 0;
    while value < 16 {
        let digit = b"0123456789abcdef"[value];
        digits[digit as usize] = value as u8;
        digits[digit.to_ascii_uppercase() as usize] = value as u8;
        value += 1;
    }
    digits
};

fn hex(digits: &[u8]) -> Option<Bytes> {
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let mut bytes = Vec::with_capacity(pairs.len());
    // Bad digits are gathered and judged once: no branch for each byte.
    let mut bad = 0;
    for [high, low] in pairs {
        let (high, low) = (DIGITS[usize::from(*high)], DIGITS[usize::from(*low)]);
        bad |= high | low;
        bytes.push((high << 4) | (low & 0x0F));
    }
    (bad <= 0x0F).then(|| bytes.into())
}

/// `\\` stands for a backslash and `\nnn`, three octal digits, for a byte.
fn escape(text: &[u8]) -> Option<Bytes> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let (byte, after) = match (byte, after) {
            (b'\\', [b'\\', after @ ..]) => (b'\\', after),
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                (((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'), after)
            }
            (b'\\', _) => return None,
            (byte, after) => (*byte, after),
        };
        bytes.push(byte);
        rest = after;
    }
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(text: &'static str) -> Option<Vec<u8>> {
        decode(&Bytes::from_static(text.as_bytes())).map(Into::into)
    }

    #[test]
    fn both_forms_are_read() {
        for (text, bytes) in [
            ("\\x", &b""[..]),
            ("\\x00ff7F", b"\x00\xff\x7f"),
            ("", b""),
            ("plain", b"plain"),
            ("a\\\\b\\000\\377", b"a\\b\x00\xff"),
        ] {
            assert_eq!(decoded(text).as_deref(), Some(bytes), "{text}");
        }
        for bad in ["\\x0", "\\x0g", "\\xé", "\\", "\\4", "\\400", "\\08", "a\\x00", "\\x 0"] {
            assert_eq!(decoded(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_value_survives_both_forms(bytes: Vec<u8>) {
            let hex = bytes.iter().fold("\\x".to_owned(), |text, byte| format!("{text}{byte:02x}"));
            let escape: String = bytes.iter().map(|byte| match byte {
                b'\\' => "\\\\".to_owned(),
                0x20..=0x7e => char::from(*byte).to_string(),
                _ => format!("\\{byte:03o}"),
            }).collect();
            for text in [hex, escape] {
                let decoded = decode(&text.into());
                prop_assert_eq!(decoded.as_deref(), Some(&bytes[..]));
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes.into());
        }
    }
}
