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
//! | in flight | halted | rejected and `on_reject: halt`: its key stays busy until the process ends |
//! | in flight | backing off | failed, unknown, no outcome, or rejected while the sink rejects everything |
//! | backing off | ready | its pause is over and the sink is up; or the outage that it came from is over |
//!
//! # What holds
//!
//! 1. At most one event of an ordering key is in flight, its *head*; all deliveries of it may fly together. So what
//!    the sink receives of a key never skips forward: an unknown outcome can be followed by a repeat only.
//! 2. Each delivery is settled at most once, and none is forgotten: until then it is in exactly one of the states above.
//! 3. A key that is not busy leaves no trace.
//! 4. The n-th pause, from 0, is between half and all of `min(cap, initial * 2^n)`, and never shorter than what the sink
//!    asks for, up to `max`. Only the end of an outage, or of a silence of several
//!    failures in a row without any answer, cuts a pause short, and never the sink's own.
//!
//! 5. In any stretch of time no more attempts start than `delivery.rate_limit` allows, and one second's worth. The
//!    same place in the queue is kept while a delivery waits for its turn.
//!
//! # The sink
//!
//! Up, down, checking, trial, closed: see the table in `health.rs`. An outage is one of: the sink says that somebody
//! has to mend it (unless it takes other deliveries meanwhile: then this delivery alone waits); several failures in a
//! row without any answer, the last one of the connection; many rejections in a row without a success, which are then
//! not decided one by one but wait for the end of the outage.

mod backoff;
mod handle;
mod health;
mod journal;
mod lot;
mod machine;
mod metrics;
mod parking;
mod policy;
mod queue;
mod rate;
mod runner;
mod service;
mod source;
mod status;
mod work;

#[cfg(test)]
mod tests;

pub use handle::LaneHandle;
pub use lot::{Chore, Done, ParkingPolicy};
pub use machine::Lane;
pub use metrics::{DeliveryOutcome, Observer};
pub use policy::{LanePolicy, LaneSettings};
pub use runner::{LaneEnd, StopSignal, spawn};
pub use service::{Request, SinkService};
pub use source::SinkSource;
pub use status::{LaneState, LaneStatus, LastError, OldestEvent, ParkingStatus};
pub use work::{Acknowledged, Attempt, Debt, Finished, Flight, FlightId, Note, Outage, Work};
