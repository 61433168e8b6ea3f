//! Rates as the configuration writes them, with the unit in the value.

use std::{fmt, num::NonZeroU32, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// So many in a period: `500/s`, `10/m` or `2000/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: NonZeroU32,
    unit: Unit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Second,
    Minute,
    Hour,
}

const UNITS: [(&str, Unit, u64); 3] = [("s", Unit::Second, 1), ("m", Unit::Minute, 60), ("h", Unit::Hour, 3600)];

impl Rate {
    /// How many in one [`Rate::period`].
    #[must_use]
    pub fn count(self) -> NonZeroU32 {
        self.count
    }

    /// A second, a minute or an hour.
    #[must_use]
    pub fn period(self) -> Duration {
        let seconds = UNITS.iter().find(|(_, unit, _)| *unit == self.unit).map_or(1, |(_, _, seconds)| *seconds);
        Duration::from_secs(seconds)
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error =
            || format!("`{text}` is not a rate: write a whole number of 1 or more and /s, /m or /h, such as 500/s");
        let (count, unit) = text.split_once('/').ok_or_else(error)?;
        let (_, unit, _) = UNITS.iter().find(|(name, _, _)| *name == unit.trim()).ok_or_else(error)?;
        let count = count.trim();
        if !count.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(error());
        }
        Ok(Rate { count: count.parse().map_err(|_| error())?, unit: *unit })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, unit, _)| *unit == self.unit).map_or("s", |(name, _, _)| name);
        write!(f, "{}/{unit}", self.count)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::text_form::deserialize(deserializer, "a rate such as 500/s, 10/m or 2000/h")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_carry_their_unit() {
        for (text, count, seconds) in [("500/s", 500, 1), ("10/m", 10, 60), (" 2000 / h", 2000, 3600)] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.count().get(), rate.period().as_secs()), (count, seconds), "{text}");
        }
        for bad in ["", "500", "/s", "0/s", "-1/s", "+5/s", "1.5/s", "5/d", "5/ms", "99999999999/s", "5/s/s"] {
            let error = bad.parse::<Rate>().unwrap_err();
            assert!(error.contains("such as 500/s"), "{error}");
        }
        assert_eq!("10/m".parse::<Rate>().unwrap().to_string(), "10/m");
    }
}
