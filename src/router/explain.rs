//! Why each route does or does not apply to an event: for people, not for the stream.

use bytestring::ByteString;
use serde::Serialize;
use walgate_sink::Event;

use super::{Router, template::Values};

/// One route's answer to an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RouteVerdict {
    /// The route, by its place in `routes`.
    pub route: usize,
    /// Its patterns.
    pub patterns: Vec<String>,
    /// Its sinks, each once.
    pub sinks: Vec<String>,
    /// Whether it applies, and why not.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Whether a route applies to an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It does.
    Matched {
        /// The first pattern that matches.
        pattern: String,
    },
    /// None of its patterns matches the event type.
    OtherType,
    /// A pattern matches, and a condition of `when` does not hold: the first one of those.
    ConditionFailed {
        /// The pattern.
        pattern: String,
        /// The condition's key, such as `header.tenant`.
        key: String,
        /// What it may be.
        wanted: Vec<String>,
        /// What it is; `None`: NULL or absent.
        found: Option<String>,
    },
}

impl Router {
    /// What each route says to an event, by the very patterns and conditions that [`Router::route`] goes by. `columns`
    /// are the values of [`Router::columns`].
    #[must_use]
    pub fn explain(&self, event: &Event, columns: &[Option<ByteString>]) -> Vec<RouteVerdict> {
        let values = Values { event_type: &event.event_type, event: Some(event), columns };
        let mut verdicts = Vec::with_capacity(self.rules.len());
        for (route, rule) in self.rules.iter().enumerate() {
            let matching = rule.patterns.iter().find(|pattern| pattern.matches(&event.event_type));
            let failed = rule.when.iter().find(|condition| !condition.holds(values));
            let verdict = match (matching.map(|pattern| pattern.text().to_owned()), failed) {
                (None, _) => Verdict::OtherType,
                (Some(pattern), None) => Verdict::Matched { pattern },
                (Some(pattern), Some(condition)) => Verdict::ConditionFailed {
                    pattern,
                    key: condition.key(),
                    wanted: condition.any_of.iter().map(|text| text.to_string()).collect(),
                    found: condition.field.text(values).map(str::to_owned),
                },
            };
            let mut sinks: Vec<String> = Vec::new();
            for name in rule.targets.iter().filter_map(|target| self.sinks.get(target.sink)) {
                if !sinks.contains(name) {
                    sinks.push(name.clone());
                }
            }
            let patterns = rule.patterns.iter().map(|pattern| pattern.text().to_owned()).collect();
            verdicts.push(RouteVerdict { route, patterns, sinks, verdict });
        }
        verdicts
    }
}
