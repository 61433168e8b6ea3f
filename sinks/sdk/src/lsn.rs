//! Positions in PostgreSQL's write-ahead log.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A log sequence number: a byte position in the write-ahead log, written `X/Y` in hexadecimal.
///
/// An LSN orders *commits*. It does not identify a row: several rows of one `COPY` share one LSN, and rows of
/// interleaved transactions carry LSNs that are not in delivery order. Use [`Position`] for events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// `0/0`, which PostgreSQL uses for "none": no real WAL record starts there.
    pub const ZERO: Lsn = Lsn(0);

    /// Bytes of WAL from `earlier` up to this position; 0 where `earlier` is the later one.
    #[must_use]
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text was not two hexadecimal numbers of at most 32 bits with a slash between them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an LSN: expected two hexadecimal numbers with a slash between them, such as 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseLsnError(text.chars().take(40).collect());
        let (high, low) = text.split_once('/').ok_or_else(error)?;
        let part = |digits: &str| -> Result<u64, ParseLsnError> {
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(error());
            }
            u32::from_str_radix(digits, 16).map(u64::from).map_err(|_| error())
        };
        Ok(Lsn((part(high)? << 32) | part(low)?))
    }
}

impl Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The place of an event in the total order of events: the order in which transactions committed, and the order of
/// the rows within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Start of the transaction's commit record: `final_lsn` of the Begin message, known before its rows.
    pub commit_lsn: Lsn,
    /// Number of the row message within its transaction, from 0, counting the rows of every published table.
    pub ordinal: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.commit_lsn, self.ordinal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_goes_both_ways() {
        for (text, value) in [("0/0", 0), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)] {
            assert_eq!(text.parse(), Ok(Lsn(value)));
            assert_eq!(Lsn(value).to_string(), text);
        }
        for bad in ["", "/", "1", "1/", "/1", "1/2/3", "+1/2", "100000000/0", "x/y", "1 /2"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }
}
