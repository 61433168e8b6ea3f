//! What would become of an event: by the configuration's own router and outbox reader, offline.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Serialize, de::IgnoredAny};
use serde_json::{Map, Value};
use walgate_sink::{Event, PayloadFormat, TargetCheck};

use super::setup::{self, Routing};
use crate::{
    config::{self, ConfigErrors, KeyPath, KeySource, Loaded, Unrouted, printable},
    router::{RouteVerdict, Routed, Verdict},
};

/// The id of an event that was given none.
const NIL: &str = "00000000-0000-0000-0000-000000000000";

/// A row as somebody describes it.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub event_type: String,
    pub id: Option<String>,
    pub key: Option<String>,
    pub headers: Vec<(String, String)>,
    /// Columns by name; `None`: NULL.
    pub columns: Vec<(String, Option<String>)>,
    pub payload: Option<Bytes>,
}

/// A part of [`Given`] that the outbox does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenError {
    /// `key`, `headers` or `columns`.
    pub part: &'static str,
    /// The header or column.
    pub name: Option<String>,
    pub message: String,
}

/// What would become of an event.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The event; `None`: the row is none, for the reason in `unusable`.
    pub event: Option<EventView>,
    pub unusable: Option<String>,
    /// Every route's answer, in their order.
    pub routes: Vec<RouteAnswer>,
    pub deliveries: Vec<DeliveryView>,
    /// What happens to it where nothing is delivered: `drop` or `halt`.
    pub unrouted: Option<Unrouted>,
}

#[derive(Clone, Debug, Serialize)]
pub struct EventView {
    pub id: String,
    pub event_type: String,
    pub key: Option<String>,
    /// Why it has no key, where the key is one of the payload.
    pub no_key: Option<String>,
    pub headers: Value,
}

#[derive(Clone, Debug, Serialize)]
pub struct RouteAnswer {
    /// Where the route stands.
    pub place: String,
    #[serde(flatten)]
    pub verdict: RouteVerdict,
}

#[derive(Clone, Debug, Serialize)]
pub struct DeliveryView {
    pub sink: String,
    pub kind: String,
    pub route: usize,
    /// The target's fields that have a value.
    pub target: Map<String, Value>,
    pub ordering_key: Option<String>,
    pub dedup_id: String,
    /// Why it would be rejected, and not be sent.
    pub rejected: Option<RejectionView>,
}

#[derive(Clone, Debug, Serialize)]
pub struct RejectionView {
    pub reason: String,
    pub message: String,
}

/// A sink as far as this needs it.
pub struct SinkView {
    pub name: String,
    pub kind: String,
    pub fields: Vec<&'static str>,
    check: TargetCheck,
}

/// A configuration that events are shown to.
pub struct Simulator {
    routing: Routing,
    pub sinks: Vec<SinkView>,
    outbox: config::Outbox,
    unrouted: Unrouted,
    places: Vec<String>,
}

impl Simulator {
    /// The routes of this configuration.
    pub fn new(loaded: &Loaded) -> Result<Self, ConfigErrors> {
        let routing = setup::routing(loaded)?;
        let sink = |sink: &config::Sink| SinkView {
            name: sink.name.clone(),
            kind: sink.kind.clone(),
            fields: sink.factory.target().iter().map(|field| field.name).collect(),
            check: sink.factory.target_check(),
        };
        let routes = 0..loaded.config.routes.len();
        Ok(Simulator {
            routing,
            sinks: loaded.sinks.iter().map(sink).collect(),
            outbox: loaded.config.outbox.clone(),
            unrouted: loaded.config.unrouted,
            places: routes.map(|route| loaded.locate(KeyPath::root().key("routes").index(route))).collect(),
        })
    }

    /// Routes one event.
    pub fn run(&mut self, given: &Given) -> Result<Outcome, GivenError> {
        let columns = self.columns(given)?;
        let is_json = |bytes: &Bytes| serde_json::from_slice::<IgnoredAny>(bytes).is_ok();
        let format = if given.payload.as_ref().is_none_or(is_json) { PayloadFormat::Json } else { PayloadFormat::Text };
        let row = match self.routing.reader.imagine(&|column| columns.get(column).cloned(), format) {
            Ok(row) => row,
            Err(reason) => {
                return Ok(Outcome {
                    event: None,
                    unusable: Some(reason.to_string()),
                    routes: Vec::new(),
                    deliveries: Vec::new(),
                    unrouted: Some(self.unrouted),
                });
            }
        };
        let verdicts = self.routing.router.explain(&row.event, &row.columns);
        let routes = verdicts.into_iter().zip(&self.places);
        let routes = routes.map(|(verdict, place)| RouteAnswer { place: place.clone(), verdict }).collect();
        let mut routed = Vec::new();
        self.routing.router.route(&row.event, &row.columns, &mut routed);
        let deliveries: Vec<_> = routed.iter().filter_map(|routed| self.delivery(routed)).collect();
        let unrouted = deliveries.is_empty().then_some(self.unrouted);
        let event = Some(event_view(&row.event, row.no_key.map(|why| why.to_string())));
        Ok(Outcome { event, unusable: None, routes, deliveries, unrouted })
    }

    fn delivery(&self, routed: &Routed) -> Option<DeliveryView> {
        let sink = self.sinks.get(routed.sink)?;
        let delivery = &routed.delivery;
        let rejected = routed.invalid.as_ref().map(|rejection| RejectionView {
            reason: rejection.reason.as_str().to_owned(),
            message: rejection.message.clone(),
        });
        let by_grammar = || {
            let (field, why) = delivery.target.iter().find_map(|(name, value)| {
                let why = (sink.check)(name, value).err()?;
                Some((name, why))
            })?;
            Some(RejectionView {
                reason: walgate_sink::RejectReason::InvalidTarget.as_str().to_owned(),
                message: format!("not a {field} that sink `{}` takes: {why}", sink.name),
            })
        };
        let text = |text: &str| Value::String(text.to_owned());
        Some(DeliveryView {
            sink: sink.name.clone(),
            kind: sink.kind.clone(),
            route: routed.route.into(),
            target: delivery.target.iter().map(|(name, value)| (name.to_owned(), text(value))).collect(),
            ordering_key: delivery.ordering_key.as_deref().map(str::to_owned),
            dedup_id: delivery.dedup_id.to_string(),
            rejected: rejected.or_else(by_grammar),
        })
    }

    /// The row's columns by name.
    fn columns(&self, given: &Given) -> Result<BTreeMap<String, Bytes>, GivenError> {
        let names = &self.outbox.columns;
        let mut columns: BTreeMap<String, Bytes> = BTreeMap::new();
        let mut put = |part: &'static str, name: Option<&str>, column: &str, value: Bytes| {
            if columns.insert(column.to_owned(), value).is_none() {
                return Ok(());
            }
            let message = format!("column `{column}` is given twice, under two names of it");
            Err(GivenError { part, name: name.map(str::to_owned), message })
        };
        put("event_type", None, &names.event_type, Bytes::from(given.event_type.clone()))?;
        let by_name = given.columns.iter().any(|(column, _)| *column == names.id);
        match &given.id {
            None if by_name => {}
            id => put("id", None, &names.id, Bytes::from(id.clone().unwrap_or_else(|| NIL.to_owned())))?,
        }
        if let Some(payload) = &given.payload {
            put("payload", None, &names.payload, payload.clone())?;
        }
        if let Some(key) = &given.key {
            match &names.key {
                Some(KeySource::Column(column)) => put("key", None, column, Bytes::from(key.clone()))?,
                Some(KeySource::Payload(pointer)) => {
                    let message = format!("the key comes from the payload (`payload:{pointer}`): give that instead");
                    return Err(GivenError { part: "key", name: None, message });
                }
                None => {
                    let message = "the outbox has no key: name its column as `outbox.columns.key`".to_owned();
                    return Err(GivenError { part: "key", name: None, message });
                }
            }
        }
        let mut object = Map::new();
        for (header, value) in &given.headers {
            match (self.outbox.header_columns.get(header), &names.headers) {
                (Some(column), _) => put("headers", Some(header), column, Bytes::from(value.clone()))?,
                (None, Some(_)) => drop(object.insert(header.clone(), Value::String(value.clone()))),
                (None, None) => {
                    let shown = printable(header, 60);
                    let message = format!(
                        "the outbox has no header `{shown}`: name a jsonb column as `outbox.columns.headers`, or a column \
                         of the header's own under `outbox.header_columns`"
                    );
                    return Err(GivenError { part: "headers", name: Some(header.clone()), message });
                }
            }
        }
        if let (false, Some(column)) = (object.is_empty(), &names.headers) {
            put("headers", None, column, Bytes::from(Value::Object(object).to_string()))?;
        }
        for (column, value) in &given.columns {
            if let Some(value) = value {
                put("columns", Some(column), column, Bytes::from(value.clone()))?;
            }
        }
        Ok(columns)
    }
}

fn event_view(event: &Event, no_key: Option<String>) -> EventView {
    let headers = event.headers.iter().map(|(name, value)| (name.to_string(), Value::String(value.to_string())));
    EventView {
        id: event.id.to_string(),
        event_type: event.event_type.to_string(),
        key: event.key.as_deref().map(str::to_owned),
        no_key,
        headers: Value::Object(headers.collect()),
    }
}

impl RouteAnswer {
    /// Whether it applies, or why not, in a few words.
    pub fn reason(&self) -> String {
        match &self.verdict.verdict {
            Verdict::Matched { pattern } => format!("matches by `{pattern}`"),
            Verdict::OtherType => "no pattern matches the event type".to_owned(),
            Verdict::ConditionFailed { pattern, key, wanted, found } => {
                let found =
                    found.as_ref().map_or("not there".to_owned(), |found| format!("`{}`", printable(found, 60)));
                let wanted: Vec<_> = wanted.iter().map(|text| format!("`{}`", printable(text, 60))).collect();
                format!("`{pattern}` matches, but `{key}` is {found}, and `when` wants {}", wanted.join(" or "))
            }
        }
    }
}

impl DeliveryView {
    /// `bus subject=orders.created`, and how it ends if not well.
    pub fn line(&self) -> String {
        let mut line = self.sink.clone();
        for (name, value) in &self.target {
            line.push_str(&format!(" {name}={}", printable(value.as_str().unwrap_or_default(), 200)));
        }
        if let Some(key) = &self.ordering_key {
            line.push_str(&format!(" ordering_key={}", printable(key, 200)));
        }
        if let Some(rejected) = &self.rejected {
            line.push_str(&format!(" rejected={}", rejected.reason));
        }
        line
    }
}
