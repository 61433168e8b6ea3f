//! From bytes to chunks: blocks that the socket is read into, and the whole messages that are cut off them.
//!
//! A block is allocated and zeroed once. What was read is cut off at a message's end and handed over without a copy, so
//! that a chunk, and every slice of it, holds its block in memory. Blocks, not chunks, are counted for that reason.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::{Bytes, BytesMut};
use walgate_sink::Lsn;

use super::wire::{self, Chunk, HEADER, Message, WireError};

/// Size of a block, and with it the most that is read at once. 64 KiB halves the gain of the nap; 4 MiB adds nothing.
pub(super) const BLOCK: usize = 512 << 10;
/// With less room than this a new block is begun.
const LOW: usize = 64 << 10;
/// The longest message that may be in a stream beside CopyData: errors, notices, parameters.
const CONTROL_LIMIT: usize = 1 << 20;

/// How much memory of blocks is held, by chunks in use and by the reader itself.
#[derive(Debug, Default)]
pub(super) struct LiveBlocks {
    blocks: AtomicUsize,
    bytes: AtomicUsize,
}

impl LiveBlocks {
    pub(super) fn blocks(&self) -> usize {
        self.blocks.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Counts one block for as long as somebody holds a part of it.
#[derive(Debug)]
struct Counted {
    live: Arc<LiveBlocks>,
    size: usize,
}

impl Counted {
    fn new(live: &Arc<LiveBlocks>, size: usize) -> Arc<Self> {
        live.blocks.fetch_add(1, Ordering::Relaxed);
        live.bytes.fetch_add(size, Ordering::Relaxed);
        Arc::new(Counted { live: Arc::clone(live), size })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.live.blocks.fetch_sub(1, Ordering::Relaxed);
        self.live.bytes.fetch_sub(self.size, Ordering::Relaxed);
    }
}

/// A part of a block, which keeps the block counted.
struct Part {
    bytes: Bytes,
    _counted: Arc<Counted>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// What stands next in the stream.
#[derive(Debug)]
pub(super) enum Segment {
    /// CopyData messages, with what the reader needs to know of them.
    Data { chunk: Chunk, seen: Seen },
    /// A whole message of another kind, header included.
    Control { tag: u8, message: BytesMut },
}

/// What is in a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Messages.
    pub messages: usize,
    /// Highest position of data.
    pub data: Lsn,
    /// Highest position at all.
    pub wal_end: Lsn,
    /// A keepalive asked for a status.
    pub reply_requested: bool,
}

/// A frame that cannot be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FrameError {
    Wire(WireError),
    /// Longer than `max_frame`.
    Oversized {
        length: usize,
    },
}

/// Reads go into [`Framer::space`]; after [`Framer::advance`], [`Framer::next`] gives what is complete.
#[derive(Debug)]
pub(super) struct Framer {
    block: BytesMut,
    counted: Arc<Counted>,
    /// Bytes of the block that were read.
    filled: usize,
    /// Bytes of complete CopyData messages at its front, and what is in them.
    complete: usize,
    seen: Seen,
    max_frame: usize,
    live: Arc<LiveBlocks>,
}

impl Framer {
    /// `max_frame` is the longest message that is taken, in bytes. `first` was read already.
    pub(super) fn new(max_frame: usize, live: Arc<LiveBlocks>, first: &[u8]) -> Self {
        let size = BLOCK.max(first.len().saturating_mul(2));
        let mut block = BytesMut::zeroed(size);
        block[..first.len()].copy_from_slice(first);
        let counted = Counted::new(&live, size);
        Framer { block, counted, filled: first.len(), complete: 0, seen: Seen::default(), max_frame, live }
    }

    /// Where the next bytes go; never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.block.len() - self.filled < LOW {
            self.renew();
        }
        &mut self.block[self.filled..]
    }

    /// So many bytes were put into the space.
    pub(super) fn advance(&mut self, read: usize) {
        self.filled = self.filled.saturating_add(read).min(self.block.len());
    }

    /// The next segment that is complete; `None` until more was read.
    pub(super) fn next(&mut self) -> Result<Option<Segment>, FrameError> {
        loop {
            let rest = &self.block[self.complete..self.filled];
            let message = match wire::peek(rest) {
                Ok(message) => message,
                Err(error) => return self.data_or(FrameError::Wire(error)),
            };
            match message {
                Some(Message { tag: b'd', length }) => {
                    if length > self.max_frame {
                        return self.data_or(FrameError::Oversized { length });
                    }
                    let Some(message) = rest.get(..length) else { return Ok(self.data()) };
                    let glance = wire::glance(&message[HEADER..]);
                    self.seen.messages += 1;
                    self.seen.data = self.seen.data.max(glance.data);
                    self.seen.wal_end = self.seen.wal_end.max(glance.wal_end);
                    self.seen.reply_requested |= glance.reply_requested;
                    self.complete += length;
                }
                Some(Message { tag, length }) => {
                    if !is_expected(tag) {
                        return self.data_or(FrameError::Wire(WireError::Tag { tag }));
                    }
                    if length > CONTROL_LIMIT {
                        return self.data_or(FrameError::Oversized { length });
                    }
                    if self.complete > 0 || rest.len() < length {
                        return Ok(self.data());
                    }
                    let message = BytesMut::from(&self.block[..length]);
                    let _ = self.block.split_to(length);
                    self.filled -= length;
                    return Ok(Some(Segment::Control { tag, message }));
                }
                None => return Ok(self.data()),
            }
        }
    }

    /// What came whole before a bad message is still handed over; the error comes with the next call.
    fn data_or(&mut self, error: FrameError) -> Result<Option<Segment>, FrameError> {
        self.data().map(Some).ok_or(error)
    }

    fn data(&mut self) -> Option<Segment> {
        if self.complete == 0 {
            return None;
        }
        let bytes = self.block.split_to(self.complete).freeze();
        self.filled -= self.complete;
        self.complete = 0;
        let chunk = Chunk(Bytes::from_owner(Part { bytes, _counted: Arc::clone(&self.counted) }));
        Some(Segment::Data { chunk, seen: std::mem::take(&mut self.seen) })
    }

    /// Begins a new block with what is left of the old one. A message longer than a block gets room by doubling as it
    /// arrives: its announced length allocates nothing.
    fn renew(&mut self) {
        let size = BLOCK.max(self.filled.saturating_mul(2));
        let mut block = BytesMut::zeroed(size);
        block[..self.filled].copy_from_slice(&self.block[..self.filled]);
        self.counted = Counted::new(&self.live, size);
        self.block = block;
    }
}

/// ErrorResponse, NoticeResponse, ParameterStatus, CopyDone, CommandComplete, ReadyForQuery.
fn is_expected(tag: u8) -> bool {
    matches!(tag, b'E' | b'N' | b'S' | b'c' | b'C' | b'Z')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
        let mut message = vec![tag];
        message.extend((payload.len() as u32 + 4).to_be_bytes());
        message.extend(payload);
        message
    }

    fn feed(framer: &mut Framer, bytes: &[u8]) {
        let space = framer.space();
        space[..bytes.len()].copy_from_slice(bytes);
        framer.advance(bytes.len());
    }

    /// Everything that comes out, messages glued together, and what the reader saw.
    fn run(pieces: &[&[u8]], max_frame: usize) -> (Vec<u8>, Seen, Option<FrameError>) {
        let live = Arc::new(LiveBlocks::default());
        let mut framer = Framer::new(max_frame, Arc::clone(&live), &[]);
        let (mut out, mut all, mut failed) = (Vec::new(), Seen::default(), None);
        'pieces: for piece in pieces {
            for part in piece.chunks(LOW) {
                feed(&mut framer, part);
                loop {
                    match framer.next() {
                        Ok(Some(Segment::Data { chunk, seen })) => {
                            assert!(chunk.frames().count() > 0);
                            out.extend_from_slice(&chunk.0);
                            all.messages += seen.messages;
                            all.data = all.data.max(seen.data);
                            all.wal_end = all.wal_end.max(seen.wal_end);
                            all.reply_requested |= seen.reply_requested;
                        }
                        Ok(Some(Segment::Control { message, .. })) => out.extend_from_slice(&message),
                        Ok(None) => break,
                        Err(error) => {
                            failed = Some(error);
                            break 'pieces;
                        }
                    }
                }
            }
        }
        drop(framer);
        assert_eq!((live.blocks(), live.bytes()), (0, 0));
        (out, all, failed)
    }

    #[test]
    fn a_block_is_counted_while_any_part_of_it_is_held() {
        let live = Arc::new(LiveBlocks::default());
        let mut framer = Framer::new(1 << 20, Arc::clone(&live), &[]);
        assert_eq!((live.blocks(), live.bytes()), (1, BLOCK));
        let mut bodies = Vec::new();
        for _ in 0..2 {
            feed(&mut framer, &message(b'd', &[b'w'; 60]));
            let Ok(Some(Segment::Data { chunk, .. })) = framer.next() else { panic!("no chunk") };
            let Some(Ok(wire::Frame::XLogData { body, .. })) = chunk.frames().next() else { panic!("no frame") };
            bodies.push(body);
        }
        assert_eq!(live.blocks(), 1, "two chunks of one block");
        drop(framer);
        assert_eq!(live.blocks(), 1);
        bodies.pop();
        assert_eq!(live.blocks(), 1);
        bodies.pop();
        assert_eq!((live.blocks(), live.bytes()), (0, 0));
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let live = Arc::new(LiveBlocks::default());
        let mut framer = Framer::new(1 << 30, Arc::clone(&live), &[]);
        feed(&mut framer, b"d\x3F\xFF\xFF\xFF");
        assert!(matches!(framer.next(), Ok(None)));
        framer.space();
        assert_eq!(live.bytes(), BLOCK);
    }

    #[test]
    fn a_message_longer_than_a_block_comes_whole() {
        let long = message(b'd', &vec![b'w'; 3 * BLOCK + 17]);
        let bytes = [message(b'd', &[b'w'; 30]), long, message(b'd', &[b'k'; 18])].concat();
        let (out, seen, failed) = run(&[&bytes], 4 * BLOCK);
        assert!(out == bytes && failed.is_none());
        assert_eq!(seen.messages, 3);
        let (out, _, failed) = run(&[&bytes], 3 * BLOCK);
        assert_eq!(out.len(), 35, "what came before is handed over");
        assert_eq!(failed, Some(FrameError::Oversized { length: 3 * BLOCK + 22 }));
    }

    #[test]
    fn what_is_no_message_of_a_stream_is_refused_after_what_came_before() {
        let good = message(b'd', &[b'w'; 30]);
        for (bad, expected) in [
            (message(b'D', b"row"), FrameError::Wire(WireError::Tag { tag: b'D' })),
            (b"d\0\0\0\x01".to_vec(), FrameError::Wire(WireError::Announced { tag: b'd', length: 1 })),
            (b"E\x3F\xFF\xFF\xFF".to_vec(), FrameError::Oversized { length: 1 << 30 }),
        ] {
            let (out, _, failed) = run(&[&[good.as_slice(), &bad].concat()], 1 << 20);
            assert_eq!((out.len(), failed), (good.len(), Some(expected)));
        }
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let one = (0u8..10, prop::collection::vec(any::<u8>(), 0..300), any::<u64>(), any::<bool>()).prop_map(
            |(kind, body, lsn, reply)| match kind {
                0 => message(b'N', &body),
                1 => message(b'S', &body),
                2 => {
                    let mut payload = vec![b'k'];
                    payload.extend(lsn.to_be_bytes());
                    payload.extend([0; 8]);
                    payload.push(reply.into());
                    message(b'd', &payload)
                }
                _ => {
                    let mut payload = vec![b'w'];
                    payload.extend(lsn.to_be_bytes());
                    payload.extend([0; 16]);
                    payload.extend(&body);
                    message(b'd', &payload)
                }
            },
        );
        prop::collection::vec(one, 0..30).prop_map(|messages| messages.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_split_gives_the_same_frames(bytes in stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20)) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let whole = run(&[&bytes], 1 << 20);
            prop_assert_eq!(&run(&pieces, 1 << 20), &whole);
            prop_assert_eq!((&whole.0, whole.2), (&bytes, None));
        }

        #[test]
        fn garbage_never_panics(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..10)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let _ = run(&pieces, 1000);
        }
    }
}
