//! Another configuration while the gateway runs: routes, sinks and limits change between two transactions.
//!
//! The gateway stops reading at the end of a transaction, lets go of the stream in order, and passes the *barrier*: every
//! lane that is to be made anew, or removed, has delivered what came from the stream, or parked it. Then lanes, router and limits change together, and the
//! stream is taken up where it was left. A lane that stays the same is not touched. If the barrier is not passed in time,
//! nothing has changed, and the stream goes on as before.

use std::time::Duration;

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use super::{LanePlan, Lanes, NamedLane};
use crate::{
    config::{DeadLetters, Limits, RemovedSinks, Unrouted, WalBudget},
    control::{Wanted, cleanup::Plan},
    router::Router,
    source::OutboxReader,
};

/// How often the barrier is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// A lane that owes something still after this time is told to park it.
const PRESS_AFTER: Duration = Duration::from_millis(500);

/// What a configuration comes to.
pub struct Generation {
    /// The routes.
    pub router: Router,
    /// The outbox, with the columns that they read.
    pub reader: OutboxReader,
    /// By the place of a route its number, as metrics have it.
    pub route_numbers: Vec<u16>,
    /// The sinks.
    pub plans: Vec<LanePlan>,
    /// What happens to events without a route.
    pub unrouted: Unrouted,
    /// Bounds.
    pub limits: Limits,
    /// What is done about WAL that is kept.
    pub wal_budget: WalBudget,
    /// What is kept of dead letters.
    pub dead_letters: DeadLetters,
    /// What becomes of settled rows.
    pub cleanup: Plan,
    /// What happens to the debts of sinks that are removed.
    pub removed: RemovedSinks,
    /// What the catalogs must hold.
    pub wanted: Wanted,
}

/// A wish for another configuration.
pub struct Reload {
    /// The configuration.
    pub generation: Box<Generation>,
    /// Told what came of it: what has changed, or why nothing has.
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// Passes the barrier: returns when no lane that is to go owes anything.
///
/// # Errors
/// Why one of them does, and what can be done about it. Nothing has changed.
pub(super) async fn barrier(
    changed: &[NamedLane],
    removed: &[NamedLane],
    answer: RemovedSinks,
    deadline: Instant,
) -> Result<(), String> {
    if answer == RemovedSinks::Drain {
        for lane in removed {
            let parked = parked(lane);
            if parked > 0 {
                return Err(format!(
                    "sink `{}` is to be removed, and {parked} deliveries are parked for it: wait until they are delivered, \
                     or set `removed_sinks: park` to leave them in walgate.parked",
                    lane.name
                ));
            }
        }
    }
    let begun = Instant::now();
    let mut pressed = false;
    let result = loop {
        if answer == RemovedSinks::Drop {
            for lane in removed {
                let dropped = lane.handle.give_up();
                if dropped > 0 {
                    tracing::warn!(sink = lane.name, dropped, "the sink is removed: what it was owed is not delivered");
                }
            }
        }
        // What is in the table may stay there, unless it is to be drained: a sink that is down is mended by a reload.
        let owing = || {
            changed.iter().find(|lane| lane.handle.holds_live()).or_else(|| {
                let drained = answer == RemovedSinks::Drain;
                removed.iter().find(|lane| lane.handle.holds_live() || (drained && parked(lane) > 0))
            })
        };
        // Twice: one that was looked at first may have got the dead letters of one that was looked at after it.
        let owing = owing().or_else(owing);
        let Some(lane) = owing else { break Ok(()) };
        let now = Instant::now();
        if now >= deadline {
            break Err(why_not(lane));
        }
        if !pressed && now.saturating_duration_since(begun) >= PRESS_AFTER {
            pressed = true;
            let may_park = changed.iter().chain(removed.iter().filter(|_| answer == RemovedSinks::Park));
            may_park.for_each(|lane| lane.handle.press(true));
        }
        sleep(LOOK).await;
    };
    if result.is_err() {
        changed.iter().chain(removed).for_each(|lane| lane.handle.press(false));
    }
    result
}

/// Rows in walgate.parked.
fn parked(lane: &NamedLane) -> u64 {
    lane.handle.status().parking.map_or(0, |parking| parking.rows)
}

fn why_not(lane: &NamedLane) -> String {
    let status = lane.handle.status();
    let error = status.last_error.map_or_else(String::new, |error| format!(": {}", error.message));
    let held = if status.halted > 0 { "; it holds rejected events: `walgate skip` leaves one out" } else { "" };
    format!("sink `{}` still owes {} deliveries{held}{error}; nothing was changed", lane.name, status.unsettled)
}

/// What a change comes to, in a sentence.
pub(super) fn summary(lanes: &Lanes, plans: &[LanePlan]) -> String {
    let (changed, removed) = lanes.leaving(plans);
    let names = |lanes: &[NamedLane]| lanes.iter().map(|lane| lane.name.clone()).collect::<Vec<_>>();
    let before = names(&lanes.named());
    let added: Vec<String> =
        plans.iter().filter(|plan| !before.contains(&plan.name)).map(|plan| plan.name.clone()).collect();
    let parts = [("made anew", names(&changed)), ("removed", names(&removed)), ("added", added)];
    let said: Vec<String> = parts
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what}: {}", names.join(", ")))
        .collect();
    if said.is_empty() { "no sink has changed".to_owned() } else { said.join("; ") }
}
