//! Paths into the configuration: `sinks.partner.webhook.url`, `routes[0].to[1].topic`.

use std::fmt;

use walgate_sink::PathSegment;

/// One step of a [`KeyPath`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The value of a key in a mapping.
    Key(String),
    /// An element of a list, from 0.
    Index(usize),
}

/// Where something stands in the configuration, from its root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeyPath(Vec<Step>);

impl KeyPath {
    /// The configuration as a whole.
    #[must_use]
    pub fn root() -> Self {
        KeyPath::default()
    }

    /// The value of `key` in the mapping at this path.
    #[must_use]
    pub fn key(&self, key: impl Into<String>) -> Self {
        self.with(Step::Key(key.into()))
    }

    /// Element `index` of the list at this path.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    /// This path and one more step.
    #[must_use]
    pub fn with(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        KeyPath(steps)
    }

    /// This path, followed by another one.
    #[must_use]
    pub fn join(&self, rest: &KeyPath) -> Self {
        KeyPath(self.0.iter().chain(&rest.0).cloned().collect())
    }

    /// The path of the mapping or list that holds this one; none for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(KeyPath(rest.to_vec()))
    }

    /// The steps, from the root.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// The last step, where it is a key.
    #[must_use]
    pub fn last_key(&self) -> Option<&str> {
        match self.0.last() {
            Some(Step::Key(key)) => Some(key),
            _ => None,
        }
    }

    /// The keys on the way, without the indices.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|step| match step {
            Step::Key(key) => Some(key.as_str()),
            Step::Index(_) => None,
        })
    }

    /// Whether `other` is this path or lies below it.
    #[must_use]
    pub fn holds(&self, other: &KeyPath) -> bool {
        other.0.starts_with(&self.0)
    }

    /// Whether one of the two holds the other.
    #[must_use]
    pub fn touches(&self, other: &KeyPath) -> bool {
        self.holds(other) || other.holds(self)
    }
}

impl From<&[PathSegment]> for KeyPath {
    fn from(segments: &[PathSegment]) -> Self {
        KeyPath(
            segments
                .iter()
                .map(|segment| match segment {
                    PathSegment::Key(key) => Step::Key(key.clone()),
                    PathSegment::Index(index) => Step::Index(*index),
                })
                .collect(),
        )
    }
}

/// Reads `routes[0].to.topic`. A part that is not of the form `name[number]` is a key as it stands.
impl From<&str> for KeyPath {
    fn from(text: &str) -> Self {
        let mut path = KeyPath::root();
        for part in text.split('.').filter(|part| !part.is_empty()) {
            let indexed = part.strip_suffix(']').and_then(|rest| rest.split_once('['));
            let indices: Option<Vec<usize>> =
                indexed.and_then(|(_, indices)| indices.split("][").map(|index| index.parse().ok()).collect());
            let (name, indices) = match (indexed, indices) {
                (Some((name, _)), Some(indices)) => (name, indices),
                _ => (part, Vec::new()),
            };
            if !name.is_empty() {
                path = path.key(name);
            }
            for index in indices {
                path = path.index(index);
            }
        }
        path
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) => {
                    let dot = if number == 0 { "" } else { "." };
                    let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
                    match plain && !key.is_empty() {
                        true => write!(f, "{dot}{key}")?,
                        false => write!(f, "{dot}\"{}\"", super::snippet::key_name(key))?,
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_path_are_one() {
        for text in ["source.url", "routes[0].to[1].topic", "sinks.a-b.webhook", "m[0][12]"] {
            assert_eq!(KeyPath::from(text).to_string(), text);
        }
        assert_eq!(KeyPath::from("routes[0]"), KeyPath::root().key("routes").index(0));
        assert_eq!(KeyPath::root().key("a b").key("c").to_string(), "\"a b\".c");
        assert_eq!(KeyPath::from("odd[x]"), KeyPath::root().key("odd[x]"));
    }

    #[test]
    fn a_path_holds_itself_and_what_is_below() {
        let routes = KeyPath::from("routes");
        assert!(routes.holds(&KeyPath::from("routes[0].to")) && routes.holds(&routes));
        assert!(!routes.holds(&KeyPath::from("routes_old")) && !KeyPath::from("routes[0]").holds(&routes));
        assert!(KeyPath::from("routes[0]").touches(&routes));
    }
}
