//! The sink itself.

use std::{
    collections::HashSet,
    io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Mutex, oneshot},
    time::{Instant, timeout_at},
};
use walgate_sink::{
    Batch, ByteString, Capabilities, DeliveryReport, Failure, FailureKind, Sink, SinkContext, SinkError, SinkFactory,
    append_document,
};

use crate::{StdoutConfig, writer::Writer};

/// Makes [`StdoutSink`]s.
#[derive(Debug)]
pub struct StdoutFactory;

impl SinkFactory for StdoutFactory {
    const KIND: &'static str = "stdout";

    type Config = StdoutConfig;
    type Sink = StdoutSink;

    async fn connect(_: &StdoutConfig, context: SinkContext) -> Result<StdoutSink, SinkError> {
        let output = standard_output()
            .map_err(|error| SinkError::fatal(format!("the standard output cannot be used: {error}")))?;
        StdoutSink::new(output, context.timeout)
    }
}

/// The standard output's own descriptor: without std's line buffer, and without its habit of taking writes to a
/// closed descriptor for successes.
fn standard_output() -> io::Result<std::fs::File> {
    use std::os::fd::AsFd as _;
    Ok(io::stdout().as_fd().try_clone_to_owned()?.into())
}

/// Writes each event as a line of JSON.
#[derive(Debug)]
pub struct StdoutSink {
    state: Mutex<State>,
    /// The reader has left: nothing can be written any more.
    reader_left: AtomicBool,
    timeout: Duration,
}

#[derive(Debug)]
struct State {
    /// `None` once the sink is closed.
    writer: Option<Writer>,
    /// A write that has begun and whose result nobody has seen yet.
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    /// Dedup ids of the deliveries in it.
    deliveries: HashSet<ByteString>,
    result: oneshot::Receiver<io::Result<()>>,
}

impl StdoutSink {
    fn new(output: impl io::Write + Send + 'static, timeout: Duration) -> Result<Self, SinkError> {
        let writer = Writer::spawn(output).map_err(|error| {
            SinkError::retryable(format!("the thread that writes to stdout did not start: {error}"))
        })?;
        let state = Mutex::new(State { writer: Some(writer), begun: None });
        Ok(StdoutSink { state, reader_left: AtomicBool::new(false), timeout })
    }

    async fn write(&self, batch: &Batch, report: &DeliveryReport) -> Result<(), Failure> {
        let deadline = Instant::now() + self.timeout;
        let mut state = timeout_at(deadline, self.state.lock()).await.map_err(|_| not_read(self.timeout))?;

        // What an earlier call began and left (its future was dropped, or its time ran out) is not written twice.
        let mut written = HashSet::new();
        if let Some(begun) = state.finish(deadline, self.timeout).await? {
            written = begun;
        }
        let mut lines = Vec::new();
        let mut deliveries = HashSet::new();
        for (index, delivery) in batch.iter().enumerate() {
            if written.contains(&delivery.dedup_id) {
                report.acknowledged(index);
            } else {
                append_document(&delivery.event, &mut lines);
                lines.push(b'\n');
                deliveries.insert(delivery.dedup_id.clone());
            }
        }
        if deliveries.is_empty() {
            return Ok(());
        }
        let writer =
            state.writer.as_ref().ok_or_else(|| Failure::new(FailureKind::Connection, "the sink is closed"))?;
        let result = writer.start(lines);
        state.begun = Some(Begun { deliveries, result });
        state.finish(deadline, self.timeout).await?;
        report.acknowledge_rest();
        Ok(())
    }
}

impl State {
    /// Waits for the write that has begun, if there is one, and gives the dedup ids of what it wrote. The write stays
    /// noted while its result is not known, also if this future is dropped.
    async fn finish(&mut self, deadline: Instant, timeout: Duration) -> Result<Option<HashSet<ByteString>>, Failure> {
        let Some(begun) = &mut self.begun else { return Ok(None) };
        let result = timeout_at(deadline, &mut begun.result).await.map_err(|_| not_read(timeout))?;
        let deliveries = self.begun.take().map(|begun| begun.deliveries);
        match result {
            Ok(Ok(())) => Ok(deliveries),
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Err(left()),
            Ok(Err(error)) => {
                Err(Failure::new(FailureKind::Unavailable, format!("writing to the standard output failed: {error}")))
            }
            Err(_) => Err(Failure::new(FailureKind::Unavailable, "the thread that writes to stdout has ended")),
        }
    }
}

fn left() -> Failure {
    Failure::new(FailureKind::Closed, "the reader of the standard output has closed it")
}

fn not_read(timeout: Duration) -> Failure {
    Failure::new(
        FailureKind::Timeout,
        format!("nobody read the standard output within {timeout:?}: the write goes on when its reader does"),
    )
}

impl Sink for StdoutSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        let failure =
            if self.reader_left.load(Ordering::Relaxed) { Err(left()) } else { self.write(batch, report).await };
        if let Err(failure) = failure {
            if failure.kind == FailureKind::Closed {
                self.reader_left.store(true, Ordering::Relaxed);
            }
            report.fail_rest(&failure);
        }
    }

    async fn check(&self) -> Result<(), SinkError> {
        if self.reader_left.load(Ordering::Relaxed) { Err(SinkError::fatal(left().message)) } else { Ok(()) }
    }

    /// Waits for a write that has begun, at most for the time of one delivery.
    async fn close(&self) {
        let deadline = Instant::now() + self.timeout;
        if let Ok(mut state) = timeout_at(deadline, self.state.lock()).await {
            // There is nobody left to tell: what was not acknowledged is sent again at the next start.
            let _ = state.finish(deadline, self.timeout).await;
            state.writer = None;
        }
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
}

#[cfg(test)]
mod tests;
