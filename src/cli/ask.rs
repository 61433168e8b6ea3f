//! Asking the gateway for something, through the table of requests, and waiting for its answer.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep};
use walgate_sink::HumanDuration;

use super::{
    complain,
    tables::{self, Tables},
};
use crate::{
    control::{
        self,
        requests::{self, Answer, Verb},
    },
    error::ExitStatus,
    telemetry::{escaped, escaped_json},
};

/// Pause between two looks whether there is an answer.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How an answer is waited for, and shown.
#[derive(Debug, Args)]
pub struct AnswerArgs {
    /// How long to wait for the gateway's answer. What was asked for stays asked for.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    wait: HumanDuration,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// One request, and what came of it so far.
#[derive(Debug, Serialize)]
struct Asked {
    /// Its number.
    request: i64,
    /// The sink; empty: events without a route.
    sink: String,
    /// What was asked for.
    verb: &'static str,
    /// There is an answer.
    answered: bool,
    /// It could not be done.
    failed: Option<bool>,
    /// The answer, in a sentence.
    outcome: Option<String>,
    /// Rows that it concerned.
    affected: Option<u64>,
}

/// What is shown in the end.
#[derive(Debug, Serialize)]
struct Report {
    /// The gateway's slot.
    slot: String,
    /// Who reads the slot, where an answer is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    slot_read_by: Option<String>,
    /// What was asked for, in order.
    requests: Vec<Asked>,
}

/// Asks each sink's lane for something, and waits. Exit status 0: all of it was done; 1: something was not, or not yet.
pub async fn ask(tables: &Tables, wanted: Vec<(String, Verb)>, args: &AnswerArgs) -> Result<ExitStatus, ExitStatus> {
    let mut report = Report { slot: tables.slot.clone(), slot_read_by: None, requests: Vec::new() };
    let waited = match put(tables, wanted, &mut report).await {
        Ok(()) => wait(tables, &mut report, args.wait.0).await,
        Err(error) if report.requests.is_empty() => return Err(tables::refuse(&error)),
        Err(error) => Err(error),
    };
    if waited.is_ok() && report.requests.iter().any(|asked| !asked.answered) {
        report.slot_read_by = reader(tables).await;
    }
    let text = match args.json {
        true => json(&report),
        // Where waiting was cut short, nothing is known of who would answer.
        false => render(&report, waited.is_ok().then_some(args.wait)),
    };
    // Nobody reads a closed pipe.
    let _ = anstream::stdout().write_all(text.as_bytes());
    if let Err(error) = waited {
        complain(&format!("{error}; what is listed as waiting stays asked for"));
        return Err(ExitStatus::Environment);
    }
    let done = report.requests.iter().all(|asked| asked.failed == Some(false));
    Ok(if done { ExitStatus::Ok } else { ExitStatus::Runtime })
}

async fn put(tables: &Tables, wanted: Vec<(String, Verb)>, report: &mut Report) -> Result<(), control::QueryError> {
    for (sink, verb) in wanted {
        let request = requests::ask(&tables.client, &tables.slot, &sink, &verb).await?;
        report.requests.push(Asked::new(request, sink, verb.as_str()));
    }
    Ok(())
}

async fn wait(tables: &Tables, report: &mut Report, longest: Duration) -> Result<(), control::QueryError> {
    let started = Instant::now();
    loop {
        for asked in report.requests.iter_mut().filter(|asked| !asked.answered) {
            if let Some(answer) = requests::answer_of(&tables.client, asked.request).await? {
                asked.take(answer);
            }
        }
        if report.requests.iter().all(|asked| asked.answered) || started.elapsed() >= longest {
            return Ok(());
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Who reads the slot: then somebody is there to answer.
async fn reader(tables: &Tables) -> Option<String> {
    let slot = control::slot_status(&tables.client, &tables.slot).await.ok().flatten()?;
    slot.active.then(|| slot.user.map_or_else(|| "another process".to_owned(), |user| user.to_string()))
}

impl Asked {
    fn new(request: i64, sink: String, verb: &'static str) -> Self {
        Asked { request, sink, verb, answered: false, failed: None, outcome: None, affected: None }
    }

    fn take(&mut self, answer: Answer) {
        let Answer { failed, outcome, affected } = answer;
        self.answered = true;
        (self.failed, self.outcome, self.affected) = (Some(failed), Some(outcome), Some(affected));
    }
}

fn json(report: &Report) -> String {
    format!("{}\n", escaped_json(&serde_json::to_string_pretty(report).unwrap_or_default()))
}

fn render(report: &Report, waited: Option<HumanDuration>) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = render_into(&mut out, report, waited);
    out
}

fn render_into(out: &mut String, report: &Report, waited: Option<HumanDuration>) -> fmt::Result {
    use anstyle::AnsiColor::{Green, Red, Yellow};
    for asked in &report.requests {
        let (color, word) = match (asked.answered, asked.failed) {
            (false, _) => (Yellow, "waits"),
            (true, Some(false)) => (Green, "done"),
            (true, _) => (Red, "failed"),
        };
        let style = color.on_default().bold();
        let about = match asked.sink.as_str() {
            "" => "events without a route".to_owned(),
            name => format!("sink {}", escaped(name)),
        };
        write!(out, "{style}{word:<6}{style:#}  {} for {about} (request {})", asked.verb, asked.request)?;
        match &asked.outcome {
            Some(outcome) => writeln!(out, ": {}", escaped(outcome))?,
            None => writeln!(out)?,
        }
    }
    let Some(waited) = waited.filter(|_| report.requests.iter().any(|asked| !asked.answered)) else { return Ok(()) };
    let slot = &report.slot;
    match &report.slot_read_by {
        Some(user) => writeln!(
            out,
            "no answer within {waited}, though slot `{slot}` is read by {}: what waits stays asked for, and is done when \
             the gateway comes to it; see its log",
            escaped(user)
        ),
        None => writeln!(
            out,
            "no answer within {waited}, and nobody reads slot `{slot}`: what waits stays asked for, and is done when \
             `walgate run` runs for that slot"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_of_it_and_what_still_waits() {
        let asked = |request, sink: &str, verb, answer: Option<(bool, &str, u64)>| {
            let mut asked = Asked::new(request, sink.to_owned(), verb);
            if let Some((failed, outcome, affected)) = answer {
                asked.take(Answer { failed, outcome: outcome.into(), affected });
            }
            asked
        };
        let mut report = Report {
            slot: "walgate".into(),
            slot_read_by: None,
            requests: vec![
                asked(1, "partner", "retry", Some((false, "3 dead letters are attempted again", 3))),
                asked(2, "bus", "skip", Some((true, "no event \u{1b}[31m is held", 0))),
            ],
        };
        let ten = Some(HumanDuration(Duration::from_secs(10)));
        let mut shown = vec![render(&report, ten)];
        report.requests.push(asked(3, "", "drop", None));
        shown.push(render(&report, ten));
        shown.push(render(&report, None));
        report.slot_read_by = Some("PID 42 (role walgate)".into());
        shown.push(render(&report, Some(HumanDuration(Duration::ZERO))));
        shown.push(json(&report));
        let shown = anstream::adapter::strip_str(&shown.join("---\n")).to_string();
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("requests_text", shown);
        });
    }
}
