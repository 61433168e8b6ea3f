//! From the configuration's routes to a [`Router`]: every fault at once, each with its place.

use std::{collections::HashMap, fmt};

use walgate_sink::{Escape, TargetField};

use super::{
    Field, Mapping, Pattern, Router, Rule, RuleTarget, SinkTarget, Template, closest,
    condition::Condition,
    template::{MAX_RENDERED, has_dot_segment},
};
use crate::config;

/// One fault in the routes. `Display` puts the place before the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteError {
    /// The route, by its place in `routes`. Where `sink` is set: the first one that uses that sink, or 0.
    pub route: usize,
    /// The pattern in the route's `event_type`, where the fault is in one.
    pub pattern: Option<usize>,
    /// The key in the route's `when`, where the fault is in one; with it the place in its list, where it is in that.
    pub when: Option<(String, Option<usize>)>,
    /// The target in the route's `to`, where the fault is in one.
    pub target: Option<usize>,
    /// The key of the target, or of the sink's own configuration.
    pub field: Option<String>,
    /// Set where the fault is in a default of the sink's own configuration: the sink's place.
    pub sink: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for RouteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The message names the sink itself.
        if self.sink.is_none() {
            write!(f, "routes[{}]", self.route)?;
            if let Some(pattern) = self.pattern {
                write!(f, ".event_type[{pattern}]")?;
            }
            if let Some((key, value)) = &self.when {
                write!(f, ".when.\"{}\"", key.escape_debug())?;
                if let Some(value) = value {
                    write!(f, "[{value}]")?;
                }
            }
            if let Some(target) = self.target {
                write!(f, ".to[{target}]")?;
            }
            if let Some(field) = &self.field {
                write!(f, ".{field}")?;
            }
            f.write_str(": ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for RouteError {}

impl RouteError {
    fn new(route: usize, message: impl Into<String>) -> Self {
        RouteError { route, pattern: None, when: None, target: None, field: None, sink: None, message: message.into() }
    }
}

impl Router {
    /// Compiles the routes.
    ///
    /// # Errors
    /// Every fault: patterns, unknown sinks and keys, templates, fields that the outbox does not give, and targets that
    /// a sink requires and nobody gives.
    pub fn compile(routes: &[config::Route], sinks: &[SinkTarget], known: &Mapping) -> Result<Router, Vec<RouteError>> {
        let mut compiler = Compiler::new(sinks, known);
        let defaults: Vec<_> = (0..sinks.len()).map(|sink| compiler.defaults(routes, sink)).collect();
        let rules = routes.iter().enumerate().map(|(index, route)| compiler.rule(index, route, &defaults)).collect();
        if routes.len() > usize::from(u16::MAX) {
            let message = format!("there are {} routes, and {} are possible", routes.len(), u16::MAX);
            compiler.errors.push(RouteError::new(usize::from(u16::MAX), message));
        }
        if !compiler.errors.is_empty() {
            return Err(compiler.errors);
        }
        Ok(Router {
            sinks: sinks.iter().map(|sink| sink.name.clone()).collect(),
            rules,
            columns: compiler.columns,
            cache: HashMap::new(),
        })
    }
}

pub(super) struct Compiler<'a> {
    sinks: &'a [SinkTarget],
    known: &'a Mapping,
    columns: Vec<String>,
    /// The place of each of `columns`.
    places: HashMap<String, usize>,
    errors: Vec<RouteError>,
}

impl<'a> Compiler<'a> {
    pub(super) fn new(sinks: &'a [SinkTarget], known: &'a Mapping) -> Self {
        Compiler { sinks, known, columns: Vec::new(), places: HashMap::new(), errors: Vec::new() }
    }

    /// The target that the sink's own templates make.
    pub(super) fn own_target(&mut self, index: usize, name: &str) -> Option<RuleTarget> {
        let mut defaults: Vec<Vec<Given>> = self.sinks.iter().map(|_| Vec::new()).collect();
        if let Some(own) = defaults.get_mut(index) {
            *own = self.defaults(&[], index);
        }
        let target = config::RouteTarget { sink: name.to_owned(), fields: Vec::new() };
        self.target(&target, &[], &defaults).filter(|_| self.errors.is_empty())
    }

    /// The sink's own templates, one for each field. A faulty one counts as given, so that it is reported once.
    fn defaults(&mut self, routes: &[config::Route], index: usize) -> Vec<Given> {
        let Some(sink) = self.sinks.get(index) else { return Vec::new() };
        let uses = |route: &config::Route| route.to.0.iter().any(|target| target.sink == sink.name);
        let route = routes.iter().position(uses).unwrap_or(0);
        let texts = sink.defaults.iter().map(Option::as_deref).chain(std::iter::repeat(None));
        let mut defaults = Vec::new();
        for (field, text) in sink.fields.iter().zip(texts) {
            let Some(text) = text else {
                defaults.push(Given::Absent);
                continue;
            };
            match self.template(sink, field, text) {
                Ok(template) => defaults.push(Given::Template(template)),
                Err(message) => {
                    defaults.push(Given::Faulty);
                    let message = format!("`{}` of sink `{}`: {message}", field.name, sink.name);
                    let error = RouteError::new(route, message);
                    self.errors.push(RouteError { field: Some(field.name.to_owned()), sink: Some(index), ..error });
                }
            }
        }
        defaults
    }

    fn rule(&mut self, index: usize, route: &config::Route, defaults: &[Vec<Given>]) -> Rule {
        let mut rule = Rule { patterns: Vec::new(), when: Box::default(), targets: Vec::new() };
        if route.event_type.0.is_empty() {
            let message = "the list of event types is empty: name at least one, or `**` for every event type";
            self.errors.push(RouteError::new(index, message));
        }
        for (place, text) in route.event_type.0.iter().enumerate() {
            match Pattern::parse(text) {
                Ok(pattern) => rule.patterns.push(pattern),
                Err(error) => {
                    let error = RouteError::new(index, error.to_string());
                    self.errors.push(RouteError { pattern: Some(place), ..error });
                }
            }
        }
        rule.when = self.conditions(index, route);
        if route.to.0.is_empty() {
            let message = "the list of targets is empty: name a sink, or remove the route (what no route matches is \
                           left to `unrouted`)";
            self.errors.push(RouteError::new(index, message));
        }
        for (place, target) in route.to.0.iter().enumerate() {
            let before = self.errors.len();
            let compiled = self.target(target, &rule.patterns, defaults);
            for error in self.errors.iter_mut().skip(before) {
                error.route = index;
                error.target = Some(place);
            }
            rule.targets.extend(compiled);
        }
        rule
    }

    /// One target; its errors get their place from the caller. `None`: it is so wrong that nothing can be made of it.
    fn target(
        &mut self,
        target: &config::RouteTarget,
        patterns: &[Pattern],
        defaults: &[Vec<Given>],
    ) -> Option<RuleTarget> {
        let Some((index, sink)) = self.sinks.iter().enumerate().find(|(_, sink)| sink.name == target.sink) else {
            let message = format!("unknown sink {}", Choice::of(&target.sink, "the sinks are", self.sink_names()));
            self.errors.push(RouteError::new(0, message));
            return None;
        };
        let mut given: Vec<Option<Given>> = sink.fields.iter().map(|_| None).collect();
        for (key, text) in &target.fields {
            let place = sink.fields.iter().zip(&mut given).find(|(field, _)| field.name == key);
            let message = match place {
                None => {
                    let keys = sink.fields.iter().map(|field| field.name);
                    let choice = Choice::of(key, "its target keys are", keys.collect());
                    format!("sink `{}` has no target key {choice}", sink.name)
                }
                Some((_, Some(_))) => format!("`{key}` is given twice"),
                Some((field, slot)) => match self.template(sink, field, text) {
                    Ok(template) => {
                        *slot = Some(Given::Template(template));
                        continue;
                    }
                    Err(message) => {
                        *slot = Some(Given::Faulty);
                        message
                    }
                },
            };
            self.errors.push(RouteError { field: Some(key.clone()), ..RouteError::new(0, message) });
        }
        let own = defaults.get(index).map_or(&[][..], |own| own);
        let mut templates = Vec::with_capacity(given.len());
        for ((field, given), own) in sink.fields.iter().zip(given).zip(own) {
            match given.as_ref().unwrap_or(own) {
                Given::Template(template) => {
                    if let Some(message) = missing_segment(template, patterns) {
                        let error = match given {
                            Some(_) => RouteError { field: Some(field.name.to_owned()), ..RouteError::new(0, message) },
                            None => RouteError::new(0, format!("`{}` of sink `{}`: {message}", field.name, sink.name)),
                        };
                        self.errors.push(error);
                    }
                    templates.push(Some(template.clone()));
                }
                Given::Faulty => templates.push(None),
                Given::Absent => {
                    if field.required {
                        let (name, sink) = (field.name, &sink.name);
                        let message = format!(
                            "sink `{sink}` needs `{name}`, and neither this route nor the sink's own configuration gives \
                             it: write `to: {{ sink: {sink}, {name}: ... }}` here, or `{name}` under the sink as the \
                             default of its routes"
                        );
                        self.errors.push(RouteError { field: Some(name.to_owned()), ..RouteError::new(0, message) });
                    }
                    templates.push(None);
                }
            }
        }
        let by_type = templates.iter().flatten().flat_map(Template::fields).all(|(field, _)| field.is_event_type());
        Some(RuleTarget { sink: index, fields: sink.fields, templates: templates.into(), by_type })
    }

    /// The conditions of a route, those that are sound.
    fn conditions(&mut self, index: usize, route: &config::Route) -> Box<[Condition]> {
        let mut conditions = Vec::new();
        for (key, texts) in route.when.iter().flat_map(|when| &when.0) {
            let mut error = |value: Option<usize>, message: String| {
                let when = Some((key.clone(), value));
                self.errors.push(RouteError { when, ..RouteError::new(index, message) });
            };
            if texts.0.is_empty() {
                error(None, "the list is empty, so it never holds: name at least one text".to_owned());
            }
            for (place, text) in texts.0.iter().enumerate().filter(|(_, text)| text.len() > MAX_RENDERED) {
                let message = format!("it has {} bytes, and {MAX_RENDERED} are possible", text.len());
                error(Some(place), message);
            }
            let field = condition_field(key).and_then(|field| self.check(&field, key).map(|()| field));
            match field {
                Ok(field) => {
                    let field = self.bound(field);
                    let any_of = texts.0.iter().map(|text| Box::from(text.as_str())).collect();
                    conditions.push(Condition { field, any_of });
                }
                Err(message) => {
                    let when = Some((key.clone(), None));
                    self.errors.push(RouteError { when, ..RouteError::new(index, message) });
                }
            }
        }
        conditions.into()
    }

    /// Reads one template and checks what it names, and what it gives.
    fn template(&mut self, sink: &SinkTarget, field: &TargetField, text: &str) -> Result<Template, String> {
        let mut template = Template::parse(text).map_err(|error| error.to_string())?;
        for (named, column) in template.fields() {
            self.check(named, &shown(named)).map_err(|message| format!("{message} (column {column})"))?;
        }
        check_grammar(sink, field, &template)?;
        template.bind(|name| self.place(name));
        Ok(template)
    }

    /// The place of a column among those that the router reads.
    fn place(&mut self, name: &str) -> usize {
        *self.places.entry(name.to_owned()).or_insert_with(|| {
            self.columns.push(name.to_owned());
            self.columns.len() - 1
        })
    }

    fn bound(&mut self, field: Field) -> Field {
        match field {
            Field::Column { name, .. } => Field::Column { index: self.place(&name), name },
            other => other,
        }
    }

    /// Whether the outbox gives this field, which stands in the configuration as `shown`.
    fn check(&self, field: &Field, shown: &str) -> Result<(), String> {
        match field {
            Field::EventType | Field::Segments(_) | Field::Id => Ok(()),
            Field::Key if self.known.key => Ok(()),
            Field::Key => Err(format!("`{shown}` needs the column of the key: name it as `outbox.columns.key`")),
            Field::Header(_) if self.known.headers => Ok(()),
            Field::Header(name) if self.known.header_names.iter().any(|known| **known == **name) => Ok(()),
            Field::Header(name) if self.known.header_names.is_empty() => Err(format!(
                "`{shown}` needs headers: name a jsonb column as `outbox.columns.headers`, or give the header a \
                 column of its own as `outbox.header_columns.{name}`"
            )),
            Field::Header(name) => {
                let names = self.known.header_names.iter().map(|name| &**name).collect();
                let choice = Choice::of(name, "the headers of `outbox.header_columns` are", names);
                Err(format!("unknown header {choice}"))
            }
            Field::Column { name, .. } => match &self.known.columns {
                Some(columns) if !columns.iter().any(|column| **column == **name) => {
                    let columns = columns.iter().map(|column| &**column).collect();
                    let choice = Choice::of(name, "the columns of the outbox are", columns);
                    Err(format!("unknown column {choice}"))
                }
                _ => Ok(()),
            },
        }
    }

    fn sink_names(&self) -> Vec<&str> {
        self.sinks.iter().map(|sink| &*sink.name).collect()
    }
}

/// A field as a template has it.
fn shown(field: &Field) -> String {
    match field {
        Field::EventType => "{event_type}".to_owned(),
        Field::Segments(segments) => format!("{{event_type{segments}}}"),
        Field::Key => "{key}".to_owned(),
        Field::Id => "{id}".to_owned(),
        Field::Header(name) => format!("{{header.{name}}}"),
        Field::Column { name, .. } => format!("{{column.{name}}}"),
    }
}

/// What a key of `when` names.
fn condition_field(key: &str) -> Result<Field, String> {
    const ARE: &str = "a condition is on `key`, `header.<name>` or `column.<name>`";
    match (key, key.split_once('.')) {
        ("key", _) => Ok(Field::Key),
        (_, Some(("header", name))) if !name.is_empty() => Ok(Field::Header(name.into())),
        (_, Some(("column", name))) if !name.is_empty() => Ok(Field::Column { name: name.into(), index: 0 }),
        ("event_type", _) => Err(format!("the event type is the route's own `event_type`, a pattern; {ARE}")),
        (_, split) => {
            let meant = match split {
                Some((kind, name)) => closest(kind, ["header", "column"].into_iter())
                    .map(|kind| format!("{kind}.{}", if name.is_empty() { "<name>" } else { name })),
                None => closest(key.trim(), ["key", "header.<name>", "column.<name>"].into_iter()).map(str::to_owned),
            };
            let meant = meant.map(|meant| format!(" (did you mean `{}`?)", meant.escape_debug()));
            let shown: String = key.escape_debug().take(100).collect();
            Err(format!("unknown condition `{shown}`{}: {ARE}", meant.unwrap_or_default()))
        }
    }
}

/// What a template gives for the tamest of all events, by the sink's grammar: what is wrong with that is wrong for every
/// event, and wrong now.
fn check_grammar(sink: &SinkTarget, field: &TargetField, template: &Template) -> Result<(), String> {
    let sample = template.sample();
    if field.escape == Escape::UrlPath && has_dot_segment(&sample) {
        return Err("a path cannot have a segment `.` or `..`".to_owned());
    }
    if sample.is_empty() {
        return if field.required { Err("it is empty, and the sink needs it".to_owned()) } else { Ok(()) };
    }
    (sink.check)(field.name, &sample).map_err(|why| {
        let with = match template.fields().next() {
            Some(_) => {
                format!(" (with `x` for each field it is `{}`)", sample.escape_debug().take(100).collect::<String>())
            }
            None => String::new(),
        };
        format!("not a {} that sink `{}` takes: {why}{with}", field.name, sink.name)
    })
}

/// A segment of the event type that the template names, and that no event type of some pattern has.
fn missing_segment(template: &Template, patterns: &[Pattern]) -> Option<String> {
    template.fields().find_map(|(field, column)| {
        let Field::Segments(segments) = field else { return None };
        let (pattern, count) = patterns.iter().find_map(|pattern| {
            let count = pattern.segment_count()?;
            (count < segments.needed()).then_some((pattern, count))
        })?;
        let plural = if count == 1 { "" } else { "s" };
        Some(format!(
            "`{{event_type{segments}}}` is never there: event types that `{pattern}` matches have {count} segment{plural} \
             (column {column})"
        ))
    })
}

/// What stands for a field of a target.
#[derive(Clone, Debug)]
enum Given {
    Absent,
    Template(Template),
    /// Given, and reported.
    Faulty,
}

/// A name that is none of those that exist.
struct Choice<'a> {
    name: &'a str,
    are: &'a str,
    exist: Vec<&'a str>,
}

impl<'a> Choice<'a> {
    fn of(name: &'a str, are: &'a str, exist: Vec<&'a str>) -> Self {
        Choice { name, are, exist }
    }
}

impl fmt::Display for Choice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.name.escape_debug())?;
        if let Some(meant) = closest(self.name, self.exist.iter().copied()) {
            write!(f, " (did you mean `{meant}`?)")?;
        }
        let exist = if self.exist.is_empty() { "none".to_owned() } else { self.exist.join(", ") };
        write!(f, ": {} {exist}", self.are)
    }
}
