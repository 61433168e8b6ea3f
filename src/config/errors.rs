//! Configuration errors, all of them, each with its place.

use std::{fmt, sync::Arc};

use anstyle::{AnsiColor, Style};
use serde_json::json;

use super::{
    path::KeyPath,
    source_map::{Origin, Point, SourceMap},
};

/// The most errors that are collected; one more line says that there may be others.
pub(crate) const MAX_ERRORS: usize = 50;

/// One error, or one warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub origin: Origin,
    pub path: KeyPath,
    pub message: String,
    /// Further places that belong to it, each with what it is.
    pub related: Vec<(Origin, String)>,
}

/// Everything that is wrong with a configuration. Its `Display` prints each error with its place, the line and a
/// caret; no value of a secret, and no value that came from the environment, is in it.
pub struct ConfigErrors {
    pub(crate) findings: Vec<Finding>,
    pub(crate) map: Arc<SourceMap>,
    /// Paths whose values stay hidden in shown lines: what stands under keys that nobody knows.
    pub(crate) concealed: Vec<KeyPath>,
}

impl ConfigErrors {
    pub(crate) fn new(map: Arc<SourceMap>) -> Self {
        ConfigErrors { findings: Vec::new(), map, concealed: Vec::new() }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.findings.len()
    }

    /// Adds an error about the value at `path`, such as `routes[2].to[0].sink`. It is shown at that place, or at the
    /// nearest one above it. Secrets are taken out of the message.
    pub fn push_at(&mut self, path: impl Into<KeyPath>, message: impl AsRef<str>) {
        let path = path.into();
        let origin = self.map.locate(&path, Point::Value);
        let message = self.map.hidden.scrub(&path, message.as_ref());
        self.push(Finding { origin, path, message, related: Vec::new() });
    }

    pub(crate) fn push(&mut self, finding: Finding) {
        if self.findings.len() <= MAX_ERRORS && !self.findings.contains(&finding) {
            self.findings.push(finding);
        }
    }

    /// `value` if there is no error, else the errors.
    ///
    /// # Errors
    /// Itself, if it is not empty.
    pub fn or<T>(self, value: T) -> Result<T, ConfigErrors> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The same text as `Display`, with colours (for a terminal: an `anstream` takes them out elsewhere).
    pub fn styled(&self) -> impl fmt::Display + '_ {
        Rendered { errors: self, styles: Styles::colours() }
    }

    /// For `--json`: `{"errors": [{"file", "line", "column", "path", "message"}, ...]}`; `variable` or `flag` instead of
    /// the file where the value came from there.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let errors: Vec<_> = self.sorted().into_iter().map(|finding| to_json(finding, &self.map)).collect();
        json!({ "errors": errors })
    }

    fn sorted(&self) -> Vec<&Finding> {
        let mut sorted: Vec<&Finding> = self.findings.iter().collect();
        sorted.sort_by_key(|finding| rank(&finding.origin));
        sorted
    }
}

/// In the order of the file, then variables, flags and the rest.
pub(crate) fn rank(origin: &Origin) -> (u8, usize, usize, String) {
    match origin {
        Origin::WholeFile => (0, 0, 0, String::new()),
        Origin::File(span) => (1, span.line, span.column, String::new()),
        Origin::Variable(name) => (2, 0, 0, name.clone()),
        Origin::Flag(name) => (3, 0, 0, name.clone()),
        Origin::Nowhere => (4, 0, 0, String::new()),
    }
}

pub(crate) fn to_json(finding: &Finding, map: &SourceMap) -> serde_json::Value {
    let mut object = serde_json::Map::new();
    match &finding.origin {
        Origin::File(span) => {
            object.insert("file".into(), json!(map.name));
            object.insert("line".into(), json!(span.line));
            object.insert("column".into(), json!(span.column));
        }
        Origin::WholeFile => drop(object.insert("file".into(), json!(map.name))),
        Origin::Variable(name) => drop(object.insert("variable".into(), json!(name))),
        Origin::Flag(name) => drop(object.insert("flag".into(), json!(name))),
        Origin::Nowhere => {}
    }
    object.insert("path".into(), json!(finding.path.to_string()));
    object.insert("message".into(), json!(finding.message));
    object.into()
}

/// `walgate.yaml:3:7`, `environment variable X`, `flag --x`; empty where there is no place.
pub(crate) fn place(origin: &Origin, map: &SourceMap) -> String {
    match origin {
        Origin::File(span) => format!("{}:{}:{}", map.name, span.line, span.column),
        Origin::WholeFile => map.name.clone(),
        Origin::Variable(name) => format!("environment variable {name}"),
        Origin::Flag(name) => format!("flag {name}"),
        Origin::Nowhere => String::new(),
    }
}

/// `place: path: message`, without what is empty.
pub(crate) fn one_line(finding: &Finding, map: &SourceMap) -> String {
    let parts = [place(&finding.origin, map), finding.path.to_string(), finding.message.clone()];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
}

#[derive(Clone, Copy, Default)]
struct Styles {
    error: Style,
    strong: Style,
    dim: Style,
    caret: Style,
}

impl Styles {
    fn colours() -> Self {
        Styles {
            error: AnsiColor::Red.on_default().bold(),
            strong: Style::new().bold(),
            dim: Style::new().dimmed(),
            caret: AnsiColor::Red.on_default().bold(),
        }
    }
}

struct Rendered<'a> {
    errors: &'a ConfigErrors,
    styles: Styles,
}

impl fmt::Display for Rendered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Styles { error, strong, .. } = self.styles;
        let sorted = self.errors.sorted();
        for finding in sorted.iter().take(MAX_ERRORS) {
            let line = one_line(finding, &self.errors.map);
            writeln!(f, "{error}error{error:#}{strong}: {line}{strong:#}")?;
            self.snippet(f, &finding.origin, None)?;
            for (origin, what) in &finding.related {
                self.snippet(f, origin, Some(what))?;
            }
            writeln!(f)?;
        }
        match sorted.len() {
            1 => write!(f, "1 error"),
            count if count <= MAX_ERRORS => write!(f, "{count} errors"),
            _ => write!(f, "{MAX_ERRORS} errors, and there may be more"),
        }
    }
}

impl Rendered<'_> {
    fn snippet(&self, f: &mut fmt::Formatter<'_>, origin: &Origin, label: Option<&str>) -> fmt::Result {
        let Origin::File(span) = origin else { return Ok(()) };
        let Some(shown) = self.errors.map.show(*span, &self.errors.concealed) else { return Ok(()) };
        if shown.line.trim().is_empty() && label.is_none() {
            return Ok(());
        }
        let Styles { dim, caret, .. } = self.styles;
        let (blank, carets) = (" ".repeat(shown.caret), "^".repeat(shown.length));
        let label = label.map(|label| format!(" {label}")).unwrap_or_default();
        writeln!(f, "{dim}{:>5} |{dim:#} {}", span.line, shown.line)?;
        writeln!(f, "{dim}      |{dim:#} {blank}{caret}{carets}{label}{caret:#}")
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Rendered { errors: self, styles: Styles::default() }.fmt(f)
    }
}

impl fmt::Debug for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for ConfigErrors {}

/// Something that works, but not as it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    pub(crate) finding: Finding,
    pub(crate) place: String,
    pub(crate) json: serde_json::Value,
}

impl Warning {
    pub(crate) fn new(origin: Origin, path: KeyPath, message: impl Into<String>, map: &SourceMap) -> Self {
        let finding = Finding { origin, path, message: message.into(), related: Vec::new() };
        Warning { place: one_line(&finding, map), json: to_json(&finding, map), finding }
    }

    /// A warning with no place in the configuration.
    #[must_use]
    pub fn plain(message: impl Into<String>) -> Self {
        Warning::new(Origin::Nowhere, KeyPath::root(), message, &SourceMap::default())
    }

    /// What is not as it should be, without its place.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.finding.message
    }

    /// For `--json`: the members of an error in [`ConfigErrors::to_json`].
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        self.json.clone()
    }
}

/// `walgate.yaml:3:13: source.password: ...`
impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)
    }
}
