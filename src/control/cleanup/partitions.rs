//! Whole partitions: dropped, or detached, when all of their rows are settled and old enough.

use tokio_postgres::{Client, error::SqlState, types::Type};

use super::{
    Plan,
    facts::{AgeType, LeafFacts},
    statements,
    sweeper::{Parameter, SweeperError, rows},
};
use crate::control::{
    gateway::Mark,
    query::{QueryError, column, execute},
};

const WHAT: &str = "drop a partition of the outbox";
/// Blocks that are looked at in one statement.
const BLOCKS: i64 = 8192;

/// Whether a partition is one that may go at some time: of a range of the age column, with an end, and not the default one.
fn upper(leaf: &LeafFacts) -> Option<&str> {
    leaf.upper.as_deref().filter(|_| !leaf.is_default && leaf.parent.is_some())
}

/// Whether its range ended long enough ago.
pub(super) async fn is_over(
    client: &Client,
    leaf: &LeafFacts,
    plan: &Plan,
    age: Option<AgeType>,
) -> Result<bool, QueryError> {
    let (Some(upper), Some(age)) = (upper(leaf), age) else { return Ok(false) };
    let retain = plan.cleanup.retain.0.as_secs_f64();
    let found = rows(client, WHAT, &statements::is_over(upper, age.sql()), &[(&retain, Type::FLOAT8)]).await?;
    Ok(found.first().map(|row| column::<Option<bool>>(row, WHAT, 0)).transpose()?.flatten().unwrap_or(false))
}

/// Whether every row of it is settled, and how many there are: a part of it at a time, up to the first that is not.
pub(super) async fn is_settled(client: &Client, leaf: &LeafFacts, mark: Mark) -> Result<(bool, u64), QueryError> {
    let (sql, xmin) = (statements::all_settled(leaf), mark.xmin.to_string());
    let (mut block, mut total) = (0, 0);
    loop {
        let end = block + BLOCKS;
        let parameters: [Parameter<'_>; 3] = [(&xmin, Type::TEXT), (&block, Type::INT8), (&end, Type::INT8)];
        let found = rows(client, WHAT, &sql, &parameters).await?;
        let Some(row) = found.first() else { return Ok((false, total)) };
        let (settled, count, blocks): (bool, i64, i64) =
            (column(row, WHAT, 0)?, column(row, WHAT, 1)?, column(row, WHAT, 2)?);
        total += u64::try_from(count).unwrap_or(0);
        block = end;
        if !settled || block >= blocks {
            return Ok((settled, total));
        }
    }
}

/// Takes the partition away if it may go; the rows that have gone with it.
///
/// It is looked at first without a lock, and then again under one that nobody writes beside: whoever had written to it
/// has ended by then, and what that left is seen. Readers wait only for the end, when all of it is known to be settled: the
/// lock is raised then, and nobody has come in between.
pub(super) async fn take(
    client: &Client,
    leaf: &LeafFacts,
    plan: &Plan,
    age: Option<AgeType>,
    mark: Mark,
    term: i64,
    holds_term: bool,
) -> Result<u64, SweeperError> {
    if !is_over(client, leaf, plan, age).await? || !is_settled(client, leaf, mark).await?.0 {
        return Ok(0);
    }
    let taken = under_lock(client, leaf, plan, mark, term, holds_term).await;
    match taken {
        Ok(Some(rows)) => {
            execute(client, WHAT, "COMMIT").await?;
            tracing::info!(
                partition = leaf.name,
                rows,
                detached = plan.cleanup.detach,
                "a partition of the outbox is gone: all of it was settled"
            );
            Ok(rows)
        }
        Ok(None) => {
            execute(client, WHAT, "ROLLBACK").await?;
            Ok(0)
        }
        Err(error) => {
            let _ = execute(client, WHAT, "ROLLBACK").await;
            let state = if let SweeperError::Query(error) = &error { error.sqlstate() } else { None };
            if state != Some(&SqlState::LOCK_NOT_AVAILABLE) {
                return Err(error);
            }
            tracing::debug!(partition = leaf.name, "somebody has it locked: the next sweep looks at it again");
            Ok(0)
        }
    }
}

async fn under_lock(
    client: &Client,
    leaf: &LeafFacts,
    plan: &Plan,
    mark: Mark,
    term: i64,
    holds_term: bool,
) -> Result<Option<u64>, SweeperError> {
    // Whoever wants to write to the table waits behind a lock that is waited for: that must not be long.
    execute(client, WHAT, "BEGIN; SET LOCAL lock_timeout = '200ms'").await?;
    execute(client, WHAT, &format!("LOCK TABLE ONLY {} IN SHARE MODE", leaf.name)).await?;
    let same = format!(
        "SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.oid = {}::oid AND c.relispartition AND format('%I.%I', n.nspname, c.relname) = $1)",
        leaf.oid
    );
    let found = rows(client, WHAT, &same, &[(&leaf.name, Type::TEXT)]).await?;
    let same = found.first().map(|row| column::<bool>(row, WHAT, 0)).transpose()?.unwrap_or(false);
    let (settled, rows_there) = is_settled(client, leaf, mark).await?;
    let (true, true, Some(parent)) = (same, settled, &leaf.parent) else { return Ok(None) };
    execute(client, WHAT, &format!("LOCK TABLE ONLY {} IN ACCESS EXCLUSIVE MODE", leaf.name)).await?;
    if holds_term {
        let sql = "SELECT 1 FROM walgate.gateway WHERE slot = $1 AND term = $2 AND past_settled FOR KEY SHARE";
        let parameters: [Parameter<'_>; 2] = [(&plan.slot, Type::TEXT), (&term, Type::INT8)];
        if rows(client, WHAT, sql, &parameters).await?.is_empty() {
            return Err(SweeperError::TermOver);
        }
    }
    let sql = match plan.cleanup.detach {
        true => format!("ALTER TABLE {parent} DETACH PARTITION {}", leaf.name),
        false => format!("DROP TABLE {}", leaf.name),
    };
    execute(client, WHAT, &sql).await?;
    Ok(Some(rows_there))
}
