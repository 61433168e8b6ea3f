//! A position in the write-ahead log, as PostgreSQL writes it.

use std::fmt;
use std::str::FromStr;

/// `X/Y`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |part: &str| u64::from_str_radix(part, 16).map_err(|error| format!("{text:?}: {error}"));
        let (high, low) = text.split_once('/').ok_or_else(|| format!("{text:?} is not an LSN"))?;
        Ok(Lsn(parse(high)? << 32 | parse(low)?))
    }
}
