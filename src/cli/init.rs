//! `walgate init`: the SQL that prepares a database and a first configuration, printed or (`--apply`) run and written;
//! `--remove` retires them.

mod files;
mod report;
#[cfg(test)]
mod tests;
mod url;
mod yaml;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use walgate_sink::Secret;

use super::refusal::secret;
use crate::{
    control::{Finding, FindingCode, Inspection, Link, LinkError, Setup, Stopped, TableName},
    error::ExitStatus,
};

use files::Files;
use report::Report;

/// Prepares a database for walgate, or retires it.
///
/// Without --apply or --remove it prints the SQL, commented, and a first configuration; nothing is changed.
#[derive(Clone, Debug, clap::Args)]
pub struct InitArgs {
    /// The outbox table, with or without its schema.
    #[arg(long, default_value = "public.outbox_events")]
    table: String,
    /// The replication slot.
    #[arg(long, default_value = "walgate")]
    slot: String,
    /// The publication.
    #[arg(long, default_value = "walgate_outbox")]
    publication: String,
    /// The role that walgate connects as.
    #[arg(long, default_value = "walgate")]
    role: String,
    /// Make the outbox table too.
    #[arg(long, conflicts_with = "remove")]
    with_table: bool,
    /// Leave walgate's own tables out: what a sink cannot take then stays in the write-ahead log, for all sinks.
    #[arg(long, conflicts_with = "remove")]
    no_parking: bool,
    /// Where --apply writes the configuration. The password of a new role goes beside it, into a file of mode 0600 that
    /// ends in .password.
    #[arg(long, value_name = "FILE", default_value = "walgate.yaml")]
    config: PathBuf,
    /// Print only this part.
    #[arg(long, value_enum, conflicts_with_all = ["apply", "remove"])]
    only: Option<Part>,
    /// Run the SQL, in order, and write the configuration. What exists already is left as it is.
    #[arg(long, requires = "admin_url")]
    apply: bool,
    /// Drop the slot, then the publication, and walgate's own tables if nothing is in them. The outbox is never touched.
    #[arg(long, requires = "admin_url", conflicts_with = "apply")]
    remove: bool,
    /// With --remove: drop the role too.
    #[arg(long, requires = "remove")]
    drop_role: bool,
    /// A connection as administrator, for --apply and --remove. Give the password by PGPASSWORD or a passfile.
    #[arg(long, value_name = "URL", value_parser = secret)]
    admin_url: Option<Secret>,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
}

/// A part of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The SQL.
    Sql,
    /// The configuration.
    Yaml,
}

/// Runs the command; `connect` opens an SQL connection to `--admin-url`.
///
/// # Errors
/// `out` cannot be written.
pub async fn run<F, Fut>(args: InitArgs, connect: F, out: &mut dyn Write) -> io::Result<ExitStatus>
where
    F: FnOnce(Secret) -> Fut,
    Fut: Future<Output = Result<Link, LinkError>>,
{
    let table = TableName::parse(&args.table);
    let setup = table.and_then(|table| {
        let InitArgs { slot, publication, role, with_table, no_parking, .. } = args.clone();
        let setup = Setup { table, slot, publication, role, with_table, parking: !no_parking };
        setup.check().map(|()| setup)
    });
    let setup = match setup {
        Ok(setup) => setup,
        Err(error) => {
            report::refusal(args.json, &error.to_string(), out)?;
            return Ok(ExitStatus::Configuration);
        }
    };
    let Some(admin_url) = args.admin_url.clone().filter(|_| args.apply || args.remove) else {
        return print(&args, &setup, out).map(|()| ExitStatus::Ok);
    };
    let mut report = Report::new(args.json);
    let link = match connect(admin_url.clone()).await {
        Ok(link) => link,
        Err(error) => {
            let message = format!("cannot connect with --admin-url: {error}; nothing was changed");
            report.findings.push(Finding::error(FindingCode::QueryFailed, message));
            report.write(out)?;
            return Ok(ExitStatus::Environment);
        }
    };
    let driver = tokio::spawn(link.driver);
    let done = if args.remove {
        remove(&args, &setup, &link.client, &mut report).await
    } else {
        apply(&args, &setup, &admin_url, &link.client, &mut report).await
    };
    drop(link.client);
    // It ends by itself once the client is gone, after it has said good-bye to the server.
    let _ = driver.await;
    report.done = done;
    report.write(out)?;
    Ok(if done { ExitStatus::Ok } else { ExitStatus::Environment })
}

fn print(args: &InitArgs, setup: &Setup, out: &mut dyn Write) -> io::Result<()> {
    let sql = setup.sql();
    let yaml = yaml::configuration(setup, &yaml::Source::Sample, None);
    if args.json {
        let document = serde_json::json!({ "sql": sql, "config": yaml });
        return writeln!(out, "{document:#}");
    }
    match args.only {
        Some(Part::Sql) => write!(out, "{sql}"),
        Some(Part::Yaml) => write!(out, "{yaml}"),
        None => {
            let file = args.config.display();
            write!(out, "-- ===== SQL (alone: walgate init --only sql) =====\n{sql}\n")?;
            write!(out, "# ===== {file} (alone: walgate init --only yaml) =====\n{yaml}")
        }
    }
}

async fn apply(
    args: &InitArgs,
    setup: &Setup,
    admin_url: &Secret,
    client: &tokio_postgres::Client,
    report: &mut Report,
) -> bool {
    let found = match setup.inspect(client).await {
        Ok(found) => found,
        Err(findings) => {
            report.findings = findings;
            report.nothing_changed = true;
            return false;
        }
    };
    let mut files = match Files::prepare(&args.config, !found.role) {
        Ok(files) => files,
        Err(message) => {
            report.findings.push(Finding::error(FindingCode::StatementFailed, message));
            report.nothing_changed = true;
            return false;
        }
    };
    let applied = setup.apply(client, &found, files.verifier()).await;
    report.findings.clone_from(&found.notes);
    match applied {
        Ok(steps) => report.steps = steps,
        Err(Stopped { steps, finding }) => {
            let role_made = steps.iter().any(|step| step.object == "role");
            report.steps = steps;
            report.findings.push(finding);
            if role_made {
                files.keep_password(&mut report.files);
            }
            return false;
        }
    }
    files.keep_password(&mut report.files);
    write_configuration(setup, admin_url, &found, &files, report)
}

fn write_configuration(
    setup: &Setup,
    admin_url: &Secret,
    found: &Inspection,
    files: &Files,
    report: &mut Report,
) -> bool {
    let source = match url::for_role(admin_url.expose(), &setup.role, &found.database) {
        Some(url) => yaml::Source::Url(url),
        None => yaml::Source::Sample,
    };
    let text = yaml::configuration(setup, &source, files.password_name().as_deref());
    match files.write_configuration(&text) {
        Ok(file) => {
            report.files.push(file);
            true
        }
        Err(message) => {
            report.findings.push(Finding::error(FindingCode::StatementFailed, message));
            report.unwritten = Some(text);
            false
        }
    }
}

async fn remove(args: &InitArgs, setup: &Setup, client: &tokio_postgres::Client, report: &mut Report) -> bool {
    match setup.remove(client, args.drop_role).await {
        Ok(steps) => {
            report.steps = steps;
            true
        }
        Err(Stopped { steps, finding }) => {
            report.steps = steps;
            report.findings.push(finding);
            false
        }
    }
}
