//! Retiring it, in the one right order.

use tokio_postgres::Client;

use super::{ROLE_SQL, RoleFacts, Setup, Step, StepOutcome, Stopped, parking, run, stopped};
use crate::control::{
    finding::{Finding, FindingCode},
    names::{quote_ident, quote_literal},
    query::{QueryError, json_row},
    slot::{SlotStatus, human_bytes, slot_report},
};

const OTHER_SLOTS_SQL: &str = "\
SELECT COALESCE(jsonb_agg(slot_name ORDER BY slot_name), '[]'::jsonb)::text
FROM pg_catalog.pg_replication_slots
WHERE plugin = 'pgoutput' AND database = current_database() AND slot_name <> $1";

impl Setup {
    /// Retires it: the slot first, then the publication, walgate's own tables where nothing is in them, and the role if
    /// wanted. The outbox is never touched.
    ///
    /// # Errors
    /// The slot is being read or is not walgate's, or a statement failed; what was dropped before stays dropped.
    pub async fn remove(&self, client: &Client, drop_role: bool) -> Result<Vec<Step>, Stopped> {
        let mut steps = Vec::new();
        let read = |error: QueryError| Stopped {
            steps: Vec::new(),
            finding: Finding::error(FindingCode::QueryFailed, error.to_string()),
        };
        let report = slot_report(client, &self.slot).await.map_err(read)?;
        let here = "SELECT to_jsonb(current_database())::text";
        let database: String =
            json_row(client, "read the database's name", here, &[]).await.map_err(read)?.unwrap_or_default();
        match &report.slot {
            None => steps.push(Step::new("slot", &self.slot, StepOutcome::Absent)),
            Some(slot) => {
                if let Some(finding) = not_to_drop(slot, &database) {
                    return Err(Stopped { steps, finding });
                }
                let sql = format!("SELECT pg_drop_replication_slot({});", quote_literal(&self.slot));
                run(client, "drop the slot", &sql, &sql, &mut steps).await?;
                let freed = human_bytes(slot.retained_bytes.unwrap_or(0));
                let mut detail = format!("{freed} of WAL that PostgreSQL kept for it can go");
                detail.push_str(&match (slot.confirmed_flush_lsn, slot.current_wal_lsn) {
                    (Some(confirmed), Some(now)) if confirmed < now => format!(
                        "; events committed between {confirmed} and {now} were not confirmed: those that were not \
                         delivered are not going to be"
                    ),
                    _ => "; everything was confirmed".to_owned(),
                });
                steps.push(Step::new("slot", &self.slot, StepOutcome::Dropped).with_detail(detail));
            }
        }
        let others: Vec<String> = json_row(client, "read the other slots", OTHER_SLOTS_SQL, &[&self.slot])
            .await
            .map_err(|error| stopped(steps.clone(), "read the other slots", "", &error))?
            .unwrap_or_default();
        let sql = format!("DROP PUBLICATION {};", quote_ident(&self.publication));
        let exists = "SELECT to_jsonb(EXISTS (SELECT 1 FROM pg_catalog.pg_publication WHERE pubname = $1))::text";
        match json_row(client, "look for the publication", exists, &[&self.publication]).await {
            Ok(Some(true)) if !others.is_empty() => {
                let detail = format!(
                    "it may be in use: slots that read publications exist in this database ({}), and one that loses its \
                     publication can never be read again; where none of them reads it: {sql}",
                    others.join(", ")
                );
                steps.push(Step::new("publication", &self.publication, StepOutcome::Kept).with_detail(detail));
            }
            Ok(Some(true)) => {
                run(client, "drop the publication", &sql, &sql, &mut steps).await?;
                steps.push(Step::new("publication", &self.publication, StepOutcome::Dropped));
            }
            Ok(_) => steps.push(Step::new("publication", &self.publication, StepOutcome::Absent)),
            Err(error) => return Err(stopped(steps, "look for the publication", &sql, &error)),
        }
        parking::remove(client, &others, &mut steps).await?;
        let role: RoleFacts = json_row(client, "read the role", ROLE_SQL, &[&self.role])
            .await
            .map_err(|error| stopped(steps.clone(), "read the role", "", &error))?
            .unwrap_or_default();
        let step = Step::new("role", &self.role, StepOutcome::Kept);
        match (role.exists, drop_role) {
            (false, _) => steps.push(Step { outcome: StepOutcome::Absent, ..step }),
            (true, false) => steps.push(step.with_detail("--drop-role drops it")),
            (true, true) => {
                let name = quote_ident(&self.role);
                let database = quote_ident(&database);
                // What `--apply` may have granted would hold the role.
                let revoke = parking::revoke_sql(client, &self.role)
                    .await
                    .map_err(|error| stopped(steps.clone(), "read the role's rights", "", &error))?;
                let sql = format!("{revoke}REVOKE ALL ON DATABASE {database} FROM {name};\nDROP ROLE {name};");
                run(client, "drop the role", &sql, &sql, &mut steps).await?;
                steps.push(Step { outcome: StepOutcome::Dropped, ..step });
            }
        }
        Ok(steps)
    }
}

/// Why a slot is not dropped.
fn not_to_drop(slot: &SlotStatus, database: &str) -> Option<Finding> {
    let name = &slot.name;
    if !slot.logical || slot.plugin.as_deref() != Some("pgoutput") {
        let what =
            slot.plugin.as_deref().map_or_else(|| "a physical slot".to_owned(), |plugin| format!("plugin `{plugin}`"));
        let message =
            format!("slot `{name}` is not walgate's ({what}): nothing was dropped; name the right one with --slot");
        return Some(Finding::error(FindingCode::SlotPlugin, message));
    }
    if slot.active {
        let user = slot.user.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string);
        let message = format!(
            "slot `{name}` is being read by {user}: nothing was dropped; stop that process first, and try again"
        );
        return Some(Finding::error(FindingCode::SlotActive, message));
    }
    let other = slot.database.as_deref().filter(|other| *other != database)?;
    let message = format!(
        "slot `{name}` belongs to database `{other}`, and --admin-url leads to `{database}`: nothing was dropped; \
         connect to `{other}`"
    );
    Some(Finding::error(FindingCode::SlotDatabase, message))
}
