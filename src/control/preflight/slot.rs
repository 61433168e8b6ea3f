//! The slot: that it exists, is ours to read, and still has its WAL.

use super::{Facts, Wanted};
use crate::control::{
    finding::{Finding, FindingCode, Severity, on_one_line},
    missing_past::{create_slot_sql, new_slot_sql},
    slot::{SlotStatus, WalStatus, human_bytes},
};

pub(super) fn judge(facts: &Facts, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let name = &wanted.slot;
    let Some(slot) = &facts.slots.slot else {
        findings.push(
            Finding::error(
                FindingCode::SlotMissing,
                format!(
                    "replication slot `{name}` does not exist: create it after the publication; only events that are \
                     committed after it was made are sent. If it existed before, `walgate recover` finds the rows that it \
                     may not have delivered, and makes the slot. (`walgate run --create` creates publication and slot \
                     where both are absent)"
                ),
            )
            .with_sql(create_slot_sql(name)),
        );
        return;
    };
    if !slot.logical {
        findings.push(Finding::error(
            FindingCode::SlotPhysical,
            format!("replication slot `{name}` is a physical one, for a standby: set source.slot to another name"),
        ));
        return;
    }
    if slot.plugin.as_deref() != Some("pgoutput") {
        findings.push(Finding::error(
            FindingCode::SlotPlugin,
            format!(
                "replication slot `{name}` uses plugin `{}`, walgate reads pgoutput: it seems to belong to another \
                 program; set source.slot to another name",
                slot.plugin.as_deref().unwrap_or("none")
            ),
        ));
    }
    if let Some(database) = slot.database.as_deref().filter(|database| *database != facts.server.database) {
        findings.push(Finding::error(
            FindingCode::SlotDatabase,
            format!(
                "replication slot `{name}` belongs to database `{database}`, and we are connected to `{}`: connect to \
                 `{database}`, or set source.slot to another name (slot names are shared by all databases of a server)",
                facts.server.database
            ),
        ));
    }
    if slot.temporary {
        findings.push(Finding::error(
            FindingCode::SlotTemporary,
            format!(
                "replication slot `{name}` is temporary: it vanishes with the session that made it, and only that \
                 session can read it; set source.slot to another name"
            ),
        ));
    }
    wal(facts, slot, findings);
    if let (Some((row, system_id)), Some(confirmed)) = (&facts.gateway, slot.confirmed_flush_lsn)
        && let Some(gap) = row.gap(name, confirmed, system_id)
    {
        let severity = if wanted.accept_gap { Severity::Warning } else { Severity::Error };
        findings.push(Finding::new(FindingCode::SlotMoved, severity, gap));
    }
    if slot.active && !wanted.may_stand_by {
        let user = slot.user.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string);
        findings.push(Finding::new(
            FindingCode::SlotActive,
            Severity::Wait,
            format!(
                "replication slot `{name}` is being read by {user}: one process at a time can read a slot; stop the \
                 other one, or wait until it ends"
            ),
        ));
    }
}

fn wal(facts: &Facts, slot: &SlotStatus, findings: &mut Vec<Finding>) {
    let name = &slot.name;
    let lost = slot.wal_status == Some(WalStatus::Lost) || slot.invalidation_reason.is_some();
    if lost {
        let why = match slot.invalidation_reason.as_deref() {
            Some("idle_timeout") => "nobody read it for longer than idle_replication_slot_timeout".to_owned(),
            Some("rows_removed") => "rows of the catalog that it needs were removed".to_owned(),
            Some("wal_level_insufficient") => "wal_level was not `logical` for a time".to_owned(),
            Some("wal_removed") | None => "WAL that it still needed was removed (max_slot_wal_keep_size)".to_owned(),
            Some(other) => format!("PostgreSQL says `{}`", on_one_line(other)),
        };
        let range = match (slot.confirmed_flush_lsn, slot.current_wal_lsn) {
            (Some(confirmed), Some(now)) => format!(" between {confirmed} and {now}"),
            _ => String::new(),
        };
        findings.push(
            Finding::error(
                FindingCode::SlotLost,
                format!(
                    "replication slot `{name}` is lost: {why}; it can never be read again. Events that were committed\
                     {range} and not delivered through it are not sent by a new slot either; their rows are still in \
                     the outbox table unless they were deleted: `walgate recover` sends those that may be undelivered, \
                     and makes a new slot. Without them:"
                ),
            )
            .with_sql(new_slot_sql(name)),
        );
    } else if slot.wal_status == Some(WalStatus::Unreserved) {
        let held =
            slot.retained_bytes.map(|bytes| format!(" ({} kept for it)", human_bytes(bytes))).unwrap_or_default();
        let limit = facts.server.max_slot_wal_keep_size.map(|mb| format!(" = {mb} MB")).unwrap_or_default();
        findings.push(
            Finding::warning(
                FindingCode::SlotUnreserved,
                format!(
                    "replication slot `{name}` is about to be lost{held}: the next checkpoint may remove WAL that it \
                     needs, because it is further behind than max_slot_wal_keep_size{limit}; raise that now, and let \
                     it catch up"
                ),
            )
            .with_sql("ALTER SYSTEM SET max_slot_wal_keep_size = -1;\nSELECT pg_reload_conf();"),
        );
    }
}
