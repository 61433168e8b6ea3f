//! walgate's own tables: whether what a sink cannot take may wait there.

use serde::Serialize;

use super::{Facts, Wanted};
use crate::control::{
    finding::{Finding, FindingCode, Severity},
    missing_past::create_publication_sql,
    names::quote_ident,
    parking::{SCHEMA, grant_sql},
};

/// Whether deliveries may be written to walgate's own tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Parking {
    /// They may.
    Usable,
    /// The tables do not exist, or not whole.
    Absent,
    /// The role may not write to them, or the server is a standby.
    Denied,
    /// They are in our publication: what is written to them comes back through the slot.
    Published,
}

impl Facts {
    /// Whether deliveries may be written to walgate's own tables.
    #[must_use]
    pub fn parking(&self) -> Parking {
        if !self.parking.exists {
            Parking::Absent
        } else if !self.parking.may_write || self.server.in_recovery {
            Parking::Denied
        } else if self.parking.published {
            Parking::Published
        } else {
            Parking::Usable
        }
    }
}

pub(super) fn judge(facts: &Facts, wanted: &Wanted, findings: &mut Vec<Finding>) {
    let found = &facts.parking;
    if !found.exists {
        findings.push(Finding::new(
            FindingCode::ParkingAbsent,
            Severity::Info,
            format!(
                "walgate's own tables (schema {SCHEMA}) do not exist in database `{}`, or not whole: while a sink cannot \
                 take its events they stay in the write-ahead log, which PostgreSQL then keeps for all of them, and \
                 rejected events hold their keys; `walgate init --apply` makes the tables",
                facts.server.database
            ),
        ));
    } else if !found.may_write {
        findings.push(
            Finding::warning(
                FindingCode::ParkingDenied,
                format!(
                    "role `{}` lacks rights on walgate's own tables (schema {SCHEMA}): nothing can be parked there; give it \
                     the rights",
                    facts.server.role
                ),
            )
            .with_sql(grant_sql(&facts.server.role).join("\n")),
        );
    }
    if found.published {
        findings.push(published(facts, wanted));
    }
}

/// A publication of everything, or of the schema, or of the tables by name.
fn published(facts: &Facts, wanted: &Wanted) -> Finding {
    let name = quote_ident(&wanted.publication);
    let all_tables = facts.publication.as_ref().is_some_and(|publication| publication.all_tables);
    let sql = if all_tables {
        // In one transaction, so that there is no moment in the log at which the publication does not exist.
        format!(
            "BEGIN;\nDROP PUBLICATION {name};\n{}\nCOMMIT;",
            create_publication_sql(&wanted.publication, &wanted.table)
        )
    } else if facts.parking.named.is_empty() {
        format!("ALTER PUBLICATION {name} DROP TABLES IN SCHEMA {SCHEMA};")
    } else {
        format!("ALTER PUBLICATION {name} DROP TABLE {};", facts.parking.named.join(", "))
    };
    let what = if all_tables { "is FOR ALL TABLES, so it publishes" } else { "publishes" };
    Finding::warning(
        FindingCode::ParkingPublished,
        format!(
            "publication `{}` {what} walgate's own tables (schema {SCHEMA}): what is parked would come back through the \
             slot, so nothing is parked; publish the outbox alone",
            wanted.publication
        ),
    )
    .with_sql(sql)
}
