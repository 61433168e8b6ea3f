//! `walgate replay`: rows that were delivered, once more to one sink. They go through the gateway and its lane like dead
//! letters that somebody retries, so the order of keys holds, live events follow behind them, and slot and checkpoint are
//! not touched.
//!
//! First all of them are written to `walgate.dead_letters`, in one transaction; then a few at a time are asked for. What
//! is left when the command is ended waits there: `--resume` goes on with it.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_postgres::Client;
use walgate_sink::{Secret, Timestamp};

use super::{
    ConfigArgs,
    feed::{self, Feed},
    refusal::{self, Refusal, secret},
    setup,
};
use crate::{
    config::{Loaded, Rate},
    control::{
        Link, gateway,
        parking::{Filter, HoldKey, Parcel, Shelf},
        preflight::read_table,
        recovery::{self, RowFilter, Which},
        requests::{self, Verb},
        slot_status,
    },
    error::ExitStatus,
    postgres::ConnectSettings,
    registry::Registry,
    router::Pattern,
};

/// What the rows are under in `walgate.dead_letters`.
const REASON: &str = "replay";
/// A header that tells a replayed event from others; its value tells one replay from another.
const HEADER: &str = "replay";
/// Deliveries that are written, or asked for, at once.
const BATCH: usize = 500;
/// How long an answer of the gateway may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks whether there is one.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Arguments of `walgate replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The sink.
    #[arg(long, value_name = "SINK")]
    sink: String,
    /// Rows that were inserted then or later, as PostgreSQL reads a time.
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Rows that were inserted before.
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// Rows of these event types, as in a route.
    #[arg(long, value_name = "PATTERN")]
    event_type: Vec<String>,
    /// Rows with these keys.
    #[arg(long, value_name = "KEY")]
    key: Vec<String>,
    /// Rows with these ids.
    #[arg(long, value_name = "ID")]
    id: Vec<String>,
    /// Deliveries a second at the most; the sink's own limit counts too.
    #[arg(long, value_name = "RATE", default_value = "500/s")]
    rate: Rate,
    /// Go on with what an earlier replay to this sink has left.
    #[arg(long, conflicts_with_all = ["from", "to", "event_type", "key", "id", "dry_run"])]
    resume: bool,
    /// The column that says when a row was inserted.
    #[arg(long, value_name = "COLUMN", default_value = "created_at")]
    age: String,
    /// A connection that may read the outbox and write walgate's own tables; the configuration's where it is left out.
    #[arg(long, value_name = "URL", value_parser = secret)]
    admin_url: Option<Secret>,
    /// Count, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
}

/// What was found, and done.
#[derive(Debug, Default, Serialize)]
struct Report {
    sink: String,
    /// The value of the header of its events.
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<String>,
    /// Rows that were read.
    rows: u64,
    /// Deliveries to the sink.
    deliveries: u64,
    /// Those that the gateway has taken.
    taken: u64,
}

/// Exit status 0: the gateway has taken all of it; 1: not, or not all of it; 2: the configuration or the command line is
/// wrong; 3: something around walgate is missing.
pub async fn run(args: ReplayArgs, registry: &Registry) -> ExitStatus {
    match replay(&args, registry).await {
        Ok(report) => {
            show(&args, &report);
            ExitStatus::Ok
        }
        Err(refusal) => refusal.complain(),
    }
}

async fn replay(args: &ReplayArgs, registry: &Registry) -> Result<Report, Refusal> {
    let loaded = setup::load(&args.config, registry).map_err(Refusal::said)?;
    loaded.sink(&args.sink).map_err(|message| Refusal::new(ExitStatus::Configuration, message))?;
    let settings = refusal::settings(&loaded, args.admin_url.as_ref())?;
    let Link { client, driver } = refusal::connect(&settings).await?;
    let driver = tokio::spawn(driver);
    let result = with_client(args, &loaded, &settings, &client).await;
    driver.abort();
    result
}

async fn with_client(
    args: &ReplayArgs,
    loaded: &Loaded,
    settings: &ConnectSettings,
    client: &Client,
) -> Result<Report, Refusal> {
    let slot = &loaded.config.source.slot;
    let mut report = Report { sink: args.sink.clone(), ..Report::default() };
    if !args.resume {
        write(args, loaded, settings, client, &mut report).await?;
        if args.dry_run || report.deliveries == 0 {
            return Ok(report);
        }
    }
    let status = slot_status(client, slot).await.map_err(Refusal::environment)?;
    if !status.is_some_and(|status| status.active) {
        return Err(Refusal::new(
            ExitStatus::Runtime,
            format!(
                "no gateway reads slot `{slot}`: the deliveries wait in walgate.dead_letters (reason `{REASON}`); start walgate, \
                 and go on with `walgate replay --sink {} --resume`",
                args.sink
            ),
        ));
    }
    ask(args, slot, client, &mut report).await?;
    Ok(report)
}

/// Writes what is wanted to `walgate.dead_letters`, all or nothing.
async fn write(
    args: &ReplayArgs,
    loaded: &Loaded,
    settings: &ConnectSettings,
    client: &Client,
    report: &mut Report,
) -> Result<(), Refusal> {
    let routing = setup::routing(loaded).map_err(|errors| Refusal::said(setup::refuse(&errors)))?;
    let wanted = setup::wanted(loaded, &routing, settings);
    let slot = &wanted.slot;
    let table = read_table(client, &wanted).await.map_err(Refusal::environment)?;
    let table = table.ok_or_else(|| Refusal::environment(format!("table {} does not exist", wanted.table)))?;
    let known = gateway::read(client, slot).await.map_err(|error| {
        Refusal::environment(format!(
            "{error}; a replay goes through walgate's own tables: `walgate init --apply` makes them"
        ))
    })?;
    let known = known.filter(|(row, system_id)| row.mark.is_some() && row.system_id == *system_id);
    let known = known.map(|(row, _)| row).ok_or_else(|| {
        Refusal::environment(
            "nothing is known to be settled yet: only rows that every sink has settled are sent again, and the gateway has \
             to run for some seconds for that to be known",
        )
    })?;
    let patterns = args.event_type.iter().map(|text| Pattern::parse(text)).collect::<Result<Vec<_>, _>>();
    let patterns =
        patterns.map_err(|error| Refusal::new(ExitStatus::Configuration, format!("--event-type: {error}")))?;
    let age = Some(args.age.clone()).filter(|age| feed::has(&table, age));
    if age.is_none() && (args.from.is_some() || args.to.is_some()) {
        let message = format!(
            "the outbox has no column `{}`: name the one that says when a row was inserted with --age",
            args.age
        );
        return Err(Refusal::environment(message));
    }
    let mut feed =
        Feed::new(loaded, routing, &table, Which::Settled { known }, age.clone()).map_err(Refusal::environment)?;
    let columns = &loaded.config.outbox.columns;
    let filters = &mut feed.selection.filters;
    if let Some(age) = age {
        filters.extend(args.from.clone().map(|time| RowFilter::Since(age.clone(), time)));
        filters.extend(args.to.clone().map(|time| RowFilter::Before(age, time)));
    }
    if !args.id.is_empty() {
        filters.push(RowFilter::OneOf(columns.id.clone(), args.id.clone()));
    }
    if !args.key.is_empty() {
        let Some(key) = columns.key.as_ref().and_then(|key| key.column()) else {
            let message = "--key needs a key that is a column (outbox.columns.key)".to_owned();
            return Err(Refusal::new(ExitStatus::Configuration, message));
        };
        filters.push(RowFilter::OneOf(key.clone(), args.key.clone()));
    }
    let sink = loaded.sinks.iter().position(|sink| sink.name == args.sink).unwrap_or(usize::MAX);
    recovery::begin(client, None).await.map_err(Refusal::environment)?;
    // Rows that wait would be passed by.
    let parked = "SELECT count(*) FROM walgate.parked WHERE slot = $1 AND sink = $2";
    let left = "SELECT count(*) FROM walgate.dead_letters WHERE slot = $1 AND sink = $2 AND reason = 'replay'";
    for (sql, what) in [
        (parked, "deliveries are parked for it: wait until they are delivered"),
        (left, "deliveries of an earlier replay wait: go on with --resume, or `walgate dlq drop --reason replay`"),
    ] {
        let rows = count(client, sql, slot, &args.sink).await?;
        if rows > 0 {
            return Err(Refusal::new(ExitStatus::Runtime, format!("sink `{}`: {rows} {what}", args.sink)));
        }
    }
    let run = Timestamp::now().to_string();
    let position = client.query_typed_one("SELECT pg_catalog.pg_current_wal_insert_lsn()::text", &[]).await;
    let position = position.and_then(|row| row.try_get::<_, String>(0)).map_err(Refusal::environment)?;
    feed.open(client, position.parse().map_err(Refusal::environment)?).await.map_err(Refusal::environment)?;
    let shelf = Shelf::dead_letters(client).await.map_err(Refusal::environment)?;
    let mut waiting: Vec<Parcel> = Vec::new();
    loop {
        let batch = feed.next(client).await.map_err(Refusal::environment)?;
        let end = batch.is_none();
        for (to, mut parcel) in batch.into_iter().flatten() {
            let event_type = &parcel.delivery.event.event_type;
            let wanted = patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(event_type));
            if to != sink || !wanted || parcel.reason.is_some() {
                continue;
            }
            let headers = &mut parcel.delivery.event.headers;
            let more = (HEADER.into(), run.as_str().into());
            *headers = headers.iter().cloned().chain([more]).collect();
            parcel.hold = Some(HoldKey::of(&parcel.delivery));
            parcel.reason = Some(REASON.into());
            parcel.message = Some(format!("asked for by `walgate replay` at {run}"));
            waiting.push(parcel);
        }
        if !args.dry_run && (waiting.len() >= BATCH || end) && !waiting.is_empty() {
            shelf.put(slot, &args.sink, &waiting).await.map_err(Refusal::environment)?;
        }
        if waiting.len() >= BATCH || end {
            report.deliveries += waiting.len() as u64;
            waiting.clear();
        }
        if end {
            break;
        }
    }
    report.rows = feed.rows;
    report.replay = Some(run);
    let end = if args.dry_run { "ROLLBACK" } else { "COMMIT" };
    client.batch_execute(end).await.map_err(Refusal::environment)
}

async fn count(client: &Client, sql: &str, slot: &str, sink: &str) -> Result<i64, Refusal> {
    use tokio_postgres::types::Type;
    let row =
        client.query_typed_one(sql, &[(&slot, Type::TEXT), (&sink, Type::TEXT)]).await.map_err(Refusal::environment)?;
    row.try_get(0).map_err(Refusal::environment)
}

/// Asks the gateway for a few at a time, until none is left.
async fn ask(args: &ReplayArgs, slot: &str, client: &Client, report: &mut Report) -> Result<(), Refusal> {
    use tokio_postgres::types::Type;
    let next = "SELECT id FROM walgate.dead_letters WHERE slot = $1 AND sink = $2 AND reason = 'replay' \
                ORDER BY commit_lsn, ordinal, delivery LIMIT $3";
    // As many as may go in a second, or one.
    let chunk = u64::from(args.rate.count().get()) / args.rate.period().as_secs().max(1);
    let chunk = i64::try_from(chunk.clamp(1, BATCH as u64)).unwrap_or(1);
    let bar = io::stderr().is_terminal() && !args.json;
    loop {
        let begun = Instant::now();
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
            [(&slot, Type::TEXT), (&args.sink, Type::TEXT), (&chunk, Type::INT8)];
        let rows = client.query_typed(next, &parameters).await.map_err(Refusal::environment)?;
        let ids =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>().map_err(Refusal::environment)?;
        if ids.is_empty() {
            if bar {
                let _ = writeln!(io::stderr());
            }
            return Ok(());
        }
        let few = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        let filter = Filter { ids, reason: Some(REASON.to_owned()), ..Filter::default() };
        let request =
            requests::ask(client, slot, &args.sink, &Verb::Retry(filter)).await.map_err(Refusal::environment)?;
        let answer = loop {
            if let Some(answer) = requests::answer_of(client, request).await.map_err(Refusal::environment)? {
                break answer;
            }
            if begun.elapsed() > PATIENCE {
                let message = format!(
                    "the gateway has not answered within {} s: what it was asked for (request {request}) stays asked for, and \
                     the rest waits; go on with --resume",
                    PATIENCE.as_secs()
                );
                return Err(Refusal::new(ExitStatus::Runtime, message));
            }
            sleep(LOOK_AGAIN).await;
        };
        if answer.failed {
            return Err(Refusal::new(ExitStatus::Runtime, format!("the gateway refuses: {}", answer.outcome)));
        }
        report.taken += answer.affected;
        if bar {
            let _ = write!(
                io::stderr(),
                "\r{} of {} deliveries are on their way",
                report.taken,
                report.deliveries.max(report.taken)
            );
            let _ = io::stderr().flush();
        }
        let due = args.rate.period().mul_f64(f64::from(few) / f64::from(args.rate.count().get()));
        sleep_until(begun + due).await;
    }
}

fn show(args: &ReplayArgs, report: &Report) {
    let mut out = anstream::stdout();
    let _ = match (args.json, args.dry_run) {
        (true, _) => writeln!(out, "{}", serde_json::to_string(report).unwrap_or_default()),
        (false, true) => writeln!(
            out,
            "{} deliveries of {} settled rows would be sent to sink `{}` once more",
            report.deliveries, report.rows, report.sink
        ),
        (false, false) => writeln!(
            out,
            "{} deliveries are on their way to sink `{}` once more: `walgate status` shows them as parked until it has them",
            report.taken, report.sink
        ),
    };
}
