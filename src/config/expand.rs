//! `${VAR}` and `${VAR:-default}` in the values of the file.
//!
//! Expansion happens in each parsed value, so a variable cannot inject YAML, and what it brings is not expanded again.
//! `$${` is a literal `${`. A default stands for a variable that is unset or empty.

use std::collections::HashMap;

/// What became of one value.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expanded {
    pub text: String,
    /// What the variables held; never to be printed.
    pub values: Vec<String>,
    /// Whether any reference was in it.
    pub any: bool,
}

/// A reference that cannot be expanded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadReference {
    /// The reference as far as it can be told, to be found in the line.
    pub reference: String,
    pub message: String,
}

/// Expands one value; every bad reference in it is reported.
pub(crate) fn expand(text: &str, env: &HashMap<String, String>) -> Result<Expanded, Vec<BadReference>> {
    let mut out = Expanded { text: String::with_capacity(text.len()), values: Vec::new(), any: false };
    let mut bad = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = rest.split_at(start);
        if let Some(literal) = before.strip_suffix('$') {
            out.text.push_str(literal);
            out.text.push_str("${");
            out.any = true;
            rest = &reference[2..];
            continue;
        }
        out.text.push_str(before);
        out.any = true;
        let inner = &reference[2..];
        let Some(end) = inner.find('}') else {
            bad.push(BadReference {
                reference: "${".into(),
                message: "`${` without its `}`; for a literal `${` write `$${`".into(),
            });
            break;
        };
        rest = &inner[end + 1..];
        let (name, default) = match inner[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inner[..end], None),
        };
        if !is_name(name) {
            bad.push(BadReference {
                reference: "${".into(),
                message: "a reference is `${NAME}` or `${NAME:-default}`, with letters, digits and `_` in the name; \
                          for a literal `${` write `$${`"
                    .into(),
            });
            continue;
        }
        match (env.get(name), default) {
            (Some(value), None) => out.take(value),
            (Some(value), Some(_)) if !value.is_empty() => out.take(value),
            (_, Some(default)) => out.text.push_str(default),
            (None, None) => bad.push(BadReference { reference: format!("${{{name}}}"), message: missing(name) }),
        }
    }
    out.text.push_str(rest);
    if bad.is_empty() { Ok(out) } else { Err(bad) }
}

impl Expanded {
    fn take(&mut self, value: &str) {
        self.text.push_str(value);
        self.values.push(value.to_owned());
    }
}

fn is_name(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.len() <= 256
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn missing(name: &str) -> String {
    let hint = match name {
        "event_type" | "key" | "id" => format!("; for the event's own value write {{{name}}} without `$`"),
        _ => String::new(),
    };
    format!("environment variable {name} is not set: set it, or write ${{{name}:-default}}{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> HashMap<String, String> {
        [("A", "x"), ("EMPTY", ""), ("NESTED", "${A}"), ("YAML", "x\nadmin: {listen: off}")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    fn text(value: &str) -> String {
        expand(value, &env()).unwrap().text
    }

    #[test]
    fn references_are_replaced() {
        assert_eq!(text("plain $ {event_type} $A"), "plain $ {event_type} $A");
        assert_eq!(text("<${A}|${A}>"), "<x|x>");
        assert_eq!(text("${NONE:-d}${EMPTY:-e}${EMPTY}${A:-no}${NONE:-}"), "dex");
        assert_eq!(text("$${A} $$${A}"), "${A} $${A}");
        assert_eq!(text("${NESTED}"), "${A}", "what a variable brings is not expanded again");
        assert_eq!(text("${YAML}"), "x\nadmin: {listen: off}");
    }

    #[test]
    fn every_bad_reference_is_reported_without_values() {
        let bad = expand("${NO} ${A} ${1x} ${also_no} ${", &env()).unwrap_err();
        let messages: Vec<_> = bad.iter().map(|bad| bad.message.as_str()).collect();
        assert_eq!(messages.len(), 4);
        assert!(messages[0].starts_with("environment variable NO is not set"));
        assert!(messages[1].starts_with("a reference is"));
        assert!(messages[3].starts_with("`${` without its `}`"));
        assert_eq!(bad[2].reference, "${also_no}");
    }
}
