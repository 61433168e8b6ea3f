//! A line of the file as an error shows it: printable, without secrets, with the columns of its caret.

use std::ops::Range;

use super::redact::{HIDDEN, is_secret_name, merge, redact};

/// The most characters of a line that are shown.
const WIDTH: usize = 110;

/// A line ready to be printed. The caret's column counts from 0.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub line: String,
    pub caret: usize,
    pub length: usize,
}

/// Text with control and direction-changing characters made visible, cut to `most` characters.
pub(crate) fn printable(text: &str, most: usize) -> String {
    let mut out: String = text.chars().take(most).map(visible).collect();
    if text.chars().nth(most).is_some() {
        out.push('…');
    }
    out
}

/// A key of the file as a message names it: its first line, without what may be a password.
pub(crate) fn key_name(key: &str) -> String {
    let first = key.lines().next().unwrap_or_default();
    let mut name = printable(&redact(first), 64);
    if first.len() < key.len() && !name.ends_with('…') {
        name.push('…');
    }
    name
}

fn visible(c: char) -> char {
    match c {
        '\t' => '→',
        c if c.is_control() => '\u{FFFD}',
        '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}' => '\u{FFFD}',
        c => c,
    }
}

/// Shows a line with `hidden` (ranges of characters) replaced; `caret` are characters of the line as it is.
pub(crate) fn show(line: &str, hidden: Vec<Range<usize>>, caret: Range<usize>) -> Shown {
    let chars: Vec<char> = line.chars().collect();
    let hidden = merge(hidden);
    let mut out: Vec<char> = Vec::with_capacity(chars.len());
    // Where each character of the line, and its end, is shown.
    let mut columns = Vec::with_capacity(chars.len() + 1);
    let mut next = hidden.iter().peekable();
    for (index, c) in chars.iter().enumerate() {
        while next.peek().is_some_and(|range| range.end <= index) {
            next.next();
        }
        match next.peek() {
            Some(range) if range.contains(&index) => {
                if index == range.start {
                    out.extend(HIDDEN.chars());
                }
                columns.push(out.len() - HIDDEN.len());
            }
            _ => {
                columns.push(out.len());
                out.push(visible(*c));
            }
        }
    }
    columns.push(out.len());
    let column = |index: usize| columns.get(index.min(chars.len())).copied().unwrap_or(out.len());
    let start = column(caret.start);
    let mut end = column(caret.end).max(start);
    if hidden.iter().any(|range| range.contains(&caret.end.saturating_sub(1))) {
        end = end.max(start + HIDDEN.len());
    }
    window(&out, start, (end - start).max(1))
}

/// Cuts a long line to what surrounds the caret.
fn window(chars: &[char], caret: usize, length: usize) -> Shown {
    let line = |range: Range<usize>| -> String { chars.get(range).unwrap_or_default().iter().collect() };
    if chars.len() <= WIDTH {
        let text = line(0..chars.len());
        return Shown { line: text.trim_end().to_owned(), caret, length };
    }
    let from = if caret + length.min(WIDTH / 2) <= WIDTH { 0 } else { caret.saturating_sub(WIDTH / 3) };
    let to = (from + WIDTH).min(chars.len());
    let (before, after) = (if from > 0 { "…" } else { "" }, if to < chars.len() { "…" } else { "" });
    let shift = before.chars().count();
    let caret = caret - from + shift;
    let length = length.min((WIDTH + shift).saturating_sub(caret)).max(1);
    Shown { line: format!("{before}{}{after}", line(from..to)), caret, length }
}

/// Keys whose values are no secrets, whatever they are: shown even where a file cannot be parsed.
const HARMLESS: &[&str] = &[
    "source",
    "url",
    "slot",
    "publication",
    "nap",
    "outbox",
    "table",
    "columns",
    "event_type",
    "payload",
    "sinks",
    "routes",
    "to",
    "sink",
    "unrouted",
    "limits",
    "inflight",
    "event",
    "run_ahead",
    "admin",
    "listen",
    "stuck_after",
    "shutdown_timeout",
    "delivery",
    "concurrency",
    "batch",
    "linger",
    "timeout",
    "retry",
    "initial",
    "max",
    "connection_max",
    "on_reject",
];

/// What to hide in a line of a file that could not be parsed, judged by the text alone: every value whose key is not
/// known to be harmless, lines without a key, and lines that may continue a secret.
pub(crate) fn secrets_of_unparsed(lines: &[String], number: usize) -> Vec<Range<usize>> {
    let Some(line) = lines.get(number) else { return Vec::new() };
    let chars: Vec<char> = line.chars().collect();
    let keys = keys_of(&chars);
    let harmless = |key: &str| HARMLESS.contains(&key) && !is_secret_name(key);
    let above = || lines.iter().take(number).rev().find_map(|line| line_key(line));
    let starts_list = line.trim_start().starts_with("- ");
    let first = keys.first().map_or(chars.len(), |(start, _, _)| *start);
    let mut hidden = Vec::new();
    if continues_a_secret(lines, number) {
        hidden.push(0..chars.len());
    } else if !(starts_list && above().is_some_and(harmless)) {
        hidden.push(0..first);
    }
    let mut secret = false;
    for (index, (start, key, value)) in keys.iter().enumerate() {
        let end = keys.get(index + 1).map_or(chars.len(), |(start, _, _)| *start);
        // Without a separator before it the "key" may be text of the value before it.
        let before = chars[..*start].iter().rev().find(|c| !c.is_whitespace());
        let separated = before.is_none_or(|c| matches!(c, ',' | '{' | '[' | '-'));
        match secret && !separated {
            true => hidden.push(*start..end),
            false => {
                secret = !harmless(key);
                hidden.extend(secret.then_some(*value..end));
            }
        }
    }
    let hidden = merge(hidden);
    hidden.into_iter().filter_map(|range| trim(&chars, range)).collect()
}

/// The keys in a line: where each starts, its name, and where its value starts.
fn keys_of(chars: &[char]) -> Vec<(usize, String, usize)> {
    let is_name = |c: &char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '"' | '\'');
    let mut keys = Vec::new();
    for (colon, _) in chars.iter().enumerate().filter(|(_, c)| **c == ':') {
        let ends = chars.get(colon + 1).is_none_or(|c| c.is_whitespace());
        let blanks = chars[..colon].iter().rev().take_while(|c| c.is_whitespace()).count();
        let name: Vec<char> = chars[..colon - blanks].iter().rev().take_while(|c| is_name(c)).copied().collect();
        if ends && !name.is_empty() {
            let text: String = name.iter().rev().collect();
            keys.push((colon - blanks - name.len(), text.trim_matches(['"', '\'']).to_owned(), colon + 1));
        }
    }
    keys
}

/// A range without the blanks and the punctuation around it; none if nothing is left but aliases and anchors.
fn trim(chars: &[char], range: Range<usize>) -> Option<Range<usize>> {
    let part = chars.get(range.clone())?;
    let text: String = part.iter().collect();
    let mut words = text.split([' ', '\t', ',', '[', ']', '{', '}']).filter(|word| !word.is_empty());
    if words.all(|word| word.starts_with(['*', '&'])) {
        return None;
    }
    let is_plain = |c: &char| !c.is_whitespace() && !matches!(c, '{' | '}' | '[' | ']' | ',' | '-' | '|' | '>');
    let start = part.iter().position(is_plain)?;
    let end = part.iter().rposition(is_plain)?;
    Some(range.start + start..range.start + end + 1)
}

/// Whether a line belongs to the value of a secret key above it: deeper than the key, or with no key of its own.
fn continues_a_secret(lines: &[String], number: usize) -> bool {
    let indent = |line: &str| line.chars().take_while(|c| c.is_whitespace()).count();
    let Some(line) = lines.get(number) else { return false };
    let mut least = indent(line);
    let keyless = line_key(line).is_none();
    let mut nearest = true;
    for above in lines.iter().take(number).rev().filter(|line| !line.trim().is_empty()) {
        let Some(key) = line_key(above) else { continue };
        let secret = above.split([':', '{', ',']).any(|part| is_secret_name(part.trim().trim_matches(['"', '\''])))
            || is_secret_name(key);
        if secret && ((keyless && nearest) || indent(above) < least) {
            return true;
        }
        nearest = false;
        least = least.min(indent(above));
    }
    false
}

/// The key at the beginning of a line, if it has one.
fn line_key(line: &str) -> Option<&str> {
    let text = line.trim_start().trim_start_matches("- ").trim_start();
    let (key, rest) = text.split_once(':')?;
    let key = key.trim().trim_matches(['"', '\'']);
    let named = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '{' | ' '));
    (named && (rest.is_empty() || rest.starts_with([' ', '\t', '\r']))).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hide(text: &str, number: usize) -> String {
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let caret = 0..1;
        show(&lines[number], secrets_of_unparsed(&lines, number), caret).line
    }

    #[test]
    fn the_caret_moves_with_what_is_hidden() {
        let shown = show("url: abcdefghijkl, next: 1", std::iter::once(5..17).collect(), 19..23);
        assert_eq!(shown, Shown { line: "url: [hidden], next: 1".into(), caret: 15, length: 4 });
        let shown = show("url: abc", std::iter::once(5..8).collect(), 5..8);
        assert_eq!(shown, Shown { line: "url: [hidden]".into(), caret: 5, length: 8 });
        assert_eq!(show("ab", vec![], 7..9), Shown { line: "ab".into(), caret: 2, length: 1 });
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let line = format!("{}X{}", "a".repeat(500), "b".repeat(500));
        let shown = show(&line, vec![], 500..501);
        assert_eq!(shown.line.chars().nth(shown.caret), Some('X'));
        assert!(shown.line.chars().count() <= WIDTH + 2);
    }

    #[test]
    fn control_and_direction_characters_are_visible() {
        assert_eq!(printable("a\tb\u{1b}[31m\u{202e}c", 99), "a→b\u{FFFD}[31m\u{FFFD}c");
        assert_eq!(printable("abcdef", 3), "abc…");
    }

    #[test]
    fn secrets_are_hidden_in_a_file_that_does_not_parse() {
        assert_eq!(hide("source:\n  password: hunter2: x", 1), "  password: [hidden]");
        assert_eq!(hide("a: { url: x, secret: hunter2, b: [}", 0), "a: { url: x, secret: [hidden], b: [}");
        assert_eq!(hide("password: |\n  hunter2\n\thunter3", 2), "→[hidden]");
        assert_eq!(
            hide("headers: { X-Pin: hunter2, Y: z }, slot: a", 0),
            "headers: { X-Pin: [hidden], Y: [hidden] }, slot: a"
        );
        assert_eq!(hide("to:\n  - one", 1), "  - one");
        assert_eq!(hide("pins:\n  - one", 1), "  - [hidden]");
        assert_eq!(hide("a:\n  token: \"hun\nter2\nb: 1", 2), "[hidden]");
        assert_eq!(hide("secret: x\nslot: \"y", 1), "slot: \"y");
    }
}
