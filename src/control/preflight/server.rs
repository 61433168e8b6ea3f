//! The server, its settings and the role.

use super::{
    Facts, OLDEST_MAJOR, ServerFacts, Wanted,
    standby_names::{TakenIn, taken_in},
};
use crate::control::{
    finding::{Finding, FindingCode, Severity, on_one_line},
    names::quote_ident,
};

pub(super) fn too_old(server: Option<&ServerFacts>) -> Finding {
    let version = server.map_or("this server", |server| server.version.as_str());
    Finding::error(
        FindingCode::ServerTooOld,
        format!("PostgreSQL {version} is too old: walgate needs {OLDEST_MAJOR} or later; upgrade the server"),
    )
}

pub(super) fn judge(facts: &Facts, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let server = &facts.server;
    recovery(server, findings);
    if server.wal_level != "logical" {
        findings.push(wal_level(&server.wal_level));
    }
    if facts.slots.slot.is_none() && server.replication_slots >= server.max_replication_slots {
        findings.push(
            Finding::error(
                FindingCode::ReplicationSlotsFull,
                format!(
                    "no replication slot is left: {} of max_replication_slots = {} exist; raise it and restart \
                     PostgreSQL, or drop a slot that nobody reads",
                    server.replication_slots, server.max_replication_slots
                ),
            )
            .with_sql(format!(
                "ALTER SYSTEM SET max_replication_slots = {};  -- then restart PostgreSQL\n\
                 SELECT slot_name, active, restart_lsn FROM pg_replication_slots;  -- what holds them",
                (server.max_replication_slots + 1).max(10)
            )),
        );
    }
    let streaming = facts.slots.slot.as_ref().is_some_and(|slot| slot.active);
    if server.wal_senders >= server.max_wal_senders && !streaming {
        findings.push(
            Finding::error(
                FindingCode::WalSendersFull,
                format!(
                    "no walsender is left: {} of max_wal_senders = {} are in use; raise it and restart PostgreSQL, or \
                     end a replication connection that is not needed",
                    server.wal_senders, server.max_wal_senders
                ),
            )
            .with_sql(format!(
                "ALTER SYSTEM SET max_wal_senders = {};  -- then restart PostgreSQL\n\
                 SELECT pid, application_name FROM pg_stat_replication;  -- what uses them",
                (server.max_wal_senders + 1).max(10)
            )),
        );
    }
    if !server.may_replicate {
        findings.push(
            Finding::error(
                FindingCode::RoleLacksReplication,
                format!(
                    "role `{}` may not replicate: it has no REPLICATION attribute; give it one (on Amazon RDS and \
                     Aurora: GRANT rds_replication instead)",
                    server.role
                ),
            )
            .with_sql(format!("ALTER ROLE {} REPLICATION;", quote_ident(&server.role))),
        );
    }
    standby(server, wanted, findings);
}

/// What to say where `wal_level` is not `logical`.
pub(in crate::control) fn wal_level(found: &str) -> Finding {
    Finding::error(
        FindingCode::WalLevel,
        format!(
            "wal_level is `{found}`: logical replication needs `logical`; set it and restart PostgreSQL (Amazon RDS and \
             Aurora: parameter rds.logical_replication = 1; Cloud SQL: flag cloudsql.logical_decoding = on; Azure: \
             server parameter wal_level)"
        ),
    )
    .with_sql("ALTER SYSTEM SET wal_level = 'logical';  -- then restart PostgreSQL")
}

fn recovery(server: &ServerFacts, findings: &mut Vec<Finding>) {
    if !server.in_recovery {
        return;
    }
    let (severity, why) = if server.major() < 16 {
        (Severity::Error, "logical decoding on a standby needs PostgreSQL 16".to_owned())
    } else {
        (Severity::Warning, "a slot on a standby stops when the standby is promoted or rebuilt".to_owned())
    };
    findings.push(Finding::new(
        FindingCode::ServerInRecovery,
        severity,
        format!(
            "the server is a standby: {why}; connect to the primary (several hosts with \
             target_session_attrs=read-write find it)"
        ),
    ));
}

fn standby(server: &ServerFacts, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let setting = &server.synchronous_standby_names;
    let (why, what) = match taken_in(setting, &wanted.application_name) {
        None => return,
        Some(TakenIn::ByStar) => ("`*` in it takes in every replication connection", "name the real standbys in it"),
        Some(TakenIn::ByName) => (
            "it names walgate's application name",
            "take that name out of it, or set another application_name in source.url",
        ),
    };
    findings.push(
        Finding::error(
            FindingCode::SynchronousStandby,
            format!(
                "synchronous_standby_names = '{}' makes `{}` a synchronous standby ({why}): the application's COMMIT \
                 would wait until walgate has delivered; {what}",
                on_one_line(setting),
                on_one_line(&wanted.application_name)
            ),
        )
        .with_sql(
            "ALTER SYSTEM SET synchronous_standby_names = 'FIRST 1 (name_of_a_standby)';  -- the real standbys, or ''\n\
             SELECT pg_reload_conf();",
        ),
    );
}
