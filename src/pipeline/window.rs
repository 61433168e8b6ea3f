//! What may run ahead: bytes in memory, and WAL beyond the checkpoint.

use std::num::NonZeroU32;

use bytes::Bytes;
use bytestring::ByteString;
use walgate_sink::{Event, Headers};

/// Memory of each further delivery of an event: its target, its ids, its place in a queue.
const DELIVERY_OVERHEAD: u64 = 384;

/// Above this many live chunks an event is copied out of its chunk before it is queued: one slow event must not keep
/// a whole chunk alive.
pub const LIVE_CHUNKS: usize = 16;

/// What the byte window counts for an event whose row costs `bytes`: the row once, however many deliveries share it.
#[must_use]
pub fn cost(bytes: u64, deliveries: NonZeroU32) -> u64 {
    bytes.saturating_add(DELIVERY_OVERHEAD.saturating_mul(u64::from(deliveries.get() - 1)))
}

/// The same event on memory of its own.
#[must_use]
pub fn detached(event: &Event) -> Event {
    let mut copy = Event::new(own(&event.id), own(&event.event_type));
    copy.key = event.key.as_ref().map(own);
    copy.payload = event.payload.as_ref().map(|payload| Bytes::copy_from_slice(payload));
    copy.format = event.format;
    copy.headers = event.headers.iter().map(|(name, value)| (own(name), own(value))).collect::<Headers>();
    copy.position = event.position;
    copy.committed_at = event.committed_at;
    copy
}

fn own(text: &ByteString) -> ByteString {
    ByteString::from(text.to_string())
}

/// The same text on memory of its own.
#[must_use]
pub fn own_columns(columns: &[Option<ByteString>]) -> Vec<Option<ByteString>> {
    columns.iter().map(|column| column.as_ref().map(own)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_event_keeps_nothing_of_its_chunk() {
        let chunk = bytes::BytesMut::from(&b"id-1order.createdk{}"[..]).freeze();
        let text = |range: std::ops::Range<usize>| ByteString::try_from(chunk.slice(range)).unwrap();
        let mut event = Event::new(text(0..4), text(4..17));
        event.key = Some(text(17..18));
        event.payload = Some(chunk.slice(18..20));
        let copy = detached(&event);
        assert_eq!((copy.id.as_bytes(), copy.body()), (event.id.as_bytes(), event.body()));
        drop(event);
        assert!(chunk.is_unique(), "nothing else holds the chunk");
    }
}
