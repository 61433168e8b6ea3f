//! The steps from a parsed file to the typed core of the configuration.

use std::collections::HashMap;

use serde_json::Value;
use walgate_sink::read_config;

use super::{
    checks,
    errors::{ConfigErrors, Finding},
    expand::expand,
    layers::{self, Override},
    load::Loaded,
    loading::Loading,
    model::{Config, ROOT_KEYS},
    path::KeyPath,
    snippet::key_name,
    source_map::{Layer, Origin, Point},
    typed::read_all,
    yaml::{self, Node, NodeValue, SyntaxError},
};

impl Loading {
    pub fn syntax_error(mut self, error: SyntaxError) -> Result<Loaded, ConfigErrors> {
        let origin = error.span.map_or(Origin::WholeFile, Origin::File);
        self.error_from(origin, &KeyPath::root(), error.message);
        self.finish(None, Vec::new())
    }

    pub fn duplicates(&mut self, path: &KeyPath, node: &Node) {
        match &node.value {
            NodeValue::Map(entries) => {
                let mut first: HashMap<&str, yaml::Span> = HashMap::new();
                for entry in entries {
                    let path = path.key(&entry.key);
                    match first.get(entry.key.as_str()) {
                        None => drop(first.insert(&entry.key, entry.key_span)),
                        Some(first) => self.add(Finding {
                            origin: Origin::File(entry.key_span),
                            path: path.clone(),
                            message: format!(
                                "key `{}` is given twice, first in line {}",
                                key_name(&entry.key),
                                first.line
                            ),
                            related: vec![(Origin::File(*first), "first given here".into())],
                        }),
                    }
                    self.duplicates(&path, &entry.node);
                }
            }
            NodeValue::List(nodes) => {
                for (index, node) in nodes.iter().enumerate() {
                    self.duplicates(&path.index(index), node);
                }
            }
            _ => {}
        }
    }

    pub fn expand(&mut self, path: &KeyPath, node: &mut Node, env: &HashMap<String, String>) {
        match &mut node.value {
            NodeValue::Text(text) => match expand(text, env) {
                Ok(expanded) => {
                    if expanded.any {
                        self.expanded.insert(path.clone());
                    }
                    for value in &expanded.values {
                        self.map.hidden.at(path, value);
                    }
                    if !expanded.values.is_empty() {
                        self.map.hidden.whole(path, &expanded.text);
                    }
                    *text = expanded.text;
                }
                Err(bad) => {
                    for bad in bad {
                        let origin = self.map.locate_text(path, &bad.reference);
                        self.error_from(origin, path, bad.message);
                    }
                    self.expanded.insert(path.clone());
                    self.broken.push(path.clone());
                }
            },
            NodeValue::List(nodes) => {
                for (index, node) in nodes.iter_mut().enumerate() {
                    self.expand(&path.index(index), node, env);
                }
            }
            NodeValue::Map(entries) => {
                for entry in entries {
                    self.expand(&path.key(&entry.key), &mut entry.node, env);
                }
            }
            _ => {}
        }
    }

    pub fn merge(&mut self, root: &Node, env: &HashMap<String, String>, flags: Vec<Override>) -> Value {
        let environment = layers::environment(env, Some(root), ROOT_KEYS);
        for (name, message) in environment.malformed {
            self.error_from(Origin::Variable(name), &KeyPath::root(), message);
        }
        for (name, nearest) in environment.unknown {
            let hint = nearest.map(|key| format!(": did you mean {}{}?", layers::PREFIX, key.to_ascii_uppercase()));
            let message = format!("sets no key of the configuration{}", hint.unwrap_or_default());
            self.warn_from(Origin::Variable(name), &KeyPath::root(), message);
        }
        let (value, collisions) = layers::merge(Some(root), environment.overrides, flags, &mut self.map);
        for item in collisions {
            let message = "cannot be set here: it is set already, or it is not a path of keys".to_owned();
            self.error_from(item.origin, &item.path, message);
        }
        self.hide_environment(&KeyPath::root(), &value);
        value
    }

    /// What came from a variable is not shown, whatever it is.
    fn hide_environment(&mut self, path: &KeyPath, value: &Value) {
        match value {
            Value::String(text) if self.map.layer(path) == Layer::Environment => self.map.hidden.at(path, text),
            Value::Array(values) => {
                for (index, value) in values.iter().enumerate() {
                    self.hide_environment(&path.index(index), value);
                }
            }
            Value::Object(object) => {
                for (key, value) in object {
                    self.hide_environment(&path.key(key), value);
                }
            }
            _ => {}
        }
    }

    pub fn core(&mut self, value: Value) -> Option<Config> {
        let root = KeyPath::root();
        let reading = read_all(value, &(&self.map, &self.expanded, &root), &mut |value| {
            read_config::<Config>(value).map_err(|issue| (issue.path.as_slice().into(), issue.message))
        });
        let faulty: Vec<KeyPath> = reading.faults.iter().map(|fault| fault.path.clone()).collect();
        let config = self.take(&root, reading);
        // Keys that are judged by each other: beside a faulty one the others have nothing to be judged by.
        let budget = KeyPath::root().key("wal_budget");
        let unjudged =
            |path: &KeyPath, faulty: &KeyPath| faulty.touches(path) || (budget.holds(path) && budget.holds(faulty));
        for (path, message) in config.iter().flat_map(checks::core) {
            if !self.is_broken(&path) && !faulty.iter().any(|faulty| unjudged(&path, faulty)) {
                self.error(&path, Point::Value, message);
            }
        }
        config
    }
}
