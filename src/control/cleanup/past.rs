//! Rows from before the slot's birth: nobody has streamed them. Nothing is cleaned up while there may be any.

use tokio_postgres::{Client, types::Type};

use super::{
    CleanupFacts, Plan, statements,
    sweeper::{Parameter, rows},
};
use crate::control::{
    gateway::GatewayRow,
    names::quote_ident,
    query::{QueryError, column, execute},
};

/// Blocks that are looked at in one statement.
const BLOCKS: i64 = 1024;
const WHAT: &str = "look for rows from before the slot";

/// How many rows the outbox holds that may be from before the birth, at least; 0: none.
///
/// By their transaction, a part of the table at a time, until the first are found; then by their age in one statement
/// over all of it, because a row that somebody updates has a younger transaction, and another place. A table without an
/// age column is to be empty.
///
/// # Errors
/// A query failed, or the connection broke: nothing is known.
pub async fn look(client: &Client, facts: &CleanupFacts, plan: &Plan, known: &GatewayRow) -> Result<u64, QueryError> {
    let Some(table) = &facts.table else { return Ok(0) };
    let age = table.age().map(|_| plan.cleanup.age.as_str());
    let birth = known.birth.to_string();
    for leaf in &table.leaves {
        let (sql, mut block) = (statements::unborn(leaf, age), 0);
        loop {
            let end = block + BLOCKS;
            let parameters: [Parameter<'_>; 4] =
                [(&birth, Type::TEXT), (&known.born_at, Type::INT8), (&block, Type::INT8), (&end, Type::INT8)];
            let found = rows(client, WHAT, &sql, &parameters).await?;
            let Some(row) = found.first() else { break };
            let (before, blocks): (i64, i64) = (column(row, WHAT, 0)?, column(row, WHAT, 1)?);
            if before > 0 {
                return Ok(u64::try_from(before).unwrap_or(0));
            }
            block = end;
            if block >= blocks {
                break;
            }
        }
    }
    let of_leaf = |name: &str| match age {
        Some(age) => {
            let age = quote_ident(age);
            format!(
                "EXISTS (SELECT FROM ONLY {name} o WHERE o.{age} < to_timestamp($1::bigint / 1000000.0)) \
                 OR EXISTS (SELECT FROM ONLY {name} o WHERE o.{age} IS NULL)"
            )
        }
        None => format!("EXISTS (SELECT FROM ONLY {name})"),
    };
    let any: Vec<String> = table.leaves.iter().map(|leaf| of_leaf(&leaf.name)).collect();
    let any = if any.is_empty() { "false".to_owned() } else { any.join("\n    OR ") };
    let sql = format!("SELECT $1::bigint IS NULL OR {any}");
    // Without an index this reads all of it: once.
    execute(client, WHAT, "SET statement_timeout = '30min'").await?;
    let found = rows(client, WHAT, &sql, &[(&known.born_at, Type::INT8)]).await;
    execute(client, WHAT, "SET statement_timeout = '5s'").await?;
    let found = found?;
    let any: bool = found.first().map(|row| column(row, WHAT, 0)).transpose()?.unwrap_or(true);
    Ok(u64::from(any))
}

/// Why nothing is cleaned up, and what to do.
#[must_use]
pub fn explain(table: &super::TableName, rows: u64) -> String {
    format!(
        "{table} holds rows that are older than the slot, or may be (at least {rows}): walgate has not delivered them and \
         does not know who has, so nothing is cleaned up. `walgate recover --adopt` sends them; once you \
         know that nobody waits for them, delete them, or say so: `walgate cleanup --past-settled`"
    )
}
