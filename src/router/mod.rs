//! From an event to its deliveries: which routes match its type, and where in each sink it goes.
//!
//! Every route that matches applies (patterns: [`Pattern`]). A target field is a [`Template`]: the route's, else the
//! sink's own default. What an event gives nothing for (NULL or empty) makes its delivery *invalid*, never a guess and
//! never a silent drop: the delivery is handed out with its rejection, and the sink's `on_reject` decides.
//!
//! Routing is a function of the event and of the compiled routes alone. What depends on the event type only (the
//! matching, literal targets, `orders.{event_type}`) is worked out once for each event type and kept in a bounded cache;
//! an event whose type is known then costs no allocation but for what is rendered from its own fields. A route's `when`
//! is looked at for each event, without an allocation; routes without one cost nothing by it.

mod compile;
mod condition;
mod dedup;
mod direct;
mod explain;
mod pattern;
mod segments;
mod table;
mod template;
#[cfg(test)]
mod tests;

pub use compile::RouteError;
pub use direct::Direct;
pub use explain::{RouteVerdict, Verdict};
pub use pattern::{MAX_PATTERN, Pattern, PatternError};
pub use segments::Segments;
pub use table::{RouteRow, RouteWarning};
pub use template::{Field, MAX_RENDERED, Template, TemplateError};

use std::collections::HashMap;

use bytestring::ByteString;
use walgate_sink::{Delivery, Event, RejectReason, Rejection, Target, TargetCheck, TargetField};

use self::{
    condition::Condition,
    template::{RenderError, Values},
};
use crate::config;

/// Event types whose decision is kept; when they are more, the cache starts anew.
const CACHED_TYPES: usize = 4096;
/// Bytes of the longest event type whose decision is kept: what hostile types can pin in memory is bounded.
const CACHED_LENGTH: usize = 128;

/// A sink as far as routing needs it.
#[derive(Clone, Debug)]
pub struct SinkTarget {
    /// Its name.
    pub name: String,
    /// The parts of an address in it.
    pub fields: &'static [TargetField],
    /// For each field the default template from the sink's own configuration.
    pub defaults: Vec<Option<String>>,
    /// The grammar of its fields.
    pub check: TargetCheck,
}

/// What the outbox gives templates to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// Whether a key column is mapped.
    pub key: bool,
    /// Whether a headers column is mapped: then any header name is possible.
    pub headers: bool,
    /// Headers that come from columns of their own.
    pub header_names: Vec<String>,
    /// The table's columns; `None`: not known, so that any may be named (the outbox reader checks them later).
    pub columns: Option<Vec<String>>,
}

impl Mapping {
    /// What the configuration says of it, without a look at the table.
    #[must_use]
    pub fn of(outbox: &config::Outbox) -> Self {
        Mapping {
            key: outbox.columns.key.is_some(),
            headers: outbox.columns.headers.is_some(),
            header_names: outbox.header_columns.keys().cloned().collect(),
            columns: None,
        }
    }
}

/// One delivery of an event.
#[derive(Clone, Debug)]
pub struct Routed {
    /// Its sink, by its place among the sinks that the router was compiled with.
    pub sink: usize,
    /// The first route that sends it there, by its place among the routes.
    pub route: u16,
    /// The delivery. Where it is invalid, the field that has no legal value is not set in its target.
    pub delivery: Delivery,
    /// Why it has no legal target: it is not to be attempted, and goes straight to what the sink does with rejections.
    pub invalid: Option<Rejection>,
}

/// Compiled routes. Made by [`Router::compile`].
#[derive(Debug)]
pub struct Router {
    sinks: Vec<String>,
    rules: Vec<Rule>,
    /// Columns that templates and conditions read.
    columns: Vec<String>,
    cache: HashMap<ByteString, Decision>,
}

/// One route.
#[derive(Debug)]
struct Rule {
    patterns: Vec<Pattern>,
    /// All of them must hold.
    when: Box<[Condition]>,
    targets: Vec<RuleTarget>,
}

/// One target of a route.
#[derive(Debug)]
struct RuleTarget {
    sink: usize,
    fields: &'static [TargetField],
    /// One for each field.
    templates: Box<[Option<Template>]>,
    /// Whether its templates name nothing but `{event_type}`: then it is rendered once for each event type.
    by_type: bool,
}

/// What happens to events of one type.
#[derive(Debug)]
struct Decision {
    steps: Box<[Step]>,
}

#[derive(Debug)]
struct Step {
    rule: u16,
    target: usize,
    /// Whether it is the only step to its sink.
    alone: bool,
    /// Whether its rule has conditions.
    conditional: bool,
    /// Whether a step before it, of a rule with other conditions, has the same target.
    repeats: bool,
    /// The address, where it depends on the event type only.
    ready: Option<Address>,
}

/// A rendered target.
#[derive(Clone, Debug)]
pub struct Address {
    /// Where it is. A field that has no legal value is not set.
    pub target: Target,
    /// What replaces the event's key as the ordering key.
    pub ordering_key: Option<ByteString>,
    /// Why it is no legal target.
    pub invalid: Option<Rejection>,
}

impl Router {
    /// The columns that templates and conditions read, in the order in which [`Router::route`] wants their values.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Finds the deliveries of an event, in the order of the routes, and puts them into `out`, which is cleared first.
    /// Nothing in it afterwards: no route matches. `columns` are the values of [`Router::columns`].
    ///
    /// The same target of one sink by two routes is one delivery. Several deliveries to one sink have dedup ids of
    /// their own: the event's id, `-`, and a hash of the target that is the same in every version.
    pub fn route(&mut self, event: &Event, columns: &[Option<ByteString>], out: &mut Vec<Routed>) {
        out.clear();
        if event.event_type.len() > CACHED_LENGTH {
            let decision = self.decide(&event.event_type);
            return self.deliver(&decision, event, columns, out);
        }
        if let Some(decision) = self.cache.get(&*event.event_type) {
            return self.deliver(decision, event, columns, out);
        }
        // A copy: a slice would keep the whole chunk of the stream alive for as long as the cache lives.
        let event_type = ByteString::from(&*event.event_type);
        let decision = self.decide(&event_type);
        self.deliver(&decision, event, columns, out);
        if self.cache.len() >= CACHED_TYPES {
            self.cache.clear();
        }
        self.cache.insert(event_type, decision);
    }

    fn decide(&self, event_type: &ByteString) -> Decision {
        let mut steps: Vec<Step> = Vec::new();
        for (index, rule) in self.rules.iter().enumerate() {
            // `compile` refuses more routes than a u16 can count.
            let Ok(number) = u16::try_from(index) else { break };
            if !rule.patterns.iter().any(|pattern| pattern.matches(event_type)) {
                continue;
            }
            for (place, target) in rule.targets.iter().enumerate() {
                let is_same = |step: &&Step| self.target(step).is_some_and(|earlier| earlier.is_same(target));
                let conditions =
                    |step: &Step| self.rules.get(usize::from(step.rule)).map_or(&[][..], |rule| &rule.when);
                // Wherever this rule holds, that one did.
                let covers = |step: &Step| condition::follow_from(conditions(step), &rule.when);
                if steps.iter().filter(is_same).any(covers) {
                    continue;
                }
                let repeats = steps.iter().any(|step| is_same(&step));
                let values = Values { event_type, event: None, columns: &[] };
                let ready = target.by_type.then(|| self.address(number, target, values));
                let conditional = !rule.when.is_empty();
                steps.push(Step { rule: number, target: place, alone: true, conditional, repeats, ready });
            }
        }
        let sink_of = |step: &Step| self.target(step).map(|target| target.sink);
        let mut count = vec![0_u32; self.sinks.len()];
        for sink in steps.iter().filter_map(sink_of) {
            if let Some(count) = count.get_mut(sink) {
                *count += 1;
            }
        }
        for step in &mut steps {
            step.alone = sink_of(step).and_then(|sink| count.get(sink)).is_none_or(|count| *count < 2);
        }
        Decision { steps: steps.into() }
    }

    /// Whether all conditions of the step's rule hold.
    fn holds(&self, step: &Step, values: Values<'_>) -> bool {
        let rule = self.rules.get(usize::from(step.rule));
        rule.is_some_and(|rule| rule.when.iter().all(|condition| condition.holds(values)))
    }

    fn target(&self, step: &Step) -> Option<&RuleTarget> {
        self.rules.get(usize::from(step.rule))?.targets.get(step.target)
    }

    fn deliver(&self, decision: &Decision, event: &Event, columns: &[Option<ByteString>], out: &mut Vec<Routed>) {
        let mut shared = false;
        for (index, step) in decision.steps.iter().enumerate() {
            let Some(target) = self.target(step) else { continue };
            let applies = |step: &Step| {
                !step.conditional
                    || self.holds(step, Values { event_type: &event.event_type, event: Some(event), columns })
            };
            if !applies(step) {
                continue;
            }
            if step.repeats {
                let earlier = decision.steps.iter().take(index);
                let same = |step: &Step| self.target(step).is_some_and(|earlier| earlier.is_same(target));
                if earlier.into_iter().any(|step| same(step) && applies(step)) {
                    continue;
                }
            }
            let Address { target: address, ordering_key, invalid } = match &step.ready {
                Some(ready) => ready.clone(),
                None => {
                    let values = Values { event_type: &event.event_type, event: Some(event), columns };
                    self.address(step.rule, target, values)
                }
            };
            if !step.alone {
                let same = |routed: &Routed| routed.sink == target.sink && routed.delivery.target == address;
                // An invalid one is never merged: what it has no value for might differ.
                if invalid.is_none() && out.iter().any(|routed| routed.invalid.is_none() && same(routed)) {
                    continue;
                }
                shared = true;
            }
            out.push(Routed {
                sink: target.sink,
                route: step.rule,
                delivery: Delivery {
                    event: event.clone(),
                    target: address,
                    ordering_key: ordering_key.or_else(|| event.key.clone()),
                    dedup_id: event.id.clone(),
                    attempt: 1,
                },
                invalid,
            });
        }
        if shared {
            distinguish(out);
        }
    }

    fn address(&self, route: u16, target: &RuleTarget, values: Values<'_>) -> Address {
        let sink = self.sinks.get(target.sink).map_or("", |name| name);
        target.address(values, || format!("sink `{sink}`, routes[{route}]"))
    }
}

impl RuleTarget {
    /// Renders a target. Every template that gives no value leaves its field unset; the first one makes the rejection,
    /// which says where the target stands.
    fn address(&self, values: Values<'_>, place: impl Fn() -> String) -> Address {
        let target = self;
        let (mut ordering_key, mut invalid) = (None, None);
        let fields = target.fields.iter().zip(&target.templates);
        let rendered = fields.map(|(field, template)| {
            let template = template.as_ref()?;
            match template.render(values, field.escape) {
                Ok(value) => {
                    if field.ordering_key && !value.is_empty() {
                        ordering_key = Some(value.clone());
                    }
                    Some(value)
                }
                Err(error) => {
                    invalid.get_or_insert_with(|| rejection(&place(), field, template, &error));
                    None
                }
            }
        });
        let address = Target::new(target.fields, rendered);
        Address { target: address, ordering_key, invalid }
    }
}

fn rejection(place: &str, field: &TargetField, template: &Template, error: &RenderError) -> Rejection {
    let empty = |of: &Field, how: &str| {
        let advice = if field.ordering_key {
            format!("leave `{}` out of the target, and such events go without it", field.name)
        } else {
            "fill it when the row is written, or route such events to a target that does not need it".to_owned()
        };
        format!("is empty for this event: its {of} is {how}; {advice}")
    };
    let what = match error {
        RenderError::Missing(of @ (Field::Header(_) | Field::Segments(_))) => empty(of, "not there"),
        RenderError::Missing(of) => empty(of, "NULL"),
        RenderError::Empty(of) => empty(of, "empty"),
        RenderError::TooLong => {
            format!("gives more than {MAX_RENDERED} bytes for this event, and no name is that long")
        }
        RenderError::DotSegment => {
            "gives a path with a segment `.` or `..` for this event, which would lead to another path".to_owned()
        }
    };
    let (template, field) = (template.text(), field.name);
    let message = format!("template `{template}` of field `{field}` ({place}) {what}");
    Rejection::new(RejectReason::InvalidTarget, message)
}

/// Gives deliveries of one event that share a sink dedup ids of their own.
fn distinguish(out: &mut [Routed]) {
    for index in 0..out.len() {
        let Some(sink) = out.get(index).map(|routed| routed.sink) else { return };
        if out.iter().filter(|routed| routed.sink == sink).count() < 2 {
            continue;
        }
        if let Some(Routed { delivery, .. }) = out.get_mut(index) {
            delivery.dedup_id = dedup::dedup_id(&delivery.event.id, &delivery.target);
        }
    }
}

/// The candidate that is most like `word`, if any is like it enough to be meant: an edit or two away, case aside.
fn closest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let length = word.chars().count();
    if !(1..=64).contains(&length) {
        return None;
    }
    let distance = |candidate: &str| strsim::osa_distance(&word.to_lowercase(), &candidate.to_lowercase());
    let near = candidates.map(|candidate| (distance(candidate), candidate));
    near.filter(|(distance, _)| *distance <= 1 + length / 4).min_by_key(|(distance, _)| *distance).map(|(_, near)| near)
}
