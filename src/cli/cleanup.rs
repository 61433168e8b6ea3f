//! `walgate cleanup`: what a clean-up would take, and a person's word about rows from before the slot.

use std::{
    fmt::Write as _,
    io::{self, BufRead, IsTerminal as _, Write},
};

use clap::{ArgGroup, Args};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use walgate_sink::Timestamp;

use super::{
    ConfigArgs, complain, setup,
    tables::{self, Tables},
};
use crate::{
    config::{CleanupMode, Loaded},
    control::{
        Finding, FindingCode, GatewayRow, Link,
        cleanup::{self, CleanupFacts, Plan, Survey},
        gateway,
    },
    error::ExitStatus,
    postgres::ConnectSettings,
    registry::Registry,
};

/// Arguments of `walgate cleanup`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["dry_run", "past_settled"]))]
pub struct CleanupArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Counts what would go, what is settled and kept, and what is not settled. Reads the whole table, and changes
    /// nothing; a gateway may run beside it.
    #[arg(long)]
    dry_run: bool,
    /// Declares that rows from before the slot are not owed to anybody, so that the gateway may clean them up: walgate has
    /// not delivered them, and will not.
    #[arg(long)]
    past_settled: bool,
    /// Does not ask first; needed where standard input is no terminal.
    #[arg(long, requires = "past_settled")]
    yes: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Exit status 0: done; 1: not done; 2: the configuration or the command line is wrong; 3: PostgreSQL cannot be reached,
/// or something there keeps the clean-up off.
pub async fn run(args: CleanupArgs, registry: &Registry) -> ExitStatus {
    let done = if args.dry_run { dry_run(&args, registry).await } else { past_settled(&args, registry).await };
    match done {
        Ok(status) | Err(status) => status,
    }
}

/// A connection as the clean-up makes it. Its driver ends with it.
struct Own {
    client: Client,
    driver: JoinHandle<()>,
}

impl Own {
    async fn open(settings: &ConnectSettings) -> Result<Own, String> {
        let Link { client, driver } =
            setup::connect(settings).await.map_err(|error| format!("the clean-up cannot connect: {error}"))?;
        let driver = tokio::spawn(async move {
            let _ = driver.await;
        });
        Ok(Own { client, driver })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The plan of the configuration; where nothing is to be cleaned up, what `delete` would do.
fn plan(loaded: &Loaded) -> Result<Plan, ExitStatus> {
    let routing = setup::routing(loaded).map_err(|errors| setup::refuse(&errors))?;
    let mut plan = setup::cleanup_plan(&loaded.config, &routing.reader);
    if plan.mode() == CleanupMode::Off {
        plan.cleanup.mode = CleanupMode::Delete;
    }
    Ok(plan)
}

/// What stands in the way of the clean-up that is configured, for `walgate check`: `found` is what was found otherwise.
pub async fn findings(loaded: &Loaded, plan: &Plan, source: &ConnectSettings, found: &[Finding]) -> Vec<Finding> {
    let unusable = [FindingCode::ParkingAbsent, FindingCode::ParkingDenied, FindingCode::ParkingPublished];
    let mut findings = Vec::new();
    if found.iter().any(|finding| unusable.contains(&finding.code)) {
        findings.push(Finding::error(
            FindingCode::CleanupNeedsTables,
            format!(
                "`cleanup.mode: {}` needs walgate's own tables, which say what is settled: make them with `walgate init \
                 --apply`",
                plan.mode().as_str()
            ),
        ));
    }
    let failed = |error: String| vec![Finding::error(FindingCode::QueryFailed, error)];
    let looked = async {
        let settings = setup::cleanup_settings(loaded, source).map_err(|errors| failed(errors.to_string()))?;
        let theirs = Own::open(source).await.map_err(failed)?;
        let ours = Own::open(&settings).await.map_err(failed)?;
        let query = |error: crate::control::QueryError| failed(error.to_string());
        let there = cleanup::place(&theirs.client, &plan.table).await.map_err(query)?;
        let here = cleanup::place(&ours.client, &plan.table).await.map_err(query)?;
        if let Some(why) = here.zip(there).and_then(|(here, there)| cleanup::elsewhere(&here, &there, plan)) {
            return Ok(vec![Finding::error(FindingCode::CleanupElsewhere, why)]);
        }
        let facts = cleanup::read_facts(&ours.client, plan).await.map_err(query)?;
        Ok::<_, Vec<Finding>>(cleanup::judge(&facts, plan))
    };
    findings.extend(looked.await.unwrap_or_else(|findings| findings));
    findings
}

/// What is known, and a connection to the outbox.
struct Look {
    tables: Tables,
    plan: Plan,
    known: GatewayRow,
    own: Result<(Own, CleanupFacts), String>,
}

impl Look {
    async fn at(args: &CleanupArgs, registry: &Registry) -> Result<Look, ExitStatus> {
        let loaded = setup::load(&args.config, registry)?;
        let plan = plan(&loaded)?;
        let tables = Tables::open(&loaded).await?;
        let known = gateway::read(&tables.client, &tables.slot).await.map_err(|error| tables::refuse(&error))?;
        let Some((known, _)) = known else {
            complain(&format!(
                "walgate.gateway knows nothing of slot `{}` yet: let `walgate run` stream from it once",
                tables.slot
            ));
            return Err(ExitStatus::Environment);
        };
        let source = setup::settings(&loaded).map_err(|errors| setup::refuse(&errors))?;
        let settings = setup::cleanup_settings(&loaded, &source).map_err(|errors| setup::refuse(&errors))?;
        let own = async {
            let own = Own::open(&settings).await?;
            let text = |error: crate::control::QueryError| error.to_string();
            let there = cleanup::place(&tables.client, &plan.table).await.map_err(text)?;
            let here = cleanup::place(&own.client, &plan.table).await.map_err(text)?;
            if let Some(why) = here.zip(there).and_then(|(here, there)| cleanup::elsewhere(&here, &there, &plan)) {
                return Err(why);
            }
            let facts = cleanup::read_facts(&own.client, &plan).await.map_err(text)?;
            Ok((own, facts))
        };
        let own = own.await;
        Ok(Look { tables, plan, known, own })
    }

    async fn survey(&self) -> Result<Survey, String> {
        let (own, facts) = self.own.as_ref().map_err(Clone::clone)?;
        let counted = cleanup::survey(&own.client, facts, &self.plan, self.known.mark, self.known.birth).await;
        counted.map_err(|error| error.to_string())
    }
}

async fn dry_run(args: &CleanupArgs, registry: &Registry) -> Result<ExitStatus, ExitStatus> {
    let look = Look::at(args, registry).await?;
    let found = match &look.own {
        Ok((_, facts)) => cleanup::judge(facts, &look.plan),
        Err(_) => Vec::new(),
    };
    let survey = look.survey().await.map_err(|error| {
        for finding in found.iter().filter(|finding| finding.blocks()) {
            complain(&finding.to_string());
        }
        complain(&error);
        ExitStatus::Environment
    })?;
    let text = if args.json {
        let Look { plan, known, .. } = &look;
        let report = json!({
            "table": plan.table.to_string(),
            "mode": plan.mode(),
            "retain": plan.cleanup.retain,
            "mark": known.mark,
            "noted_at": Timestamp(known.written_at).to_string(),
            "past_settled": known.past_settled,
            "count": survey,
            "findings": found,
        });
        format!("{report:#}\n")
    } else {
        render(&look, &survey, &found)
    };
    // Nobody reads a closed pipe.
    let _ = anstream::stdout().write_all(text.as_bytes());
    Ok(if found.iter().any(Finding::blocks) { ExitStatus::Environment } else { ExitStatus::Ok })
}

fn render(look: &Look, survey: &Survey, found: &[Finding]) -> String {
    let Look { plan, known, .. } = look;
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = render_into(&mut out, plan, known, survey, found);
    out
}

fn render_into(
    out: &mut String,
    plan: &Plan,
    known: &GatewayRow,
    survey: &Survey,
    found: &[Finding],
) -> std::fmt::Result {
    let count = &survey.count;
    writeln!(
        out,
        "{}: {} rows, {} as of {}",
        plan.table,
        count.rows,
        plan.mode().as_str(),
        Timestamp(known.written_at)
    )?;
    writeln!(out, "  would go      {}", count.would_go)?;
    let why = if plan.mode() == CleanupMode::Mark {
        format!("settled; younger than {}, or marked already ({})", plan.cleanup.retain, count.marked)
    } else {
        format!("settled; younger than {}, or without an age", plan.cleanup.retain)
    };
    writeln!(out, "  kept          {} ({why})", count.settled_kept)?;
    writeln!(out, "  not settled   {} (owed to a sink, or it is not known)", count.not_settled)?;
    for partition in &survey.partitions {
        let why = partition.why.unwrap_or("would go");
        writeln!(out, "  partition     {}: {} rows, {why}", partition.name, partition.rows)?;
    }
    match known.mark {
        Some(mark) => writeln!(out, "  mark          all before transaction {} is settled ({})", mark.xmin, mark.lsn)?,
        None => writeln!(out, "  mark          none yet: nothing is known to be settled")?,
    }
    if !known.past_settled {
        writeln!(
            out,
            "nothing goes yet: it is not settled what becomes of rows from before the slot (at least {}); `walgate \
             recover --adopt` sends them, `walgate cleanup --past-settled` says that nobody waits for them",
            count.before_slot
        )?;
    }
    for finding in found {
        writeln!(out, "{finding}")?;
    }
    Ok(())
}

async fn past_settled(args: &CleanupArgs, registry: &Registry) -> Result<ExitStatus, ExitStatus> {
    if !args.yes && !io::stdin().is_terminal() {
        complain(
            "rows that nobody has delivered may be deleted then, and standard input is no terminal on which to ask: \
             say --yes",
        );
        return Err(ExitStatus::Configuration);
    }
    let look = Look::at(args, registry).await?;
    let Look { known, tables, plan, .. } = &look;
    let already = known.past_settled;
    let rows = look.survey().await.ok().map(|survey| survey.count.before_slot);
    if !already && !args.yes {
        // Where the question cannot be seen, the answer is no.
        let question = question(plan, rows);
        if !ask_first(&question, &mut io::stdin().lock(), &mut anstream::stderr()).unwrap_or(false) {
            let _ = writeln!(anstream::stderr(), "nothing was changed");
            return Err(ExitStatus::Runtime);
        }
    }
    let settled = already
        || gateway::settle_past(&tables.client, &tables.slot, known.birth)
            .await
            .map_err(|error| tables::refuse(&error))?;
    if !settled {
        complain("the slot has another birth by now: look again (`walgate cleanup --dry-run`)");
        return Err(ExitStatus::Runtime);
    }
    let said = if already {
        "it was settled already: rows from before the slot are not owed to anybody".to_owned()
    } else {
        format!("rows of {} from before the slot are not owed to anybody now: the clean-up may take them", plan.table)
    };
    let text = if args.json {
        format!("{:#}\n", json!({ "slot": tables.slot, "past_settled": true, "was_settled": already, "rows": rows }))
    } else {
        format!("{said}\n")
    };
    let _ = anstream::stdout().write_all(text.as_bytes());
    Ok(ExitStatus::Ok)
}

fn question(plan: &Plan, rows: Option<u64>) -> String {
    let rows = rows.map_or_else(|| "an unknown number of".to_owned(), |rows| format!("at least {rows}"));
    format!(
        "{} holds {rows} rows from before the slot, which walgate has not delivered. Let the clean-up take them, though \
         nobody may have got them? [y/N] ",
        plan.table
    )
}

fn ask_first(question: &str, answers: &mut dyn BufRead, out: &mut dyn Write) -> io::Result<bool> {
    write!(out, "{question}")?;
    out.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Cleanup,
        control::{
            Mark, TableName,
            cleanup::{Count, PartitionCount},
        },
    };

    #[test]
    fn a_dry_run_says_what_would_go_and_why_the_rest_stays() {
        let table = TableName::new("public", "outbox_events");
        let cleanup = Cleanup { mode: CleanupMode::DropPartitions, ..Cleanup::default() };
        let plan = Plan { cleanup, table, slot: "walgate".to_owned() };
        let known = GatewayRow {
            term: 3,
            system_id: "7".into(),
            timeline: 1,
            confirmed: walgate_sink::Lsn(0x1_0000_0100),
            birth: 700,
            born_at: 0,
            past_settled: false,
            mark: Some(Mark { xmin: 812, lsn: walgate_sink::Lsn(0x1_0000_0080) }),
            written_at: 1_700_000_000_000_000,
        };
        let partition = |name: &str, rows, why: Option<&'static str>| PartitionCount {
            name: name.to_owned(),
            rows,
            would_go: why.is_none(),
            why,
        };
        let survey = Survey {
            count: Count { rows: 130, would_go: 100, settled_kept: 20, not_settled: 10, before_slot: 5, marked: 0 },
            partitions: vec![
                partition("public.outbox_1", 100, None),
                partition("public.outbox_2", 30, Some("its range has not ended long enough ago")),
            ],
        };
        let mut out = String::new();
        render_into(&mut out, &plan, &known, &survey, &[]).unwrap();
        insta::assert_snapshot!("dry_run", out);
    }

    #[test]
    fn only_a_yes_is_a_yes() {
        for (answer, yes) in [("y\n", true), (" yes \n", true), ("\n", false), ("", false), ("yep\n", false)] {
            let mut out = Vec::new();
            assert_eq!(ask_first("sure? ", &mut answer.as_bytes(), &mut out).unwrap(), yes, "{answer:?}");
            assert_eq!(out, b"sure? ");
        }
    }
}
