//! Segments of an event type in a template: `{event_type[0]}`, `{event_type[-1]}`, `{event_type[1..]}`.

use std::fmt;

/// Which segments of an event type; segments have dots between them, as in patterns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segments {
    /// `[n]`: this one, from 0.
    Nth(u8),
    /// `[-n]`: this one from the end, from 1.
    NthLast(u8),
    /// `[n..]`: this one and all after it.
    From(u8),
}

/// What is allowed, as errors say it.
const FORMS: &str = ": the segments of an event type are `{event_type[0]}` and on, `{event_type[-1]}` and back from the \
                     last, and `{event_type[1..]}` for all from one on";

impl Segments {
    /// Reads what stands behind `event_type`: `[0]`, `[-1]`, `[1..]`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let number = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
            digits.parse::<u8>().ok().filter(|_| plain)
        };
        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        let segments = inner.and_then(|inner| match (inner.strip_prefix('-'), inner.strip_suffix("..")) {
            (Some(back), _) => number(back).filter(|number| *number > 0).map(Segments::NthLast),
            (None, Some(from)) => number(from).map(Segments::From),
            (None, None) => number(inner).map(Segments::Nth),
        });
        segments.ok_or_else(|| FORMS.to_owned())
    }

    /// The segments of this event type; `None`: it has not so many.
    pub(super) fn of(self, event_type: &str) -> Option<&str> {
        match self {
            Segments::Nth(number) => event_type.split('.').nth(number.into()),
            Segments::NthLast(number) => event_type.rsplit('.').nth(usize::from(number).checked_sub(1)?),
            Segments::From(0) => Some(event_type),
            Segments::From(number) => {
                let (dot, _) = event_type.match_indices('.').nth(usize::from(number) - 1)?;
                event_type.get(dot + 1..)
            }
        }
    }

    /// How many segments an event type must have, so that they are there.
    pub(super) fn needed(self) -> usize {
        match self {
            Segments::Nth(number) | Segments::From(number) => usize::from(number) + 1,
            Segments::NthLast(number) => usize::from(number),
        }
    }
}

impl fmt::Display for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Segments::Nth(number) => write!(f, "[{number}]"),
            Segments::NthLast(number) => write!(f, "[-{number}]"),
            Segments::From(number) => write!(f, "[{number}..]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(text: &str, event_type: &'static str) -> Option<&'static str> {
        Segments::parse(text).unwrap().of(event_type)
    }

    #[test]
    fn segments_count_from_both_ends() {
        for (text, found) in [
            ("[0]", Some("order")),
            ("[1]", Some("item")),
            ("[2]", Some("added")),
            ("[3]", None),
            ("[-1]", Some("added")),
            ("[-3]", Some("order")),
            ("[-4]", None),
            ("[0..]", Some("order.item.added")),
            ("[1..]", Some("item.added")),
            ("[2..]", Some("added")),
            ("[3..]", None),
            ("[255]", None),
        ] {
            assert_eq!(of(text, "order.item.added"), found, "{text}");
        }
        assert_eq!((of("[0]", ""), of("[-1]", ""), of("[1..]", ".")), (Some(""), Some(""), Some("")));
    }

    #[test]
    fn what_is_no_form_is_refused() {
        for text in [
            "[]", "[", "[x]", "[-0]", "[-]", "[..]", "[..1]", "[1..2]", "[01]", "[+1]", "[256]", "[-1..]", "[0]x",
            "[ 0]",
        ] {
            let why = Segments::parse(text).unwrap_err();
            assert!(why.contains("{event_type[-1]}"), "{text}: {why}");
        }
    }

    proptest! {
        #[test]
        fn they_are_what_splitting_gives(event_type in "[a.é]{0,12}", number in 0_u8..8) {
            let split: Vec<&str> = event_type.split('.').collect();
            let index = usize::from(number);
            let read = |text: String| Segments::parse(&text).unwrap();
            let nth = read(format!("[{number}]"));
            prop_assert_eq!(nth.of(&event_type), split.get(index).copied());
            prop_assert_eq!(nth.needed() <= split.len(), nth.of(&event_type).is_some());
            let last = read(format!("[-{}]", number + 1));
            prop_assert_eq!(last.of(&event_type), split.iter().rev().nth(index).copied());
            prop_assert_eq!(last.needed() <= split.len(), last.of(&event_type).is_some());
            let from = read(format!("[{number}..]"));
            let joined = split.get(index..).filter(|rest| !rest.is_empty()).map(|rest| rest.join("."));
            prop_assert_eq!(from.of(&event_type), joined.as_deref());
            for segments in [nth, last, from] {
                prop_assert_eq!(Segments::parse(&segments.to_string()), Ok(segments));
            }
        }
    }
}
