//! What must hold before streaming starts, checked from the catalogs: all findings, not only the first.

mod facts;
mod parking;
mod publication;
mod server;
mod slot;
mod standby_names;
mod table;
#[cfg(test)]
mod tests;

use serde::Serialize;
use tokio_postgres::Client;

pub use facts::{
    ColumnFacts, ExistingRows, ParkingFacts, PastFacts, PublicationEntry, PublicationFacts, ROWS_COUNTED, ServerFacts,
    TableFacts,
};
pub use parking::Parking;

use crate::config;

use super::{
    finding::{Finding, FindingCode},
    gateway::{self, GatewayRow},
    names::TableName,
    query::{QueryError, execute},
    slot::{SlotReport, slot_report},
};

/// The oldest PostgreSQL that walgate reads.
pub const OLDEST_MAJOR: i32 = 14;

/// What walgate is configured to use.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The outbox table.
    pub table: TableName,
    /// The columns that the mapping and the templates read.
    pub columns: Vec<WantedColumn>,
    /// The application name of the replication connection.
    pub application_name: String,
    /// Whether to count the rows that will not be sent (`check --connect`).
    pub count_rows: bool,
    /// Whether another process may read the slot: this one stands by then.
    pub may_stand_by: bool,
    /// Whether a slot that somebody else has moved is gone on from.
    pub accept_gap: bool,
}

impl Wanted {
    /// A slot, a publication and a table whose columns do not matter; connected as `walgate`, rows not counted.
    pub fn new(
        slot: impl Into<String>,
        publication: impl Into<String>,
        schema: impl Into<String>,
        table: impl Into<String>,
    ) -> Self {
        Wanted {
            slot: slot.into(),
            publication: publication.into(),
            table: TableName::new(schema, table),
            columns: Vec::new(),
            application_name: "walgate".to_owned(),
            count_rows: false,
            may_stand_by: false,
            accept_gap: false,
        }
    }

    /// The same, with the columns that the mapping reads, and those that the routes do.
    #[must_use]
    pub fn with_mapping(mut self, outbox: &config::Outbox, templates: &[String]) -> Self {
        let columns = &outbox.columns;
        let mut wanted = vec![
            WantedColumn::new(&columns.id, ColumnRole::Id),
            WantedColumn::new(&columns.event_type, ColumnRole::EventType),
            WantedColumn::new(&columns.payload, ColumnRole::Payload),
        ];
        let key = columns.key.as_ref().and_then(config::KeySource::column);
        wanted.extend(key.map(|name| WantedColumn::new(name, ColumnRole::Key)));
        wanted.extend(columns.headers.iter().map(|name| WantedColumn::new(name, ColumnRole::Headers)));
        for name in outbox.header_columns.values().chain(templates) {
            if wanted.iter().all(|column| column.name != *name) {
                wanted.push(WantedColumn::new(name, ColumnRole::Other));
            }
        }
        self.columns = wanted;
        self
    }

    /// The same, connected under another application name.
    #[must_use]
    pub fn with_application_name(mut self, name: impl Into<String>) -> Self {
        self.application_name = name.into();
        self
    }

    /// The same, where another process may read the slot.
    #[must_use]
    pub fn standing_by(mut self) -> Self {
        self.may_stand_by = true;
        self
    }

    /// The same, with the rows counted that will not be sent.
    #[must_use]
    pub fn counting_rows(mut self) -> Self {
        self.count_rows = true;
        self
    }
}

/// A column that must exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedColumn {
    /// Its name.
    pub name: String,
    /// What it is read for.
    pub role: ColumnRole,
}

impl WantedColumn {
    /// A column and what it is read for.
    pub fn new(name: impl Into<String>, role: ColumnRole) -> Self {
        WantedColumn { name: name.into(), role }
    }
}

/// What a column is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColumnRole {
    /// The event's identity.
    Id,
    /// The event's type.
    EventType,
    /// The payload.
    Payload,
    /// The ordering key.
    Key,
    /// A JSON object whose members travel as headers.
    Headers,
    /// Something else: a header of its own, or a template.
    Other,
}

/// What was read. What stands behind something that does not exist is none.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// The server, the database and the role.
    pub server: ServerFacts,
    /// The table.
    pub table: Option<TableFacts>,
    /// The publication.
    pub publication: Option<PublicationFacts>,
    /// The slot, and the other ones.
    pub slots: SlotReport,
    /// The table's rows, where they were to be counted and could be.
    pub existing: Option<ExistingRows>,
    /// Whether what the slot reads first knows the publication.
    pub past: PastFacts,
    /// walgate's own tables.
    pub parking: ParkingFacts,
    /// What is known of the slot in walgate's own tables, and the identifier of this cluster.
    pub gateway: Option<(GatewayRow, String)>,
    #[serde(skip)]
    near_table: Option<String>,
}

/// Everything holds; there may be warnings.
#[derive(Clone, Debug, Serialize)]
pub struct Preflight {
    /// What was read.
    pub facts: Facts,
    /// What does not hinder, but should be known.
    pub warnings: Vec<Finding>,
}

/// Checks server, role, table, publication and slot. Nothing is changed.
///
/// The queries run in a read-only transaction with a timeout. Reads of others on the same client do no harm; a future
/// that is dropped half-way leaves the transaction open.
///
/// # Errors
/// Every finding, warnings too, where at least one of them blocks. [`only_waits`](super::finding::only_waits) says
/// whether trying again is all that is needed.
pub async fn preflight(client: &Client, wanted: &Wanted) -> Result<Preflight, Vec<Finding>> {
    let facts = match read(client, wanted).await {
        Ok(Ok(facts)) => facts,
        Ok(Err(too_old)) => return Err(vec![too_old]),
        Err(error) => {
            let _ = execute(client, "end the check", "ROLLBACK").await;
            return Err(vec![Finding::error(FindingCode::QueryFailed, error.to_string())]);
        }
    };
    let findings = judge(&facts, wanted);
    if findings.iter().any(Finding::blocks) {
        return Err(findings);
    }
    Ok(Preflight { facts, warnings: findings })
}

/// The facts, or that the server is too old to be asked for them.
async fn read(client: &Client, wanted: &Wanted) -> Result<Result<Facts, Finding>, QueryError> {
    let begin = "BEGIN READ ONLY; SET LOCAL statement_timeout = '5s'; SET LOCAL search_path = pg_catalog";
    execute(client, "begin the check", begin).await?;
    let server = match facts::server(client).await? {
        Some(server) if server.major() >= OLDEST_MAJOR => server,
        other => {
            execute(client, "end the check", "COMMIT").await?;
            return Ok(Err(server::too_old(other.as_ref())));
        }
    };
    let table = facts::table(client, wanted).await?;
    let near_table = if table.is_none() { facts::near_table(client, wanted).await? } else { None };
    let publication = facts::publication(client, wanted).await?;
    let parking = facts::parking(client, &wanted.publication).await?;
    let slots = slot_report(client, &wanted.slot).await?;
    let known = parking.exists && parking.may_write;
    let gateway = if known { gateway::read(client, &wanted.slot).await? } else { None };
    let may_count =
        wanted.count_rows && table.as_ref().is_some_and(|table| table.may_select && matches!(table.kind, 'r' | 'p'));
    let existing = if may_count { facts::existing_rows(client, wanted).await? } else { None };
    execute(client, "end the check", "COMMIT").await?;
    let younger = publication.as_ref().and_then(|publication| publication.younger_than_slot) == Some(true);
    let past = if younger { facts::past(client, wanted, &slots, &server).await } else { PastFacts::NotAsked };
    Ok(Ok(Facts { server, table, publication, slots, existing, past, parking, gateway, near_table }))
}

/// The table's columns and kind; none: it does not exist.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn read_table(client: &Client, wanted: &Wanted) -> Result<Option<TableFacts>, QueryError> {
    facts::table(client, wanted).await
}

/// Whether walgate's own tables exist, with every column.
pub(in crate::control) async fn parking_tables_are_whole(client: &Client) -> Result<bool, QueryError> {
    Ok(facts::parking(client, "").await?.exists)
}

/// Every finding, in the order in which the SQL that mends them should be run.
fn judge(facts: &Facts, wanted: &Wanted) -> Vec<Finding> {
    let mut findings = Vec::new();
    server::judge(facts, wanted, &mut findings);
    table::judge(facts, wanted, &mut findings);
    publication::judge(facts, wanted, &mut findings);
    slot::judge(facts, wanted, &mut findings);
    parking::judge(facts, wanted, &mut findings);
    table::judge_rows(facts, wanted, &mut findings);
    findings
}
