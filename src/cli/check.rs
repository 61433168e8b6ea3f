//! `walgate check`: what a configuration means, without asking PostgreSQL or a sink.

mod command;

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;
use serde_json::json;

use crate::config::{Config, Loaded, Sink, Warning, printable, redact};

pub use command::{CheckArgs, run};

/// One line of the table of routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteRow {
    /// The patterns of event types.
    pub patterns: Vec<String>,
    /// What must hold beside them: `header.tenant=acme`.
    pub when: Vec<String>,
    /// The sink that matching events go to.
    pub sink: String,
    /// The target there, as `name=template` parts; empty: the sink's own.
    pub target: String,
}

/// Prints source, outbox, sinks, the table of routes, and warnings: those of the configuration and `warnings`, the
/// routes' own. Text carries colours, which an `anstream` takes out where there is no terminal.
///
/// # Errors
/// What `out` says.
pub fn check_offline(
    loaded: &Loaded,
    routes: &[RouteRow],
    warnings: &[Warning],
    json: bool,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut all: Vec<Warning> = loaded.warnings.iter().chain(warnings).cloned().collect();
    if routes.is_empty() {
        let message = format!("there are no routes: every event is unrouted ({})", word(&loaded.config.unrouted));
        all.push(loaded.warning_at("routes", &message));
    }
    let notes = notes(&loaded.config);
    if json { as_json(loaded, routes, &all, &notes, out) } else { as_text(loaded, routes, &all, &notes, out) }
}

/// What is right, and yet worth knowing.
fn notes(config: &Config) -> Vec<String> {
    let mut notes = Vec::new();
    if config.outbox.columns.key.is_none() {
        notes.push(
            "the outbox has no key, so events have no order to keep: two events of one order may arrive the \
             other way round; for an order per key add a column, such as `aggregate_id text`, and set \
             `outbox.columns.key` to it, or take the key from the payload, as `payload:/order_id`"
                .to_owned(),
        );
    }
    notes
}

/// A connection as it may be shown.
fn connection(config: &Config) -> Option<String> {
    config.source.url.as_ref().map(|url| printable(&redact(url.expose()), 200))
}

fn as_json(
    loaded: &Loaded,
    routes: &[RouteRow],
    warnings: &[Warning],
    notes: &[String],
    out: &mut dyn Write,
) -> io::Result<()> {
    let Config { source, outbox, unrouted, limits, admin, .. } = &loaded.config;
    let sink = |sink: &Sink| json!({ "name": sink.name, "kind": sink.kind, "delivery": sink.delivery });
    let report = json!({
        "ok": true,
        "source": { "url": connection(&loaded.config), "slot": source.slot, "publication": source.publication },
        "outbox": outbox,
        "sinks": loaded.sinks.iter().map(sink).collect::<Vec<_>>(),
        "routes": routes,
        "unrouted": unrouted,
        "limits": limits,
        "admin": admin,
        "warnings": warnings.iter().map(Warning::to_json).collect::<Vec<_>>(),
        "notes": notes,
    });
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

fn as_text(
    loaded: &Loaded,
    routes: &[RouteRow],
    warnings: &[Warning],
    notes: &[String],
    out: &mut dyn Write,
) -> io::Result<()> {
    let Config { source, outbox, unrouted, admin, .. } = &loaded.config;
    let connection = connection(&loaded.config).unwrap_or_else(|| "as PGHOST and its kin say".to_owned());
    let mut table = Table::default();
    table.row("source", [connection]);
    table.row("", [format!("slot {}, publication {}", show(&source.slot), show(&source.publication))]);
    table.row("outbox", [show(&outbox.table)]);
    let columns = &outbox.columns;
    let parts = [
        ("id", show(&columns.id)),
        ("event_type", show(&columns.event_type)),
        ("payload", show(&columns.payload)),
        ("key", columns.key.as_ref().map_or("none".to_owned(), |key| show(&key.to_string()))),
        ("headers", columns.headers.as_deref().map_or("none".to_owned(), show)),
    ];
    table.row("", [parts.map(|(what, column)| format!("{what}: {column}")).join(", ")]);
    for (header, column) in &outbox.header_columns {
        table.row("", [format!("header {}: {}", show(header), show(column))]);
    }
    table.row("admin", [show(&admin.listen)]);
    table.print(out, 1)?;

    writeln!(out)?;
    let mut table = Table::default();
    for (index, sink) in loaded.sinks.iter().enumerate() {
        table.row(if index == 0 { "sinks" } else { "" }, [show(&sink.name), sink.kind.clone(), delivery(sink)]);
    }
    table.print(out, 3)?;

    writeln!(out)?;
    let mut table = Table::default();
    for (index, route) in routes.iter().enumerate() {
        let mut patterns = route.patterns.iter().map(|pattern| show(pattern)).collect::<Vec<_>>().join(", ");
        for (index, condition) in route.when.iter().enumerate() {
            patterns.push_str(if index == 0 { " when " } else { " and " });
            patterns.push_str(&show(condition));
        }
        let to = format!("-> {}", show(&route.sink));
        table.row(if index == 0 { "routes" } else { "" }, [patterns, to, show(&route.target)]);
    }
    let label = if routes.is_empty() { "routes" } else { "" };
    table.row(label, ["anything else".to_owned(), format!("-> {}", word(unrouted)), String::new()]);
    table.print(out, 3)?;

    let yellow: Style = AnsiColor::Yellow.on_default().bold();
    let bold = Style::new().bold();
    for warning in warnings {
        write!(out, "\n{yellow}warning{yellow:#}: {warning}\n")?;
    }
    for note in notes {
        write!(out, "\n{bold}note{bold:#}: {note}\n")?;
    }
    writeln!(out, "\nthe configuration is sound: {}", counts(loaded, routes, warnings))
}

fn delivery(sink: &Sink) -> String {
    let delivery = &sink.delivery;
    let mut parts = vec![format!("timeout {}", delivery.timeout)];
    if let Some(on_reject) = delivery.on_reject {
        parts.push(format!("on_reject {}", word(&on_reject)));
    }
    if let Some(to) = &delivery.dead_letter_to {
        parts.push(format!("dead letters to {to}"));
    }
    if let Some(on_outage) = delivery.on_outage {
        parts.push(format!("on_outage {}", word(&on_outage)));
    }
    if !delivery.required {
        parts.push("not required".to_owned());
    }
    if let Some(concurrency) = delivery.concurrency {
        parts.push(format!("concurrency {concurrency}"));
    }
    if let Some(batch) = delivery.batch {
        parts.push(format!("batch {batch}"));
    }
    if let Some(rate) = delivery.rate_limit {
        parts.push(format!("rate_limit {rate}"));
    }
    parts.join(", ")
}

fn counts(loaded: &Loaded, routes: &[RouteRow], warnings: &[Warning]) -> String {
    let count = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    [
        count(loaded.sinks.len(), "sink"),
        count(loaded.config.routes.len(), "route"),
        count(routes.len(), "target"),
        count(warnings.len(), "warning"),
    ]
    .join(", ")
}

/// An enumeration's word as the configuration has it.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn show(text: &str) -> String {
    printable(&redact(text), 120)
}

/// Labelled rows whose cells stand under one another.
#[derive(Default)]
struct Table(Vec<(&'static str, Vec<String>)>);

impl Table {
    fn row<const N: usize>(&mut self, label: &'static str, cells: [String; N]) {
        self.0.push((label, cells.to_vec()));
    }

    fn print(&self, out: &mut dyn Write, columns: usize) -> io::Result<()> {
        const WIDEST: usize = 80;
        let bold = Style::new().bold();
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|(_, cells)| cells.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0).min(WIDEST)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for (label, cells) in &self.0 {
            let mut line = String::new();
            for (cell, width) in cells.iter().zip(&widths) {
                line.push_str(&format!("{cell:<width$}  "));
            }
            writeln!(out, "{bold}{label:<8}{bold:#}{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FileSource, Sources, load, test_catalog};

    const TEXT: &str = "
source: { url: 'postgres://walgate:hunter2@db/shop' }
outbox: { table: shop.events, header_columns: { x-tenant: tenant } }
sinks:
  out: { stdout: {} }
  partner: { webhook: { url: 'https://partner.example/hooks' }, delivery: { concurrency: 16, batch: 8, on_reject: skip } }
routes:
  - { event_type: ['order.*', user.created], to: [out, { sink: partner, path: '/{key}' }] }
unrouted: halt
";

    fn checked(text: &str, routes: &[RouteRow], json: bool) -> String {
        let file = FileSource::Text("walgate.yaml".into(), text.into());
        let loaded = load(Sources { file, ..Sources::default() }, &test_catalog()).unwrap();
        let unused = loaded.warning_at("sinks.out", "no route leads to this sink");
        let mut out = Vec::new();
        check_offline(&loaded, routes, &[unused], json, &mut out).unwrap();
        anstream::adapter::strip_str(&String::from_utf8(out).unwrap()).to_string()
    }

    fn rows() -> Vec<RouteRow> {
        let row = |sink: &str, when: &[&str], target: &str| RouteRow {
            patterns: vec!["order.*".into(), "user.created".into()],
            when: when.iter().map(|condition| (*condition).to_owned()).collect(),
            sink: sink.into(),
            target: target.into(),
        };
        vec![row("out", &[], ""), row("partner", &["header.tenant=acme", "column.region=eu|us"], "path=/{key}")]
    }

    #[test]
    fn text() {
        insta::with_settings!({ prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!("check_text", checked(TEXT, &rows(), false));
            insta::assert_snapshot!("check_nothing", checked("sinks: { out: { stdout: {} } }\n", &[], false));
        });
    }

    #[test]
    fn json() {
        let report: serde_json::Value = serde_json::from_str(&checked(TEXT, &rows(), true)).unwrap();
        assert_eq!(report["source"]["url"], "postgres://walgate:[hidden]@db/shop");
        assert_eq!(report["routes"][1]["target"], "path=/{key}");
        assert_eq!(report["sinks"][1]["delivery"]["timeout"], "15s");
        assert_eq!(report["warnings"].as_array().unwrap().len(), 2);
        assert!(!report.to_string().contains("hunter2"));
    }
}
