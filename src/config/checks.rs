//! What types cannot say: bounds and grammars of single values, and how values go together.

use std::{net::SocketAddr, time::Duration};

use walgate_sink::{ByteSize, HumanDuration};

use super::{
    cleanup, explain,
    key::KeySource,
    model::{AtLast, Config, Delivery, OnReject, WalBudget},
    path::KeyPath,
    sender_timeout::WalSenderTimeout,
    sinks::Sink,
    snippet::printable,
};

/// Bounds of `dead_letters.retain`. Beyond the upper one PostgreSQL's calendar ends.
const SHORTEST_RETAIN: Duration = Duration::from_secs(1);
const LONGEST_RETAIN: Duration = Duration::from_secs(1000 * 366 * 86_400);

/// Faults of the core configuration: path and message.
pub(crate) fn core(config: &Config) -> Vec<(KeyPath, String)> {
    let mut faults = Vec::new();
    let mut fault = |path: &str, message: String| faults.push((KeyPath::from(path), message));

    let source = &config.source;
    if let Some(message) = slot_name(&source.slot) {
        fault("source.slot", message);
    }
    if let Some(message) = identifier(&source.publication, "a publication") {
        fault("source.publication", message);
    }
    if source.nap.0.as_millis() > 1000 {
        fault("source.nap", "the nap is at most 1s; 1ms suits most, 0s switches it off".into());
    }
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(600));
    if let WalSenderTimeout::Of(HumanDuration(timeout)) = source.wal_sender_timeout
        && !(least..=most).contains(&timeout)
    {
        fault("source.wal_sender_timeout", "must be from 1s to 10m, or `server`".into());
    }
    let outbox = &config.outbox;
    if outbox.table.trim().is_empty() {
        fault("outbox.table", "the table's name is empty: write it as `schema.table`".into());
    }
    let columns = &outbox.columns;
    for (key, column) in [
        ("id", Some(&columns.id)),
        ("event_type", Some(&columns.event_type)),
        ("payload", Some(&columns.payload)),
        ("key", columns.key.as_ref().and_then(KeySource::column)),
        ("headers", columns.headers.as_ref()),
    ] {
        if let Some(message) = column.and_then(|column| identifier(column, "a column")) {
            fault(&format!("outbox.columns.{key}"), message);
        }
    }
    let limits = &config.limits;
    let bounds = [
        ("inflight", limits.inflight, 64 << 10, 64 << 30),
        ("event", limits.event, 1 << 10, 1 << 30),
        ("run_ahead", limits.run_ahead, 1 << 20, 1 << 50),
    ];
    for (key, value, least, most) in bounds {
        let (least, most) = (ByteSize(least), ByteSize(most));
        if value < least || value > most {
            fault(&format!("limits.{key}"), format!("must be from {least} to {most}"));
        }
    }
    for (key, message) in wal_budget(&config.wal_budget) {
        fault(&format!("wal_budget.{key}"), message);
    }
    if config.dead_letters.retain.limit().is_some_and(|age| age < SHORTEST_RETAIN || age > LONGEST_RETAIN) {
        fault(
            "dead_letters.retain",
            "must be from 1s to 1000years, or `forever`; `on_reject: skip` keeps no dead letters at all".into(),
        );
    }
    for (key, message) in cleanup::faults(&config.cleanup, outbox) {
        fault(&format!("cleanup.{key}"), message);
    }
    if let Err(message) = listen_address(&config.admin.listen) {
        fault("admin.listen", message);
    }
    if config.admin.stuck_after.0.is_zero() {
        fault("admin.stuck_after", "must be longer than 0s".into());
    }
    if config.shutdown_timeout.0.as_secs() > 3600 {
        fault("shutdown_timeout", "must be at most 1h".into());
    }
    for (header, column) in &outbox.header_columns {
        let path = KeyPath::from("outbox.header_columns").key(header);
        if header.is_empty() || !header.chars().all(|c| c.is_ascii_graphic() && c != ':') {
            faults.push((path, "a header's name is made of visible ASCII characters other than `:`".into()));
        } else if let Some(message) = identifier(column, "a column") {
            faults.push((path, message));
        }
    }
    for (index, route) in config.routes.iter().enumerate() {
        for (key, empty) in [("event_type", route.event_type.0.is_empty()), ("to", route.to.0.is_empty())] {
            if empty {
                let path = KeyPath::from("routes").index(index).key(key);
                faults.push((path, format!("`{key}` is an empty list: give it one value at least")));
            }
        }
        if route.when.as_ref().is_some_and(|when| when.0.is_empty()) {
            let path = KeyPath::from("routes").index(index).key("when");
            faults.push((
                path,
                "it has no condition, so it would hold for every event: give it one, or leave it out".into(),
            ));
        }
    }
    faults
}

/// Faults of `wal_budget` that need no more than itself: key below it and message.
fn wal_budget(budget: &WalBudget) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    let mut fault = |key: &str, message: String| faults.push((key.to_owned(), message));
    let (least, most) = (ByteSize(1 << 20), ByteSize(1 << 50));
    if budget.bytes.is_some_and(|bytes| bytes < least || bytes > most) {
        fault("bytes", format!("must be from {least} to {most}; left out, it is what max_slot_wal_keep_size says"));
    }
    let levels = [("warn", budget.warn), ("act", budget.act), ("last", budget.last)];
    for ((lower, below), (upper, above)) in levels.into_iter().zip(levels.into_iter().skip(1)) {
        if above <= below {
            fault(upper, format!("must be more than `{lower}` ({below}): warn, act and last ascend"));
        }
    }
    match (budget.at_last, budget.sacrifice.as_slice()) {
        (AtLast::Hold, [_, ..]) => fault(
            "sacrifice",
            "sinks are given up with `at_last: sacrifice` only: say so, or leave `sacrifice` out".to_owned(),
        ),
        (AtLast::Sacrifice, []) => fault(
            "at_last",
            "no sink is named that may be given up: name one at least under `sacrifice`, or write `at_last: hold`"
                .to_owned(),
        ),
        _ => {}
    }
    for (index, name) in budget.sacrifice.iter().enumerate() {
        if budget.sacrifice.iter().take(index).any(|before| before == name) {
            fault(&format!("sacrifice[{index}]"), format!("sink `{}` is named twice", printable(name, 64)));
        }
    }
    faults
}

/// Names under `wal_budget.sacrifice` that no sink has.
pub(crate) fn sacrifice(budget: &WalBudget, sinks: &[String]) -> Vec<(KeyPath, String)> {
    let unknown = |(_, name): &(usize, &String)| !sinks.contains(name);
    let fault = |(index, name): (usize, &String)| {
        (KeyPath::from("wal_budget.sacrifice").index(index), explain::no_sink(name, sinks))
    };
    budget.sacrifice.iter().enumerate().filter(unknown).map(fault).collect()
}

/// What is wrong with the sinks that get dead letters of others: which sink names it, and why it cannot.
pub(crate) fn destinations(sinks: &[Sink], known: &[String]) -> Vec<(KeyPath, String)> {
    let mut faults = Vec::new();
    for sink in sinks {
        let Some(to) = &sink.delivery.dead_letter_to else { continue };
        let further = sinks.iter().find(|other| other.name == *to).and_then(|to| to.delivery.dead_letter_to.as_ref());
        let message = if *to == sink.name {
            "a sink cannot get its own dead letters: name another sink, or leave this out to keep them in \
             walgate.dead_letters"
                .to_owned()
        } else if !known.contains(to) {
            explain::no_sink(to, known)
        } else if let Some(further) = further {
            format!(
                "sink `{to}` has a `dead_letter_to` of its own (`{}`), and dead letters go no further than one sink: leave \
                 it out there, or name another sink here",
                printable(further, 64)
            )
        } else {
            continue;
        };
        let path = KeyPath::from("sinks").key(&sink.name).key("delivery").key("dead_letter_to");
        faults.push((path, message));
    }
    faults
}

/// Faults of a sink's `delivery`: key below it and message.
pub(crate) fn delivery(delivery: &Delivery) -> Vec<(&'static str, String)> {
    let mut faults = Vec::new();
    let mut count = |key, value: Option<usize>, most: usize| {
        if value.is_some_and(|value| value == 0 || value > most) {
            faults.push((key, format!("must be from 1 to {most}")));
        }
    };
    count("concurrency", delivery.concurrency, 1024);
    count("batch", delivery.batch, 100_000);
    let retry = &delivery.retry;
    let too_long = |duration: &HumanDuration, hours: u64| duration.0.as_secs() > hours * 3600;
    for (key, duration, hours) in [
        ("timeout", &delivery.timeout, 1),
        ("retry.initial", &retry.initial, 24),
        ("retry.max", &retry.max, 24),
        ("retry.connection_max", &retry.connection_max, 24),
        ("park_after", &delivery.park_after, 24),
    ] {
        if duration.0.is_zero() || too_long(duration, hours) {
            faults.push((key, format!("must be longer than 0s, and at most {hours}h")));
        }
    }
    if retry.max_attempts == Some(0) {
        faults.push(("retry.max_attempts", "must be 1 or more; leave it out to try for ever".into()));
    }
    if retry.max_age.is_some_and(|age| age.0.is_zero()) {
        faults.push(("retry.max_age", "must be longer than 0s; leave it out to try for ever".into()));
    }
    let rejects = delivery.on_reject.is_none_or(|on_reject| on_reject == OnReject::DeadLetter);
    if delivery.dead_letter_to.is_some() && !rejects && retry.max_attempts.is_none() && retry.max_age.is_none() {
        faults.push((
            "dead_letter_to",
            "nothing becomes a dead letter of this sink: write `on_reject: dead_letter`, or leave one of the two out"
                .into(),
        ));
    }
    if delivery.linger.0.as_secs() > 60 {
        faults.push(("linger", "must be at most 1m".into()));
    }
    if retry.initial > retry.max {
        faults.push(("retry.initial", format!("is longer than `retry.max` ({})", retry.max)));
    }
    faults
}

/// PostgreSQL's grammar for the names of slots.
fn slot_name(name: &str) -> Option<String> {
    let fits = (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    (!fits).then(|| "a slot's name has 1 to 63 lower-case letters, digits and underscores".to_owned())
}

/// An SQL identifier as PostgreSQL stores it (NAMEDATALEN is 64).
pub(super) fn identifier(name: &str, what: &str) -> Option<String> {
    let fits = (1..=63).contains(&name.len()) && !name.chars().any(char::is_control);
    (!fits).then(|| format!("{what} has a name of 1 to 63 bytes"))
}

/// The name of a sink: it is a label of metrics and part of variables' names, so lower case only.
pub(crate) fn sink_name(name: &str) -> Option<String> {
    let fits = (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'));
    (!fits).then(|| "a sink's name has 1 to 64 lower-case letters, digits, `_` and `-`".to_owned())
}

/// Where the HTTP interface listens, from `admin.listen`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// On a host (a name, an IPv4 address, or an IPv6 address without its brackets) and a port; port 0 is any free one.
    At(String, u16),
}

/// Reads `admin.listen`: `host:port`, `[::1]:port` or `off`.
///
/// # Errors
/// What is wrong with it and what is allowed.
pub fn listen_address(text: &str) -> Result<Listen, String> {
    const FORM: &str = "write `host:port`, such as 127.0.0.1:9432 or [::1]:9432, or `off`";
    if text == "off" {
        return Ok(Listen::Off);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Listen::At(address.ip().to_string(), address.port()));
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(|| format!("no port: {FORM}"))?;
    let port = port.parse().map_err(|_| format!("the port is not a number from 0 to 65535: {FORM}"))?;
    match host {
        "" => Err(format!("no host: {FORM}; 0.0.0.0 for every interface")),
        host if host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')) => {
            Ok(Listen::At(host.to_owned(), port))
        }
        _ => Err(format!("not a host: {FORM}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listen_addresses() {
        assert_eq!(listen_address("off"), Ok(Listen::Off));
        assert_eq!(listen_address("127.0.0.1:0"), Ok(Listen::At("127.0.0.1".into(), 0)));
        assert_eq!(listen_address("[::1]:9432"), Ok(Listen::At("::1".into(), 9432)));
        assert_eq!(listen_address("localhost:9432"), Ok(Listen::At("localhost".into(), 9432)));
        for bad in ["", "9432", ":9432", "h:x", "h:99999", "::1:5", "a b:1", "http://h:1"] {
            assert!(listen_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names() {
        assert!(slot_name("walgate_1").is_none() && sink_name("a-b_1").is_none());
        for bad in ["", "Walgate", "a b", "é", &"x".repeat(65)] {
            assert!(slot_name(bad).is_some() && sink_name(bad).is_some(), "{bad}");
        }
    }
}
