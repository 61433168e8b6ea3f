//! What a check of PostgreSQL found: each finding names the thing, the cause and the SQL that mends it.

use std::fmt;

use serde::Serialize;

/// How much a finding matters. Ordered: the worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// It works, but probably not as meant.
    Warning,
    /// It cannot start now, and may be able to later without anybody's help: somebody else reads the slot.
    Wait,
    /// It cannot work until somebody mends it.
    Error,
}

/// What was found. Stable: scripts may rely on its snake_case name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingCode {
    /// A catalog query failed.
    QueryFailed,
    /// PostgreSQL is older than walgate supports.
    ServerTooOld,
    /// The server is a standby.
    ServerInRecovery,
    /// `wal_level` is not `logical`.
    WalLevel,
    /// No replication slot is left.
    ReplicationSlotsFull,
    /// No walsender is left.
    WalSendersFull,
    /// The role may not replicate.
    RoleLacksReplication,
    /// `synchronous_standby_names` takes walgate in as a synchronous standby.
    SynchronousStandby,
    /// The table does not exist.
    TableMissing,
    /// The relation is a view, a foreign table or the like.
    TableKind,
    /// The table is unlogged or temporary: it writes no WAL.
    TablePersistence,
    /// A column that the mapping needs does not exist.
    ColumnMissing,
    /// A column has a type that its use does not allow.
    ColumnType,
    /// A column is generated, and therefore not published.
    ColumnGenerated,
    /// A column that every event needs may be NULL.
    ColumnNullable,
    /// The publication does not exist.
    PublicationMissing,
    /// The publication does not publish inserts.
    PublicationWithoutInsert,
    /// The table is not in the publication.
    PublicationWithoutTable,
    /// The publication publishes the partitions under their own names.
    PublicationNotViaRoot,
    /// A row filter drops rows without a word.
    PublicationRowFilter,
    /// The column list leaves out a column that the mapping needs.
    PublicationColumnList,
    /// Updates or deletes are published for a table without a replica identity: they fail.
    ReplicaIdentity,
    /// The slot does not exist.
    SlotMissing,
    /// The slot is a physical one.
    SlotPhysical,
    /// The slot's plugin is not pgoutput.
    SlotPlugin,
    /// The slot belongs to another database.
    SlotDatabase,
    /// The slot is a temporary one.
    SlotTemporary,
    /// WAL that the slot needed is gone.
    SlotLost,
    /// The slot has confirmed what walgate has not: somebody else has advanced it, or made it again.
    SlotMoved,
    /// The slot is about to lose WAL.
    SlotUnreserved,
    /// Another process reads the slot.
    SlotActive,
    /// The publication is younger than what the slot still has to read, or may be.
    PublicationYounger,
    /// Rows in the table that will not be sent, or that could not be counted.
    ExistingRows,
    /// walgate's own tables do not exist, or not whole: nothing can be parked.
    ParkingAbsent,
    /// The role may not write to walgate's own tables.
    ParkingDenied,
    /// The publication publishes walgate's own tables.
    ParkingPublished,
    /// The clean-up needs walgate's own tables.
    CleanupNeedsTables,
    /// The clean-up's connection leads elsewhere, or the table is not there.
    CleanupElsewhere,
    /// The clean-up's role lacks a right.
    CleanupRights,
    /// The column that rows' age is read from is missing, or of another type.
    CleanupAge,
    /// The column that is set is missing, or not to be set.
    CleanupMark,
    /// The table has no partitions that can go as a whole.
    CleanupPartitions,
    /// There is no index by age.
    CleanupIndex,
    /// What the clean-up does is published, or cannot be.
    CleanupPublished,
    /// Triggers fire at what the clean-up does.
    CleanupTriggers,
    /// Only one of publication and slot exists: what the other one was is not known.
    HalfExists,
    /// The role of walgate exists and cannot do what it must.
    RoleUnfit,
    /// A statement that creates or drops something failed.
    StatementFailed,
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What kind of thing it is.
    pub code: FindingCode,
    /// How much it matters.
    pub severity: Severity,
    /// One sentence: the thing, the cause, and what to do.
    pub message: String,
    /// SQL that mends it, ready to be run by an owner or administrator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint_sql: Option<String>,
}

impl Finding {
    /// A finding without SQL.
    pub fn new(code: FindingCode, severity: Severity, message: impl Into<String>) -> Self {
        Finding { code, severity, message: message.into(), hint_sql: None }
    }

    /// An error without SQL.
    pub fn error(code: FindingCode, message: impl Into<String>) -> Self {
        Finding::new(code, Severity::Error, message)
    }

    /// A warning without SQL.
    pub fn warning(code: FindingCode, message: impl Into<String>) -> Self {
        Finding::new(code, Severity::Warning, message)
    }

    /// The same, with the SQL that mends it.
    #[must_use]
    pub fn with_sql(mut self, sql: impl Into<String>) -> Self {
        self.hint_sql = Some(sql.into());
        self
    }

    /// Whether streaming cannot start because of it.
    #[must_use]
    pub fn blocks(&self) -> bool {
        self.severity >= Severity::Wait
    }
}

/// Text that came from elsewhere, fit for a message: control characters are escaped, quotes stay.
pub(super) fn on_one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// The sentence, then the SQL on lines of its own, indented.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(sql) = &self.hint_sql {
            for line in sql.lines() {
                write!(f, "\n    {line}")?;
            }
        }
        Ok(())
    }
}

/// Whether everything that blocks may pass by itself: it is worth trying again without anybody mending anything.
#[must_use]
pub fn only_waits(findings: &[Finding]) -> bool {
    let mut blocking = findings.iter().filter(|finding| finding.blocks()).peekable();
    blocking.peek().is_some() && blocking.all(|finding| finding.severity == Severity::Wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_helps_only_when_nothing_else_is_wrong() {
        let wait = Finding::new(FindingCode::SlotActive, Severity::Wait, "in use");
        let error = Finding::error(FindingCode::WalLevel, "replica");
        let warning = Finding::warning(FindingCode::ExistingRows, "3 rows");
        assert!(!only_waits(&[]));
        assert!(!only_waits(std::slice::from_ref(&warning)));
        assert!(only_waits(&[warning.clone(), wait.clone()]));
        assert!(!only_waits(&[wait, error]));
    }

    #[test]
    fn sql_stands_on_its_own_lines() {
        let finding = Finding::error(FindingCode::SlotMissing, "no slot").with_sql("SELECT 1;\nSELECT 2;");
        assert_eq!(finding.to_string(), "no slot\n    SELECT 1;\n    SELECT 2;");
    }
}
