//! What `walgate check` shows of the routes, and what it warns of.

use std::fmt;

use serde::Serialize;

use super::{Pattern, Router, Rule, RuleTarget, condition};

/// One line of the routing table: a pattern and one of its targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteRow {
    /// The route, by its place in `routes`.
    pub route: usize,
    /// The pattern.
    pub pattern: String,
    /// What must hold beside it: `header.tenant=acme`, `column.region=eu|us`.
    pub when: Vec<String>,
    /// The sink's name.
    pub sink: String,
    /// The target's templates, `topic=orders.{event_type} key={key}`; empty where the sink has no target keys.
    pub target: String,
}

/// Something in the routes that works and is hardly meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteWarning {
    /// The route, by its place in `routes`; `None`: it concerns a sink.
    pub route: Option<usize>,
    /// The sink's name.
    pub sink: String,
    /// What is noticed and what to do.
    pub message: String,
}

impl fmt::Display for RouteWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.route {
            Some(route) => write!(f, "routes[{route}]: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl Router {
    /// The routing table: every pattern with each of its targets, in the order of the routes.
    #[must_use]
    pub fn table(&self) -> Vec<RouteRow> {
        let mut rows = Vec::new();
        for (route, rule) in self.rules.iter().enumerate() {
            for pattern in &rule.patterns {
                rows.extend(rule.targets.iter().map(|target| RouteRow {
                    route,
                    pattern: pattern.text().to_owned(),
                    when: rule.when.iter().map(ToString::to_string).collect(),
                    sink: self.sink_name(target).to_owned(),
                    target: target.to_string(),
                }));
            }
        }
        rows
    }

    /// Patterns whose target an earlier one reaches already, and sinks that no route uses.
    #[must_use]
    pub fn warnings(&self) -> Vec<RouteWarning> {
        let mut warnings = Vec::new();
        let mut earlier: Vec<(usize, &Rule, &Pattern, &RuleTarget)> = Vec::new();
        for (route, rule) in self.rules.iter().enumerate() {
            for pattern in &rule.patterns {
                for target in &rule.targets {
                    let sink = self.sink_name(target).to_owned();
                    let covering = earlier.iter().find(|(_, other, wide, same)| {
                        target.is_same(same) && wide.covers(pattern) && condition::follow_from(&other.when, &rule.when)
                    });
                    if let Some((first, _, wide, _)) = covering {
                        let message = format!(
                            "`{pattern}` to `{sink}` has no effect: `{wide}` of routes[{first}] sends these events to the \
                             same target already, and one target gets an event once; remove it, or give it another target"
                        );
                        warnings.push(RouteWarning { route: Some(route), sink, message });
                    } else {
                        earlier.push((route, rule, pattern, target));
                    }
                }
            }
        }
        for (index, sink) in self.sinks.iter().enumerate() {
            if !self.rules.iter().flat_map(|rule| &rule.targets).any(|target| target.sink == index) {
                let message =
                    format!("no route uses sink `{sink}`: nothing is delivered to it; add a route, or remove it");
                warnings.push(RouteWarning { route: None, sink: sink.clone(), message });
            }
        }
        warnings
    }

    fn sink_name(&self, target: &RuleTarget) -> &str {
        self.sinks.get(target.sink).map_or("", |name| name)
    }
}

impl RuleTarget {
    /// Whether it renders to the same target of the same sink for every event.
    pub(super) fn is_same(&self, other: &RuleTarget) -> bool {
        self.sink == other.sink && self.templates == other.templates
    }
}

impl fmt::Display for RuleTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = self.fields.iter().zip(&self.templates).filter_map(|(field, text)| Some((field, text.as_ref()?)));
        for (index, (field, template)) in given.enumerate() {
            write!(f, "{}{}={}", if index == 0 { "" } else { " " }, field.name, template.text())?;
        }
        Ok(())
    }
}
