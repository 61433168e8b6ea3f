//! What the clean-up has to know of the table and of its own role, from the catalogs.

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;

use super::Plan;
use crate::{
    config::CleanupMode,
    control::{
        names::TableName,
        query::{QueryError, json_row},
    },
};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanupFacts {
    /// The role.
    pub role: String,
    /// The database.
    pub database: String,
    /// The table; none: it does not exist.
    pub table: Option<CleanupTable>,
    /// Whether the role may hold the term: read `walgate.gateway`, and lock its row.
    pub may_hold_term: bool,
}

/// The table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CleanupTable {
    /// `pg_class.oid`.
    pub oid: u32,
    /// `pg_class.relkind`.
    pub kind: char,
    /// Whether the role may use its schema.
    pub may_use_schema: bool,
    /// Whether row-level security hides rows from the role.
    pub hides_rows: bool,
    /// The type of the age column; none: there is no such column.
    pub age_type: Option<String>,
    /// The type of the mark column; none: there is no such column.
    pub mark_type: Option<String>,
    /// The mark column is generated.
    pub mark_generated: bool,
    /// The mark column decides in which partition a row is.
    pub mark_partitions: bool,
    /// Where the rows are: the table itself, or its partitions that are not partitioned.
    pub leaves: Vec<LeafFacts>,
    /// Publications that have the table.
    pub publications: Vec<PublishedBy>,
    /// Triggers that fire when a row is deleted.
    pub delete_triggers: Vec<String>,
    /// Triggers that fire when a row is updated.
    pub update_triggers: Vec<String>,
}

/// One table that holds rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "they are what the catalog says")]
pub struct LeafFacts {
    /// `pg_class.oid`.
    pub oid: u32,
    /// Its name with its schema, as SQL takes it.
    pub name: String,
    /// That of what it is a partition of; none: it is none.
    pub parent: Option<String>,
    /// It takes the rows that no other partition does.
    pub is_default: bool,
    /// Its upper bound, where it is a range of the age column.
    pub upper: Option<String>,
    /// The role may read it.
    pub may_select: bool,
    /// The role may delete from it.
    pub may_delete: bool,
    /// The role may set the mark column.
    pub may_mark: bool,
    /// The role owns it, and what it is a partition of.
    pub owned: bool,
    /// There is an index that gives its rows by age.
    pub indexed: bool,
    /// An UPDATE or DELETE can be published.
    pub has_replica_identity: bool,
    /// Its size in bytes, without its indexes.
    pub bytes: i64,
}

/// A publication that has the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedBy {
    /// Its name.
    pub name: String,
    /// It publishes updates.
    pub update: bool,
    /// It publishes deletes.
    pub delete: bool,
}

/// Types that an age can be compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgeType {
    /// `timestamptz`.
    Zoned,
    /// `timestamp`: in the time zone that the server has for the role.
    Local,
}

impl AgeType {
    /// As SQL writes it.
    #[must_use]
    pub fn sql(self) -> &'static str {
        match self {
            AgeType::Zoned => "timestamptz",
            AgeType::Local => "timestamp",
        }
    }
}

impl CleanupTable {
    /// The age column's type, where rows can be compared by it.
    #[must_use]
    pub fn age(&self) -> Option<AgeType> {
        match self.age_type.as_deref()? {
            "timestamptz" => Some(AgeType::Zoned),
            "timestamp" => Some(AgeType::Local),
            _ => None,
        }
    }
}

/// $1 schema, $2 table, $3 age column, $4 mark column, $5 whether an index over unmarked rows will do.
const FACTS_SQL: &str = r"
WITH root AS (
    SELECT c.oid, c.relkind, n.oid AS schema
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2
), tree AS (
    SELECT r.oid FROM root r UNION SELECT t.relid::oid FROM root r, pg_partition_tree(r.oid) t
), leaves AS (
    SELECT c.*, n.nspname FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r'
), parents AS (
    SELECT i.inhrelid AS leaf, p.oid, p.relowner, format('%I.%I', n.nspname, p.relname) AS name,
        EXISTS (SELECT FROM pg_partitioned_table t JOIN pg_attribute a ON a.attrelid = t.partrelid AND a.attname = $3
            WHERE t.partrelid = p.oid AND t.partstrat = 'r' AND t.partnatts = 1 AND t.partattrs[0] = a.attnum) AS by_age
    FROM leaves l JOIN pg_inherits i ON i.inhrelid = l.oid AND l.relispartition
    JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
), columns AS (
    SELECT a.attname, a.attgenerated <> '' AS generated, t.typname
    FROM root r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_type t ON t.oid = a.atttypid
), triggers AS (
    SELECT g.tgname, g.tgtype FROM tree t JOIN pg_trigger g ON g.tgrelid = t.oid
    WHERE NOT g.tgisinternal AND g.tgenabled NOT IN ('D', 'R')
)
SELECT jsonb_build_object(
    'role', current_user,
    'database', current_database(),
    'may_hold_term', COALESCE((
        SELECT has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
            AND has_table_privilege(c.oid, 'UPDATE')
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'walgate' AND c.relname = 'gateway'), false),
    'table', (SELECT jsonb_build_object(
        'oid', r.oid::bigint,
        'kind', r.relkind,
        'may_use_schema', has_schema_privilege(r.schema, 'USAGE'),
        'hides_rows', EXISTS (SELECT FROM tree t WHERE row_security_active(t.oid)),
        'age_type', (SELECT typname FROM columns WHERE attname = $3),
        'mark_type', (SELECT typname FROM columns WHERE attname = $4),
        'mark_generated', COALESCE((SELECT generated FROM columns WHERE attname = $4), false),
        'mark_partitions', EXISTS (
            SELECT FROM tree t JOIN pg_partitioned_table p ON p.partrelid = t.oid
            JOIN pg_attribute a ON a.attrelid = t.oid AND a.attname = $4
            WHERE a.attnum = ANY (p.partattrs::smallint[])
                OR (p.partexprs IS NOT NULL AND strpos(pg_get_partkeydef(t.oid), $4) > 0)),
        'leaves', COALESCE((SELECT jsonb_agg(jsonb_build_object(
            'oid', l.oid::bigint,
            'name', format('%I.%I', l.nspname, l.relname),
            'parent', p.name,
            'is_default', COALESCE(pg_get_expr(l.relpartbound, l.oid) = 'DEFAULT', false),
            'upper', CASE WHEN p.by_age THEN
                substring(pg_get_expr(l.relpartbound, l.oid) FROM $re$ TO \('([^']*)'\)$$re$) END,
            'may_select', has_table_privilege(l.oid, 'SELECT'),
            'may_delete', has_table_privilege(l.oid, 'DELETE'),
            'may_mark', COALESCE((SELECT has_column_privilege(l.oid, a.attnum, 'UPDATE') FROM pg_attribute a
                WHERE a.attrelid = l.oid AND a.attname = $4 AND NOT a.attisdropped), false),
            'owned', pg_has_role(l.relowner, 'USAGE') AND COALESCE(pg_has_role(p.relowner, 'USAGE'), true),
            'indexed', EXISTS (
                SELECT FROM pg_index i JOIN pg_class ic ON ic.oid = i.indexrelid JOIN pg_am m ON m.oid = ic.relam
                JOIN pg_attribute a ON a.attrelid = l.oid AND a.attname = $3
                WHERE i.indrelid = l.oid AND i.indisvalid AND m.amname = 'btree' AND i.indkey[0] = a.attnum
                    AND (i.indpred IS NULL
                        OR ($5 = 'true' AND pg_get_expr(i.indpred, l.oid) = format('(%I IS NOT TRUE)', $4)))),
            'has_replica_identity', CASE l.relreplident
                WHEN 'n' THEN false
                WHEN 'd' THEN EXISTS (SELECT FROM pg_index i WHERE i.indrelid = l.oid AND i.indisprimary)
                ELSE true END,
            'bytes', pg_relation_size(l.oid)) ORDER BY p.by_age, l.nspname, l.relname)
            FROM leaves l LEFT JOIN parents p ON p.leaf = l.oid), '[]'::jsonb),
        'publications', COALESCE((
            SELECT jsonb_agg(jsonb_build_object('name', b.pubname, 'update', b.pubupdate, 'delete', b.pubdelete)
                ORDER BY b.pubname)
            FROM pg_publication b WHERE EXISTS (
                SELECT FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
                JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
                WHERE t.pubname = b.pubname AND c.oid IN (SELECT oid FROM tree))), '[]'::jsonb),
        'delete_triggers', COALESCE((
            SELECT jsonb_agg(DISTINCT tgname) FROM triggers WHERE (tgtype & 8) <> 0), '[]'::jsonb),
        'update_triggers', COALESCE((
            SELECT jsonb_agg(DISTINCT tgname) FROM triggers WHERE (tgtype & 16) <> 0), '[]'::jsonb)
    ) FROM root r)
)::text";

/// Reads them. `search_path` may be anything.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn read_facts(client: &Client, plan: &Plan) -> Result<CleanupFacts, QueryError> {
    let marks = (plan.mode() == CleanupMode::Mark).to_string();
    let cleanup = &plan.cleanup;
    let parameters: [&str; 5] = [&plan.table.schema, &plan.table.name, &cleanup.age, &cleanup.mark, &marks];
    let what = "look at the outbox for the clean-up";
    let none = || CleanupFacts { role: String::new(), database: String::new(), table: None, may_hold_term: false };
    Ok(json_row(client, what, FACTS_SQL, &parameters).await?.unwrap_or_else(none))
}

/// Where a connection has led to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Place {
    /// The cluster's identifier.
    pub system_id: String,
    /// The database's oid.
    pub database: u32,
    /// Its name.
    pub name: String,
    /// The table's oid; none: there is no such table.
    pub table: Option<u32>,
    /// The timeline that it writes; none: it is a standby.
    pub timeline: Option<String>,
    /// The server is a standby.
    pub in_recovery: bool,
}

const PLACE_SQL: &str = "\
SELECT pg_catalog.jsonb_build_object(
    'system_id', (SELECT s.system_identifier::text FROM pg_catalog.pg_control_system() s),
    'database', d.oid::bigint,
    'name', d.datname,
    'table', (SELECT c.oid::bigint FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = $2),
    'timeline', CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN
        pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8) END,
    'in_recovery', pg_catalog.pg_is_in_recovery())::text
FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()";

/// Where this connection has led to.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn place(client: &Client, table: &TableName) -> Result<Option<Place>, QueryError> {
    json_row(client, "see where the connection leads to", PLACE_SQL, &[&table.schema, &table.name]).await
}
