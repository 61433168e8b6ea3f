//! Parts of a whole as the configuration writes them, with the sign in the value.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A whole number of hundredths: `1%` to `100%`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    /// So many hundredths, brought into the bounds.
    #[must_use]
    pub const fn new(hundredths: u8) -> Self {
        match hundredths {
            0 => Percent(1),
            1..=100 => Percent(hundredths),
            _ => Percent(100),
        }
    }

    /// How many hundredths: 1 to 100.
    #[must_use]
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is not a percentage: write a whole number from 1% to 100%, such as 75%");
        let number = text.trim().strip_suffix('%').ok_or_else(error)?.trim();
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(error());
        }
        match number.parse() {
            Ok(hundredths @ 1..=100) => Ok(Percent(hundredths)),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Percent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::text_form::deserialize(deserializer, "a percentage such as 75%")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_carry_their_sign() {
        for (text, hundredths) in [("1%", 1), (" 75 %", 75), ("100%", 100), ("007%", 7)] {
            assert_eq!(text.parse(), Ok(Percent(hundredths)), "{text}");
        }
        for bad in ["", "%", "75", "0%", "101%", "-1%", "+5%", "7.5%", "75 percent", "99999999999%", "5%%"] {
            let error = bad.parse::<Percent>().unwrap_err();
            assert!(error.contains("from 1% to 100%"), "{error}");
        }
        assert_eq!(Percent::new(75).to_string(), "75%");
        assert_eq!([0, 1, 100, 255].map(|n| Percent::new(n).get()), [1, 1, 100, 100]);
    }
}
