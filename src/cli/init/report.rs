//! What `init --apply` and `--remove` say at their end, for people and as JSON.

use std::io::{self, Write};

use serde::Serialize;

use super::files::FileStep;
use crate::control::{Finding, Severity, Step, StepOutcome};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(skip)]
    json: bool,
    /// Whether everything that was asked for holds now.
    pub done: bool,
    pub nothing_changed: bool,
    pub steps: Vec<Step>,
    pub files: Vec<FileStep>,
    pub findings: Vec<Finding>,
    /// The configuration, where it could not be written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unwritten: Option<String>,
}

impl Report {
    pub fn new(json: bool) -> Self {
        let (steps, files, findings) = (Vec::new(), Vec::new(), Vec::new());
        Report { json, done: false, nothing_changed: false, steps, files, findings, unwritten: None }
    }

    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        if self.json {
            let text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
            return writeln!(out, "{text}");
        }
        for step in &self.steps {
            let outcome = match step.outcome {
                StepOutcome::Created => "created",
                StepOutcome::Existed => "exists already",
                StepOutcome::Dropped => "dropped",
                StepOutcome::Absent => "does not exist",
                StepOutcome::Kept => "kept",
            };
            write!(out, "{:<14} {}: {outcome}", step.object, step.name)?;
            match &step.detail {
                Some(detail) => writeln!(out, " ({detail})")?,
                None => writeln!(out)?,
            }
        }
        for file in &self.files {
            let outcome = match (file.written, file.what) {
                (true, "password") => "written, for its owner only",
                (true, _) => "written",
                (false, _) => "exists already, left as it is",
            };
            write!(out, "{:<14} {}: {outcome}", "file", file.path.display())?;
            match &file.to_do {
                Some(to_do) => writeln!(out, "; {to_do}")?,
                None => writeln!(out)?,
            }
        }
        for finding in &self.findings {
            let severity = match finding.severity {
                Severity::Info => "note",
                Severity::Warning => "warning",
                // What waits elsewhere is a refusal here.
                Severity::Wait | Severity::Error => "error",
            };
            writeln!(out, "{severity}: {finding}")?;
        }
        if self.nothing_changed {
            writeln!(out, "nothing was changed")?;
        }
        if let Some(text) = &self.unwritten {
            write!(out, "\n{text}")?;
        }
        Ok(())
    }
}

/// The command line is wrong.
pub(super) fn refusal(json: bool, message: &str, out: &mut dyn Write) -> io::Result<()> {
    if json {
        return writeln!(out, "{:#}", serde_json::json!({ "done": false, "error": message }));
    }
    writeln!(out, "error: {message}")
}
