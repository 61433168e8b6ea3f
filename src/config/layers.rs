//! The layers: file < environment < flags, merged by figment. Defaults are serde's, below them all.

use std::collections::HashMap;

use figment::{
    Figment, Metadata, Profile, Provider,
    value::{Dict, Empty, Map, Num, Tag, Value as FigmentValue},
};
use serde_json::Value;

use super::{
    path::{KeyPath, Step},
    source_map::{Layer, Origin, SourceMap},
    yaml::{Entry, Node, NodeValue},
};

/// The prefix of environment variables; `__` goes one level down.
pub(crate) const PREFIX: &str = "WALGATE_";
/// Variables with the prefix that are read elsewhere.
const RESERVED: &[&str] = match cfg!(debug_assertions) {
    true => &["CONFIG", "LOG", "LOG_FORMAT", "FAILPOINT"],
    false => &["CONFIG", "LOG", "LOG_FORMAT"],
};
/// Levels that a variable or flag may go down.
const MAX_STEPS: usize = 16;

/// A value from a variable or a flag.
#[derive(Debug)]
pub(crate) struct Override {
    pub path: KeyPath,
    pub origin: Origin,
    pub text: String,
}

/// What an environment holds for us.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    pub overrides: Vec<Override>,
    /// Variables with our prefix that mean nothing: name, and the key they come nearest to.
    pub unknown: Vec<(String, Option<&'static str>)>,
    /// Variables that cannot be read as a path: name and what is wrong.
    pub malformed: Vec<(String, String)>,
}

/// Finds the overrides among environment variables. Variable names fold case and cannot hold `-`, so each step takes
/// the key of the file that it matches when both are folded, else its lower case.
pub(crate) fn environment(env: &HashMap<String, String>, file: Option<&Node>, top: &[&'static str]) -> Environment {
    let mut found = Environment::default();
    let mut names: Vec<&String> = env.keys().filter(|name| name.starts_with(PREFIX)).collect();
    names.sort();
    for name in names {
        let rest = &name[PREFIX.len()..];
        let text = env.get(name).cloned().unwrap_or_default();
        // Compose files pass variables on that are not set: an empty one sets nothing.
        if RESERVED.contains(&rest) || text.is_empty() {
            continue;
        }
        let steps: Vec<&str> = rest.split("__").collect();
        let first = steps.first().map(|step| step.to_ascii_lowercase()).unwrap_or_default();
        if steps.len() == 1 && !top.contains(&first.as_str()) {
            // Kubernetes gives every pod the addresses of services; one called `walgate` looks like ours.
            if !is_service_link(rest) {
                found.unknown.push((name.clone(), super::explain::nearest(&first, top.iter().copied())));
            }
            continue;
        }
        if steps.iter().any(|step| step.is_empty()) || steps.len() > MAX_STEPS {
            found.malformed.push((name.clone(), "is not a path of keys joined by `__`".into()));
            continue;
        }
        let path = resolve(file, &steps);
        found.overrides.push(Override { path, origin: Origin::Variable(name.clone()), text });
    }
    found
}

/// `WALGATE_SERVICE_HOST`, `WALGATE_PORT_9432_TCP_ADDR`, `WALGATE_ADMIN_PORT` and so on.
fn is_service_link(name: &str) -> bool {
    let digits = name.split('_').any(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit()));
    name == "PORT"
        || name.ends_with("_PORT")
        || name.ends_with("SERVICE_HOST")
        || name.contains("SERVICE_PORT")
        || (digits && name.contains("PORT_"))
}

fn resolve(file: Option<&Node>, steps: &[&str]) -> KeyPath {
    let fold = |key: &str| key.to_ascii_lowercase().replace('-', "_");
    let mut here = file;
    let mut path = KeyPath::root();
    for step in steps {
        let entries: &[Entry] = match here.map(|node| &node.value) {
            Some(NodeValue::Map(entries)) => entries,
            _ => &[],
        };
        let lower = step.to_ascii_lowercase();
        let entry = entries
            .iter()
            .find(|entry| entry.key == lower)
            .or_else(|| entries.iter().find(|entry| fold(&entry.key) == fold(step)));
        path = path.key(entry.map_or(lower, |entry| entry.key.clone()));
        here = entry.map(|entry| &entry.node);
    }
    path
}

/// One layer as figment takes it.
struct Source {
    name: &'static str,
    values: Dict,
}

impl Provider for Source {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// Merges the layers into one value, its keys in the order of the file, and notes in `map` which layer gave what. An
/// override that collides with another one is given back.
pub(crate) fn merge(
    file: Option<&Node>,
    environment: Vec<Override>,
    flags: Vec<Override>,
    map: &mut SourceMap,
) -> (Value, Vec<Override>) {
    let mut collisions = Vec::new();
    let file = match file.map(figment_value) {
        Some(FigmentValue::Dict(_, dict)) => dict,
        _ => Dict::new(),
    };
    let mut layer = |overrides: Vec<Override>| {
        let mut dict = Dict::new();
        for item in overrides {
            let value = section(&item.path, &item.text).unwrap_or_else(|| FigmentValue::from(item.text.as_str()));
            let placed = is_of_keys(&item.path) && insert(&mut dict, item.path.steps(), value);
            match placed {
                true => map.record_override(item.path, item.origin),
                false => collisions.push(item),
            }
        }
        dict
    };
    let (environment, flags) = (layer(environment), layer(flags));
    let figment = Figment::from(Source { name: "file", values: file })
        .merge(Source { name: "environment", values: environment })
        .merge(Source { name: "flags", values: flags });
    let mut values = Provider::data(&figment).unwrap_or_default();
    let merged = FigmentValue::from(values.remove(&Profile::Default).unwrap_or_default());
    (json_value(merged, &KeyPath::root(), &figment, map), collisions)
}

fn is_of_keys(path: &KeyPath) -> bool {
    let steps = path.steps();
    !steps.is_empty() && steps.len() <= MAX_STEPS && steps.iter().all(|step| matches!(step, Step::Key(_)))
}

/// The mapping that a text stands for, where the configuration has a section: it is merged key by key. Elsewhere a text
/// is taken as it is, until its type is known.
fn section(path: &KeyPath, text: &str) -> Option<FigmentValue> {
    let keys: Vec<&str> = path.keys().collect();
    let is_section = matches!(
        keys.as_slice(),
        ["source" | "outbox" | "limits" | "admin" | "sinks"]
            | ["outbox", "columns" | "header_columns"]
            | ["sinks", _]
            | ["sinks", _, _]
            | ["sinks", _, "delivery", "retry"]
    );
    let node = super::yaml::parse(text).ok().filter(|_| is_section)?;
    matches!(node.value, NodeValue::Map(_)).then(|| figment_value(&node))
}

/// Puts a value at a path of keys; false: something is there, or above there, already.
fn insert(dict: &mut Dict, steps: &[Step], value: FigmentValue) -> bool {
    match steps {
        [Step::Key(key)] => {
            if dict.contains_key(key) {
                return false;
            }
            dict.insert(key.clone(), value);
            true
        }
        [Step::Key(key), rest @ ..] => {
            let below = dict.entry(key.clone()).or_insert_with(|| FigmentValue::from(Dict::new()));
            match below {
                FigmentValue::Dict(_, dict) => insert(dict, rest, value),
                _ => false,
            }
        }
        _ => false,
    }
}

fn figment_value(node: &Node) -> FigmentValue {
    let tag = Tag::Default;
    match &node.value {
        NodeValue::Null => FigmentValue::Empty(tag, Empty::None),
        NodeValue::Bool(value) => FigmentValue::Bool(tag, *value),
        NodeValue::Signed(value) => FigmentValue::Num(tag, Num::I64(*value)),
        NodeValue::Unsigned(value) => FigmentValue::Num(tag, Num::U64(*value)),
        NodeValue::Float(value) => FigmentValue::Num(tag, Num::F64(*value)),
        NodeValue::Text(text) => FigmentValue::String(tag, text.clone()),
        NodeValue::List(nodes) => FigmentValue::Array(tag, nodes.iter().map(figment_value).collect()),
        NodeValue::Map(entries) => {
            let mut dict = Dict::new();
            for entry in entries {
                dict.entry(entry.key.clone()).or_insert_with(|| figment_value(&entry.node));
            }
            FigmentValue::Dict(tag, dict)
        }
    }
}

fn json_value(value: FigmentValue, path: &KeyPath, figment: &Figment, map: &mut SourceMap) -> Value {
    let layer = match figment.get_metadata(value.tag()).map(|metadata| metadata.name.as_ref()) {
        Some("flags") => Layer::Flags,
        Some("environment") => Layer::Environment,
        _ => Layer::File,
    };
    let layer = match value {
        // Merged from several: the file's, where it has it.
        FigmentValue::Dict(..) if map.order(path) != usize::MAX => Layer::File,
        _ => layer,
    };
    map.record_layer(path.clone(), layer);
    match value {
        FigmentValue::String(_, text) => Value::String(text),
        FigmentValue::Char(_, c) => Value::String(c.to_string()),
        FigmentValue::Bool(_, value) => Value::Bool(value),
        FigmentValue::Num(_, Num::I64(value)) => value.into(),
        FigmentValue::Num(_, Num::U64(value)) => value.into(),
        FigmentValue::Num(_, Num::F64(value)) => value.into(),
        FigmentValue::Num(..) => Value::Null,
        FigmentValue::Empty(..) => Value::Null,
        FigmentValue::Dict(_, dict) => {
            let mut entries: Vec<(usize, String, FigmentValue)> =
                dict.into_iter().map(|(key, value)| (map.order(&path.key(&key)), key, value)).collect();
            entries.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
            let mut object = serde_json::Map::with_capacity(entries.len());
            for (_, key, value) in entries {
                let value = json_value(value, &path.key(&key), figment, map);
                object.insert(key, value);
            }
            Value::Object(object)
        }
        FigmentValue::Array(_, values) => Value::Array(
            values
                .into_iter()
                .enumerate()
                .map(|(index, value)| json_value(value, &path.index(index), figment, map))
                .collect(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::{source_map::Point, yaml::parse};

    const TOP: [&str; 4] = ["source", "sinks", "unrouted", "admin"];

    fn env(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn flags_go_before_environment_and_that_before_the_file() {
        let text = "source: { slot: f, url: f, publication: f }\nsinks: { My-Sink: { x: [1, 2] }, b: 1, a: 2 }\n";
        let node = parse(text).unwrap();
        let mut map = SourceMap::new("w.yaml", text);
        map.record(&node);
        let env = env(&[
            ("WALGATE_SOURCE__SLOT", "e"),
            ("WALGATE_SOURCE__URL", "e"),
            ("WALGATE_SINKS__MY_SINK__X", "[3]"),
            ("WALGATE_SINKS__NEW__STDOUT", "{}"),
            ("WALGATE_CONFIG", "no"),
            ("OTHER", "no"),
        ]);
        let environment = environment(&env, Some(&node), &TOP);
        assert!(environment.unknown.is_empty() && environment.malformed.is_empty());
        let flag = |path: &str| Override { path: path.into(), origin: Origin::Flag("--f".into()), text: "g".into() };
        let flags = vec![flag("source.url"), flag("source.url"), flag("routes[0].to")];
        let (value, collisions) = merge(Some(&node), environment.overrides, flags, &mut map);
        assert_eq!(
            value,
            json!({
                "source": { "slot": "e", "url": "g", "publication": "f" },
                "sinks": { "My-Sink": { "x": "[3]" }, "b": 1, "a": 2, "new": { "stdout": {} } },
            })
        );
        let names: Vec<_> = value["sinks"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["My-Sink", "b", "a", "new"], "the order of the file");
        assert_eq!(collisions.len(), 2);
        assert_eq!(map.layer(&"source.url".into()), Layer::Flags);
        let variable = |name: &str| Origin::Variable(name.into());
        assert_eq!(map.locate(&"source.slot".into(), Point::Value), variable("WALGATE_SOURCE__SLOT"));
        assert_eq!(map.locate(&"sinks.new.stdout".into(), Point::Value), variable("WALGATE_SINKS__NEW__STDOUT"));
        assert_eq!(map.locate(&"source.url".into(), Point::Key), Origin::Flag("--f".into()));
        assert!(matches!(map.locate(&"source.publication".into(), Point::Value), Origin::File(_)));
    }

    #[test]
    fn variables_that_are_not_ours_are_told_apart() {
        let env = env(&[
            ("WALGATE_SERVICE_HOST", "10.0.0.1"),
            ("WALGATE_PORT", "tcp://10.0.0.1:9432"),
            ("WALGATE_PORT_9432_TCP_ADDR", "10.0.0.1"),
            ("WALGATE_ADMIN_SERVICE_PORT_HTTP", "1"),
            ("WALGATE_UNROUTD", "halt"),
            ("WALGATE_UNROUTED", "halt"),
            ("WALGATE_SOURC__SLOT", "x"),
            ("WALGATE_SOURCE__", "x"),
        ]);
        let found = environment(&env, None, &TOP);
        assert_eq!(found.unknown, [("WALGATE_UNROUTD".to_owned(), Some("unrouted"))]);
        assert_eq!(found.malformed.len(), 1);
        let paths: Vec<_> = found.overrides.iter().map(|item| item.path.to_string()).collect();
        assert_eq!(paths, ["sourc.slot", "unrouted"]);
    }
}
