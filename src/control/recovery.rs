//! What of the outbox may be undelivered when the slot does not say so any more: found in the table itself, by the last
//! mark that was passed, and put into `walgate.parked` in the order of its insertion, in one transaction with the row that
//! says where the new slot begins.

use serde::Serialize;
use tokio_postgres::{
    Client, Row,
    types::{ToSql, Type},
};
use walgate_sink::Lsn;

use super::{
    gateway::GatewayRow,
    names::{TableName, quote_ident, quote_literal},
    query::{QueryError, execute},
};

/// Transactions are told apart over this many others.
const WINDOW: u64 = 1 << 31;
/// Rows that are fetched at once.
const FETCH: u32 = 500;

/// Which rows.
#[derive(Clone, Debug)]
pub struct Selection {
    /// The outbox.
    pub table: TableName,
    /// Its columns that are read, in this order.
    pub columns: Vec<String>,
    /// The column that says when a row was inserted, where there is one: rows come in its order.
    pub age: Option<String>,
    /// Only rows in which this column is not true.
    pub unpublished: Option<String>,
    /// By what is known of the slot.
    pub which: Which,
    /// Further conditions: a column, how it is compared, and with what.
    pub filters: Vec<RowFilter>,
}

/// A condition on a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RowFilter {
    /// Its text is one of these.
    OneOf(String, Vec<String>),
    /// A time, not before this one.
    Since(String, String),
    /// A time before this one.
    Before(String, String),
}

impl RowFilter {
    fn condition(&self) -> String {
        match self {
            RowFilter::OneOf(column, values) => {
                let values: Vec<String> = values.iter().map(|value| quote_literal(value)).collect();
                format!("t.{}::text IN ({})", quote_ident(column), values.join(", "))
            }
            RowFilter::Since(column, time) => {
                format!("t.{} >= {}::timestamptz", quote_ident(column), quote_literal(time))
            }
            RowFilter::Before(column, time) => {
                format!("t.{} < {}::timestamptz", quote_ident(column), quote_literal(time))
            }
        }
    }
}

/// Which rows, by what is known of the slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// Those that are not settled for certain. `past`: those from before the slot's birth too, where nobody knows of them.
    Unsettled {
        /// What is known; none: nothing, so it is every row.
        known: Option<GatewayRow>,
        /// Whether rows from before the birth are wanted.
        past: bool,
    },
    /// Those from before the slot's birth; without one, all that there are.
    Past {
        /// The birth.
        birth: Option<u64>,
    },
    /// Those that are settled for certain.
    Settled {
        /// What is known.
        known: GatewayRow,
    },
}

/// How many rows there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Rows of the table.
    pub rows: u64,
    /// Those that are wanted.
    pub wanted: u64,
    /// Those among them that are from before the slot's birth: they were never streamed.
    pub past: u64,
}

/// One row: its columns as text, in the order that was asked for, and when it was inserted.
#[derive(Debug)]
pub struct Found {
    /// Columns as text.
    pub columns: Vec<Option<String>>,
    /// Microseconds since 1970, where there is a column that says so.
    pub inserted_at: Option<i64>,
}

impl Selection {
    /// The condition; `now`: the next transaction's number.
    fn condition(&self, now: u64) -> String {
        let older = |xid: u64| format!("age(t.xmin) > age('{}'::xid8::xid)", xid);
        let known = |xid: u64| xid <= now && now - xid < WINDOW;
        let mut condition = match &self.which {
            Which::Unsettled { known: None, .. } | Which::Past { birth: None } => "true".to_owned(),
            Which::Unsettled { known: Some(row), past } => {
                // In doubt a row is sent.
                let settled =
                    row.mark.filter(|mark| known(mark.xmin)).map_or("false".to_owned(), |mark| older(mark.xmin));
                match (row.past_settled, past, known(row.birth)) {
                    (true, ..) | (false, true, false) => format!("NOT ({settled})"),
                    (false, true, true) => format!("(NOT ({settled}) OR {})", older(row.birth)),
                    (false, false, true) => format!("(NOT ({settled}) AND NOT {})", older(row.birth)),
                    (false, false, false) => format!("NOT ({settled})"),
                }
            }
            Which::Settled { known: row } => match row.mark.filter(|mark| known(mark.xmin)) {
                None => "false".to_owned(),
                Some(mark) if row.past_settled || !known(row.birth) => older(mark.xmin),
                Some(mark) => format!("({} AND NOT {})", older(mark.xmin), older(row.birth)),
            },
            // All rows are younger than so old a birth, as far as can be told.
            Which::Past { birth: Some(birth) } => {
                if known(*birth) {
                    older(*birth)
                } else {
                    "false".to_owned()
                }
            }
        };
        for filter in &self.filters {
            condition.push_str(&format!(" AND {}", filter.condition()));
        }
        if let Some(column) = &self.unpublished {
            condition.push_str(&format!(" AND t.{} IS NOT TRUE", quote_ident(column)));
        }
        condition
    }

    fn birth(&self) -> Option<u64> {
        match &self.which {
            Which::Unsettled { known, .. } => known.as_ref().map(|row| row.birth),
            Which::Past { birth } => *birth,
            Which::Settled { known } => Some(known.birth),
        }
    }

    /// Counts them, in the snapshot that the connection has.
    ///
    /// # Errors
    /// The role may not read the table, or the query failed otherwise.
    pub async fn count(&self, client: &Client) -> Result<Counts, QueryError> {
        let what = "count the outbox's rows";
        let now = now(client).await?;
        let past = match self.birth().filter(|birth| *birth <= now && now - birth < WINDOW) {
            Some(birth) => format!("age(t.xmin) > age('{birth}'::xid8::xid)"),
            None => "false".to_owned(),
        };
        let condition = self.condition(now);
        let sql = format!(
            "SELECT count(*), count(*) FILTER (WHERE {condition}), count(*) FILTER (WHERE ({condition}) AND {past}) FROM {} t",
            self.table
        );
        let row = client.query_typed_one(&sql, &[]).await.map_err(|source| QueryError::Sql { what, source })?;
        let number = |index| -> Result<u64, QueryError> {
            let number: i64 = row.try_get(index).map_err(|source| QueryError::Sql { what, source })?;
            Ok(u64::try_from(number).unwrap_or(0))
        };
        Ok(Counts { rows: number(0)?, wanted: number(1)?, past: number(2)? })
    }

    /// Opens a cursor over them, in the transaction that the connection is in.
    ///
    /// # Errors
    /// The role may not read the table, or the query failed otherwise.
    pub async fn open(&self, client: &Client) -> Result<(), QueryError> {
        let columns: Vec<String> =
            self.columns.iter().map(|column| format!("t.{}::text", quote_ident(column))).collect();
        let (at, order) = match &self.age {
            Some(age) => {
                let age = quote_ident(age);
                (format!("(EXTRACT(epoch FROM t.{age}::timestamptz) * 1000000)::bigint"), format!("t.{age}, "))
            }
            None => ("NULL::bigint".to_owned(), String::new()),
        };
        let sql = format!(
            "SET LOCAL bytea_output = 'hex'; SET LOCAL datestyle = 'ISO'; SET LOCAL intervalstyle = 'postgres'; \
             DECLARE walgate_rows NO SCROLL CURSOR FOR SELECT {}, {at} FROM {} t WHERE {} ORDER BY {order}t.tableoid, t.ctid",
            columns.join(", "),
            self.table,
            self.condition(now(client).await?),
        );
        execute(client, "read the outbox's rows", &sql).await
    }

    /// The next rows of the cursor; none: that was all.
    ///
    /// # Errors
    /// The query failed, or the connection broke.
    pub async fn fetch(&self, client: &Client) -> Result<Vec<Found>, QueryError> {
        let what = "read the outbox's rows";
        let rows = client.query_typed(&format!("FETCH {FETCH} FROM walgate_rows"), &[]).await;
        let rows = rows.map_err(|source| QueryError::Sql { what, source })?;
        let width = self.columns.len();
        let found = |row: &Row| {
            let columns = (0..width).map(|index| row.try_get(index)).collect::<Result<_, _>>()?;
            Ok(Found { columns, inserted_at: row.try_get(width)? })
        };
        rows.iter().map(found).collect::<Result<_, _>>().map_err(|source| QueryError::Sql { what, source })
    }
}

async fn now(client: &Client) -> Result<u64, QueryError> {
    let what = "read the current transaction's number";
    let sql = "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text";
    let row = client.query_typed_one(sql, &[]).await.map_err(|source| QueryError::Sql { what, source })?;
    let text: &str = row.try_get(0).map_err(|source| QueryError::Sql { what, source })?;
    serde_json::from_str(text).map_err(|source| QueryError::Shape { what, source })
}

/// Begins the transaction; `snapshot`: with what a slot has exported.
///
/// # Errors
/// The statement failed, or the connection broke.
pub async fn begin(client: &Client, snapshot: Option<&str>) -> Result<(), QueryError> {
    let import = snapshot.map(|name| format!("SET TRANSACTION SNAPSHOT '{}';", name.replace('\'', "''")));
    let sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; {} SET LOCAL synchronous_commit = on; SET LOCAL statement_timeout = 0",
        import.unwrap_or_default()
    );
    execute(client, "begin the recovery", &sql).await
}

/// Writes that the slot begins here, with a past of which nothing is owed unless some of it was left out, and commits.
///
/// # Errors
/// The statement failed, or the connection broke: nothing of the transaction is done, as far as is known.
pub async fn commit_new_slot(client: &Client, slot: &str, begins: Lsn, past_settled: bool) -> Result<(), QueryError> {
    let what = "write to walgate.gateway";
    let sql = "\
INSERT INTO walgate.gateway AS g (slot, term, system_id, timeline, confirmed_lsn, birth, past_settled, written_at)
SELECT $1, 1, s.system_identifier::text, c.timeline_id, $2::text::pg_lsn,
    pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()), $3, pg_catalog.now()
FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c
ON CONFLICT (slot) DO UPDATE SET term = g.term + 1, system_id = excluded.system_id, timeline = excluded.timeline,
    confirmed_lsn = excluded.confirmed_lsn, birth = excluded.birth, born_at = excluded.born_at, past_settled = excluded.past_settled,
    catalog = NULL, mark_xmin = NULL, mark_lsn = NULL, written_at = excluded.written_at";
    let begins = begins.to_string();
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&slot, Type::TEXT), (&begins, Type::TEXT), (&past_settled, Type::BOOL)];
    client.execute_typed(sql, &parameters).await.map_err(|source| QueryError::Sql { what, source })?;
    execute(client, "commit the recovery", "COMMIT").await
}

/// Writes that nothing of the past is owed any more, and commits.
///
/// # Errors
/// As [`commit_new_slot`].
pub async fn commit_past(client: &Client, slot: &str, begins: Lsn) -> Result<(), QueryError> {
    let what = "write to walgate.gateway";
    let sql = "\
INSERT INTO walgate.gateway AS g (slot, term, system_id, timeline, confirmed_lsn, birth, past_settled, written_at)
SELECT $1, 1, s.system_identifier::text, c.timeline_id, $2::text::pg_lsn,
    pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()), true, pg_catalog.now()
FROM pg_catalog.pg_control_system() s, pg_catalog.pg_control_checkpoint() c
ON CONFLICT (slot) DO UPDATE SET past_settled = true";
    let begins = begins.to_string();
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&slot, Type::TEXT), (&begins, Type::TEXT)];
    client.execute_typed(sql, &parameters).await.map_err(|source| QueryError::Sql { what, source })?;
    execute(client, "commit the recovery", "COMMIT").await
}

/// Drops a slot that nobody reads.
///
/// # Errors
/// It is being read, or the role may not.
pub async fn drop_slot(client: &Client, slot: &str) -> Result<(), QueryError> {
    let what = "drop the slot";
    let sql = "SELECT pg_catalog.pg_drop_replication_slot($1)";
    client.query_typed(sql, &[(&slot, Type::TEXT)]).await.map_err(|source| QueryError::Sql { what, source })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::gateway::Mark;

    fn row(past_settled: bool, mark: Option<u64>) -> GatewayRow {
        GatewayRow {
            term: 1,
            system_id: "7".into(),
            timeline: 1,
            confirmed: Lsn(9),
            birth: 500,
            born_at: 0,
            past_settled,
            mark: mark.map(|xmin| Mark { xmin, lsn: Lsn(8) }),
            written_at: 0,
        }
    }

    #[test]
    fn rows_that_may_be_undelivered_are_wanted_and_no_others() {
        let condition = |which, now| {
            let selection = Selection {
                table: TableName::new("public", "outbox_events"),
                columns: Vec::new(),
                age: None,
                unpublished: None,
                which,
                filters: Vec::new(),
            };
            selection.condition(now)
        };
        let unsettled = |row, past| Which::Unsettled { known: Some(row), past };
        let (mark, birth) = ("age(t.xmin) > age('900'::xid8::xid)", "age(t.xmin) > age('500'::xid8::xid)");
        assert_eq!(condition(Which::Unsettled { known: None, past: true }, 1000), "true");
        assert_eq!(condition(unsettled(row(true, Some(900)), true), 1000), format!("NOT ({mark})"));
        assert_eq!(condition(unsettled(row(false, Some(900)), true), 1000), format!("(NOT ({mark}) OR {birth})"));
        assert_eq!(condition(unsettled(row(false, Some(900)), false), 1000), format!("(NOT ({mark}) AND NOT {birth})"));
        assert_eq!(condition(unsettled(row(true, None), true), 1000), "NOT (false)", "no mark: every row");
        // Another life of the numbers: a mark of it says nothing, and every row is sent.
        assert_eq!(condition(unsettled(row(true, Some(900)), true), 900 + WINDOW), "NOT (false)");
        assert_eq!(condition(unsettled(row(true, Some(900)), true), 800), "NOT (false)");
        let settled = |row| Which::Settled { known: row };
        assert_eq!(condition(settled(row(true, Some(900))), 1000), mark);
        assert_eq!(condition(settled(row(false, Some(900))), 1000), format!("({mark} AND NOT {birth})"));
        assert_eq!(condition(settled(row(true, None)), 1000), "false", "in doubt none is");
        assert_eq!(condition(settled(row(true, Some(900))), 900 + WINDOW), "false");
        assert_eq!(condition(Which::Past { birth: Some(500) }, 1000), birth);
        assert_eq!(condition(Which::Past { birth: Some(500) }, 500 + WINDOW), "false");
    }
}
