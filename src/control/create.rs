//! `run --create`: publication and slot, where both are absent. Nothing that exists is changed, dropped or advanced.

use std::{fmt, time::Duration};

use tokio_postgres::{Client, error::SqlState};
use walgate_sink::Lsn;

use super::{
    finding::{Finding, FindingCode},
    gateway,
    missing_past::{create_publication_sql, create_slot_sql},
    preflight::{Wanted, preflight},
    query::{QueryError, describe, execute, json_row},
};

/// What `--create` did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Created {
    /// Both were made.
    Both {
        /// The publication.
        publication: String,
        /// The slot.
        slot: String,
        /// Events that are committed from here on are sent.
        from: Lsn,
    },
    /// Both existed: there was nothing to do.
    Nothing {
        /// The publication.
        publication: String,
        /// The slot.
        slot: String,
    },
}

impl fmt::Display for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Created::Both { publication, slot, from } => write!(
                f,
                "created publication `{publication}` and then slot `{slot}`: events that are committed after {from} are sent"
            ),
            Created::Nothing { publication, slot } => {
                write!(f, "publication `{publication}` and slot `{slot}` exist already: nothing to create")
            }
        }
    }
}

/// Creates the publication (inserts of the table only), and then the slot, where both are absent.
///
/// The role needs REPLICATION for the slot, and for the publication CREATE on the database and the table as its own:
/// more than it needs to run.
///
/// # Errors
/// Only one of them exists, a statement failed, or something else that preflight finds stands in the way: the first
/// such finding. Nothing was created unless it says so.
pub async fn create_if_absent(client: &Client, wanted: &Wanted) -> Result<Created, Finding> {
    let wanted = Wanted { count_rows: false, ..wanted.clone() };
    let (publication, slot) = (wanted.publication.clone(), wanted.slot.clone());
    let findings = match preflight(client, &wanted).await {
        Ok(_) => return Ok(Created::Nothing { publication, slot }),
        Err(findings) => findings,
    };
    let found = |code| findings.iter().any(|finding| finding.code == code);
    let other = findings.iter().find(|finding| {
        finding.blocks() && !matches!(finding.code, FindingCode::PublicationMissing | FindingCode::SlotMissing)
    });
    match (found(FindingCode::PublicationMissing), found(FindingCode::SlotMissing)) {
        (false, false) if found(FindingCode::QueryFailed) || found(FindingCode::ServerTooOld) => {}
        (false, false) => return Ok(Created::Nothing { publication, slot }),
        (true, true) => {}
        (missing_publication, _) => return Err(half(missing_publication, &wanted, &findings)),
    }
    if let Some(other) = other {
        return Err(other.clone());
    }
    create_publication(client, &wanted).await?;
    // Shorter than the session's patience: the connection may be the session's.
    let from = create_slot(client, &wanted.slot, Duration::from_secs(5)).await.map_err(|mut finding| {
        finding.message = format!("publication `{publication}` was created; {}", finding.message);
        finding
    })?;
    Ok(Created::Both { publication, slot, from })
}

/// One of the two exists.
fn half(missing_publication: bool, wanted: &Wanted, findings: &[Finding]) -> Finding {
    let (publication, slot) = (&wanted.publication, &wanted.slot);
    if missing_publication {
        // Its text says what a slot without its publication means.
        let code = FindingCode::PublicationMissing;
        let (text, sql) = findings
            .iter()
            .find(|finding| finding.code == code)
            .map(|finding| (finding.message.clone(), finding.hint_sql.clone()))
            .unwrap_or_default();
        let message =
            format!("--create makes publication and slot only where both are absent, and slot `{slot}` exists. {text}");
        return Finding { hint_sql: sql, ..Finding::error(FindingCode::HalfExists, message) };
    }
    Finding::error(
        FindingCode::HalfExists,
        format!(
            "--create makes publication and slot only where both are absent, and publication `{publication}` exists: \
             slot `{slot}` may have existed too, and what was committed since it was dropped is not sent by a new one. \
             If nothing is owed, create it"
        ),
    )
    .with_sql(create_slot_sql(slot))
}

pub(super) async fn create_publication(client: &Client, wanted: &Wanted) -> Result<(), Finding> {
    let sql = create_publication_sql(&wanted.publication, &wanted.table);
    execute(client, "create the publication", &sql).await.map_err(|error| {
        let message = format!(
            "publication `{}` could not be created: {}; the owner of {} or an administrator can run",
            wanted.publication,
            cause(&error),
            wanted.table
        );
        Finding::error(FindingCode::StatementFailed, message)
            .with_sql(format!("{sql}\n{}", create_slot_sql(&wanted.slot)))
    })
}

/// Creates the slot; events that are committed after the LSN it returns are sent. PostgreSQL waits until the
/// transactions that are open have ended: `patience` bounds that, in whole seconds.
pub(super) async fn create_slot(client: &Client, slot: &str, patience: Duration) -> Result<Lsn, Finding> {
    let what = "create the slot";
    let sql = "SELECT to_jsonb(lsn)::text FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')";
    let limit = format!("SET statement_timeout = '{}s'", patience.as_secs());
    let created = match execute(client, what, &limit).await {
        Ok(()) => json_row(client, what, sql, &[slot]).await,
        Err(error) => Err(error),
    };
    // A connection that broke shows itself at the next query.
    let _ = execute(client, what, "RESET statement_timeout").await;
    if created.is_ok() {
        gateway::note_birth(client, slot).await;
    }
    created.map(|lsn| lsn.unwrap_or(Lsn::ZERO)).map_err(|error| {
        let create = create_slot_sql(slot);
        if error.sqlstate() == Some(&SqlState::QUERY_CANCELED) {
            let message = format!(
                "slot `{slot}` could not be created within {} s: PostgreSQL makes a slot only when every transaction \
                 that was open has ended; look which ones are, end them, and create the slot",
                patience.as_secs()
            );
            return Finding::error(FindingCode::StatementFailed, message).with_sql(format!("{OPEN_SQL}\n{create}"));
        }
        let message = format!("slot `{slot}` could not be created: {}; create it when that is mended", cause(&error));
        Finding::error(FindingCode::StatementFailed, message).with_sql(create)
    })
}

/// Transactions that a new slot has to wait for.
const OPEN_SQL: &str = "\
SELECT pid, xact_start, application_name FROM pg_stat_activity WHERE backend_xid IS NOT NULL;
SELECT gid, prepared FROM pg_prepared_xacts;";

/// What PostgreSQL said, without what was being done.
pub(super) fn cause(error: &QueryError) -> String {
    match error {
        QueryError::Sql { source, .. } => describe(source),
        QueryError::Shape { source, .. } => source.to_string(),
    }
}
