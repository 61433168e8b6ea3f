//! How much of the WAL that the server may keep for the slot is used up, how fast that grows, and how long it lasts.
//! Pure: looks at the slots come in with their times.
//!
//! The budget is the smaller one of what the configuration says and what `max_slot_wal_keep_size` leaves: the server
//! tells that as `safe_wal_size`, the bytes until the slot can be lost, so that both together are the whole. It is
//! negative once the slot is over it, and absent where there is no limit or the slot is lost. The server counts in whole
//! segments, so that its budget moves a little with the slot. By `wal_status`, an `unreserved` slot lives until the next
//! checkpoint, and a `lost` one is over; from PostgreSQL 17 on `invalidation_reason` says so too.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::slot::{SlotReport, SlotStatus, WalStatus};
use crate::config::{Percent, WalBudget};

/// What growth is measured over: long enough to look through the steps in which a slot lets go of WAL.
const WINDOW: Duration = Duration::from_secs(300);
/// Before that much has been seen, nothing is said about growth.
const LEAST: Duration = Duration::from_secs(10);
/// Looks that follow each other more closely are not kept.
const APART: Duration = Duration::from_secs(1);
/// A level is left that many thousandths below where it begins, so that it does not flap; or, where it begins low,
/// halfway to nothing.
const CALMER: u64 = 50;

/// How far the budget is used up. Ordered: the worst is the greatest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There is enough left, or there is no bound.
    #[default]
    Calm,
    /// Worth a warning: from `wal_budget.warn` on.
    Warn,
    /// Time to let go of WAL without a loss: from `wal_budget.act` on.
    Act,
    /// No time is left: from `wal_budget.last` on, and for a slot that the server may end at its next checkpoint.
    Last,
}

impl Level {
    /// As it stands in `/status` and in the log.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Level::Calm => "calm",
            Level::Warn => "warn",
            Level::Act => "act",
            Level::Last => "last",
        }
    }
}

/// Where a budget comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Bound {
    /// The configuration.
    #[serde(rename = "wal_budget.bytes")]
    Configured,
    /// The server.
    #[serde(rename = "max_slot_wal_keep_size")]
    Server,
}

impl Bound {
    /// The setting that it is.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Bound::Configured => "wal_budget.bytes",
            Bound::Server => "max_slot_wal_keep_size",
        }
    }
}

/// What is known of the budget at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct WalUse {
    /// The budget; none: there is no bound, or it is not known.
    pub bytes: Option<u64>,
    /// What sets it.
    pub bound: Option<Bound>,
    /// How much of it is used: 1 is all of it, and more than all is possible.
    pub used_ratio: Option<f64>,
    /// How much that matters.
    pub level: Level,
    /// Until it is used up, if it goes on as it did; none: it does not grow, or that cannot be told.
    pub seconds_left: Option<f64>,
    /// How fast the WAL that is kept grows; negative: it shrinks; none: not seen for long enough.
    pub bytes_per_second: Option<f64>,
    /// The slot is over: what it still needed is gone.
    #[serde(skip)]
    pub lost: bool,
}

/// Measures one slot's use of its budget, look by look.
#[derive(Clone, Debug)]
pub struct WalMeter {
    configured: Option<u64>,
    levels: [(Level, Percent); 3],
    level: Level,
    kept: VecDeque<(Instant, u64)>,
}

impl WalMeter {
    /// Nothing was looked at yet.
    #[must_use]
    pub fn new(budget: &WalBudget) -> Self {
        WalMeter {
            configured: budget.bytes.map(|bytes| bytes.0),
            levels: [(Level::Last, budget.last), (Level::Act, budget.act), (Level::Warn, budget.warn)],
            level: Level::Calm,
            kept: VecDeque::new(),
        }
    }

    /// What a look at the slots comes to. Of a slot that is not there, or of which is not known what it keeps, nothing can
    /// be told, and the level stays as it was.
    pub fn look(&mut self, at: Instant, report: &SlotReport) -> WalUse {
        let Some(slot) = &report.slot else { return self.unknown() };
        if slot.wal_status == Some(WalStatus::Lost) || slot.invalidation_reason.is_some() {
            self.level = Level::Last;
            self.kept.clear();
            return WalUse {
                bytes: self.configured,
                bound: self.configured.map(|_| Bound::Configured),
                used_ratio: Some(1.0),
                level: self.level,
                seconds_left: Some(0.0),
                bytes_per_second: None,
                lost: true,
            };
        }
        let Some(used) = slot.retained_bytes else { return self.unknown() };
        let bytes_per_second = self.growth(at, used);
        let budget = self.budget(slot, used);
        self.level = match budget {
            Some((bytes, _)) => self.level_at(used, bytes),
            None => Level::Calm,
        };
        if is_unreserved(slot) {
            self.level = Level::Last;
        }
        WalUse {
            bytes: budget.map(|(bytes, _)| bytes),
            bound: budget.map(|(_, bound)| bound),
            used_ratio: budget.map(|(bytes, _)| ratio(used, bytes)),
            level: self.level,
            seconds_left: budget.and_then(|(bytes, _)| seconds_left(used, bytes, bytes_per_second)),
            bytes_per_second,
            lost: false,
        }
    }

    fn unknown(&self) -> WalUse {
        WalUse { level: self.level, ..WalUse::default() }
    }

    fn budget(&self, slot: &SlotStatus, used: u64) -> Option<(u64, Bound)> {
        let server = slot.safe_wal_size.map(|safe| (used.saturating_add_signed(safe), Bound::Server));
        let configured = self.configured.map(|bytes| (bytes, Bound::Configured));
        server.into_iter().chain(configured).min_by_key(|(bytes, _)| *bytes)
    }

    /// The highest level whose part is used; those up to where we are begin a little lower.
    fn level_at(&self, used: u64, budget: u64) -> Level {
        let reached = |(level, part): &&(Level, Percent)| {
            let begins = u64::from(part.get()) * 10;
            let from = if *level <= self.level { begins - CALMER.min(begins / 2) } else { begins };
            u128::from(used) * 1000 >= u128::from(budget) * u128::from(from)
        };
        self.levels.iter().find(reached).map_or(Level::Calm, |(level, _)| *level)
    }

    /// Bytes a second since the oldest look of the last minutes.
    fn growth(&mut self, at: Instant, used: u64) -> Option<f64> {
        while self.kept.front().is_some_and(|(then, _)| at.saturating_duration_since(*then) > WINDOW) {
            self.kept.pop_front();
        }
        if self.kept.back().is_none_or(|(then, _)| at.saturating_duration_since(*then) >= APART) {
            self.kept.push_back((at, used));
        }
        let (then, before) = self.kept.front()?;
        let passed = at.saturating_duration_since(*then);
        (passed >= LEAST).then(|| (float(used) - float(*before)) / passed.as_secs_f64())
    }
}

/// Whether the next checkpoint may end the slot. Of a slot that has moved on while the server looked at it, the server
/// says so too; then there is some safe size.
fn is_unreserved(slot: &SlotStatus) -> bool {
    slot.wal_status == Some(WalStatus::Unreserved) && slot.safe_wal_size.is_none_or(|safe| safe <= 0)
}

/// None where it does not grow.
fn seconds_left(used: u64, budget: u64, bytes_per_second: Option<f64>) -> Option<f64> {
    match budget.saturating_sub(used) {
        0 => Some(0.0),
        left => bytes_per_second.filter(|rate| *rate > 0.0).map(|rate| float(left) / rate),
    }
}

fn ratio(used: u64, budget: u64) -> f64 {
    if budget == 0 { 1.0 } else { float(used) / float(budget) }
}

#[allow(clippy::cast_precision_loss, reason = "for an alarm")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
#[path = "wal_budget_tests.rs"]
mod tests;
