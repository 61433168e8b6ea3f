//! `dead_letters.retain`: for how long a dead letter is kept.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use walgate_sink::HumanDuration;

/// A duration such as `30d`, or `forever`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retain {
    /// What is older is deleted.
    For(HumanDuration),
    /// Nothing is deleted.
    #[default]
    Forever,
}

const FOREVER: &str = "forever";

impl Retain {
    /// The age from which on a letter is deleted; none: never.
    #[must_use]
    pub fn limit(self) -> Option<Duration> {
        match self {
            Retain::For(limit) => Some(limit.0),
            Retain::Forever => None,
        }
    }
}

impl FromStr for Retain {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == FOREVER {
            return Ok(Retain::Forever);
        }
        text.parse()
            .map(Retain::For)
            .map_err(|_| format!("`{text}` is neither a duration such as 30d nor `{FOREVER}`, which deletes nothing"))
    }
}

impl fmt::Display for Retain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Retain::For(limit) => limit.fmt(f),
            Retain::Forever => f.write_str(FOREVER),
        }
    }
}

impl Serialize for Retain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Retain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl serde::de::Visitor<'_> for Text {
            type Value = String;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as 30d, or `forever`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
                Ok(text.to_owned())
            }
        }

        deserializer.deserialize_str(Text)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_duration_or_forever() {
        let days = |days: u64| Retain::For(HumanDuration(Duration::from_secs(days * 86_400)));
        for (text, value) in [("30d", days(30)), ("1day 12h", Retain::For(HumanDuration(Duration::from_secs(129_600))))]
        {
            assert_eq!(text.parse(), Ok(value), "{text}");
            assert_eq!(value.to_string().parse(), Ok(value), "{text}");
        }
        assert_eq!("forever".parse(), Ok(Retain::Forever));
        assert_eq!((Retain::Forever.to_string().as_str(), Retain::Forever.limit()), ("forever", None));
        for bad in ["", "30", "Forever", "never", "-1s"] {
            assert!(bad.parse::<Retain>().unwrap_err().contains("neither a duration"), "{bad}");
        }
    }
}
