//! What preflight reads from the catalogs. Every query works for a role with LOGIN and REPLICATION alone; only counting
//! the table's rows needs SELECT, and is left out without it.

use serde::{Deserialize, Serialize};
use tokio_postgres::{Client, error::SqlState};
use walgate_sink::Lsn;

use super::Wanted;
use crate::control::{
    missing_past::associated_lsn,
    parking,
    query::{QueryError, execute, json_row, json_rows},
    slot::SlotReport,
};

/// The server, the database and the role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerFacts {
    /// `server_version`, as the server writes it.
    pub version: String,
    /// `server_version_num`: 150004 is 15.4.
    pub version_num: i32,
    /// The database that we are connected to.
    pub database: String,
    /// The role that we are connected as.
    pub role: String,
    /// Whether that role may replicate: by its attribute, as a superuser, or as a member of `rds_replication`.
    pub may_replicate: bool,
    /// Whether the server is a standby.
    pub in_recovery: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// `max_replication_slots`.
    pub max_replication_slots: i64,
    /// Slots that exist.
    pub replication_slots: i64,
    /// `max_wal_senders`.
    pub max_wal_senders: i64,
    /// Walsenders that are in use.
    pub wal_senders: i64,
    /// `synchronous_standby_names`.
    pub synchronous_standby_names: String,
    /// `max_slot_wal_keep_size` in MB; none: there is no limit, so slots can fill the server's disk.
    pub max_slot_wal_keep_size: Option<i64>,
}

impl ServerFacts {
    /// The major version.
    #[must_use]
    pub fn major(&self) -> i32 {
        self.version_num / 10_000
    }
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableFacts {
    /// `pg_class.oid`.
    pub oid: u32,
    /// `pg_class.relkind`.
    pub kind: char,
    /// `pg_class.relpersistence`.
    pub persistence: char,
    /// Whether an UPDATE or DELETE can be published: it has a primary key or another replica identity.
    pub has_replica_identity: bool,
    /// Whether the role may read it; it need not.
    pub may_select: bool,
    /// Its partitions at every level, where it is partitioned: WAL that was written while the publication published them
    /// under their own names carries these.
    pub partitions: Vec<u32>,
    /// Its columns, in order.
    pub columns: Vec<ColumnFacts>,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ColumnFacts {
    /// Its name.
    pub name: String,
    /// Its type as SQL writes it.
    pub sql_type: String,
    /// The name of its type; of the underlying one where it is a domain.
    pub base_type: String,
    /// Whether it is NOT NULL.
    pub not_null: bool,
    /// Whether it is a generated column.
    pub generated: bool,
}

/// The publication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "they are columns of pg_publication")]
pub struct PublicationFacts {
    /// FOR ALL TABLES.
    pub all_tables: bool,
    /// Whether it publishes inserts.
    pub insert: bool,
    /// Whether it publishes updates.
    pub update: bool,
    /// Whether it publishes deletes.
    pub delete: bool,
    /// Whether partitions are published as their root.
    pub via_root: bool,
    /// The table's entry in `pg_publication_tables`; none: it is not published under its own name.
    pub entry: Option<PublicationEntry>,
    /// Whether the publication names the table itself.
    pub named: bool,
    /// Whether partitions of the table are published under their own names.
    pub partitions: bool,
    /// A published table of which ours is a partition.
    pub ancestor: Option<String>,
    /// Published tables without a replica identity, a few of them; read only where updates or deletes are published.
    pub without_identity: Option<Vec<String>>,
    /// Whether the publication's row is not older than the oldest transaction that the slot still needs the catalog
    /// of. None: there is no such slot.
    pub younger_than_slot: Option<bool>,
}

/// A row of `pg_publication_tables`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationEntry {
    /// The columns that are published (PostgreSQL 15 and later).
    pub attnames: Option<Vec<String>>,
    /// The row filter (PostgreSQL 15 and later).
    pub rowfilter: Option<String>,
}

/// Rows that the table holds.
///
/// `behind_slot` counts rows whose inserting transaction is older than the slot's `catalog_xmin`: it had ended before
/// what the slot still reads, so the row was delivered through the slot already, or is older than it, and in either
/// case is not going to be sent. It is a lower bound: a row that was updated since counts by its update, other slots
/// can hold this slot's `catalog_xmin` back, and row-level security can hide rows. An exact number would need the
/// moment of the slot's creation, which PostgreSQL does not keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExistingRows {
    /// Rows, counted up to [`ROWS_COUNTED`].
    pub rows: u64,
    /// Rows among them that will certainly not be sent.
    pub behind_slot: u64,
}

/// walgate's own tables.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParkingFacts {
    /// All of them exist, with every column that is needed.
    pub exists: bool,
    /// The role may read and write all of them.
    pub may_write: bool,
    /// At least one of them is in our publication.
    pub published: bool,
    /// Those that the publication names itself, with their schema.
    pub named: Vec<String>,
}

/// As many rows are counted, not more: a bound on what a check costs.
pub const ROWS_COUNTED: u64 = 100_001;

/// What a look into the slot said of the publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PastFacts {
    /// There was no reason to look, or no way to.
    NotAsked,
    /// What the slot reads first can be decoded with the publication.
    Readable,
    /// The publication did not exist when the WAL at that LSN was written: the slot can never get past it.
    Missing(Option<Lsn>),
    /// It took too long, or the slot was busy.
    Unknown,
}

const SERVER_SQL: &str = "\
SELECT jsonb_build_object(
    'version', current_setting('server_version'),
    'version_num', current_setting('server_version_num')::int,
    'database', current_database(),
    'role', current_user,
    'may_replicate', COALESCE((SELECT r.rolsuper OR r.rolreplication FROM pg_roles r WHERE r.rolname = current_user), false)
        OR EXISTS (SELECT 1 FROM pg_roles r WHERE r.rolname = 'rds_replication' AND pg_has_role(current_user, r.oid, 'MEMBER')),
    'in_recovery', pg_is_in_recovery(),
    'wal_level', current_setting('wal_level'),
    'max_replication_slots', current_setting('max_replication_slots')::int,
    'replication_slots', (SELECT count(*) FROM pg_replication_slots),
    'max_wal_senders', current_setting('max_wal_senders')::int,
    'wal_senders', (SELECT count(*) FROM pg_stat_replication),
    'synchronous_standby_names', current_setting('synchronous_standby_names'),
    'max_slot_wal_keep_size', (SELECT NULLIF(setting::bigint, -1) FROM pg_settings WHERE name = 'max_slot_wal_keep_size')
)::text";

/// $1 schema, $2 table.
const TABLE_SQL: &str = "\
SELECT jsonb_build_object(
    'oid', c.oid::bigint,
    'kind', c.relkind,
    'persistence', c.relpersistence,
    'has_replica_identity', CASE c.relreplident
        WHEN 'n' THEN false
        WHEN 'd' THEN EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)
        ELSE true END,
    'may_select', has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'),
    'partitions', COALESCE((
        SELECT jsonb_agg(l.relid::oid::bigint) FROM pg_partition_tree(c.oid) l WHERE l.relid <> c.oid), '[]'::jsonb),
    'columns', COALESCE((
        SELECT jsonb_agg(jsonb_build_object(
            'name', a.attname,
            'sql_type', format_type(a.atttypid, a.atttypmod),
            'base_type', (
                WITH RECURSIVE base(oid, typname, typbasetype) AS (
                    SELECT t.oid, t.typname, t.typbasetype FROM pg_type t WHERE t.oid = a.atttypid
                    UNION ALL
                    SELECT t.oid, t.typname, t.typbasetype FROM pg_type t JOIN base b ON t.oid = b.typbasetype)
                SELECT base.typname FROM base WHERE base.typbasetype = 0),
            'not_null', a.attnotnull,
            'generated', a.attgenerated <> '') ORDER BY a.attnum)
        FROM pg_attribute a
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), '[]'::jsonb)
)::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2";

/// Names of tables, for near misses; those called $1 first.
const TABLES_SQL: &str = "\
SELECT jsonb_build_object('schema', n.nspname, 'name', c.relname)::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_%'
ORDER BY (c.relname = $1) DESC, n.nspname, c.relname
LIMIT 1000";

/// $1 publication, $2 schema, $3 table, $4 slot.
const PUBLICATION_SQL: &str = "\
SELECT jsonb_build_object(
    'all_tables', p.puballtables,
    'insert', p.pubinsert,
    'update', p.pubupdate,
    'delete', p.pubdelete,
    'via_root', p.pubviaroot,
    'entry', (SELECT to_jsonb(t) FROM pg_publication_tables t
        WHERE t.pubname = p.pubname AND t.schemaname = $2 AND t.tablename = $3),
    'named', EXISTS (SELECT 1 FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = c.oid),
    'partitions', EXISTS (
        SELECT 1 FROM pg_partition_tree(c.oid) l
        JOIN pg_class lc ON lc.oid = l.relid
        JOIN pg_namespace ln ON ln.oid = lc.relnamespace
        JOIN pg_publication_tables t ON t.pubname = p.pubname AND t.schemaname = ln.nspname AND t.tablename = lc.relname
        WHERE l.relid <> c.oid),
    'ancestor', (
        SELECT ln.nspname || '.' || lc.relname FROM pg_partition_ancestors(c.oid) l(relid)
        JOIN pg_class lc ON lc.oid = l.relid
        JOIN pg_namespace ln ON ln.oid = lc.relnamespace
        JOIN pg_publication_tables t ON t.pubname = p.pubname AND t.schemaname = ln.nspname AND t.tablename = lc.relname
        WHERE l.relid <> c.oid LIMIT 1),
    'without_identity', CASE WHEN p.pubupdate OR p.pubdelete THEN COALESCE((
        SELECT jsonb_agg(w.name) FROM (
            SELECT t.schemaname || '.' || t.tablename AS name
            FROM pg_publication_tables t
            JOIN pg_namespace tn ON tn.nspname = t.schemaname
            JOIN pg_class tc ON tc.relnamespace = tn.oid AND tc.relname = t.tablename
            WHERE t.pubname = p.pubname AND (tc.relreplident = 'n' OR (tc.relreplident = 'd'
                AND NOT EXISTS (SELECT 1 FROM pg_index i WHERE i.indrelid = tc.oid AND i.indisprimary)))
            ORDER BY (t.schemaname = $2 AND t.tablename = $3) DESC, 1 LIMIT 4) w), '[]'::jsonb) END,
    'younger_than_slot', (SELECT age(p.xmin) <= age(s.catalog_xmin) FROM pg_replication_slots s WHERE s.slot_name = $4)
)::text
FROM pg_publication p
LEFT JOIN (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $2 AND c.relname = $3) c ON true
WHERE p.pubname = $1";

/// $1 publication, $2 a list of tables and columns that are needed.
const PARKING_SQL: &str = "\
WITH wanted AS (
    SELECT w->>0 AS relname, w->>1 AS attname FROM jsonb_array_elements($2::jsonb) w
), tables AS (
    SELECT c.oid, n.oid AS schema, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'walgate' AND c.relkind IN ('r', 'p') AND c.relname IN (SELECT relname FROM wanted)
)
SELECT jsonb_build_object(
    'exists', NOT EXISTS (
        SELECT 1 FROM wanted w WHERE NOT EXISTS (
            SELECT 1 FROM tables t JOIN pg_attribute a ON a.attrelid = t.oid
            WHERE t.relname = w.relname AND a.attname = w.attname AND a.attnum > 0 AND NOT a.attisdropped)),
    'may_write', COALESCE((
        SELECT bool_and(has_schema_privilege(t.schema, 'USAGE') AND has_table_privilege(t.oid, 'SELECT')
            AND has_table_privilege(t.oid, 'INSERT') AND has_table_privilege(t.oid, 'UPDATE')
            AND has_table_privilege(t.oid, 'DELETE')) FROM tables t), false),
    'published', EXISTS (
        SELECT 1 FROM tables t JOIN pg_publication_tables p ON p.schemaname = t.nspname AND p.tablename = t.relname
        WHERE p.pubname = $1),
    'named', COALESCE((
        SELECT jsonb_agg(t.nspname || '.' || t.relname ORDER BY t.relname)
        FROM tables t JOIN pg_publication_rel r ON r.prrelid = t.oid JOIN pg_publication p ON p.oid = r.prpubid
        WHERE p.pubname = $1), '[]'::jsonb)
)::text";

/// A visible row whose age is negative was frozen more than two thousand million transactions ago.
fn existing_rows_sql(wanted: &Wanted) -> String {
    format!(
        "\
SELECT jsonb_build_object(
    'rows', count(*),
    'behind_slot', count(*) FILTER (WHERE age(r.inserted) < 0 OR age(r.inserted) >
        (SELECT age(s.catalog_xmin) FROM pg_replication_slots s WHERE s.slot_name = $1)))::text
FROM (SELECT o.xmin AS inserted FROM {} o LIMIT {ROWS_COUNTED}) r",
        wanted.table
    )
}

/// It decodes from where the slot stands, like a reader would, without moving the slot. The first change makes pgoutput
/// look the publication up as it was then.
const PEEK_SQL: &str = "\
SELECT to_jsonb(count(*))::text
FROM pg_logical_slot_peek_binary_changes($1, NULL, 1, 'proto_version', '1', 'publication_names', $2)";

pub(super) async fn server(client: &Client) -> Result<Option<ServerFacts>, QueryError> {
    json_row(client, "read the server's settings", SERVER_SQL, &[]).await
}

pub(super) async fn table(client: &Client, wanted: &Wanted) -> Result<Option<TableFacts>, QueryError> {
    json_row(client, "read the table's columns", TABLE_SQL, &[&wanted.table.schema, &wanted.table.name]).await
}

/// Another table's name that may have been meant.
pub(super) async fn near_table(client: &Client, wanted: &Wanted) -> Result<Option<String>, QueryError> {
    #[derive(Deserialize)]
    struct Name {
        schema: String,
        name: String,
    }
    let names: Vec<Name> = json_rows(client, "read the tables' names", TABLES_SQL, &[&wanted.table.name]).await?;
    let near = names.iter().find(|table| table.name == wanted.table.name).or_else(|| {
        let score = |table: &&Name| strsim::jaro_winkler(&table.name, &wanted.table.name);
        names.iter().filter(|table| score(table) > 0.85).max_by(|a, b| score(a).total_cmp(&score(b)))
    });
    Ok(near.map(|table| format!("{}.{}", table.schema, table.name)))
}

pub(super) async fn publication(client: &Client, wanted: &Wanted) -> Result<Option<PublicationFacts>, QueryError> {
    let params = [&*wanted.publication, &wanted.table.schema, &wanted.table.name, &wanted.slot];
    json_row(client, "read the publication", PUBLICATION_SQL, &params).await
}

pub(super) async fn parking(client: &Client, publication: &str) -> Result<ParkingFacts, QueryError> {
    let columns = serde_json::json!(parking::columns().collect::<Vec<_>>()).to_string();
    let found = json_row(client, "read walgate's own tables", PARKING_SQL, &[publication, &columns]).await?;
    Ok(found.unwrap_or_default())
}

pub(super) async fn existing_rows(client: &Client, wanted: &Wanted) -> Result<Option<ExistingRows>, QueryError> {
    json_row(client, "count the table's rows", &existing_rows_sql(wanted), &[&wanted.slot]).await
}

/// Looks whether what the slot reads first can be decoded with the publication, for two seconds at the most. Nothing
/// is consumed; the slot is in use for as long as it takes.
pub(super) async fn past(client: &Client, wanted: &Wanted, report: &SlotReport, server: &ServerFacts) -> PastFacts {
    let usable = report.slot.as_ref().is_some_and(|slot| {
        let ours = slot.database.as_deref() == Some(server.database.as_str());
        slot.logical && !slot.active && ours && slot.plugin.as_deref() == Some("pgoutput") && slot.restart_lsn.is_some()
    });
    // From 18 on a publication that is missing in the past is skipped with a warning in the server's log only.
    if !usable || !server.may_replicate || server.in_recovery || server.major() >= 18 {
        return PastFacts::NotAsked;
    }
    // A list of names, each in quotes.
    let name = format!("\"{}\"", wanted.publication.replace('"', "\"\""));
    let begin = "BEGIN READ ONLY; SET LOCAL statement_timeout = '2s'; SET LOCAL search_path = pg_catalog";
    if execute(client, "begin to look into the slot", begin).await.is_err() {
        return PastFacts::Unknown;
    }
    let peek: Result<Option<u64>, _> = json_row(client, "look into the slot", PEEK_SQL, &[&wanted.slot, &name]).await;
    // A connection that broke shows itself at the next query.
    let _ = execute(client, "end the look into the slot", "ROLLBACK").await;
    match peek {
        Ok(_) => PastFacts::Readable,
        Err(QueryError::Sql { source, .. }) if source.code() == Some(&SqlState::UNDEFINED_OBJECT) => {
            PastFacts::Missing(source.as_db_error().and_then(|error| error.where_()).and_then(associated_lsn))
        }
        Err(_) => PastFacts::Unknown,
    }
}
