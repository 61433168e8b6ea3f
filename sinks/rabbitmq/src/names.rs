//! The grammar of exchanges and routing keys.
//!
//! Both are short strings of AMQP 0-9-1: 255 bytes of UTF-8 at the most. A broker takes any byte in them; control
//! characters are refused here, since they have no use in a name and spoil every list and log that shows it.

use crate::address::MAX_SHORT;

/// What begins with it on the default exchange is no queue but the mailbox of a client that waits for an answer.
const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// Whether events may be published to an exchange of this name; what is wrong with it if not.
pub(crate) fn check_exchange(name: &str) -> Result<(), String> {
    check_short(name)
}

/// Whether events may be published with this routing key; what is wrong with it if not.
pub(crate) fn check_routing_key(key: &str) -> Result<(), String> {
    check_short(key)?;
    if key.starts_with(REPLY_TO) {
        return Err(format!("routing keys that begin with `{REPLY_TO}` are addresses of replies"));
    }
    Ok(())
}

/// A name that is no template.
pub(crate) fn check_short(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it is empty".to_owned());
    }
    if name.len() > MAX_SHORT {
        return Err(format!("it has {} bytes, more than the {MAX_SHORT} that AMQP has room for", name.len()));
    }
    match name.chars().find(|c| c.is_control()) {
        Some(c) => Err(format!("it holds a control character ({})", c.escape_unicode())),
        None => Ok(()),
    }
}

/// Whether a template can give legal names, as far as its literal parts tell.
pub(crate) fn check_template(template: &str, check: fn(&str) -> Result<(), String>) -> Result<(), String> {
    if !is_template(template) {
        return check(template);
    }
    let mut outside = String::from("x");
    let mut inside = false;
    for c in template.chars() {
        match c {
            '{' => inside = true,
            '}' => inside = false,
            c if !inside => outside.push(c),
            _ => {}
        }
    }
    check_short(&outside)?;
    if template.starts_with(REPLY_TO) { check(template) } else { Ok(()) }
}

/// Whether the text has places that each event fills.
pub(crate) fn is_template(text: &str) -> bool {
    text.contains(['{', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for good in ["a", "orders.created", "größe", "a b", "amq.topic", "#", "*", &"a".repeat(255)] {
            assert_eq!(check_exchange(good), Ok(()), "{good}");
            assert_eq!(check_routing_key(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "empty"),
            ("a\r\nb", "control character"),
            ("a\0", "control character"),
            ("\u{7f}", "control character"),
            ("\u{85}", "control character"),
            (&*"a".repeat(256), "256 bytes"),
            (&*"é".repeat(128), "256 bytes"),
        ] {
            assert!(check_exchange(bad).unwrap_err().contains(why), "{bad:?}");
            assert!(check_routing_key(bad).unwrap_err().contains(why), "{bad:?}");
        }
        assert!(check_routing_key("amq.rabbitmq.reply-to.g1h2.x==").is_err());
        assert!(check_exchange("amq.rabbitmq.trace").is_ok());
    }

    #[test]
    fn templates_are_checked_as_far_as_they_go() {
        for good in ["{event_type}", "orders.{key}", "plain", "{key}-{id}"] {
            assert_eq!(check_template(good, check_routing_key), Ok(()), "{good}");
        }
        for bad in ["", "a\n{key}", "amq.rabbitmq.reply-to.{key}", "amq.rabbitmq.reply-to"] {
            assert!(check_template(bad, check_routing_key).is_err(), "{bad:?}");
        }
        assert!(check_template(&format!("{}{{key}}", "a".repeat(255)), check_exchange).is_err());
    }
}
