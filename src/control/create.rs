//! `run --create`: publication and slot, where both are absent. Nothing that exists is changed, dropped or advanced.

use std::fmt;

use tokio_postgres::Client;
use walgate_sink::Lsn;

use super::{
    finding::{Finding, FindingCode},
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
    let from = create_slot(client, &wanted.slot).await.map_err(|error| {
        let message = format!(
            "publication `{publication}` was created, but slot `{slot}` could not be: {}; create it when that is mended",
            cause(&error)
        );
        Finding::error(FindingCode::StatementFailed, message).with_sql(create_slot_sql(&slot))
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

/// Creates the slot; events that are committed after the LSN it returns are sent.
pub(super) async fn create_slot(client: &Client, slot: &str) -> Result<Lsn, QueryError> {
    let sql = "SELECT to_jsonb(lsn)::text FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput')";
    Ok(json_row(client, "create the slot", sql, &[slot]).await?.unwrap_or(Lsn::ZERO))
}

/// What PostgreSQL said, without what was being done.
pub(super) fn cause(error: &QueryError) -> String {
    match error {
        QueryError::Sql { source, .. } => describe(source),
        QueryError::Shape { source, .. } => source.to_string(),
    }
}
