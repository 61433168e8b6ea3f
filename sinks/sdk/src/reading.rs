//! Numbers of a sink's own, for the metrics.

/// One number. The gateway shows it as `walgate_<name>{sink="..."}`, a counter with `_total` behind its name.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Reading {
    /// Lower-case words with underscores: the sink's kind first, the base unit last. Never from event data.
    pub name: &'static str,
    /// What it is, in one sentence without a full stop.
    pub help: &'static str,
    /// How it moves.
    pub kind: ReadingKind,
    /// The number.
    pub value: f64,
}

/// How a number moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadingKind {
    /// Up and down.
    Gauge,
    /// Up, and back to zero when the client starts anew.
    Counter,
}

impl Reading {
    /// A number.
    #[must_use]
    pub fn new(name: &'static str, help: &'static str, kind: ReadingKind, value: f64) -> Self {
        Reading { name, help, kind, value }
    }
}
