//! A slot with the snapshot that goes with it: what is visible in the snapshot was committed before what the slot sends.
//! SQL can make a slot, but only a replication connection can export its snapshot.

use walgate_sink::Lsn;

use super::{
    error::SourceError,
    handshake::{self, Kept},
};
use crate::postgres::ConnectSettings;

/// A slot that was just made. The snapshot can be taken up by other sessions for as long as this lives.
pub struct ExportedSlot {
    /// Transactions that commit behind it are sent by the slot, all others are visible in the snapshot.
    pub consistent_point: Lsn,
    /// The snapshot's name, for `SET TRANSACTION SNAPSHOT`.
    pub snapshot: String,
    _connection: Kept,
}

impl ExportedSlot {
    /// Makes the slot. PostgreSQL waits for the transactions that are open, for up to a minute.
    ///
    /// # Errors
    /// Why it could not be made, with what to do.
    pub async fn create(settings: &ConnectSettings, slot: &str) -> Result<Self, SourceError> {
        let (settings, slot) = (settings.clone(), slot.to_owned());
        let made = tokio::task::spawn_blocking(move || handshake::create_slot(&settings, &slot)).await;
        let (consistent_point, snapshot, connection) =
            made.unwrap_or_else(|error| Err(SourceError::Thread { reason: error.to_string() }))?;
        Ok(ExportedSlot { consistent_point, snapshot, _connection: connection })
    }
}
