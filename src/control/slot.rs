//! The replication slot as the server sees it, and who else keeps WAL: one query, for `status`, `/status` and metrics.
//! It needs no right beyond LOGIN: `pg_replication_slots` may be read by everybody.

use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use walgate_sink::Lsn;

use super::{
    finding::on_one_line,
    names::quote_literal,
    query::{QueryError, json_row},
};

/// `to_jsonb` takes whatever columns this server's version has; those that it lacks read as none. The LSN functions
/// are chosen by `CASE` because `pg_current_wal_lsn` fails in recovery.
const SLOTS_SQL: &str = "\
SELECT jsonb_build_object(
    'in_recovery', w.in_recovery,
    'current_wal_lsn', w.lsn,
    'slots', COALESCE((
        SELECT jsonb_agg(to_jsonb(s) || jsonb_build_object(
            'user', a.usename, 'application_name', a.application_name, 'client_addr', host(a.client_addr)))
        FROM pg_catalog.pg_replication_slots s
        LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid), '[]'::jsonb))::text
FROM (
    SELECT pg_catalog.pg_is_in_recovery() AS in_recovery,
        CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
             ELSE pg_catalog.pg_current_wal_lsn() END AS lsn
) w";

/// `wal_status` of a slot: whether the WAL that it needs is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond `max_wal_size`, kept for the slot.
    Extended,
    /// The next checkpoint may remove WAL that the slot needs.
    Unreserved,
    /// WAL that the slot needs is gone: it can never be read again.
    Lost,
    /// A state that this version of walgate does not know.
    #[serde(other)]
    Unknown,
}

/// The process that reads a slot. What the role may not see is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotUser {
    /// Process id of the walsender on the server.
    pub pid: i32,
    /// Its role.
    pub user: Option<String>,
    /// Its application name.
    pub application_name: Option<String>,
    /// Address of its client; none over a unix socket too.
    pub client_addr: Option<String>,
}

impl std::fmt::Display for SlotUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PID {}", self.pid)?;
        let named = [("role", &self.user), ("application", &self.application_name), ("client", &self.client_addr)];
        let mut open = false;
        for (what, value) in named {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                write!(f, "{}{what} {}", if open { ", " } else { " (" }, on_one_line(value))?;
                open = true;
            }
        }
        if open { f.write_str(")") } else { Ok(()) }
    }
}

/// One slot at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotStatus {
    /// Its name.
    pub name: String,
    /// Whether it is a logical one.
    pub logical: bool,
    /// Its output plugin; none for a physical slot.
    pub plugin: Option<String>,
    /// Its database; none for a physical slot.
    pub database: Option<String>,
    /// Whether it vanishes with the session that made it.
    pub temporary: bool,
    /// Whether it is being read.
    pub active: bool,
    /// Who reads it.
    pub user: Option<SlotUser>,
    /// Oldest WAL that it keeps; none once that is lost, or before anything was reserved.
    pub restart_lsn: Option<Lsn>,
    /// What its reader has confirmed.
    pub confirmed_flush_lsn: Option<Lsn>,
    /// Oldest transaction of which it keeps the catalog's rows.
    pub catalog_xmin: Option<String>,
    /// Where the server writes (on a standby: up to where it has replayed).
    pub current_wal_lsn: Option<Lsn>,
    /// WAL that the server keeps for it, in bytes.
    pub retained_bytes: Option<u64>,
    /// WAL written since what is confirmed, in bytes.
    pub lag_bytes: Option<u64>,
    /// Whether the WAL that it needs is still there.
    pub wal_status: Option<WalStatus>,
    /// Bytes that may still be written before it can be lost; none: no limit is set.
    pub safe_wal_size: Option<i64>,
    /// Why it was invalidated (PostgreSQL 17 and later).
    pub invalidation_reason: Option<String>,
    /// Since when nobody reads it (PostgreSQL 17 and later).
    pub inactive_since: Option<String>,
    /// Whether the server is a standby.
    pub in_recovery: bool,
}

/// A slot that keeps WAL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WalHolder {
    /// Its name.
    pub slot: String,
    /// Whether it is a logical one.
    pub logical: bool,
    /// Its database; none for a physical slot.
    pub database: Option<String>,
    /// Whether it is being read.
    pub active: bool,
    /// WAL that the server keeps for it, in bytes.
    pub retained_bytes: u64,
    /// Whether it is the slot that was asked for.
    pub ours: bool,
}

/// Every slot of the server at one moment, seen from one of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotReport {
    /// The slot that was asked for; none: it does not exist.
    pub slot: Option<SlotStatus>,
    /// Every slot that keeps WAL, ours too, that which keeps most first: the first one decides what the server keeps.
    pub holders: Vec<WalHolder>,
    /// Where the server writes (on a standby: up to where it has replayed).
    pub current_wal_lsn: Option<Lsn>,
    /// Whether the server is a standby.
    pub in_recovery: bool,
}

impl WalHolder {
    /// What it means that nobody reads it, and what to type.
    #[must_use]
    pub fn advice(&self) -> String {
        let WalHolder { slot, retained_bytes, .. } = self;
        format!(
            "replication slot `{slot}` is not being read, and PostgreSQL keeps {} of WAL for it until somebody reads or drops \
             it; where it is not needed any more: SELECT pg_drop_replication_slot({});",
            human_bytes(*retained_bytes),
            quote_literal(slot)
        )
    }
}

/// So much WAL is kept for a slot now and then, whoever reads it: one file of it.
const A_FILE: u64 = 16 << 20;

impl SlotReport {
    /// The slots of others that nobody reads and that hold more than a file of WAL, that which holds most first.
    #[must_use]
    pub fn idle(&self) -> Vec<&WalHolder> {
        self.holders.iter().filter(|slot| !slot.ours && !slot.active && slot.retained_bytes > A_FILE).collect()
    }

    /// Who holds the WAL, as a sentence; none where no slot holds any.
    #[must_use]
    pub fn who_holds_the_wal(&self) -> Option<String> {
        let first = self.holders.first()?;
        let name = |holder: &WalHolder| {
            let state = match (holder.active, holder.ours) {
                (true, true) => " (ours)",
                (false, true) => " (ours, not being read)",
                (true, false) => "",
                (false, false) => " (not being read)",
            };
            format!("slot `{}`{state} holds {}", holder.slot, human_bytes(holder.retained_bytes))
        };
        let mut text = name(first);
        if let Some(ours) = self.holders.iter().find(|holder| holder.ours && !first.ours) {
            text.push_str("; ");
            text.push_str(&name(ours));
        }
        Some(text)
    }
}

/// A number of bytes for people: one decimal, in the largest binary unit that it fills.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "for people")]
pub fn human_bytes(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >= 1 << shift) {
        Some((unit, shift)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

#[derive(Deserialize)]
struct Answer {
    in_recovery: bool,
    current_wal_lsn: Option<Lsn>,
    slots: Vec<SlotRow>,
}

#[derive(Deserialize)]
struct SlotRow {
    slot_name: String,
    plugin: Option<String>,
    slot_type: Option<String>,
    database: Option<String>,
    #[serde(default)]
    temporary: bool,
    #[serde(default)]
    active: bool,
    active_pid: Option<i32>,
    catalog_xmin: Option<String>,
    restart_lsn: Option<Lsn>,
    confirmed_flush_lsn: Option<Lsn>,
    wal_status: Option<WalStatus>,
    safe_wal_size: Option<i64>,
    invalidation_reason: Option<String>,
    inactive_since: Option<String>,
    user: Option<String>,
    application_name: Option<String>,
    client_addr: Option<String>,
}

/// Reads every slot once.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn slot_report(client: &Client, slot: &str) -> Result<SlotReport, QueryError> {
    let what = "read the replication slots";
    let answer: Option<Answer> = json_row(client, what, SLOTS_SQL, &[]).await?;
    Ok(report(answer.unwrap_or(Answer { in_recovery: false, current_wal_lsn: None, slots: Vec::new() }), slot))
}

/// Reads one slot; none: it does not exist.
///
/// # Errors
/// The query failed, or the connection broke.
pub async fn slot_status(client: &Client, slot: &str) -> Result<Option<SlotStatus>, QueryError> {
    Ok(slot_report(client, slot).await?.slot)
}

fn report(answer: Answer, slot: &str) -> SlotReport {
    let Answer { in_recovery, current_wal_lsn, slots } = answer;
    let since = |lsn: Option<Lsn>| current_wal_lsn.zip(lsn).map(|(now, lsn)| now.bytes_since(lsn));
    let mut holders: Vec<_> = slots
        .iter()
        .filter_map(|row| {
            let retained_bytes = since(row.restart_lsn)?;
            Some(WalHolder {
                slot: row.slot_name.clone(),
                logical: row.slot_type.as_deref() == Some("logical"),
                database: row.database.clone(),
                active: row.active,
                retained_bytes,
                ours: row.slot_name == slot,
            })
        })
        .collect();
    holders.sort_by(|a, b| b.retained_bytes.cmp(&a.retained_bytes).then_with(|| a.slot.cmp(&b.slot)));
    let slot = slots.into_iter().find(|row| row.slot_name == slot).map(|row| SlotStatus {
        logical: row.slot_type.as_deref() == Some("logical"),
        user: row.active_pid.map(|pid| SlotUser {
            pid,
            user: row.user,
            application_name: row.application_name,
            client_addr: row.client_addr,
        }),
        retained_bytes: since(row.restart_lsn),
        lag_bytes: since(row.confirmed_flush_lsn),
        name: row.slot_name,
        plugin: row.plugin,
        database: row.database,
        temporary: row.temporary,
        active: row.active,
        restart_lsn: row.restart_lsn,
        confirmed_flush_lsn: row.confirmed_flush_lsn,
        catalog_xmin: row.catalog_xmin,
        current_wal_lsn,
        wal_status: row.wal_status,
        safe_wal_size: row.safe_wal_size,
        invalidation_reason: row.invalidation_reason,
        inactive_since: row.inactive_since,
        in_recovery,
    });
    SlotReport { slot, holders, current_wal_lsn, in_recovery }
}

#[cfg(test)]
impl SlotReport {
    /// A slot `walgate` for which so much is kept, and so much may still be written.
    pub(crate) fn sample(retained: Option<u64>, safe: Option<i64>, status: WalStatus) -> SlotReport {
        let slot = SlotStatus {
            name: "walgate".into(),
            logical: true,
            plugin: Some("pgoutput".into()),
            database: Some("shop".into()),
            temporary: false,
            active: true,
            user: None,
            restart_lsn: None,
            confirmed_flush_lsn: None,
            catalog_xmin: None,
            current_wal_lsn: None,
            retained_bytes: retained,
            lag_bytes: None,
            wal_status: Some(status),
            safe_wal_size: safe,
            invalidation_reason: None,
            inactive_since: None,
            in_recovery: false,
        };
        SlotReport { slot: Some(slot), holders: Vec::new(), current_wal_lsn: None, in_recovery: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(json: serde_json::Value) -> Answer {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_rows_of_every_version_are_read() {
        let report = report(
            answer(serde_json::json!({
                "in_recovery": false, "current_wal_lsn": "0/3000000", "slots": [
                    // PostgreSQL 15.
                    { "slot_name": "walgate", "slot_type": "logical", "plugin": "pgoutput", "datoid": "16388", "database": "shop",
                      "temporary": false, "two_phase": false, "active": true, "active_pid": 42, "xmin": null, "catalog_xmin": "741",
                      "restart_lsn": "0/2000000", "confirmed_flush_lsn": "0/2800000", "wal_status": "extended", "safe_wal_size": 16777216,
                      "user": "walgate", "application_name": "walgate", "client_addr": null },
                    // PostgreSQL 18, with states that do not exist yet.
                    { "slot_name": "other", "slot_type": "logical", "plugin": "pgoutput", "active": false, "active_pid": null,
                      "restart_lsn": "0/1000000", "confirmed_flush_lsn": "0/1000000", "wal_status": "pondering", "safe_wal_size": null,
                      "invalidation_reason": "idle_timeout", "inactive_since": "2026-11-23T10:00:00+00:00", "failover": true },
                    { "slot_name": "fresh_physical", "slot_type": "physical", "active": false, "restart_lsn": null }
                ]
            })),
            "walgate",
        );
        let slot = report.slot.clone().unwrap();
        assert_eq!((slot.retained_bytes, slot.lag_bytes), (Some(16 << 20), Some(8 << 20)));
        assert_eq!(slot.wal_status, Some(WalStatus::Extended));
        assert_eq!(slot.user.unwrap().to_string(), "PID 42 (role walgate, application walgate)");
        assert_eq!(report.holders.iter().map(|holder| holder.slot.as_str()).collect::<Vec<_>>(), ["other", "walgate"]);
        assert_eq!(
            report.who_holds_the_wal().unwrap(),
            "slot `other` (not being read) holds 32.0 MiB; slot `walgate` (ours) holds 16.0 MiB"
        );
        let idle: Vec<String> = report.idle().into_iter().map(WalHolder::advice).collect();
        assert_eq!(idle.len(), 1);
        assert!(
            idle[0].contains("32.0 MiB") && idle[0].ends_with("SELECT pg_drop_replication_slot('other');"),
            "{idle:?}"
        );
    }

    #[test]
    fn a_lost_slot_keeps_nothing() {
        let report = report(
            answer(serde_json::json!({
                "in_recovery": false, "current_wal_lsn": "0/3000000", "slots": [
                    { "slot_name": "walgate", "slot_type": "logical", "restart_lsn": null,
                      "confirmed_flush_lsn": "0/1000000", "wal_status": "lost", "safe_wal_size": null }]
            })),
            "walgate",
        );
        assert_eq!(report.who_holds_the_wal(), None);
        let slot = report.slot.unwrap();
        assert_eq!((slot.retained_bytes, slot.lag_bytes), (None, Some(32 << 20)));
    }

    #[test]
    fn nothing_is_nothing() {
        let report =
            report(answer(serde_json::json!({ "in_recovery": true, "current_wal_lsn": null, "slots": [] })), "x");
        assert_eq!((report.who_holds_the_wal(), report.slot), (None, None));
    }
}
