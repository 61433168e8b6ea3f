//! `dead_letters.retain`: for how long a dead letter is kept.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
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
        super::text_form::deserialize(deserializer, "a duration such as 30d, or `forever`")
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
