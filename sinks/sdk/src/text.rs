//! Foreign text in messages: bounded, without control characters, without secrets.
//!
//! What the other side says (an answer's body, a broker's complaint), what a client library says for it, and names that
//! were rendered from events belong into errors and logs only as an [`excerpt`]: such text may be endless, may colour a
//! terminal or forge a line of a log, and may repeat the credentials that it was sent.

use std::borrow::Cow;

use crate::Secret;

/// Characters of foreign text in one message at the most.
const MAX_CHARS: usize = 200;
/// Bytes that are looked at for them.
const MAX_BYTES: usize = 4096;
/// Bytes of a secret's beginning that tell something of it.
const TELLING: usize = 4;

/// A piece of the text that is fit for a log line: 200 characters at the most, on one line; empty where there is nothing
/// to show. Each of `secrets` that stands in it is replaced. They should not be short: one of a few letters would tear
/// harmless words apart.
#[must_use]
pub fn excerpt(bytes: &[u8], secrets: &[Secret]) -> String {
    let head = bytes.get(..MAX_BYTES).unwrap_or(bytes);
    let mut text = String::from_utf8_lossy(head);
    for secret in secrets {
        if text.contains(secret.expose()) {
            text = Cow::Owned(text.replace(secret.expose(), "[secret]"));
        }
    }
    let text = without_torn(&text, secrets).trim();
    let mut piece = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == MAX_CHARS {
            piece.push('…');
            break;
        }
        match c {
            '\n' | '\r' | '\t' => piece.push(' '),
            c if is_unfit(c) => piece.extend(c.escape_unicode()),
            c => piece.push(c),
        }
    }
    piece
}

/// The text, whose whole secrets are gone, without the beginning of one at its end: a text that was cut may have been cut
/// within a secret.
fn without_torn<'a>(text: &'a str, secrets: &[Secret]) -> &'a str {
    let torn = |secret: &Secret| {
        let secret = secret.expose();
        (TELLING..secret.len()).rev().find(|length| secret.get(..*length).is_some_and(|part| text.ends_with(part)))
    };
    let longest = secrets.iter().filter_map(torn).max().unwrap_or_default();
    text.get(..text.len() - longest).unwrap_or_default()
}

/// Control characters, and invisible ones that turn or hide what stands beside them.
fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The innermost cause of an error, as an [`excerpt`]: the layers around it mostly say that something failed, not why.
#[must_use]
pub fn cause(error: &(dyn std::error::Error + 'static), secrets: &[Secret]) -> String {
    let innermost = std::iter::successors(Some(error), |error| error.source()).last().unwrap_or(error);
    excerpt(innermost.to_string().as_bytes(), secrets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_short_and_harmless() {
        let secrets = [Secret::new("hunter2-hunter2")];
        let text = |bytes: &[u8]| excerpt(bytes, &secrets);
        assert_eq!(text(b""), "");
        assert_eq!(text(b"  no such order\r\n"), "no such order");
        assert_eq!(text(b"a\x1b[31mred\0"), "a\\u{1b}[31mred\\u{0}");
        assert_eq!(text("x\u{202e}y".as_bytes()), "x\\u{202e}y");
        assert_eq!(text(b"token hunter2-hunter2 is bad"), "token [secret] is bad");
        assert_eq!(text(&[0xff, b'a']), "\u{fffd}a");
        assert_eq!(text(b"token hunter2-hunt"), "token");
        assert_eq!(text(b"token hunter2-hunter2"), "token [secret]");
        assert_eq!(text(b"hunter2-hunter2-hunter2"), "[secret]-");
        assert_eq!(text(b"a hun"), "a hun");
        let torn = [&[b' '; MAX_BYTES - 10], &b"hunter2-hunter2"[..]].concat();
        assert_eq!(text(&torn), "");
        let long = text("é".repeat(70_000).as_bytes());
        assert_eq!(long.chars().count(), MAX_CHARS + 1);
        assert!(long.ends_with('…'));
    }
}
