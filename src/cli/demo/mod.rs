//! `walgate demo`: the story of the vanished order, on this machine, with a PostgreSQL of its own.
//!
//! Act one: an order service saves orders and publishes them itself, and is killed now and then. Act two: the same load
//! through the outbox, with walgate killed as well. The services are `examples/orders` and `examples/consumer`.

mod act;
mod children;
mod consumers;
mod database;
mod load;
mod postgres;
mod service;
mod show;

use std::time::Duration;

use clap::Args;

use self::{
    act::{Act, Outcome},
    database::Server,
    show::Show,
};
use super::complain;
use crate::error::ExitStatus;

/// Arguments of `walgate demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Uses this server instead of starting one: `wal_level = logical`, and a role that may create databases and slots.
    /// Everything that the demo creates there is removed again.
    #[arg(long, value_name = "URL")]
    postgres_url: Option<String>,
    /// Orders in each act.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    orders: u32,
    /// Leaves everything running at the end, with hints on what to try, until Ctrl-C.
    #[arg(long)]
    keep: bool,
    /// Runs one of the story's services: how the demo starts its children.
    #[arg(long, hide = true, value_enum)]
    service: Option<service::Kind>,
}

/// How long the end of an act may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Anything that keeps the demo from going on, as a sentence.
type Failure = String;

/// Tells the story.
pub async fn run(args: DemoArgs) -> ExitStatus {
    if let Some(kind) = args.service {
        return service::run(kind).await;
    }
    let show = Show::new();
    let story = tell(&args, &show);
    tokio::select! {
        end = story => match end {
            Ok(status) => status,
            Err(failure) => {
                show.clear();
                complain(&failure);
                ExitStatus::Environment
            }
        },
        // Dropping the story ends its children and removes its folder.
        () = interrupted() => {
            show.clear();
            if let Some(Ok(server)) = args.postgres_url.as_deref().map(Server::given) {
                for database in act::DATABASES {
                    if let Err(failure) = server.remove(database).await {
                        complain(&format!("cannot remove database {database}: {failure}"));
                    }
                }
            }
            show.line("stopped; nothing is left behind");
            ExitStatus::Runtime
        }
    }
}

async fn interrupted() {
    let mut terminate = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(terminate) => terminate,
        Err(_) => return std::future::pending().await,
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

async fn tell(args: &DemoArgs, show: &Show) -> Result<ExitStatus, Failure> {
    show.title("The vanished order");
    let server = match &args.postgres_url {
        Some(url) => Server::given(url)?,
        None => {
            let step = show.step("starting PostgreSQL in a temporary folder");
            let server = tokio::task::spawn_blocking(Server::start).await.map_err(|error| error.to_string())??;
            step.done(&server.description());
            server
        }
    };

    show.title("Act one: the service saves the order, then publishes it by itself");
    show.line("  It is killed now and then, and the network to the consumers hiccups. Nobody notices anything.");
    let (before, _) = act::play(Act::DualWrite, &server, args.orders, show).await?;
    show.line(&format!(
        "  {} orders saved, {} confirmation e-mails, {} inventory changes: {}",
        before.orders,
        before.emails.arrived,
        before.inventory.arrived,
        show.bad(&format!("{} vanished", before.vanished())),
    ));

    show.title("Act two: order and event in one transaction; walgate delivers from the write-ahead log");
    show.line(
        "  The same load, the same hiccups, the service killed as before; and walgate killed in mid-stream, too.",
    );
    let (after, stage) = act::play(Act::Outbox, &server, args.orders, show).await?;
    show.line("");
    show.table(&before, &after);
    let told = verdict(&before, &after, show);
    if let Some(stage) = stage {
        if args.keep {
            stage.linger(show).await?;
        } else {
            stage.clear().await?;
        }
    }
    Ok(told)
}

fn verdict(before: &Outcome, after: &Outcome, show: &Show) -> ExitStatus {
    if after.vanished() > 0 {
        show.line(&show.bad("events vanished through the outbox: this is a fault in walgate, please report it"));
        return ExitStatus::Runtime;
    }
    let lost = match before.vanished() {
        0 => "The dual write was lucky this time; run it again".to_owned(),
        n => format!("Publishing by itself, the service lost {n} messages without a trace"),
    };
    show.line(&format!(
        "{lost}. Through the outbox: {}, with walgate killed {} times; {} repeats came and were suppressed by event id.",
        show.good("0 vanished"),
        after.gateway_kills,
        after.repeats(),
    ));
    ExitStatus::Ok
}
