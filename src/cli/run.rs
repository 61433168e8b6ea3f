//! `walgate run`: delivers events until it is stopped.

use std::time::Duration;

use clap::Args;
use tokio::sync::{mpsc, watch};
use walgate_sink::Lsn;

use super::{
    ConfigArgs, complain,
    lanes::{self, Fixed},
    reload,
    setup::{self, Routing},
    signals, systemd,
};
use crate::{
    admin::{self, Wish, Writes},
    checkpoint::Checkpoint,
    config::{Config, Listen, Loaded, WalSenderTimeout, listen_address},
    control::{self, Finding, Link, LinkError, Parking, Preflight, Session, SessionOptions, Severity, Term, Wanted},
    error::ExitStatus,
    metrics::{Metrics, Routes},
    pipeline::{
        BudgetWatch, Course, Gateway, Generation, Identity, Intake, Lanes, Pulse, Reload, SourceState, StatusBoard,
        Summary,
    },
    postgres::ConnectSettings,
    registry::Registry,
    source::StreamOptions,
    telemetry,
};

/// Arguments of `walgate run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Creates publication and slot first, if neither exists. Never drops, re-creates or advances a slot.
    #[arg(long)]
    create: bool,
    /// Goes on from a slot that was advanced, or made again, by somebody else: what was committed in between is not
    /// delivered.
    #[arg(long)]
    accept_gap: bool,
}

/// Pause between two looks at a server that cannot be reached.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Runs the gateway.
pub async fn run(args: RunArgs, registry: &Registry) -> ExitStatus {
    telemetry::log_panics();
    let pulse = Pulse::default();
    match pulse.of(start(args, registry, pulse.clone())).await {
        Ok(status) | Err(status) => status,
    }
}

async fn start(args: RunArgs, registry: &Registry, pulse: Pulse) -> Result<ExitStatus, ExitStatus> {
    let loaded = setup::load(&args.config, registry)?;
    let settings = setup::settings(&loaded).map_err(|errors| setup::refuse(&errors))?;
    let cleanup_settings = setup::cleanup_settings(&loaded, &settings).map_err(|errors| setup::refuse(&errors))?;
    let mut routing = setup::routing(&loaded).map_err(|errors| setup::refuse(&errors))?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    for warning in routing.warnings() {
        tracing::warn!("{warning}");
    }
    let stop = watch::Sender::new(false);
    let (wish, wishes) = mpsc::channel(1);
    signals::listen(stop.clone(), wish.clone());

    let metrics = Metrics::new();
    let board = board(&loaded, &settings, &routing, &metrics);
    serve_admin(&loaded, &board, wish).await?;
    systemd::tell(board.clone(), pulse, stop.subscribe());
    let sinks: Vec<String> = loaded.sinks.iter().map(|sink| format!("{} ({})", sink.name, sink.kind)).collect();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        server = %settings,
        slot = loaded.config.source.slot,
        publication = loaded.config.source.publication,
        table = %routing.reader.table(),
        sinks = sinks.join(", "),
        admin = loaded.config.admin.listen,
        "starting"
    );

    let mut stopped = stop.subscribe();
    let found = tokio::select! {
        _ = stopped.wait_for(|stop| *stop) => return Ok(ExitStatus::Ok),
        found = look_until_ready(&settings, &loaded, &routing, &board, &args) => found?,
    };
    for finding in &found.warnings {
        tell(finding);
    }
    let slot = loaded.config.source.slot.clone();
    let confirmed = found.facts.slots.slot.as_ref().and_then(|slot| slot.confirmed_flush_lsn).unwrap_or(Lsn::ZERO);
    let session = open_session(&slot, &settings);
    // WAL from before `publish_via_partition_root` was set carries the partitions' own names.
    for partition in found.facts.table.iter().flat_map(|table| &table.partitions) {
        routing.reader.include(*partition);
    }
    let usable = found.facts.parking() == Parking::Usable;
    if !usable {
        refuse_what_needs_tables(&loaded)?;
    }
    let Loaded { config, sinks, .. } = loaded;
    let routes = Routes::default();
    let term = Term::default();
    let fixed = Fixed {
        settings: &settings,
        cleanup_settings: &cleanup_settings,
        metrics: &metrics,
        routes: &routes,
        tables: usable,
        term: &term,
    };
    let generation = lanes::generation(&config, sinks, routing, &fixed);
    let (reload, reloads) = mpsc::channel(1);
    let mut gateway = assemble(config.clone(), generation, &fixed, session, board, confirmed, reloads);
    gateway.accept_gap = args.accept_gap;
    let reloading = reload::serve(&args.config, registry, &config, &fixed, wishes, reload);
    let ended = tokio::select! {
        ended = gateway.run(stop) => ended,
        never = reloading => match never {},
    };
    match ended {
        Ok(summary) => {
            say_goodbye(&slot, &summary);
            Ok(ExitStatus::Ok)
        }
        Err(error) => {
            complain(&error.to_string());
            Err(ExitStatus::Runtime)
        }
    }
}

fn board(loaded: &Loaded, settings: &ConnectSettings, routing: &Routing, metrics: &Metrics) -> StatusBoard {
    let config = &loaded.config;
    let identity = Identity {
        version: env!("CARGO_PKG_VERSION"),
        slot: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        table: routing.reader.table().to_string(),
        server: settings.to_string(),
    };
    StatusBoard::new(identity, config.limits.inflight.0, config.admin.stuck_after.0, metrics.clone())
}

async fn serve_admin(loaded: &Loaded, board: &StatusBoard, wish: mpsc::Sender<Wish>) -> Result<(), ExitStatus> {
    // The address was checked when the configuration was loaded.
    let Ok(Listen::At(host, port)) = listen_address(&loaded.config.admin.listen) else { return Ok(()) };
    let listener = admin::bind(&host, port).await.map_err(|message| {
        complain(&message);
        ExitStatus::Environment
    })?;
    let token = loaded.config.admin.token.clone();
    tokio::spawn(admin::serve(listener, board.clone(), Writes::new(token, wish)));
    Ok(())
}

fn open_session(slot: &str, settings: &ConnectSettings) -> Session {
    let settings = settings.clone();
    Session::spawn(SessionOptions::new(slot), move || {
        let settings = settings.clone();
        async move { setup::connect(&settings).await }
    })
}

fn tell(finding: &Finding) {
    match finding.severity {
        Severity::Info => tracing::info!(code = ?finding.code, "{finding}"),
        _ => tracing::warn!(code = ?finding.code, "{finding}"),
    }
}

/// Looks at the server until nothing stands in the way, or until it is plain that somebody has to mend something.
async fn look_until_ready(
    settings: &ConnectSettings,
    loaded: &Loaded,
    routing: &Routing,
    board: &StatusBoard,
    args: &RunArgs,
) -> Result<Preflight, ExitStatus> {
    let mut wanted = setup::wanted(loaded, routing, settings).standing_by();
    wanted.accept_gap = args.accept_gap;
    let mut said = String::new();
    let mut create = args.create;
    loop {
        let (state, why) = match setup::connect(settings).await {
            Ok(Link { client, driver }) => {
                let driver = tokio::spawn(driver);
                let looked = look(&client, &wanted, &mut create).await;
                driver.abort();
                match looked? {
                    Ok(found) => return Ok(found),
                    Err(waits) => waits,
                }
            }
            Err(error) if error.needs_somebody() => {
                complain(&cannot_connect(&error));
                return Err(ExitStatus::Environment);
            }
            Err(error) => (SourceState::Starting, cannot_connect(&error)),
        };
        board.source(state, Some(why.clone()));
        if why != said {
            tracing::warn!(reason = why, "not started yet; trying again every second");
            said = why;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// One look, on a connection of its own. `Ok(Err(..))`: it may pass by itself.
async fn look(
    client: &tokio_postgres::Client,
    wanted: &Wanted,
    create: &mut bool,
) -> Result<Result<Preflight, (SourceState, String)>, ExitStatus> {
    if *create {
        create_slot(client, wanted).await?;
        *create = false;
    }
    match control::preflight(client, wanted).await {
        Ok(found) => Ok(Ok(found)),
        Err(findings) if control::only_waits(&findings) => Ok(Err((SourceState::Standby, sentences(&findings)))),
        Err(findings) if client.is_closed() => Ok(Err((SourceState::Starting, sentences(&findings)))),
        Err(findings) => {
            for finding in findings.iter().filter(|finding| finding.severity == Severity::Error) {
                complain(&finding.to_string());
            }
            Err(ExitStatus::Environment)
        }
    }
}

fn cannot_connect(error: &LinkError) -> String {
    format!("cannot connect to PostgreSQL: {error}")
}

fn sentences(findings: &[Finding]) -> String {
    let blocking: Vec<String> = findings.iter().filter(|f| f.blocks()).map(ToString::to_string).collect();
    blocking.join("; ")
}

async fn create_slot(client: &tokio_postgres::Client, wanted: &Wanted) -> Result<(), ExitStatus> {
    match control::create_if_absent(client, wanted).await {
        Ok(created) => {
            tracing::info!("{created}");
            Ok(())
        }
        Err(finding) => {
            complain(&finding.to_string());
            Err(ExitStatus::Environment)
        }
    }
}

/// What cannot be done without walgate's own tables must not be taken for granted.
fn refuse_what_needs_tables(loaded: &Loaded) -> Result<(), ExitStatus> {
    let needs = lanes::needs_tables(&loaded.config, &loaded.sinks);
    for need in &needs {
        complain(&format!(
            "{need} needs walgate's own tables, which this database does not have, or which the role may not use: \
             make them with `walgate init --apply`, or choose another answer; `walgate check --connect` says more"
        ));
    }
    if needs.is_empty() { Ok(()) } else { Err(ExitStatus::Environment) }
}

fn assemble(
    config: Config,
    generation: Generation,
    fixed: &Fixed<'_>,
    session: Session,
    board: StatusBoard,
    confirmed: Lsn,
    reloads: mpsc::Receiver<Reload>,
) -> Gateway {
    let Fixed { settings, cleanup_settings, metrics, tables, term, .. } = *fixed;
    let Generation {
        router,
        reader,
        route_numbers,
        plans,
        unrouted,
        limits,
        wal_budget,
        dead_letters,
        cleanup,
        wanted,
        ..
    } = generation;
    let checkpoint = Checkpoint::new(confirmed);
    let (lanes, endings) = Lanes::start(plans, &checkpoint);
    let course = Course { reader, router, route_numbers, lanes: lanes.handles(), unrouted, limits: limits.clone() };
    let intake = Intake::new(checkpoint.clone(), course, metrics.clone());
    let options = StreamOptions {
        slot: config.source.slot.clone(),
        publication: config.source.publication.clone(),
        nap: config.source.nap.0,
        max_frame: usize::try_from(limits.event.0).unwrap_or(usize::MAX),
        wal_sender_timeout: match config.source.wal_sender_timeout {
            WalSenderTimeout::Of(timeout) => Some(timeout.0),
            WalSenderTimeout::Server => None,
        },
    };
    let budget = BudgetWatch::spawn(session.slots(), &wal_budget, board.clone());
    Gateway {
        settings: settings.clone(),
        options,
        intake,
        checkpoint,
        lanes,
        endings,
        reloads,
        session,
        limits,
        board,
        budget,
        shutdown_timeout: config.shutdown_timeout.0,
        wal_budget,
        dead_letters: watch::Sender::new(dead_letters),
        tables,
        term: term.clone(),
        accept_gap: false,
        bounds: watch::Sender::new(None),
        terms: watch::Sender::new(None),
        wanted: watch::Sender::new(wanted),
        connect: setup::connector(settings.clone()),
        cleanup: watch::Sender::new(cleanup),
        cleanup_connect: setup::connector(cleanup_settings.clone()),
    }
}

fn say_goodbye(slot: &str, summary: &Summary) {
    if summary.unsettled > 0 {
        tracing::warn!(
            unsettled = summary.unsettled,
            "some events were read and not acknowledged: they are delivered at the next start"
        );
    }
    tracing::info!(
        slot,
        lsn = %summary.flush_lsn,
        confirmed = summary.confirmed,
        "stopped. The slot goes on keeping WAL until walgate runs again; to retire it: walgate init --remove"
    );
}
