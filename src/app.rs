//! The application: the command line over a set of sinks.

use std::process::ExitCode;

use walgate_sink::SinkFactory;

use crate::{cli, registry::Registry};

/// walgate with its built-in sinks, and those that a program of your own adds:
///
/// ```no_run
/// # struct MyFactory;
/// fn main() -> std::process::ExitCode {
///     walgate::app::App::new()/* .with_sink::<MyFactory>() */.run()
/// }
/// ```
#[derive(Clone)]
pub struct App {
    registry: Registry,
}

impl Default for App {
    fn default() -> Self {
        App::new()
    }
}

impl App {
    /// With every sink that is compiled in.
    #[must_use]
    pub fn new() -> Self {
        App { registry: Registry::built_in() }
    }

    /// With one more kind of sink.
    #[must_use]
    pub fn with_sink<F: SinkFactory>(mut self) -> Self {
        self.registry = self.registry.with::<F>();
        self
    }

    /// Reads the command line, does what it asks for, and returns the exit status.
    #[must_use]
    pub fn run(self) -> ExitCode {
        cli::main(&self.registry).into()
    }
}
