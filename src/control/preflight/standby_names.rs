//! `synchronous_standby_names`: whether it takes a walsender with our application name in as a synchronous standby.
//!
//! Grammar (replication/syncrep_gram.y): a list of names; `N (names)`; `FIRST N (names)`; `ANY N (names)`. A name is an
//! identifier, a number or in double quotes; `*` is every standby, in quotes too. Names are compared without case. A
//! logical walsender counts like any other, so commits would wait for what walgate confirms.

/// Why a walsender is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TakenIn {
    /// By `*`.
    ByStar,
    /// By its application name.
    ByName,
}

/// Whether the setting takes in a walsender of this application name.
pub(super) fn taken_in(setting: &str, application_name: &str) -> Option<TakenIn> {
    let mut names = Vec::new();
    let mut rest = setting;
    while let Some(first) = rest.chars().next() {
        let after = &rest[first.len_utf8()..];
        rest = match first {
            '(' => {
                // What stood before it was `FIRST`, `ANY` and a number.
                names.clear();
                after
            }
            '"' => {
                let (name, after) = quoted(after);
                names.push(name);
                after
            }
            '*' => {
                names.push("*".to_owned());
                after
            }
            c if c == ',' || c == ')' || c.is_whitespace() => after,
            _ => {
                let ends = |c: char| matches!(c, ',' | '(' | ')' | '"' | '*') || c.is_whitespace();
                let (name, after) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
                names.push(name.to_owned());
                after
            }
        };
    }
    if names.iter().any(|name| name.eq_ignore_ascii_case(application_name)) {
        return Some(TakenIn::ByName);
    }
    names.iter().any(|name| name == "*").then_some(TakenIn::ByStar)
}

/// The text up to the closing quote, and what follows it. A doubled quote stands for one.
fn quoted(text: &str) -> (String, &str) {
    let (mut name, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('"') {
        name.push_str(before);
        match after.strip_prefix('"') {
            Some(doubled) => {
                name.push('"');
                rest = doubled;
            }
            None => return (name, after),
        }
    }
    name.push_str(rest);
    (name, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_setting_is_read() {
        use TakenIn::{ByName, ByStar};
        for (setting, taken) in [
            ("", None),
            ("*", Some(ByStar)),
            ("walgate", Some(ByName)),
            ("WalGate", Some(ByName)),
            ("s1, walgate", Some(ByName)),
            ("s1, s2", None),
            ("walgate2", None),
            ("FIRST 1 (s1, walgate)", Some(ByName)),
            ("ANY 2 (s1, s2, *)", Some(ByStar)),
            ("any 1(s1,s2)", None),
            ("2 (s1, walgate)", Some(ByName)),
            ("\"walgate\"", Some(ByName)),
            ("FIRST 1 (\"*\")", Some(ByStar)),
            ("FIRST 1 (\"a,walgate\")", None),
            ("\"a\"\"b\", walgate", Some(ByName)),
            ("1 (s1)", None),
            ("\"unclosed", None),
        ] {
            assert_eq!(taken_in(setting, "walgate"), taken, "{setting}");
        }
        assert_eq!(taken_in("first", "first"), Some(ByName));
        assert_eq!(taken_in("FIRST 1 (s1)", "first"), None);
        assert_eq!(taken_in("s\u{e9}, \u{2028}", "walgate"), None);
    }
}
