//! `init`: what a database needs, as SQL to be read and run, or run over SQL; and how it is retired.

mod apply;
mod parking;
mod remove;

use serde::Serialize;
use tokio_postgres::Client;

use super::{
    create::cause,
    finding::{Finding, FindingCode, Severity},
    gateway::born_sql,
    missing_past::{create_publication_sql, create_slot_sql},
    names::{NameError, TableName, check_name, check_slot_name, quote_ident},
    preflight::{ColumnRole, Wanted, WantedColumn, preflight},
    query::{QueryError, execute, json_row},
};

/// What is to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setup {
    /// The outbox table.
    pub table: TableName,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// The role that walgate connects as.
    pub role: String,
    /// Whether the table is to be made.
    pub with_table: bool,
    /// Whether walgate's own tables are to be made.
    pub parking: bool,
}

/// What became of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// It was made.
    Created,
    /// It existed, and was left as it is.
    Existed,
    /// It was dropped.
    Dropped,
    /// There was nothing to drop.
    Absent,
    /// It exists still, on purpose.
    Kept,
}

/// One thing, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `table`, `role`, `parking tables`, `publication` or `slot`.
    pub object: &'static str,
    /// Its name.
    pub name: String,
    /// What became of it.
    pub outcome: StepOutcome,
    /// More, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Step {
    fn new(object: &'static str, name: impl Into<String>, outcome: StepOutcome) -> Self {
        Step { object, name: name.into(), outcome, detail: None }
    }

    fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}

/// Half of it was done. The steps say which half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// What was done before.
    pub steps: Vec<Step>,
    /// Why it went no further.
    pub finding: Finding,
}

/// What exists already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// The database that the connection is for.
    pub database: String,
    /// Whether the table exists.
    pub table: bool,
    /// Whether the role exists.
    pub role: bool,
    /// Whether the publication exists.
    pub publication: bool,
    /// Whether the slot exists.
    pub slot: bool,
    /// Whether walgate's own tables exist, whole.
    pub parking: bool,
    /// Whether REPLICATION is given by membership of `rds_replication` here.
    pub rds: bool,
    /// What does not hinder, but should be known.
    pub notes: Vec<Finding>,
}

impl Setup {
    /// Whether PostgreSQL can hold all these names.
    ///
    /// # Errors
    /// The first name that it cannot.
    pub fn check(&self) -> Result<(), NameError> {
        check_name(&self.publication)?;
        check_name(&self.role)?;
        check_slot_name(&self.slot)
    }

    fn wanted(&self) -> Wanted {
        let mut wanted =
            Wanted::new(&self.slot, &self.publication, &self.table.schema, &self.table.name).counting_rows();
        wanted.columns = vec![
            WantedColumn::new("id", ColumnRole::Id),
            WantedColumn::new("event_type", ColumnRole::EventType),
            WantedColumn::new("payload", ColumnRole::Payload),
        ];
        wanted
    }

    /// The whole as a commented script.
    #[must_use]
    pub fn sql(&self) -> String {
        let Setup { table, slot, publication, role, with_table, parking } = self;
        let mut step = 0;
        let mut next = || {
            step += 1;
            step
        };
        let mut sql = format!(
            "\
-- What walgate needs of PostgreSQL. Run it in the database of the outbox, as an administrator, in this order and
-- statement by statement (a slot cannot be made in a transaction that has written).

-- {}. Logical decoding. This must say `logical`:
SHOW wal_level;
-- Where it does not, run the next line, restart PostgreSQL, and begin again here. (Amazon RDS and Aurora: parameter
-- rds.logical_replication = 1; Cloud SQL: flag cloudsql.logical_decoding = on; Azure: server parameter wal_level.)
-- ALTER SYSTEM SET wal_level = 'logical';
",
            next()
        );
        if *with_table {
            sql.push_str(&format!(
                "
-- {}. The outbox. The application inserts an event in the transaction that the event belongs to. For events that must
-- stay in order, add a column such as `aggregate_id text`, and name it in outbox.columns.key.
{}
",
                next(),
                create_table_sql(table)
            ));
        }
        sql.push_str(&format!(
            "
-- {}. The role that walgate connects as. It needs no right to read or write the outbox. REPLICATION holds for the whole
-- server: in pg_hba.conf let the role into this database only, and give it no line for `replication`.
-- (Amazon RDS and Aurora: CREATE ROLE {role_name} LOGIN; GRANT rds_replication TO {role_name};)
CREATE ROLE {role_name} LOGIN REPLICATION;
-- Set its password so that it is not sent in clear text, in psql:  \\password {role_name}
-- Only the clean-up of settled rows (`cleanup.mode`) needs more, for this role or the one of cleanup.url: SELECT, and
-- DELETE or UPDATE, on the outbox, and an index on created_at. `walgate check --connect` has the statements.
",
            next(),
            role_name = quote_ident(role),
        ));
        if *parking {
            sql.push_str(&format!("\n-- {}. {}", next(), parking::explained_sql(role)));
        }
        sql.push_str(&format!(
            "
-- {}. The publication: inserts only, and before the slot, because a slot cannot read what was written before its
-- publication existed.
{}

-- {}. The slot. From here on events are kept for walgate, and PostgreSQL keeps its write-ahead log until walgate has
-- confirmed it, also while walgate is stopped: watch it, and drop the slot when it is no longer needed
-- (`walgate init --remove`). max_slot_wal_keep_size bounds what is kept, at the price of losing the slot.
{}
",
            next(),
            create_publication_sql(publication, table),
            next(),
            create_slot_sql(slot),
        ));
        if *parking {
            sql.push_str(&format!(
                "-- What is inserted from here on is streamed: clean-up has to know where that began.\n{}\n",
                born_sql(slot)
            ));
        }
        sql
    }

    /// Looks at what exists, and whether the rest can be made. Nothing is changed.
    ///
    /// # Errors
    /// Everything that stands in the way.
    pub async fn inspect(&self, client: &Client) -> Result<Inspection, Vec<Finding>> {
        let findings = match preflight(client, &self.wanted()).await {
            Ok(found) => found.warnings,
            Err(findings) => findings,
        };
        let has = |code| findings.iter().any(|finding| finding.code == code);
        let (table, slot) = (!has(FindingCode::TableMissing), !has(FindingCode::SlotMissing));
        let (publication, parking) = (!has(FindingCode::PublicationMissing), !has(FindingCode::ParkingAbsent));
        let role: RoleFacts = match json_row(client, "read the role", ROLE_SQL, &[&self.role]).await {
            Ok(role) => role.unwrap_or_default(),
            Err(error) if findings.iter().all(|finding| finding.code != FindingCode::QueryFailed) => {
                return Err(vec![Finding::error(FindingCode::QueryFailed, error.to_string())]);
            }
            Err(_) => RoleFacts::default(),
        };
        let (mut blocking, mut notes) = (Vec::new(), Vec::new());
        for finding in findings {
            match finding.code {
                // What is about to be made.
                FindingCode::SlotMissing => {}
                FindingCode::PublicationMissing if !slot => {}
                FindingCode::TableMissing if self.with_table => {}
                // The administrator's right to replicate is needed to make the slot only.
                FindingCode::RoleLacksReplication if slot => {}
                FindingCode::SlotActive => {}
                // Made here, or left out on purpose; and it is not the administrator's rights that matter.
                FindingCode::ParkingAbsent | FindingCode::ParkingDenied => {}
                // Matters of running walgate, not of setting it up.
                FindingCode::WalSendersFull
                | FindingCode::SynchronousStandby
                | FindingCode::ColumnMissing
                | FindingCode::ColumnType
                | FindingCode::ColumnGenerated => notes.push(finding),
                _ if finding.blocks() => blocking.push(finding),
                FindingCode::ExistingRows if finding.severity == Severity::Info => {}
                _ => notes.push(finding),
            }
        }
        if role.exists && !(role.may_login && role.may_replicate) {
            let name = quote_ident(&self.role);
            let sql = match role.rds {
                true => format!("ALTER ROLE {name} LOGIN;\nGRANT rds_replication TO {name};"),
                false => format!("ALTER ROLE {name} LOGIN REPLICATION;"),
            };
            let message = format!(
                "role `{}` exists, but lacks LOGIN or REPLICATION: give it both, or choose another name with --role",
                self.role
            );
            blocking.push(Finding::error(FindingCode::RoleUnfit, message).with_sql(sql));
        }
        if !blocking.is_empty() {
            blocking.extend(notes);
            return Err(blocking);
        }
        let RoleFacts { database, exists, rds, .. } = role;
        Ok(Inspection { database, table, role: exists, publication, slot, parking, rds, notes })
    }
}

/// The outbox of the README.
fn create_table_sql(table: &TableName) -> String {
    format!(
        "\
CREATE TABLE {table} (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  event_type TEXT NOT NULL,
  payload JSONB NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(),
  published BOOLEAN DEFAULT false
);"
    )
}

/// Runs statements; where they fail, what was done before goes with the reason.
async fn run(
    client: &Client,
    what: &'static str,
    sql: &str,
    shown: &str,
    steps: &mut Vec<Step>,
) -> Result<(), Stopped> {
    execute(client, what, sql).await.map_err(|error| stopped(std::mem::take(steps), what, shown, &error))
}

fn stopped(steps: Vec<Step>, what: &str, sql: &str, error: &QueryError) -> Stopped {
    let finding = Finding::error(
        FindingCode::StatementFailed,
        format!(
            "could not {what}: {}; what was done before stays, and running this again goes on from there",
            cause(error)
        ),
    );
    Stopped { steps, finding: if sql.is_empty() { finding } else { finding.with_sql(sql) } }
}

#[derive(Default, serde::Deserialize)]
struct RoleFacts {
    database: String,
    exists: bool,
    may_login: bool,
    may_replicate: bool,
    rds: bool,
}

const ROLE_SQL: &str = "\
SELECT jsonb_build_object(
    'database', current_database(),
    'exists', r.rolname IS NOT NULL,
    'may_login', COALESCE(r.rolcanlogin, false),
    'may_replicate', COALESCE(r.rolsuper OR r.rolreplication
        OR (rds.oid IS NOT NULL AND pg_catalog.pg_has_role(r.oid, rds.oid, 'MEMBER')), false),
    'rds', rds.oid IS NOT NULL
)::text
FROM (SELECT 1) one
LEFT JOIN pg_catalog.pg_roles r ON r.rolname = $1
LEFT JOIN pg_catalog.pg_roles rds ON rds.rolname = 'rds_replication'";

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(with_table: bool) -> Setup {
        Setup {
            table: TableName::new("public", "outbox_events"),
            slot: "walgate".into(),
            publication: "walgate_outbox".into(),
            role: "walgate".into(),
            with_table,
            parking: true,
        }
    }

    #[test]
    fn the_script_makes_the_publication_before_the_slot() {
        let sql = setup(true).sql();
        assert!(sql.find("CREATE PUBLICATION").unwrap() < sql.find("pg_create_logical_replication_slot").unwrap());
        insta::assert_snapshot!("script_with_table", sql);
        insta::assert_snapshot!("script_without_table", setup(false).sql());
        let without_parking = Setup { parking: false, ..setup(false) }.sql();
        assert!(!without_parking.contains("walgate.parked") && without_parking.contains("-- 3. The publication"));
    }

    #[test]
    fn the_script_quotes_what_needs_it() {
        let setup = Setup {
            table: TableName::new("My App", "order"),
            publication: "Out\"box".into(),
            role: "user".into(),
            ..setup(true)
        };
        insta::assert_snapshot!("script_quoted", setup.sql());
    }
}
