//! What every consumer of walgate's events needs, whatever the broker: an **inbox**.
//!
//! Delivery is at least once. After a crash on either side an event can come again, with the same id, and a broker's own
//! deduplication covers minutes. So a consumer keeps the ids that it has seen, *in the same transaction as the effect*:
//! either both are there or neither is. Only then does it acknowledge.

use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls, Statement};

/// The tables: ids that were seen, and the effect (here: how many events of each type there were).
pub const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS inbox (event_id TEXT PRIMARY KEY, seen_at TIMESTAMPTZ NOT NULL DEFAULT now());
    CREATE TABLE IF NOT EXISTS totals (event_type TEXT PRIMARY KEY, events BIGINT NOT NULL);";

/// The consumer's database.
pub struct Inbox {
    db: Client,
    seen: Statement,
    effect: Statement,
}

impl Inbox {
    /// Connects to the database that `DATABASE_URL` names, and makes the tables where they are missing.
    ///
    /// # Errors
    /// The variable is missing, or the database is not to be used.
    pub async fn from_env() -> Result<Inbox> {
        let (db, connection) = tokio_postgres::connect(&variable("DATABASE_URL")?, NoTls).await?;
        tokio::spawn(connection);
        db.batch_execute(SCHEMA).await?;
        let seen = db.prepare("INSERT INTO inbox (event_id) VALUES ($1) ON CONFLICT DO NOTHING").await?;
        let effect = db
            .prepare(
                "INSERT INTO totals VALUES ($1, 1) ON CONFLICT (event_type) DO UPDATE SET events = totals.events + 1",
            )
            .await?;
        Ok(Inbox { db, seen, effect })
    }

    /// Does the work for an event, unless it was done before. When this returns, the event may be acknowledged.
    ///
    /// # Errors
    /// The transaction did not commit: the event must not be acknowledged.
    pub async fn take(&mut self, event_id: &str, event_type: &str) -> Result<()> {
        let transaction = self.db.transaction().await?;
        if transaction.execute(&self.seen, &[&event_id]).await? == 1 {
            transaction.execute(&self.effect, &[&event_type]).await?;
        }
        transaction.commit().await.context("the event's transaction")
    }
}

/// A variable of the environment that must be set.
///
/// # Errors
/// It is not.
pub fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("set {name}"))
}
