//! What stands in the way of a clean-up, or beside it, with the SQL that mends it.

use super::{
    CleanupFacts, Plan,
    facts::{AgeType, CleanupTable, LeafFacts},
};
use crate::{
    config::CleanupMode,
    control::{
        finding::{Finding, FindingCode, Severity},
        names::quote_ident,
    },
};

/// As many partitions are named, not more.
const NAMED: usize = 5;

/// Every finding; one that blocks keeps the clean-up off, and nothing else.
#[must_use]
pub fn judge(facts: &CleanupFacts, plan: &Plan) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(table) = &facts.table else {
        findings.push(Finding::error(
            FindingCode::CleanupElsewhere,
            format!(
                "the clean-up finds no table {} in database `{}`: let cleanup.url lead to the outbox's database",
                plan.table, facts.database
            ),
        ));
        return findings;
    };
    rights(facts, table, plan, &mut findings);
    age(table, plan, &mut findings);
    match plan.mode() {
        CleanupMode::Mark => mark(table, plan, &mut findings),
        CleanupMode::DropPartitions => partitions(table, plan, &mut findings),
        CleanupMode::Delete | CleanupMode::Off => {}
    }
    if plan.mode() != CleanupMode::DropPartitions {
        index(table, plan, &mut findings);
        published(table, plan, &mut findings);
        triggers(table, plan, &mut findings);
    }
    findings
}

/// Names of the leaves that something is true of, a few of them, and all of them as a list for SQL.
fn those(table: &CleanupTable, which: impl Fn(&LeafFacts) -> bool) -> Option<(String, Vec<&str>)> {
    let names: Vec<&str> = table.leaves.iter().filter(|leaf| which(leaf)).map(|leaf| leaf.name.as_str()).collect();
    let more = names.len().saturating_sub(NAMED);
    let mut text = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    (!names.is_empty()).then_some((text, names))
}

fn rights(facts: &CleanupFacts, table: &CleanupTable, plan: &Plan, findings: &mut Vec<Finding>) {
    let role = &facts.role;
    let quoted = quote_ident(role);
    let mut grants = Vec::new();
    if !table.may_use_schema {
        grants.push(format!("GRANT USAGE ON SCHEMA {} TO {quoted};", quote_ident(&plan.table.schema)));
    }
    let mark = quote_ident(&plan.cleanup.mark);
    let (right, lacks): (String, fn(&LeafFacts) -> bool) = match plan.mode() {
        CleanupMode::Mark => (format!("SELECT, UPDATE ({mark})"), |leaf| !leaf.may_select || !leaf.may_mark),
        CleanupMode::DropPartitions => ("SELECT".to_owned(), |leaf| !leaf.may_select),
        CleanupMode::Delete | CleanupMode::Off => {
            ("SELECT, DELETE".to_owned(), |leaf| !leaf.may_select || !leaf.may_delete)
        }
    };
    // A missing column is said elsewhere.
    let no_column = plan.mode() == CleanupMode::Mark && table.mark_type.is_none();
    if let Some((_, names)) = those(table, lacks).filter(|_| !no_column) {
        grants.push(format!("GRANT {right} ON {} TO {quoted};", names.join(", ")));
    }
    if !grants.is_empty() {
        findings.push(
            Finding::error(
                FindingCode::CleanupRights,
                format!(
                    "role `{role}` may not do what `cleanup.mode: {}` needs on {}: give it the rights, or name a role that \
                     has them in cleanup.url; the rights on a partition are its own, a new one needs them too",
                    plan.mode().as_str(),
                    plan.table
                ),
            )
            .with_sql(grants.join("\n")),
        );
    }
    if plan.mode() == CleanupMode::DropPartitions
        && let Some((names, _)) = those(table, |leaf| leaf.parent.is_some() && !leaf.owned)
    {
        findings.push(Finding::error(
            FindingCode::CleanupRights,
            format!(
                "role `{role}` does not own {} and its partitions ({names}), and only their owner drops or detaches them: \
                 name the owner, or a role that is a member of it, in cleanup.url",
                plan.table
            ),
        ));
    }
    if table.hides_rows {
        findings.push(Finding::error(
            FindingCode::CleanupRights,
            format!(
                "row-level security hides rows of {} from role `{role}`, so it cannot be known what the table holds: let \
                 cleanup.url name a role with BYPASSRLS, or the table's owner",
                plan.table
            ),
        ));
    }
}

fn age(table: &CleanupTable, plan: &Plan, findings: &mut Vec<Finding>) {
    let (column, retain) = (&plan.cleanup.age, plan.cleanup.retain);
    let whole = plan.mode() == CleanupMode::DropPartitions;
    match (&table.age_type, table.age()) {
        (None, _) if retain.0.is_zero() && !whole => {}
        (None, _) => findings.push(Finding::error(
            FindingCode::CleanupAge,
            format!(
                "{} has no column `{column}`, by which `cleanup.retain` ({retain}) is measured: set cleanup.age to the \
                 column that says when a row was made{}",
                plan.table,
                if whole { "" } else { ", or write `retain: 0s`" }
            ),
        )),
        (Some(found), None) => findings.push(Finding::error(
            FindingCode::CleanupAge,
            format!(
                "column `{column}` of {} is {found}, and rows' age is read from a timestamptz (or timestamp): set \
                 cleanup.age to one",
                plan.table
            ),
        )),
        (Some(_), Some(AgeType::Local)) => findings.push(Finding::new(
            FindingCode::CleanupAge,
            Severity::Info,
            format!(
                "column `{column}` of {} is a timestamp without a time zone: it is compared in the time zone that the \
                 server has for the clean-up's role, so rows may go some hours sooner or later than cleanup.retain says",
                plan.table
            ),
        )),
        (Some(_), Some(AgeType::Zoned)) => {}
    }
}

fn mark(table: &CleanupTable, plan: &Plan, findings: &mut Vec<Finding>) {
    let column = &plan.cleanup.mark;
    let quoted = quote_ident(column);
    let mut wrong = |message: String, sql: Option<String>| {
        let finding = Finding::error(FindingCode::CleanupMark, message);
        findings.push(match sql {
            Some(sql) => finding.with_sql(sql),
            None => finding,
        });
    };
    match table.mark_type.as_deref() {
        None => wrong(
            format!(
                "{} has no column `{column}` for `cleanup.mode: mark` to set: add it, or set cleanup.mark",
                plan.table
            ),
            Some(format!("ALTER TABLE {} ADD COLUMN {quoted} boolean DEFAULT false;", plan.table)),
        ),
        Some("bool") if table.mark_generated => wrong(
            format!("column `{column}` of {} is generated, and cannot be set: set cleanup.mark to another", plan.table),
            None,
        ),
        Some("bool") => {}
        Some(found) => wrong(
            format!(
                "column `{column}` of {} is {found}, and `cleanup.mode: mark` sets a boolean to true: set cleanup.mark to \
                 one",
                plan.table
            ),
            None,
        ),
    }
    if table.mark_partitions {
        wrong(
            format!(
                "{} is partitioned by `{column}`: to set it moves the row into another partition, which is an insert, and \
                 would be delivered again. Use `cleanup.mode: delete`, or a column that the partitions do not depend on",
                plan.table
            ),
            None,
        );
    }
}

fn partitions(table: &CleanupTable, plan: &Plan, findings: &mut Vec<Finding>) {
    let whole = table.leaves.iter().any(|leaf| leaf.upper.is_some());
    let ranges = table.leaves.iter().filter(|leaf| leaf.parent.is_some()).count();
    // A table that has no partitions yet may get them.
    if table.kind == 'p' && (whole || ranges == 0) {
        return;
    }
    findings.push(Finding::error(
        FindingCode::CleanupPartitions,
        format!(
            "{} has no partitions by range of `{}`, which `cleanup.mode: drop_partitions` takes away as a whole: use \
             `cleanup.mode: delete`",
            plan.table, plan.cleanup.age
        ),
    ));
}

fn index(table: &CleanupTable, plan: &Plan, findings: &mut Vec<Finding>) {
    if table.age().is_none() {
        return;
    }
    let Some((names, all)) = those(table, |leaf| !leaf.indexed) else { return };
    let age = quote_ident(&plan.cleanup.age);
    let filter = match plan.mode() {
        CleanupMode::Mark => format!(" WHERE {} IS NOT TRUE", quote_ident(&plan.cleanup.mark)),
        _ => String::new(),
    };
    let sql: Vec<String> =
        all.iter().map(|leaf| format!("CREATE INDEX CONCURRENTLY ON {leaf} ({age}){filter};")).collect();
    findings.push(
        Finding::warning(
            FindingCode::CleanupIndex,
            format!(
                "there is no index on `{}` of {names}: the clean-up finds rows by reading all of the table, bit by bit, \
                 again and again; make one",
                plan.cleanup.age
            ),
        )
        .with_sql(sql.join("\n")),
    );
}

fn published(table: &CleanupTable, plan: &Plan, findings: &mut Vec<Finding>) {
    let marks = plan.mode() == CleanupMode::Mark;
    let what = if marks { "updates" } else { "deletes" };
    for publication in table.publications.iter().filter(|found| if marks { found.update } else { found.delete }) {
        let sql = format!("ALTER PUBLICATION {} SET (publish = 'insert');", quote_ident(&publication.name));
        let name = &publication.name;
        let finding = match those(table, |leaf| !leaf.has_replica_identity) {
            Some((names, _)) => Finding::error(
                FindingCode::CleanupPublished,
                format!(
                    "publication `{name}` publishes {what} of {names}, which has no replica identity (no primary key): \
                     PostgreSQL refuses the clean-up's statements there; let it publish inserts only, or give the table a \
                     primary key"
                ),
            ),
            None => Finding::warning(
                FindingCode::CleanupPublished,
                format!(
                    "publication `{name}` publishes {what} of {}: each row that is cleaned up comes through its slots \
                     again, for nothing where walgate reads it; let it publish inserts only",
                    plan.table
                ),
            ),
        };
        findings.push(finding.with_sql(sql));
    }
}

fn triggers(table: &CleanupTable, plan: &Plan, findings: &mut Vec<Finding>) {
    let (what, triggers) = match plan.mode() {
        CleanupMode::Mark => ("UPDATE", &table.update_triggers),
        _ => ("DELETE", &table.delete_triggers),
    };
    if triggers.is_empty() {
        return;
    }
    let names: Vec<String> = triggers.iter().map(|name| format!("`{name}`")).collect();
    findings.push(Finding::warning(
        FindingCode::CleanupTriggers,
        format!(
            "{} has triggers that fire on {what} ({}), so they fire for every row that is cleaned up: see that they may",
            plan.table,
            names.join(", ")
        ),
    ));
}
