//! The SQL connection: what must hold before streaming, the slot's status, the session as second signal, and setting a
//! database up or retiring it. Nothing here drops, re-creates or advances a slot, but for `init --remove`.

pub mod catalog;
pub mod cleanup;
pub mod create;
pub mod dead_letters;
pub mod finding;
pub mod gateway;
pub mod link;
pub mod missing_past;
pub mod names;
pub mod parking;
pub mod preflight;
mod query;
pub mod recovery;
pub mod requests;
pub mod session;
pub mod setup;
pub mod slot;
pub mod wal_budget;

pub use catalog::{CatalogLook, CatalogRows, look_at_catalog};
pub use create::{Created, create_if_absent};
pub use finding::{Finding, FindingCode, Severity, only_waits};
pub use gateway::{Bounds, Claim, GatewayRow, Mark, Term};
pub use link::{Link, LinkError};
pub use missing_past::explain_publication_missing_in_past;
pub use names::TableName;
pub use preflight::{ColumnRole, Facts, Parking, Preflight, Wanted, WantedColumn, preflight};
pub use query::{QueryError, describe};
pub use session::{Session, SessionEvent, SessionOptions, SessionState};
pub use setup::{Inspection, Setup, Step, StepOutcome, Stopped};
pub use slot::{SlotReport, SlotStatus, WalHolder, slot_report, slot_status};
pub use wal_budget::{Bound, Level, WalMeter, WalUse};
