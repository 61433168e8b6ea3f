//! What a broker deduplicates on, where one event has several deliveries to a sink.

use std::fmt::Write;

use bytestring::ByteString;
use sha2::{Digest, Sha256};
use walgate_sink::Target;

/// `<id>-<hash>`, where the hash is of the target: the same event to two targets is not a duplicate of itself.
///
/// The hash is the first 8 bytes, as 16 lower-case hexadecimal digits, of SHA-256 over every field of the target that is
/// set, in the order of the sink's fields: the length of its name and the name, the length of its value and the value,
/// each length as 8 bytes, most significant first. It never changes between versions: a repeat after an upgrade must
/// have the id that it had before. SHA-256, since values come from events: with a weaker hash two targets could be made
/// to share one, and a broker would then store one delivery and drop the other.
pub(super) fn dedup_id(id: &str, target: &Target) -> ByteString {
    let mut hash = Sha256::new();
    for (name, value) in target.iter() {
        for text in [name, value] {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        }
    }
    let mut text = String::with_capacity(id.len() + 17);
    text.push_str(id);
    text.push('-');
    for byte in hash.finalize().into_iter().take(8) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use walgate_sink::{Escape, TargetField};

    use super::*;

    const fn field(name: &'static str) -> TargetField {
        TargetField { name, required: false, ordering_key: false, escape: Escape::None }
    }
    const FIELDS: &[TargetField] = &[field("topic"), field("key")];

    fn id(topic: Option<&'static str>, key: Option<&'static str>) -> String {
        let values = [topic, key].map(|value| value.map(ByteString::from_static));
        dedup_id("e1", &Target::new(FIELDS, values)).to_string()
    }

    #[test]
    fn the_hash_is_the_same_in_every_version() {
        // printf '\0\0\0\0\0\0\0\5topic\0\0\0\0\0\0\0\6orders' | sha256sum
        assert_eq!(id(Some("orders"), None), "e1-e1a02aced85f8fc8");
    }

    #[test]
    fn every_field_counts_and_none_runs_into_another() {
        let ids =
            [id(None, None), id(Some("a"), None), id(None, Some("a")), id(Some("a"), Some("")), id(Some("ab"), None)];
        for (index, one) in ids.iter().enumerate() {
            assert!(!ids[index + 1..].contains(one), "{ids:?}");
        }
    }
}
