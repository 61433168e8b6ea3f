//! `walgate pause`, `resume` and `skip`: what the gateway is to do about one sink.

use clap::Args;

use super::{
    ConfigArgs,
    ask::{self, AnswerArgs},
    complain, setup,
    tables::Tables,
};
use crate::{control::requests::Verb, error::ExitStatus, registry::Registry};

/// Arguments of `walgate pause` and `walgate resume`.
#[derive(Debug, Args)]
pub struct SinkArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The sink.
    #[arg(long, value_name = "SINK")]
    sink: String,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// Arguments of `walgate skip`.
#[derive(Debug, Args)]
pub struct SkipArgs {
    #[command(flatten)]
    sink: SinkArgs,
    /// The event, by its id: `walgate status` names the one that holds the checkpoint.
    #[arg(long, value_name = "ID")]
    event_id: String,
}

/// Exit status 0: done; 1: not done, or not yet; 2: there is no such sink, or the configuration is wrong; 3: PostgreSQL,
/// or the table in it, cannot be reached.
pub async fn run(args: &SinkArgs, verb: Verb, registry: &Registry) -> ExitStatus {
    match steer(args, verb, registry).await {
        Ok(status) | Err(status) => status,
    }
}

/// As [`run`].
pub async fn skip(args: SkipArgs, registry: &Registry) -> ExitStatus {
    run(&args.sink, Verb::Skip { event_id: args.event_id }, registry).await
}

async fn steer(args: &SinkArgs, verb: Verb, registry: &Registry) -> Result<ExitStatus, ExitStatus> {
    let loaded = setup::load(&args.config, registry)?;
    if let Err(message) = loaded.sink(&args.sink) {
        complain(&message);
        return Err(ExitStatus::Configuration);
    }
    let tables = Tables::open(&loaded).await?;
    ask::ask(&tables, vec![(args.sink.clone(), verb)], &args.answer).await
}
