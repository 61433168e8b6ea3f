//! Looks at the catalogs again and again: at once when a term begins, then every few seconds.
//!
//! While they are not in order events may be committed that never come: `/readyz` says so, with the SQL that mends it, and
//! no row of the outbox counts as settled. Afterwards the rows of before belong to the past that nothing is known of.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_postgres::Client;
use walgate_sink::Lsn;

use super::StatusBoard;
use crate::control::{
    Bounds, CatalogLook, CatalogRows, Link, LinkError, Mark, QueryError, Wanted, gateway, look_at_catalog,
};

/// Time between two looks: what is not in order is to be seen within 10 s.
const EVERY: Duration = Duration::from_secs(5);
/// Time that a look may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens an SQL connection.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, Result<Link, LinkError>> + Send + Sync>;

/// A term of ours, and what is known from before.
#[derive(Clone, Debug)]
pub struct TermBegun {
    /// Its number.
    pub term: i64,
    /// What is known of the outbox's rows, if the catalogs have not changed since.
    pub bounds: Bounds,
    /// The catalogs' rows at the last look that found them in order.
    pub catalog: Option<CatalogRows>,
    /// The newest mark of the connection that the checkpoint has passed.
    pub passed: watch::Receiver<Option<Mark>>,
}

/// What the watch knows, and whom it tells.
pub struct CatalogWatch {
    /// What is looked for; a reload may change it.
    pub wanted: watch::Receiver<Wanted>,
    /// Our term; none: another process has the slot, or there are no tables of walgate's own.
    pub term: watch::Receiver<Option<TermBegun>>,
    /// Gets the bounds while all is in order.
    pub bounds: watch::Sender<Option<Bounds>>,
    /// Shows it.
    pub board: StatusBoard,
    /// Opens the connection.
    pub connect: Connect,
}

/// A connection of the watch's own: what it reads in one transaction must not be mixed with what others write.
struct Connection {
    client: Client,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What is remembered from one look to the next.
#[derive(Default)]
struct Memory {
    /// The term that the bounds were given out in.
    told: Option<i64>,
    /// Rows and position of the last look that found all in order.
    sound: Option<(CatalogRows, Option<Lsn>)>,
    /// What was not in order, as it was logged.
    said: Vec<String>,
    /// It was not in order since the last look that found it so.
    broken: bool,
}

impl CatalogWatch {
    /// Looks until it is dropped.
    pub async fn serve(mut self) {
        let mut connection: Option<Connection> = None;
        let mut memory = Memory::default();
        let mut failed = String::new();
        loop {
            match self.look(&mut connection, &mut memory).await {
                Ok(()) => failed.clear(),
                Err(error) => {
                    connection = None;
                    // Where PostgreSQL is away, others say so.
                    if error != failed {
                        tracing::warn!(
                            error,
                            "the catalogs cannot be looked at: no row counts as settled until they are"
                        );
                        failed = error;
                    }
                }
            }
            tokio::select! {
                Ok(()) = self.term.changed() => {}
                Ok(()) = self.wanted.changed() => {}
                () = sleep(EVERY) => {}
            }
        }
    }

    async fn look(&mut self, connection: &mut Option<Connection>, memory: &mut Memory) -> Result<(), String> {
        let wanted = self.wanted.borrow_and_update().clone();
        let term = self.term.borrow_and_update().clone();
        if memory.told != term.as_ref().map(|term| term.term) {
            memory.told = None;
        }
        let kept = connection.take().filter(|connection| !connection.client.is_closed());
        let connection = match kept {
            Some(kept) => connection.insert(kept),
            None => {
                let opened = timeout(PATIENCE, (self.connect)()).await.map_err(|_| "no answer".to_owned())?;
                let Link { client, driver } = opened.map_err(|error| error.to_string())?;
                connection.insert(Connection { client, driver: tokio::spawn(driver).abort_handle() })
            }
        };
        let client = &connection.client;
        // What was passed before the look counts after it: until then nothing had changed.
        let passed = term.as_ref().and_then(|term| *term.passed.borrow());
        let looked = timeout(PATIENCE, look_at_catalog(client, &wanted)).await.map_err(|_| "no answer".to_owned())?;
        let Some(look) = looked.map_err(|error| error.to_string())? else {
            return Err("they cannot be read now".to_owned());
        };
        self.judge(client, &wanted, (term, passed), look, memory).await.map_err(|error| error.to_string())
    }

    async fn judge(
        &self,
        client: &Client,
        wanted: &Wanted,
        (term, passed): (Option<TermBegun>, Option<Mark>),
        look: CatalogLook,
        memory: &mut Memory,
    ) -> Result<(), QueryError> {
        let CatalogLook { rows, broken, lsn } = look;
        if !broken.is_empty() {
            memory.broken = true;
            self.bounds.send_replace(None);
            let said: Vec<String> = broken.iter().map(ToString::to_string).collect();
            if said != memory.said {
                let since = memory.sound.as_ref().and_then(|(_, lsn)| *lsn).map(|lsn| lsn.to_string());
                for reason in &said {
                    tracing::error!(
                        in_order_until = since.as_deref().unwrap_or("unknown"),
                        reason,
                        "events may be committed that walgate never sees"
                    );
                }
                memory.said.clone_from(&said);
            }
            self.board.catalog(said);
            return Ok(());
        }
        // What was written down counts too: there may have been looks of this process before its term began.
        let known = term.as_ref().filter(|term| memory.told != Some(term.term)).and_then(|term| term.catalog.as_ref());
        let before = memory.sound.as_ref().map(|(rows, _)| rows).into_iter().chain(known);
        let changed = before.filter_map(|before| rows.difference(before)).next();
        let reason = changed.or(memory.broken.then_some("it was not in order for a time"));
        if let Some(reason) = reason {
            let from = memory.sound.as_ref().and_then(|(_, lsn)| *lsn).map(|lsn| lsn.to_string());
            tracing::warn!(
                reason,
                from = from.as_deref().unwrap_or("the last look before walgate was started"),
                to = lsn.map(|lsn| lsn.to_string()),
                table = %wanted.table,
                "the outbox's way into the stream has changed: events that were committed in this part of the log may not \
                 have been seen. Their rows are in the table: none of the rows of before counts as settled"
            );
        }
        if let Some(term) = &term
            && (reason.is_some() || memory.told != Some(term.term))
        {
            let text = rows.to_text();
            let bounds = gateway::write_catalog(client, &wanted.slot, term.term, &text, reason.is_some()).await?;
            // The newest term's are told when it has begun.
            let current = self.term.borrow().as_ref().map(|term| term.term) == Some(term.term);
            if let Some(bounds) = bounds.filter(|_| current) {
                self.bounds.send_replace(Some(bounds));
                memory.told = Some(term.term);
            }
        } else if let (Some(term), Some(mark)) = (&term, passed) {
            // In the term that it was passed in.
            let current = self.term.borrow().as_ref().map(|term| term.term) == Some(term.term);
            self.bounds.send_if_modified(|bounds| match bounds {
                Some(bounds) if current && bounds.mark != Some(mark) => {
                    bounds.mark = Some(mark);
                    true
                }
                _ => false,
            });
        }
        memory.sound = Some((rows, lsn));
        memory.said.clear();
        memory.broken = false;
        self.board.catalog(Vec::new());
        Ok(())
    }
}
