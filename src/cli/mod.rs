//! The command line: one file per subcommand.

mod ask;
mod check;
mod cleanup;
#[cfg(feature = "demo")]
mod demo;
mod dlq;
mod expect;
mod feed;
mod fetch;
mod init;
mod lanes;
mod recover;
mod refusal;
mod reload;
mod replay;
mod route;
mod run;
mod setup;
mod signals;
mod simulate;
mod status;
mod steer;
mod systemd;
mod tables;

use std::{io::IsTerminal, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{control::requests::Verb, error::ExitStatus, registry::Registry, telemetry::LogFormat};

/// Committed outbox events from PostgreSQL's write-ahead log to every routed sink, at least once.
#[derive(Debug, Parser)]
#[command(name = "walgate", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    output: OutputArgs,
}

/// They stand behind what is a command's own, however much that is.
#[derive(Debug, Args)]
struct OutputArgs {
    /// How log lines look: `auto` is human on a terminal and JSON otherwise.
    #[arg(long, global = true, value_enum, default_value = "auto", env = "WALGATE_LOG_FORMAT", display_order = 900)]
    log_format: LogFormat,
    /// What is logged: a level, or a filter such as `walgate=debug`.
    #[arg(long, global = true, default_value = "info,tokio_postgres=warn", env = "WALGATE_LOG", display_order = 901)]
    log: String,
    /// Colours. `auto`: on a terminal, unless NO_COLOR is set.
    #[arg(long, global = true, value_enum, default_value = "auto", display_order = 902)]
    color: Color,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The configuration file.
    #[arg(short, long, env = "WALGATE_CONFIG", default_value = "walgate.yaml")]
    config: PathBuf,
    /// Sets one key, over file and environment: `--set source.slot=walgate_blue`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Deliver events until stopped.
    Run(run::RunArgs),
    /// Validate the configuration and show its routes; with --connect, PostgreSQL and the sinks too.
    Check(check::CheckArgs),
    /// Print, or run, the SQL that prepares a database, and write a first configuration.
    Init(init::InitArgs),
    /// Show where an event would go, and why; offline.
    Route(route::RouteArgs),
    /// Check the routes against files of events and the deliveries that they should come to; offline.
    Test(expect::TestArgs),
    /// Show what a running gateway is doing, sink by sink, and who holds the WAL.
    Status(status::StatusArgs),
    /// Send what may be undelivered after the slot was lost, advanced or made again; with --adopt, rows that are older than it.
    Recover(recover::RecoverArgs),
    /// Send rows that were delivered once more to one sink.
    Replay(replay::ReplayArgs),
    /// List dead letters, have them attempted again, or delete them.
    Dlq(dlq::DlqArgs),
    /// Have the gateway send nothing to a sink until it is resumed, restarts included.
    Pause(steer::SinkArgs),
    /// Have the gateway go on with a sink that was paused.
    Resume(steer::SinkArgs),
    /// Have the gateway leave out an event that holds its key on a sink: the sink never gets it.
    Skip(steer::SkipArgs),
    /// Count what a clean-up of the outbox would take, or settle what becomes of rows from before the slot.
    Cleanup(cleanup::CleanupArgs),
    /// The story of the vanished order, on this machine, with a PostgreSQL of its own.
    #[cfg(feature = "demo")]
    Demo(demo::DemoArgs),
}

/// Reads the command line and does what it asks for.
#[must_use]
pub fn main(registry: &Registry) -> ExitStatus {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let status = if error.use_stderr() { ExitStatus::Configuration } else { ExitStatus::Ok };
            // Where even that cannot be written, the exit status has to do.
            let _ = error.print();
            return status;
        }
    };
    let color = cli.output.apply();
    if let Err(message) = crate::telemetry::init(cli.output.log_format, &cli.output.log, color) {
        complain(&message);
        return ExitStatus::Configuration;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}"));
            return ExitStatus::Environment;
        }
    };
    let status = runtime.block_on(async {
        match cli.command {
            Command::Run(args) => run::run(args, registry).await,
            Command::Check(args) => check::run(args, registry).await,
            Command::Init(args) => init(args).await,
            Command::Route(args) => route::run(&args, registry),
            Command::Test(args) => expect::run(&args, registry),
            Command::Status(args) => status::run(args, registry).await,
            Command::Recover(args) => recover::run(args, registry).await,
            Command::Replay(args) => replay::run(args, registry).await,
            Command::Dlq(args) => dlq::run(args, registry).await,
            Command::Pause(args) => steer::run(&args, Verb::Pause {}, registry).await,
            Command::Resume(args) => steer::run(&args, Verb::Resume {}, registry).await,
            Command::Skip(args) => steer::skip(args, registry).await,
            Command::Cleanup(args) => cleanup::run(args, registry).await,
            #[cfg(feature = "demo")]
            Command::Demo(args) => demo::run(args).await,
        }
    });
    // A thread that hangs in a system call must not keep the process.
    runtime.shutdown_background();
    status
}

async fn init(args: init::InitArgs) -> ExitStatus {
    let connect = async |url: walgate_sink::Secret| setup::connect_to(&url).await;
    // Nobody reads a closed pipe: the exit status still tells how it went.
    init::run(args, connect, &mut anstream::stdout()).await.unwrap_or(ExitStatus::Runtime)
}

impl OutputArgs {
    /// Settles the colours of standard output and error; returns whether log lines are coloured.
    fn apply(&self) -> bool {
        let choice = match self.color {
            Color::Auto => anstream::ColorChoice::Auto,
            Color::Always => anstream::ColorChoice::Always,
            Color::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
        match self.color {
            Color::Auto => std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
            Color::Always => true,
            Color::Never => false,
        }
    }
}

/// One line on standard error, for a person.
pub(crate) fn complain(message: &str) {
    use std::io::Write;
    let style = anstyle::AnsiColor::Red.on_default().bold();
    // Standard error may be closed: then nobody reads it.
    let _ = writeln!(anstream::stderr(), "{style}error:{style:#} {message}");
}
