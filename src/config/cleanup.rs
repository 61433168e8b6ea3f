//! `cleanup:`, and which of its keys go together.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use walgate_sink::{HumanDuration, Secret};

use super::{checks::identifier, model::Outbox};

/// The longest that rows may be kept.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

/// `cleanup:`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cleanup {
    /// What becomes of a row that is settled on every sink.
    pub mode: CleanupMode,
    /// How old it has to be, by the column `age`.
    pub retain: HumanDuration,
    /// Rows in one transaction at the most.
    pub batch: u32,
    /// The least pause between two of them.
    pub pause: HumanDuration,
    /// The column that says when a row was made.
    pub age: String,
    /// The column that `mode: mark` sets to true.
    pub mark: String,
    /// Whether `mode: drop_partitions` only takes partitions out of the table, and leaves them in the database.
    pub detach: bool,
    /// The connection of a role that may do this, so that the streaming role need not; none: that of `source`.
    /// `url_file` names a file that holds it.
    #[serde(serialize_with = "super::model::hidden")]
    pub url: Option<Secret>,
}

impl Default for Cleanup {
    fn default() -> Self {
        Cleanup {
            mode: CleanupMode::default(),
            retain: HumanDuration(Duration::from_secs(7 * 24 * 3600)),
            batch: 1000,
            pause: HumanDuration(Duration::from_millis(100)),
            age: "created_at".into(),
            mark: "published".into(),
            detach: false,
            url: None,
        }
    }
}

/// `cleanup.mode:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CleanupMode {
    /// It stays.
    #[default]
    Off,
    /// It is deleted.
    Delete,
    /// A column of it is set to true; who deletes it is somebody else.
    Mark,
    /// It goes with its partition, once all of that is settled and old enough.
    DropPartitions,
}

impl CleanupMode {
    /// Its name in the configuration.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            CleanupMode::Off => "off",
            CleanupMode::Delete => "delete",
            CleanupMode::Mark => "mark",
            CleanupMode::DropPartitions => "drop_partitions",
        }
    }
}

/// Faults of `cleanup`: key below it and message.
pub(super) fn faults(cleanup: &Cleanup, outbox: &Outbox) -> Vec<(&'static str, String)> {
    let mut faults = Vec::new();
    if !(1..=100_000).contains(&cleanup.batch) {
        faults.push(("batch", "must be from 1 to 100000".to_owned()));
    }
    if cleanup.pause.0 > Duration::from_secs(3600) {
        faults.push(("pause", "must be at most 1h".to_owned()));
    }
    if cleanup.retain.0 > LONGEST {
        faults.push(("retain", "must be at most 10 years; to keep rows for ever write `mode: off`".to_owned()));
    }
    for (key, column) in [("age", &cleanup.age), ("mark", &cleanup.mark)] {
        faults.extend(identifier(column, "a column").map(|message| (key, message)));
    }
    if cleanup.detach && cleanup.mode != CleanupMode::DropPartitions {
        faults.push((
            "detach",
            format!(
                "only partitions are detached, and `mode: {}` touches rows: write `mode: drop_partitions`, or leave \
                 `detach` out",
                cleanup.mode.as_str()
            ),
        ));
    }
    if cleanup.mode == CleanupMode::Mark {
        let columns = &outbox.columns;
        let read = [
            ("cleanup.age", Some(&cleanup.age)),
            ("outbox.columns.id", Some(&columns.id)),
            ("outbox.columns.event_type", Some(&columns.event_type)),
            ("outbox.columns.payload", Some(&columns.payload)),
            ("outbox.columns.key", columns.key.as_ref().and_then(|key| key.column())),
            ("outbox.columns.headers", columns.headers.as_ref()),
        ];
        if let Some((key, _)) = read.iter().find(|(_, column)| *column == Some(&cleanup.mark)) {
            faults.push((
                "mark",
                format!(
                    "`{key}` reads the same column, and `mode: mark` sets it to true: name a boolean column that serves \
                     nothing else, such as `published`"
                ),
            ));
        }
    }
    faults
}
