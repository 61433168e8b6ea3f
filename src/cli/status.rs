//! `walgate status`: what a running gateway is doing; without one, what its slot holds.

use std::{fmt::Write as _, io::Write as _};

use clap::Args;
use serde_json::Value;
use walgate_sink::ByteSize;

use super::{ConfigArgs, complain, fetch, setup};
use crate::{config::Loaded, control, error::ExitStatus, registry::Registry};

/// Arguments of `walgate status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Address of the gateway's admin port, instead of the configuration's `admin.listen`.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Prints the status. Exit status 0: ready; 1: running, but not ready; 3: no gateway answers.
pub async fn run(args: StatusArgs, registry: &Registry) -> ExitStatus {
    let (address, loaded) = match &args.admin {
        Some(address) => (address.clone(), None),
        None => match setup::load(&args.config, registry) {
            Ok(loaded) => (loaded.config.admin.listen.clone(), Some(loaded)),
            Err(status) => return status,
        },
    };
    match fetch::get(&address, "/status").await.and_then(|(code, body)| read(code, &body)) {
        Ok(status) => {
            let text = if args.json { format!("{status:#}\n") } else { render(&status) };
            // Nobody reads a closed pipe.
            let _ = anstream::stdout().write_all(text.as_bytes());
            let ready = status["not_ready"].as_array().is_none_or(Vec::is_empty);
            if ready { ExitStatus::Ok } else { ExitStatus::Runtime }
        }
        Err(error) => {
            complain(&format!(
                "no gateway answers at {address}: {error}. Is `walgate run` up, and is this its `admin.listen`? \
                 (--admin names another address)"
            ));
            if let Some(loaded) = loaded {
                slot_without_gateway(&loaded).await;
            }
            ExitStatus::Environment
        }
    }
}

fn read(code: u16, body: &str) -> Result<Value, String> {
    match serde_json::from_str::<Value>(body) {
        Ok(status) if code == 200 && status.get("sinks").is_some() => Ok(status),
        _ => Err(format!("what answers there (HTTP {code}) is not walgate")),
    }
}

/// The gateway is down: its slot goes on keeping WAL, and that is worth knowing.
async fn slot_without_gateway(loaded: &Loaded) {
    let Ok(settings) = setup::settings(loaded) else { return };
    let slot = &loaded.config.source.slot;
    let Ok(link) = setup::connect(&settings).await else { return };
    let driver = tokio::spawn(link.driver);
    let mut text = String::new();
    match control::slot_report(&link.client, slot).await {
        Ok(report) => match report.slot {
            Some(status) => {
                let _ = writeln!(
                    text,
                    "slot `{slot}` on {settings}: {}, keeps {} of WAL, {} behind",
                    if status.active { "being read" } else { "not being read" },
                    size(status.retained_bytes.unwrap_or(0)),
                    size(status.lag_bytes.unwrap_or(0)),
                );
            }
            None => {
                let _ = writeln!(text, "slot `{slot}` does not exist on {settings}");
            }
        },
        Err(error) => {
            let _ = writeln!(text, "{error}");
        }
    }
    driver.abort();
    let _ = anstream::stderr().write_all(text.as_bytes());
}

fn render(status: &Value) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = render_into(&mut out, status);
    out
}

fn render_into(out: &mut String, status: &Value) -> std::fmt::Result {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let bytes = |value: &Value| size(value.as_u64().unwrap_or(0));
    let source = &status["source"];
    writeln!(
        out,
        "walgate {}: {} for {}{}",
        text(&status["version"]),
        paint(&text(&source["state"])),
        seconds(&status["source_seconds"]),
        source["detail"].as_str().map_or_else(String::new, |detail| format!(" ({detail})")),
    )?;
    writeln!(
        out,
        "  source      {} slot {}, publication {}, table {}",
        text(&status["server"]),
        text(&status["slot"]),
        text(&status["publication"]),
        text(&status["table"]),
    )?;
    let checkpoint = &status["checkpoint"];
    writeln!(
        out,
        "  checkpoint  {} confirmed, {} received, {} events unsettled ({} of {})",
        text(&checkpoint["flush_lsn"]),
        text(&checkpoint["received_lsn"]),
        checkpoint["unsettled_events"],
        bytes(&checkpoint["unsettled_bytes"]),
        bytes(&status["inflight_limit_bytes"]),
    )?;
    if let Some(slot) = status["server_slots"]["slot"].as_object() {
        write!(
            out,
            "  slot        keeps {} of WAL, {} behind",
            bytes(&slot["retained_bytes"]),
            bytes(&slot["lag_bytes"])
        )?;
        match slot["safe_wal_size"].as_u64() {
            Some(safe) => writeln!(out, "; {} more until it can be lost", size(safe))?,
            None => writeln!(out, " (no limit: max_slot_wal_keep_size is not set)")?,
        }
    }
    render_budget(out, &status["wal_budget"])?;
    writeln!(out, "  WAL         {}", text(&status["wal_holder"]))?;
    for slot in status["idle_slots"].as_array().into_iter().flatten() {
        writeln!(out, "  also        {}", text(slot))?;
    }
    render_cleanup(out, &status["cleanup"])?;
    for sink in status["sinks"].as_array().into_iter().flatten() {
        render_sink(out, sink)?;
    }
    for reason in status["not_ready"].as_array().into_iter().flatten() {
        writeln!(out, "not ready: {}", text(reason))?;
    }
    Ok(())
}

/// Nothing is said of a budget that has no bound: the line of the slot says so.
fn render_budget(out: &mut String, budget: &Value) -> std::fmt::Result {
    let (Some(bytes), Some(used)) = (budget["bytes"].as_u64(), budget["used_ratio"].as_f64()) else { return Ok(()) };
    let level = budget["level"].as_str().unwrap_or("?");
    let bound = budget["bound"].as_str().unwrap_or("?");
    write!(out, "  budget      {}: {:.1}% of {} used ({bound})", paint(level), used * 100.0, size(bytes))?;
    match (budget["seconds_left"].as_f64(), budget["bytes_per_second"].as_f64()) {
        (Some(left), _) if left <= 0.0 => writeln!(out, ", nothing left"),
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive, for people")]
        (Some(_), Some(rate)) => {
            writeln!(out, ", {} more each second: {} left", size(rate as u64), seconds(&budget["seconds_left"]))
        }
        _ => writeln!(out, ", not growing"),
    }
}

/// Nothing is said of a clean-up that is off.
fn render_cleanup(out: &mut String, cleanup: &Value) -> std::fmt::Result {
    let Some(state) = cleanup["state"].as_str().filter(|state| *state != "off") else { return Ok(()) };
    let number = |key: &str| cleanup[key].as_u64().unwrap_or(0);
    write!(
        out,
        "  cleanup     {}: {}, {} rows so far",
        paint(state),
        cleanup["mode"].as_str().unwrap_or("?"),
        number("rows")
    )?;
    if let Some(bytes) = cleanup["table_bytes"].as_u64() {
        write!(
            out,
            "; table {}, about {} settled rows kept, {} dead",
            size(bytes),
            number("kept_rows"),
            number("dead_rows")
        )?;
    }
    if cleanup["oldest_settled_seconds"].is_number() {
        write!(out, ", the oldest {} old", seconds(&cleanup["oldest_settled_seconds"]))?;
    }
    match cleanup["why"].as_str() {
        Some(why) => writeln!(out, ": {why}"),
        None => writeln!(out),
    }
}

fn render_sink(out: &mut String, sink: &Value) -> std::fmt::Result {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    writeln!(out, "\nsink {} ({}): {}", text(&sink["name"]), text(&sink["kind"]), paint(&text(&sink["state"])))?;
    writeln!(
        out,
        "  owes        {} events: {} queued, {} in flight, {} waiting for a retry, {} halted; {} attempts so far",
        sink["unsettled"], sink["queued"], sink["in_flight"], sink["backing_off"], sink["halted"], sink["attempts"],
    )?;
    if let Some(parking) = sink["parking"].as_object() {
        let number = |key: &str| parking.get(key).and_then(Value::as_u64).unwrap_or(0);
        if number("rows") + number("keys") + number("dead_letters") > 0 {
            writeln!(
                out,
                "  parked      {} deliveries ({}), {} keys on their own, {} of them wait for somebody; {} dead letters{}",
                number("rows"),
                size(number("bytes")),
                number("keys"),
                number("halted_keys"),
                number("dead_letters"),
                if parking.get("full") == Some(&Value::Bool(true)) { "; as much as limits.parked allows" } else { "" },
            )?;
        }
        if let Some(error) = parking.get("error").and_then(Value::as_str) {
            writeln!(out, "  tables      {error}")?;
        }
    }
    if sink["rate_limited"] == true {
        writeln!(out, "  rate        more waits than `delivery.rate_limit` lets go")?;
    }
    if let Some(oldest) = sink["oldest"].as_object() {
        writeln!(
            out,
            "  oldest      event {} at {}, {} old, {} of WAL behind",
            text(&oldest["event_id"]),
            text(&oldest["position"]),
            seconds(&sink["lag_seconds"]),
            size(sink["lag_bytes"].as_u64().unwrap_or(0)),
        )?;
    }
    if let Some(error) = sink["last_error"].as_object() {
        write!(out, "  last error  {} at {}", text(&error["message"]), text(&error["at"]))?;
        if let Some(event) = error.get("event_id").and_then(Value::as_str) {
            write!(out, ", event {event}")?;
        }
        if let Some(attempt) = error.get("attempt").and_then(Value::as_u64) {
            write!(out, ", attempt {attempt}")?;
        }
        match error.get("next_retry_seconds").and_then(Value::as_f64) {
            Some(next) => writeln!(out, "; next attempt in {next:.1} s")?,
            None => writeln!(out)?,
        }
    }
    Ok(())
}

/// A state word in its colour; colours are taken out where the output is no terminal.
fn paint(state: &str) -> String {
    use anstyle::AnsiColor::{Green, Red, Yellow};
    let color = match state {
        "streaming" | "up" | "limited" | "calm" | "idle" | "running" => Green,
        "down" | "halted" | "blocked" | "closed" | "act" | "last" => Red,
        _ => Yellow,
    };
    let style = color.on_default().bold();
    format!("{style}{state}{style:#}")
}

fn seconds(value: &Value) -> String {
    let seconds = value.as_f64().unwrap_or(0.0).max(0.0);
    if seconds < 60.0 {
        return format!("{seconds:.1} s");
    }
    humantime::format_duration(std::time::Duration::from_secs(seconds as u64)).to_string()
}

/// A size for a person: one digit after the point.
fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return ByteSize(bytes).to_string();
    }
    #[allow(clippy::cast_precision_loss, reason = "one digit is shown")]
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stuck_sink_is_named_with_its_event_and_its_error() {
        let status = serde_json::json!({
            "version": "0.1.0", "slot": "walgate", "publication": "walgate_outbox", "table": "public.outbox_events",
            "server": "localhost:5432/shop", "uptime_seconds": 61.2, "source_seconds": 61.0,
            "source": { "state": "streaming", "reconnects": 0 },
            "checkpoint": { "flush_lsn": "0/15D6A10", "received_lsn": "0/15D7A10", "unsettled_events": 3,
                            "unsettled_bytes": 2400 },
            "inflight_limit_bytes": 8_388_608,
            "server_slots": { "slot": { "retained_bytes": 20_971_520, "lag_bytes": 4096, "safe_wal_size": null } },
            "wal_budget": { "bytes": 33_554_432, "bound": "wal_budget.bytes", "used_ratio": 0.625, "level": "warn",
                "seconds_left": 1_234.5, "bytes_per_second": 10_192.7 },
            "cleanup": { "mode": "delete", "state": "blocked", "why": "rows are older than the slot", "rows": 1_200,
                "kept_rows": 300, "table_bytes": 8_388_608, "dead_rows": 12, "oldest_settled_seconds": 3_600.5 },
            "wal_holder": "sink `partner` holds the checkpoint with event 42 (61 s old)",
            "idle_slots": ["replication slot `old` is not being read, and PostgreSQL keeps 2.0 GiB of WAL for it"],
            "sinks": [{ "name": "partner", "kind": "webhook", "state": "retrying", "queued": 1, "in_flight": 1,
                "parking": { "rows": 120_000, "bytes": 40_000_000, "keys": 3, "halted_keys": 1, "storing": 0,
                    "dead_letters": 7, "full": false },
                "backing_off": 1, "halted": 0, "unsettled": 3, "attempts": 17, "lag_bytes": 4096, "lag_seconds": 61.0,
                "oldest": { "event_id": "42", "position": "0/15D6B00#0", "committed_at": "2026-11-01T10:00:00Z" },
                "last_error": { "message": "503 Service Unavailable", "kind": "unavailable",
                    "at": "2026-11-01T10:01:00Z", "event_id": "42", "attempt": 7, "next_retry_seconds": 12.25 } }],
            "not_ready": ["sink `partner` has settled nothing for 61 s: 503 Service Unavailable"]
        });
        insta::assert_snapshot!("status", anstream::adapter::strip_str(&render(&status)).to_string());
    }

    #[test]
    fn a_budget_says_how_much_is_used_and_how_long_it_lasts() {
        let told = |budget: Value| {
            let mut out = String::new();
            render_budget(&mut out, &budget).unwrap();
            anstream::adapter::strip_str(&out).to_string()
        };
        let budget = |left: Value, rate: Value| {
            serde_json::json!({ "bytes": 1 << 26, "bound": "max_slot_wal_keep_size", "used_ratio": 0.5, "level": "warn",
                "seconds_left": left, "bytes_per_second": rate })
        };
        let head = "  budget      warn: 50.0% of 64.0 MiB used (max_slot_wal_keep_size)";
        for (left, rate, tail) in [
            (90.0.into(), 2048.0.into(), ", 2.0 KiB more each second: 1m 30s left"),
            (0.0.into(), Value::Null, ", nothing left"),
            (Value::Null, (-5.0).into(), ", not growing"),
        ] {
            assert_eq!(told(budget(left, rate)), format!("{head}{tail}\n"));
        }
        assert_eq!(told(serde_json::json!({ "bytes": null, "used_ratio": null, "level": "calm" })), "");
        assert_eq!(told(Value::Null), "");
    }

    #[test]
    fn sizes_are_readable() {
        assert_eq!([0, 1023, 1024, 1536, 20 << 20].map(size), ["0B", "1023B", "1.0 KiB", "1.5 KiB", "20.0 MiB"]);
    }
}
