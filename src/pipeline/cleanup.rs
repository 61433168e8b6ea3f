//! Settled rows are taken out of the outbox while the stream is ours: what may go, [`control::cleanup`] knows; when and how
//! fast, this does.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{sync::watch, time::timeout};
use tokio_postgres::{Client, error::SqlState};

use super::{Connect, StatusBoard};
use crate::{
    config::CleanupMode,
    control::{
        Bounds, Finding, LinkError, Mark, Severity, Term,
        cleanup::{self, Plan, Round, Sweeper, SweeperError},
        gateway,
    },
    telemetry::failpoint,
};

/// While something is not there yet.
const SOON: Duration = Duration::from_millis(500);
/// Between two looks whether somebody has decided about rows from before the slot, and between two at those rows.
const ASK_PAST: Duration = Duration::from_secs(2);
const LOOK_PAST: Duration = Duration::from_secs(60);
/// While somebody must mend something.
const BLOCKED: Duration = Duration::from_secs(10);
/// Pauses between two sweeps: they double while there is nothing to do.
const IDLE_LEAST: Duration = Duration::from_secs(1);
const IDLE_MOST: Duration = Duration::from_secs(10);
/// Rows come of age though no mark does.
const COME_OF_AGE: Duration = Duration::from_secs(60);
/// A sweep that finds little takes so much of the time at the most: a tenth.
const REST: u32 = 10;
/// Between two measurements.
const MEASURE: Duration = Duration::from_secs(60);
/// Time that a statement may take; the server's own bound is shorter.
const PATIENCE: Duration = Duration::from_secs(15);
/// Time for a look at a whole table, a part at a time.
const LONG_LOOK: Duration = Duration::from_secs(3600);
/// Pauses after failures.
const RETRY_LEAST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// A round that takes longer than this has the server breathe for twice as long.
const LONG_ROUND: Duration = Duration::from_millis(250);
/// Lag of the slot that is worth waiting for.
const MUCH_LAG: u64 = 64 << 20;
const MOST_STRAIN: u32 = 64;
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What it is doing, in one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CleanupState {
    /// It is not configured.
    #[default]
    Off,
    /// For the slot, a connection, or a mark.
    Waiting,
    /// Somebody must mend or decide something.
    Blocked,
    /// Nothing is left to do at present.
    Idle,
    /// Rows are cleaned up.
    Running,
}

/// What `/status` says of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct CleanupStatus {
    /// The mode.
    pub mode: CleanupMode,
    /// One word.
    pub state: CleanupState,
    /// Why, where that is not plain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Rows that were cleaned up since the process started.
    pub rows: u64,
    /// Rounds that failed.
    pub errors: u64,
    /// What the last one said.
    pub last_error: Option<String>,
    /// The last round that found something to do.
    pub last_round: Option<LastRound>,
    /// Rows that are settled and kept, roughly.
    pub kept_rows: Option<u64>,
    /// Age of the oldest settled row.
    pub oldest_settled_seconds: Option<f64>,
    /// Size of the table with its indexes.
    pub table_bytes: Option<u64>,
    /// Rows that wait for VACUUM.
    pub dead_rows: Option<u64>,
}

/// One round.
#[derive(Clone, Debug, Serialize)]
pub struct LastRound {
    /// When, as RFC 3339.
    pub at: String,
    /// Rows.
    pub rows: u64,
    /// Time that it took.
    pub seconds: f64,
}

/// What the clean-up works with.
pub struct Around {
    /// What is to be cleaned up, and how.
    pub plans: watch::Receiver<Plan>,
    /// Makes its own connection.
    pub connect: Connect,
    /// The SQL connection beside the stream.
    pub clients: watch::Receiver<Option<Arc<Client>>>,
    /// Which rows are settled.
    pub bounds: watch::Sender<Option<Bounds>>,
    /// The term.
    pub term: Term,
    /// Where it is shown.
    pub board: StatusBoard,
}

/// Cleans up until it is dropped.
pub async fn serve(around: Around) {
    let mut plans = around.plans.clone();
    let mut duty = Duty {
        around,
        sweeper: None,
        failures: 0,
        batch: u32::MAX,
        idle: IDLE_LEAST,
        strain: Strain::default(),
        sweep: Sweep::default(),
        looked: None,
        measured: None,
        told: HashSet::new(),
    };
    loop {
        let plan = plans.borrow_and_update().clone();
        let pause = duty.turn(&plan).await;
        if let Ok(Err(_)) = timeout(pause, plans.changed()).await {
            return;
        }
        if plans.has_changed().unwrap_or(false) {
            duty.start_over();
        }
    }
}

/// The sweep under way.
#[derive(Default)]
struct Sweep {
    began: Option<Instant>,
    touched: u64,
    looked: u64,
    /// The next one does not begin before.
    rests_until: Option<Instant>,
    /// It begins then, though no mark has come.
    comes_of_age: Option<Instant>,
}

impl Sweep {
    /// Whether there is to be a round: of the sweep under way, or of another one.
    fn is_due(&self, now: Instant, new_mark: bool) -> bool {
        let is_past = |at: Option<Instant>| at.is_none_or(|at| at <= now);
        self.began.is_some() || (is_past(self.rests_until) && (new_mark || is_past(self.comes_of_age)))
    }
}

/// A look at the rows from before a birth.
#[derive(Clone, Copy)]
struct Look {
    at: Instant,
    birth: u64,
    found: u64,
}

struct Duty {
    around: Around,
    sweeper: Option<Sweeper>,
    /// In a row.
    failures: u32,
    /// Rows in a round at the most: fewer after one that waited for a lock, or took too long.
    batch: u32,
    idle: Duration,
    strain: Strain,
    sweep: Sweep,
    /// The last look at rows from before the slot.
    looked: Option<Look>,
    measured: Option<Instant>,
    /// What was said already.
    told: HashSet<String>,
}

impl Duty {
    fn start_over(&mut self) {
        self.sweeper = None;
        (self.sweep, self.idle, self.looked, self.measured) = (Sweep::default(), IDLE_LEAST, None, None);
        self.told.clear();
    }

    /// Does what is to be done next; the pause after it.
    async fn turn(&mut self, plan: &Plan) -> Duration {
        if plan.mode() == CleanupMode::Off {
            self.start_over();
            self.show(plan, CleanupState::Off, None);
            return COME_OF_AGE;
        }
        let bounds = *self.around.bounds.borrow();
        let Some(bounds) = bounds else {
            self.start_over();
            self.show(plan, CleanupState::Waiting, Some("the slot is not ours: it is cleaned up by whoever reads it"));
            return SOON;
        };
        match self.work(plan, bounds).await {
            Ok(pause) => {
                self.failures = 0;
                pause
            }
            Err(error) => self.failed(plan, &error),
        }
    }

    async fn work(&mut self, plan: &Plan, bounds: Bounds) -> Result<Duration, SweeperError> {
        if self.sweeper.as_ref().is_none_or(Sweeper::is_closed) {
            self.sweeper = None;
            let Some(sweeper) = self.open(plan).await? else { return Ok(SOON) };
            self.sweeper = Some(sweeper);
            // What was known before it stood is not for it.
            return Ok(SOON);
        }
        let Some(sweeper) = &self.sweeper else { return Ok(SOON) };
        let findings = sweeper.findings().to_vec();
        if self.is_blocked(plan, &findings) {
            self.sweeper = None;
            return Ok(BLOCKED);
        }
        if !bounds.past_settled && !self.settles_past(plan, bounds).await? {
            return Ok(ASK_PAST);
        }
        let Some(sweeper) = &mut self.sweeper else { return Ok(SOON) };
        let Some(mark) = bounds.mark.filter(|mark| sweeper.takes(*mark)) else {
            self.show(plan, CleanupState::Waiting, Some("the checkpoint has not passed a mark yet"));
            return Ok(SOON);
        };
        if self.measured.is_none_or(|measured| measured.elapsed() >= MEASURE) {
            let measures = patience(sweeper.measure(plan, Some(mark))).await?;
            self.measured = Some(Instant::now());
            self.around.board.cleanup_measured(measures);
        }
        let (now, worth_it) = (Instant::now(), sweeper.is_worth_it(mark));
        if !self.sweep.is_due(now, worth_it) {
            self.show(plan, CleanupState::Idle, None);
            return Ok(IDLE_LEAST);
        }
        self.round(plan, mark).await
    }

    async fn round(&mut self, plan: &Plan, mark: Mark) -> Result<Duration, SweeperError> {
        let Some(sweeper) = &mut self.sweeper else { return Ok(SOON) };
        let began = Instant::now();
        let sweep_began = *self.sweep.began.get_or_insert(began);
        let batch = plan.cleanup.batch.min(self.batch).max(1);
        failpoint("cleanup.before");
        let work = sweeper.round(plan, mark, self.around.term.get(), batch);
        let round = match plan.mode() {
            CleanupMode::DropPartitions => within(LONG_LOOK, work).await?,
            _ => patience(work).await?,
        };
        failpoint("cleanup.after");
        let took = began.elapsed();
        let findings = sweeper.findings().to_vec();
        self.batch = self.batch.saturating_mul(2);
        let Round { touched, looked, swept } = round;
        self.sweep.touched += touched;
        self.sweep.looked += looked;
        if touched > 0 {
            self.around.board.cleaned_up(plan.mode(), touched, took);
        }
        if self.is_blocked(plan, &findings) {
            (self.sweeper, self.sweep) = (None, Sweep::default());
            return Ok(BLOCKED);
        }
        if !swept {
            self.show(plan, CleanupState::Running, None);
            return Ok(self.pause(plan, took));
        }
        let Sweep { touched, looked, .. } = std::mem::take(&mut self.sweep);
        self.idle = if touched > 0 { IDLE_LEAST } else { (self.idle * 2).min(IDLE_MOST) };
        let long = match touched.saturating_mul(4) < looked || plan.mode() == CleanupMode::DropPartitions {
            true => sweep_began.elapsed().saturating_mul(REST),
            false => Duration::ZERO,
        };
        let idle = self.idle.max(long);
        let now = Instant::now();
        (self.sweep.rests_until, self.sweep.comes_of_age) = (Some(now + idle), Some(now + idle.max(COME_OF_AGE)));
        self.show(plan, CleanupState::Idle, None);
        Ok(IDLE_LEAST)
    }

    /// A connection; none: the other one, which says where it must lead to, is not there.
    async fn open(&mut self, plan: &Plan) -> Result<Option<Sweeper>, SweeperError> {
        let client = self.around.clients.borrow().clone();
        let Some(client) = client else {
            self.show(plan, CleanupState::Waiting, Some("there is no SQL connection"));
            return Ok(None);
        };
        let Some(theirs) = patience(async { Ok(cleanup::place(&client, &plan.table).await?) }).await? else {
            return Ok(None);
        };
        let link = timeout(PATIENCE, (self.around.connect)()).await;
        let link = link.unwrap_or_else(|_| Err(LinkError::new("no connection within 15 s")));
        let link = link.map_err(|error| SweeperError::Elsewhere(format!("the clean-up cannot connect: {error}")))?;
        (self.sweep, self.measured) = (Sweep::default(), None);
        let known = || self.around.bounds.borrow().and_then(|bounds| bounds.mark);
        patience(Sweeper::open(link, plan, &theirs, known)).await.map(Some)
    }

    /// Whether a finding stands in the way; each is logged once.
    fn is_blocked(&mut self, plan: &Plan, findings: &[Finding]) -> bool {
        for finding in findings.iter().filter(|finding| finding.severity > Severity::Info) {
            if self.told.insert(finding.to_string()) {
                tracing::warn!(code = ?finding.code, "{finding}");
            }
        }
        let blocks: Vec<&str> =
            findings.iter().filter(|finding| finding.blocks()).map(|finding| finding.message.as_str()).collect();
        if !blocks.is_empty() {
            self.show(plan, CleanupState::Blocked, Some(&blocks.join("; ")));
        }
        !blocks.is_empty()
    }

    /// Whether no row from before the slot is owed to anybody: there is none, or somebody has said so.
    async fn settles_past(&mut self, plan: &Plan, bounds: Bounds) -> Result<bool, SweeperError> {
        let client = self.around.clients.borrow().clone();
        let (Some(client), Some(sweeper)) = (client, &mut self.sweeper) else { return Ok(false) };
        let known = patience(async { Ok(gateway::read(&client, &plan.slot).await?) }).await?;
        let Some((known, _)) = known.filter(|(known, _)| known.birth == bounds.birth) else { return Ok(false) };
        let mut settled = known.past_settled;
        if !settled {
            let fresh = |look: &Look| look.birth == known.birth && look.at.elapsed() < LOOK_PAST;
            let found = match self.looked.filter(fresh) {
                Some(look) => look.found,
                None => {
                    // As long as it takes: a part of the table at a time.
                    let found = within(LONG_LOOK, sweeper.past(plan, &known)).await?;
                    self.looked = Some(Look { at: Instant::now(), birth: known.birth, found });
                    found
                }
            };
            if found > 0 {
                let why = cleanup::past::explain(&plan.table, found);
                if self.told.insert(why.clone()) {
                    tracing::warn!("{why}");
                }
                self.show(plan, CleanupState::Blocked, Some(&why));
                return Ok(false);
            }
            settled = patience(async { Ok(gateway::settle_past(&client, &plan.slot, bounds.birth).await?) }).await?;
        }
        if settled {
            self.around.bounds.send_modify(|now| {
                if let Some(now) = now
                    && now.birth == bounds.birth
                {
                    now.past_settled = true;
                }
            });
            tracing::info!(mode = plan.mode().as_str(), "no row from before the slot is owed: the clean-up may begin");
        }
        Ok(settled)
    }

    fn failed(&mut self, plan: &Plan, error: &SweeperError) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let state = match error {
            SweeperError::Query(error) => error.sqlstate().cloned(),
            SweeperError::TermOver => {
                self.start_over();
                self.show(plan, CleanupState::Waiting, Some(&error.to_string()));
                return SOON;
            }
            SweeperError::Elsewhere(_) => None,
        };
        let busy = [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED, SqlState::T_R_DEADLOCK_DETECTED];
        if state.as_ref().is_some_and(|state| busy.contains(state)) {
            self.batch = (self.batch.min(plan.cleanup.batch) / 2).max(1);
        } else {
            // What it knows may be over.
            self.sweeper = None;
            self.sweep = Sweep::default();
        }
        let doubled = RETRY_LEAST.saturating_mul(1 << self.failures.saturating_sub(1).min(10)).min(RETRY_MOST);
        if self.failures <= 3 || self.failures.is_multiple_of(30) {
            let retry_in_ms = u64::try_from(doubled.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(%error, retry_in_ms, "the clean-up has failed; it is tried again");
        }
        self.around.board.cleanup_failed(error.to_string());
        self.show(plan, CleanupState::Waiting, Some(&error.to_string()));
        doubled
    }

    /// Longer when rounds take long, or the server has much to send.
    fn pause(&mut self, plan: &Plan, took: Duration) -> Duration {
        let strain = self.strain.feel(self.around.board.slot_lag());
        let least = plan.cleanup.pause.0;
        let pause = if took > LONG_ROUND { least.max(took * 2) } else { least };
        if strain > 1 {
            pause.max(Duration::from_millis(50)).saturating_mul(strain).min(LONGEST_PAUSE.max(least))
        } else {
            pause
        }
    }

    fn show(&self, plan: &Plan, state: CleanupState, why: Option<&str>) {
        self.around.board.cleanup(plan.mode(), state, why);
    }
}

/// A statement that gets no answer in time is an error, and its connection is given up with it.
async fn patience<T>(work: impl Future<Output = Result<T, SweeperError>>) -> Result<T, SweeperError> {
    within(PATIENCE, work).await
}

async fn within<T>(time: Duration, work: impl Future<Output = Result<T, SweeperError>>) -> Result<T, SweeperError> {
    timeout(time, work).await.unwrap_or_else(|_| {
        let seconds = time.as_secs();
        Err(SweeperError::Elsewhere(format!("PostgreSQL did not answer the clean-up within {seconds} s")))
    })
}

/// How much the clean-up holds back, by how the slot's lag goes.
#[derive(Default)]
struct Strain {
    lag: u64,
    factor: u32,
}

impl Strain {
    fn feel(&mut self, lag: Option<u64>) -> u32 {
        let lag = lag.unwrap_or(0);
        let before = std::mem::replace(&mut self.lag, lag);
        let factor = self.factor.max(1);
        self.factor = match lag {
            lag if lag > MUCH_LAG && lag > before => (factor * 2).min(MOST_STRAIN),
            lag if lag > MUCH_LAG && lag == before => factor,
            _ => (factor / 2).max(1),
        };
        self.factor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_back_while_the_slots_lag_grows() {
        let mut strain = Strain::default();
        assert_eq!([None, Some(0), Some(MUCH_LAG)].map(|lag| strain.feel(lag)), [1, 1, 1], "little");
        let lags = [1, 2, 2, 3, 3].map(|more| Some(MUCH_LAG + more));
        assert_eq!(lags.map(|lag| strain.feel(lag)), [2, 4, 4, 8, 8], "between two looks it is the same");
        assert_eq!([1, 0, 0].map(|lag| strain.feel(Some(lag))), [4, 2, 1]);
        for more in 1..100 {
            assert!(strain.feel(Some(MUCH_LAG + more)) <= MOST_STRAIN);
        }
    }
}
