//! The row `walgate.gateway`: what is known of a slot beyond what PostgreSQL keeps of it.
//!
//! It is written *before* the status that it covers, so a slot that has confirmed more than its row says was moved by
//! somebody else, or is another one: events between the two were never ours to settle.
//!
//! Its `term` rises each time a process begins to read the slot. What is written to walgate's other tables names the term
//! that it was decided in, and is not done in a later one: a process that was frozen, and wakes up when another one has
//! taken over, changes nothing behind that one's back. Writers take a shared lock on the row for the length of their
//! statement, and whoever begins a term waits for them, so that what it reads afterwards is all that there will be.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use serde::Serialize;
use tokio_postgres::{
    Client, Row,
    types::{PgLsn, ToSql, Type},
};
use walgate_sink::Lsn;

use super::{
    names::quote_literal,
    query::{QueryError, column, execute, json_row},
    slot::human_bytes,
};

/// The term that this process writes in; 0 before its first. Shared with everything that writes to walgate's tables.
#[derive(Clone, Debug, Default)]
pub struct Term(Arc<AtomicI64>);

impl Term {
    /// The term.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }

    /// A term has begun.
    pub fn set(&self, term: i64) {
        self.0.store(term, Ordering::Release);
    }
}

/// A moment by which all that is older was committed or rolled back.
///
/// Every row whose inserting transaction is older than `xmin` ended before `lsn`. Once everything up to `lsn` is settled,
/// every such row is: a number that needs no state per row (ARCHITECTURE.md, "The mark").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Mark {
    /// The oldest transaction that had not ended, counted without wrap-around.
    pub xmin: u64,
    /// Where the server wrote after that.
    pub lsn: Lsn,
}

/// The row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayRow {
    /// How often a process has begun to read the slot.
    pub term: i64,
    /// The cluster's identifier.
    pub system_id: String,
    /// The timeline that was streamed from.
    pub timeline: i64,
    /// What may have been confirmed to the slot: never less than what was.
    pub confirmed: Lsn,
    /// Transactions before this one may have inserted rows that were never streamed.
    pub birth: u64,
    /// When that was, in microseconds since 1970.
    pub born_at: i64,
    /// Rows of those transactions are not owed: there were none, they were sent by other means, or somebody said so.
    pub past_settled: bool,
    /// Everything before it is settled; none: not known yet.
    pub mark: Option<Mark>,
    /// When it was written last, in microseconds since 1970.
    pub written_at: i64,
}

impl GatewayRow {
    /// Why a slot that has confirmed `slot`, in the cluster with this identifier, cannot be gone on from; none: it can.
    #[must_use]
    pub fn gap(&self, name: &str, slot: Lsn, system_id: &str) -> Option<String> {
        if self.system_id != system_id {
            return Some(format!(
                "walgate.gateway holds a row for slot `{name}` that was written in another PostgreSQL cluster (system \
                 identifier {} instead of {system_id}): the database was copied or restored from a dump. What was \
                 delivered there and what was not is not known here: rows that the outbox held before this slot was made \
                 are not sent. `walgate recover` sends all of them; to go on with what is committed from now on: `walgate run \
                 --accept-gap`",
                self.system_id
            ));
        }
        (slot > self.confirmed).then(|| {
            let bytes = human_bytes(slot.bytes_since(self.confirmed));
            let at = walgate_sink::Timestamp(self.written_at);
            format!(
                "replication slot `{name}` stands at {slot}, and walgate has confirmed {} at the most (noted at {at}): the \
                 slot was advanced or made again by somebody else, or read by a walgate that could not use walgate's own \
                 tables. Events that were committed in those {bytes} of WAL were not delivered through it; their rows are \
                 still in the outbox table unless they were deleted. `walgate recover` sends them; to go on without them: `walgate run \
                 --accept-gap`",
                self.confirmed
            )
        })
    }
}

/// Which rows of the outbox are settled on every sink: those that are behind the mark, and not behind the birth unless
/// the past is settled. When in doubt, a row stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bounds {
    /// See [`GatewayRow::birth`].
    pub birth: u64,
    /// See [`GatewayRow::past_settled`].
    pub past_settled: bool,
    /// The newest mark of this connection that the checkpoint has passed; none: not known yet, and nothing is settled for
    /// certain.
    pub mark: Option<Mark>,
}

/// A term of ours has begun.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Its number.
    pub term: i64,
    /// What is known of the outbox's rows.
    pub bounds: Bounds,
    /// The catalogs' rows at the last look that found them in order, as they were written down.
    pub catalog: Option<String>,
    /// The row as the one before had left it; none: it is new.
    pub before: Option<GatewayRow>,
    /// What the slot has confirmed.
    pub slot: Lsn,
    /// The server is the one that walgate streams from, and no standby: marks that are taken here hold there.
    pub marks_hold: bool,
}

type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

const COLUMNS: &str = "\
g.term, g.system_id, g.timeline, g.confirmed_lsn, g.birth::text, g.past_settled, g.mark_xmin::text, g.mark_lsn,
    (EXTRACT(epoch FROM g.written_at) * 1000000)::bigint, (EXTRACT(epoch FROM g.born_at) * 1000000)::bigint";

/// $1: the slot; $2: the cluster's identifier; $3: the timeline; $4: whether a gap is accepted, where there is one: with it
/// a new life begins. The old row is locked first, against every writer of an older term.
///
/// A row is as durable as the statuses that it covers: `synchronous_commit` is raised where it is off.
const CLAIM_SQL: &str = "\
WITH durable AS MATERIALIZED (
    SELECT pg_catalog.set_config('synchronous_commit',
        CASE pg_catalog.current_setting('synchronous_commit')
            WHEN 'off' THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, false) AS set
), before AS MATERIALIZED (
    SELECT * FROM walgate.gateway WHERE slot = $1 FOR UPDATE
), slot AS MATERIALIZED (
    SELECT COALESCE(
        (SELECT confirmed_flush_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = $1), '0/0') AS lsn
), begun AS (
    INSERT INTO walgate.gateway AS g (slot, term, system_id, timeline, confirmed_lsn, birth, written_at)
    SELECT $1, 1 + COALESCE((SELECT term FROM before), 0), $2, $3, (SELECT lsn FROM slot),
        pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()), pg_catalog.now()
    FROM durable
    ON CONFLICT (slot) DO UPDATE SET
        term = g.term + 1, system_id = excluded.system_id, timeline = excluded.timeline,
        (confirmed_lsn, birth, born_at, past_settled, mark_xmin, mark_lsn) = (
            SELECT
                CASE WHEN n.gap THEN excluded.confirmed_lsn ELSE g.confirmed_lsn END,
                CASE WHEN n.gap THEN excluded.birth ELSE g.birth END,
                CASE WHEN n.gap THEN excluded.born_at ELSE g.born_at END,
                g.past_settled AND NOT n.gap,
                CASE WHEN NOT n.gap THEN g.mark_xmin END,
                CASE WHEN NOT n.gap THEN g.mark_lsn END
            FROM (SELECT $4 AND (
                excluded.confirmed_lsn > g.confirmed_lsn OR excluded.system_id <> g.system_id) AS gap) n)
    RETURNING g.term, g.birth, g.past_settled, g.catalog
)
SELECT (SELECT term FROM begun), (SELECT lsn FROM slot),
    (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) = $2
        AND NOT pg_catalog.pg_is_in_recovery(),
    (SELECT birth::text FROM begun), (SELECT past_settled FROM begun), (SELECT catalog FROM begun),
    ";

/// Notes a slot that was just made, for whoever makes one: what is inserted from then on is streamed. The first term would
/// note it too, but only when it begins. A row that is there already stays.
#[must_use]
pub fn born_sql(slot: &str) -> String {
    format!(
        "\
INSERT INTO walgate.gateway (slot, term, system_id, timeline, confirmed_lsn, birth, written_at)
SELECT s.slot_name, 0, c.system_identifier, p.timeline_id, s.confirmed_flush_lsn,
  pg_snapshot_xmax(pg_current_snapshot()), now()
FROM pg_replication_slots s, pg_control_system() c, pg_control_checkpoint() p WHERE s.slot_name = {}
ON CONFLICT DO NOTHING;",
        quote_literal(slot)
    )
}

/// Notes a slot that was just made, if walgate's own tables are there. Where that cannot be done, the first term does it.
pub(super) async fn note_birth(client: &Client, slot: &str) {
    let exists = "SELECT to_jsonb(to_regclass('walgate.gateway') IS NOT NULL)::text";
    let exists: Result<Option<bool>, _> = json_row(client, "look for walgate.gateway", exists, &[]).await;
    if matches!(exists, Ok(Some(true)))
        && let Err(error) = execute(client, "note the slot's birth", &born_sql(slot)).await
    {
        tracing::warn!(%error, "rows that are inserted before walgate runs will not be cleaned up by themselves");
    }
}

/// Begins a term for a slot that we have. It waits for the writers of the term before.
///
/// # Errors
/// The statement failed, or the connection broke: no term has begun, as far as is known.
pub async fn claim(
    client: &Client,
    slot: &str,
    system_id: &str,
    timeline: u32,
    accept_gap: bool,
) -> Result<Claim, QueryError> {
    let what = "write to walgate.gateway";
    let timeline = i64::from(timeline);
    let sql = format!("{CLAIM_SQL}{COLUMNS}\nFROM (SELECT) one LEFT JOIN before g ON true");
    let parameters: [Parameter<'_>; 4] =
        [(&slot, Type::TEXT), (&system_id, Type::TEXT), (&timeline, Type::INT8), (&accept_gap, Type::BOOL)];
    let row = client.query_typed_one(&sql, &parameters).await.map_err(|source| QueryError::Sql { what, source })?;
    let term: Option<i64> = column(&row, what, 6)?;
    Ok(Claim {
        term: column(&row, what, 0)?,
        bounds: Bounds { birth: xid(column(&row, what, 3)?, what)?, past_settled: column(&row, what, 4)?, mark: None },
        catalog: column(&row, what, 5)?,
        slot: lsn(&row, what, 1)?.unwrap_or(Lsn::ZERO),
        marks_hold: column::<Option<bool>>(&row, what, 2)?.unwrap_or(false),
        before: term.map(|_| read_row(&row, what, 6)).transpose()?,
    })
}

/// The row of a slot, and the identifier of the cluster that we are connected to; none: no process has read the slot since
/// walgate's tables were made.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn read(client: &Client, slot: &str) -> Result<Option<(GatewayRow, String)>, QueryError> {
    let what = "read walgate.gateway";
    let sql = format!(
        "SELECT {COLUMNS}, (SELECT system_identifier::text FROM pg_catalog.pg_control_system()) \
         FROM walgate.gateway g WHERE g.slot = $1"
    );
    let rows =
        client.query_typed(&sql, &[(&slot, Type::TEXT)]).await.map_err(|source| QueryError::Sql { what, source })?;
    rows.first().map(|row| Ok((read_row(row, what, 0)?, column(row, what, 10)?))).transpose()
}

/// Writes down what is going to be confirmed, and the newest mark that is behind it. False: the term is over.
///
/// # Errors
/// The statement failed, or the connection broke: nothing is known to be written.
pub async fn record(
    client: &Client,
    slot: &str,
    term: i64,
    confirmed: Lsn,
    mark: Option<Mark>,
) -> Result<bool, QueryError> {
    let what = "write to walgate.gateway";
    let sql = "\
UPDATE walgate.gateway SET confirmed_lsn = GREATEST(confirmed_lsn, $3), written_at = pg_catalog.now(),
    mark_xmin = COALESCE($4::xid8, mark_xmin), mark_lsn = COALESCE($5, mark_lsn)
WHERE slot = $1 AND term = $2";
    let confirmed = PgLsn::from(confirmed.0);
    let (xmin, lsn) = (mark.map(|mark| mark.xmin.to_string()), mark.map(|mark| PgLsn::from(mark.lsn.0)));
    let parameters: [Parameter<'_>; 5] = [
        (&slot, Type::TEXT),
        (&term, Type::INT8),
        (&confirmed, Type::PG_LSN),
        (&xmin, Type::TEXT),
        (&lsn, Type::PG_LSN),
    ];
    let changed = client.execute_typed(sql, &parameters).await.map_err(|source| QueryError::Sql { what, source })?;
    Ok(changed > 0)
}

/// Writes down the catalogs' rows. `broken`: what was committed until now may not have been streamed, so it belongs to the
/// past that nothing is known of. Returns the bounds; none: the term is over.
///
/// # Errors
/// The statement failed, or the connection broke.
pub async fn write_catalog(
    client: &Client,
    slot: &str,
    term: i64,
    catalog: &str,
    broken: bool,
) -> Result<Option<Bounds>, QueryError> {
    let what = "write to walgate.gateway";
    let sql = "\
UPDATE walgate.gateway SET catalog = $3,
    birth = CASE WHEN $4 THEN pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()) ELSE birth END,
    born_at = CASE WHEN $4 THEN pg_catalog.now() ELSE born_at END,
    past_settled = past_settled AND NOT $4,
    mark_xmin = CASE WHEN NOT $4 THEN mark_xmin END, mark_lsn = CASE WHEN NOT $4 THEN mark_lsn END
WHERE slot = $1 AND term = $2
RETURNING birth::text, past_settled";
    let parameters: [Parameter<'_>; 4] =
        [(&slot, Type::TEXT), (&term, Type::INT8), (&catalog, Type::TEXT), (&broken, Type::BOOL)];
    let rows = client.query_typed(sql, &parameters).await.map_err(|source| QueryError::Sql { what, source })?;
    let Some(row) = rows.first() else { return Ok(None) };
    Ok(Some(Bounds { birth: xid(column(row, what, 0)?, what)?, past_settled: column(row, what, 1)?, mark: None }))
}

/// Notes that rows from before the slot's birth are not owed to anybody. False: the term is over, or another birth is
/// written down.
///
/// # Errors
/// The statement failed, or the connection broke.
pub async fn settle_past(client: &Client, slot: &str, birth: u64) -> Result<bool, QueryError> {
    let what = "write to walgate.gateway";
    let sql = "UPDATE walgate.gateway SET past_settled = true WHERE slot = $1 AND birth = $2::xid8";
    let birth = birth.to_string();
    let parameters: [Parameter<'_>; 2] = [(&slot, Type::TEXT), (&birth, Type::TEXT)];
    let changed = client.execute_typed(sql, &parameters).await.map_err(|source| QueryError::Sql { what, source })?;
    Ok(changed > 0)
}

/// Takes a mark. The statement's snapshot is made before anything in it is evaluated, so the position is never older.
///
/// # Errors
/// The query failed (a standby writes nothing), or the connection broke.
pub async fn take_mark(client: &Client) -> Result<Mark, QueryError> {
    let what = "take a mark";
    let sql = "\
SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::text, pg_catalog.pg_current_wal_insert_lsn()";
    let row = client.query_typed_one(sql, &[]).await.map_err(|source| QueryError::Sql { what, source })?;
    Ok(Mark { xmin: xid(column(&row, what, 0)?, what)?, lsn: lsn(&row, what, 1)?.unwrap_or(Lsn(u64::MAX)) })
}

/// $1: the slot; $2: whatever the slot has confirmed.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn slot_confirmed(client: &Client, slot: &str) -> Result<Lsn, QueryError> {
    let what = "read the replication slot";
    let sql = "SELECT confirmed_flush_lsn FROM pg_catalog.pg_replication_slots WHERE slot_name = $1";
    let rows =
        client.query_typed(sql, &[(&slot, Type::TEXT)]).await.map_err(|source| QueryError::Sql { what, source })?;
    Ok(rows.first().map(|row| lsn(row, what, 0)).transpose()?.flatten().unwrap_or(Lsn::ZERO))
}

fn read_row(row: &Row, what: &'static str, from: usize) -> Result<GatewayRow, QueryError> {
    let mark_xmin: Option<&str> = column(row, what, from + 6)?;
    let mark_xmin = mark_xmin.map(|text| xid(text, what)).transpose()?;
    let mark_lsn = lsn(row, what, from + 7)?;
    Ok(GatewayRow {
        term: column(row, what, from)?,
        system_id: column(row, what, from + 1)?,
        timeline: column(row, what, from + 2)?,
        confirmed: lsn(row, what, from + 3)?.unwrap_or(Lsn::ZERO),
        birth: xid(column(row, what, from + 4)?, what)?,
        past_settled: column(row, what, from + 5)?,
        mark: mark_xmin.zip(mark_lsn).map(|(xmin, lsn)| Mark { xmin, lsn }),
        written_at: column(row, what, from + 8)?,
        born_at: column(row, what, from + 9)?,
    })
}

fn xid(text: &str, what: &'static str) -> Result<u64, QueryError> {
    serde_json::from_str(text).map_err(|source| QueryError::Shape { what, source })
}

fn lsn(row: &Row, what: &'static str, index: usize) -> Result<Option<Lsn>, QueryError> {
    Ok(column::<Option<PgLsn>>(row, what, index)?.map(|lsn| Lsn(lsn.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_what_the_slot_has_and_we_have_not() {
        let row = GatewayRow {
            term: 3,
            system_id: "7".into(),
            timeline: 1,
            confirmed: Lsn(0x1_0000_0100),
            birth: 700,
            born_at: 1_600_000_000_000_000,
            past_settled: false,
            mark: None,
            written_at: 1_700_000_000_000_000,
        };
        assert_eq!(row.gap("walgate", Lsn(0x1_0000_0100), "7"), None);
        assert_eq!(row.gap("walgate", Lsn(0x1_0000_0000), "7"), None, "a crash takes back what was confirmed last");
        insta::assert_snapshot!(row.gap("walgate", Lsn(0x1_0040_0100), "7").unwrap());
        insta::assert_snapshot!("another_cluster", row.gap("walgate", Lsn(0), "8").unwrap());
    }
}
