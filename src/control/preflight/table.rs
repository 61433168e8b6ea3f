//! The outbox table: what it is, its columns, and rows that are in it already.

use super::{ColumnFacts, ColumnRole, Facts, ROWS_COUNTED, TableFacts, Wanted, WantedColumn};
use crate::control::{
    finding::{Finding, FindingCode, Severity},
    names::quote_ident,
};

/// Columns that an error lists at the most.
const LISTED: usize = 30;

pub(super) fn judge(facts: &Facts, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let name = &wanted.table;
    let Some(table) = &facts.table else {
        let near = facts.near_table.as_ref().map(|near| format!(" (there is {near})")).unwrap_or_default();
        findings.push(Finding::error(
            FindingCode::TableMissing,
            format!(
                "outbox table {name} does not exist in database `{}`{near}; create it (`walgate init --with-table` \
                 prints the SQL), or set outbox.table",
                facts.server.database
            ),
        ));
        return;
    };
    let kind = match table.kind {
        'r' | 'p' => None,
        'v' => Some("a view"),
        'm' => Some("a materialized view"),
        'f' => Some("a foreign table"),
        _ => Some("no table"),
    };
    if let Some(kind) = kind {
        findings.push(Finding::error(
            FindingCode::TableKind,
            format!("{name} is {kind}: only inserts into an ordinary or partitioned table reach the write-ahead log; set outbox.table to the table itself"),
        ));
        return;
    }
    match table.persistence {
        'u' => findings.push(
            Finding::error(
                FindingCode::TablePersistence,
                format!("outbox table {name} is unlogged: its rows are not written to the write-ahead log; make it logged"),
            )
            .with_sql(format!("ALTER TABLE {name} SET LOGGED;")),
        ),
        't' => findings.push(Finding::error(
            FindingCode::TablePersistence,
            format!("outbox table {name} is temporary: its rows are not written to the write-ahead log; use a permanent table"),
        )),
        _ => {}
    }
    for column in &wanted.columns {
        match table.columns.iter().find(|found| found.name == column.name) {
            Some(found) => judge_column(facts, wanted, column, found, findings),
            None => findings.push(missing(table, wanted, column)),
        }
    }
}

fn missing(table: &TableFacts, wanted: &Wanted, column: &WantedColumn) -> Finding {
    let score = |name: &str| strsim::jaro_winkler(&name.to_lowercase(), &column.name.to_lowercase());
    let names = || table.columns.iter().map(|found| found.name.as_str());
    let near = names().filter(|name| score(name) >= 0.8).max_by(|a, b| score(a).total_cmp(&score(b)));
    let near = near.map(|near| format!(": did you mean `{near}`?")).unwrap_or_default();
    let mut list: Vec<_> = names().take(LISTED).map(|name| format!("`{name}`")).collect();
    if table.columns.len() > LISTED {
        list.push(format!("and {} more", table.columns.len() - LISTED));
    }
    let setting = match column.role {
        ColumnRole::Id => "outbox.columns.id",
        ColumnRole::EventType => "outbox.columns.event_type",
        ColumnRole::Payload => "outbox.columns.payload",
        ColumnRole::Key => "outbox.columns.key",
        ColumnRole::Headers => "outbox.columns.headers",
        ColumnRole::Other => "outbox.header_columns or a route",
    };
    Finding::error(
        FindingCode::ColumnMissing,
        format!(
            "outbox table {} has no column `{}`{near} (it has {}); set {setting} to a column that exists",
            wanted.table,
            column.name,
            if list.is_empty() { "none".to_owned() } else { list.join(", ") }
        ),
    )
}

fn judge_column(
    facts: &Facts,
    wanted: &Wanted,
    column: &WantedColumn,
    found: &ColumnFacts,
    findings: &mut Vec<Finding>,
) {
    let (allowed, listed): (&[&str], _) = match column.role {
        ColumnRole::Payload => {
            (&["jsonb", "json", "text", "bytea", "varchar", "bpchar", "citext"], "jsonb, json, text or bytea")
        }
        ColumnRole::Headers => (&["jsonb", "json"], "jsonb or json"),
        _ => (&[], ""),
    };
    let what = match column.role {
        ColumnRole::Headers => "headers",
        _ => "payload",
    };
    if !allowed.is_empty() && !allowed.contains(&found.base_type.as_str()) {
        findings.push(Finding::error(
            FindingCode::ColumnType,
            format!(
                "column `{}` of {} has type {}: the {what} must be {listed}; set outbox.columns.{what} to such a column, \
                 or change the column's type",
                found.name, wanted.table, found.sql_type
            ),
        ));
    }
    if found.generated {
        generated(facts, wanted, found, findings);
    }
    let needed = matches!(column.role, ColumnRole::Id | ColumnRole::EventType | ColumnRole::Payload);
    if needed && !found.not_null {
        findings.push(
            Finding::warning(
                FindingCode::ColumnNullable,
                format!(
                    "column `{}` of {} may be NULL: a row without it is not an event that can be delivered; forbid it",
                    found.name, wanted.table
                ),
            )
            .with_sql(format!(
                "ALTER TABLE {} ALTER COLUMN {} SET NOT NULL;",
                wanted.table,
                quote_ident(&found.name)
            )),
        );
    }
}

/// Before 18 generated columns are never published; from 18 on the publication says whether the stored ones are.
fn generated(facts: &Facts, wanted: &Wanted, found: &ColumnFacts, findings: &mut Vec<Finding>) {
    let major = facts.server.major();
    let entry = facts.publication.as_ref().and_then(|publication| publication.entry.as_ref());
    let finding = if major < 18 {
        Finding::error(
            FindingCode::ColumnGenerated,
            format!(
                "column `{}` of {} is a generated column: PostgreSQL {major} does not publish those; read the columns \
                 that it is made of, or fill an ordinary column when the row is written",
                found.name, wanted.table
            ),
        )
    } else if entry.and_then(|entry| entry.attnames.as_ref()).is_some_and(|names| !names.contains(&found.name)) {
        Finding::error(
            FindingCode::ColumnGenerated,
            format!(
                "column `{}` of {} is a generated column, and publication `{}` does not publish those; publish the \
                 stored ones (virtual ones cannot be), or read the columns that it is made of",
                found.name, wanted.table, wanted.publication
            ),
        )
        .with_sql(format!(
            "ALTER PUBLICATION {} SET (publish_generated_columns = 'stored');",
            quote_ident(&wanted.publication)
        ))
    } else {
        return;
    };
    findings.push(finding);
}

/// Rows that are in the table already.
pub(super) fn judge_rows(facts: &Facts, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let (Some(table), true) = (&facts.table, wanted.count_rows) else { return };
    let Some(existing) = facts.existing else {
        if !table.may_select {
            findings.push(Finding::new(
                FindingCode::ExistingRows,
                Severity::Info,
                format!(
                    "rows of {} that were committed before slot `{}` was made are not sent; they cannot be counted, \
                     because role `{}` has no SELECT on the table (it needs none to run)",
                    wanted.table, wanted.slot, facts.server.role
                ),
            ));
        }
        return;
    };
    if existing.rows == 0 {
        return;
    }
    let capped = existing.rows >= ROWS_COUNTED;
    let rows = match existing.rows {
        _ if capped => format!("more than {} rows", ROWS_COUNTED - 1),
        1 => "1 row".to_owned(),
        rows => format!("{rows} rows"),
    };
    let finding = match &facts.slots.slot {
        None => Finding::warning(
            FindingCode::ExistingRows,
            format!(
                "{} holds {rows}: rows that are committed before slot `{}` is made are not sent",
                wanted.table, wanted.slot
            ),
        ),
        Some(slot) if existing.behind_slot > 0 => {
            let behind = match (existing.behind_slot, existing.rows) {
                (behind, rows) if behind == rows && !capped => "all of them".to_owned(),
                (behind, _) => format!("at least {} of them", behind.min(ROWS_COUNTED - 1)),
            };
            let from = slot.confirmed_flush_lsn.map(|lsn| format!(" ({lsn})")).unwrap_or_default();
            Finding::warning(
                FindingCode::ExistingRows,
                format!(
                    "{} holds {rows}, {behind} from before what slot `{}` still reads{from}: they are older than the \
                     slot, or were delivered through it already, and will not be sent",
                    wanted.table, wanted.slot
                ),
            )
        }
        Some(_) => Finding::new(
            FindingCode::ExistingRows,
            Severity::Info,
            format!(
                "{} holds {rows}: those that were committed before slot `{}` was made are not sent; which ones \
                 PostgreSQL does not tell",
                wanted.table, wanted.slot
            ),
        ),
    };
    findings.push(finding);
}
