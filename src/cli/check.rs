//! stub
use clap::Args;
use crate::{error::ExitStatus, registry::Registry};
#[derive(Debug, Args)]
pub struct CheckArgs {}
pub async fn run(_: CheckArgs, _: &Registry) -> ExitStatus { ExitStatus::Ok }
