//! A replication stream as its owner sees it: chunks out, feedback in, and two ways to end it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};
use walgate_sink::Lsn;

use super::{
    error::SourceError,
    feedback::{self, Feedback, Progress},
    framer::{Framer, LiveBlocks},
    handshake::{self, Started},
    nap::Nap,
    reader::{End, Reader, Wish},
    wire::Chunk,
};
use crate::postgres::{ConnectSettings, Link};

/// Chunks that wait between the reader and the intake.
const WAITING: usize = 4;
/// A write of a few bytes that waits so long has nobody to go to.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// What to stream, and how.
#[derive(Clone, Debug)]
pub struct StreamOptions {
    /// The replication slot; the stream begins where it stands.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The longest sleep before a read while the stream is busy; zero for none.
    pub nap: Duration,
    /// The longest message that is taken, in bytes.
    pub max_frame: usize,
    /// `wal_sender_timeout` of this session, unless the connection settings' own options set it; `None` for what the
    /// server has.
    pub wal_sender_timeout: Option<Duration>,
}

impl StreamOptions {
    /// A nap of 1 ms, messages up to 128 MiB, and the server's own `wal_sender_timeout`.
    #[must_use]
    pub fn new(slot: impl Into<String>, publication: impl Into<String>) -> Self {
        StreamOptions {
            slot: slot.into(),
            publication: publication.into(),
            nap: Duration::from_millis(1),
            max_frame: 128 << 20,
            wal_sender_timeout: None,
        }
    }
}

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's identifier: another one is another history.
    pub system_id: String,
    /// The timeline: it rises with each promotion.
    pub timeline: u32,
    /// Where the server has flushed its WAL to.
    pub xlogpos: Lsn,
    /// The database.
    pub dbname: Option<String>,
}

/// What the server says about itself on this connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerParameters {
    /// `server_version`, such as `15.8 (Debian 15.8-1)`.
    pub version: String,
    /// `server_encoding`
    pub encoding: String,
    /// `wal_sender_timeout` of this session; `None` where it is switched off.
    pub wal_sender_timeout: Option<Duration>,
    /// The server process that serves this connection: it is what holds the slot.
    pub pid: Option<u32>,
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// The server has taken the last status and said so.
    Complete,
    /// The connection ended before that: the last status may be lost, and events since the one before come again.
    Closed,
    /// The deadline passed before that, with the same consequence.
    DeadlinePassed,
}

/// A running stream. Dropping it closes the connection at once.
#[derive(Debug)]
pub struct ReplicationStream {
    /// Whole messages in stream order; at the end one error, which says why it ended. While nothing is taken from here
    /// nothing is read from the socket, beyond a few chunks: that is the backpressure.
    pub chunks: mpsc::Receiver<Result<Chunk, SourceError>>,
    /// The status writer.
    pub feedback: Feedback,
    identity: Identity,
    server: ServerParameters,
    live: Arc<LiveBlocks>,
    done: oneshot::Receiver<End>,
    closer: CloseOnDrop,
}

/// Closes a stream from anywhere.
#[derive(Clone, Debug)]
pub struct StreamCloser {
    link: Link,
    wish: Arc<Wish>,
    progress: Arc<Progress>,
}

impl StreamCloser {
    /// Closes the connection at once: whatever reads or writes it returns.
    pub fn abort(&self) {
        self.wish.abort();
        self.progress.stop();
        self.link.shutdown();
    }
}

/// Beside the stream's fields, not on the stream itself: its owner may take the fields apart.
#[derive(Debug)]
struct CloseOnDrop(StreamCloser);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl ReplicationStream {
    /// Connects, logs in, and starts the stream where the slot stands. `flush` is what may be confirmed: it is passed
    /// on as it is, but never falls on a connection.
    ///
    /// # Errors
    /// Why it could not be started, with what to do.
    pub async fn connect(
        settings: &ConnectSettings,
        options: StreamOptions,
        flush: watch::Receiver<Lsn>,
    ) -> Result<Self, SourceError> {
        let settings = settings.clone();
        let started = tokio::task::spawn_blocking(move || Self::connect_blocking(&settings, options, flush)).await;
        started.unwrap_or_else(|error| Err(SourceError::Thread { reason: error.to_string() }))
    }

    fn connect_blocking(
        settings: &ConnectSettings,
        options: StreamOptions,
        flush: watch::Receiver<Lsn>,
    ) -> Result<Self, SourceError> {
        let Started { reader, first, identity, server } = handshake::start(settings, &options)?;
        let link = reader.link().clone();
        // Only to look at the clock: an abort wakes the reader by itself.
        let tick = server.wal_sender_timeout.map(|timeout| (timeout / 8).clamp(MIN_TICK, MAX_TICK));
        link.set_timeouts(tick, Some(WRITE_TIMEOUT))
            .map_err(|error| SourceError::Lost { reason: error.to_string() })?;
        let (progress, wish) = (Arc::new(Progress::default()), Arc::new(Wish::default()));
        let live = Arc::new(LiveBlocks::default());
        let (sender, chunks) = mpsc::channel(WAITING);
        let (done_sender, done) = oneshot::channel();
        let closer =
            CloseOnDrop(StreamCloser { link: link.clone(), wish: Arc::clone(&wish), progress: Arc::clone(&progress) });
        let reader = Reader {
            link: reader,
            framer: Framer::new(options.max_frame, Arc::clone(&live), &first),
            max_frame: options.max_frame,
            nap: Nap::new(options.nap, Instant::now()),
            silence: server.wal_sender_timeout,
            progress: Arc::clone(&progress),
            wish,
            chunks: sender,
            slot: options.slot,
            publication: options.publication,
        };
        let no_thread = |error: std::io::Error| SourceError::Thread { reason: error.to_string() };
        feedback::spawn(link, Arc::clone(&progress), flush, server.wal_sender_timeout).map_err(no_thread)?;
        reader.spawn(done_sender).map_err(no_thread)?;
        Ok(ReplicationStream { chunks, feedback: Feedback(progress), identity, server, live, done, closer })
    }

    /// What IDENTIFY_SYSTEM said.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the server said about itself.
    #[must_use]
    pub fn server(&self) -> &ServerParameters {
        &self.server
    }

    /// Blocks of 512 KiB (or of one larger message) that are held in memory by chunks and their slices, and the one
    /// that is being read into. Counted by block, however many chunks were cut off it.
    #[must_use]
    pub fn live_chunks(&self) -> usize {
        self.live.blocks()
    }

    /// The bytes of those blocks.
    #[must_use]
    pub fn live_bytes(&self) -> usize {
        self.live.bytes()
    }

    /// Closes the connection at once. What was confirmed since the last status is not told to the server.
    pub fn abort(&self) {
        self.closer.0.abort();
    }

    /// Something that closes the connection from elsewhere, as when the other connection was cut.
    #[must_use]
    pub fn closer(&self) -> StreamCloser {
        self.closer.0.clone()
    }

    /// Ends the stream so that the last status arrives: status, CopyDone, then everything that still comes is read and
    /// thrown away until the server confirms the end. A close with unread data would lose the status.
    pub async fn shutdown(mut self, deadline: Instant) -> Shutdown {
        self.closer.0.wish.finish();
        // A reader that waits for room gets an error now, and goes on to discard.
        self.chunks.close();
        while self.chunks.try_recv().is_ok() {}
        self.feedback.0.finish();
        match tokio::time::timeout_at(deadline.into(), &mut self.done).await {
            Ok(Ok(End::Complete)) => Shutdown::Complete,
            Ok(_) => Shutdown::Closed,
            Err(_) => Shutdown::DeadlinePassed,
        }
    }
}

const MIN_TICK: Duration = Duration::from_millis(20);
const MAX_TICK: Duration = Duration::from_secs(5);

#[cfg(test)]
mod script;
#[cfg(test)]
mod tests;
