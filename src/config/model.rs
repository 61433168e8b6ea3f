//! The configuration as types. Defaults stand here and nowhere else.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny};
use walgate_sink::{ByteSize, HumanDuration, Secret};

use super::{Cleanup, KeySource, Percent, Rate, Retain, WalSenderTimeout};

/// The whole configuration but for the sinks: those are [`super::Loaded::sinks`], parsed by their factories.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where events come from.
    pub source: Source,
    /// Which table holds the events, and how its columns are read.
    pub outbox: Outbox,
    /// A key that is allowed here; its content is read elsewhere.
    #[serde(skip_serializing)]
    sinks: IgnoredAny,
    /// Which events go where; every route that matches applies.
    pub routes: Vec<Route>,
    /// What happens to an event that no route matches.
    pub unrouted: Unrouted,
    /// Bounds on memory and on what a restart repeats.
    pub limits: Limits,
    /// WAL that the server may keep for the slot, and what is done before it is used up.
    pub wal_budget: WalBudget,
    /// What is kept of deliveries that are not attempted any more, and for how long.
    pub dead_letters: DeadLetters,
    /// What becomes of rows that are settled on every sink.
    pub cleanup: Cleanup,
    /// The HTTP interface.
    pub admin: Admin,
    /// What a reload does about what a sink that it removes is still owed.
    pub removed_sinks: RemovedSinks,
    /// Time that a shutdown may take to drain, before it stops regardless.
    pub shutdown_timeout: HumanDuration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            source: Source::default(),
            outbox: Outbox::default(),
            sinks: IgnoredAny,
            routes: Vec::new(),
            unrouted: Unrouted::default(),
            limits: Limits::default(),
            wal_budget: WalBudget::default(),
            dead_letters: DeadLetters::default(),
            cleanup: Cleanup::default(),
            admin: Admin::default(),
            removed_sinks: RemovedSinks::default(),
            shutdown_timeout: HumanDuration(Duration::from_secs(10)),
        }
    }
}

/// The keys of the configuration's root.
pub(crate) const ROOT_KEYS: &[&str] = &[
    "source",
    "outbox",
    "sinks",
    "routes",
    "unrouted",
    "limits",
    "wal_budget",
    "dead_letters",
    "cleanup",
    "admin",
    "removed_sinks",
    "shutdown_timeout",
];

/// The keys of a sink's `delivery`.
pub(crate) const DELIVERY_KEYS: &[&str] = &[
    "concurrency",
    "batch",
    "linger",
    "timeout",
    "rate_limit",
    "retry",
    "on_reject",
    "dead_letter_to",
    "on_outage",
    "park_after",
    "required",
];

/// A secret is never written out; only whether there is one.
pub(super) fn hidden<S: Serializer>(secret: &Option<Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    secret.as_ref().map(|_| super::redact::HIDDEN).serialize(serializer)
}

/// `source:`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// A libpq connection URI or key=value string. What it leaves out comes from PGHOST and its kin.
    #[serde(serialize_with = "hidden")]
    pub url: Option<Secret>,
    /// The password, where the URL has none; `password_file` names a file that holds it.
    #[serde(serialize_with = "hidden")]
    pub password: Option<Secret>,
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// How long the reader sleeps before a read while the stream is busy; `0s` switches the nap off.
    pub nap: HumanDuration,
    /// After which silence of ours PostgreSQL ends the stream and lets go of the slot: how soon a standby can take over
    /// from a gateway that is frozen or cut off. `server` leaves what the server has set.
    pub wal_sender_timeout: WalSenderTimeout,
}

impl Default for Source {
    fn default() -> Self {
        Source {
            url: None,
            password: None,
            slot: "walgate".into(),
            publication: "walgate_outbox".into(),
            nap: HumanDuration(Duration::from_millis(1)),
            wal_sender_timeout: WalSenderTimeout::Of(HumanDuration(Duration::from_secs(3))),
        }
    }
}

/// `outbox:`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Outbox {
    /// The table, with or without its schema (`public` where it has none).
    pub table: String,
    /// Which column holds what.
    pub columns: Columns,
    /// Further columns that travel as headers: header name -> column name.
    pub header_columns: std::collections::BTreeMap<String, String>,
}

impl Default for Outbox {
    fn default() -> Self {
        Outbox { table: "public.outbox_events".into(), columns: Columns::default(), header_columns: Default::default() }
    }
}

/// `outbox.columns:`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Columns {
    /// The event's identity; any type.
    pub id: String,
    /// The event's type.
    pub event_type: String,
    /// The payload: jsonb, json, text or bytea.
    pub payload: String,
    /// The ordering key: a column, or a JSON pointer into the payload; none: events have no order to keep.
    pub key: Option<KeySource>,
    /// A jsonb object whose members travel as headers.
    pub headers: Option<String>,
}

impl Default for Columns {
    fn default() -> Self {
        Columns {
            id: "id".into(),
            event_type: "event_type".into(),
            payload: "payload".into(),
            key: None,
            headers: None,
        }
    }
}

/// `delivery:` beside a sink's kind.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Delivery {
    /// Batches in flight at once; the sink's own default where it is left out.
    pub concurrency: Option<usize>,
    /// Deliveries in one batch at the most; the sink's own limit where it is left out.
    pub batch: Option<usize>,
    /// How long a batch that is not full may wait for more.
    pub linger: HumanDuration,
    /// Time that one attempt of one delivery may take.
    pub timeout: HumanDuration,
    /// Deliveries that may be sent in a time, repeats counted; none: as many as the sink takes.
    pub rate_limit: Option<Rate>,
    /// How attempts follow one another.
    pub retry: Retry,
    /// What happens to an event that the sink can never accept; where it is left out, `dead_letter` where its table may
    /// be written or `dead_letter_to` names a sink, else `halt`.
    pub on_reject: Option<OnReject>,
    /// The sink that gets what would become a dead letter of this one, instead of the table.
    pub dead_letter_to: Option<String>,
    /// What happens while the sink does not work; where it is left out, `park` where its table may be written, else
    /// `hold`.
    pub on_outage: Option<OnOutage>,
    /// How long an outage, or an event that fails alone, is waited out before it is parked.
    pub park_after: HumanDuration,
    /// Whether `/readyz` speaks of this sink.
    pub required: bool,
}

impl Default for Delivery {
    fn default() -> Self {
        Delivery {
            concurrency: None,
            batch: None,
            linger: HumanDuration(Duration::ZERO),
            timeout: HumanDuration(Duration::from_secs(15)),
            rate_limit: None,
            retry: Retry::default(),
            on_reject: None,
            dead_letter_to: None,
            on_outage: None,
            park_after: HumanDuration(Duration::from_secs(30)),
            required: true,
        }
    }
}

/// `delivery.retry:`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Pause after the first failed attempt; it doubles with each further one. Jitter takes off up to half.
    pub initial: HumanDuration,
    /// The longest pause, and the most that a `Retry-After` can ask for.
    pub max: HumanDuration,
    /// The longest pause while the sink cannot be reached at all.
    pub connection_max: HumanDuration,
    /// After so many failed attempts an event is a dead letter; none: it is tried for ever.
    pub max_attempts: Option<u32>,
    /// An event that has failed for so long is a dead letter; none: it is tried for ever.
    pub max_age: Option<HumanDuration>,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            initial: HumanDuration(Duration::from_millis(100)),
            max: HumanDuration(Duration::from_secs(60)),
            connection_max: HumanDuration(Duration::from_secs(1)),
            max_attempts: None,
            max_age: None,
        }
    }
}

/// `delivery.on_reject:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnReject {
    /// Write it into the table of dead letters, and go on without it.
    DeadLetter,
    /// Count it, log it with its id, and go on without it.
    Skip,
    /// Hold the event and everything behind it of the same key, until somebody decides. The checkpoint holds too.
    Halt,
    /// Move the event and everything behind it of the same key into the table of parked deliveries, until somebody
    /// decides. The checkpoint goes on.
    ParkKey,
}

/// `delivery.on_outage:`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOutage {
    /// Hold the checkpoint: PostgreSQL's WAL is the buffer, and the other sinks stop once `limits.inflight` is full.
    Hold,
    /// Move what the sink owes into the table of parked deliveries: the other sinks, and the checkpoint, go on.
    Park,
}

/// One entry of `routes:`.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Patterns: exact, `*` within a segment, `**` across segments. A single one or a list.
    pub event_type: OneOrMany<String>,
    /// What must hold beside it.
    #[serde(default, deserialize_with = "some", skip_serializing_if = "Option::is_none")]
    pub when: Option<When>,
    /// Where matching events go. A single target or a list.
    pub to: OneOrMany<RouteTarget>,
}

/// A value that must be there where its key is: a condition that was left empty must not hold for everything.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// One entry of `to:`: the name of a sink, or a mapping with `sink` and the sink's own target keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTarget {
    /// The sink's name.
    pub sink: String,
    /// Templates by target field, in the order of the file.
    pub fields: Vec<(String, String)>,
}

impl<'de> Deserialize<'de> for RouteTarget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = RouteTarget;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a sink, or a mapping with `sink` and its target")
            }

            fn visit_str<E>(self, name: &str) -> Result<RouteTarget, E> {
                Ok(RouteTarget { sink: name.to_owned(), fields: Vec::new() })
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<RouteTarget, A::Error> {
                let (mut sink, mut fields) = (None, Vec::new());
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value::<String>()?;
                    if key == "sink" { sink = Some(value) } else { fields.push((key, value)) }
                }
                let sink = sink.ok_or_else(|| serde::de::Error::missing_field("sink"))?;
                Ok(RouteTarget { sink, fields })
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for RouteTarget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let sink = std::iter::once(("sink", self.sink.as_str()));
        serializer.collect_map(sink.chain(self.fields.iter().map(|(key, value)| (key.as_str(), value.as_str()))))
    }
}

/// `when:`, in the order of the file: `key`, `header.<name>` or `column.<name>`, and the texts that it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct When(pub Vec<(String, OneOrMany<String>)>);

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = When;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mapping of conditions, such as `{ header.tenant: acme }`")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<When, A::Error> {
                let mut conditions = Vec::new();
                while let Some(condition) = map.next_entry()? {
                    conditions.push(condition);
                }
                Ok(When(conditions))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for When {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(field, values)| (field, values)))
    }
}

/// A value, or a list of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct OneOrMany<T>(pub Vec<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OneOrMany<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Visitor<T> {
            type Value = OneOrMany<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("one value or a list of them")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
                T::deserialize(serde::de::value::StrDeserializer::new(text)).map(|value| OneOrMany(vec![value]))
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(|value| OneOrMany(vec![value]))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    values.push(value);
                }
                Ok(OneOrMany(values))
            }
        }

        deserializer.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

/// `unrouted:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unrouted {
    /// Count it, log it once per event type, and go on.
    #[default]
    Drop,
    /// Stop reading until a route for it exists. The checkpoint holds.
    Halt,
    /// Write it into the table of dead letters, and go on.
    DeadLetter,
}

/// `removed_sinks:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovedSinks {
    /// Deliver it first; a reload that cannot is refused.
    #[default]
    Drain,
    /// Leave it in the table of parked deliveries: it goes out when a sink of this name is there again.
    Park,
    /// Count it, log it, and go on without it. What is parked stays where it is.
    Drop,
}

/// `limits:`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Unsettled events in memory, overhead included.
    pub inflight: ByteSize,
    /// The largest event.
    pub event: ByteSize,
    /// WAL received beyond what is confirmed: what a restart repeats at the most.
    pub run_ahead: ByteSize,
    /// What each sink may have in the table of parked deliveries; beyond it, an outage holds.
    pub parked: ParkedLimits,
}

/// `limits.parked:`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParkedLimits {
    /// Deliveries.
    pub rows: u64,
    /// Bytes of their events.
    pub bytes: ByteSize,
}

impl Default for ParkedLimits {
    fn default() -> Self {
        ParkedLimits { rows: 10_000_000, bytes: ByteSize(10 << 30) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            inflight: ByteSize(8 << 20),
            event: ByteSize(16 << 20),
            run_ahead: ByteSize(1 << 30),
            parked: ParkedLimits::default(),
        }
    }
}

/// `wal_budget:`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct WalBudget {
    /// WAL that the server may keep for the slot; none: as much as `max_slot_wal_keep_size` lets it. Where both say
    /// something, the smaller one counts.
    pub bytes: Option<ByteSize>,
    /// The part from which on it is worth a warning.
    pub warn: Percent,
    /// The part from which on the sink that holds the WAL is to let go of it, without a loss.
    pub act: Percent,
    /// The part from which on there is no time left.
    pub last: Percent,
    /// What happens at `last`.
    pub at_last: AtLast,
    /// The sinks that are given up at `last`, in this order.
    pub sacrifice: Vec<String>,
}

impl Default for WalBudget {
    fn default() -> Self {
        WalBudget {
            bytes: None,
            warn: Percent::new(50),
            act: Percent::new(75),
            last: Percent::new(90),
            at_last: AtLast::default(),
            sacrifice: Vec::new(),
        }
    }
}

/// `wal_budget.at_last:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AtLast {
    /// Nothing is given up: the slot may be lost, or the disk filled, in the end.
    #[default]
    Hold,
    /// What the sinks under `sacrifice` still owe is given up for them, so that the slot and the other sinks live.
    Sacrifice,
}

/// `dead_letters:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeadLetters {
    /// A dead letter that is older is deleted.
    pub retain: Retain,
    /// Whether the event itself is kept.
    pub payload: LetterPayload,
}

/// `dead_letters.payload:`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LetterPayload {
    /// Payload, headers and the sink's words are kept: the letter can be sent once more.
    #[default]
    Keep,
    /// They are not: it stays known which event it was, and why. Such a letter is never sent.
    Omit,
}

/// `admin:`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Address and port of the HTTP interface; `off` for none.
    pub listen: String,
    /// How long a sink may be stuck before `/readyz` says so.
    pub stuck_after: HumanDuration,
    /// Whoever wants to change something over HTTP (`POST /reload`) must know this; none: nobody can. `token_file` names
    /// a file that holds it.
    #[serde(serialize_with = "hidden")]
    pub token: Option<Secret>,
}

impl Default for Admin {
    fn default() -> Self {
        Admin { listen: "127.0.0.1:9432".into(), stuck_after: HumanDuration(Duration::from_secs(60)), token: None }
    }
}
