//! Slots of others that nobody reads: each keeps the server from removing WAL, and none of them is ever looked for.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

use super::StatusBoard;
use crate::control::SlotReport;

/// From so much WAL on a slot that nobody reads is worth an alarm.
const MUCH: u64 = 1 << 30;

/// Says which slots have begun to keep much, and which have ended to, until it is dropped.
pub async fn serve(mut slots: watch::Receiver<Option<Arc<SlotReport>>>, board: StatusBoard) {
    let mut told: BTreeSet<String> = BTreeSet::new();
    while slots.changed().await.is_ok() {
        let Some(report) = slots.borrow_and_update().clone() else { continue };
        let idle = report.idle();
        board.idle_slots(idle.len() as u64, idle.iter().map(|slot| slot.retained_bytes).max().unwrap_or(0));
        let much: Vec<_> = idle.into_iter().filter(|slot| slot.retained_bytes >= MUCH).collect();
        for slot in much.iter().filter(|slot| !told.contains(&slot.slot)) {
            tracing::warn!(slot = slot.slot, retained_bytes = slot.retained_bytes, "{}", slot.advice());
        }
        for slot in told.iter().filter(|name| much.iter().all(|slot| slot.slot != **name)) {
            tracing::info!(slot, "this slot does not keep WAL that nobody reads any more");
        }
        told = much.iter().map(|slot| slot.slot.clone()).collect();
    }
}
