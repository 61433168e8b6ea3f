//! `walgate dlq`: deliveries that nobody attempts any more, and those that are parked. Reads the tables by itself; what
//! is to become of dead letters it asks the gateway for.

mod change;
mod filter;
mod list;
mod show;
#[cfg(test)]
mod tests;

use clap::{Args, Subcommand};

use crate::{error::ExitStatus, registry::Registry};

/// Arguments of `walgate dlq`.
#[derive(Debug, Args)]
pub struct DlqArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Count dead letters by sink and reason, and list the newest.
    List(list::ListArgs),
    /// Show everything about one dead letter; its payload where that is asked for.
    Show(show::ShowArgs),
    /// Have the gateway attempt dead letters again, each with a new dedup id.
    Retry(change::RetryArgs),
    /// Have the gateway delete dead letters for good.
    Drop(change::DropArgs),
}

/// Exit status 0: done; 1: not done, or not yet; 2: the configuration or the command line is wrong; 3: PostgreSQL, or
/// the table in it, cannot be reached.
pub async fn run(args: DlqArgs, registry: &Registry) -> ExitStatus {
    let done = match args.command {
        Command::List(args) => list::run(&args, registry).await,
        Command::Show(args) => show::run(&args, registry).await,
        Command::Retry(args) => change::retry(&args, registry).await,
        Command::Drop(args) => change::drop(&args, registry).await,
    };
    match done {
        Ok(status) | Err(status) => status,
    }
}

/// A sink as a person reads it.
fn sink_or_none(name: &str) -> &str {
    if name.is_empty() { "(unrouted)" } else { name }
}
