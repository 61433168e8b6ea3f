//! Which messages travel together.

use std::collections::HashSet;

use crate::message::Message;

/// Messages of one request at the most.
pub(crate) const MAX_ENTRIES: usize = 10;
/// Bytes of one request's messages at the most, attributes included: 1 MiB.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// Cuts messages of one queue into packs, in order: at most ten and 1 MiB in each, and no two of a group.
///
/// `later` takes what has a group that stands in one of the packs already: it must not be under way with it.
pub(crate) fn packs(messages: Vec<Message>, ordered: bool) -> (Vec<Vec<Message>>, Vec<Message>) {
    let (mut packs, mut later) = (Vec::<Vec<Message>>::new(), Vec::new());
    let mut groups = HashSet::new();
    let mut bytes = 0;
    for message in messages {
        if ordered && let Some(group) = &message.group {
            // Whatever comes behind one that waits has another group, or waits as well.
            if groups.contains(group) {
                later.push(message);
                continue;
            }
            groups.insert(group.clone());
        }
        let size = message.size();
        match packs.last_mut() {
            Some(pack) if pack.len() < MAX_ENTRIES && bytes + size <= MAX_BYTES => {
                pack.push(message);
                bytes += size;
            }
            _ => {
                packs.push(vec![message]);
                bytes = size;
            }
        }
    }
    (packs, later)
}

#[cfg(test)]
mod tests {
    use walgate_sink::{Envelope, PayloadFormat};

    use super::*;
    use crate::message::tests::delivery;

    fn message(index: usize, group: Option<&str>, body: usize) -> Message {
        let mut message =
            Message::build(index, &delivery("q", None, Some(b"1"), PayloadFormat::Json), "q", &[], &Envelope::Raw)
                .unwrap();
        message.group = group.map(str::to_owned);
        message.body = "x".repeat(body);
        message
    }

    fn indexes(packs: &[Vec<Message>]) -> Vec<Vec<usize>> {
        packs.iter().map(|pack| pack.iter().map(|message| message.index).collect()).collect()
    }

    #[test]
    fn ten_and_a_mebibyte_in_each() {
        let (many, later) = packs((0..23).map(|index| message(index, None, 1)).collect(), false);
        assert_eq!(many.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10, 3]);
        assert!(later.is_empty());
        let attributes = message(0, None, 0).size();
        let half = MAX_BYTES / 2 - attributes;
        let (exact, _) = packs([half, half, 1].iter().map(|size| message(0, None, *size)).collect(), false);
        assert_eq!(exact.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        let (over, _) = packs([half, half + 1].iter().map(|size| message(0, None, *size)).collect(), false);
        assert_eq!(over.len(), 2);
    }

    #[test]
    fn a_group_is_under_way_once() {
        let groups = ["a", "b", "a", "c", "a"];
        let messages = groups.iter().enumerate().map(|(index, group)| message(index, Some(group), 1));
        let (first, later) = packs(messages.clone().collect(), true);
        assert_eq!(indexes(&first), [vec![0, 1, 3]]);
        let (second, later) = packs(later, true);
        assert_eq!(indexes(&second), [vec![2]]);
        assert_eq!(indexes(&packs(later, true).0), [vec![4]]);
        assert_eq!(indexes(&packs(messages.collect(), false).0), [vec![0, 1, 2, 3, 4]]);
    }
}
