//! walgate's own tables, made and retired.

use serde::Deserialize;
use tokio_postgres::{Client, error::SqlState};

use super::{Inspection, Setup, Step, StepOutcome, Stopped, run, stopped};
use crate::control::{
    create::cause,
    finding::{Finding, FindingCode},
    names::quote_ident,
    parking::{DEAD_LETTERS, GATEWAY, PARKED, REQUESTS, SCHEMA, create_sql, drop_sql},
    preflight::parking_tables_are_whole,
    query::{QueryError, execute, json_row},
};

/// What a step is called.
const OBJECT: &str = "parking tables";

/// A step of the script.
pub(super) fn explained_sql(role: &str) -> String {
    format!(
        "\
walgate's own tables. What a sink cannot take waits in the first, so that the write-ahead log need not be kept for
-- it; what a sink refuses for good is kept in the second; operators' requests go through the third. Without them
-- (`walgate init --no-parking`) a sink that is away holds the slot. They must not be published.
{}
",
        create_sql(role).join("\n")
    )
}

impl Setup {
    /// Makes the tables, and lets the role use them, all in one transaction.
    pub(super) async fn make_parking(
        &self,
        client: &Client,
        found: &Inspection,
        steps: &mut Vec<Step>,
    ) -> Result<(), Stopped> {
        let what = "make walgate's own tables (--no-parking leaves them out)";
        let sql = create_sql(&self.role).join("\n");
        run(client, what, &sql, &sql, steps).await?;
        match parking_tables_are_whole(client).await {
            Ok(true) => {}
            Ok(false) => {
                let message = format!(
                    "tables of other columns than walgate needs are in schema {SCHEMA} already: rename or drop them, or leave \
                     walgate's own tables out with --no-parking"
                );
                let finding = Finding::error(FindingCode::ParkingAbsent, message);
                return Err(Stopped { steps: std::mem::take(steps), finding });
            }
            Err(error) => return Err(stopped(std::mem::take(steps), what, "", &error)),
        }
        let outcome = if found.parking { StepOutcome::Existed } else { StepOutcome::Created };
        steps.push(Step::new(OBJECT, SCHEMA, outcome));
        Ok(())
    }
}

/// What is in the tables.
#[derive(Default, Deserialize)]
struct Contents {
    parked: u64,
    dead_letters: u64,
}

/// Drops the tables where nothing is owed to anybody in them: `others` are slots that another gateway may read.
pub(super) async fn remove(client: &Client, others: &[String], steps: &mut Vec<Step>) -> Result<(), Stopped> {
    let what = "drop walgate's own tables";
    // Without the SQL: who runs it by hand is not asked whether something is in the tables.
    let stop = |steps: &mut Vec<Step>, error: &QueryError| stopped(std::mem::take(steps), what, "", error);
    let step = Step::new(OBJECT, SCHEMA, StepOutcome::Kept);
    let existing: Vec<String> = match json_row(client, what, TABLES_SQL, &[SCHEMA]).await {
        Ok(tables) => tables.unwrap_or_default(),
        Err(error) => return Err(stop(steps, &error)),
    };
    let exists = |table: &&str| existing.iter().any(|name| *table == format!("{SCHEMA}.{name}"));
    let tables: Vec<&str> = [PARKED, DEAD_LETTERS, REQUESTS, GATEWAY].into_iter().filter(exists).collect();
    if tables.is_empty() {
        steps.push(Step { outcome: StepOutcome::Absent, ..step });
        return Ok(());
    }
    if !others.is_empty() {
        let detail = format!(
            "another gateway may use them: slots that read publications exist in this database ({}); where none of them is \
             walgate's: {}",
            others.join(", "),
            drop_sql().join(" ")
        );
        steps.push(step.with_detail(detail));
        return Ok(());
    }
    // Nobody writes between the look and the drop.
    let lock =
        format!("BEGIN; SET LOCAL lock_timeout = '10s'; LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", tables.join(", "));
    let looked = match execute(client, what, &lock).await {
        Ok(()) => json_row(client, what, &contents_sql(&tables), &[]).await,
        Err(error) => Err(error),
    };
    let dropped = match looked {
        Ok(contents) => match contents {
            Some(Contents { parked: 0, dead_letters: 0 }) => {
                let drop = drop_sql().into_iter().next().unwrap_or_default();
                execute(client, what, &format!("{drop} COMMIT")).await.map(|()| None)
            }
            contents => Ok(Some(contents.unwrap_or_default())),
        },
        Err(error) => Err(error),
    };
    if !matches!(dropped, Ok(None)) {
        // A connection that broke shows itself at the next statement.
        let _ = execute(client, what, "ROLLBACK").await;
    }
    match dropped {
        Err(error) => Err(stop(steps, &error)),
        Ok(Some(Contents { parked, dead_letters })) => {
            let detail = format!(
                "deliveries are in there that no sink has: {parked} in {PARKED}, {dead_letters} in {DEAD_LETTERS}; where \
                 nobody needs them: {}",
                drop_sql().join(" ")
            );
            steps.push(step.with_detail(detail));
            Ok(())
        }
        Ok(None) => {
            let step = Step { outcome: StepOutcome::Dropped, ..step };
            let drop = drop_sql().into_iter().skip(1).collect::<Vec<_>>().join(" ");
            match execute(client, "drop walgate's schema", &drop).await {
                Ok(()) => steps.push(step),
                Err(error) if error.sqlstate() == Some(&SqlState::DEPENDENT_OBJECTS_STILL_EXIST) => {
                    steps.push(step.with_detail("the schema holds more than them, and stays"));
                }
                Err(error) => steps.push(step.with_detail(format!("the schema stays: {}", cause(&error)))),
            }
            Ok(())
        }
    }
}

/// Takes from a role what would hold it: rights in the schema, where that still exists.
pub(super) async fn revoke_sql(client: &Client, role: &str) -> Result<String, QueryError> {
    let exists = "SELECT to_jsonb(EXISTS (SELECT 1 FROM pg_catalog.pg_namespace WHERE nspname = $1))::text";
    let exists: Option<bool> = json_row(client, "look for walgate's schema", exists, &[SCHEMA]).await?;
    let role = quote_ident(role);
    Ok(match exists {
        Some(true) => format!(
            "REVOKE ALL ON ALL TABLES IN SCHEMA {SCHEMA} FROM {role};\nREVOKE ALL ON SCHEMA {SCHEMA} FROM {role};\n"
        ),
        _ => String::new(),
    })
}

/// $1: the schema.
const TABLES_SQL: &str = "\
SELECT COALESCE(jsonb_agg(c.relname), '[]'::jsonb)::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relkind IN ('r', 'p')";

fn contents_sql(tables: &[&str]) -> String {
    let count = |table: &str| match tables.contains(&table) {
        true => format!("(SELECT count(*) FROM {table})"),
        false => "0".to_owned(),
    };
    let (parked, dead_letters) = (count(PARKED), count(DEAD_LETTERS));
    format!("SELECT jsonb_build_object('parked', {parked}, 'dead_letters', {dead_letters})::text")
}
