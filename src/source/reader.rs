//! The reader thread: socket to chunks.
//!
//! PostgreSQL's walsender makes one `send` for every row, Begin and Commit, and a reader that waits on the socket is
//! woken for each of them, at the walsender's cost too. So while the stream is busy the reader sleeps about a
//! millisecond before it reads again; while it is not, it waits on the socket, and an event is seen at once.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::BytesMut;
use postgres_protocol::message::{backend::Message, frontend};
use tokio::sync::{mpsc, oneshot};

use super::{
    error::SourceError,
    feedback::Progress,
    framer::{FrameError, Framer, Segment},
    nap::Nap,
    wire::Chunk,
};
use crate::postgres::{LinkReader, ServerError};

/// What the owner of the stream wants of the reader.
#[derive(Debug, Default)]
pub(super) struct Wish(AtomicU8);

impl Wish {
    const FINISH: u8 = 1;
    const ABORT: u8 = 2;

    /// Read on to the end, and throw it away.
    pub(super) fn finish(&self) {
        self.0.fetch_max(Self::FINISH, Ordering::AcqRel);
    }

    /// Stop.
    pub(super) fn abort(&self) {
        self.0.store(Self::ABORT, Ordering::Release);
    }

    fn is_finish(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::FINISH
    }

    fn is_abort(&self) -> bool {
        self.0.load(Ordering::Acquire) == Self::ABORT
    }
}

/// Everything that the reader thread owns.
pub(super) struct Reader {
    pub link: LinkReader,
    pub framer: Framer,
    pub max_frame: usize,
    pub nap: Nap,
    /// Nothing for so long: the server is asked for a sign of life; nothing for twice as long: it is dead.
    pub silence: Option<Duration>,
    pub progress: Arc<Progress>,
    pub wish: Arc<Wish>,
    pub chunks: mpsc::Sender<Result<Chunk, SourceError>>,
    pub slot: String,
    pub publication: String,
}

/// The server's last word.
#[derive(Debug)]
pub(super) enum End {
    /// It answered our CopyDone.
    Complete,
    /// The connection ended first.
    Closed,
}

impl Reader {
    /// Starts the thread; what it sends through `done` is when and how it ended.
    pub(super) fn spawn(self, done: oneshot::Sender<End>) -> io::Result<()> {
        std::thread::Builder::new().name("walgate-reader".into()).spawn(move || self.run(done))?;
        Ok(())
    }

    fn run(mut self, done: oneshot::Sender<End>) {
        let result = self.read_to_the_end();
        self.progress.stop();
        if result.is_ok() {
            let mut message = BytesMut::new();
            frontend::terminate(&mut message);
            // The server has said its last word: it does not matter whether it hears ours.
            let _ = self.link.link().write_all(&message);
        }
        self.link.link().shutdown();
        let end = if result.is_ok() { End::Complete } else { End::Closed };
        // Nobody waits for it unless the stream is being shut down.
        let _ = done.send(end);
        if let Err(error) = result
            && !self.wish.is_finish()
        {
            let error = if self.wish.is_abort() { SourceError::Aborted } else { error };
            let _ = self.chunks.blocking_send(Err(error));
        }
    }

    /// `Ok` only where we ended the stream and the server has answered.
    fn read_to_the_end(&mut self) -> Result<(), SourceError> {
        let (mut last_read, mut bytes, mut more) = (Instant::now(), 0, false);
        loop {
            let mut messages = 0;
            loop {
                match self.framer.next() {
                    Ok(None) => break,
                    Ok(Some(Segment::Data { chunk, seen })) => {
                        messages += seen.messages;
                        self.progress.note(seen.data, seen.wal_end);
                        if seen.reply_requested {
                            self.progress.reply_now();
                        }
                        self.hand_over(chunk)?;
                    }
                    Ok(Some(Segment::Control { tag, message })) => {
                        if self.control(tag, message)? {
                            return Ok(());
                        }
                    }
                    Err(FrameError::Wire(error)) => return Err(error.into()),
                    Err(FrameError::Oversized { length }) => {
                        return Err(SourceError::Oversized { length, limit: self.max_frame });
                    }
                }
            }
            self.nap.count(last_read, messages, bytes);
            let rest = self.nap.rest(Instant::now(), last_read);
            // Where the last read filled all the room there is more: do not sleep on it.
            if !rest.is_zero() && !more && !self.wish.is_finish() {
                std::thread::sleep(rest);
            }
            (bytes, more) = self.read()?;
            self.framer.advance(bytes);
            last_read = Instant::now();
        }
    }

    fn hand_over(&self, chunk: Chunk) -> Result<(), SourceError> {
        if self.wish.is_finish() || self.chunks.blocking_send(Ok(chunk)).is_ok() || self.wish.is_finish() {
            return Ok(());
        }
        // The receiver is gone.
        Err(SourceError::Aborted)
    }

    /// Reads at least a byte; whether the space was filled to the last.
    fn read(&mut self) -> Result<(usize, bool), SourceError> {
        let since = Instant::now();
        let mut asked = false;
        loop {
            let space = self.framer.space();
            let room = space.len();
            match self.link.read(space) {
                Ok(0) => return Err(SourceError::Lost { reason: "the server closed it".into() }),
                Ok(count) => return Ok((count, count == room)),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    let Some(silence) = self.silence else { continue };
                    let quiet = since.elapsed();
                    if quiet >= silence * 2 {
                        return Err(SourceError::Silent { after: quiet });
                    }
                    if quiet >= silence && !asked {
                        asked = true;
                        self.progress.probe();
                    }
                }
                Err(error) => return Err(SourceError::Lost { reason: error.to_string() }),
            }
        }
    }

    /// A message that is not CopyData; whether it is the end that we asked for.
    fn control(&self, tag: u8, mut message: BytesMut) -> Result<bool, SourceError> {
        match tag {
            // What follows our CopyDone. Without one: the server shuts down.
            b'c' if self.wish.is_finish() => Ok(false),
            b'C' | b'Z' if self.wish.is_finish() => Ok(true),
            b'c' | b'C' | b'Z' => Err(SourceError::Ended),
            b'E' => {
                let error = match Message::parse(&mut message) {
                    Ok(Some(Message::ErrorResponse(body))) => ServerError::from_fields(body.fields()),
                    _ => ServerError::default(),
                };
                Err(SourceError::in_stream(error, &self.slot, &self.publication))
            }
            _ => Ok(false),
        }
    }
}
