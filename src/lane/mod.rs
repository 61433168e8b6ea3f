//! lane
mod backoff;
mod health;
mod machine;
mod policy;
mod queue;
mod status;
mod work;

pub use machine::Lane;
pub use policy::LanePolicy;
pub use status::{LaneState, LaneStatus, LastError, OldestEvent};
pub use work::{Acknowledged, Attempt, Finished, Flight, FlightId, Note, Outage, Work};
