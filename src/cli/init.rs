//! stub
use clap::Args;
use crate::error::ExitStatus;
#[derive(Debug, Args)]
pub struct InitArgs {}
pub async fn run(_: InitArgs) -> ExitStatus { ExitStatus::Ok }
