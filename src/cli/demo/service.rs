//! The story's services as processes of their own: the examples' code, configured by the environment.

use tokio::net::TcpListener;
use tokio_postgres::NoTls;

use super::{super::complain, Failure};
use crate::error::ExitStatus;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Saves the order, then publishes it.
    DualWrite,
    /// Saves the order and its event in one transaction.
    Outbox,
}

/// Where the service listens.
pub const LISTEN: &str = "WALGATE_DEMO_LISTEN";
/// Its database.
pub const DATABASE: &str = "WALGATE_DEMO_DATABASE";
/// URLs of the consumers, separated by spaces.
pub const SUBSCRIBERS: &str = "WALGATE_DEMO_SUBSCRIBERS";

impl Kind {
    /// The value of `--service`.
    pub fn flag(self) -> &'static str {
        match self {
            Kind::DualWrite => "dual-write",
            Kind::Outbox => "outbox",
        }
    }
}

/// Serves until it is killed.
pub async fn run(kind: Kind) -> ExitStatus {
    match serve(kind).await {
        Ok(()) => ExitStatus::Ok,
        Err(failure) => {
            complain(&failure);
            ExitStatus::Runtime
        }
    }
}

async fn serve(kind: Kind) -> Result<(), Failure> {
    let setting = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let (db, connection) =
        tokio_postgres::connect(&setting(DATABASE)?, NoTls).await.map_err(|error| format!("PostgreSQL: {error}"))?;
    tokio::spawn(connection);
    let orders = match kind {
        Kind::Outbox => walgate_example_orders::service(db),
        Kind::DualWrite => {
            let subscribers = setting(SUBSCRIBERS)?.split(' ').map(str::to_owned).collect();
            walgate_example_orders::dual_write::service(db, subscribers).map_err(|error| error.to_string())?
        }
    };
    let listener = TcpListener::bind(setting(LISTEN)?).await.map_err(|error| error.to_string())?;
    axum::serve(listener, orders).await.map_err(|error| error.to_string())
}
