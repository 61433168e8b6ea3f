//! The grammar of subjects.
//!
//! The client library lets through whatever has no white space, and the server is no stricter: a wildcard in a
//! published subject is a literal to it and a trap for every consumer, and a space would begin a new field of the
//! protocol's line.

/// Bytes of a subject at the most. A server reads a line of 4096 bytes at the most (`max_control_line`), and drops the
/// connection over a longer one; on the line stand also the address of the reply and two numbers.
pub(crate) const MAX_BYTES: usize = 3 << 10;

/// Whether events may be published to it; what is wrong with it if not.
pub(crate) fn check(subject: &str) -> Result<(), String> {
    if subject.is_empty() {
        return Err("it is empty".to_owned());
    }
    if subject.len() > MAX_BYTES {
        return Err(format!("it has {} bytes, more than the {MAX_BYTES} that a subject may have", subject.len()));
    }
    check_characters(subject)?;
    if subject.starts_with('.') || subject.ends_with('.') {
        return Err("it begins or ends with a dot".to_owned());
    }
    if subject.contains("..") {
        return Err("two dots stand side by side in it, with an empty token between them".to_owned());
    }
    check_start(subject)
}

/// Whether a template can give legal subjects, as far as its literal parts tell.
pub(crate) fn check_template(template: &str) -> Result<(), String> {
    if !is_template(template) {
        return check(template);
    }
    let mut outside = String::new();
    let mut inside = false;
    for c in template.chars() {
        match c {
            '{' => inside = true,
            '}' => inside = false,
            c if !inside => outside.push(c),
            _ => {}
        }
    }
    check_characters(&outside)?;
    if template.starts_with('.') || template.ends_with('.') {
        return Err("it begins or ends with a dot".to_owned());
    }
    if template.contains("..") {
        return Err("two dots stand side by side in it, with an empty token between them".to_owned());
    }
    check_start(template)
}

/// Whether the text has places that each event fills.
pub(crate) fn is_template(text: &str) -> bool {
    text.contains(['{', '}'])
}

/// The subjects that a template can give, as a filter with wildcards; a literal is its own filter.
pub(crate) fn filter(template: &str) -> String {
    if !is_template(template) {
        return template.to_owned();
    }
    // A value may hold dots, so whatever follows the first place may be any number of tokens.
    let literal = template.split('{').next().unwrap_or_default();
    match literal.rsplit_once('.') {
        Some((tokens, _)) => format!("{tokens}.>"),
        None => ">".to_owned(),
    }
}

fn check_characters(text: &str) -> Result<(), String> {
    match text.chars().find(|c| c.is_whitespace() || c.is_control() || matches!(c, '*' | '>')) {
        None => Ok(()),
        Some(c @ ('*' | '>')) => Err(format!("it holds the wildcard `{c}`")),
        Some(c) => Err(format!("it holds white space or a control character ({})", c.escape_unicode())),
    }
}

fn check_start(subject: &str) -> Result<(), String> {
    if subject.starts_with('$') {
        return Err("subjects that begin with `$` belong to the server".to_owned());
    }
    if subject.starts_with("_INBOX.") {
        return Err("subjects that begin with `_INBOX.` are addresses of replies".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_tokens_with_dots_between() {
        for good in ["a", "orders.created", "orders.42", "a-b_c.D/e:f", "größe.é", "a$b", "x._INBOX", "a.$b"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "empty"),
            (".a", "begins or ends"),
            ("a.", "begins or ends"),
            (".", "begins or ends"),
            ("a..b", "empty token"),
            ("a b", "white space"),
            ("a\tb", "white space"),
            ("a\r\nPUB x 0\r\n", "white space"),
            ("a\nb", "white space"),
            ("a\0b", "control character"),
            ("a\u{7f}", "control character"),
            ("a\u{85}b", "white space"),
            ("a\u{2028}b", "white space"),
            ("a.*", "wildcard `*`"),
            ("a*b", "wildcard `*`"),
            (">", "wildcard `>`"),
            ("a.>", "wildcard `>`"),
            ("$JS.API.STREAM.DELETE.orders", "belong to the server"),
            ("$SYS.REQ.SERVER.PING", "belong to the server"),
            ("$KV.bucket.key", "belong to the server"),
            ("$", "belong to the server"),
            ("_INBOX.abc", "replies"),
        ] {
            let found = check(bad).unwrap_err();
            assert!(found.contains(why), "{bad:?}: {found}");
        }
        assert!(check(&"a".repeat(MAX_BYTES)).is_ok());
        assert!(check(&"a".repeat(MAX_BYTES + 1)).unwrap_err().contains("3073 bytes"));
    }

    #[test]
    fn no_byte_of_a_protocol_line_passes() {
        for byte in (0..=0x20_u8).chain([0x7f]) {
            assert!(check(&format!("a{}b", char::from(byte))).is_err(), "{byte:#x}");
        }
    }

    #[test]
    fn templates_are_checked_as_far_as_they_go() {
        for good in ["orders.{event_type}", "{key}", "a.{header.x}.b", "{id}.{key}", "plain"] {
            assert_eq!(check_template(good), Ok(()), "{good}");
        }
        for bad in ["orders. {key}", "orders.*.{key}", ".{key}", "{key}.", "a..{key}", "$JS.{key}", "a b"] {
            assert!(check_template(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_filter_covers_every_subject_of_a_template() {
        for (template, expected) in [
            ("orders", "orders"),
            ("orders.created", "orders.created"),
            ("orders.{event_type}", "orders.>"),
            ("a.b.c-{key}.d", "a.b.>"),
            ("{event_type}", ">"),
            ("x{key}", ">"),
        ] {
            assert_eq!(filter(template), expected);
        }
    }
}
