//! What is gathered while a configuration is loaded: places, errors, warnings, and what must not be shown.

use std::{collections::HashSet, path::PathBuf, sync::Arc};

use serde_json::Value;

use super::{
    errors::{ConfigErrors, Finding, MAX_ERRORS, Warning},
    explain,
    load::Loaded,
    model::{Config, DELIVERY_KEYS},
    path::KeyPath,
    sinks::Sink,
    source_map::{Layer, Origin, Point, SourceMap},
    typed::{Fault, FaultKind, Provenance, Reading},
    yaml::{self, Node, NodeValue},
};

/// The most warnings that are collected.
const MAX_WARNINGS: usize = 100;

/// What is gathered while a configuration is loaded.
pub(crate) struct Loading {
    pub map: SourceMap,
    /// Values of the file that hold a reference to a variable.
    pub expanded: HashSet<KeyPath>,
    /// Paths whose value could not be had: what is said about them afterwards is a consequence.
    pub broken: Vec<KeyPath>,
    findings: Vec<Finding>,
    concealed: Vec<KeyPath>,
    warnings: Vec<Warning>,
    folder: PathBuf,
}

impl Loading {
    /// `folder` is the configuration file's.
    pub fn new(map: SourceMap, folder: PathBuf) -> Self {
        Loading {
            map,
            expanded: HashSet::new(),
            broken: Vec::new(),
            findings: Vec::new(),
            concealed: Vec::new(),
            warnings: Vec::new(),
            folder,
        }
    }

    pub fn error(&mut self, path: &KeyPath, point: Point, message: String) {
        let origin = self.map.locate(path, point);
        self.error_from(origin, path, message);
    }

    pub fn error_from(&mut self, origin: Origin, path: &KeyPath, message: String) {
        self.findings.push(Finding { origin, path: path.clone(), message, related: Vec::new() });
    }

    pub fn add(&mut self, finding: Finding) {
        self.findings.push(finding);
    }

    pub fn warn(&mut self, path: &KeyPath, message: String) {
        self.warn_from(self.map.locate(path, Point::Value), path, message);
    }

    pub fn warn_from(&mut self, origin: Origin, path: &KeyPath, message: String) {
        let warning = Warning::new(origin, path.clone(), message, &self.map);
        if self.warnings.len() < MAX_WARNINGS && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Where relative paths in a layer start: beside the file, or where walgate was started.
    pub fn folder(&self, layer: Layer) -> PathBuf {
        match layer {
            Layer::File => self.folder.clone(),
            _ => PathBuf::new(),
        }
    }

    /// What stands under a key that nobody knows is not shown.
    pub fn conceal(&mut self, path: &KeyPath) {
        self.concealed.push(path.clone());
    }

    /// Whether there are more errors than are shown.
    pub fn is_full(&self) -> bool {
        self.findings.len() > MAX_ERRORS
    }

    /// Whether something is wrong with the value at `path` itself.
    pub fn has_error_at(&self, path: &KeyPath) -> bool {
        self.findings.iter().any(|finding| finding.path == *path)
    }

    pub fn is_broken(&self, path: &KeyPath) -> bool {
        self.broken.iter().any(|broken| broken.touches(path))
    }

    /// Reports the faults of a reading of the value at `base`, and gives its result.
    pub fn take<T>(&mut self, base: &KeyPath, reading: Reading<T>) -> Option<T> {
        if reading.result.is_none() && reading.faults.is_empty() {
            self.error(base, Point::Value, "cannot be read".into());
        }
        self.report(base, reading.faults);
        reading.result
    }

    /// Reports the faults of a value that stands at `base`.
    pub fn report(&mut self, base: &KeyPath, faults: Vec<Fault>) {
        for fault in faults {
            let path = base.join(&fault.path);
            if self.is_broken(&path) || self.is_full() {
                continue;
            }
            match fault.kind {
                FaultKind::UnknownKey { key, allowed } => self.unknown_key(&path, &key, allowed),
                FaultKind::MissingKey { key } => self.missing_key(&path, &key),
                FaultKind::Misplaced(message) => {
                    self.conceal(&path);
                    self.error(&path, Point::Value, message);
                }
                FaultKind::BadValue(message) => {
                    if self.map.is_branch(&path) {
                        self.conceal(&path);
                    }
                    let message = self.map.hidden.scrub(&path, &message);
                    self.error(&path, Point::Value, message);
                }
            }
        }
    }

    pub fn unknown_key(&mut self, path: &KeyPath, key: &str, mut allowed: Vec<String>) {
        let parent = path.parent().unwrap_or_default();
        let files: Vec<String> = allowed
            .iter()
            .filter(|name| self.map.sensitivity.declares(&parent.key(name.as_str())))
            .map(|name| format!("{name}_file"))
            .collect();
        allowed.extend(files);
        allowed.sort();
        let mut message = explain::unknown_key(key, &allowed);
        let in_kind = matches!(parent.keys().collect::<Vec<_>>().as_slice(), ["sinks", _, kind] if *kind != "delivery");
        if in_kind && explain::suggestion(key, &allowed).is_empty() {
            match explain::nearest(key, DELIVERY_KEYS.iter().copied()) {
                Some(near) if near == key => {
                    message.push_str(&format!("; `{key}` belongs under `delivery`, beside the kind"))
                }
                Some(near) => message.push_str(&format!("; or is it `{near}` under `delivery`, beside the kind?")),
                None => {}
            }
        }
        self.conceal(path);
        self.error(path, Point::Key, message);
    }

    fn missing_key(&mut self, path: &KeyPath, key: &str) {
        let or_file = match self.map.sensitivity.declares(path) {
            true => format!(", or `{key}_file` with the path of a file that holds it"),
            false => String::new(),
        };
        let parent = path.parent().unwrap_or_default();
        let origin = self.map.locate(&parent, Point::Key);
        self.error_from(origin, &parent, format!("missing key `{key}`: give it a value{or_file}"));
    }

    pub fn report_missing_sinks(&mut self, message: String) {
        let (origin, message) = match self.map.name.is_empty() {
            true => (Origin::Nowhere, format!("{message}; name a file with --config or WALGATE_CONFIG")),
            false => (Origin::WholeFile, message),
        };
        self.error_from(origin, &KeyPath::root(), message);
    }

    /// Everything that was found.
    pub fn into_errors(self) -> ConfigErrors {
        let mut errors = ConfigErrors::new(Arc::new(self.map));
        errors.concealed = self.concealed;
        for finding in self.findings {
            errors.push(finding);
        }
        errors
    }

    pub fn finish(mut self, config: Option<Config>, sinks: Vec<Sink>) -> Result<Loaded, ConfigErrors> {
        let mut warnings = std::mem::take(&mut self.warnings);
        let mut errors = self.into_errors();
        let Some(config) = config.filter(|_| errors.is_empty()) else {
            if errors.is_empty() {
                errors.push_at(KeyPath::root(), "the configuration cannot be read");
            }
            return Err(errors);
        };
        warnings.sort_by_key(|warning| super::errors::rank(&warning.finding.origin));
        Ok(Loaded { config, sinks, warnings, map: errors.map })
    }
}

impl Provenance for (&SourceMap, &HashSet<KeyPath>, &KeyPath) {
    fn reinterpret(&self, path: &KeyPath, text: &str) -> Option<Value> {
        let (map, expanded, base) = self;
        let path = base.join(path);
        let scalars_only = match map.layer(&path) {
            Layer::Environment | Layer::Flags => false,
            Layer::File if expanded.contains(&path) => true,
            _ => return None,
        };
        let value = plain_value(&yaml::parse(text).ok()?);
        match value {
            Value::Bool(_) | Value::Number(_) => Some(value),
            Value::Array(_) | Value::Object(_) if !scalars_only => Some(value),
            _ => None,
        }
    }

    fn conceals(&self, path: &KeyPath) -> bool {
        let (map, _, base) = self;
        let path = base.join(path);
        map.layer(&path) == Layer::Environment || map.hidden.conceals(&path) || map.sensitivity.covers(&path)
    }
}

pub(crate) fn plain_value(node: &Node) -> Value {
    match &node.value {
        NodeValue::Null => Value::Null,
        NodeValue::Bool(value) => (*value).into(),
        NodeValue::Signed(value) => (*value).into(),
        NodeValue::Unsigned(value) => (*value).into(),
        NodeValue::Float(value) => (*value).into(),
        NodeValue::Text(text) => text.as_str().into(),
        NodeValue::List(nodes) => nodes.iter().map(plain_value).collect(),
        NodeValue::Map(entries) => entries
            .iter()
            .map(|entry| (entry.key.clone(), plain_value(&entry.node)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}
