//! Where every key and value came from: a place in the file, an environment variable, or a flag.

use std::{collections::HashMap, fmt, ops::Range};

use super::{
    path::{KeyPath, Step},
    redact::{Hidden, Sensitivity, is_reference, merge, secret_ranges},
    snippet::{self, Shown},
    yaml::{Node, NodeValue, Span},
};

/// Which source gave a value. Later ones go before earlier ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    #[default]
    Default,
    File,
    Environment,
    Flags,
}

/// Where an error points.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A stretch of the file.
    File(Span),
    /// The file as a whole.
    WholeFile,
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(String),
    /// None of them.
    Nowhere,
}

/// Which part of an entry an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Key,
    Value,
}

#[derive(Clone, Debug)]
struct Place {
    key: Option<Span>,
    value: Span,
    order: usize,
    block: bool,
    branch: bool,
}

/// The file's lines and, once it is parsed, the places of everything in it.
#[derive(Default)]
pub(crate) struct SourceMap {
    /// The file as the user named it; empty: there is none.
    pub name: String,
    lines: Vec<String>,
    /// Characters before each line.
    starts: Vec<usize>,
    places: HashMap<KeyPath, Place>,
    /// Scalars of the file, where their text stands.
    leaves: Vec<(KeyPath, Span)>,
    /// Values that environment or flags gave.
    overrides: HashMap<KeyPath, Origin>,
    /// The layer of each value after the merge.
    layers: HashMap<KeyPath, Layer>,
    parsed: bool,
    pub sensitivity: Sensitivity,
    pub hidden: Hidden,
}

/// The lines hold secrets.
impl fmt::Debug for SourceMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SourceMap").field("name", &self.name).finish_non_exhaustive()
    }
}

impl SourceMap {
    pub fn new(name: impl Into<String>, text: &str) -> Self {
        let mut map = SourceMap { name: name.into(), ..SourceMap::default() };
        let (mut start, mut at, mut line) = (0, 0, String::new());
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            at += 1;
            match c {
                '\r' if chars.peek() == Some(&'\n') => {}
                '\n' | '\r' => {
                    map.lines.push(std::mem::take(&mut line));
                    map.starts.push(start);
                    start = at;
                }
                c => line.push(c),
            }
        }
        map.lines.push(line);
        map.starts.push(start);
        map
    }

    /// Takes the places of a parsed file.
    pub fn record(&mut self, root: &Node) {
        self.parsed = true;
        self.record_node(&KeyPath::root(), None, root);
    }

    fn record_node(&mut self, path: &KeyPath, key: Option<Span>, node: &Node) {
        let branch = matches!(node.value, NodeValue::Map(_) | NodeValue::List(_));
        let block = branch && node.span.length == 0;
        let order = self.places.len();
        // The first of duplicate keys counts.
        self.places.entry(path.clone()).or_insert(Place { key, value: node.span, order, block, branch });
        match &node.value {
            NodeValue::Map(entries) => {
                for entry in entries {
                    self.record_node(&path.key(&entry.key), Some(entry.key_span), &entry.node);
                }
            }
            NodeValue::List(nodes) => {
                for (index, node) in nodes.iter().enumerate() {
                    self.record_node(&path.index(index), None, node);
                }
            }
            _ => {
                self.leaves.push((path.clone(), node.span));
                if node.defined != node.span {
                    self.leaves.push((path.clone(), node.defined));
                }
            }
        }
    }

    /// A value at `path` that environment or flags gave.
    pub fn record_override(&mut self, path: KeyPath, origin: Origin) {
        self.overrides.insert(path, origin);
    }

    /// Which layer won at `path`.
    pub fn record_layer(&mut self, path: KeyPath, layer: Layer) {
        self.layers.insert(path, layer);
    }

    /// From now on `path` stands where `other` stands.
    pub fn move_to(&mut self, path: &KeyPath, other: &KeyPath) {
        if let Some(place) = self.places.get(other).cloned() {
            self.places.insert(path.clone(), place);
        }
        if let Some(layer) = self.layers.get(other).copied() {
            self.layers.insert(path.clone(), layer);
        }
        match self.overrides.get(other).cloned() {
            Some(origin) => self.overrides.insert(path.clone(), origin),
            None => self.overrides.remove(path),
        };
    }

    /// The layer that gave the value at `path`.
    pub fn layer(&self, path: &KeyPath) -> Layer {
        self.layers.get(path).copied().unwrap_or_default()
    }

    /// The rank of a key among those of the file, for its order.
    pub fn order(&self, path: &KeyPath) -> usize {
        self.places.get(path).map_or(usize::MAX, |place| place.order)
    }

    /// Whether a mapping or a list stands at `path` in the file.
    pub fn is_branch(&self, path: &KeyPath) -> bool {
        self.places.get(path).is_some_and(|place| place.branch)
    }

    /// Where `path` is, or the nearest thing above it that is anywhere. An index of 0 into what is not a list is that
    /// value itself: single values and lists of them are written alike.
    pub fn locate(&self, path: &KeyPath, point: Point) -> Origin {
        let mut here = KeyPath::root();
        let mut exact = true;
        for step in path.steps() {
            let next = here.with(step.clone());
            // Once the layers are merged, what the file has may have been replaced.
            let known = match self.layers.is_empty() {
                true => self.places.contains_key(&next),
                false => self.layers.contains_key(&next),
            };
            if known {
                here = next;
            } else if *step != Step::Index(0) {
                exact = false;
                break;
            }
        }
        if self.layer(&here) > Layer::File
            && let Some(origin) = self.override_of(&here)
        {
            return origin;
        }
        let somewhere = path.steps().is_empty() || !here.steps().is_empty();
        match self.places.get(&here).filter(|_| somewhere) {
            Some(place) => Origin::File(match (point, place.key) {
                (Point::Key, Some(key)) => key,
                (Point::Value, Some(key)) if !exact || place.block || place.value.length == 0 => key,
                _ => place.value,
            }),
            None => self.override_of(&here).filter(|_| somewhere).unwrap_or(match self.name.is_empty() {
                true => Origin::Nowhere,
                false => Origin::WholeFile,
            }),
        }
    }

    /// The variable or flag that gave `path`, or something above or below it.
    fn override_of(&self, path: &KeyPath) -> Option<Origin> {
        let mut above = Some(path.clone());
        while let Some(at) = above {
            if let Some(origin) = self.overrides.get(&at) {
                return Some(origin.clone());
            }
            above = at.parent();
        }
        let mut below: Vec<_> = self.overrides.iter().filter(|(at, _)| path.holds(at)).collect();
        below.sort_by_key(|(at, _)| at.to_string());
        below.first().map(|(_, origin)| (*origin).clone())
    }

    /// The span of `text` inside the value at `path`, if it can be seen there; else that of the value.
    pub fn locate_text(&self, path: &KeyPath, text: &str) -> Origin {
        let origin = self.locate(path, Point::Value);
        let Origin::File(span) = origin else { return origin };
        let Some(line) = self.lines.get(span.line.saturating_sub(1)) else { return origin };
        let from = line.char_indices().nth(span.column.saturating_sub(1)).map_or(line.len(), |(index, _)| index);
        match line[from..].find(text) {
            Some(found) if span.length >= text.chars().count() => {
                let skipped = line[from..from + found].chars().count();
                Origin::File(Span {
                    column: span.column + skipped,
                    length: text.chars().count(),
                    offset: span.offset + skipped,
                    ..span
                })
            }
            _ => origin,
        }
    }

    /// The line of a span as an error shows it. `concealed`: paths whose values are not to be shown, beside secrets.
    pub fn show(&self, span: Span, concealed: &[KeyPath]) -> Option<Shown> {
        let number = span.line.checked_sub(1)?;
        let line = self.lines.get(number)?;
        let start = span.column.saturating_sub(1);
        let mut hidden: Vec<Range<usize>> = Vec::new();
        let mut visible: Vec<Range<usize>> = Vec::new();
        if self.parsed {
            for (path, leaf) in &self.leaves {
                let Some(range) = self.part_of_line(number, *leaf) else { continue };
                let text: String = line.chars().skip(range.start).take(range.len()).collect();
                let secret = (self.sensitivity.covers(path) && !is_reference(text.trim_matches(['"', '\''])))
                    || concealed.iter().any(|above| above.holds(path));
                if secret { hidden.push(range) } else { visible.push(range) }
            }
        } else {
            hidden.extend(snippet::secrets_of_unparsed(&self.lines, number));
        }
        let in_text = merge(secret_ranges(line).into_iter().chain(self.hidden.ranges(line)).collect());
        hidden.extend(in_text.into_iter().map(|range| chars_before(line, range.start)..chars_before(line, range.end)));
        let end = comment_start(line, &merge(visible.into_iter().chain(hidden.iter().cloned()).collect()));
        let cut: String = line.chars().take(end).collect();
        hidden.retain(|range| range.start < end);
        Some(snippet::show(cut.trim_end(), hidden, start..start + span.length.max(1)))
    }

    /// The characters of line `number` that belong to `span`.
    fn part_of_line(&self, number: usize, span: Span) -> Option<Range<usize>> {
        let start = *self.starts.get(number)?;
        let length = self.lines.get(number)?.chars().count();
        let from = span.offset.max(start);
        let to = (span.offset + span.length).min(start + length);
        (from < to).then(|| from - start..to - start)
    }
}

fn chars_before(line: &str, byte: usize) -> usize {
    line.get(..byte).map_or(0, |before| before.chars().count())
}

/// Where a comment begins, in characters: comments are not shown, they may hold anything.
fn comment_start(line: &str, values: &[Range<usize>]) -> usize {
    let chars: Vec<char> = line.chars().collect();
    let begins = |index: usize| index == 0 || chars.get(index - 1).is_some_and(|c| c.is_whitespace());
    let comment = chars
        .iter()
        .enumerate()
        .position(|(index, c)| *c == '#' && begins(index) && !values.iter().any(|range| range.contains(&index)));
    comment.unwrap_or(chars.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::parse;

    fn map(text: &str) -> SourceMap {
        let mut map = SourceMap::new("w.yaml", text);
        map.record(&parse(text).unwrap());
        map
    }

    fn at(map: &SourceMap, path: &str) -> (usize, usize) {
        match map.locate(&path.into(), Point::Value) {
            Origin::File(span) => (span.line, span.column),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_path_leads_to_its_place_or_the_nearest_above() {
        let map = map("a:\n  b: 1\nto: { sink: x }\nlist:\n  - one\n  - two\n");
        assert_eq!(at(&map, "a.b"), (2, 6));
        assert_eq!(at(&map, "a.c.d"), (1, 1));
        assert_eq!(at(&map, "to[0].sink"), (3, 13), "a single value is its own first element");
        assert_eq!(at(&map, "to[1].sink"), (3, 1));
        assert_eq!(at(&map, "list[1]"), (6, 5));
    }

    #[test]
    fn lines_are_those_of_the_parser() {
        let map = map("a: 1\r\nb: 2\rc: \"\u{2028}\"\nd: é, x y\n");
        assert_eq!(map.lines.len(), 5);
        assert_eq!(at(&map, "d"), (4, 4));
    }

    #[test]
    fn secrets_and_comments_are_not_shown() {
        let text = "p: { password: hunter2, url: \"a://u:pw@h\", x: 5 } # hunter2\nk: |\n  a # b\nt: *a\n";
        let text = text.replace("5 }", "5 , y: &a z#z }");
        let map = map(&text);
        let Origin::File(span) = map.locate(&"p.x".into(), Point::Key) else { panic!() };
        let shown = map.show(span, &[]).unwrap();
        assert_eq!(shown.line, "p: { password: [hidden], url: \"a://u:[hidden]@h\", x: 5 , y: &a z#z }");
        assert_eq!(&shown.line[shown.caret..shown.caret + shown.length], "x");
        let Origin::File(span) = map.locate(&"k".into(), Point::Value) else { panic!() };
        assert_eq!(map.show(span, &[]).unwrap().line, "  a # b");
        assert_eq!(map.show(span, &["k".into()]).unwrap().line, "  [hidden]");
    }
}
