//! Making what is missing, in the one right order.

use std::time::Duration;

use tokio_postgres::Client;

use super::{Inspection, Setup, Step, StepOutcome, Stopped, create_table_sql, run, stopped};
use crate::control::{
    create::{create_publication, create_slot},
    names::{quote_ident, quote_literal},
    query::json_row,
};

/// How long a new slot may wait for open transactions to end.
const SLOT_PATIENCE: Duration = Duration::from_secs(60);

impl Setup {
    /// Makes what is missing, in order: table, role, walgate's own tables, publication, slot. `verifier` is what the server keeps of a new
    /// role's password (SCRAM-SHA-256), so that the password itself is neither sent nor logged.
    ///
    /// # Errors
    /// A statement failed; what was made before stays.
    pub async fn apply(&self, client: &Client, found: &Inspection, verifier: &str) -> Result<Vec<Step>, Stopped> {
        let mut steps = Vec::new();
        if self.with_table || found.table {
            let step = Step::new("table", self.table.to_string(), StepOutcome::Existed);
            if found.table {
                steps.push(step);
            } else {
                let sql = create_table_sql(&self.table);
                run(client, "create the table", &sql, &sql, &mut steps).await?;
                steps.push(Step { outcome: StepOutcome::Created, ..step });
            }
        }
        if found.role {
            steps.push(Step::new("role", &self.role, StepOutcome::Existed));
        } else {
            let step = self.create_role(client, found, verifier, &mut steps).await?;
            steps.push(step);
        }
        if self.parking {
            self.make_parking(client, found, &mut steps).await?;
        }
        let wanted = self.wanted();
        if found.publication {
            steps.push(Step::new("publication", &self.publication, StepOutcome::Existed));
        } else {
            if let Err(finding) = create_publication(client, &wanted).await {
                return Err(Stopped { steps, finding });
            }
            steps.push(Step::new("publication", &self.publication, StepOutcome::Created));
        }
        if found.slot {
            steps.push(Step::new("slot", &self.slot, StepOutcome::Existed));
        } else {
            match create_slot(client, &self.slot, SLOT_PATIENCE).await {
                Ok(from) => {
                    let detail = format!("events that are committed after {from} are sent");
                    steps.push(Step::new("slot", &self.slot, StepOutcome::Created).with_detail(detail));
                }
                Err(finding) => return Err(Stopped { steps, finding }),
            }
        }
        Ok(steps)
    }

    async fn create_role(
        &self,
        client: &Client,
        found: &Inspection,
        verifier: &str,
        steps: &mut Vec<Step>,
    ) -> Result<Step, Stopped> {
        let name = quote_ident(&self.role);
        let attributes = if found.rds { "LOGIN" } else { "LOGIN REPLICATION" };
        let shown = format!("CREATE ROLE {name} {attributes};");
        let mut sql = format!("CREATE ROLE {name} {attributes} PASSWORD {};", quote_literal(verifier));
        if found.rds {
            sql.push_str(&format!("\nGRANT rds_replication TO {name};"));
        }
        run(client, "create the role", &sql, &shown, steps).await?;
        let grant = format!("GRANT CONNECT ON DATABASE {} TO {name};", quote_ident(&found.database));
        let may = "SELECT to_jsonb(has_database_privilege($1, current_database(), 'CONNECT'))::text";
        match json_row(client, "read the role's rights", may, &[&self.role]).await {
            Ok(Some(false)) => run(client, "let the role connect", &grant, &grant, steps).await?,
            Ok(_) => {}
            Err(error) => return Err(stopped(std::mem::take(steps), "read the role's rights", &grant, &error)),
        }
        Ok(Step::new("role", &self.role, StepOutcome::Created))
    }
}
