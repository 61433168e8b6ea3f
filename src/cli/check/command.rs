//! The command: offline, and with `--connect` on to PostgreSQL and the sinks.

use std::{io::Write, time::Duration};

use anstyle::{AnsiColor, Style};
use clap::Args;
use serde_json::json;
use walgate_sink::SinkContext;

use super::{RouteRow, check_offline};
use crate::{
    cli::{
        ConfigArgs, cleanup,
        setup::{self, Routing},
    },
    config::{self, CleanupMode, KeyPath, Loaded, Sink},
    control::{self, Finding, FindingCode, Link, Severity},
    error::ExitStatus,
    registry::Registry,
};

/// Arguments of `walgate check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Goes on to PostgreSQL and the sinks: connects, looks, changes nothing and sends no event.
    #[arg(long)]
    connect: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// What one sink's check said.
struct SinkAnswer<'a> {
    name: &'a str,
    kind: &'a str,
    error: Option<String>,
    warnings: Vec<String>,
}

/// Exit status 0: sound; 2: the configuration is not; 3: PostgreSQL or a sink is not as it must be.
pub async fn run(args: CheckArgs, registry: &Registry) -> ExitStatus {
    let refuse = |errors: &config::ConfigErrors| {
        if args.json {
            // Nobody reads a closed pipe.
            let _ = writeln!(anstream::stdout(), "{:#}", errors.to_json());
            ExitStatus::Configuration
        } else {
            setup::refuse(errors)
        }
    };
    let loaded = match setup::sources(&args.config) {
        Ok(sources) => match config::load_with_routes(sources, registry, &setup::route_faults) {
            Ok(loaded) => loaded,
            Err(errors) => return refuse(&errors),
        },
        Err(message) => {
            crate::cli::complain(&message);
            return ExitStatus::Configuration;
        }
    };
    let parts = setup::settings(&loaded).and_then(|settings| Ok((settings, setup::routing(&loaded)?)));
    let (settings, routing) = match parts {
        Ok(parts) => parts,
        Err(errors) => return refuse(&errors),
    };
    let rows: Vec<RouteRow> = routing
        .router
        .table()
        .into_iter()
        .map(|row| RouteRow { patterns: vec![row.pattern], when: row.when, sink: row.sink, target: row.target })
        .collect();
    let place = |route: Option<usize>, sink: &str| match route {
        Some(route) => KeyPath::root().key("routes").index(route),
        None => KeyPath::root().key("sinks").key(sink),
    };
    let warnings: Vec<config::Warning> = routing
        .warnings()
        .iter()
        .map(|warning| loaded.warning_at(place(warning.route, &warning.sink), &warning.message))
        .collect();
    let mut out = anstream::stdout();
    let offline = args.json && args.connect;
    if !offline && check_offline(&loaded, &rows, &warnings, args.json, &mut out).is_err() {
        return ExitStatus::Runtime;
    }
    if !args.connect {
        return ExitStatus::Ok;
    }
    let findings = look(&loaded, &routing, &settings).await;
    let answers = futures_util::future::join_all(loaded.sinks.iter().map(ask)).await;
    let sound = !findings.iter().any(|finding| finding.severity == Severity::Error)
        && answers.iter().all(|answer| answer.error.is_none());
    let printed = if args.json {
        as_json(&findings, &answers, sound, &mut out)
    } else {
        as_text(&settings.to_string(), &findings, &answers, &mut out)
    };
    match (printed, sound) {
        (Ok(()), true) => ExitStatus::Ok,
        _ => ExitStatus::Environment,
    }
}

/// Everything that PostgreSQL has to say, good or bad.
async fn look(loaded: &Loaded, routing: &Routing, settings: &crate::postgres::ConnectSettings) -> Vec<Finding> {
    let mut wanted = setup::wanted(loaded, routing, settings);
    wanted.count_rows = true;
    let mut found = match setup::connect(settings).await {
        Ok(Link { client, driver }) => {
            let driver = tokio::spawn(driver);
            let looked = control::preflight(&client, &wanted).await;
            driver.abort();
            match looked {
                Ok(found) => found.warnings,
                Err(findings) => findings,
            }
        }
        Err(error) => return vec![Finding::error(FindingCode::QueryFailed, error.to_string())],
    };
    if loaded.config.cleanup.mode != CleanupMode::Off {
        let plan = setup::cleanup_plan(&loaded.config, &routing.reader);
        let more = cleanup::findings(loaded, &plan, settings, &found).await;
        found.extend(more);
    }
    found
}

/// Connects one sink and asks it, within the time of one attempt.
async fn ask(sink: &Sink) -> SinkAnswer<'_> {
    let patience = sink.delivery.timeout.0.max(Duration::from_secs(1));
    let asked = async {
        let context = SinkContext::new(sink.name.as_str(), sink.delivery.timeout.0);
        let connected = sink.factory.connect(&sink.settings, context).await?;
        let answer = connected.check().await;
        let warnings = connected.warnings();
        connected.close().await;
        answer.map(|()| warnings)
    };
    let (error, warnings) = match tokio::time::timeout(patience, asked).await {
        Ok(Ok(warnings)) => (None, warnings),
        Ok(Err(error)) => (Some(error.to_string()), Vec::new()),
        Err(_) => (Some(format!("no answer within {} s", patience.as_secs())), Vec::new()),
    };
    SinkAnswer { name: &sink.name, kind: &sink.kind, error, warnings }
}

fn as_text(server: &str, findings: &[Finding], answers: &[SinkAnswer<'_>], out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out)?;
    let mark = |severity: Option<Severity>| {
        let (color, word) = match severity {
            None => (AnsiColor::Green, "ok"),
            Some(Severity::Info) => (AnsiColor::Cyan, "note"),
            Some(Severity::Warning | Severity::Wait) => (AnsiColor::Yellow, "warning"),
            Some(Severity::Error) => (AnsiColor::Red, "error"),
        };
        let style: Style = color.on_default().bold();
        format!("{style}{word}{style:#}")
    };
    if !findings.iter().any(Finding::blocks) {
        writeln!(out, "{}: PostgreSQL {server} is ready", mark(None))?;
    }
    for finding in findings {
        writeln!(out, "{}: {finding}", mark(Some(finding.severity)))?;
    }
    for SinkAnswer { name, kind, error, warnings } in answers {
        match error {
            None => writeln!(out, "{}: sink {name} ({kind}) answers", mark(None))?,
            Some(error) => writeln!(out, "{}: sink {name} ({kind}): {error}", mark(Some(Severity::Error)))?,
        }
        for warning in warnings {
            writeln!(out, "{}: sink {name} ({kind}): {warning}", mark(Some(Severity::Warning)))?;
        }
    }
    Ok(())
}

fn as_json(findings: &[Finding], answers: &[SinkAnswer<'_>], sound: bool, out: &mut dyn Write) -> std::io::Result<()> {
    let sinks: Vec<_> = answers
        .iter()
        .map(|answer| {
            let SinkAnswer { name, kind, error, warnings } = answer;
            json!({ "name": name, "kind": kind, "ok": error.is_none(), "error": error, "warnings": warnings })
        })
        .collect();
    writeln!(out, "{:#}", json!({ "ok": sound, "postgres": findings, "sinks": sinks }))
}
