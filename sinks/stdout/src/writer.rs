//! The thread that writes.
//!
//! A write to a pipe blocks for as long as the reader likes, and cannot be called back once it has begun. So it runs
//! on a thread of its own, and the sink asks that thread what became of it.

use std::{
    io::{self, Write},
    thread,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

/// One write: whole lines, and where to tell the result.
struct Job {
    lines: Vec<u8>,
    done: oneshot::Sender<io::Result<()>>,
}

/// The way to the writing thread. The thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn spawn(output: impl Write + Send + 'static) -> io::Result<Self> {
        // At most one write is asked for at a time: the sink waits for its result first.
        let (jobs, mut queue) = mpsc::channel::<Job>(1);
        let mut output = Output { inner: output, within_line: false };
        thread::Builder::new().name("stdout".into()).spawn(move || {
            while let Some(job) = queue.blocking_recv() {
                // Nobody may wait for the result any more; the lines are written all the same.
                let _ = job.done.send(output.write_lines(&job.lines));
            }
        })?;
        Ok(Writer { jobs })
    }

    /// Starts a write. The receiver gives its result; it fails only if the thread is gone.
    pub(crate) fn start(&self, lines: Vec<u8>) -> oneshot::Receiver<io::Result<()>> {
        let (done, result) = oneshot::channel();
        // A job that does not fit drops `done`, which the receiver reports.
        let _ = self.jobs.try_send(Job { lines, done });
        result
    }
}

/// Pause before a write is tried again that a non-blocking output refused: a terminal can be set so by a neighbour.
const WOULD_BLOCK_PAUSE: Duration = Duration::from_millis(10);

struct Output<W> {
    inner: W,
    /// An earlier write failed in the middle of a line.
    within_line: bool,
}

impl<W: Write> Output<W> {
    fn write_lines(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.within_line {
            self.write(b"\n")?;
        }
        self.write(lines)?;
        self.inner.flush()
    }

    /// `write_all` that keeps track of where in a line the output stands.
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.inner.write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    let (done, rest) = bytes.split_at(written.min(bytes.len()));
                    self.within_line = done.last() != Some(&b'\n');
                    bytes = rest;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(WOULD_BLOCK_PAUSE),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then fails once, then takes everything.
    struct Full {
        taken: Vec<u8>,
        room: usize,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let count = bytes.len().min(self.room);
            if count == 0 {
                self.room = usize::MAX;
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= count;
            self.taken.extend_from_slice(&bytes[..count]);
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_was_cut_is_ended_before_the_next() {
        let mut output = Output { inner: Full { taken: Vec::new(), room: 6 }, within_line: false };
        assert_eq!(output.write_lines(b"one\ntwo\n").unwrap_err().kind(), io::ErrorKind::StorageFull);
        output.write_lines(b"one\ntwo\n").unwrap();
        output.write_lines(b"three\n").unwrap();
        assert_eq!(output.inner.taken, b"one\ntw\none\ntwo\nthree\n");

        let mut output = Output { inner: Full { taken: Vec::new(), room: 4 }, within_line: false };
        assert!(output.write_lines(b"one\ntwo\n").is_err());
        output.write_lines(b"two\n").unwrap();
        assert_eq!(output.inner.taken, b"one\ntwo\n", "nothing to end after a whole line");
    }
}
