//! YAML text into a tree in which every key and every value knows where it stands.
//!
//! One parse with serde-saphyr, under a budget: strict (YAML 1.2) booleans, one document, bounded depth, nodes and
//! alias expansion. Duplicate keys are let through to be found here, with both their places.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, budget, options, options::DuplicateKeyPolicy};

/// The largest configuration file, in bytes.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 20;
/// Keys, values, lists and mappings in one file, aliases expanded.
const MAX_NODES: usize = 50_000;
/// Mappings and lists inside one another.
const MAX_DEPTH: usize = 32;

/// A stretch of the file. Lines and columns count from 1, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub line: usize,
    pub column: usize,
    /// Characters; 0 for a mapping or list in block style.
    pub length: usize,
    /// Characters from the file's beginning.
    pub offset: usize,
}

/// A value and where it stands.
#[derive(Debug)]
pub(crate) struct Node {
    pub value: NodeValue,
    /// Where it is used.
    pub span: Span,
    /// Where its text stands: another place than `span` where an alias or a merge brought it.
    pub defined: Span,
}

#[derive(Debug)]
pub(crate) enum NodeValue {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a mapping with its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub key_span: Span,
    pub node: Node,
}

/// Why a text is not YAML that we read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub span: Option<Span>,
    pub message: String,
}

/// Parses one document. Braces of `${VAR}` are no flow indicators here: see [`shield`].
pub(crate) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let shielded = shield(text);
    let options = options! {
        strict_booleans: true,
        with_snippet: false,
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        budget: budget! { max_documents: 1, max_nodes: MAX_NODES, max_depth: MAX_DEPTH, flow_nesting_limit: MAX_DEPTH },
    };
    serde_saphyr::from_str_with_options::<Spanned<Raw>>(&shielded, options)
        .map(Node::from)
        .map_err(|error| SyntaxError { span: syntax_span(text, &error), message: explain(&error) })
}

/// Where the fault is; a tab is reported by the parser as the column after it.
fn syntax_span(text: &str, error: &serde_saphyr::Error) -> Option<Span> {
    let mut span = span_of(&error.location()?);
    if span.line == 0 {
        return None;
    }
    span.length = span.length.max(1);
    let line = text.lines().nth(span.line - 1).unwrap_or_default();
    if error.to_string().contains("tabs disallowed")
        && let Some(tab) = line.chars().position(|c| c == '\t')
    {
        span.column = tab + 1;
    }
    Some(span)
}

/// The parser's message in the words of a configuration file. Texts of the file never come into it.
fn explain(error: &serde_saphyr::Error) -> String {
    use serde_saphyr::Error;
    match error.without_snippet() {
        Error::AliasError { error, .. } => explain(error),
        Error::Budget { breach, .. } => {
            let breach = format!("{breach:?}");
            let what = breach.split([' ', '{', '(']).next().unwrap_or_default();
            match what {
                "Documents" => "a second document (`---`): the configuration is one document".into(),
                "Depth" => format!("nested deeper than {MAX_DEPTH} levels"),
                "Nodes" | "Events" => format!("more than {MAX_NODES} values, aliases counted as what they stand for"),
                _ => "more aliases, anchors or text than a configuration file may have".into(),
            }
        }
        Error::AliasReplayLimitExceeded { .. }
        | Error::AliasExpansionLimitExceeded { .. }
        | Error::AliasReplayStackDepthExceeded { .. }
        | Error::AliasReplayCounterOverflow { .. } => {
            "aliases expand to more than a configuration file may have".into()
        }
        Error::RecursiveReferencesRequireWeakTypes { .. } => "an alias inside the very value that it stands for".into(),
        Error::UnknownAnchor { .. } => "an alias (`*name`) without its anchor (`&name`)".into(),
        Error::NonFiniteFloat { .. } => "not a number, or an infinite one".into(),
        Error::MergeValueNotMapOrSeqOfMaps { .. } => "`<<` takes a mapping, or a list of mappings".into(),
        Error::NullIntoString { .. } | Error::Unexpected { .. } => "a key must be a plain text".into(),
        Error::InvalidScalar { .. } | Error::InvalidBinaryBase64 { .. } | Error::BinaryNotUtf8 { .. } => {
            "a value that does not fit its tag".into()
        }
        Error::SerdeInvalidType { .. } | Error::SerdeInvalidValue { .. } => "a value that does not fit here".into(),
        other => syntax(&other.to_string()),
    }
}

/// What the scanner says, without its place, and with what to do about the common ones.
fn syntax(text: &str) -> String {
    let message = text.split(" at line ").next().unwrap_or(text);
    let advice = [
        ("tabs disallowed", "a tab in the indentation: YAML takes spaces only"),
        ("recursion limit", "nested deeper than a configuration file may be"),
        ("mapping values are not allowed", "a second `: ` in one line: put the value in quotes, or start a new line"),
        ("did not find expected key", "this line's indentation fits none of the mappings above it"),
        ("did not find expected '-'", "a list goes on here, but this line does not begin with `- ` at its indentation"),
        ("did not find expected ',' or '}'", "expected `,` or `}` here: is a bracket, a comma or a quote missing?"),
        ("did not find expected ',' or ']'", "expected `,` or `]` here: is a bracket, a comma or a quote missing?"),
        ("unclosed quote", "a quote is opened and never closed"),
        ("unclosed bracket", "a bracket is opened and never closed"),
        ("unknown escape", "an escape that YAML does not know: in double quotes write `\\\\` for a backslash"),
        ("invalid indentation in quoted scalar", "a quote is opened and not closed before the indentation falls back"),
    ];
    match advice.iter().find(|(part, _)| message.contains(part)) {
        Some((_, advice)) => (*advice).to_owned(),
        None if message.chars().all(|c| !c.is_control()) && message.len() < 120 => {
            format!("not valid YAML: {message}")
        }
        None => "not valid YAML".to_owned(),
    }
}

const OPEN: char = '\u{F8F0}';
const CLOSE: char = '\u{F8F1}';

/// Replaces the braces of `${NAME}` and `${NAME:-default}` by characters that mean nothing in YAML, one for one, so
/// that they can stand unquoted in `{ flow: ${MAPPING} }`; [`unshield`] puts them back into each value. Values come
/// in after the parse only, so no variable can inject YAML.
fn shield(text: &str) -> String {
    if text.contains([OPEN, CLOSE]) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 64);
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = rest.split_at(start);
        out.push_str(before);
        let inner = &reference[2..];
        match inner.find(['}', '\n']).filter(|end| inner[*end..].starts_with('}')) {
            Some(end) if is_reference(&inner[..end]) => {
                out.push('$');
                out.push(OPEN);
                out.push_str(&inner[..end]);
                out.push(CLOSE);
                rest = &inner[end + 1..];
            }
            _ => {
                out.push_str("${");
                rest = inner;
            }
        }
    }
    out.push_str(rest);
    out
}

fn is_reference(inner: &str) -> bool {
    let name = inner.split_once(":-").map_or(inner, |(name, _)| name);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn unshield(text: &str) -> String {
    text.replace(OPEN, "{").replace(CLOSE, "}")
}

fn span_of(location: &serde_saphyr::Location) -> Span {
    let number = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    let span = location.span();
    #[allow(clippy::useless_conversion, reason = "the width of these depends on a feature of serde-saphyr")]
    Span {
        line: number(location.line()),
        column: number(location.column()),
        length: number(u64::from(span.len())),
        offset: number(u64::from(span.offset())),
    }
}

impl From<Spanned<Raw>> for Node {
    fn from(spanned: Spanned<Raw>) -> Self {
        Node { value: spanned.value.0, span: span_of(&spanned.referenced), defined: span_of(&spanned.defined) }
    }
}

struct Raw(NodeValue);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Values;

        impl<'de> Visitor<'de> for Values {
            type Value = NodeValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E>(self) -> Result<NodeValue, E> {
                Ok(NodeValue::Null)
            }

            fn visit_none<E>(self) -> Result<NodeValue, E> {
                Ok(NodeValue::Null)
            }

            fn visit_bool<E>(self, value: bool) -> Result<NodeValue, E> {
                Ok(NodeValue::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<NodeValue, E> {
                Ok(NodeValue::Signed(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<NodeValue, E> {
                Ok(NodeValue::Unsigned(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<NodeValue, E> {
                Ok(NodeValue::Float(value))
            }

            fn visit_str<E>(self, text: &str) -> Result<NodeValue, E> {
                Ok(NodeValue::Text(unshield(text)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<NodeValue, A::Error> {
                let mut nodes = Vec::new();
                while let Some(node) = list.next_element::<Spanned<Raw>>()? {
                    nodes.push(node.into());
                }
                Ok(NodeValue::List(nodes))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NodeValue, A::Error> {
                let mut entries = Vec::new();
                while let Some((key, node)) = map.next_entry::<Spanned<String>, Spanned<Raw>>()? {
                    let key_span = span_of(&key.referenced);
                    entries.push(Entry { key: unshield(&key.value), key_span, node: node.into() });
                }
                Ok(NodeValue::Map(entries))
            }
        }

        deserializer.deserialize_any(Values).map(Raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(node: &Node) -> &[Entry] {
        match &node.value {
            NodeValue::Map(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_and_values_know_their_place() {
        let node = parse("# a comment\nsource:\n  slot: é\n  slot: two\n").unwrap();
        let source = &map(&node)[0];
        assert_eq!((source.key.as_str(), source.key_span.line, source.key_span.column), ("source", 2, 1));
        let slots = map(&source.node);
        assert_eq!(slots.len(), 2, "duplicates come through");
        assert_eq!((slots[1].key_span.line, slots[1].node.span.column, slots[1].node.span.length), (4, 9, 3));
    }

    #[test]
    fn a_reference_needs_no_quotes_in_a_flow_mapping() {
        let node = parse("a: { b: ${X}, c: ${Y:-1}, d: [x] }\n").unwrap();
        let entries = map(&map(&node)[0].node);
        assert!(matches!(&entries[0].node.value, NodeValue::Text(text) if text == "${X}"));
        assert!(matches!(&entries[1].node.value, NodeValue::Text(text) if text == "${Y:-1}"));
        assert_eq!(entries[1].key_span.column, 15);
        for odd in ["${", "$}", "${}", "${a b}", "${X", "}${X}${", "${X\n}"] {
            assert_eq!(unshield(&shield(odd)), odd);
        }
    }

    #[test]
    fn booleans_are_those_of_yaml_1_2() {
        let node = parse("[yes, on, true, False, ~]").unwrap();
        let NodeValue::List(nodes) = &node.value else { panic!() };
        let kinds: Vec<_> = nodes.iter().map(|node| format!("{:?}", node.value)).collect();
        assert_eq!(kinds, ["Text(\"yes\")", "Text(\"on\")", "Bool(true)", "Bool(false)", "Null"]);
    }
}
