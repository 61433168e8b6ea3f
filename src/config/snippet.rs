//! A line of the file as an error shows it: printable, without secrets, with the columns of its caret.

use std::ops::Range;

use super::redact::{HIDDEN, is_secret_name, merge};

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

/// What to hide in a line of a file that could not be parsed, judged by the text alone: everything behind a key whose
/// name tells of a secret, and lines that continue such a value.
pub(crate) fn secrets_of_unparsed(lines: &[String], number: usize) -> Vec<Range<usize>> {
    let Some(line) = lines.get(number) else { return Vec::new() };
    let length = line.chars().count();
    let indent = |line: &str| line.chars().take_while(|c| c.is_whitespace()).count();
    if continues_a_secret(lines, number) {
        return std::iter::once(indent(line)..length).collect();
    }
    let chars: Vec<char> = line.chars().collect();
    for (colon, _) in chars.iter().enumerate().filter(|(_, c)| **c == ':') {
        let before: String = chars[..colon].iter().collect();
        let before = before.trim_end().trim_end_matches(['"', '\'']);
        let name = before.rsplit(|c: char| !c.is_alphanumeric() && !matches!(c, '_' | '-')).next().unwrap_or_default();
        if is_secret_name(name) {
            let blanks = chars[colon + 1..].iter().take_while(|c| c.is_whitespace()).count();
            return std::iter::once(colon + 1 + blanks..length).filter(|range| !range.is_empty()).collect();
        }
    }
    Vec::new()
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
        assert_eq!(hide("a: { url: x, secret: hunter2, b: [}", 0), "a: { url: x, secret: [hidden]");
        assert_eq!(hide("password: |\n  hunter2\n\thunter3", 2), "→[hidden]");
        assert_eq!(hide("a:\n  token: \"hun\nter2\nb: 1", 2), "[hidden]");
        assert_eq!(hide("secret: x\nslot: \"y", 1), "slot: \"y");
    }
}
