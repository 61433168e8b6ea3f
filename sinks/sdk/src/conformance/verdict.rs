//! What came of each check.

use std::fmt;

use super::Unable;

/// Why a check did not pass.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// The sink did something wrong.
    Failed(String),
    /// The harness cannot make the situation.
    Skipped(&'static str),
}

impl From<Unable> for Fault {
    fn from(unable: Unable) -> Self {
        Fault::Skipped(unable.0)
    }
}

impl From<String> for Fault {
    fn from(what: String) -> Self {
        Fault::Failed(what)
    }
}

/// What came of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// The check's name: what it asks, as a sentence.
    pub check: &'static str,
    /// What came of it.
    pub kind: VerdictKind,
}

/// What can come of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum VerdictKind {
    /// The sink does what it must.
    Passed,
    /// It was not asked: why the harness cannot make the situation.
    Skipped(String),
    /// What the sink did.
    Failed(String),
}

/// The verdicts on a sink. As text: a table.
#[derive(Clone, Debug)]
pub struct Report {
    sink: &'static str,
    verdicts: Vec<Verdict>,
}

impl Report {
    pub(super) fn new(sink: &'static str) -> Self {
        Report { sink, verdicts: Vec::new() }
    }

    pub(super) fn add(&mut self, check: &'static str, result: Result<(), Fault>) {
        let kind = match result {
            Ok(()) => VerdictKind::Passed,
            Err(Fault::Skipped(why)) => VerdictKind::Skipped(why.to_owned()),
            Err(Fault::Failed(what)) => VerdictKind::Failed(what),
        };
        self.verdicts.push(Verdict { check, kind });
    }

    /// All of them, in the order in which they were found.
    #[must_use]
    pub fn verdicts(&self) -> &[Verdict] {
        &self.verdicts
    }

    /// The names of the checks that failed.
    #[must_use]
    pub fn failed(&self) -> Vec<&'static str> {
        let failed = self.verdicts.iter().filter(|verdict| matches!(verdict.kind, VerdictKind::Failed(_)));
        failed.map(|verdict| verdict.check).collect()
    }

    /// Prints the table, and fails the test unless every check passed or was skipped.
    ///
    /// # Panics
    /// Where a check failed.
    #[track_caller]
    pub fn assert_passed(&self) {
        #[allow(clippy::print_stderr, reason = "this is called by tests, and the table is what they are run for")]
        {
            eprintln!("{self}");
        }
        let failed = self.failed();
        assert!(
            failed.is_empty(),
            "the sink `{}` fails {} of the checks: {}",
            self.sink,
            failed.len(),
            failed.join(", ")
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "conformance of the sink `{}`", self.sink)?;
        for Verdict { check, kind } in &self.verdicts {
            match kind {
                VerdictKind::Passed => writeln!(f, "  pass     {check}")?,
                VerdictKind::Skipped(why) => writeln!(f, "  skipped  {check}: {why}")?,
                VerdictKind::Failed(what) => writeln!(f, "  FAIL     {check}: {what}")?,
            }
        }
        Ok(())
    }
}
