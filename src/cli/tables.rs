//! What the commands over walgate's own tables have in common: a connection, and what is said where a table is missing.

use tokio::task::JoinHandle;
use tokio_postgres::{Client, error::SqlState};

use super::{complain, setup};
use crate::{config::Loaded, control::QueryError, error::ExitStatus};

/// A connection to the database that the tables are in. Its driver ends with it.
pub struct Tables {
    /// Runs queries.
    pub client: Client,
    /// The slot of the gateway whose rows are meant.
    pub slot: String,
    driver: JoinHandle<()>,
}

impl Tables {
    /// Connects; complains and gives the exit status where that is not possible.
    pub async fn open(loaded: &Loaded) -> Result<Tables, ExitStatus> {
        let settings = setup::settings(loaded).map_err(|errors| setup::refuse(&errors))?;
        let link = setup::connect(&settings).await.map_err(|error| {
            complain(&format!("cannot connect to PostgreSQL: {error}"));
            ExitStatus::Environment
        })?;
        let driver = tokio::spawn(async move {
            // Why it ended, the query that was under way says.
            let _ = link.driver.await;
        });
        Ok(Tables { client: link.client, slot: loaded.config.source.slot.clone(), driver })
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Complains of a query that failed, with what is to be done about it.
pub fn refuse(error: &QueryError) -> ExitStatus {
    let hint = match error.sqlstate() {
        Some(state) if *state == SqlState::UNDEFINED_TABLE || *state == SqlState::INVALID_SCHEMA_NAME => {
            ": an administrator makes walgate's own tables with `walgate init --apply`"
        }
        Some(state) if *state == SqlState::INSUFFICIENT_PRIVILEGE => {
            ": an administrator grants the right with `walgate init --apply`"
        }
        _ => "",
    };
    complain(&format!("{error}{hint}"));
    ExitStatus::Environment
}
