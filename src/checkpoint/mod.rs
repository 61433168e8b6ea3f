//! The checkpoint: how far PostgreSQL may forget.
//!
//! The replication slot's confirmed LSN is the only state that walgate must keep, and this module decides it. Three
//! parts, the first two pure (no IO, no clock):
//!
//! - [`Ring`]: transactions with unsettled events, in commit order, and the flush LSN that follows from them.
//! - [`Resume`]: which part of what the server sends again after a reconnect was taken already.
//! - [`Checkpoint`]: the ring behind a lock, shared by the intake and the lanes, with a `watch` of the flush LSN.
//!
//! # What holds
//!
//! 1. The flush LSN is exactly the commit end of a transaction all of whose events, and those of every earlier
//!    transaction, are settled; or such a keepalive as in 2; or the LSN that the ring started with. A commit record
//!    may start exactly at the end of the one before it, so that one byte more would lose a transaction.
//! 2. A keepalive's LSN is confirmed only when nothing is unsettled and no transaction is open.
//! 3. The flush LSN never falls.
//! 4. The ring is never longer than the transactions with unsettled events, and the open one.
//! 5. A delivery that is settled twice, or after its event is gone, changes nothing and does not panic.
//! 6. A reconnect forgets nothing: what was taken is skipped, also in the middle of a transaction.
//!
//! # How the intake drives it
//!
//! For each message, in stream order, [`Resume`] is asked first and the ring follows its verdict:
//!
//! | message | ask | then |
//! |---|---|---|
//! | connected | [`Resume::on_connect`] | |
//! | Begin | [`Resume::begin`] | `New`: [`Ring::begin`]. `Continue`, `Skip`: nothing |
//! | row of the outbox | [`Resume::row`] | `Track`: [`Ring::track`] if it is routed. `Skip`: nothing |
//! | row of another table | [`Resume::other_row`] | |
//! | Commit | [`Resume::commit`] | `Close`: [`Ring::commit`]. `Skip`: nothing |
//! | keepalive | [`Resume::between_transactions`] | if so: [`Ring::keepalive`] |
//!
//! `Mismatch`: [`Ring::abandon`], then reconnect. `OutOfOrder`: report it and reconnect, or refuse the server; the ring
//! stays as it is. A lost connection changes nothing: the open transaction stays open in both, and goes on after the
//! reconnect. An intake that cannot take a row for which it got `Track` calls [`Ring::abandon`] *and*
//! [`Resume::abandon`], or that row would be skipped next time.
//!
//! A server whose confirmed LSN at connect lies beyond [`Ring::flush_lsn`] was advanced by someone else: what lies
//! between is gone, and to say so is the caller's part. Nothing here hides it: a transaction that was left open and is
//! not sent again gives `OutOfOrder`.

mod events;
mod handle;
mod resume;
mod ring;
mod transactions;

pub use events::Ticket;
pub use handle::{Checkpoint, CheckpointStatus};
pub use resume::{BeginVerdict, CommitVerdict, Resume, RowVerdict};
pub use ring::{Ring, Settled};

#[cfg(test)]
mod tests;
