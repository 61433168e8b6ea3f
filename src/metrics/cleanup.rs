//! What the clean-up counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::known::Known;

/// What a clean-up does.
const MODES: [&str; 3] = ["delete", "mark", "drop_partitions"];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabel {
    mode: &'static str,
}

/// A clone counts into the same numbers.
#[derive(Clone, Default)]
pub struct CleanupMetrics {
    rows: Family<ModeLabel, Counter>,
    /// Rounds that failed.
    pub errors: Counter,
    /// 1 while it is configured, and something that somebody must mend or decide keeps it off.
    pub blocked: Gauge,
    kept: Known,
    oldest: Known<f64>,
    bytes: Known,
    dead: Known,
}

impl CleanupMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("cleanup_rows", "Settled rows that were cleaned up", self.rows.clone());
        registry.register("cleanup_errors", "Rounds of the clean-up that failed", self.errors.clone());
        registry.register(
            "cleanup_blocked",
            "1 while something that somebody must mend or decide keeps the clean-up off",
            self.blocked.clone(),
        );
        registry.register(
            "cleanup_kept_rows",
            "Rows of the outbox that are settled and kept, as PostgreSQL's statistics estimate it",
            self.kept.clone(),
        );
        registry.register_with_unit(
            "cleanup_oldest_settled",
            "Age of the oldest settled row of the outbox",
            Unit::Seconds,
            self.oldest.clone(),
        );
        registry.register_with_unit("outbox", "Size of the outbox with its indexes", Unit::Bytes, self.bytes.clone());
        registry.register("outbox_dead_rows", "Rows of the outbox that wait for VACUUM", self.dead.clone());
        for mode in MODES {
            self.rows.get_or_create_owned(&ModeLabel { mode });
        }
    }

    /// So many rows were cleaned up.
    pub fn touched(&self, mode: &'static str, rows: u64) {
        self.rows.get_or_create_owned(&ModeLabel { mode }).inc_by(rows);
    }

    /// Rows that are settled and kept, the age of the oldest settled one, the table's size, and its dead rows; `None`: not
    /// known.
    pub fn measured(&self, kept: Option<u64>, oldest: Option<f64>, bytes: Option<u64>, dead: Option<u64>) {
        self.kept.set(kept);
        self.oldest.set(oldest);
        self.bytes.set(bytes);
        self.dead.set(dead);
    }
}
