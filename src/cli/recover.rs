//! `walgate recover`: what the slot does not say any more, the outbox's rows do. Those that may be undelivered are parked
//! for their sinks, in the order of their insertion, and a new slot goes on behind them; or, with `--adopt`, those that are
//! older than the slot.
//!
//! Everything that is written is written in one transaction. Killed before its end, there is a new slot at the most, which
//! `run` refuses, because it stands where nothing was confirmed: the command is run again.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};

use clap::Args;
use serde::Serialize;
use walgate_sink::{Lsn, Secret};

use super::{
    ConfigArgs,
    feed::{self, Feed},
    refusal::{self, Refusal, secret},
    setup::{self, Routing},
};
use crate::{
    config::{Loaded, Unrouted},
    control::{
        Link, SlotReport, Wanted,
        gateway::{self, GatewayRow},
        parking::{Parcel, Shelf},
        preflight::read_table,
        recovery::{self, Counts, Which},
        slot::{WalStatus, human_bytes},
        slot_report,
    },
    error::ExitStatus,
    postgres::ConnectSettings,
    registry::Registry,
    source::ExportedSlot,
    telemetry::{failpoint, sentence},
};

/// Deliveries that are written at once.
const WRITE: usize = 1000;

/// Arguments of `walgate recover`.
#[derive(Debug, Args)]
pub struct RecoverArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// A connection that may read the outbox, write walgate's own tables and make a slot; the configuration's where it is
    /// left out. Give the password by PGPASSWORD or a passfile.
    #[arg(long, value_name = "URL", value_parser = secret)]
    admin_url: Option<Secret>,
    /// The slot is sound: send the rows that the outbox held before the slot was made.
    #[arg(long)]
    adopt: bool,
    /// Leave out rows from before the slot's birth: they were sent by other means, or are not owed.
    #[arg(long, conflicts_with = "adopt")]
    without_past: bool,
    /// Only rows in which this column is not true.
    #[arg(long, value_name = "COLUMN")]
    unpublished: Option<String>,
    /// The column that says when a row was inserted: rows are sent in its order.
    #[arg(long, value_name = "COLUMN", default_value = "created_at")]
    age: String,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Report as JSON.
    #[arg(long)]
    json: bool,
}

/// What was found, and done.
#[derive(Debug, Default, Serialize)]
struct Report {
    slot: String,
    /// What is wrong with the slot, in a sentence.
    found: String,
    /// Where what may be lost begins and ends in the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Lsn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Lsn>,
    #[serde(flatten)]
    counts: Counts,
    /// Whether it was done.
    done: bool,
    /// Where the new slot begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    begins: Option<Lsn>,
    /// Rows that were read.
    events: u64,
    /// Deliveries that were parked, by sink.
    parked: BTreeMap<String, u64>,
    /// Rows without a route.
    unrouted: u64,
    /// Rows that are no events.
    unusable: u64,
}

/// Exit status 0: done, or nothing to do; 1: it failed half-way, and may be run again; 2: the configuration is wrong, or
/// nobody said yes; 3: something around walgate is missing.
pub async fn run(args: RecoverArgs, registry: &Registry) -> ExitStatus {
    match recover(&args, registry).await {
        Ok(report) => {
            show(&args, &report);
            ExitStatus::Ok
        }
        Err(refusal) => refusal.complain(),
    }
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    let message = format!("{error}. Nothing was parked: run the command again when that is mended");
    Refusal::new(ExitStatus::Runtime, message)
}

/// What the slot is like.
enum Slot {
    /// It does not exist.
    Missing,
    /// It is there, and of no use.
    Useless,
    /// It can be gone on from.
    Sound,
}

async fn recover(args: &RecoverArgs, registry: &Registry) -> Result<Report, Refusal> {
    let loaded = setup::load(&args.config, registry).map_err(Refusal::said)?;
    let settings = refusal::settings(&loaded, args.admin_url.as_ref())?;
    let routing = setup::routing(&loaded).map_err(|errors| Refusal::said(setup::refuse(&errors)))?;
    let Link { client, driver } = refusal::connect(&settings).await?;
    let driver = tokio::spawn(driver);
    let wanted = setup::wanted(&loaded, &routing, &settings);
    let result = with_client(args, &loaded, routing, &settings, &wanted, &client).await;
    driver.abort();
    result
}

async fn with_client(
    args: &RecoverArgs,
    loaded: &Loaded,
    routing: Routing,
    settings: &ConnectSettings,
    wanted: &Wanted,
    client: &tokio_postgres::Client,
) -> Result<Report, Refusal> {
    let name = &wanted.slot;
    let slots = slot_report(client, name).await.map_err(Refusal::environment)?;
    let table = read_table(client, wanted).await.map_err(Refusal::environment)?;
    let table = table.ok_or_else(|| Refusal::environment(format!("table {} does not exist", wanted.table)))?;
    let known = gateway::read(client, name).await.map_err(|error| {
        Refusal::environment(format!(
            "{error}; what is recovered waits in walgate's own tables: `walgate init --apply` makes them"
        ))
    })?;
    let (slot, found) = judge(name, &slots, known.as_ref())?;
    // What was written in another cluster says nothing of the rows here.
    let known = known.filter(|(row, system_id)| row.system_id == *system_id).map(|(row, _)| row);
    let mut report = Report { slot: name.clone(), found, ..Report::default() };
    report.from = known.as_ref().map(|row| row.confirmed);
    report.to = slots.current_wal_lsn;
    let which = match (&slot, args.adopt) {
        (Slot::Sound, true) if known.as_ref().is_some_and(|row| row.past_settled) => {
            report.found.push_str("; what is older than it is settled: there is nothing to adopt");
            return Ok(report);
        }
        (Slot::Sound, true) => Which::Past { birth: known.as_ref().map(|row| row.birth) },
        (Slot::Sound, false) => {
            report.found.push_str("; there is nothing to recover. (`--adopt` sends rows that are older than the slot)");
            return Ok(report);
        }
        (_, true) => {
            return Err(Refusal::environment(format!("{}: run `walgate recover` without --adopt first", report.found)));
        }
        (_, false) => Which::Unsettled { known: known.clone(), past: !args.without_past },
    };
    let age = Some(args.age.clone()).filter(|age| feed::has(&table, age));
    let mut feed = Feed::new(loaded, routing, &table, which, age).map_err(Refusal::environment)?;
    if let Some(column) = args.unpublished.as_ref().filter(|column| !feed::has(&table, column)) {
        return Err(Refusal::environment(format!("the outbox has no column `{column}`")));
    }
    feed.selection.unpublished.clone_from(&args.unpublished);
    report.counts = feed.selection.count(client).await.map_err(Refusal::environment)?;
    if args.dry_run {
        return Ok(report);
    }
    ask(args, &report, known.as_ref(), &slot)?;
    let exported = match slot {
        Slot::Sound => None,
        Slot::Missing | Slot::Useless => {
            if matches!(slot, Slot::Useless) {
                recovery::drop_slot(client, name).await.map_err(Refusal::environment)?;
            }
            failpoint("recover.dropped");
            Some(ExportedSlot::create(settings, name).await.map_err(Refusal::environment)?)
        }
    };
    failpoint("recover.created");
    // Before everything that the slot sends: a commit record may begin exactly where it does.
    let begins =
        exported.as_ref().map(|slot| slot.consistent_point).or(slots.slot.and_then(|slot| slot.confirmed_flush_lsn));
    let begins = begins.unwrap_or(Lsn::ZERO);
    recovery::begin(client, exported.as_ref().map(|slot| slot.snapshot.as_str())).await.map_err(failed)?;
    park(loaded, &mut feed, client, Lsn(begins.0.saturating_sub(1)), &mut report).await?;
    failpoint("recover.parked");
    match exported {
        Some(_) => recovery::commit_new_slot(client, name, begins, !args.without_past).await.map_err(failed)?,
        None => recovery::commit_past(client, name, begins).await.map_err(failed)?,
    }
    (report.done, report.begins) = (true, Some(begins));
    Ok(report)
}

/// What is wrong with the slot, in a sentence.
fn judge(name: &str, slots: &SlotReport, known: Option<&(GatewayRow, String)>) -> Result<(Slot, String), Refusal> {
    let Some(slot) = &slots.slot else {
        return Ok((Slot::Missing, format!("replication slot `{name}` does not exist")));
    };
    if slot.active {
        let user = slot.user.as_ref().map_or_else(|| "another process".to_owned(), ToString::to_string);
        let message = format!("replication slot `{name}` is being read by {user}: stop walgate first");
        return Err(Refusal::environment(message));
    }
    if slot.wal_status == Some(WalStatus::Lost) || slot.invalidation_reason.is_some() {
        let why = slot.invalidation_reason.as_deref().map(|why| format!(" ({})", sentence(why))).unwrap_or_default();
        let said = format!("replication slot `{name}` is lost{why}: WAL that it needs is gone");
        return Ok((Slot::Useless, said));
    }
    let confirmed = slot.confirmed_flush_lsn.unwrap_or(Lsn::ZERO);
    if let Some((row, system_id)) = known
        && row.gap(name, confirmed, system_id).is_some()
    {
        let said = match row.system_id == *system_id {
            true => format!(
                "replication slot `{name}` stands at {confirmed}, and walgate has confirmed {} at the most: it was advanced \
                 or made again by somebody else",
                row.confirmed
            ),
            false => {
                "the row in walgate.gateway was written in another PostgreSQL cluster: what was delivered there is \
                      not known here"
                    .to_owned()
            }
        };
        return Ok((Slot::Useless, said));
    }
    Ok((Slot::Sound, format!("replication slot `{name}` is sound")))
}

fn ask(args: &RecoverArgs, report: &Report, known: Option<&GatewayRow>, slot: &Slot) -> Result<(), Refusal> {
    if args.yes {
        return Ok(());
    }
    let refused = |message: &str| Refusal::new(ExitStatus::Configuration, message);
    if !io::stdin().is_terminal() {
        return Err(refused("nothing was done: --yes does it without asking, --dry-run says what it would be"));
    }
    let mut out = anstream::stderr();
    let _ = writeln!(out, "{}", describe(args, report));
    if known.is_none() && !args.adopt {
        let _ = writeln!(out, "Nothing is known of what the slot had delivered: every row is sent.");
    }
    let does = match slot {
        Slot::Sound => "The slot stays as it is.",
        Slot::Missing => "A new slot is made.",
        Slot::Useless => "The slot is dropped, and a new one made.",
    };
    let _ = write!(out, "{does} These rows are parked for their sinks, and sent when walgate runs. Go on? [y/N] ");
    let _ = out.flush();
    let mut answer = String::new();
    let _ = io::stdin().lock().read_line(&mut answer);
    match answer.trim().to_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(refused("nothing was done")),
    }
}

/// Parks every row, in order.
async fn park(
    loaded: &Loaded,
    feed: &mut Feed,
    client: &tokio_postgres::Client,
    position: Lsn,
    report: &mut Report,
) -> Result<(), Refusal> {
    feed.open(client, position).await.map_err(failed)?;
    let shelf = Shelf::parked(client).await.map_err(failed)?;
    let mut waiting: BTreeMap<usize, Vec<Parcel>> = BTreeMap::new();
    loop {
        let batch = feed.next(client).await.map_err(failed)?;
        let end = batch.is_none();
        for (sink, parcel) in batch.into_iter().flatten() {
            waiting.entry(sink).or_default().push(parcel);
        }
        for (sink, parcels) in &mut waiting {
            if parcels.is_empty() || (!end && parcels.len() < WRITE) {
                continue;
            }
            let Some(name) = loaded.sinks.get(*sink).map(|sink| sink.name.as_str()) else { continue };
            let put = shelf.put(&loaded.config.source.slot, name, parcels).await.map_err(failed)?;
            *report.parked.entry(name.to_owned()).or_default() += put;
            parcels.clear();
        }
        if end {
            (report.events, report.unrouted, report.unusable) = (feed.rows, feed.unrouted, feed.unusable);
            let left_out = report.unrouted + report.unusable;
            if left_out > 0 && loaded.config.unrouted != Unrouted::Drop {
                return Err(failed(format!(
                    "{left_out} rows match no route, or are no events, and the configuration does not say `unrouted: drop`: add \
                     a route for them, or recover with `--set unrouted=drop`"
                )));
            }
            return Ok(());
        }
    }
}

fn describe(args: &RecoverArgs, report: &Report) -> String {
    let Report { found, from, to, counts, .. } = report;
    let mut text = format!("{found}.");
    if !args.adopt
        && let (Some(from), Some(to)) = (from, to)
    {
        text.push_str(&format!(
            "\nWhat was committed between {from} and {to} ({} of WAL) may be undelivered.",
            human_bytes(to.bytes_since(*from))
        ));
    }
    text.push_str(&format!("\nOf the outbox's {} rows, {} may be undelivered", counts.rows, counts.wanted));
    match counts.past {
        0 => text.push('.'),
        past if args.adopt => text.push_str(&format!(": {past} are from before the slot was made.")),
        past => text.push_str(&format!(
            "; {past} of those are from before the slot was made (--without-past leaves them out)."
        )),
    }
    text.push_str(" Those that were delivered after all are repeated, with the same id.");
    text
}

fn show(args: &RecoverArgs, report: &Report) {
    let mut out = anstream::stdout();
    if args.json {
        let _ = writeln!(out, "{}", serde_json::to_string(report).unwrap_or_default());
        return;
    }
    if !report.done {
        let _ =
            writeln!(out, "{}", if report.counts.rows == 0 { report.found.clone() } else { describe(args, report) });
        return;
    }
    let _ = writeln!(out, "{} rows were read:", report.events);
    for (sink, deliveries) in &report.parked {
        let _ = writeln!(out, "  {deliveries} deliveries are parked for sink `{sink}`");
    }
    if report.unrouted > 0 {
        let _ = writeln!(out, "  {} rows match no route, and are left out", report.unrouted);
    }
    if report.unusable > 0 {
        let _ = writeln!(out, "  {} rows are no events, and are left out", report.unusable);
    }
    let begins = report.begins.map(|lsn| lsn.to_string()).unwrap_or_default();
    let _ =
        writeln!(out, "Slot `{}` goes on from {begins}. Start walgate: it sends what is parked first.", report.slot);
}
