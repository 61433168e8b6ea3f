//! The grammar of topics: 1 to 249 of the characters `a-z A-Z 0-9 . _ -`, and neither `.` nor `..` (Apache Kafka,
//! `org.apache.kafka.common.internals.Topic`).

/// Bytes of a topic's name at the most.
const MAX_LENGTH: usize = 249;

/// Whether events may be sent to a topic of this name; what is wrong with it if not.
pub(crate) fn check(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("it is empty".to_owned());
    }
    if name.len() > MAX_LENGTH {
        return Err(format!("it has {} bytes, and a topic's name has {MAX_LENGTH} at the most", name.len()));
    }
    if let Some(c) = name.chars().find(|c| !is_legal(*c)) {
        return Err(format!(
            "it holds `{}`: a topic's name is made of a-z, A-Z, 0-9, `.`, `_` and `-`",
            c.escape_debug()
        ));
    }
    if matches!(name, "." | "..") {
        return Err(format!("`{name}` is no name"));
    }
    if name.starts_with("__") {
        return Err("names that begin with `__` belong to the brokers' own topics".to_owned());
    }
    Ok(())
}

fn is_legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

/// Whether a template can give legal names, as far as its literal parts tell.
pub(crate) fn check_template(template: &str) -> Result<(), String> {
    if !is_template(template) {
        return check(template);
    }
    let mut literal = String::new();
    let mut inside = false;
    for c in template.chars() {
        match c {
            '{' if !inside => {
                inside = true;
                literal.push('x');
            }
            '}' => inside = false,
            c if !inside => literal.push(c),
            _ => {}
        }
    }
    check(&literal)
}

/// Whether the text has places that each event fills.
pub(crate) fn is_template(text: &str) -> bool {
    text.contains(['{', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_a_broker_takes() {
        for good in ["a", "orders", "order.created", "a_b-c.9", "_schemas", "...", &"a".repeat(249)] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "empty"),
            (".", "no name"),
            ("..", "no name"),
            ("a b", "holds ` `"),
            ("a\r\nb", "holds `\\r`"),
            ("a/b", "holds `/`"),
            ("größe", "holds `ö`"),
            ("a\0", "holds `\\0`"),
            ("__consumer_offsets", "belong to the brokers"),
            (&*"a".repeat(250), "250 bytes"),
        ] {
            assert!(check(bad).unwrap_err().contains(why), "{bad:?}: {:?}", check(bad));
        }
    }

    #[test]
    fn templates_are_checked_as_far_as_they_go() {
        for good in ["{event_type}", "orders.{key}", "outbox.event.{header.kind}", "plain", "{event_type[1..]}"] {
            assert_eq!(check_template(good), Ok(()), "{good}");
        }
        for bad in ["", "a b.{key}", "__{key}", "orders/{key}"] {
            assert!(check_template(bad).is_err(), "{bad:?}");
        }
        assert!(check_template(&format!("{}{{key}}", "a".repeat(249))).is_err());
    }
}
