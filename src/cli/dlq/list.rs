//! `walgate dlq list`.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
};

use clap::Args;
use serde::Serialize;

use super::{filter::FilterArgs, sink_or_none};
use crate::{
    cli::{ConfigArgs, complain, setup, tables, tables::Tables},
    control::{
        dead_letters::{self, Group, Line, Shelf},
        slot::human_bytes,
    },
    error::ExitStatus,
    registry::Registry,
    telemetry::{escaped, escaped_json},
};

/// Arguments of `walgate dlq list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    filter: FilterArgs,
    /// Parked deliveries instead: they are owed, and go out by themselves.
    #[arg(long)]
    parked: bool,
    /// Rows that are listed at the most; all of them are counted.
    #[arg(long, value_name = "ROWS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

impl ListArgs {
    #[cfg(test)]
    pub fn filter(&self) -> &FilterArgs {
        &self.filter
    }
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The gateway's slot.
    pub slot: String,
    /// Where it was looked.
    pub table: Shelf,
    /// All of them, counted.
    pub rows: u64,
    /// By sink and reason.
    pub groups: Vec<Group>,
    /// The first of them.
    pub list: Vec<Line>,
}

/// Lists.
pub async fn run(args: &ListArgs, registry: &Registry) -> Result<ExitStatus, ExitStatus> {
    let loaded = setup::load(&args.config, registry)?;
    let selection = args.filter.selection(&loaded).map_err(|message| {
        complain(&message);
        ExitStatus::Configuration
    })?;
    let shelf = if args.parked { Shelf::Parked } else { Shelf::DeadLetters };
    let tables = Tables::open(&loaded).await?;
    let groups =
        dead_letters::count(&tables.client, shelf, &selection).await.map_err(|error| tables::refuse(&error))?;
    let list = dead_letters::list(&tables.client, shelf, &selection, args.limit)
        .await
        .map_err(|error| tables::refuse(&error))?;
    let rows = groups.iter().map(|group| group.rows).sum();
    let found = Found { slot: selection.slot, table: shelf, rows, groups, list };
    let text = if args.json { json(&found) } else { render(&found) };
    // Nobody reads a closed pipe.
    let _ = anstream::stdout().write_all(text.as_bytes());
    Ok(ExitStatus::Ok)
}

/// As JSON that a terminal can show.
pub fn json(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    format!("{}\n", escaped_json(&text))
}

/// For people.
pub fn render(found: &Found) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = render_into(&mut out, found);
    out
}

fn render_into(out: &mut String, found: &Found) -> fmt::Result {
    let Found { slot, table, rows, groups, list } = found;
    let one = *rows == 1;
    let what = match table {
        Shelf::DeadLetters if one => "dead letter",
        Shelf::DeadLetters => "dead letters",
        Shelf::Parked if one => "parked delivery",
        Shelf::Parked => "parked deliveries",
    };
    if *rows == 0 {
        return writeln!(out, "no {what} (slot {slot})");
    }
    let bytes = groups.iter().map(|group| group.bytes).sum();
    writeln!(out, "{rows} {what} (slot {slot}), {}\n", human_bytes(bytes))?;
    let mut counts = vec![["rows", "sink", "reason", "oldest", "newest"].map(str::to_owned).to_vec()];
    counts.extend(groups.iter().map(|group| {
        vec![
            group.rows.to_string(),
            cell(sink_or_none(&group.sink), 64),
            cell(group.reason.as_deref().unwrap_or("-"), 40),
            to_the_second(&group.oldest),
            to_the_second(&group.newest),
        ]
    }));
    columns(out, &counts)?;
    writeln!(out)?;
    let (since, last) = match table {
        Shelf::DeadLetters => ("dead since", "reason"),
        Shelf::Parked => ("parked since", "waits for"),
    };
    let mut lines =
        vec![["id", "sink", since, "event type", "event id", "key", last, "attempts"].map(str::to_owned).to_vec()];
    lines.extend(list.iter().map(|line| {
        let last = match table {
            Shelf::DeadLetters if line.without_payload => {
                format!("{} (no payload)", cell(line.reason.as_deref().unwrap_or("-"), 27))
            }
            Shelf::DeadLetters => cell(line.reason.as_deref().unwrap_or("-"), 40),
            Shelf::Parked if line.hold_key.is_some() => "its key".to_owned(),
            Shelf::Parked => "its sink".to_owned(),
        };
        vec![
            line.id.to_string(),
            cell(sink_or_none(&line.sink), 64),
            to_the_second(&line.stored_at),
            cell(&line.event_type, 40),
            cell(&line.event_id, 40),
            cell(line.event_key.as_deref().unwrap_or("-"), 40),
            last,
            line.attempts.to_string(),
        ]
    }));
    columns(out, &lines)?;
    let without_payload: u64 = groups.iter().map(|group| group.without_payload).sum();
    if without_payload > 0 {
        writeln!(
            out,
            "\n{without_payload} without payload (dead_letters.payload: omit): they cannot be retried; `walgate dlq show` says \
             what can be done"
        )?;
    }
    let listed = list.len() as u64;
    if listed < *rows {
        let which = match table {
            Shelf::DeadLetters => "newest",
            Shelf::Parked => "next",
        };
        writeln!(out, "\nthe {which} {listed} of {rows} (--limit)")?;
    }
    Ok(())
}

/// A text of a table: on its line, and no wider than so many characters.
fn cell(text: &str, most: usize) -> String {
    let beginning: String = text.chars().take(most + 1).collect();
    let plain = escaped(&beginning);
    if plain.chars().count() <= most {
        return plain;
    }
    plain.chars().take(most.saturating_sub(3)).chain("...".chars()).collect()
}

/// `2026-03-01T12:00:00.123456Z` without its fraction.
fn to_the_second(time: &str) -> String {
    match time.split_once('.') {
        Some((whole, _)) => format!("{}Z", escaped(whole)),
        None => escaped(time),
    }
}

/// Rows whose cells stand under one another; the first is the head.
fn columns(out: &mut String, rows: &[Vec<String>]) -> fmt::Result {
    let count = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let bold = anstyle::Style::new().bold();
    for (number, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            write!(line, "{cell:<width$}  ")?;
        }
        let line = line.trim_end();
        if number == 0 { writeln!(out, "{bold}{line}{bold:#}")? } else { writeln!(out, "{line}")? }
    }
    Ok(())
}
