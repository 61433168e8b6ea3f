//! Message group ids and deduplication ids: what SQS takes as it is, and a stable hash for everything else.

use std::{borrow::Cow, fmt::Write as _};

use sha2::{Digest as _, Sha256};

/// Characters of either kind of id at the most.
const MAX: usize = 128;
/// What a hash begins with. A text that begins so by itself is hashed too, so that no row can pass for another.
const HASH: &str = "sha256-";

/// The text itself where SQS takes it as an id: 1 to 128 characters, letters, digits and ASCII punctuation. Else
/// `sha256-` and the hash of its bytes in hex: the same in every attempt, and after a restart.
pub(crate) fn legal(text: &str) -> Cow<'_, str> {
    let fits = (1..=MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits && !text.starts_with(HASH) {
        return text.into();
    }
    let mut hashed = HASH.to_owned();
    for byte in Sha256::digest(text.as_bytes()) {
        // Writing to a string cannot fail.
        let _ = write!(hashed, "{byte:02x}");
    }
    hashed.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn legal_texts_stay_and_others_are_hashed() {
        let punctuation = r##"aZ9!"#$%&'()*+,-./:;<=>?@[\]^_`{|}~"##;
        let longest = "x".repeat(128);
        for text in ["k", "7f9c24e8-3b1f-4a4f-9d1f-0c2f6f0d6a11", punctuation, &longest] {
            assert_eq!(legal(text), text);
        }
        let longer = "x".repeat(129);
        let mut seen = std::collections::HashSet::new();
        for text in ["", " ", "two words", "é", "a\n", "a\u{7f}", "a\u{0}", &longer, "sha256-00"] {
            let hashed = legal(text);
            assert_eq!(hashed.len(), HASH.len() + 64, "{text:?}");
            assert_eq!(legal(text), hashed, "the same each time");
            assert!(seen.insert(hashed.into_owned()), "{text:?}");
        }
        // By `printf 'two words' | sha256sum`.
        assert_eq!(legal("two words"), "sha256-a03f1d611645eb53ad16c1af546ca0792dc884505bab57ede80f4dad6b911d3a");
    }
}
