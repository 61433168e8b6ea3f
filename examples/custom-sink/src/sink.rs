//! The sink: a configuration, a factory, and the four methods of [`Sink`].

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;
use tokio::{task::spawn_blocking, time::timeout};
use walgate_sink::{
    Batch, Capabilities, ConfigIssue, Delivery, DeliveryReport, Escape, Failure, FailureKind, RejectReason, Rejection,
    Sink, SinkContext, SinkError, SinkFactory, TargetField,
};

use crate::lines;

/// What stands under `file:` in the configuration.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileConfig {
    /// The folder of the files. It must be there: walgate does not guess where your disk is.
    folder: PathBuf,
    /// The default of the target field `name`. walgate renders it; the sink sees the result in each delivery.
    #[serde(default, rename = "name")]
    _name: Option<String>,
}

/// Makes [`FileSink`]s.
pub struct FileSinkFactory;

impl SinkFactory for FileSinkFactory {
    const KIND: &'static str = "file";
    const TARGET: &'static [TargetField] =
        &[TargetField { name: "name", required: true, ordering_key: false, escape: Escape::None }];

    type Config = FileConfig;
    type Sink = FileSink;

    fn validate(config: &FileConfig) -> Vec<ConfigIssue> {
        if config.folder.is_absolute() {
            return Vec::new();
        }
        vec![ConfigIssue::at("folder", "it is not an absolute path: where would it start?")]
    }

    async fn connect(config: &FileConfig, context: SinkContext) -> Result<FileSink, SinkError> {
        Ok(FileSink {
            folder: config.folder.clone(),
            timeout: context.timeout,
            writing: Arc::default(),
            closed: AtomicBool::new(false),
        })
    }
}

/// Appends events to files. An acknowledgement means: the line is on disk (`fdatasync` has returned).
pub struct FileSink {
    folder: PathBuf,
    timeout: Duration,
    /// Held by the thread that writes. It goes on when nobody waits for it any more, so it, and not the future, holds it.
    writing: Arc<Mutex<()>>,
    closed: AtomicBool,
}

/// What goes into one file: the lines, and the places of their deliveries in the batch.
#[derive(Default)]
struct Share {
    lines: Vec<u8>,
    places: Vec<usize>,
}

impl FileSink {
    /// The file's name and the line, or why this event can never be written. Names come from events: nothing in them
    /// may lead out of the folder.
    fn render(delivery: &Delivery) -> Result<(String, Vec<u8>), Rejection> {
        let name = delivery.target.get("name").map(|name| &**name).unwrap_or_default();
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > 200 || name.starts_with('.') || !name.chars().all(legal) {
            let shown: String = name.chars().take(200).collect();
            let message = format!("`{}` is not a name for a file: use letters, digits, . - _", shown.escape_default());
            return Err(Rejection::new(RejectReason::InvalidTarget, message));
        }
        let line = lines::line(&delivery.event).map_err(|why| Rejection::new(RejectReason::InvalidEvent, why))?;
        Ok((name.to_owned(), line))
    }

    /// Writes on a thread that may block. Dropping this future does not stop the thread.
    async fn write(&self, name: String, lines: Vec<u8>) -> Result<(), Failure> {
        let (folder, writing) = (self.folder.clone(), Arc::clone(&self.writing));
        let shown = folder.join(&name).display().to_string();
        let write = spawn_blocking(move || {
            // One that is still at work is not waited for: each attempt would leave another thread behind.
            let Ok(_writing) = writing.try_lock() else { return Err(io::ErrorKind::ResourceBusy.into()) };
            lines::append(&folder, &name, &lines)
        });
        match timeout(self.timeout, write).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(Failure::new(class(&error), format!("cannot write {shown}: {error}"))),
            Ok(Err(_)) => Err(Failure::new(FailureKind::Unavailable, format!("the thread that wrote {shown} broke"))),
            // It may still get there: then the event is in the file twice, and never missing.
            Err(_) => {
                Err(Failure::new(FailureKind::Timeout, format!("writing {shown} took longer than {:?}", self.timeout)))
            }
        }
    }
}

/// What somebody has to mend, and what may pass by itself.
fn class(error: &io::Error) -> FailureKind {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => FailureKind::Fatal,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => FailureKind::Fatal,
        _ => FailureKind::Unavailable,
    }
}

impl Sink for FileSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        if self.closed.load(Ordering::Acquire) {
            return report.fail_rest(&Failure::new(FailureKind::Unavailable, "the sink is closed"));
        }
        let mut files: BTreeMap<String, Share> = BTreeMap::new();
        for (place, delivery) in batch.iter().enumerate() {
            match Self::render(delivery) {
                Ok((name, line)) => {
                    let share = files.entry(name).or_default();
                    share.lines.extend(line);
                    share.places.push(place);
                }
                Err(rejection) => report.rejected(place, rejection),
            }
        }
        // One write and one fsync for each file, however many events: this is what batches are for.
        for (name, Share { lines, places }) in files {
            let written = self.write(name, lines).await;
            for place in places {
                // Marked as soon as it is known: what is marked stays so if this future is dropped before its end.
                match &written {
                    Ok(()) => report.acknowledged(place),
                    Err(failure) => report.failed(place, failure.clone()),
                }
            }
        }
    }

    async fn check(&self) -> Result<(), SinkError> {
        let shown = self.folder.display();
        match tokio::fs::metadata(&self.folder).await {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(SinkError::fatal(format!("{shown} is not a folder: name one in `folder`"))),
            Err(error) => {
                Err(SinkError::fatal(format!("cannot use the folder {shown}: {error}; make it, or name another")))
            }
        }
    }

    async fn close(&self) {
        // Nothing is buffered: what was acknowledged is on disk.
        self.closed.store(true, Ordering::Release);
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_max_batch(1000)
    }
}

#[cfg(test)]
#[path = "conformance.rs"]
mod conformance;
#[cfg(test)]
#[path = "tests.rs"]
mod tests;
