//! Logs: human on a terminal, JSON lines otherwise, on standard error.

mod failpoint;
mod gate;
mod panics;

pub use failpoint::failpoint;
pub use gate::{Gate, Gates};
pub use panics::log_panics;

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _};

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

/// Libraries that log by themselves what their sink reports, at levels of their own: said once is enough. A filter that
/// names one switches it on again, as far as [`is_discreet`] goes.
const SILENT: &str = "async_nats=off,aws_=off,lapin=off";

/// Whether a line cannot hold what must never be in a log, whatever the filter: lapin writes passwords and payloads, and
/// Amazon's SDK writes ids of keys and tokens of sessions.
fn is_discreet(line: &Metadata<'_>) -> bool {
    let of = |library: &str| line.target().starts_with(library);
    !of("lapin") && (!of("aws_") || *line.level() <= Level::INFO)
}

/// Starts logging. `filter` is a `tracing` filter such as `info` or `walgate=debug`. Only the first call counts.
///
/// # Errors
/// The filter cannot be read.
pub fn init(format: LogFormat, filter: &str, color: bool) -> Result<(), String> {
    let filter = EnvFilter::try_new(format!("{SILENT},{filter}"))
        .map_err(|error| format!("`{filter}` is not a log filter: {error}; write a level such as info or debug"))?;
    let human = match format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // A second call (tests of the library) finds a subscriber: that one stays.
    if human {
        let _ = builder.with_ansi(color).with_target(false).finish().with(filter_fn(is_discreet)).try_init();
    } else {
        let builder = builder.json().flatten_event(true).with_current_span(false).with_span_list(false);
        let _ = builder.finish().with(filter_fn(is_discreet)).try_init();
    }
    Ok(())
}

/// Characters of a name from outside that go into a log line or a status.
const NAME: usize = 256;
/// Characters of a sentence from outside.
const SENTENCE: usize = 1000;
/// Bytes of either, escapes included.
const FIELD: usize = 1024;

/// The beginning of a text from outside (an event's identity, its type, a panic's message), control characters escaped:
/// it is whatever somebody put there.
#[must_use]
pub fn clip(text: &str) -> String {
    plain(text, NAME)
}

/// The same for a sentence, such as a sink's error.
#[must_use]
pub fn sentence(text: &str) -> String {
    plain(text, SENTENCE)
}

/// A whole text from outside, for a person who asked for it: control characters escaped.
#[must_use]
pub fn escaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        if is_harmless(char) { plain.push(char) } else { plain.extend(char.escape_default()) }
    }
    plain
}

/// JSON whose strings a terminal can show: what JSON itself lets stand of control characters is escaped too, and it says
/// the same.
#[must_use]
pub fn escaped_json(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for char in json.chars() {
        if is_harmless(char) || char == '\n' {
            plain.push(char);
        } else {
            // Such a character stands in a string only. None of them needs two units.
            plain.push_str(&format!("\\u{:04x}", u32::from(char)));
        }
    }
    plain
}

fn plain(text: &str, longest: usize) -> String {
    const CUT: &str = "...";
    let mut plain = String::with_capacity(text.len().min(longest));
    for (count, char) in text.chars().enumerate() {
        let before = plain.len();
        if is_harmless(char) {
            plain.push(char)
        } else {
            plain.extend(char.escape_default())
        }
        if count == longest || plain.len() > FIELD - CUT.len() {
            plain.truncate(before);
            plain.push_str(CUT);
            break;
        }
    }
    plain
}

fn is_harmless(char: char) -> bool {
    !char.is_control() && !is_bidi(char)
}

/// Characters that turn the direction of the text around them: a line must not read as another one.
fn is_bidi(char: char) -> bool {
    matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_text_is_plain_and_says_the_same() {
        let text = "a\u{1b}[31m\r\n\u{9b}é\u{202e}\u{7f}\"";
        assert_eq!(escaped(text), "a\\u{1b}[31m\\r\\n\\u{9b}é\\u{202e}\\u{7f}\"");
        let json = format!("{:#}", serde_json::json!({ "text": text }));
        let plain = escaped_json(&json);
        assert_eq!(plain, "{\n  \"text\": \"a\\u001b[31m\\r\\n\\u009bé\\u202e\\u007f\\\"\"\n}");
        let read: serde_json::Value = serde_json::from_str(&plain).unwrap();
        assert_eq!(read["text"], text);
    }

    #[test]
    fn a_text_from_outside_is_short_and_plain() {
        assert_eq!(clip("order.created"), "order.created");
        assert_eq!(clip("a\u{1b}[31m\r\nb\u{9b}\u{202e}"), "a\\u{1b}[31m\\r\\nb\\u{9b}\\u{202e}");
        assert_eq!(clip(&"é".repeat(1_000_000)).chars().count(), NAME + 3);
        assert_eq!(clip(&"é".repeat(NAME)).chars().count(), NAME);
        for text in ["\u{1b}", "é", "\u{10ffff}", "x"] {
            let text = text.repeat(1_000_000);
            for field in [clip(&text), sentence(&text)] {
                assert!(field.len() <= FIELD && field.ends_with("..."), "{field}");
            }
        }
    }
}
