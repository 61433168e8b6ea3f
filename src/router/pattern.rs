//! Patterns of event types.
//!
//! An event type is read as segments with dots between them: `order.item.added` has three, `order.` has two (the last
//! is empty), and the empty type has one, which is empty. In a pattern
//!
//! - `*` stands for any run of characters within one segment, also for none: `order.*` matches `order.created` and not
//!   `order.item.added`; `order.cre*` matches `order.created`;
//! - `**`, alone in its segment, stands for one or more segments: `order.**` matches `order.created` and
//!   `order.item.added` and not `order`; `**` alone matches every type, the empty one too;
//! - everything else stands for itself. Case counts.
//!
//! Matching goes over the type once for each segment of the pattern at the worst: no backtracking but to the last `**`,
//! whose fixed number of segments is tried at each place once.

use std::fmt;

/// Characters that a pattern may have.
pub const MAX_PATTERN: usize = 256;

/// A parsed pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: Box<str>,
    /// The segments before the first `**`, between two of them, and after the last: one group more than there are `**`.
    groups: Box<[Box<[Segment]>]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// This text.
    Exact(Box<str>),
    /// `*` alone.
    Any,
    /// Text around stars: at least two pieces, of which the first and the last are anchored.
    Pieces(Box<[Box<str>]>),
}

/// A text that is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a pattern of event types: {why}")]
pub struct PatternError {
    text: String,
    why: Fault,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("it is empty; `**` matches every event type")]
    Empty,
    #[error("it has more than {MAX_PATTERN} characters")]
    TooLong,
    #[error("segment {0} is empty; segments have one dot between them, and `*` matches an empty one too")]
    EmptySegment(usize),
    #[error("`{0}` is not allowed in it; event types with such characters are matched by `*` and `**`")]
    Character(String),
    #[error("`**` must stand alone between dots; within a segment write `*`")]
    DoubleStar,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`PatternError`]: empty, too long, an empty segment, `**` that is not alone in its segment, white space or
    /// control characters.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let error = |why| PatternError { text: text.escape_debug().take(MAX_PATTERN).collect(), why };
        if text.is_empty() {
            return Err(error(Fault::Empty));
        }
        if text.chars().nth(MAX_PATTERN).is_some() {
            return Err(error(Fault::TooLong));
        }
        if let Some(c) = text.chars().find(|c| c.is_whitespace() || c.is_control()) {
            return Err(error(Fault::Character(c.escape_debug().to_string())));
        }
        let mut groups = Vec::new();
        let mut group = Vec::new();
        for (index, segment) in text.split('.').enumerate() {
            match segment {
                "" => return Err(error(Fault::EmptySegment(index + 1))),
                "**" => groups.push(std::mem::take(&mut group).into_boxed_slice()),
                "*" => group.push(Segment::Any),
                _ if segment.contains("**") => return Err(error(Fault::DoubleStar)),
                _ if segment.contains('*') => group.push(Segment::Pieces(segment.split('*').map(Box::from).collect())),
                _ => group.push(Segment::Exact(segment.into())),
            }
        }
        groups.push(group.into());
        Ok(Pattern { text: text.into(), groups: groups.into() })
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it matches this event type.
    #[must_use]
    pub fn matches(&self, event_type: &str) -> bool {
        let mut rest = Segments(Some(event_type));
        let (first, middle, last) = match &*self.groups {
            [] => return false,
            [only] => return rest.starts_with(only) && rest.0.is_none(),
            [first, middle @ .., last] => (first, middle, last),
        };
        if !rest.starts_with(first) || !rest.ends_with(last) {
            return false;
        }
        // What is left belongs to the `**`s and to the groups between them. The leftmost place of each group is the
        // best one: it leaves the most for those after it.
        for group in middle {
            let found = loop {
                if rest.next_front().is_none() {
                    break false;
                }
                let mut tried = rest;
                if tried.starts_with(group) {
                    rest = tried;
                    break true;
                }
            };
            if !found {
                return false;
            }
        }
        rest.0.is_some()
    }

    /// How many segments every event type has that it matches; `None`: more than one number is possible.
    pub(super) fn segment_count(&self) -> Option<usize> {
        match &*self.groups {
            [only] => Some(only.len()),
            _ => None,
        }
    }

    /// Whether every event type that `other` matches is surely matched by this pattern too. `false`: perhaps not.
    pub(super) fn covers(&self, other: &Pattern) -> bool {
        let plain = |pattern: &Pattern| !pattern.text.contains('*');
        if self.text == other.text || &*self.text == "**" || (plain(other) && self.matches(&other.text)) {
            return true;
        }
        match (&*self.groups, &*other.groups) {
            ([mine], [theirs]) => mine.len() == theirs.len() && mine.iter().zip(theirs).all(|(a, b)| a.covers(b)),
            _ => false,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Segment {
    fn matches(&self, segment: &str) -> bool {
        match self {
            Segment::Any => true,
            Segment::Exact(text) => **text == *segment,
            Segment::Pieces(pieces) => {
                let [first, middle @ .., last] = &**pieces else { return false };
                let rest = segment.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last));
                let Some(mut rest) = rest else { return false };
                for piece in middle {
                    let Some((_, after)) = rest.split_once(&**piece) else { return false };
                    rest = after;
                }
                true
            }
        }
    }

    fn covers(&self, other: &Segment) -> bool {
        match (self, other) {
            (Segment::Any, _) => true,
            (_, Segment::Exact(text)) => self.matches(text),
            _ => self == other,
        }
    }
}

/// The segments of an event type that are not consumed yet; `None`: there is none left (an empty text is one segment).
#[derive(Clone, Copy)]
struct Segments<'a>(Option<&'a str>);

impl<'a> Segments<'a> {
    fn next_front(&mut self) -> Option<&'a str> {
        let text = self.0?;
        let (segment, rest) = text.split_once('.').map_or((text, None), |(segment, rest)| (segment, Some(rest)));
        self.0 = rest;
        Some(segment)
    }

    fn next_back(&mut self) -> Option<&'a str> {
        let text = self.0?;
        let (rest, segment) = text.rsplit_once('.').map_or((None, text), |(rest, segment)| (Some(rest), segment));
        self.0 = rest;
        Some(segment)
    }

    /// Consumes as many segments as the group has, from the front, while they match.
    fn starts_with(&mut self, group: &[Segment]) -> bool {
        group.iter().all(|wanted| self.next_front().is_some_and(|segment| wanted.matches(segment)))
    }

    /// The same from the back.
    fn ends_with(&mut self, group: &[Segment]) -> bool {
        group.iter().rev().all(|wanted| self.next_back().is_some_and(|segment| wanted.matches(segment)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_match_what_the_module_says() {
        for (pattern, matching, others) in [
            (
                "order.created",
                &["order.created"][..],
                &["order", "order.create", "Order.created", "order.created."][..],
            ),
            ("order.*", &["order.created", "order.", "order.\u{1F600}"], &["order", "order.item.added", "orders.x"]),
            ("order.cre*", &["order.cre", "order.created"], &["order.updated", "order.cre.x", "order.cr"]),
            ("*", &["", "x"], &[".", "a.b"]),
            ("a*b*c", &["abc", "axxbxxc", "abbc", "abcbc"], &["ab", "ac", "abcd", "a.b.c"]),
            ("a*a", &["aa", "aba"], &["a", "a.a"]),
            ("*.*.x", &["a.b.x", "..x"], &["a.x", "a.b.c.x"]),
            ("**", &["", ".", "a", "a.b.c"], &[]),
            ("order.**", &["order.created", "order.item.added", "order."], &["order", "", "orders.x"]),
            ("**.created", &["order.created", "a.b.created", ".created"], &["created", "a.created.b"]),
            ("a.**.z", &["a.b.z", "a.b.c.z", "a.z.z", "a..z"], &["a.z", "a.b", "z"]),
            ("**.x.**", &["a.x.b", "a.x.x.b", "a.b.x.c.d"], &["x.a", "a.x", "a.b.c", "x"]),
            ("**.**", &["a.b", "a.b.c", "."], &["a", ""]),
            ("a.**.b.**.c", &["a.1.b.2.c", "a.b.b.b.c", "a.1.b.1.b.2.c"], &["a.b.c", "a.b.2.c", "a.1.b.c"]),
            ("**.a.*.**", &["1.a.b.c", "1.a.a.a.b"], &["a.b.c", "1.a.b"]),
        ] {
            let parsed = Pattern::parse(pattern).unwrap();
            assert_eq!(parsed.text(), pattern);
            for event_type in matching {
                assert!(parsed.matches(event_type), "{pattern} must match {event_type:?}");
            }
            for event_type in others {
                assert!(!parsed.matches(event_type), "{pattern} must not match {event_type:?}");
            }
        }
    }

    #[test]
    fn hostile_types_are_matched_in_linear_time() {
        let long = "a".repeat(1 << 20);
        let many = "a.".repeat(1 << 19);
        for pattern in ["**", "*a*a*a*a*a*a*b", "**.a.a.a.a.a.a.a.b.**", "**.a*a*b.**.c", "*", "a*"] {
            let pattern = Pattern::parse(pattern).unwrap();
            for event_type in [&long, &many] {
                let _ = pattern.matches(event_type);
            }
        }
    }

    #[test]
    fn errors_say_why() {
        let error = |text: &str| Pattern::parse(text).unwrap_err();
        insta::assert_snapshot!(error(""), @"`` is not a pattern of event types: it is empty; `**` matches every event type");
        insta::assert_snapshot!(error("order..created"), @"`order..created` is not a pattern of event types: segment 2 is empty; segments have one dot between them, and `*` matches an empty one too");
        insta::assert_snapshot!(error("order."), @"`order.` is not a pattern of event types: segment 2 is empty; segments have one dot between them, and `*` matches an empty one too");
        insta::assert_snapshot!(error("***"), @"`***` is not a pattern of event types: `**` must stand alone between dots; within a segment write `*`");
        insta::assert_snapshot!(error("order.cre**"), @"`order.cre**` is not a pattern of event types: `**` must stand alone between dots; within a segment write `*`");
        insta::assert_snapshot!(error("order .created"), @"`order .created` is not a pattern of event types: ` ` is not allowed in it; event types with such characters are matched by `*` and `**`");
        insta::assert_snapshot!(error("order\u{7}"), @r#"`order\u{7}` is not a pattern of event types: `\u{7}` is not allowed in it; event types with such characters are matched by `*` and `**`"#);
        assert!(Pattern::parse(&"a".repeat(MAX_PATTERN)).is_ok());
        assert!(Pattern::parse(&"é".repeat(MAX_PATTERN + 1)).is_err());
    }

    /// The definition, word by word and exponential.
    fn naive(pattern: &[&str], segments: &[&str]) -> bool {
        match pattern {
            [] => segments.is_empty(),
            ["**", rest @ ..] => (1..=segments.len()).any(|taken| naive(rest, &segments[taken..])),
            [first, rest @ ..] => segments.split_first().is_some_and(|(segment, left)| {
                naive_segment(first.as_bytes(), segment.as_bytes()) && naive(rest, left)
            }),
        }
    }

    fn naive_segment(pattern: &[u8], text: &[u8]) -> bool {
        match pattern {
            [] => text.is_empty(),
            [b'*', rest @ ..] => (0..=text.len()).any(|taken| naive_segment(rest, &text[taken..])),
            [byte, rest @ ..] => text.split_first().is_some_and(|(c, left)| c == byte && naive_segment(rest, left)),
        }
    }

    fn some_pattern() -> impl Strategy<Value = Pattern> {
        let segment = prop_oneof![3 => "[ab*]{1,4}", 1 => Just("**".to_owned())];
        proptest::collection::vec(segment, 1..6)
            .prop_filter_map("not a pattern", |segments| Pattern::parse(&segments.join(".")).ok())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn the_matcher_does_what_its_definition_says(pattern in some_pattern(), event_type in "[ab.]{0,10}") {
            let pattern_segments: Vec<_> = pattern.text().split('.').collect();
            let segments: Vec<_> = event_type.split('.').collect();
            prop_assert_eq!(pattern.matches(&event_type), naive(&pattern_segments, &segments));
        }

        #[test]
        fn a_covered_pattern_matches_nothing_more(
            wide in some_pattern(), narrow in some_pattern(), event_type in "[ab.]{0,8}",
        ) {
            if wide.covers(&narrow) && narrow.matches(&event_type) {
                prop_assert!(wide.matches(&event_type));
            }
        }

        #[test]
        fn no_text_panics(pattern in "\\PC*", event_type in "\\PC*") {
            if let Ok(pattern) = Pattern::parse(&pattern) {
                let _ = pattern.matches(&event_type);
            }
        }
    }
}
