//! K rows: Kafka, with real brokers that are killed, frozen, cut off, strict and misconfigured. What a topic holds is read
//! over the wire by hand. What no broker can be made to say (K4: most fatal errors of idempotent producers) is played by
//! the client library's mock cluster, in `sinks/kafka`.

mod access;
mod faults;
mod limits;
mod records;
mod security;
mod topics;

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use crate::rig::Rig;
use crate::support::kafka::{AUTHORIZER, Kafka, Options};
use crate::support::kafka_records::Record;
use crate::support::kafka_wire::{Acl, Operation, Wire};
use crate::support::lsn::Lsn;
use crate::support::oracle::{self, Committed};
use crate::support::walgate::{Ended, Setup, Walgate};

/// The inside of `delivery: { }` with a short attempt.
const IMPATIENT: &str = "timeout: 2s, retry: { initial: 20ms, max: 200ms, connection_max: 200ms }";

/// One more broker that tests share: it has an access list, ends a session with its token, wants a certificate of whoever
/// comes over TLS, and has proxies.
fn strict() -> &'static Kafka {
    static STRICT: OnceLock<Kafka> = OnceLock::new();
    STRICT.get_or_init(|| {
        let properties =
            AUTHORIZER.into_iter().chain(["connections.max.reauth.ms=3600000"]).map(str::to_owned).collect();
        let kafka = Kafka::with(Options { properties, mutual_tls: true, ..Options::default() });
        // A line for `*`, even if it denies one user, closes the topics to all whom none allows: this one allows all.
        kafka.wire().add_acl(&Acl { topic: "*", principal: "User:*", operation: Operation::All, allow: true });
        kafka
    })
}

/// A sink `bus` on this port; `more` are further keys of `kafka:`.
fn bus(port: u16, more: &str, delivery: &str) -> String {
    format!("bus: {{ kafka: {{ brokers: [\"127.0.0.1:{port}\"]{more} }}, delivery: {{ {delivery} }} }}")
}

/// Everything goes to this topic, or where this template says.
fn to_topic(rig: &Rig, port: u16, topic: &str, more: &str) -> Setup {
    rig.source().sink(&bus(port, &format!(", topic: \"{topic}\"{more}"), IMPATIENT)).route("**", "bus")
}

/// The same, and what is rejected is skipped.
fn skipping(rig: &Rig, port: u16, topic: &str, more: &str) -> Setup {
    let delivery = format!("{IMPATIENT}, on_reject: skip");
    rig.source().sink(&bus(port, &format!(", topic: \"{topic}\"{more}"), &delivery)).route("**", "bus")
}

fn check(setup: &Setup) -> Ended {
    Walgate::command(setup, &["check", "--connect", "--config", "{config}"])
}

/// Rows of `keys` keys in turn.
fn insert(rig: &Rig, from: usize, to: usize, keys: usize) {
    rig.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
         SELECT 'order.created', 'k' || i % {keys}, jsonb_build_object('i', i) FROM generate_series({from}, {to} - 1) i"
    ));
}

/// Records that a topic holds.
fn count(wire: &mut Wire, topic: &str) -> usize {
    usize::try_from(wire.ends(topic).values().sum::<i64>()).expect("a count")
}

/// Those of the committed events that were not to be rejected, each with its place among these.
fn kept(committed: Vec<Committed>, is_kept: impl Fn(&Committed) -> bool) -> Vec<Committed> {
    let mut last: HashMap<Option<String>, u64> = HashMap::new();
    let mut kept: Vec<Committed> = committed.into_iter().filter(is_kept).collect();
    for event in &mut kept {
        let last = last.entry(event.key.clone()).or_default();
        *last += 1;
        event.n = *last;
    }
    kept
}

/// What `/status` says was the sink's last error; empty where there was none.
fn last_error(walgate: &Walgate) -> String {
    let message =
        walgate.status().and_then(|status| Some(status["sinks"][0]["last_error"]["message"].as_str()?.to_owned()));
    message.unwrap_or_default()
}

/// Waits until an event has gone to walgate.
fn wait_sent(rig: &Rig, walgate: &mut Walgate, id: &str) {
    walgate.eventually("it was sent to walgate", || rig.witness.log().commit_end(id).is_some());
}

/// The counter of events that were left out because they were rejected.
fn rejected(walgate: &Walgate) -> usize {
    walgate.metric("walgate_discarded_events_total", &["reason=\"rejected\""]).unwrap_or_default() as usize
}

/// Nothing is missing, nothing else is there, bodies are whole, and the records of a key never skip forward (I3).
/// Returns the repeats.
#[track_caller]
fn assert_stored(committed: &[Committed], stored: &[Record]) -> usize {
    let by_id: HashMap<&str, &Committed> = committed.iter().map(|event| (event.id.as_str(), event)).collect();
    let mut highest: HashMap<&str, u64> = HashMap::new();
    let mut seen = HashSet::new();
    for record in stored {
        let event = by_id.get(record.id()).unwrap_or_else(|| panic!("a phantom: {record:?}"));
        assert_eq!(record.hash(), event.hash, "the payload of {}", event.id);
        assert_eq!(record.key_text(), event.key.as_deref());
        if let Some(key) = &event.key {
            let (n, highest) = (event.n, highest.entry(key).or_default());
            let Record { partition, offset, .. } = record;
            assert!(n <= *highest + 1, "key {key}: {n} after {highest}, at {offset} of partition {partition}");
            *highest = n.max(*highest);
        }
        seen.insert(record.id());
    }
    let missing: Vec<&&str> = by_id.keys().filter(|id| !seen.contains(**id)).collect();
    assert!(missing.is_empty(), "{} of {} are missing: {:?}", missing.len(), committed.len(), missing.first());
    stored.len() - seen.len()
}

/// All that was confirmed up to here is stored: the flush LSN was read before the topic.
#[track_caller]
fn assert_passed_are_stored(rig: &Rig, flush: Lsn, stored: &[Record]) {
    let ids: HashSet<&str> = stored.iter().map(Record::id).collect();
    let log = rig.witness.log();
    let lost = log.first_rows().find(|row| row.commit_lsn < flush && !ids.contains(&*row.id));
    assert!(lost.is_none(), "{flush} is confirmed, and this is not stored: {lost:?}");
}

/// What was confirmed was always a commit's end, or a keepalive's position, and never fell.
#[track_caller]
fn assert_flushes(rig: &Rig) {
    oracle::assert_wire(&rig.witness.log(), rig.confirmed_before, |_| Some(0));
}

#[test]
fn the_example_and_the_reference_are_true() {
    crate::shipped::assert_true("kafka", "events", include_str!("../../../examples/kafka.yaml"), &[]);
}
