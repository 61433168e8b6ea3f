//! The end: drain, last status, close.

use std::time::{Duration, Instant};

use super::{Gateway, Open, SourceState, Summary};
use crate::{lane::LaneState, source::Shutdown};

/// Kept back of the shutdown's time for the last status and for closing the sinks.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Stops reading, lets the lanes deliver what they hold, tells PostgreSQL what is settled, closes everything.
pub(super) async fn stop(gateway: Gateway, open: Option<Open>) -> Summary {
    let Gateway { checkpoint, lanes, session, board, shutdown_timeout, .. } = gateway;
    board.source(SourceState::Stopping, None);
    let started = Instant::now();
    let deadline = started + shutdown_timeout;
    let drained_by = deadline.checked_sub(LAST_WORDS.min(shutdown_timeout / 4)).unwrap_or(deadline);
    let unsettled = checkpoint.snapshot().unsettled_events;
    if unsettled > 0 {
        tracing::info!(
            unsettled,
            timeout_seconds = shutdown_timeout.as_secs_f64(),
            "stopping: delivering what was read"
        );
    }
    let drained = checkpoint.wait_for_room(0);
    let hopeless = async {
        // Nothing moves any more where every lane that still owes something is down or halted.
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let stuck = lanes.named().iter().map(|lane| lane.handle.status()).all(|lane| {
                let stores =
                    lane.parking.as_ref().is_some_and(|parking| parking.storing > 0 && parking.error.is_none());
                lane.unsettled == 0
                    || (lane.in_flight == 0
                        && !stores
                        && matches!(
                            lane.state,
                            LaneState::Down
                                | LaneState::Probing
                                | LaneState::Halted
                                | LaneState::Closed
                                | LaneState::Parking
                                | LaneState::Paused
                                | LaneState::Opening
                        ))
            });
            if stuck {
                break;
            }
        }
    };
    tokio::select! {
        () = drained => {}
        () = hopeless => {}
        () = tokio::time::sleep_until(drained_by.into()) => {}
    }
    // Lanes first: their last settlements belong into the last status.
    let closing = deadline.checked_sub(LAST_WORDS.min(shutdown_timeout / 4) / 2).unwrap_or(deadline);
    lanes.stop(closing.into()).await;
    let status = checkpoint.snapshot();
    let confirmed = match open {
        Some(open) => open.shutdown(deadline).await == Shutdown::Complete,
        None => false,
    };
    session.close().await;
    Summary { flush_lsn: status.flush_lsn, unsettled: status.unsettled_events, confirmed }
}
