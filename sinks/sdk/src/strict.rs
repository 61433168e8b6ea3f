//! Reading typed configuration strictly.

use serde::{
    Deserializer,
    de::{DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Error, Value};

use crate::{ConfigIssue, PathSegment};

/// Reads a configuration, or a part of one. Unlike serde_json's own reading, a list is not taken for a struct whose
/// fields it would give by their position.
///
/// # Errors
/// The first fault that serde finds, with its path. Its message is serde's own.
pub fn read_config<T: DeserializeOwned>(value: &Value) -> Result<T, ConfigIssue> {
    serde_path_to_error::deserialize(Strict(value))
        .map_err(|error| ConfigIssue { path: path_of(error.path()), message: error.inner().to_string() })
}

fn path_of(path: &serde_path_to_error::Path) -> Vec<PathSegment> {
    use serde_path_to_error::Segment;
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(PathSegment::Index(*index)),
            Segment::Map { key } => Some(PathSegment::Key(key.clone())),
            Segment::Enum { variant } => Some(PathSegment::Key(variant.clone())),
            Segment::Unknown => None,
        })
        .collect()
}

struct Strict<'a>(&'a Value);

impl<'de> Deserializer<'de> for Strict<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(values) => visitor.visit_seq(List(values.iter())),
            Value::Object(object) => visitor.visit_map(Mapping { entries: object.iter(), value: None }),
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.0.is_array() {
            return Err(Error::invalid_type(Unexpected::Seq, &visitor));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct List<'a>(std::slice::Iter<'a, Value>);

impl<'de> SeqAccess<'de> for List<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.0.next().map(|value| seed.deserialize(Strict(value))).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.0.len())
    }
}

struct Mapping<'a> {
    entries: serde_json::map::Iter<'a>,
    value: Option<&'a Value>,
}

impl<'de> MapAccess<'de> for Mapping<'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(key.as_str().into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let value = self.value.take().ok_or_else(|| Error::custom("a value without its key"))?;
        seed.deserialize(Strict(value))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.entries.len())
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::{HumanDuration, Secret};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        wait: Option<HumanDuration>,
        secret: Option<Secret>,
        #[serde(default)]
        inner: Vec<Inner>,
        mode: Option<Mode>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        n: u8,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Plain,
        Made { of: u8 },
    }

    fn fault(value: Value) -> String {
        let issue = read_config::<Sample>(&value).unwrap_err();
        format!("{:?} {}", issue.path, issue.message)
    }

    #[test]
    fn structs_are_mappings() {
        let read = json!({"name": "x", "wait": "5s", "secret": "s", "inner": [{"n": 1}], "mode": {"made": {"of": 2}}});
        let sample: Sample = read_config(&read).unwrap();
        assert_eq!((sample.name.as_str(), sample.inner[0].n, sample.mode), ("x", 1, Some(Mode::Made { of: 2 })));
        assert_eq!(sample.wait.unwrap().0.as_secs(), 5);
        assert_eq!(sample.secret.unwrap().expose(), "s");
        let plain: Sample = read_config(&json!({"name": "x", "wait": null, "mode": "plain"})).unwrap();
        assert_eq!((plain.wait, plain.mode), (None, Some(Mode::Plain)));
    }

    #[test]
    fn a_list_is_no_struct_and_faults_have_paths() {
        assert_eq!(fault(json!(["x"])), "[] invalid type: sequence, expected struct Sample");
        assert_eq!(
            fault(json!({"name": "x", "inner": [{"n": 1}, [1]]})),
            "[Key(\"inner\"), Index(1)] invalid type: sequence, expected struct Inner"
        );
        assert_eq!(
            fault(json!({"name": "x", "inner": [{"n": 300}]})),
            "[Key(\"inner\"), Index(0), Key(\"n\")] invalid value: integer `300`, expected u8"
        );
        assert!(fault(json!({"nam": "x"})).starts_with("[Key(\"nam\")] unknown field `nam`, expected one of"));
        assert!(fault(json!({"name": 5})).contains("expected a string"));
    }
}
