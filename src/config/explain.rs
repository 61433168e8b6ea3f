//! serde's messages in the words of a configuration file.

use serde_json::Value;

use super::{
    redact::redact,
    snippet::{key_name, printable},
};

/// What serde complained of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Complaint {
    UnknownKey { key: String, allowed: Vec<String> },
    MissingKey { key: String },
    UnknownVariant { allowed: Vec<String> },
    Type { expected: String },
    Other(String),
}

/// Reads one of serde's messages.
pub(crate) fn read(message: &str) -> Complaint {
    if let Some((key, rest)) = quoted(message, "unknown field `") {
        return Complaint::UnknownKey { key, allowed: names(rest) };
    }
    if let Some((_, rest)) = quoted(message, "unknown variant `") {
        return Complaint::UnknownVariant { allowed: names(rest) };
    }
    if let Some(key) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        return Complaint::MissingKey { key: key.to_owned() };
    }
    let typed = ["invalid type: ", "invalid value: ", "invalid length "].iter().any(|start| message.starts_with(start));
    match message.rfind(", expected ").filter(|_| typed) {
        Some(at) => Complaint::Type { expected: expected(&message[at + ", expected ".len()..]) },
        None => Complaint::Other(message.to_owned()),
    }
}

/// The text between `start` and the last "`, " before the list of what is expected, and that list.
fn quoted<'a>(message: &'a str, start: &str) -> Option<(String, &'a str)> {
    let rest = message.strip_prefix(start)?;
    let end = ["`, expected ", "`, there are no "].iter().filter_map(|mark| rest.rfind(mark)).max()?;
    Some((rest[..end].to_owned(), &rest[end + 1..]))
}

fn names(list: &str) -> Vec<String> {
    let mut names: Vec<String> = list.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    names.sort();
    names
}

fn expected(text: &str) -> String {
    match text {
        "a boolean" => "true or false",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "a mapping",
        "unit" => "nothing",
        "string or map" | "variant identifier" => "one of its words",
        text if text.starts_with("struct ") => "a mapping",
        text if text.starts_with("enum ") => "one of its words",
        text if text.starts_with("a nonzero ") => "a whole number of 1 or more",
        text => text,
    }
    .to_owned()
}

/// `key`'s near misses among `known`, the nearest one.
pub(crate) fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let fold = |text: &str| text.to_ascii_lowercase().replace('-', "_");
    let key = fold(key);
    if key.len() > 100 {
        return None;
    }
    let most = (key.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&key, &fold(name)), name))
        .filter(|(distance, _)| *distance <= most)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// `: did you mean `x`?`, or nothing.
pub(crate) fn suggestion(key: &str, known: &[String]) -> String {
    match nearest(key, known.iter().map(String::as_str)) {
        Some(name) => format!(": did you mean `{name}`?"),
        None => String::new(),
    }
}

/// The sentence about a sink that does not exist.
pub(crate) fn no_sink(name: &str, sinks: &[String]) -> String {
    let suggestion = suggestion(name, sinks);
    let join = if suggestion.is_empty() { ";" } else { "" };
    format!("there is no sink `{}`{suggestion}{join} sinks: {}", printable(name, 64), list(sinks))
}

/// A list of allowed words.
pub(crate) fn list(names: &[String]) -> String {
    names.join(", ")
}

/// The sentence about an unknown key.
pub(crate) fn unknown_key(key: &str, allowed: &[String]) -> String {
    let (shown, suggestion) = (key_name(key), suggestion(key, allowed));
    let join = if suggestion.is_empty() { ";" } else { "" };
    match allowed {
        [] => format!("unknown key `{shown}`; no keys are allowed here"),
        allowed => format!("unknown key `{shown}`{suggestion}{join} allowed here: {}", list(allowed)),
    }
}

/// The sentence about a value of the wrong type.
pub(crate) fn wrong_type(expected: &str, value: &Value, concealed: bool) -> String {
    let found = found(value, concealed);
    let hint = match value {
        Value::Null => ": give it a value, or leave the key out",
        Value::Number(_) if expected.starts_with("a duration") => ": add the unit",
        Value::Number(_) if expected.starts_with("a size") => ": add the unit",
        Value::Number(_) if expected.starts_with("a percentage") => ": add the sign",
        Value::Number(_) | Value::Bool(_) if expected == "a string" || expected.starts_with("one value or a list") => {
            ": put it in quotes"
        }
        Value::String(text)
            if expected == "true or false"
                && ["yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str()) =>
        {
            " (in YAML 1.2 only true and false are booleans)"
        }
        Value::String(text) if expected.contains("number") && text.trim().parse::<f64>().is_ok() => {
            ": leave out the quotes"
        }
        _ => "",
    };
    format!("expected {expected}, found {found}{hint}")
}

/// The sentence about a word that is none of the allowed ones.
pub(crate) fn unknown_word(value: Option<&Value>, allowed: &[String], concealed: bool) -> String {
    match value {
        Some(Value::String(word)) if !concealed => {
            let suggestion = suggestion(word, allowed);
            let join = if suggestion.is_empty() { ";" } else { "" };
            format!("unknown value `{}`{suggestion}{join} allowed: {}", show(word), list(allowed))
        }
        Some(value) => format!("expected one of {}, found {}", list(allowed), found(value, concealed)),
        None => format!("expected one of {}", list(allowed)),
    }
}

/// A value as a message names it.
pub(crate) fn found(value: &Value, concealed: bool) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(_) if concealed => "a boolean".into(),
        Value::Number(_) if concealed => "a number".into(),
        Value::String(_) if concealed => "a text".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) if text.is_empty() => "an empty text".into(),
        Value::String(text) => format!("the text `{}`", show(text)),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a mapping".into(),
    }
}

fn show(text: &str) -> String {
    printable(&redact(text), 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_is_understood() {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            read("unknown field `a`, expected one of `z`, `y`"),
            Complaint::UnknownKey { key: "a".into(), allowed: owned(&["y", "z"]) }
        );
        assert_eq!(
            read("unknown field `a`, expected `, expected `b` or `c`"),
            Complaint::UnknownKey { key: "a`, expected ".into(), allowed: owned(&["b", "c"]) }
        );
        assert_eq!(
            read("unknown field `a`, there are no fields"),
            Complaint::UnknownKey { key: "a".into(), allowed: vec![] }
        );
        assert_eq!(read("missing field `url`"), Complaint::MissingKey { key: "url".into() });
        assert_eq!(
            read("invalid type: string \", expected x\", expected struct Source"),
            Complaint::Type { expected: "a mapping".into() }
        );
        assert_eq!(read("port, expected y"), Complaint::Other("port, expected y".into()));
    }

    #[test]
    fn near_misses_are_near() {
        let known = ["topic", "timeout", "on_reject", "id", "delivery"];
        assert_eq!(nearest("topicc", known), Some("topic"));
        assert_eq!(nearest("Time-Out", known), Some("timeout"));
        assert_eq!(nearest("on-reject", known), Some("on_reject"));
        assert_eq!(nearest("ident", known), None);
        assert_eq!(nearest("dleivery", known), Some("delivery"));
    }
}
