//! `walgate dlq show`.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde::Serialize;
use serde_json::Value;

use super::{list::json, sink_or_none};
use crate::{
    cli::{ConfigArgs, complain, setup, tables, tables::Tables},
    control::{
        dead_letters::{self, Shelf, Whole},
        slot::human_bytes,
    },
    error::ExitStatus,
    registry::Registry,
    telemetry::escaped,
};

/// Arguments of `walgate dlq show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Its number, as `list` shows it.
    #[arg(value_name = "NUMBER")]
    id: i64,
    /// A parked delivery instead.
    #[arg(long)]
    parked: bool,
    /// Shows the payload too, as text where it is UTF-8, and in base64 elsewhere. It may hold personal data.
    #[arg(long)]
    payload: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// One row, and its payload where that was asked for.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Where it was found.
    pub table: Shelf,
    /// Everything else.
    #[serde(flatten)]
    pub row: Whole,
    /// The payload, where that was asked for.
    #[serde(flatten)]
    pub payload: Option<Payload>,
}

/// A payload as it can be shown.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub enum Payload {
    /// Bytes in UTF-8.
    #[serde(rename = "payload")]
    Text(String),
    /// Other bytes.
    #[serde(rename = "payload_base64")]
    Base64(String),
}

impl Payload {
    /// Of these bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Payload::Text(text),
            Err(error) => Payload::Base64(STANDARD.encode(error.as_bytes())),
        }
    }
}

/// Shows.
pub async fn run(args: &ShowArgs, registry: &Registry) -> Result<ExitStatus, ExitStatus> {
    let loaded = setup::load(&args.config, registry)?;
    let shelf = if args.parked { Shelf::Parked } else { Shelf::DeadLetters };
    let tables = Tables::open(&loaded).await?;
    let row = dead_letters::whole(&tables.client, shelf, &tables.slot, args.id)
        .await
        .map_err(|error| tables::refuse(&error))?;
    let Some(row) = row else {
        let what = if args.parked { "parked delivery" } else { "dead letter" };
        complain(&format!(
            "there is no {what} {} of slot `{}`: `walgate dlq list` shows their numbers",
            args.id, tables.slot
        ));
        return Err(ExitStatus::Runtime);
    };
    let mut payload = None;
    if args.payload {
        let bytes = dead_letters::payload(&tables.client, shelf, &tables.slot, args.id)
            .await
            .map_err(|error| tables::refuse(&error))?;
        payload = bytes.map(Payload::of);
    }
    let shown = Shown { table: shelf, row, payload };
    let text = if args.json { json(&shown) } else { render(&shown) };
    // Nobody reads a closed pipe.
    let _ = anstream::stdout().write_all(text.as_bytes());
    Ok(ExitStatus::Ok)
}

/// For people.
pub fn render(shown: &Shown) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = render_into(&mut out, shown);
    out
}

fn render_into(out: &mut String, shown: &Shown) -> fmt::Result {
    let Shown { table, row, payload } = shown;
    let line = &row.line;
    let bold = anstyle::Style::new().bold();
    let (what, since) = match table {
        Shelf::DeadLetters => ("dead letter", "dead since"),
        Shelf::Parked => ("parked delivery", "parked since"),
    };
    let sink = match line.sink.as_str() {
        "" => "of an event without a route".to_owned(),
        name => format!("of sink {}", escaped(sink_or_none(name))),
    };
    writeln!(out, "{bold}{what} {} {sink}{bold:#}, {since} {}", line.id, escaped(&line.stored_at))?;
    let mut field = |name: &str, value: &str| writeln!(out, "  {name:<13}{value}");
    let or_none = |text: Option<&str>| text.map_or_else(|| "none".to_owned(), escaped);
    field("event", &format!("{}, type {}", escaped(&line.event_id), escaped(&line.event_type)))?;
    field("key", &or_none(line.event_key.as_deref()))?;
    field(
        "position",
        &format!("{}#{}, committed {}", escaped(&row.commit_lsn), row.ordinal, escaped(&row.committed_at)),
    )?;
    field("route", &escaped(&row.route))?;
    each(&mut field, "target", pairs(&row.target))?;
    field("ordering key", &or_none(row.ordering_key.as_deref()))?;
    field("dedup id", &escaped(&row.dedup_id))?;
    match (table, &line.hold_key) {
        (Shelf::DeadLetters, _) => {}
        (Shelf::Parked, Some(hold_key)) => field("waits for", &format!("its key ({})", escaped(hold_key)))?,
        (Shelf::Parked, None) => field("waits for", "its sink")?,
    }
    match (&line.reason, &row.message) {
        (Some(reason), Some(message)) => field("reason", &format!("{}: {}", escaped(reason), escaped(message)))?,
        (Some(reason), None) => field("reason", &escaped(reason))?,
        (None, _) => {}
    }
    field("attempts", &line.attempts.to_string())?;
    let errors = row.errors.as_ref().and_then(Value::as_array).into_iter().flatten();
    for failed in errors.filter(|failed| failed.is_object()) {
        let text = |name: &str| failed[name].as_str().map(escaped);
        let unknown = || "?".to_owned();
        let what = text("error").or_else(|| text("kind")).unwrap_or_else(unknown);
        field("", &format!("{}  {what}", text("at").unwrap_or_else(unknown)))?;
    }
    if line.without_payload {
        field("headers", NOT_KEPT)?;
        field("payload", NOT_KEPT)?;
        let id = escaped(&line.event_id);
        return writeln!(
            out,
            "\nIt cannot be sent again. To have the event delivered, insert a copy of the outbox's row with the id {id} \
             under a new id."
        );
    }
    each(&mut field, "headers", row.headers.as_ref().map(pairs).unwrap_or_default())?;
    let size = match row.payload_bytes {
        Some(bytes) => format!("{}, {}", escaped(&row.payload_format), human_bytes(bytes)),
        None => "none (NULL)".to_owned(),
    };
    let hidden = payload.is_none() && row.payload_bytes.is_some();
    field("payload", &if hidden { format!("{size} (--payload shows it)") } else { size })?;
    match payload {
        None => Ok(()),
        Some(Payload::Text(text)) => {
            let lines: Vec<String> = text.split('\n').map(escaped).collect();
            writeln!(out, "\n{}", lines.join("\n"))
        }
        Some(Payload::Base64(text)) => writeln!(out, "\nbase64:{text}"),
    }
}

/// In place of what `dead_letters.payload: omit` leaves out.
const NOT_KEPT: &str = "not kept (dead_letters.payload: omit)";

/// A name before the first of several values.
fn each(field: &mut impl FnMut(&str, &str) -> fmt::Result, name: &str, values: Vec<(String, String)>) -> fmt::Result {
    if values.is_empty() {
        return field(name, "none");
    }
    for (number, (key, value)) in values.iter().enumerate() {
        field(if number == 0 { name } else { "" }, &format!("{}={}", escaped(key), escaped(value)))?;
    }
    Ok(())
}

/// Members of an object, or a list of pairs: a header may come twice.
fn pairs(value: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match value {
        Value::Object(members) => members.iter().map(|(name, value)| (name.clone(), text(value))).collect(),
        Value::Array(entries) => entries.iter().map(|entry| (text(&entry[0]), text(&entry[1]))).collect(),
        _ => Vec::new(),
    }
}
