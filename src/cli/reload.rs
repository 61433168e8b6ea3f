//! Reads the configuration again while the gateway runs: at SIGHUP, and at `POST /reload`.

use std::convert::Infallible;

use tokio::sync::{mpsc, oneshot};

use super::{
    ConfigArgs,
    lanes::{self, Fixed},
    setup,
};
use crate::{
    admin::Wish,
    config::{self, Config, Loaded},
    control::{self, Finding, FindingCode, Link, Severity},
    pipeline::Reload,
    registry::Registry,
};

/// Answers wishes, one after another, for as long as it is polled. `first` is the configuration that the process began
/// with.
pub async fn serve(
    args: &ConfigArgs,
    registry: &Registry,
    first: &Config,
    fixed: &Fixed<'_>,
    mut wishes: mpsc::Receiver<Wish>,
    gateway: mpsc::Sender<Reload>,
) -> Infallible {
    loop {
        let Some(wish) = wishes.recv().await else { std::future::pending().await };
        let outcome = reload(args, registry, first, fixed, &gateway).await;
        fixed.metrics.reloaded(outcome.is_ok());
        if let Some(answer) = wish.answer {
            let _ = answer.send(outcome);
        }
    }
}

/// What is in force now, or why nothing has changed; that is in the log too.
async fn reload(
    args: &ConfigArgs,
    registry: &Registry,
    first: &Config,
    fixed: &Fixed<'_>,
    gateway: &mpsc::Sender<Reload>,
) -> Result<String, String> {
    let loaded = prepare(args, registry, first, fixed).await.inspect_err(|why| {
        tracing::error!("configuration not reloaded, the old one stays in force: {why}");
    })?;
    let routing = setup::routing(&loaded).map_err(|errors| errors.to_string())?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let Loaded { config, sinks, .. } = loaded;
    let generation = Box::new(lanes::generation(&config, sinks, routing, fixed));
    let (answer, answered) = oneshot::channel();
    // The gateway logs what comes of it.
    if gateway.send(Reload { generation, answer }).await.is_err() {
        return Err("walgate is stopping".to_owned());
    }
    answered.await.unwrap_or_else(|_| Err("walgate is stopping".to_owned()))
}

/// A configuration that can be gone over to.
async fn prepare(args: &ConfigArgs, registry: &Registry, first: &Config, fixed: &Fixed<'_>) -> Result<Loaded, String> {
    let sources = setup::sources(args)?;
    let loaded =
        config::load_with_routes(sources, registry, &setup::route_faults).map_err(|errors| errors.to_string())?;
    let routing = setup::routing(&loaded).map_err(|errors| errors.to_string())?;
    let fixed_keys = what_needs_a_restart(first, &loaded.config);
    if !fixed_keys.is_empty() {
        return Err(format!(
            "{} cannot change while walgate runs: restart it for that (a second walgate beside this one, as standby, takes \
             over at once)",
            fixed_keys.join(", ")
        ));
    }
    if !fixed.tables
        && let Some(need) = lanes::needs_tables(&loaded.config, &loaded.sinks).first()
    {
        return Err(format!(
            "{need} needs walgate's own tables, which were not there, or not to be used, when this process started: make \
             them with `walgate init --apply`, and restart walgate"
        ));
    }
    look(&loaded, &routing, fixed).await?;
    Ok(loaded)
}

/// Keys that differ and that only a restart applies.
fn what_needs_a_restart(first: &Config, now: &Config) -> Vec<&'static str> {
    let secret = |secret: &Option<walgate_sink::Secret>| secret.as_ref().map(|secret| secret.expose().to_owned());
    let text = |value: &config::Outbox| serde_json::to_string(value).unwrap_or_default();
    let (before, after) = (&first.source, &now.source);
    let differs = [
        ("source.url", secret(&before.url) != secret(&after.url)),
        ("source.password", secret(&before.password) != secret(&after.password)),
        ("source.slot", before.slot != after.slot),
        ("source.publication", before.publication != after.publication),
        ("source.nap", before.nap != after.nap),
        ("cleanup.url", secret(&first.cleanup.url) != secret(&now.cleanup.url)),
        ("outbox", text(&first.outbox) != text(&now.outbox)),
        ("limits.event", first.limits.event.0 != now.limits.event.0),
        ("admin.listen", first.admin.listen != now.admin.listen),
        ("admin.token", secret(&first.admin.token) != secret(&now.admin.token)),
        ("admin.stuck_after", first.admin.stuck_after != now.admin.stuck_after),
        ("shutdown_timeout", first.shutdown_timeout != now.shutdown_timeout),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

/// Whether the table has the columns that the new routes read: a stream that meets one that is missing ends.
async fn look(loaded: &Loaded, routing: &setup::Routing, fixed: &Fixed<'_>) -> Result<(), String> {
    let wanted = setup::wanted(loaded, routing, fixed.settings);
    let Link { client, driver } = setup::connect(fixed.settings)
        .await
        .map_err(|error| format!("cannot look at the outbox's columns: {error}"))?;
    let driver = tokio::spawn(driver);
    let looked = control::preflight(&client, &wanted).await;
    driver.abort();
    let findings = looked.err().unwrap_or_default();
    let columns = |finding: &&Finding| {
        finding.severity == Severity::Error
            && matches!(
                finding.code,
                FindingCode::ColumnMissing
                    | FindingCode::ColumnType
                    | FindingCode::ColumnGenerated
                    | FindingCode::PublicationColumnList
            )
    };
    match findings.iter().find(columns) {
        Some(finding) => Err(finding.to_string()),
        None => Ok(()),
    }
}
