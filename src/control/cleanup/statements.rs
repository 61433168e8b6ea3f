//! Every statement of the clean-up, as text. `search_path` is `pg_catalog`; tables come with their schema.
//!
//! Ages of transactions are compared, not their numbers: `age` counts back from now, so it is right across the wrap-around
//! for as long as both are less than 2^31 back. What is further back looks younger than now (a negative age), and the
//! numbers below 3 are those of no transaction (the greatest age): both are in doubt, and stay.

use super::facts::LeafFacts;
use crate::{
    config::CleanupMode,
    control::names::{quote_ident, quote_literal},
};

/// The age of the numbers that are no transaction's.
const NO_AGE: &str = "2147483647";
/// A mark further back than this says nothing any more: with it, ages are not to be compared.
const FARTHEST: &str = "2000000000";

/// The age of a transaction, given as a parameter in text, where it can be compared: else no row.
fn bound(parameter: &str) -> String {
    format!(
        "bound AS MATERIALIZED (
    SELECT age({parameter}::text::xid8::xid) AS behind
    WHERE pg_snapshot_xmax(pg_current_snapshot())::text::numeric - {parameter}::text::numeric BETWEEN 0 AND {FARTHEST}
)"
    )
}

/// Whether a transaction is older than the bound. No row in it: nothing is.
pub(super) fn older(xmin: &str) -> String {
    format!("age({xmin}) > (SELECT behind FROM bound) AND age({xmin}) < {NO_AGE}")
}

/// Holds the term for the length of the statement, where the role may: $1 the slot, $2 its number (`control::gateway`).
fn term(holds: bool) -> &'static str {
    if holds {
        "term AS MATERIALIZED (
    SELECT 1 FROM walgate.gateway WHERE slot = $1::text AND term = $2::bigint AND past_settled FOR KEY SHARE
), ours AS MATERIALIZED (
    SELECT EXISTS (SELECT FROM term) AS ours
)"
    } else {
        "ours AS MATERIALIZED (
    SELECT $1::text IS NOT NULL AND $2::bigint IS NOT NULL AS ours
)"
    }
}

/// What is touched, and how.
pub(super) struct Touch<'a> {
    pub leaf: &'a LeafFacts,
    pub mode: CleanupMode,
    pub mark: &'a str,
    /// The age column and its type, where there is one.
    pub age: Option<(&'a str, &'a str)>,
    /// Whether the term is held.
    pub holds_term: bool,
}

impl Touch<'_> {
    /// Rows that were marked before are done.
    fn unmarked(&self) -> String {
        match self.mode {
            CleanupMode::Mark => format!(" AND o.{} IS NOT TRUE", quote_ident(self.mark)),
            _ => String::new(),
        }
    }

    /// The rows at these places that are still settled, deleted or marked.
    fn act(&self) -> String {
        let (leaf, settled, unmarked) = (&self.leaf.name, older("o.xmin"), self.unmarked());
        let verb = match self.mode {
            CleanupMode::Mark => format!("UPDATE ONLY {leaf} o SET {} = true", quote_ident(self.mark)),
            _ => format!("DELETE FROM ONLY {leaf} o"),
        };
        // What was changed meanwhile is looked at again by the conditions here: its transaction is younger.
        format!(
            "{verb}\n    WHERE o.ctid = ANY (ARRAY(SELECT place FROM chosen)) AND {settled}{unmarked}\n    RETURNING 1"
        )
    }

    /// $1 slot, $2 term, $3 the mark's xmin, $4 the place to go on from, $5 whether rows of exactly that place are skipped,
    /// $6 rows to look at, $7 rows to touch, $8 seconds to retain.
    ///
    /// Columns: rows touched, rows looked at, where to go on, the first row that has to stay for now, whether the term is
    /// ours.
    pub fn by_age(&self, column: &str, sql_type: &str) -> String {
        let (bound, term, act) = (bound("$3"), term(self.holds_term), self.act());
        let page = self.page(column, sql_type);
        let settled = older("p.born");
        format!(
            "WITH {bound}, {term}, page AS MATERIALIZED (
{page}
), chosen AS MATERIALIZED (
    SELECT p.place, p.age FROM page p WHERE {settled} AND (SELECT ours FROM ours) ORDER BY p.age LIMIT $7::bigint
), done AS (
    {act}
)
SELECT (SELECT count(*) FROM done), (SELECT count(*) FROM page),
    CASE WHEN (SELECT count(*) FROM chosen) < $7::bigint THEN (SELECT max(age) FROM page)
         ELSE (SELECT max(age) FROM chosen) END::text,
    (SELECT min(p.age) FROM page p WHERE ({settled}) IS NOT TRUE)::text,
    (SELECT ours FROM ours)"
        )
    }

    /// The rows that [`Touch::by_age`] looks at, with its parameters.
    pub fn page(&self, column: &str, sql_type: &str) -> String {
        let (leaf, column, unmarked) = (&self.leaf.name, quote_ident(column), self.unmarked());
        format!(
            "    SELECT o.ctid AS place, o.xmin AS born, o.{column} AS age FROM ONLY {leaf} o
    WHERE o.{column} >= $4::text::{sql_type} AND (o.{column} > $4::text::{sql_type} OR NOT $5::boolean)
        AND o.{column} <= (now() - make_interval(secs => $8::float8))::{sql_type}{unmarked}
    ORDER BY o.{column} LIMIT $6::bigint"
        )
    }

    /// As [`Touch::by_age`], for the blocks from $4 to $5; $6 is not used.
    ///
    /// Columns: rows touched, rows looked at, blocks of the table, whether the term is ours.
    pub fn by_place(&self) -> String {
        let (bound, term, act) = (bound("$3"), term(self.holds_term), self.act());
        let (leaf, unmarked, settled) = (&self.leaf.name, self.unmarked(), older("p.born"));
        let old = match self.age {
            Some((column, sql_type)) => {
                format!(" AND o.{} <= (now() - make_interval(secs => $8::float8))::{sql_type}", quote_ident(column))
            }
            None => " AND $8::float8 = 0".to_owned(),
        };
        let blocks = blocks("o.ctid", "$4", "$5");
        format!(
            "WITH {bound}, {term}, page AS MATERIALIZED (
    SELECT o.ctid AS place, o.xmin AS born FROM ONLY {leaf} o
    WHERE {blocks}{old}{unmarked} AND $6::bigint IS NOT NULL
), chosen AS MATERIALIZED (
    SELECT p.place FROM page p WHERE {settled} AND (SELECT ours FROM ours) LIMIT $7::bigint
), done AS (
    {act}
)
SELECT (SELECT count(*) FROM done), (SELECT count(*) FROM page), {size}, (SELECT ours FROM ours)",
            size = size_in_blocks(self.leaf),
        )
    }
}

/// Rows in these blocks.
fn blocks(ctid: &str, from: &str, to: &str) -> String {
    format!("{ctid} >= ('(' || {from}::bigint || ',0)')::tid AND {ctid} < ('(' || {to}::bigint || ',0)')::tid")
}

fn size_in_blocks(leaf: &LeafFacts) -> String {
    format!("pg_relation_size({}::oid) / current_setting('block_size')::bigint", leaf.oid)
}

/// Rows from before the birth, in the blocks from $3 to $4; $1 the birth's transaction, $2 its time in microseconds.
/// Without an age a row that was updated since looks younger: then any row may be one.
///
/// Columns: such rows, blocks of the table.
pub(super) fn unborn(leaf: &LeafFacts, age: Option<&str>) -> String {
    let (bound, name, blocks) = (bound("$1"), &leaf.name, blocks("o.ctid", "$3", "$4"));
    let by_age = match age {
        Some(column) => {
            let column = quote_ident(column);
            format!("o.{column} IS NULL OR o.{column} < to_timestamp($2::bigint / 1000000.0)")
        }
        None => "$2::bigint IS NOT NULL".to_owned(),
    };
    // A birth that is too far back to be compared with: what looks older than now is older than it.
    format!(
        "WITH {bound}
SELECT (
    SELECT count(*) FROM ONLY {name} o
    WHERE {blocks} AND (age(o.xmin) < 0 OR age(o.xmin) = {NO_AGE} OR age(o.xmin) > (SELECT behind FROM bound) OR {by_age})
), {size}",
        size = size_in_blocks(leaf),
    )
}

/// $1 the mark's xmin, $2 the birth's, $3 seconds to retain. A table without an age column: everything is old enough
/// where nothing is to be retained.
///
/// Columns: rows, those settled, those among them that are old enough, those from before the birth, those marked already.
pub(super) fn count(leaf: &LeafFacts, age: Option<(&str, &str)>, mark: Option<&str>) -> String {
    let (bound, name, settled) = (bound("$1"), &leaf.name, older("o.xmin"));
    let old = match age {
        Some((column, sql_type)) => {
            format!("o.{} <= (now() - make_interval(secs => $3::float8))::{sql_type}", quote_ident(column))
        }
        None => "$3::float8 = 0".to_owned(),
    };
    let marked = mark.map_or_else(|| "false".to_owned(), |column| format!("o.{} IS TRUE", quote_ident(column)));
    format!(
        "WITH {bound}, born AS MATERIALIZED (SELECT age($2::text::xid8::xid) AS behind)
SELECT count(*), count(*) FILTER (WHERE {settled}), count(*) FILTER (WHERE {settled} AND {old} AND NOT ({marked})),
    count(*) FILTER (WHERE age(o.xmin) < 0 OR age(o.xmin) = {NO_AGE} OR age(o.xmin) > (SELECT behind FROM born)),
    count(*) FILTER (WHERE {marked})
FROM ONLY {name} o"
    )
}

/// $1 the mark's xmin; the blocks from $2 to $3. Columns: whether all rows there are settled, rows, blocks of the table.
pub(super) fn all_settled(leaf: &LeafFacts) -> String {
    let (bound, name, settled, blocks) = (bound("$1"), &leaf.name, older("o.xmin"), blocks("o.ctid", "$2", "$3"));
    format!(
        "WITH {bound}
SELECT COALESCE(bool_and(COALESCE({settled}, false)), true) AND EXISTS (SELECT FROM bound), count(*), {size}
FROM ONLY {name} o WHERE {blocks}",
        size = size_in_blocks(leaf),
    )
}

/// The oldest settled row among the first thousand that have an age: $1 the mark's xmin. Column: its age in seconds.
pub(super) fn oldest(leaf: &LeafFacts, column: &str, unmarked: Option<&str>) -> String {
    let (bound, name, column, settled) = (bound("$1"), &leaf.name, quote_ident(column), older("p.born"));
    let unmarked = unmarked.map_or_else(String::new, |mark| format!(" WHERE o.{} IS NOT TRUE", quote_ident(mark)));
    format!(
        "WITH {bound}, page AS MATERIALIZED (
    SELECT o.xmin AS born, o.{column} AS age FROM ONLY {name} o{unmarked} ORDER BY o.{column} LIMIT 1000
)
SELECT EXTRACT(epoch FROM now() - min(p.age))::float8 FROM page p WHERE {settled}"
    )
}

/// Whether the upper bound of a partition, as the catalog writes it, is long enough ago; $1 seconds to retain.
pub(super) fn is_over(upper: &str, sql_type: &str) -> String {
    format!("SELECT {}::{sql_type} <= (now() - make_interval(secs => $1::float8))::{sql_type}", quote_literal(upper))
}
