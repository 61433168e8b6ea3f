//! What must not be printed: which keys hold secrets, and how a text is shown without its passwords.

use std::{collections::HashMap, ops::Range};

use super::path::KeyPath;

/// What stands in the place of a secret.
pub const HIDDEN: &str = "[hidden]";

/// Parts of key names that mark a secret, whatever the sink.
const TELLTALE: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "credential",
    "authorization",
    "cookie",
    "signature",
    "bearer",
    "private_key",
    "api_key",
    "apikey",
    "access_key",
    "signing_key",
    "encryption_key",
    "basic_auth",
];

/// Whether a key of this name should be taken to hold a secret; near misses such as `pasword` too. `*_file` keys hold
/// paths.
pub(crate) fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace(['-', ' '], "_");
    if name.ends_with("_file") || name.len() > 128 {
        return false;
    }
    TELLTALE.iter().any(|part| name.contains(part))
        || name == "auth"
        || [("password", 3), ("secret", 2), ("token", 1)]
            .iter()
            .any(|(word, most)| strsim::damerau_levenshtein(word, &name) <= *most)
}

/// The keys that are declared to hold secrets, beside those whose names tell.
#[derive(Debug, Default)]
pub(crate) struct Sensitivity {
    /// Patterns by their first two keys.
    declared: HashMap<[String; 2], Vec<Vec<String>>>,
}

impl Sensitivity {
    /// Declares a path of two keys at least; a step of `*`, behind those two, is any one key.
    pub fn declare(&mut self, pattern: Vec<String>) {
        if let [first, second, ..] = pattern.as_slice() {
            self.declared.entry([first.clone(), second.clone()]).or_default().push(pattern);
        }
    }

    /// The declared patterns that the path of these keys follows to their end.
    fn followed<'a>(&'a self, keys: &'a [&str]) -> impl Iterator<Item = &'a Vec<String>> {
        let group = match keys {
            [first, second, ..] => self.declared.get(&[(*first).to_owned(), (*second).to_owned()]),
            _ => None,
        };
        let follows = move |pattern: &&Vec<String>| {
            keys.len() >= pattern.len() && pattern.iter().zip(keys).all(|(want, have)| want == "*" || want == have)
        };
        group.into_iter().flatten().filter(follows)
    }

    /// Whether exactly this path was declared.
    pub fn declares(&self, path: &KeyPath) -> bool {
        let keys: Vec<&str> = path.keys().collect();
        self.followed(&keys).any(|pattern| pattern.len() == keys.len())
    }

    /// Whether what stands at this path must not be shown.
    pub fn covers(&self, path: &KeyPath) -> bool {
        let keys: Vec<&str> = path.keys().collect();
        // Headers, and settings that a sink's library takes by its own names, may be secrets under any name.
        let foreign = || {
            let of_others = |key: &&str| ["headers", "properties"].iter().any(|name| key.eq_ignore_ascii_case(name));
            let at = keys.iter().position(of_others);
            keys.first() == Some(&"sinks") && at.is_some_and(|at| at >= 2 && at + 1 < keys.len())
        };
        self.followed(&keys).next().is_some() || keys.iter().any(|key| is_secret_name(key)) || foreign()
    }
}

/// The parts of a text that are passwords by their place: in a URL before the `@`, and in `password=...`,
/// `?token=...`, `secret: ...` and their like. Byte ranges, in order, not overlapping.
pub(crate) fn secret_ranges(text: &str) -> Vec<Range<usize>> {
    let plain = without_references(text);
    let mut ranges = ranges_of_plain(&plain);
    ranges.retain(|range| !range.is_empty() && !is_reference(&text[range.clone()]));
    ranges
}

/// Whether a text is one reference to a variable, `${NAME}`: that is no secret.
pub(crate) fn is_reference(text: &str) -> bool {
    let name = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    name.is_some_and(|name| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'))
}

/// The text with the punctuation of `${NAME:-default}` made neutral, byte for byte.
fn without_references(text: &str) -> String {
    let mut out = text.to_owned();
    let mut from = 0;
    while let Some(found) = text.get(from..).and_then(|rest| rest.find("${")) {
        let start = from + found;
        let Some(length) = text[start..].find('}') else { break };
        let neutral = text[start..=start + length].replace(['$', '{', '}', ':', '@', '=', '/'], "x");
        out.replace_range(start..=start + length, &neutral);
        from = start + length;
    }
    out
}

fn ranges_of_plain(text: &str) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    let mut from = 0;
    while let Some(found) = text.get(from..).and_then(|rest| rest.find("://")) {
        let start = from + found + 3;
        let scheme = text[..start - 3].rsplit(|c: char| !c.is_ascii_alphanumeric() && c != '+').next().unwrap_or("");
        let length = text[start..].find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`'));
        let end = length.map_or(text.len(), |length| start + length);
        if let Some(at) = text[start..end].rfind('@') {
            let userinfo = &text[start..start + at];
            let shows_user = ["postgres", "postgresql", "amqp", "amqps"].contains(&scheme);
            match userinfo.find(':') {
                Some(colon) => ranges.push(start + colon + 1..start + at),
                None if shows_user => {}
                None => ranges.push(start..start + at),
            }
        }
        // A query may hold a token under any name. That of a connection to PostgreSQL holds settings, and those that
        // are secret are found by their names.
        let query = text[start..end].find('?').map(|mark| start + mark + 1);
        if let Some(query) = query.filter(|_| !scheme.starts_with("postgres")) {
            ranges.push(query..end);
        }
        from = end.max(start);
    }
    // The same without a scheme: `user:password@host`.
    for (at, _) in text.match_indices('@') {
        let apart = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`');
        let start = text[..at].rfind(apart).map_or(0, |before| before + 1);
        let userinfo = text.get(start..at).unwrap_or_default();
        if let Some(colon) = userinfo.find(':').filter(|_| !userinfo.contains("://")) {
            ranges.push(start + colon + 1..at);
        }
    }
    for (equals, sign) in text.match_indices(['=', ':']) {
        if sign == ":" && !text[equals + 1..].starts_with([' ', '\t']) {
            continue;
        }
        let before = text[..equals].trim_end().trim_end_matches(['"', '\'']);
        let name = before.rsplit(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-')).next().unwrap_or("");
        if !is_secret_name(name) {
            continue;
        }
        let rest = &text[equals + 1..];
        let start = equals + 1 + (rest.len() - rest.trim_start().len());
        let end = start + value_length(&text[start..]);
        ranges.push(start..end);
    }
    merge(ranges)
}

/// The length of a `key=value` value: quoted as libpq does it, else up to a separator.
fn value_length(value: &str) -> usize {
    if let Some(quote) = value.chars().next().filter(|c| matches!(c, '\'' | '"')) {
        let mut escaped = false;
        let end = value.char_indices().skip(1).find(|(_, c)| {
            let closes = *c == quote && !escaped;
            escaped = *c == '\\' && !escaped;
            closes
        });
        return end.map_or(value.len(), |(index, _)| index + 1);
    }
    value.find(|c: char| c.is_whitespace() || matches!(c, '&' | '"' | ',' | '}' | '`')).unwrap_or(value.len())
}

/// Sorts ranges and joins those that touch.
pub(crate) fn merge(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// A text as it may be shown: passwords in URLs, connection strings and query parameters replaced by [`HIDDEN`].
#[must_use]
pub fn redact(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for range in secret_ranges(text) {
        out.push_str(&text[at..range.start]);
        out.push_str(HIDDEN);
        at = range.end;
    }
    out.push_str(&text[at..]);
    out
}

/// Values that were read and must not come out again in a message.
#[derive(Default)]
pub(crate) struct Hidden {
    /// Secrets, and passwords inside other values: hidden wherever they turn up, if long enough to be told from a word.
    secrets: Vec<String>,
    /// What stands at a path and must not be shown in a message about it.
    local: Vec<(KeyPath, String)>,
    /// What holds such values, as a whole.
    whole: Vec<(KeyPath, String)>,
}

/// A secret shorter than this is hidden only where it was given: elsewhere it may be any word.
const TELLING: usize = 8;

impl Hidden {
    /// A secret; `path` is where it was given.
    pub fn secret(&mut self, path: &KeyPath, value: &str) {
        if value.chars().count() >= TELLING {
            self.secrets.push(value.to_owned());
        }
        self.at(path, value);
    }

    /// A value of unknown content, from the environment.
    pub fn at(&mut self, path: &KeyPath, value: &str) {
        if !value.is_empty() {
            self.local.push((path.clone(), value.to_owned()));
        }
    }

    /// A value that was put together from others: hidden where it is quoted as a whole.
    pub fn whole(&mut self, path: &KeyPath, value: &str) {
        self.whole.push((path.clone(), value.to_owned()));
    }

    /// Whether a message about this path must not show its value.
    pub fn conceals(&self, path: &KeyPath) -> bool {
        self.local.iter().any(|(at, _)| at.touches(path))
    }

    /// The message about `path` without what must not be shown.
    pub fn scrub(&self, path: &KeyPath, message: &str) -> String {
        let local = self.local.iter().filter(|(at, _)| at.touches(path)).map(|(_, value)| (value, true));
        let escaped =
            |value: &String| value.contains(|c: char| !c.is_ascii_graphic() || matches!(c, '"' | '\'' | '\\'));
        let elsewhere = self.secrets.iter().filter(|value| escaped(value) || message.contains(value.as_str()));
        let mut values: Vec<(&String, bool)> = elsewhere.map(|value| (value, false)).chain(local).collect();
        values.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        let mut text = redact(message);
        for (_, value) in self.whole.iter().filter(|(at, _)| at.touches(path)) {
            text = hide_quoted(&text, value);
            text = hide_quoted(&text, &value.escape_debug().to_string());
        }
        for (value, local) in values {
            for form in [value.clone(), value.escape_debug().to_string(), value.trim().to_owned()] {
                if form.is_empty() {
                    continue;
                }
                text = hide_quoted(&text, &form);
                if form.chars().count() >= if local { 4 } else { TELLING } {
                    text = text.replace(&form, HIDDEN);
                }
            }
            if local {
                text = hide_fragments(&text, value);
            }
        }
        text
    }

    /// Byte ranges of a line in which a secret stands.
    pub fn ranges(&self, line: &str) -> Vec<Range<usize>> {
        let all = self.secrets.iter().flat_map(|secret| line.match_indices(secret.as_str()));
        all.map(|(start, found)| start..start + found.len()).collect()
    }
}

fn hide_quoted(text: &str, value: &str) -> String {
    let quotes = ['`', '"', '\''].into_iter();
    quotes.fold(text.to_owned(), |text, quote| text.replace(&format!("{quote}{value}{quote}"), HIDDEN))
}

/// Hides stretches of at least [`TELLING`] characters that a message took out of a hidden value.
fn hide_fragments(message: &str, value: &str) -> String {
    let value: Vec<char> = value.chars().take(4096).collect();
    let windows: std::collections::HashSet<&[char]> = value.windows(TELLING).collect();
    if windows.is_empty() {
        return message.to_owned();
    }
    let chars: Vec<char> = message.chars().collect();
    let mut covered = vec![false; chars.len()];
    for (start, window) in chars.windows(TELLING).enumerate() {
        if windows.contains(window) {
            covered[start..start + TELLING].fill(true);
        }
    }
    let mut out = String::with_capacity(message.len());
    for (index, c) in chars.iter().enumerate() {
        match covered[index] {
            false => out.push(*c),
            true if index == 0 || !covered[index - 1] => out.push_str(HIDDEN),
            true => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_cut_out_by_their_place() {
        for (text, shown) in [
            ("postgres://walgate@localhost/shop", "postgres://walgate@localhost/shop"),
            ("postgres://w:pw@h:5432/d", "postgres://w:[hidden]@h:5432/d"),
            (
                "postgres://w:p@s/s:w@h/d?password=x&sslmode=require",
                "postgres://w:[hidden]@h/d?password=[hidden]&sslmode=require",
            ),
            ("https://tok@h/x", "https://[hidden]@h/x"),
            ("https://h/x?access_token=abc&a=1", "https://h/x?[hidden]"),
            ("host=h password=abc user=u", "host=h password=[hidden] user=u"),
            ("host=h password = 'a b\\' c' user=u", "host=h password = [hidden] user=u"),
            ("password=", "password="),
            ("1ms password: abc, x: y", "1ms password: [hidden], x: y"),
            ("{\"token\": \"abc\", \"x\": 1}", "{\"token\": [hidden], \"x\": 1}"),
            ("a://b:c@d e://f:g@h", "a://b:[hidden]@d e://f:[hidden]@h"),
            ("://:@", "://:@"),
            ("u:pw@h:1, [v:p,w@h, x@y, (w:a:b@h)", "u:[hidden]@h:1, [v:[hidden]@h, x@y, (w:[hidden]@h)"),
            ("u:p@w@h 'u:[p]@h'", "u:[hidden]@h 'u:[hidden]@h'"),
            ("postgres://${A:-w}:${B}@h/d", "postgres://${A:-w}:${B}@h/d"),
            ("postgres://w:${B:-pw}@h/d", "postgres://w:[hidden]@h/d"),
            ("postgres://w:a${B}@h/d password=${C}", "postgres://w:[hidden]@h/d password=${C}"),
            ("plain text, key=value", "plain text, key=value"),
        ] {
            assert_eq!(redact(text), shown);
        }
    }

    #[test]
    fn names_tell() {
        for name in
            ["password", "pasword", "Password", "passwrod", "client-secret", "bearer_token", "X-Api-Key", "secrte"]
        {
            assert!(is_secret_name(name), "{name}");
        }
        for name in
            ["password_file", "key", "topic", "routing_key", "slot", "header_columns", "headers", "payload", "event"]
        {
            assert!(!is_secret_name(name), "{name}");
        }
    }

    #[test]
    fn headers_and_foreign_settings_of_a_sink_are_not_shown() {
        let plain = Sensitivity::default();
        assert!(plain.covers(&"sinks.a.webhook.headers.X-Any".into()));
        assert!(plain.covers(&"sinks.a.kafka.properties.batch.size".into()));
        assert!(!plain.covers(&"outbox.columns.headers".into()));
        let mut declared = Sensitivity::default();
        declared.declare(vec!["sinks".into(), "a".into(), "k".into(), "*".into(), "pin".into()]);
        assert!(declared.covers(&"sinks.a.k.b.pin".into()) && !declared.covers(&"sinks.a.k.pin".into()));
    }

    #[test]
    fn messages_lose_what_must_not_be_shown() {
        let mut hidden = Hidden::default();
        let (here, there) = (KeyPath::from("a.b"), KeyPath::from("c"));
        hidden.secret(&here, "correct horse");
        hidden.at(&here, "12\"3");
        assert_eq!(hidden.scrub(&there, "not `correct horse` at all"), "not [hidden] at all");
        assert_eq!(hidden.scrub(&here, "`12\"3` or \"12\\\"3\" is bad"), "[hidden] or [hidden] is bad");
        assert_eq!(hidden.scrub(&here, "part: rrect hors!"), "part: [hidden]!");
        assert_eq!(hidden.scrub(&there, "`12\"3` stays"), "`12\"3` stays");
    }
}
