//! Dead letters are deleted once they are older than `dead_letters.retain`: a thousand at a time, with a pause between, and
//! by the gateway that has the slot only.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::sleep};
use tokio_postgres::Client;

use super::{StatusBoard, TermBegun};
use crate::{
    config::DeadLetters,
    control::{
        QueryError,
        parking::{EXPIRE_ROWS, expire},
    },
};

/// Pause between two statements of a round: others use the connection, and the database, too.
const BETWEEN: Duration = Duration::from_millis(100);
/// Pauses between two rounds: a tenth of the age, within these.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Deletes what is too old until it is dropped.
pub async fn serve(
    clients: watch::Receiver<Option<Arc<Client>>>,
    slot: String,
    mut terms: watch::Receiver<Option<TermBegun>>,
    mut letters: watch::Receiver<DeadLetters>,
    board: StatusBoard,
) {
    let mut told = false;
    loop {
        let age = letters.borrow_and_update().retain.limit();
        if let Some(age) = age {
            match round(&clients, &slot, &terms, age, &board).await {
                Ok(0) => {}
                Ok(rows) => {
                    told = false;
                    let retain = humantime::format_duration(age).to_string();
                    tracing::info!(rows, retain, "dead letters deleted: they were older than dead_letters.retain");
                }
                Err(error) if told => tracing::debug!(%error, "dead letters cannot be deleted at present"),
                Err(error) => {
                    told = true;
                    tracing::warn!(%error, "dead letters that are too old stay for now: it is tried again");
                }
            }
        }
        // Until a little more time has passed, another configuration says something else, or the slot is ours (again).
        let pause = age.map_or(LONGEST, |age| (age / 10).clamp(SHORTEST, LONGEST));
        tokio::select! {
            changed = letters.changed() => if changed.is_err() { return },
            changed = terms.changed() => if changed.is_err() { return },
            () = sleep(pause) => {}
        }
    }
}

/// Deletes until nothing is too old any more. How many rows that were.
async fn round(
    clients: &watch::Receiver<Option<Arc<Client>>>,
    slot: &str,
    terms: &watch::Receiver<Option<TermBegun>>,
    age: Duration,
    board: &StatusBoard,
) -> Result<u64, QueryError> {
    let mut total = 0;
    while !is_kept_from_tables(board) {
        let client = clients.borrow().clone();
        let term = terms.borrow().as_ref().map(|begun| begun.term);
        let (Some(client), Some(term)) = (client, term) else { break };
        let expired = expire(&client, slot, term, age).await?;
        let rows = expired.iter().map(|expired| expired.rows).sum();
        for lane in board.lanes() {
            let mine = expired.iter().find(|expired| expired.sink == lane.shelf);
            mine.iter().for_each(|expired| lane.handle.letters_deleted(expired.rows));
        }
        board.letters_expired(rows);
        total += rows;
        if rows < EXPIRE_ROWS {
            break;
        }
        sleep(BETWEEN).await;
    }
    Ok(total)
}

/// A lane cannot use the tables.
fn is_kept_from_tables(board: &StatusBoard) -> bool {
    let fails = |parking: Option<crate::lane::ParkingStatus>| parking.is_some_and(|parking| parking.error.is_some());
    board.lanes().iter().any(|lane| fails(lane.handle.status().parking))
}
