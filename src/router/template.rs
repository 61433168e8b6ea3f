//! Templates of target fields: literal text and fields of the event, and nothing else. No logic, no recursion; what
//! comes out is bounded.

use std::fmt;

use bytestring::ByteString;
use walgate_sink::{Escape, Event};

use super::{closest, segments::Segments};

/// Bytes that a rendered template may have: more than any broker's longest name.
pub const MAX_RENDERED: usize = 8 << 10;

/// The fields of an event, as errors list them.
const ALLOWED: &str = "{event_type}, {event_type[0]}, {key}, {id}, {header.<name>} and {column.<name>}";

/// A parsed template. `{event_type}`, `{event_type[0]}` (and what else [`Segments`] reads), `{key}`, `{id}`,
/// `{header.x}` and `{column.x}` stand for parts of the event, and `{{` and `}}` for a brace itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Field {
        field: Field,
        /// Where it stands: characters from 1.
        column: usize,
    },
}

/// A part of an event that a template names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `{event_type}`
    EventType,
    /// `{event_type[0]}`, `{event_type[-1]}`, `{event_type[1..]}`
    Segments(Segments),
    /// `{key}`
    Key,
    /// `{id}`
    Id,
    /// `{header.x}`
    Header(Box<str>),
    /// `{column.x}`, with its place among the columns that the router reads.
    Column {
        /// The column.
        name: Box<str>,
        /// Its place in [`super::Router::columns`]; set when the router is compiled.
        index: usize,
    },
}

/// A text that is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why} at column {column}{hint}")]
pub struct TemplateError {
    /// Where: characters from the start of the template, from 1.
    pub column: usize,
    why: String,
    hint: String,
}

/// Why a template gives no value for an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RenderError {
    /// The field with this place in the template is NULL or absent.
    Missing(Field),
    /// It is there, and empty.
    Empty(Field),
    /// More than [`MAX_RENDERED`] bytes.
    TooLong,
    /// A path with a segment of dots, which receivers and clients resolve, percent-encoded or not (WHATWG URL).
    DotSegment,
}

/// What a template is rendered from. Without an event only `{event_type}` is known.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub(super) event_type: &'a ByteString,
    pub(super) event: Option<&'a Event>,
    pub(super) columns: &'a [Option<ByteString>],
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`TemplateError`], with the column: an unknown field, a brace that is not closed, one that closes nothing, or
    /// more than [`MAX_RENDERED`] bytes.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let column = |offset: usize| text.get(..offset).map_or(0, |before| before.chars().count()) + 1;
        let error =
            |offset, why: String, hint: &str| TemplateError { column: column(offset), why, hint: hint.to_owned() };
        if text.len() > MAX_RENDERED {
            return Err(error(MAX_RENDERED, format!("more than {MAX_RENDERED} bytes"), ": no name is that long"));
        }
        let (mut parts, mut literal, mut offset) = (Vec::new(), String::new(), 0);
        while let Some(rest) = text.get(offset..).filter(|rest| !rest.is_empty()) {
            let Some(brace) = rest.find(['{', '}']) else {
                literal.push_str(rest);
                break;
            };
            let (before, rest) = rest.split_at(brace);
            literal.push_str(before);
            offset += brace;
            if let Some(doubled) = ["{{", "}}"].into_iter().find(|doubled| rest.starts_with(doubled)) {
                literal.push_str(&doubled[..1]);
                offset += 2;
                continue;
            }
            let Some(inner) = rest.strip_prefix('{') else {
                return Err(error(offset, "a `}` that closes nothing".to_owned(), ": write `}}` for the brace itself"));
            };
            let name = match inner.find(['{', '}']) {
                Some(end) if inner[end..].starts_with('}') => &inner[..end],
                _ => {
                    let hint = ": write `{{` for the brace itself";
                    return Err(error(offset, "a `{` that is not closed".to_owned(), hint));
                }
            };
            let field = Field::parse(name).map_err(|hint| {
                let shown: String = name.escape_debug().take(100).collect();
                error(offset, format!("unknown field `{{{shown}}}`"), &hint)
            })?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal).into()));
            }
            parts.push(Part::Field { field, column: column(offset) });
            offset += name.len() + 2;
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Template { text: text.into(), parts: parts.into() })
    }

    /// The template as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The fields that it names, each with its column.
    pub fn fields(&self) -> impl Iterator<Item = (&Field, usize)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Field { field, column } => Some((field, *column)),
            Part::Literal(_) => None,
        })
    }

    /// Gives every `{column.x}` its place.
    pub(super) fn bind(&mut self, mut place: impl FnMut(&str) -> usize) {
        for part in &mut self.parts {
            if let Part::Field { field: Field::Column { name, index }, .. } = part {
                *index = place(name);
            }
        }
    }

    /// Writes the template for one event. A field that is NULL, absent or empty is an error, never a gap: an address
    /// with a hole in it is another address.
    pub(super) fn render(&self, values: Values<'_>, escape: Escape) -> Result<ByteString, RenderError> {
        if let ([Part::Field { field, .. }], Escape::None) = (&*self.parts, escape) {
            return field.shared(values);
        }
        let length = self.rendered_length(values, escape)?;
        let mut rendered = String::with_capacity(length);
        for part in &self.parts {
            match part {
                Part::Literal(text) => rendered.push_str(text),
                Part::Field { field, .. } => match (field.present(values)?, escape) {
                    (value, Escape::UrlPath) => push_path_segment(&mut rendered, value),
                    (value, _) => rendered.push_str(value),
                },
            }
        }
        if escape == Escape::UrlPath && has_dot_segment(&rendered) {
            return Err(RenderError::DotSegment);
        }
        Ok(rendered.into())
    }

    /// What it gives with `x` in place of each field: the shortest and tamest of all events.
    pub(super) fn sample(&self) -> String {
        let part = |part: &Part| match part {
            Part::Literal(text) => text.to_string(),
            Part::Field { .. } => "x".to_owned(),
        };
        self.parts.iter().map(part).collect()
    }

    /// Bytes of what [`Template::render`] writes, judged before anything is allocated.
    fn rendered_length(&self, values: Values<'_>, escape: Escape) -> Result<usize, RenderError> {
        let mut length = 0;
        for part in &self.parts {
            length += match part {
                Part::Literal(text) => text.len(),
                Part::Field { field, .. } => match (field.present(values)?, escape) {
                    // No need to look through a value that is too long as it is.
                    (value, _) if value.len() > MAX_RENDERED => return Err(RenderError::TooLong),
                    (value, Escape::UrlPath) => path_segment_length(value),
                    (value, _) => value.len(),
                },
            };
            if length > MAX_RENDERED {
                return Err(RenderError::TooLong);
            }
        }
        Ok(length)
    }
}

impl Field {
    fn parse(name: &str) -> Result<Self, String> {
        match (name, name.split_once('.')) {
            ("event_type", _) => Ok(Field::EventType),
            (_, _) if name.starts_with("event_type[") => {
                Segments::parse(&name["event_type".len()..]).map(Field::Segments)
            }
            ("key", _) => Ok(Field::Key),
            ("id", _) => Ok(Field::Id),
            (_, Some(("header", header))) if !header.is_empty() => Ok(Field::Header(header.into())),
            (_, Some(("column", column))) if !column.is_empty() => Ok(Field::Column { name: column.into(), index: 0 }),
            _ => {
                let meant = match name.split_once('.') {
                    Some((kind, rest)) => closest(kind, ["header", "column"].into_iter())
                        .map(|kind| format!("{kind}.{}", if rest.is_empty() { "<name>" } else { rest })),
                    None => {
                        let fields = ["event_type", "key", "id", "header.<name>", "column.<name>"];
                        closest(name.trim(), fields.into_iter()).map(str::to_owned)
                    }
                };
                let meant = meant.map(|meant| format!(" (did you mean `{{{}}}`?)", meant.escape_debug()));
                Err(format!("{}: the fields are {ALLOWED}", meant.unwrap_or_default()))
            }
        }
    }

    /// Whether its value depends on the event type alone.
    pub(super) fn is_event_type(&self) -> bool {
        matches!(self, Field::EventType | Field::Segments(_))
    }

    /// Its value, and the text that it is a part of. `None`: NULL or absent.
    fn value<'a>(&self, values: Values<'a>) -> Option<(&'a str, &'a ByteString)> {
        let whole = match self {
            Field::EventType => values.event_type,
            Field::Segments(segments) => return Some((segments.of(values.event_type)?, values.event_type)),
            Field::Key => values.event?.key.as_ref()?,
            Field::Id => &values.event?.id,
            Field::Header(name) => values.event?.headers.get(name)?,
            Field::Column { index, .. } => values.columns.get(*index)?.as_ref()?,
        };
        Some((whole, whole))
    }

    /// Its value, where there is one; it may be empty.
    pub(super) fn text<'a>(&self, values: Values<'a>) -> Option<&'a str> {
        self.value(values).map(|(text, _)| text)
    }

    fn present<'a>(&self, values: Values<'a>) -> Result<&'a str, RenderError> {
        match self.text(values) {
            Some("") => Err(RenderError::Empty(self.clone())),
            Some(value) => Ok(value),
            None => Err(RenderError::Missing(self.clone())),
        }
    }

    /// Its value as a share of the event's memory.
    fn shared(&self, values: Values<'_>) -> Result<ByteString, RenderError> {
        match self.value(values) {
            Some(("", _)) => Err(RenderError::Empty(self.clone())),
            Some((text, _)) if text.len() > MAX_RENDERED => Err(RenderError::TooLong),
            Some((text, whole)) => Ok(whole.slice_ref(text)),
            None => Err(RenderError::Missing(self.clone())),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::EventType => f.write_str("event type"),
            Field::Segments(segments) => write!(f, "event type's segment `{segments}`"),
            Field::Key => f.write_str("key"),
            Field::Id => f.write_str("id"),
            Field::Header(name) => write!(f, "header `{name}`"),
            Field::Column { name, .. } => write!(f, "column `{name}`"),
        }
    }
}

/// Whether a byte of a value stands as it is in a path: RFC 3986's unreserved characters, unless the value is nothing
/// but one or two dots.
fn stands(value: &str) -> impl Fn(u8) -> bool {
    let dots = matches!(value, "." | "..");
    move |byte| !dots && (byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~'))
}

fn path_segment_length(value: &str) -> usize {
    let stands = stands(value);
    value.bytes().map(|byte| if stands(byte) { 1 } else { 3 }).sum()
}

/// Writes a value as (a part of) one segment of a path, percent-encoded.
fn push_path_segment(path: &mut String, value: &str) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let stands = stands(value);
    for byte in value.bytes() {
        if stands(byte) {
            path.push(char::from(byte));
        } else {
            path.push('%');
            for digit in [byte >> 4, byte & 0x0F] {
                path.push(HEX.get(usize::from(digit)).map_or('0', |digit| char::from(*digit)));
            }
        }
    }
}

/// Whether the path has a segment that URL parsers resolve: `.` or `..`, with any of the dots percent-encoded.
pub(super) fn has_dot_segment(path: &str) -> bool {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    // A parser for http takes a backslash for a slash.
    path.split(['/', '\\']).any(|segment| {
        let mut rest = segment.as_bytes();
        let mut dots = 0;
        while let [b'.', after @ ..] | [b'%', b'2', b'e' | b'E', after @ ..] = rest {
            (rest, dots) = (after, dots + 1);
        }
        rest.is_empty() && matches!(dots, 1 | 2)
    })
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
