//! A connection of the clean-up's own, and the sweep that goes on over it.

use std::collections::VecDeque;

use tokio::task::JoinHandle;
use tokio_postgres::{
    Client, Error, Row,
    types::{ToSql, Type},
};

use super::{
    CleanupFacts, Measures, Place, Plan, facts, findings, partitions, past,
    statements::Touch,
    survey,
    sweep::{ByAge, ByPlace, Seen, Walk},
};
use crate::{
    config::CleanupMode,
    control::{
        finding::Finding,
        gateway::{GatewayRow, Mark},
        link::Link,
        query::{QueryError, column, execute},
    },
};

/// What holds for the connection: it waits for nobody's lock for long, no statement is long, and no plan reads a whole
/// table where there is another way. What is deleted need not be durable: it is found again.
const SET_UP: &str = "\
SET search_path = pg_catalog; SET lock_timeout = '500ms'; SET statement_timeout = '5s';
SET idle_in_transaction_session_timeout = '10s'; SET default_transaction_isolation = 'read committed';
SET synchronous_commit = off; SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off";

pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The rows of a statement.
pub(super) async fn rows(
    client: &Client,
    what: &'static str,
    sql: &str,
    parameters: &[Parameter<'_>],
) -> Result<Vec<Row>, QueryError> {
    client.query_typed(sql, parameters).await.map_err(|source| QueryError::Sql { what, source })
}

/// Why a round has not been done.
#[derive(Debug, thiserror::Error)]
pub enum SweeperError {
    /// A statement failed, or the connection broke.
    #[error(transparent)]
    Query(#[from] QueryError),
    /// It leads elsewhere than the stream.
    #[error("{0}")]
    Elsewhere(String),
    /// Another process has begun a term.
    #[error("another process has begun to read the slot: nothing is cleaned up here")]
    TermOver,
}

/// What a round came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Rows that were deleted, marked, or have gone with their partition.
    pub touched: u64,
    /// Rows that were looked at.
    pub looked: u64,
    /// The sweep is through.
    pub swept: bool,
}

/// Reads and writes the socket. Dropped, it closes it at once, whatever is under way.
struct Driver(JoinHandle<Result<(), Error>>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// See the module.
pub struct Sweeper {
    client: Client,
    _driver: Driver,
    before: Option<Mark>,
    place: Place,
    facts: CleanupFacts,
    findings: Vec<Finding>,
    /// What is left of the sweep under way.
    left: VecDeque<(facts::LeafFacts, Walk)>,
    /// Where the last sweep of each table has come to, by its oid: for rows that stay.
    ends: Vec<(u32, ByAge)>,
    /// The mark of the sweep under way, or of the last one.
    swept_by: Option<u64>,
}

impl Sweeper {
    /// Sets a connection up, and sees that it leads where the stream comes from: `theirs`. `known` says, once it stands,
    /// which mark is known already.
    ///
    /// # Errors
    /// It leads elsewhere, or a statement failed.
    pub async fn open(
        link: Link,
        plan: &Plan,
        theirs: &Place,
        known: impl FnOnce() -> Option<Mark>,
    ) -> Result<Sweeper, SweeperError> {
        let Link { client, driver } = link;
        let driver = Driver(tokio::spawn(driver));
        execute(&client, "set the clean-up's connection up", SET_UP).await?;
        let place = facts::place(&client, &plan.table).await?;
        let place = place.ok_or_else(|| SweeperError::Elsewhere("the clean-up's database has no name".to_owned()))?;
        if let Some(why) = elsewhere(&place, theirs, plan) {
            return Err(SweeperError::Elsewhere(why));
        }
        let before = known();
        let facts = facts::read_facts(&client, plan).await?;
        let findings = findings::judge(&facts, plan);
        Ok(Sweeper {
            client,
            _driver: driver,
            before,
            place,
            facts,
            findings,
            left: VecDeque::new(),
            ends: Vec::new(),
            swept_by: None,
        })
    }

    /// Whether the connection is over.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Whether a mark that the checkpoint has passed may be used here: it became known after this connection was made. So the
    /// server has not crashed since it was good, nor is it another one, or the connection would be gone.
    #[must_use]
    pub fn takes(&self, mark: Mark) -> bool {
        self.before != Some(mark)
    }

    /// What was found of the table and the role.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Whether a sweep with this mark can find more than the last one has.
    #[must_use]
    pub fn is_worth_it(&self, mark: Mark) -> bool {
        !self.left.is_empty() || self.swept_by.is_none_or(|before| mark.xmin > before)
    }

    /// Rows that may be from before the birth, at least.
    ///
    /// # Errors
    /// See [`past::look`].
    pub async fn past(&mut self, plan: &Plan, known: &GatewayRow) -> Result<u64, SweeperError> {
        self.look(plan).await?;
        Ok(past::look(&self.client, &self.facts, plan, known).await?)
    }

    /// How much there is, cheaply.
    ///
    /// # Errors
    /// A query failed, or the connection broke.
    pub async fn measure(&self, plan: &Plan, mark: Option<Mark>) -> Result<Measures, SweeperError> {
        Ok(survey::measure(&self.client, &self.facts, plan, mark).await?)
    }

    /// Reads the facts anew.
    async fn look(&mut self, plan: &Plan) -> Result<(), SweeperError> {
        self.facts = facts::read_facts(&self.client, plan).await?;
        self.findings = findings::judge(&self.facts, plan);
        let table = self.facts.table.as_ref().map(|table| table.oid);
        if table != self.place.table {
            return Err(SweeperError::Elsewhere(format!(
                "{} is not the table that it was: it was dropped and made again. What was written to it before it was \
                 published is in no stream, so nothing is cleaned up until walgate is started again",
                plan.table
            )));
        }
        Ok(())
    }

    /// One round: up to a batch of rows, or a partition. Begins a sweep where none is under way.
    ///
    /// # Errors
    /// Nothing was done, or it is not known: it is done again then.
    pub async fn round(&mut self, plan: &Plan, mark: Mark, term: i64, batch: u32) -> Result<Round, SweeperError> {
        if self.left.is_empty() {
            self.begin(plan, mark).await?;
        }
        let mut round = Round::default();
        let Some((leaf, mut walk)) = self.left.pop_front() else {
            return Ok(Round { swept: true, ..round });
        };
        if plan.mode() == CleanupMode::DropPartitions {
            round.touched =
                partitions::take(&self.client, &leaf, plan, self.table_age(), mark, term, self.holds_term()).await?;
            round.swept = self.left.is_empty();
            return Ok(round);
        }
        let (seen, through) = match self.page(&leaf, &mut walk, plan, mark, term, batch).await {
            Ok(page) => page,
            Err(error) => {
                self.left.push_front((leaf, walk));
                return Err(error);
            }
        };
        (round.touched, round.looked) = seen;
        if !through {
            self.left.push_front((leaf, walk));
        } else if let Walk::Age(walk) = walk {
            self.ends.retain(|(oid, _)| *oid != leaf.oid);
            self.ends.push((leaf.oid, walk));
        }
        round.swept = self.left.is_empty();
        Ok(round)
    }

    fn holds_term(&self) -> bool {
        self.facts.may_hold_term
    }

    fn table_age(&self) -> Option<facts::AgeType> {
        self.facts.table.as_ref().and_then(facts::CleanupTable::age)
    }

    async fn begin(&mut self, plan: &Plan, mark: Mark) -> Result<(), SweeperError> {
        self.look(plan).await?;
        self.swept_by = Some(mark.xmin);
        if self.findings.iter().any(Finding::blocks) {
            return Ok(());
        }
        let batch = u64::from(plan.cleanup.batch);
        let has_age = self.table_age().is_some();
        let marks = plan.mode() == CleanupMode::Mark;
        let leaves = self.facts.table.iter().flat_map(|table| &table.leaves);
        self.left = leaves
            .map(|leaf| {
                let before = self.ends.iter().find(|(oid, _)| *oid == leaf.oid);
                let walk = match before {
                    Some((_, before)) if marks && leaf.indexed => Walk::Age(before.again(batch)),
                    _ if has_age && leaf.indexed => Walk::Age(ByAge::new(batch)),
                    _ => Walk::Place(ByPlace { block: 0 }),
                };
                (leaf.clone(), walk)
            })
            .collect();
        Ok(())
    }

    /// One page of a table: rows touched and looked at, and whether it was the last.
    async fn page(
        &self,
        leaf: &facts::LeafFacts,
        walk: &mut Walk,
        plan: &Plan,
        mark: Mark,
        term: i64,
        batch: u32,
    ) -> Result<((u64, u64), bool), SweeperError> {
        let what = "clean the outbox up";
        let age = self.table_age().map(|age| (plan.cleanup.age.as_str(), age.sql()));
        let touch = Touch { leaf, mode: plan.mode(), mark: &plan.cleanup.mark, age, holds_term: self.holds_term() };
        let (xmin, retain, batch) = (mark.xmin.to_string(), plan.cleanup.retain.0.as_secs_f64(), i64::from(batch));
        let count = |value: i64| u64::try_from(value).unwrap_or(0);
        match walk {
            Walk::Age(by_age) => {
                let Some((column_name, sql_type)) = age else { return Ok(((0, 0), true)) };
                let sql = touch.by_age(column_name, sql_type);
                let look = i64::try_from(by_age.look).unwrap_or(i64::MAX);
                let parameters: [Parameter<'_>; 8] = [
                    (&plan.slot, Type::TEXT),
                    (&term, Type::INT8),
                    (&xmin, Type::TEXT),
                    (&by_age.from, Type::TEXT),
                    (&by_age.skip, Type::BOOL),
                    (&look, Type::INT8),
                    (&batch, Type::INT8),
                    (&retain, Type::FLOAT8),
                ];
                let found = rows(&self.client, what, &sql, &parameters).await?;
                let Some(row) = found.first() else { return Ok(((0, 0), true)) };
                if !column::<bool>(row, what, 4)? {
                    return Err(SweeperError::TermOver);
                }
                let seen = Seen {
                    touched: count(column(row, what, 0)?),
                    looked: count(column(row, what, 1)?),
                    next: column(row, what, 2)?,
                    first_kept: column(row, what, 3)?,
                };
                let both = (seen.touched, seen.looked);
                Ok((both, by_age.after(seen, count(batch))))
            }
            Walk::Place(by_place) => {
                let sql = touch.by_place();
                let from = i64::try_from(by_place.block).unwrap_or(i64::MAX);
                let end = i64::try_from(by_place.end()).unwrap_or(i64::MAX);
                let parameters: [Parameter<'_>; 8] = [
                    (&plan.slot, Type::TEXT),
                    (&term, Type::INT8),
                    (&xmin, Type::TEXT),
                    (&from, Type::INT8),
                    (&end, Type::INT8),
                    (&batch, Type::INT8),
                    (&batch, Type::INT8),
                    (&retain, Type::FLOAT8),
                ];
                let found = rows(&self.client, what, &sql, &parameters).await?;
                let Some(row) = found.first() else { return Ok(((0, 0), true)) };
                if !column::<bool>(row, what, 3)? {
                    return Err(SweeperError::TermOver);
                }
                let both = (count(column(row, what, 0)?), count(column(row, what, 1)?));
                let blocks = count(column(row, what, 2)?);
                Ok((both, by_place.after(both.0, count(batch), blocks)))
            }
        }
    }
}

/// Why the place is not the one that is streamed from; none: it is.
#[must_use]
pub fn elsewhere(ours: &Place, theirs: &Place, plan: &Plan) -> Option<String> {
    let mend = "let cleanup.url lead to the server and database of source.url, or leave it out";
    if ours.system_id != theirs.system_id {
        return Some(format!(
            "the clean-up's connection leads to another PostgreSQL cluster than the stream (system identifier {} instead of \
             {}): {mend}",
            ours.system_id, theirs.system_id
        ));
    }
    if ours.database != theirs.database {
        return Some(format!(
            "the clean-up's connection leads to database `{}`, and the stream comes from `{}`: {mend}",
            ours.name, theirs.name
        ));
    }
    if ours.in_recovery {
        return Some(format!("the clean-up's connection leads to a standby, where nothing can be written: {mend}"));
    }
    if ours.timeline != theirs.timeline {
        return Some(format!(
            "the clean-up's connection leads to another server of the cluster than the stream, with another history (a \
             standby was promoted): {mend}"
        ));
    }
    if ours.table.is_none() || ours.table != theirs.table {
        return Some(format!("the table {} does not exist on the clean-up's connection", plan.table));
    }
    None
}
