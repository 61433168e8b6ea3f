//! Logs: human on a terminal, JSON lines otherwise, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// `--log-format`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// `human` on a terminal, `json` otherwise.
    #[default]
    Auto,
    /// One line of text for a person.
    Human,
    /// One JSON document a line.
    Json,
}

/// Starts logging. `filter` is a `tracing` filter such as `info` or `walgate=debug`. Only the first call counts.
///
/// # Errors
/// The filter cannot be read.
pub fn init(format: LogFormat, filter: &str, color: bool) -> Result<(), String> {
    let filter = EnvFilter::try_new(filter)
        .map_err(|error| format!("`{filter}` is not a log filter: {error}; write a level such as info or debug"))?;
    let human = match format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call (tests of the library) finds a subscriber: that one stays.
    if human {
        let _ = builder.with_ansi(color).with_target(false).try_init();
    } else {
        let _ = builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init();
    }
    Ok(())
}
