//! Texts that the table can hold, whatever is in them and whatever the database's encoding is.

use std::{borrow::Cow, fmt::Write as _};

use walgate_sink::Timestamp;

/// A text that came from elsewhere: without NUL, which no text of PostgreSQL can hold, and in ASCII where the database
/// is not in UTF8 and may lack its characters.
pub(super) fn fit(text: &str, utf8: bool) -> Cow<'_, str> {
    if !text.contains('\0') && (utf8 || text.is_ascii()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars().filter(|c| *c != '\0') {
        if utf8 || c.is_ascii() { out.push(c) } else { out.extend(c.escape_unicode()) }
    }
    Cow::Owned(out)
}

/// Appends a text as a JSON string, in ASCII where the database is not in UTF8. The type `json` keeps escapes as they are,
/// so every text goes both ways.
pub(super) fn push_json(out: &mut String, text: &str, utf8: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() || !(utf8 || c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // A string takes everything.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Reads what [`Timestamp`] writes: `2026-03-01T12:00:00.000000Z`.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (rest, day) = date.rsplit_once('-')?;
    let (year, month) = rest.rsplit_once('-')?;
    let (hours, rest) = time.split_once(':')?;
    let (minutes, rest) = rest.split_once(':')?;
    let (seconds, micros) = rest.split_once('.')?;
    let number = |digits: &str, most: i64| digits.parse::<i64>().ok().filter(|number| (0..=most).contains(number));
    let year = year.parse::<i64>().ok().filter(|year| year.abs() < 1_000_000)?;
    let days = days(year, number(month, 12)?, number(day, 31)?);
    let seconds = ((days * 24 + number(hours, 23)?) * 60 + number(minutes, 59)?) * 60 + number(seconds, 59)?;
    let micros = if micros.len() == 6 { number(micros, 999_999)? } else { return None };
    i64::try_from(i128::from(seconds) * 1_000_000 + i128::from(micros)).ok().map(Timestamp)
}

/// Days from 1970-01-01 to a date of the proleptic Gregorian calendar: Howard Hinnant's `days_from_civil`.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = (month + 9) % 12;
    let of_year = (153 * month_from_march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_changed_only_where_they_must_be() {
        assert!(matches!(fit("größer \u{1F600}\n", true), Cow::Borrowed(_)));
        assert!(matches!(fit("plain", false), Cow::Borrowed(_)));
        assert_eq!(fit("a\0b\u{e9}\0", true), "ab\u{e9}");
        assert_eq!(fit("a\0b\u{e9}\u{1F600}", false), "ab\\u{e9}\\u{1f600}");
    }

    #[test]
    fn json_strings_go_both_ways() {
        for text in ["", "a\"b\\c/", "\0\u{1}\n\t\u{7f}\u{85}", "größer \u{1F600}\u{2028}", "\\u0041"] {
            for utf8 in [true, false] {
                let mut json = String::new();
                push_json(&mut json, text, utf8);
                assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text, "{json}");
                assert!(utf8 || json.is_ascii(), "{json}");
            }
        }
    }

    #[test]
    fn timestamps_are_read_as_they_are_written() {
        let tenth_of_millennium = 315_360_000_000_000;
        let mut micros = -62_135_596_800_000_001;
        while micros < 400_000_000_000_000_000 {
            assert_eq!(timestamp(&Timestamp(micros).to_string()), Some(Timestamp(micros)));
            micros += tenth_of_millennium / 7 + 86_399_999_999;
        }
        for extreme in [i64::MIN, i64::MAX, 0, -1, 951_782_400_000_000] {
            assert_eq!(timestamp(&Timestamp(extreme).to_string()), Some(Timestamp(extreme)));
        }
        for bad in
            ["", "Z", "2026-03-01", "2026-03-01T12:00:00Z", "2026-03-01T12:00:00.000Z", "x-03-01T12:00:00.000000Z"]
        {
            assert_eq!(timestamp(bad), None, "{bad}");
        }
    }
}
