//! Panics as log lines.

use std::panic;

use super::clip;

/// Writes every panic to the log, in the log's own form: what a supervisor collects stays one document a line, and the
/// panic of a sink's client library cannot fill it with whatever it had in hand.
pub fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let message = info.payload_as_str().map(clip).unwrap_or_default();
        tracing::error!(
            thread = thread.name().unwrap_or_default(),
            place,
            error = message,
            "panic: a fault in the program"
        );
    }));
}
