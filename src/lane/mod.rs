//! The lane: the keyed queue of one sink, its attempts, and what follows from what came of them.
//!
//! [`Lane`] is pure: it says what to send now, and is told what came of it; time and jitter are parameters. [`spawn`]
//! starts the task that drives one over a sink, and gives the [`LaneHandle`] to push work through. Each delivery that
//! is settled is settled straight at the checkpoint.
//!
//! # A delivery
//!
//! ```text
//!              the key is busy          its event's turn               take                    finish
//!   push ---------------------> behind -----------------> ready -----------------> in flight ----------> settled
//!     |                                                   ^  ^                      |   |
//!     +---------------------------------------------------+  |  due, or the outage  |   |  rejected, on_reject: halt
//!                  the key is not busy                       |  is over             |   +-------------> halted
//!                                                            +------ backing off <--+ failed or unknown
//! ```
//!
//! | from | to | when |
//! |---|---|---|
//! | (pushed) | ready | it has no ordering key, its key is not busy, or the key's head is its own event |
//! | (pushed) | behind | its key is busy with an earlier event |
//! | behind | ready | every delivery of the events before it is settled |
//! | ready | in flight | [`Lane::take`]; retries and what was behind a key go first, they are older |
//! | ready | settled, halted | it cannot be sent ([`Work::invalid`]): decided like a rejection, in its turn |
//! | in flight | settled | acknowledged; or rejected and `on_reject: skip` |
//! | in flight | halted | rejected and `on_reject: halt`: its key stays busy until somebody skips it, or the process ends |
//! | in flight | backing off | failed, unknown, no outcome, or rejected while the sink rejects everything |
//! | backing off | ready | its pause is over and the sink is up; or the outage that it came from is over |
//!
//! Where walgate's own tables may be used ([`LanePolicy::parking`]) there is more; `lot.rs` has the states of the whole:
//!
//! | from | to | when |
//! |---|---|---|
//! | (pushed), ready, behind, backing off | leaving | parking is on: in an outage for `park_after` or with half of the window, while paused, or pressed by the WAL budget. What is behind a delivery from the stream that is in flight stays behind it |
//! | in flight | leaving | failed while parking is on, or while its key is parked |
//! | leaving | parked, settled | its row is committed |
//! | leaving | ready, behind | parking ends, or its key is released, before it was written |
//! | parked | ready, behind | its row is read: in the order of commits, or, for a parked key, when the key is due |
//! | in flight | key parked | failed for `park_after` while the sink takes others; or rejected and `on_reject: park_key` (halted: until somebody decides). Everything behind it of its key leaves with it |
//! | key parked | ready | the key is due, or was skipped or revived by an operator |
//! | in flight, ready | dying | rejected and `on_reject: dead_letter`; `max_attempts`, `max_age`. Its key is held |
//! | leaving, ready ... | dying | the sink is sacrificed to the WAL budget |
//! | dying | dead, settled | its dead letter is committed; its row in `parked`, if it had one, is gone with the same commit. With `dead_letters.payload: omit` the letter lacks what could be sent |
//! | dead | parked | an operator wants it attempted again, and it has its payload: under another dedup id, with its key |
//! | in flight, ready | handing | as dying, where the dead letters of the sink go to another one (`letters.rs`). Its key is held |
//! | handing | the other lane's | that one has taken it, and what is owed for it; the key has its next event |
//! | halted | settled | an operator skips it |
//! | anything but in flight | settled | a reload removes the sink, and `removed_sinks: drop` |
//!
//! A paused lane sends nothing; everything else goes on.
//!
//! # What holds
//!
//! 1. At most one event of an ordering key is in flight, its *head*; all deliveries of it may fly together. So what
//!    the sink receives of a key never skips forward: an unknown outcome can be followed by a repeat only.
//! 2. Each delivery is settled at most once, and none is forgotten: until then it is in exactly one of the states above.
//!    It is settled only by what survives a crash: an acknowledgement, a rule that leaves it out, a committed row.
//! 3. A key that is not busy leaves no trace.
//! 4. The n-th pause, from 0, is between half and all of `min(cap, initial * 2^n)`, and never shorter than what the sink
//!    asks for, up to `max`. Only the end of an outage, or of a silence of several
//!    failures in a row without any answer, cuts a pause short, and never the sink's own.
//!
//! 5. In any stretch of time no more attempts start than `delivery.rate_limit` allows, and one second's worth. The
//!    same place in the queue is kept while a delivery waits for its turn.
//!
//! 6. No more batches are in flight than the sink takes at once; fewer while it throttles or does not answer in time
//!    (`pace.rs`).
//!
//! # The sink
//!
//! Up, down, checking, trial, closed: see the table in `health.rs`. An outage is one of: the sink says that somebody
//! has to mend it (unless it takes other deliveries meanwhile: then this delivery alone waits); several failures in a
//! row without any answer, the last one of the connection; many rejections in a row without a success, which are then
//! not decided one by one but wait for the end of the outage.

mod backoff;
mod chores;
mod exchange;
mod handle;
mod health;
mod journal;
mod letters;
mod lot;
mod machine;
mod metrics;
mod operator;
mod pace;
mod parking;
mod policy;
mod queue;
mod rate;
mod rows;
mod runner;
mod service;
mod source;
mod status;
mod work;

#[cfg(test)]
mod tests;

pub use exchange::Exchange;
pub use handle::LaneHandle;
pub use letters::Destination;
pub use lot::{Chore, Done, ParkingPolicy};
pub use machine::Lane;
pub use metrics::{DeliveryOutcome, Observer};
pub use policy::{LanePolicy, LaneSettings};
pub use runner::{LaneEnd, StopSignal, spawn};
pub use service::{Request, SinkService};
pub use source::SinkSource;
pub use status::{LaneState, LaneStatus, LastError, OldestEvent, ParkingStatus};
pub use work::{Acknowledged, Attempt, Debt, Finished, Flight, FlightId, Note, Outage, Work};
