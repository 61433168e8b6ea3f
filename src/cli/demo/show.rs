//! What the story looks like: progress on a terminal, plain lines in a pipe.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use anstyle::{AnsiColor, Style};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::act::Outcome;

const BOLD: Style = Style::new().bold();

/// Prints the story.
pub struct Show {
    bars: MultiProgress,
    terminal: bool,
}

/// A bar that fills, on a terminal.
pub struct Progress {
    bar: ProgressBar,
}

/// Something that takes a moment.
pub struct Step<'a> {
    show: &'a Show,
    text: &'static str,
    bar: ProgressBar,
}

impl Show {
    /// On standard output; bars go to standard error, and only to a terminal.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Show { bars: MultiProgress::with_draw_target(target), terminal }
    }

    /// A heading.
    pub fn title(&self, text: &str) {
        self.line("");
        self.line(&format!("{BOLD}{text}{BOLD:#}"));
    }

    /// A line, above the bars.
    pub fn line(&self, text: &str) {
        // A closed pipe ends nothing: the exit status still tells the result.
        let _ = self.bars.suspend(|| writeln!(anstream::stdout(), "{text}"));
    }

    /// Takes the bars away.
    pub fn clear(&self) {
        let _ = self.bars.clear();
    }

    /// In red.
    pub fn bad(&self, text: &str) -> String {
        paint(AnsiColor::Red, text)
    }

    /// In green.
    pub fn good(&self, text: &str) -> String {
        paint(AnsiColor::Green, text)
    }

    /// Something that takes a moment, with a spinner.
    pub fn step(&self, text: &'static str) -> Step<'_> {
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style("  {spinner} {msg}"));
        bar.set_message(text);
        if self.terminal {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Step { show: self, text, bar }
    }

    /// A bar of so many orders.
    pub fn progress(&self, orders: u64) -> Progress {
        let bar = self.bars.add(ProgressBar::new(orders));
        bar.set_style(style("  {bar:40} {pos}/{len} orders  {msg}"));
        Progress { bar }
    }

    /// Both acts side by side.
    pub fn table(&self, before: &Outcome, after: &Outcome) {
        let rows: [(&str, String, String); 7] = [
            ("orders saved", before.orders.to_string(), after.orders.to_string()),
            ("confirmation e-mails", before.emails.arrived.to_string(), after.emails.arrived.to_string()),
            ("inventory changes", before.inventory.arrived.to_string(), after.inventory.arrived.to_string()),
            ("messages that vanished", before.vanished().to_string(), after.vanished().to_string()),
            ("repeats suppressed", before.repeats().to_string(), after.repeats().to_string()),
            ("order service killed", times(before.service_kills), times(after.service_kills)),
            ("walgate killed", "-".to_owned(), times(after.gateway_kills)),
        ];
        self.line(&format!("  {BOLD}{:<26}{:>14}{:>20}{BOLD:#}", "", "dual write", "outbox + walgate"));
        for (name, before_value, after_value) in rows {
            let vanished = name == "messages that vanished";
            let cell = |value: String, zero: bool, width: usize| {
                let padded = format!("{value:>width$}");
                match (vanished, zero) {
                    (true, true) => self.good(&padded),
                    (true, false) => self.bad(&padded),
                    _ => padded,
                }
            };
            self.line(&format!(
                "  {name:<26}{}{}",
                cell(before_value, before.vanished() == 0, 14),
                cell(after_value, after.vanished() == 0, 20)
            ));
        }
        self.line("");
    }
}

impl Progress {
    /// So many are done.
    pub fn at(&self, done: u64) {
        self.bar.set_position(done);
    }

    /// What happens at the moment.
    pub fn say(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Step<'_> {
    /// It is done; says what came of it.
    pub fn done(self, result: &str) {
        self.bar.finish_and_clear();
        self.show.line(&format!("  {}: {result}", self.text));
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn paint(color: AnsiColor, text: &str) -> String {
    let style = color.on_default().bold();
    format!("{style}{text}{style:#}")
}

fn times(count: u32) -> String {
    format!("{count} times")
}
