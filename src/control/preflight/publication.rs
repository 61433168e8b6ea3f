//! The publication: that it exists and publishes the inserts of the table, whole.

use super::{Facts, PastFacts, PublicationEntry, PublicationFacts, TableFacts, Wanted};
use crate::control::{
    finding::{Finding, FindingCode, on_one_line},
    missing_past::{create_publication_sql, explain_publication_missing_in_past, new_slot_sql},
    names::quote_ident,
};

pub(super) fn judge(facts: &Facts, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let Some(publication) = &facts.publication else {
        findings.push(missing(facts, wanted));
        return;
    };
    let name = quote_ident(&wanted.publication);
    if !publication.insert {
        findings.push(
            Finding::error(
                FindingCode::PublicationWithoutInsert,
                format!(
                    "publication `{}` does not publish inserts: no event would arrive, and nothing would fail",
                    wanted.publication
                ),
            )
            .with_sql(format!("ALTER PUBLICATION {name} SET (publish = 'insert');")),
        );
    }
    match (&publication.entry, &facts.table) {
        (Some(entry), table) => judge_entry(entry, table.as_ref(), wanted, findings),
        (None, Some(table)) if matches!(table.kind, 'r' | 'p') && table.persistence == 'p' => {
            findings.push(without_table(publication, wanted));
        }
        // The table's own finding says it.
        (None, _) => {}
    }
    if let Some(tables) = publication.without_identity.as_deref().filter(|tables| !tables.is_empty()) {
        findings.push(without_identity(publication, wanted, tables));
    }
    younger(facts, wanted, findings);
}

fn missing(facts: &Facts, wanted: &Wanted) -> Finding {
    let create = create_publication_sql(&wanted.publication, &wanted.table);
    let (why, sql) = match &facts.slots.slot {
        None => ("create it, and then the slot".to_owned(), create),
        Some(_) => (
            format!(
                "create it, and make slot `{}` anew after it, because what a slot has to read from before its \
                 publication existed cannot be read; events that the slot has not delivered yet are not sent then, \
                 their rows are still in {} unless they were deleted",
                wanted.slot, wanted.table
            ),
            format!("{create}\n{}", new_slot_sql(&wanted.slot)),
        ),
    };
    Finding::error(
        FindingCode::PublicationMissing,
        format!("publication `{}` does not exist in database `{}`: {why}", wanted.publication, facts.server.database),
    )
    .with_sql(sql)
}

fn judge_entry(entry: &PublicationEntry, table: Option<&TableFacts>, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let name = quote_ident(&wanted.publication);
    let again = format!(
        "BEGIN;\nALTER PUBLICATION {name} DROP TABLE {table};\nALTER PUBLICATION {name} ADD TABLE {table};\nCOMMIT;",
        table = wanted.table
    );
    if let Some(filter) = &entry.rowfilter {
        findings.push(
            Finding::error(
                FindingCode::PublicationRowFilter,
                format!(
                    "publication `{}` has a row filter on {}, WHERE {}: rows that it leaves out are lost without a word; \
                     publish the table without a filter, and choose events by routes",
                    wanted.publication,
                    wanted.table,
                    on_one_line(filter)
                ),
            )
            .with_sql(again.clone()),
        );
    }
    if let Some(published) = &entry.attnames {
        // Columns that are missing or generated have findings of their own.
        let there = |name: &str| table.is_some_and(|t| t.columns.iter().any(|c| c.name == name && !c.generated));
        let hidden: Vec<_> = wanted
            .columns
            .iter()
            .filter(|column| !published.contains(&column.name) && there(&column.name))
            .map(|column| format!("`{}`", column.name))
            .collect();
        if !hidden.is_empty() {
            findings.push(
                Finding::error(
                    FindingCode::PublicationColumnList,
                    format!(
                        "publication `{}` does not publish {} of {}: its column list is ({}); publish the whole table",
                        wanted.publication,
                        hidden.join(", "),
                        wanted.table,
                        published.join(", ")
                    ),
                )
                .with_sql(again),
            );
        }
    }
}

fn without_table(publication: &PublicationFacts, wanted: &Wanted) -> Finding {
    let name = quote_ident(&wanted.publication);
    if publication.partitions || publication.named {
        return Finding::error(
            FindingCode::PublicationNotViaRoot,
            format!(
                "publication `{}` publishes the partitions of {} under their own names: a new one would be overlooked; \
                 publish them as their root",
                wanted.publication, wanted.table
            ),
        )
        .with_sql(format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true);"));
    }
    if let Some(ancestor) = &publication.ancestor {
        return Finding::error(
            FindingCode::PublicationWithoutTable,
            format!(
                "{} is a partition of {ancestor}, and publication `{}` publishes it under that name: set outbox.table \
                 to {ancestor}",
                wanted.table, wanted.publication
            ),
        );
    }
    Finding::error(
        FindingCode::PublicationWithoutTable,
        format!(
            "outbox table {} is not in publication `{}`: no event would arrive, and nothing would fail; add it (a table \
             that was dropped and created again has to be added again; what was written to it meanwhile is not sent)",
            wanted.table, wanted.publication
        ),
    )
    .with_sql(format!("ALTER PUBLICATION {name} ADD TABLE {};", wanted.table))
}

fn without_identity(publication: &PublicationFacts, wanted: &Wanted, tables: &[String]) -> Finding {
    let what = match (publication.update, publication.delete) {
        (true, true) => "updates and deletes",
        (true, false) => "updates",
        _ => "deletes",
    };
    let mut list = tables.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    if tables.len() > 3 {
        list.push_str(" and more");
    }
    Finding::warning(
        FindingCode::ReplicaIdentity,
        format!(
            "publication `{}` publishes {what} of tables without a replica identity ({list}): PostgreSQL refuses such \
             statements of the application there; walgate needs inserts only",
            wanted.publication
        ),
    )
    .with_sql(format!("ALTER PUBLICATION {} SET (publish = 'insert');", quote_ident(&wanted.publication)))
}

/// The slot may have to read WAL from before the publication existed.
fn younger(facts: &Facts, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let suspected = facts.publication.as_ref().and_then(|publication| publication.younger_than_slot) == Some(true);
    if !suspected {
        return;
    }
    match facts.past {
        PastFacts::Readable => {}
        PastFacts::Missing(at) => {
            findings.push(explain_publication_missing_in_past(&wanted.slot, &wanted.publication, &wanted.table, at))
        }
        PastFacts::NotAsked | PastFacts::Unknown => {
            let what = if facts.server.major() >= 18 {
                "rows that were written between the two are not sent"
            } else {
                "the stream fails with 42704 if anything was written between the two, and only a new slot helps then"
            };
            findings.push(Finding::warning(
                FindingCode::PublicationYounger,
                format!(
                    "publication `{}` seems to have been made or altered after slot `{}`: if it was made after it, {what}",
                    wanted.publication, wanted.slot
                ),
            ));
        }
    }
}
