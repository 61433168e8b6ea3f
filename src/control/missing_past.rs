//! A publication that exists, but did not when the WAL was written that the slot has to read.
//!
//! pgoutput looks the publication up in the catalog as it was when a change was written. A slot that was made first
//! therefore fails with 42704 at the first change that was written between the two, to whatever table, and fails there
//! for ever: creating the publication again does not help. From PostgreSQL 18 on such changes are skipped with a
//! warning in the server's log: rows are missing instead.

use walgate_sink::Lsn;

use super::{
    finding::{Finding, FindingCode},
    names::{TableName, quote_ident, quote_literal},
};

/// The LSN in the context line of an error that decoding raised:
/// `slot "walgate", output plugin "pgoutput", in the change callback, associated LSN 0/19480A8`.
#[must_use]
pub fn associated_lsn(context: &str) -> Option<Lsn> {
    let (_, rest) = context.split_once("associated LSN ")?;
    let end = rest.find(|c: char| !c.is_ascii_hexdigit() && c != '/').unwrap_or(rest.len());
    rest.get(..end)?.parse().ok()
}

/// Explains SQLSTATE 42704 for the publication, raised by the stream or by a look into the slot, although the
/// publication exists now (what preflight found just before). `at` is where decoding stopped, where it said so.
#[must_use]
pub fn explain_publication_missing_in_past(
    slot: &str,
    publication: &str,
    table: &TableName,
    at: Option<Lsn>,
) -> Finding {
    let place = at.map(|lsn| format!(" at {lsn}")).unwrap_or_default();
    Finding::error(
        FindingCode::PublicationYounger,
        format!(
            "slot `{slot}` cannot be read: publication `{publication}` exists now, but did not when the WAL{place} was \
             written, because the slot was made before the publication (or the publication was dropped and made again). \
             PostgreSQL can never get past that place, whatever is done to the publication; a new slot, made now that \
             the publication exists, can. Events that were committed before the new slot is made are not sent; their \
             rows are still in {table} unless they were deleted"
        ),
    )
    .with_sql(new_slot_sql(slot))
}

/// The SQL that replaces a slot by a new one.
pub(super) fn new_slot_sql(slot: &str) -> String {
    format!("SELECT pg_drop_replication_slot({});\n{}", quote_literal(slot), create_slot_sql(slot))
}

/// The SQL that makes a slot.
pub(super) fn create_slot_sql(slot: &str) -> String {
    format!("SELECT pg_create_logical_replication_slot({}, 'pgoutput');", quote_literal(slot))
}

/// The SQL that makes a publication of a table's inserts. Through the root, so that a partitioned table is published
/// under its own name; it means nothing for another one.
pub(super) fn create_publication_sql(publication: &str, table: &TableName) -> String {
    format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish = 'insert', publish_via_partition_root = true);",
        quote_ident(publication),
        table
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lsn_is_found_in_the_context() {
        let context = "slot \"s1\", output plugin \"pgoutput\", in the change callback, associated LSN 0/19480A8";
        assert_eq!(associated_lsn(context), Some(Lsn(0x19480A8)));
        assert_eq!(associated_lsn(&format!("{context}\nSQL statement")), Some(Lsn(0x19480A8)));
        for other in ["", "associated LSN ", "associated LSN x", "no LSN"] {
            assert_eq!(associated_lsn(other), None);
        }
    }

    #[test]
    fn the_explanation_says_what_to_do() {
        let table = TableName::new("public", "outbox_events");
        insta::assert_snapshot!(explain_publication_missing_in_past(
            "walgate",
            "walgate_outbox",
            &table,
            Some(Lsn(0x19480A8))
        ));
    }
}
