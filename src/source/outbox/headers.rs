//! The headers column: a JSON object whose members travel as headers.

use std::{borrow::Cow, fmt};

use bytestring::ByteString;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Headers that one event may have; an HTTP receiver takes a hundred or so.
pub(super) const MAX_HEADERS: usize = 256;

/// Appends the members of `object`: strings as they are, NULL not at all, everything else as its JSON text, digit for
/// digit. Names that stand in `headers` already are left alone; of a name that is repeated in the object (which only
/// `json` can hold) the last value counts, as `jsonb` has it.
///
/// # Errors
/// What is wrong with it: it is no JSON object, or it has more than [`MAX_HEADERS`] members.
pub(super) fn append(object: &ByteString, headers: &mut Vec<(ByteString, ByteString)>) -> Result<(), &'static str> {
    let mut state = Members { object, mapped: headers.len(), headers, too_many: false };
    let mut json = serde_json::Deserializer::from_str(object);
    let outcome = state.deserialize(&mut json).and_then(|()| json.end());
    match outcome {
        _ if state.too_many => Err("it has more than 256 members"),
        Ok(()) => Ok(()),
        Err(_) if serde_json::from_str::<serde::de::IgnoredAny>(object).is_err() => Err("it is not valid JSON"),
        Err(_) => Err("it is not a JSON object"),
    }
}

struct Members<'a> {
    object: &'a ByteString,
    /// How many headers came from mapped columns: those are not replaced.
    mapped: usize,
    headers: &'a mut Vec<(ByteString, ByteString)>,
    too_many: bool,
}

impl Members<'_> {
    /// Text of the object without a copy, or text that had to be unescaped.
    fn share(&self, text: Cow<'_, str>) -> ByteString {
        match text {
            Cow::Borrowed(text) => self.object.slice_ref(text),
            Cow::Owned(text) => text.into(),
        }
    }

    fn put(&mut self, name: ByteString, value: Option<ByteString>) {
        let place = self.headers.iter().position(|(known, _)| *known == name);
        match (place, value) {
            (Some(place), _) if place < self.mapped => {}
            (Some(place), Some(value)) => {
                if let Some((_, old)) = self.headers.get_mut(place) {
                    *old = value;
                }
            }
            (Some(place), None) => drop(self.headers.remove(place)),
            (None, Some(value)) => self.headers.push((name, value)),
            (None, None) => {}
        }
    }
}

impl<'de> DeserializeSeed<'de> for &mut Members<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Text<'de>>()? {
            let value = map.next_value::<&RawValue>()?.get();
            let value = match value.as_bytes().first() {
                Some(b'n') => None,
                Some(b'"') => Some(serde_json::from_str::<Text<'_>>(value).map_err(A::Error::custom)?.0),
                _ => Some(Cow::Borrowed(value)),
            };
            let (name, value) = (self.share(name.0), value.map(|value| self.share(value)));
            self.put(name, value);
            if self.headers.len() > MAX_HEADERS {
                self.too_many = true;
                return Err(A::Error::custom("too many members"));
            }
        }
        Ok(())
    }
}

/// A string that is borrowed from the input where it has no escapes (serde's own `Cow` never is).
pub(super) struct Text<'a>(pub(super) Cow<'a, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(object: &str, mapped: &[(&str, &str)]) -> Result<Vec<(String, String)>, &'static str> {
        let mut headers: Vec<_> = mapped.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        append(&object.into(), &mut headers)?;
        Ok(headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect())
    }

    #[test]
    fn members_become_headers() {
        let object = r#" {"a": "x", "n": 1.10, "big": 123456789012345678901234567890, "t": true, "none": null,
                          "o": {"k": [1, 2]}, "esc\u0061pe": "line\n\ud83d\ude00", "": ""} "#;
        let wanted = [
            ("a", "x"),
            ("n", "1.10"),
            ("big", "123456789012345678901234567890"),
            ("t", "true"),
            ("o", r#"{"k": [1, 2]}"#),
            ("escape", "line\n\u{1F600}"),
            ("", ""),
        ];
        let got = read(object, &[]).unwrap();
        assert_eq!(got.iter().map(|(name, value)| (&**name, &**value)).collect::<Vec<_>>(), wanted);
        assert_eq!(read("{}", &[]), Ok(vec![]));
    }

    #[test]
    fn a_mapped_column_wins_and_the_last_of_a_repeated_name_counts() {
        let headers = read(r#"{"a": "2", "b": "1", "b": "2", "c": "1", "c": null}"#, &[("a", "1")]).unwrap();
        assert_eq!(headers, [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn what_is_no_object_is_said() {
        for (text, why) in [
            ("", "it is not valid JSON"),
            ("{", "it is not valid JSON"),
            ("{\"a\": 1} x", "it is not valid JSON"),
            ("[1]", "it is not a JSON object"),
            ("\"a\"", "it is not a JSON object"),
            ("null", "it is not a JSON object"),
        ] {
            assert_eq!(read(text, &[]), Err(why), "{text}");
        }
        let many: Vec<_> = (0..=MAX_HEADERS).map(|n| format!("\"{n}\": 1")).collect();
        assert_eq!(read(&format!("{{{}}}", many.join(",")), &[]), Err("it has more than 256 members"));
        assert_eq!(read(&format!("{{{}}}", many[1..].join(",")), &[]).unwrap().len(), MAX_HEADERS);
    }

    #[test]
    fn deep_nesting_does_not_exhaust_the_stack() {
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let _ = read(&deep, &[]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*|[\\[\\]{}\":,nul0-9\\\\ ]*") {
            let _ = read(&text, &[("a", "b")]);
        }

        #[test]
        fn strings_survive(members in proptest::collection::btree_map(any::<String>(), any::<String>(), 0..8)) {
            let object = serde_json::to_string(&members).unwrap();
            let headers = read(&object, &[]).unwrap();
            prop_assert_eq!(headers, members.into_iter().collect::<Vec<_>>());
        }
    }
}
