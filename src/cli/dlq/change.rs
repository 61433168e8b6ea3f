//! `walgate dlq retry` and `walgate dlq drop`: a request for each sink that has such dead letters.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, IsTerminal as _, Write},
};

use clap::Args;

use super::filter::FilterArgs;
use crate::{
    cli::{
        ConfigArgs,
        ask::{self, AnswerArgs},
        complain, setup, tables,
        tables::Tables,
    },
    config::Loaded,
    control::{
        dead_letters::{self, Group, Selection, Shelf},
        parking::{DEAD_LETTERS, Filter},
        requests::Verb,
    },
    error::ExitStatus,
    registry::Registry,
    telemetry::escaped,
};

/// Arguments of `walgate dlq retry`.
#[derive(Debug, Args)]
pub struct RetryArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Every dead letter: needed where nothing else is named.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    answer: AnswerArgs,
}

/// Arguments of `walgate dlq drop`.
#[derive(Debug, Args)]
pub struct DropArgs {
    #[command(flatten)]
    what: RetryArgs,
    /// Does not ask first; needed where standard input is no terminal.
    #[arg(long)]
    yes: bool,
}

/// Has dead letters attempted again.
pub async fn retry(args: &RetryArgs, registry: &Registry) -> Result<ExitStatus, ExitStatus> {
    change(args, Verb::Retry, None, registry).await
}

/// Has dead letters deleted.
pub async fn drop(args: &DropArgs, registry: &Registry) -> Result<ExitStatus, ExitStatus> {
    if !args.yes && !io::stdin().is_terminal() {
        complain("drop deletes for good, and standard input is no terminal on which to ask: say --yes");
        return Err(ExitStatus::Configuration);
    }
    let confirm: Option<fn(u64) -> bool> = if args.yes { None } else { Some(confirmed) };
    change(&args.what, Verb::Drop, confirm, registry).await
}

async fn change(
    args: &RetryArgs,
    verb: fn(Filter) -> Verb,
    confirm: Option<fn(u64) -> bool>,
    registry: &Registry,
) -> Result<ExitStatus, ExitStatus> {
    let refuse = |message: &str| {
        complain(message);
        ExitStatus::Configuration
    };
    match (args.all, args.filter.is_empty()) {
        (false, true) => {
            return Err(refuse(
                "this would concern every dead letter: name those that you mean (--sink, --type, --reason, --id and the \
                 like), or say --all",
            ));
        }
        (true, false) => return Err(refuse("--all and a choice of some contradict each other: leave one out")),
        _ => {}
    }
    let loaded = setup::load(&args.config, registry)?;
    let selection = args.filter.selection(&loaded).map_err(|message| refuse(&message))?;
    let tables = Tables::open(&loaded).await?;
    let groups = dead_letters::count(&tables.client, Shelf::DeadLetters, &selection)
        .await
        .map_err(|error| tables::refuse(&error))?;
    let (sinks, strangers) = by_sink(&groups, &loaded);
    for (sink, rows) in &strangers {
        let (sink, slot) = (escaped(sink), &tables.slot);
        complain(&format!(
            "no sink `{sink}` is configured, so nobody can be asked about its dead letters ({rows}), and they are left \
             alone: bring the sink back, or delete them from {DEAD_LETTERS} where slot is '{slot}' and sink is '{sink}'"
        ));
    }
    if sinks.is_empty() {
        if !strangers.is_empty() {
            return Err(ExitStatus::Runtime);
        }
        // Standard error may be closed: then nobody reads it.
        let _ = writeln!(anstream::stderr(), "no dead letter fits (slot {}): nothing was asked for", tables.slot);
        return Ok(ExitStatus::Ok);
    }
    let (sinks, refused) = match verb(Filter::default()) {
        Verb::Retry(_) => without_unsendable(sinks, &tables, &selection).await?,
        _ => (sinks, false),
    };
    if sinks.is_empty() {
        return Err(ExitStatus::Runtime);
    }
    let rows = sinks.iter().map(|(_, rows)| rows).sum();
    if confirm.is_some_and(|confirm| !confirm(rows)) {
        let _ = writeln!(anstream::stderr(), "nothing was asked for");
        return Err(ExitStatus::Runtime);
    }
    let wanted = sinks.into_iter().map(|(sink, _)| (sink, verb(selection.filter.clone()))).collect();
    let status = ask::ask(&tables, wanted, &args.answer).await?;
    Ok(if strangers.is_empty() && !refused { status } else { ExitStatus::Runtime })
}

/// Refuses what was kept without its payload. The sinks that have others to attempt again, and whether anything was
/// refused; of those sinks the gateway says what it leaves alone.
async fn without_unsendable(
    sinks: Counted,
    tables: &Tables,
    selection: &Selection,
) -> Result<(Counted, bool), ExitStatus> {
    let mut kept = Vec::new();
    let mut refused = false;
    for (sink, rows) in sinks {
        let selection = Selection { sink: Some(sink.clone()), ..selection.clone() };
        let unsendable =
            dead_letters::unsendable(&tables.client, &selection).await.map_err(|error| tables::refuse(&error))?;
        match unsendable.sentence(&sink).filter(|_| unsendable.others == 0) {
            Some(why) => {
                refused = true;
                complain(&escaped(&why));
            }
            None => kept.push((sink, rows)),
        }
    }
    Ok((kept, refused))
}

/// Sinks with their rows.
type Counted = Vec<(String, u64)>;

/// The rows of each sink that the gateway has, events without a route among them; and of each that it does not have.
fn by_sink(groups: &[Group], loaded: &Loaded) -> (Counted, Counted) {
    let mut counted = BTreeMap::new();
    for group in groups {
        *counted.entry(group.sink.clone()).or_insert(0) += group.rows;
    }
    counted.into_iter().partition(|(sink, _)| sink.is_empty() || loaded.sink(sink).is_ok())
}

/// Asks on the terminal.
fn confirmed(rows: u64) -> bool {
    // Where the question cannot be seen, the answer is no.
    ask_first(rows, &mut io::stdin().lock(), &mut anstream::stderr()).unwrap_or(false)
}

fn ask_first(rows: u64, answers: &mut dyn BufRead, out: &mut dyn Write) -> io::Result<bool> {
    let what = if rows == 1 { "one dead letter".to_owned() } else { format!("{rows} dead letters") };
    write!(out, "delete {what} for good? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    answers.read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for (answer, yes) in
            [("y\n", true), (" yes \n", true), ("\n", false), ("", false), ("n\n", false), ("yep\n", false)]
        {
            let mut out = Vec::new();
            assert_eq!(ask_first(12, &mut answer.as_bytes(), &mut out).unwrap(), yes, "{answer:?}");
            assert_eq!(out, b"delete 12 dead letters for good? [y/N] ");
        }
        assert!(ask_first(1, &mut [255, b'y', b'\n'].as_slice(), &mut Vec::new()).is_err());
    }
}
