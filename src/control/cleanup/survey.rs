//! How many rows there are of which kind: exactly, for a person who asks; and roughly, every minute.

use serde::Serialize;
use tokio_postgres::{Client, types::Type};

use super::{
    CleanupFacts, Plan, partitions, statements,
    sweeper::{Parameter, rows},
};
use crate::{
    config::CleanupMode,
    control::{
        gateway::Mark,
        query::{QueryError, column, execute},
    },
};

const WHAT: &str = "count the outbox's rows";

/// Rows of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// All of them.
    pub rows: u64,
    /// Those that a clean-up would delete, mark or drop now.
    pub would_go: u64,
    /// Those that are settled, and are kept for now.
    pub settled_kept: u64,
    /// Those that are not settled on every sink, or of which that is not known.
    pub not_settled: u64,
    /// Those among all that are from before the slot, by their transaction.
    pub before_slot: u64,
    /// Those that are marked already.
    pub marked: u64,
}

/// A partition, where whole ones go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PartitionCount {
    /// Its name.
    pub name: String,
    /// Its rows.
    pub rows: u64,
    /// Whether it would go.
    pub would_go: bool,
    /// Why it stays.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Survey {
    /// Over all partitions.
    #[serde(flatten)]
    pub count: Count,
    /// The partitions, where whole ones go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionCount>,
}

/// Reads the whole table, in one statement for each partition.
///
/// # Errors
/// A query failed, or the connection broke.
pub async fn survey(
    client: &Client,
    facts: &CleanupFacts,
    plan: &Plan,
    mark: Option<Mark>,
    birth: u64,
) -> Result<Survey, QueryError> {
    let begin = "SET search_path = pg_catalog; SET statement_timeout = '10min'; SET default_transaction_read_only = on";
    execute(client, "begin to count", begin).await?;
    let mut all = Survey::default();
    let Some(table) = &facts.table else { return Ok(all) };
    let age = table.age();
    let typed = age.map(|age| (plan.cleanup.age.as_str(), age.sql()));
    let marks = (plan.mode() == CleanupMode::Mark).then_some(plan.cleanup.mark.as_str());
    // No mark: nothing is older than the first transaction.
    let (xmin, birth) = (mark.map_or(3, |mark| mark.xmin).to_string(), birth.to_string());
    let retain = plan.cleanup.retain.0.as_secs_f64();
    for leaf in &table.leaves {
        let sql = statements::count(leaf, typed, marks);
        let parameters: [Parameter<'_>; 3] = [(&xmin, Type::TEXT), (&birth, Type::TEXT), (&retain, Type::FLOAT8)];
        let found = rows(client, WHAT, &sql, &parameters).await?;
        let Some(row) = found.first() else { continue };
        let number = |index| column::<i64>(row, WHAT, index).map(|count| u64::try_from(count).unwrap_or(0));
        let (total, settled, mut go) = (number(0)?, number(1)?, number(2)?);
        let settled = if mark.is_some() { settled } else { 0 };
        go = go.min(settled);
        if plan.mode() == CleanupMode::DropPartitions {
            let why = if leaf.is_default {
                Some("it is the default partition")
            } else if leaf.upper.is_none() {
                Some("it is no range of the age column, or has no end")
            } else if !partitions::is_over(client, leaf, plan, age).await? {
                Some("its range has not ended long enough ago")
            } else if settled < total || mark.is_none() {
                Some("not all of its rows are settled")
            } else {
                None
            };
            go = if why.is_none() { total } else { 0 };
            all.partitions.push(PartitionCount { name: leaf.name.clone(), rows: total, would_go: why.is_none(), why });
        }
        let count = &mut all.count;
        count.rows += total;
        count.would_go += go;
        count.settled_kept += settled - go;
        count.not_settled += total - settled;
        count.before_slot += number(3)?;
        count.marked += number(4)?;
    }
    Ok(all)
}

/// How much there is, as PostgreSQL's statistics have it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measures {
    /// The table with its indexes, in bytes.
    pub bytes: u64,
    /// Rows.
    pub rows: u64,
    /// Rows that are dead and wait for VACUUM.
    pub dead: u64,
    /// Age of the oldest settled row among the first ones, in seconds; none: there is none, or it is not known.
    pub oldest_settled: Option<f64>,
}

pub(super) async fn measure(
    client: &Client,
    facts: &CleanupFacts,
    plan: &Plan,
    mark: Option<Mark>,
) -> Result<Measures, QueryError> {
    let what = "measure the outbox";
    let mut all = Measures::default();
    let Some(table) = &facts.table else { return Ok(all) };
    let oids: Vec<u32> = table.leaves.iter().map(|leaf| leaf.oid).collect();
    let sql = "\
SELECT COALESCE(sum(pg_total_relation_size(l.oid)), 0)::bigint, COALESCE(sum(s.n_live_tup), 0)::bigint,
    COALESCE(sum(s.n_dead_tup), 0)::bigint
FROM unnest($1::oid[]) AS l(oid) LEFT JOIN pg_stat_all_tables s ON s.relid = l.oid";
    let found = rows(client, what, sql, &[(&oids, Type::OID_ARRAY)]).await?;
    if let Some(row) = found.first() {
        let number =
            |index| column::<Option<i64>>(row, what, index).map(|count| count.unwrap_or(0).try_into().unwrap_or(0));
        (all.bytes, all.rows, all.dead) = (number(0)?, number(1)?, number(2)?);
    }
    if let (Some(_), Some(mark)) = (table.age(), mark) {
        let unmarked = (plan.mode() == CleanupMode::Mark).then_some(plan.cleanup.mark.as_str());
        let xmin = mark.xmin.to_string();
        for leaf in table.leaves.iter().filter(|leaf| leaf.indexed) {
            let sql = statements::oldest(leaf, &plan.cleanup.age, unmarked);
            let found = rows(client, what, &sql, &[(&xmin, Type::TEXT)]).await?;
            let age = found.first().map(|row| column::<Option<f64>>(row, what, 0)).transpose()?.flatten();
            all.oldest_settled = all.oldest_settled.into_iter().chain(age).reduce(f64::max);
        }
    }
    Ok(all)
}
