//! How the process ends.

/// Exit statuses of the command line. Stable: scripts and supervisors rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// Everything asked for was done.
    Ok = 0,
    /// It failed while running.
    Runtime = 1,
    /// The configuration, or the command line, is wrong: starting again will not help.
    Configuration = 2,
    /// Something around walgate is missing or not as it must be: PostgreSQL, its settings, its rights, a file.
    Environment = 3,
}

impl From<ExitStatus> for std::process::ExitCode {
    fn from(status: ExitStatus) -> Self {
        std::process::ExitCode::from(status as u8)
    }
}
