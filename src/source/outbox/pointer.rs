//! A key within the payload: one walk over its text, which keeps nothing but the value that is looked for.

use std::{borrow::Cow, fmt};

use bytes::Bytes;
use bytestring::ByteString;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::headers::Text;
use crate::config::JsonPointer;

/// Why a payload has no key at its pointer. The event is delivered all the same, without an order to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    /// The payload is NULL, nothing is at the pointer, or a JSON null is.
    #[error("the payload has nothing there")]
    Absent,
    /// An object or an array is there.
    #[error("an object or an array is there, and a key is a string, a number or a boolean")]
    NotScalar,
    /// The payload is not JSON.
    #[error("the payload is not JSON")]
    NotJson,
}

/// The value at `pointer`: a string unescaped, a number or a boolean as its JSON text, digit for digit. Of a member's
/// name that is repeated (which only `json` and text can hold) the last value counts, as `jsonb` has it.
///
/// No tree is built: what is not on the way is skipped, however deep it is. The depth of the walk is that of the
/// pointer, which is bounded.
///
/// # Errors
/// Why there is no key.
pub(super) fn key(payload: &Bytes, pointer: &JsonPointer) -> Result<ByteString, NoKey> {
    let mut json = serde_json::Deserializer::from_slice(payload);
    let found = Walk(pointer.steps()).deserialize(&mut json).and_then(|found| json.end().map(|()| found));
    let Found::Raw(value) = found.map_err(|_| NoKey::NotJson)? else { return Err(NoKey::Absent) };
    match value.as_bytes().first() {
        Some(b'n') => Err(NoKey::Absent),
        Some(b'{' | b'[') => Err(NoKey::NotScalar),
        Some(b'"') => match serde_json::from_str::<Text<'_>>(value).map_err(|_| NoKey::NotJson)?.0 {
            Cow::Borrowed(text) => share(payload, text),
            Cow::Owned(text) => Ok(text.into()),
        },
        _ => share(payload, value),
    }
}

/// Text of the payload without a copy.
fn share(payload: &Bytes, text: &str) -> Result<ByteString, NoKey> {
    ByteString::try_from(payload.slice_ref(text.as_bytes())).map_err(|_| NoKey::NotJson)
}

enum Found<'de> {
    Nothing,
    Raw(&'de str),
}

/// The steps that are left.
struct Walk<'a>(&'a [Box<str>]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found<'de>, D::Error> {
        if self.0.is_empty() {
            return <&RawValue as serde::Deserialize>::deserialize(deserializer).map(|raw| Found::Raw(raw.get()));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Found<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Found<'de>, A::Error> {
        let mut found = Found::Nothing;
        let Some((step, rest)) = self.0.split_first() else { return Ok(found) };
        while let Some(is_it) = map.next_key_seed(Is(step))? {
            if is_it {
                found = map.next_value_seed(Walk(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Found<'de>, A::Error> {
        let mut found = Found::Nothing;
        let Some((step, rest)) = self.0.split_first() else { return Ok(found) };
        // RFC 6901: digits without leading zeros.
        let digits = step.bytes().all(|byte| byte.is_ascii_digit()) && (&**step == "0" || !step.starts_with('0'));
        let wanted: Option<usize> = step.parse().ok().filter(|_| digits);
        let mut index = 0;
        loop {
            if Some(index) == wanted {
                match list.next_element_seed(Walk(rest))? {
                    Some(element) => found = element,
                    None => return Ok(found),
                }
            } else if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            index += 1;
        }
    }

    // Nothing is below a scalar.
    fn visit_unit<E: Error>(self) -> Result<Found<'de>, E> {
        Ok(Found::Nothing)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Found<'de>, E> {
        Ok(Found::Nothing)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Found<'de>, E> {
        Ok(Found::Nothing)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Found<'de>, E> {
        Ok(Found::Nothing)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Found<'de>, E> {
        Ok(Found::Nothing)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Found<'de>, E> {
        Ok(Found::Nothing)
    }
}

/// Whether a member's name is this one; its text is not kept.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use serde_json::Value;

    use super::*;

    fn at(payload: &str, pointer: &str) -> Result<String, NoKey> {
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        key(&payload, &JsonPointer::parse(pointer).unwrap()).map(|key| key.to_string())
    }

    #[test]
    fn values_are_found_as_they_are_written() {
        let payload = r#" {"order_id": "A-7", "n": 12345678901234567890123, "f": 1.50, "b": true, "z": null, "o": {"x": 1},
            "list": [{"sku": "s0"}, {"sku": "s\u00e9\n1"}], "a/b": 1, "m~n": 2, "": {"": "e"}, "0": "zero", "d": 1, "d": 2} "#;
        for (pointer, found) in [
            ("/order_id", Ok("A-7")),
            ("/n", Ok("12345678901234567890123")),
            ("/f", Ok("1.50")),
            ("/b", Ok("true")),
            ("/z", Err(NoKey::Absent)),
            ("/o", Err(NoKey::NotScalar)),
            ("/list", Err(NoKey::NotScalar)),
            ("/o/x", Ok("1")),
            ("/list/0/sku", Ok("s0")),
            ("/list/1/sku", Ok("s\u{e9}\n1")),
            ("/list/2/sku", Err(NoKey::Absent)),
            ("/list/01/sku", Err(NoKey::Absent)),
            ("/list/-", Err(NoKey::Absent)),
            ("/list/sku", Err(NoKey::Absent)),
            ("/list/99999999999999999999999", Err(NoKey::Absent)),
            ("/a~1b", Ok("1")),
            ("/m~0n", Ok("2")),
            ("//", Ok("e")),
            ("/0", Ok("zero")),
            ("/d", Ok("2")),
            ("/order_id/x", Err(NoKey::Absent)),
            ("/missing", Err(NoKey::Absent)),
        ] {
            assert_eq!(at(payload, pointer).as_deref(), found.as_ref().map(|found| *found), "{pointer}");
        }
        for scalar in ["1", "1.5", "-1", "true", "null", "\"a\"", "[]", "{}"] {
            assert_eq!(at(scalar, "/a"), Err(NoKey::Absent), "{scalar}");
        }
    }

    #[test]
    fn what_is_not_json_has_no_key() {
        for text in ["", "hello", "{\"a\": 1", "{\"a\": 1} x", "{\"a\": }", "{a: 1}", "{\"a\": \"\\ud800\"}"] {
            assert_eq!(at(text, "/a"), Err(NoKey::NotJson), "{text}");
        }
        let pointer = JsonPointer::parse("/a").unwrap();
        assert_eq!(key(&Bytes::from_static(b"{\"a\": \"\xff\"}"), &pointer), Err(NoKey::NotJson));
    }

    #[test]
    fn deep_nesting_does_not_exhaust_the_stack() {
        let deep = |depth: usize| format!("{{\"x\": {}{}, \"a\": 1}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(at(&deep(100_000), "/a"), Ok("1".to_owned()));
        assert_eq!(at(&deep(100_000), "/x"), Err(NoKey::NotScalar));
        let _ = at(&deep(100_000), &format!("/x{}", "/0".repeat(31)));
        let _ = at(&"{\"a\":".repeat(100_000), &"/a".repeat(32));
    }

    #[test]
    fn a_key_shares_the_memory_of_its_payload() {
        let payload = Bytes::from_static(br#"{"a": {"b": "key"}, "n": 17}"#);
        for (pointer, text) in [("/a/b", "key"), ("/n", "17")] {
            let key = key(&payload, &JsonPointer::parse(pointer).unwrap()).unwrap();
            assert_eq!(&*key, text);
            assert!(payload.as_ptr_range().contains(&key.as_bytes().as_ptr()));
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-c~/\"\\\\\\PC]{0,3}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::from),
                vec(("[ab~/01]{0,2}", inner), 0..4)
                    .prop_map(|members| members.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1024))]

        #[test]
        fn it_finds_what_a_tree_would(value in json(), steps in vec("[ab~/012-]{0,2}", 1..4), pretty in any::<bool>()) {
            let text = if pretty { format!("{value:#}") } else { value.to_string() };
            let pointer: String = steps.iter().map(|step| format!("/{}", step.replace('~', "~0").replace('/', "~1"))).collect();
            let expected = match value.pointer(&pointer) {
                None | Some(Value::Null) => Err(NoKey::Absent),
                Some(Value::Object(_) | Value::Array(_)) => Err(NoKey::NotScalar),
                Some(Value::String(text)) => Ok(text.clone()),
                Some(scalar) => Ok(scalar.to_string()),
            };
            prop_assert_eq!(at(&text, &pointer), expected);
        }

        #[test]
        fn every_leaf_is_found(value in json()) {
            let mut leaves = Vec::new();
            collect(&value, String::new(), &mut leaves);
            for (pointer, leaf) in leaves {
                prop_assert_eq!(at(&value.to_string(), &pointer), leaf);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC*|[\\[\\]{}\":,nula0-9\\\\ ]*", bytes in vec(any::<u8>(), 0..40)) {
            let _ = at(&text, "/a/0");
            let _ = key(&Bytes::from(bytes), &JsonPointer::parse("/a").unwrap());
        }
    }

    fn collect(value: &Value, pointer: String, leaves: &mut Vec<(String, Result<String, NoKey>)>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    collect(value, format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")), leaves);
                }
            }
            Value::Array(elements) => {
                for (index, value) in elements.iter().enumerate() {
                    collect(value, format!("{pointer}/{index}"), leaves);
                }
            }
            _ if pointer.is_empty() => {}
            Value::Null => leaves.push((pointer, Err(NoKey::Absent))),
            Value::String(text) => leaves.push((pointer, Ok(text.clone()))),
            scalar => leaves.push((pointer, Ok(scalar.to_string()))),
        }
    }
}
