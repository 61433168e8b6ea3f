//! Rows and the standby that the slot would be read on after a failover.
//!
//! A slot with `failover` moves to a standby when that is promoted, and PostgreSQL sends nothing through it before the
//! standbys in `synchronized_standby_slots` have it: what walgate has received is there. What it has parked has to be there
//! too before it is settled, or a promotion would lose it.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_postgres::types::PgLsn;

use super::{connection::Connection, failure::Failure, statements};

/// The first pause between two looks; it doubles.
const PAUSE: Duration = Duration::from_millis(5);
/// The longest one.
const LONGEST: Duration = Duration::from_millis(250);

/// Waits until what was committed before this call is on every standby that matters, for most of what is left of an
/// operation's patience.
pub(super) async fn wait(
    connection: &mut Connection,
    slot: &str,
    started: Instant,
    patience: Duration,
) -> Result<(), Failure> {
    if !connection.has_failover {
        return Ok(());
    }
    let Some(written) = connection.row(statements::WRITTEN, &[&slot]).await?.try_get::<_, Option<PgLsn>>(0)? else {
        return Ok(());
    };
    let deadline = started + patience.mul_f64(0.9);
    let mut pause = PAUSE;
    loop {
        let behind: Option<String> = connection.row(statements::BEHIND, &[&slot, &written]).await?.try_get(0)?;
        let Some(behind) = behind else { return Ok(()) };
        if Instant::now() + pause >= deadline {
            return Err(Failure::Unfinished(format!(
                "it is written, but the standbys in synchronized_standby_slots do not have it yet (up to {written}): \
                 {behind}; start what reads these slots, or take them out of the setting"
            )));
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST);
    }
}
