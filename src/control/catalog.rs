//! The catalog watch: whether what is committed to the outbox still comes through the slot.
//!
//! A table that was dropped and made again is in no publication any more, and the stream stays up and silent. So the
//! catalogs are looked at again and again; and because two changes between two looks can undo each other (DROP and ADD of
//! the table, SET UNLOGGED and SET LOGGED), the rows of the catalogs are compared as rows, not only by what they say.

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use walgate_sink::Lsn;

use super::{
    finding::{Finding, FindingCode},
    preflight::{Wanted, preflight},
    query::{QueryError, json_row},
};

/// The rows of the catalogs that lead from the table to the stream. Another one is a break: what was committed around it
/// may not have been streamed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogRows {
    /// oid and xmin of the publication's row.
    pub publication: Option<String>,
    /// oid and xmin of the rows that put the table, an ancestor or its schema into the publication.
    pub members: Vec<String>,
    /// oid and persistence of the table, and, where the publication does not name it (and PostgreSQL lets it become UNLOGGED),
    /// its file: another one after SET UNLOGGED, and after TRUNCATE, VACUUM FULL and the like too. Its row would be another
    /// one after each GRANT.
    pub table: Option<String>,
}

/// One look.
#[derive(Clone, Debug)]
pub struct CatalogLook {
    /// The rows.
    pub rows: CatalogRows,
    /// What keeps events from coming; none: they come.
    pub broken: Vec<Finding>,
    /// Where the server wrote at that time.
    pub lsn: Option<Lsn>,
}

impl CatalogRows {
    /// What differs, in words; none: nothing does.
    #[must_use]
    pub fn difference(&self, before: &CatalogRows) -> Option<&'static str> {
        let CatalogRows { publication, members, table } = before;
        if *table != self.table {
            Some("the table was made again, rewritten or truncated")
        } else if *publication != self.publication {
            Some("the publication was made again or changed")
        } else if *members != self.members {
            Some(
                "the table was taken out of the publication and put in again, or its row filter or column list changed",
            )
        } else {
            None
        }
    }

    /// As it is kept in the row `walgate.gateway`.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// What [`to_text`](CatalogRows::to_text) has written; none: something else.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

/// $1: the publication; $2: the schema; $3: the table. An ancestor's membership is the table's.
macro_rules! rows_sql {
    ($namespaces:literal) => {
        concat!(
            "\
WITH t AS (
    SELECT c.oid, c.relfilenode, c.relpersistence, c.relnamespace
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $2 AND c.relname = $3
), p AS (
    SELECT oid, xmin FROM pg_catalog.pg_publication WHERE pubname = $1
), members AS (
    SELECT 'table ' || r.oid || ' ' || r.xmin AS member
    FROM pg_catalog.pg_publication_rel r JOIN p ON p.oid = r.prpubid
    WHERE r.prrelid IN (SELECT oid FROM t)
        OR r.prrelid IN (SELECT a.relid FROM t, pg_catalog.pg_partition_ancestors(t.oid) a)",
            $namespaces,
            "
)
SELECT jsonb_build_object(
    'publication', (SELECT oid || ' ' || xmin FROM p),
    'members', (SELECT COALESCE(jsonb_agg(member ORDER BY member), '[]') FROM members),
    'table', (
        SELECT oid || ' ' || relpersistence::text || CASE
            WHEN EXISTS (SELECT FROM pg_catalog.pg_publication_rel r JOIN p ON p.oid = r.prpubid WHERE r.prrelid = t.oid)
            THEN '' ELSE ' ' || relfilenode END
        FROM t))::text"
        )
    };
}

const ROWS_14: &str = rows_sql!("");
const ROWS_15: &str = rows_sql!(
    "
    UNION ALL
    SELECT 'schema ' || s.oid || ' ' || s.xmin
    FROM pg_catalog.pg_publication_namespace s JOIN p ON p.oid = s.pnpubid JOIN t ON t.relnamespace = s.pnnspid"
);

/// Looks once. Read-only, on a connection on which nothing else is written meanwhile. None: they could not be read now,
/// which says nothing of them.
///
/// # Errors
/// The queries failed, or the connection broke.
pub async fn look_at_catalog(client: &Client, wanted: &Wanted) -> Result<Option<CatalogLook>, QueryError> {
    let what = "read the catalogs";
    // Before what is judged by them: a change in between is seen at the next look.
    let rows = rows(client, wanted, what).await?;
    let (broken, lsn) = match preflight(client, wanted).await {
        Ok(found) => (Vec::new(), found.facts.slots.current_wal_lsn),
        Err(findings) if findings.iter().any(|finding| finding.code == FindingCode::QueryFailed) => return Ok(None),
        Err(findings) => {
            (findings.into_iter().filter(|finding| finding.blocks() && silences(finding.code)).collect(), None)
        }
    };
    Ok(Some(CatalogLook { rows, broken, lsn }))
}

/// Whether events do not come because of it though the stream may be up. What hinders a start alone does not.
fn silences(code: FindingCode) -> bool {
    use FindingCode::{
        ColumnGenerated, ColumnMissing, ColumnType, PublicationColumnList, PublicationMissing, PublicationNotViaRoot,
        PublicationRowFilter, PublicationWithoutInsert, PublicationWithoutTable, SlotLost, SlotMissing, TableKind,
        TableMissing, TablePersistence,
    };
    matches!(
        code,
        ColumnGenerated
            | ColumnMissing
            | ColumnType
            | PublicationColumnList
            | PublicationMissing
            | PublicationNotViaRoot
            | PublicationRowFilter
            | PublicationWithoutInsert
            | PublicationWithoutTable
            | SlotLost
            | SlotMissing
            | TableKind
            | TableMissing
            | TablePersistence
    )
}

async fn rows(client: &Client, wanted: &Wanted, what: &'static str) -> Result<CatalogRows, QueryError> {
    let version = "SELECT to_jsonb(current_setting('server_version_num')::int)::text";
    let version: Option<i64> = json_row(client, what, version, &[]).await?;
    let sql = if version.unwrap_or(0) >= 150_000 { ROWS_15 } else { ROWS_14 };
    let names = [wanted.publication.as_str(), wanted.table.schema.as_str(), wanted.table.name.as_str()];
    let rows = json_row(client, what, sql, &names).await?;
    Ok(rows.unwrap_or(CatalogRows { publication: None, members: Vec::new(), table: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named_and_the_text_goes_both_ways() {
        let before = CatalogRows {
            publication: Some("1 700".into()),
            members: vec!["table 2 701".into()],
            table: Some("3 3 p".into()),
        };
        assert_eq!(before.difference(&before), None);
        for (now, says) in [
            (CatalogRows { table: Some("4 4 p".into()), ..before.clone() }, "the table was made again"),
            (CatalogRows { publication: Some("1 702".into()), ..before.clone() }, "the publication"),
            (CatalogRows { members: Vec::new(), ..before.clone() }, "taken out"),
        ] {
            assert!(now.difference(&before).is_some_and(|said| said.contains(says)), "{now:?}");
            assert_eq!(CatalogRows::from_text(&now.to_text()), Some(now));
        }
        assert_eq!(CatalogRows::from_text("{}"), None);
    }
}
