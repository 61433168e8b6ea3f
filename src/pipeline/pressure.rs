//! What is done about WAL that PostgreSQL keeps beyond its budget, and about reading further ahead of the checkpoint than
//! `limits.run_ahead`: the sinks that hold it are parked, and at the last those that the operator has named are given up.

use std::time::Duration;

use tokio::{sync::watch, time::timeout};

use super::StatusBoard;
use crate::{
    config::{AtLast, WalBudget},
    control::Level,
};

/// Another sink may hold the WAL by now.
const EVERY: Duration = Duration::from_millis(500);

/// Acts on the level until it is dropped.
pub async fn serve(mut level: watch::Receiver<Level>, budget: watch::Receiver<WalBudget>, board: StatusBoard) {
    loop {
        // A change, or the next look.
        if let Ok(Err(_)) = timeout(EVERY, level.changed()).await {
            return;
        }
        let now = *level.borrow_and_update();
        let holder = board.holder();
        let pressing = now >= Level::Act || board.is_far_ahead();
        let budget = budget.borrow().clone();
        for lane in &board.lanes() {
            lane.handle.press(pressing && holder.as_deref() == Some(&*lane.name));
            let given_up = budget.at_last == AtLast::Sacrifice && budget.sacrifice.contains(&lane.name);
            if given_up {
                lane.handle.sacrifice(now >= Level::Last);
            }
        }
    }
}
