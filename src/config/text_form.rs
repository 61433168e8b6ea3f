//! Values that stand in the file as text of their own form, such as `3s`, `75%` or `500/s`: a number without its unit is an
//! error that says what is wanted.

use std::{fmt, str::FromStr};

use serde::{Deserializer, de::Error as _};

/// Reads such a value; `expected` says what is wanted where something else than text stands there.
pub(super) fn deserialize<'de, T, D>(deserializer: D, expected: &'static str) -> Result<T, D::Error>
where
    T: FromStr<Err = String>,
    D: Deserializer<'de>,
{
    struct Text(&'static str);

    impl serde::de::Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
    }

    deserializer.deserialize_str(Text(expected))?.parse().map_err(D::Error::custom)
}
