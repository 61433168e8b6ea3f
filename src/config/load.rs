//! From the sources to a typed configuration.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::Value;

use super::{
    checks,
    errors::{ConfigErrors, Finding, Warning, place},
    expand::expand,
    explain,
    layers::{self, Override},
    model::{Config, DELIVERY_KEYS, ROOT_KEYS},
    path::KeyPath,
    secrets,
    sinks::{self, KindCatalog, Sink},
    snippet::printable,
    source_map::{Layer, Origin, Point, SourceMap},
    typed::{Fault, FaultKind, Provenance, read_all},
    yaml::{self, MAX_FILE_BYTES, Node, NodeValue, SyntaxError},
};

/// Where the configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file.
    pub file: FileSource,
    /// Environment variables: those beginning with `WALGATE_` set keys, all of them can be referred to as `${NAME}`.
    pub env: Vec<(String, String)>,
    /// Flags of the command line; they go before everything else.
    pub flags: Vec<Flag>,
}

/// The configuration file.
#[derive(Clone, Debug, Default)]
pub enum FileSource {
    /// There is none: environment and flags give everything.
    #[default]
    None,
    /// A file by its path.
    Path(PathBuf),
    /// A text, and the name that errors call it by.
    Text(String, String),
}

/// A flag that sets a key.
#[derive(Clone, Debug)]
pub struct Flag {
    /// The flag as the user writes it, such as `--slot`.
    pub flag: String,
    /// The key that it sets, such as `source.slot`.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Sources {
    /// The process's own environment with this file, or else the one that `WALGATE_CONFIG` names.
    #[must_use]
    pub fn from_process(path: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let path =
            path.or_else(|| std::env::var_os("WALGATE_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
        let env =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Sources { file: path.map_or(FileSource::None, FileSource::Path), env: env.collect(), flags }
    }
}

/// A configuration that types, factories and checks have accepted.
#[derive(Debug)]
pub struct Loaded {
    /// Everything but the sinks.
    pub config: Config,
    /// The sinks, in the order of the file.
    pub sinks: Vec<Sink>,
    /// What works, but not as it should.
    pub warnings: Vec<Warning>,
    map: Arc<SourceMap>,
}

impl Loaded {
    /// An empty list of errors that knows this configuration's places: for checks that are made elsewhere.
    #[must_use]
    pub fn errors(&self) -> ConfigErrors {
        ConfigErrors::new(Arc::clone(&self.map))
    }

    /// Where `path` stands: `walgate.yaml:3:7`, `environment variable X` or `flag --x`; empty where it has no place.
    #[must_use]
    pub fn locate(&self, path: impl Into<KeyPath>) -> String {
        place(&self.map.locate(&path.into(), Point::Value), &self.map)
    }

    /// A warning about the value at `path`; secrets are taken out of the message.
    #[must_use]
    pub fn warning_at(&self, path: impl Into<KeyPath>, message: &str) -> Warning {
        let path = path.into();
        let message = self.map.hidden.scrub(&path, message);
        Warning::new(self.map.locate(&path, Point::Value), path, message, &self.map)
    }
}

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
    pub fn error(&mut self, path: &KeyPath, point: Point, message: String) {
        let origin = self.map.locate(path, point);
        self.error_from(origin, path, message);
    }

    pub fn error_from(&mut self, origin: Origin, path: &KeyPath, message: String) {
        self.findings.push(Finding { origin, path: path.clone(), message, related: Vec::new() });
    }

    pub fn warn(&mut self, path: &KeyPath, message: String) {
        let origin = self.map.locate(path, Point::Value);
        let warning = Warning::new(origin, path.clone(), message, &self.map);
        if !self.warnings.contains(&warning) {
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

    pub fn is_broken(&self, path: &KeyPath) -> bool {
        self.broken.iter().any(|broken| broken.touches(path))
    }

    /// Reports the faults of a value that stands at `base`.
    pub fn report(&mut self, base: &KeyPath, faults: Vec<Fault>) {
        for fault in faults {
            let path = base.join(&fault.path);
            if self.is_broken(&path) {
                continue;
            }
            match fault.kind {
                FaultKind::UnknownKey { key, allowed } => self.unknown_key(&path, &key, allowed),
                FaultKind::MissingKey { key } => self.missing_key(&path, &key),
                FaultKind::BadValue(message) => {
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
        if in_kind && DELIVERY_KEYS.contains(&key) {
            message =
                format!("`{key}` belongs under `delivery`, beside the kind; allowed here: {}", explain::list(&allowed));
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

    fn finish(mut self, config: Option<Config>, sinks: Vec<Sink>) -> Result<Loaded, ConfigErrors> {
        let mut errors = ConfigErrors::new(Arc::new(std::mem::take(&mut self.map)));
        errors.concealed = self.concealed;
        for finding in self.findings {
            errors.push(finding);
        }
        let Some(config) = config.filter(|_| errors.is_empty()) else {
            if errors.is_empty() {
                errors.push_at(KeyPath::root(), "the configuration cannot be read");
            }
            return Err(errors);
        };
        self.warnings.sort_by_key(|warning| super::errors::rank(&warning.finding.origin));
        Ok(Loaded { config, sinks, warnings: self.warnings, map: errors.map })
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
        map.hidden.conceals(&path) || map.sensitivity.covers(&path)
    }
}

fn plain_value(node: &Node) -> Value {
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

/// Loads a configuration: everything that can be known offline and without the routes' meaning.
///
/// # Errors
/// Everything that is wrong, each with its place. Exit status 2 belongs to them.
pub fn load(sources: Sources, catalog: &dyn KindCatalog) -> Result<Loaded, ConfigErrors> {
    let (name, text, folder) = match read(&sources.file) {
        Ok(read) => read,
        Err((name, message)) => {
            let mut errors = ConfigErrors::new(Arc::new(SourceMap::new(name, "")));
            errors.push(Finding { origin: Origin::WholeFile, path: KeyPath::root(), message, related: Vec::new() });
            return Err(errors);
        }
    };
    let mut loading = Loading {
        map: SourceMap::new(name, &text),
        expanded: HashSet::new(),
        broken: Vec::new(),
        findings: Vec::new(),
        concealed: Vec::new(),
        warnings: Vec::new(),
        folder,
    };
    let mut root = match yaml::parse(&text) {
        Ok(root) => root,
        Err(error) => return loading.syntax_error(error),
    };
    loading.map.record(&root);
    if !matches!(root.value, NodeValue::Map(_) | NodeValue::Null) {
        let allowed: Vec<String> = ROOT_KEYS.iter().map(|key| (*key).to_owned()).collect();
        loading.conceal(&KeyPath::root());
        let message = format!("the configuration is a mapping of the keys {}", explain::list(&allowed));
        loading.error(&KeyPath::root(), Point::Value, message);
        return loading.finish(None, Vec::new());
    }
    loading.duplicates(&KeyPath::root(), &root);
    let env: HashMap<String, String> = sources.env.into_iter().collect();
    loading.expand(&KeyPath::root(), &mut root, &env);
    let flags = sources.flags.into_iter().map(|flag| Override {
        path: KeyPath::from(flag.key.as_str()),
        origin: Origin::Flag(flag.flag),
        text: flag.value,
    });
    let mut value = loading.merge(&root, &env, flags.collect());

    for secret in ["source.password"] {
        let pattern: Vec<String> = secret.split('.').map(str::to_owned).collect();
        loading.map.sensitivity.declare(pattern.clone());
        secrets::resolve(&mut value, &pattern, &mut loading);
    }
    sinks::resolve_secrets(&mut value, catalog, &mut loading);
    secrets::note_embedded(&value, &KeyPath::root(), &mut loading);

    let sinks = value.as_object_mut().and_then(|object| object.shift_remove("sinks"));
    let config = loading.core(value);
    let sinks = sinks::load(sinks, catalog, &mut loading);
    loading.finish(config, sinks)
}

impl Loading {
    fn syntax_error(mut self, error: SyntaxError) -> Result<Loaded, ConfigErrors> {
        let origin = error.span.map_or(Origin::WholeFile, Origin::File);
        self.error_from(origin, &KeyPath::root(), error.message);
        self.finish(None, Vec::new())
    }

    fn duplicates(&mut self, path: &KeyPath, node: &Node) {
        match &node.value {
            NodeValue::Map(entries) => {
                let mut first: HashMap<&str, yaml::Span> = HashMap::new();
                for entry in entries {
                    let path = path.key(&entry.key);
                    match first.get(entry.key.as_str()) {
                        None => drop(first.insert(&entry.key, entry.key_span)),
                        Some(first) => self.findings.push(Finding {
                            origin: Origin::File(entry.key_span),
                            path: path.clone(),
                            message: format!(
                                "key `{}` is given twice, first in line {}",
                                printable(&entry.key, 80),
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

    fn expand(&mut self, path: &KeyPath, node: &mut Node, env: &HashMap<String, String>) {
        match &mut node.value {
            NodeValue::Text(text) => match expand(text, env) {
                Ok(expanded) => {
                    if expanded.any {
                        self.expanded.insert(path.clone());
                    }
                    for value in &expanded.values {
                        self.map.hidden.at(path, value);
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

    fn merge(&mut self, root: &Node, env: &HashMap<String, String>, flags: Vec<Override>) -> Value {
        let environment = layers::environment(env, Some(root), ROOT_KEYS);
        for (name, message) in environment.malformed {
            self.error_from(Origin::Variable(name), &KeyPath::root(), message);
        }
        for (name, nearest) in environment.unknown {
            let hint = nearest.map(|key| format!(": did you mean {}{}?", layers::PREFIX, key.to_ascii_uppercase()));
            let message = format!("sets no key of the configuration{}", hint.unwrap_or_default());
            self.warnings.push(Warning::new(Origin::Variable(name), KeyPath::root(), message, &self.map));
        }
        for item in environment.overrides.iter() {
            self.map.hidden.at(&item.path, &item.text);
        }
        let (value, collisions) = layers::merge(Some(root), environment.overrides, flags, &mut self.map);
        for item in collisions {
            let message = "cannot be set here: it is set already, or it is not a path of keys".to_owned();
            self.error_from(item.origin, &item.path, message);
        }
        value
    }

    fn core(&mut self, value: Value) -> Option<Config> {
        let root = KeyPath::root();
        let reading = read_all(value, &(&self.map, &self.expanded, &root), &mut |value| {
            serde_path_to_error::deserialize::<_, Config>(value)
                .map_err(|error| (error.path().into(), error.inner().to_string()))
        });
        let faulty: Vec<KeyPath> = reading.faults.iter().map(|fault| fault.path.clone()).collect();
        self.report(&root, reading.faults);
        for (path, message) in reading.result.iter().flat_map(checks::core) {
            if !self.is_broken(&path) && !faulty.iter().any(|faulty| faulty.touches(&path)) {
                let message = self.map.hidden.scrub(&path, &message);
                self.error(&path, Point::Value, message);
            }
        }
        reading.result
    }
}

/// The file's name, its text and its folder; or its name and why it cannot be read.
fn read(source: &FileSource) -> Result<(String, String, PathBuf), (String, String)> {
    let too_large =
        || format!("larger than {}: a configuration is not that long", walgate_sink::ByteSize(MAX_FILE_BYTES));
    let (name, bytes, folder) = match source {
        FileSource::None => (String::new(), Vec::new(), PathBuf::new()),
        FileSource::Text(name, text) if text.len() as u64 > MAX_FILE_BYTES => return Err((name.clone(), too_large())),
        FileSource::Text(name, text) => (name.clone(), text.clone().into_bytes(), PathBuf::new()),
        FileSource::Path(path) => {
            let name = printable(&path.to_string_lossy(), 200);
            let failed = |error: std::io::Error| {
                (name.clone(), format!("cannot read the configuration file: {}", secrets::plain(&error)))
            };
            let mut bytes = Vec::new();
            let file = File::open(path).map_err(failed)?;
            file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
            if bytes.len() as u64 > MAX_FILE_BYTES {
                return Err((name, too_large()));
            }
            (name, bytes, path.parent().map(Path::to_path_buf).unwrap_or_default())
        }
    };
    match String::from_utf8(bytes) {
        Ok(text) => Ok((name, text.strip_prefix('\u{FEFF}').unwrap_or(&text).to_owned(), folder)),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let line = error.as_bytes().iter().take(valid).filter(|byte| **byte == b'\n').count() + 1;
            Err((name, format!("not text in UTF-8: line {line} has a byte that does not belong there")))
        }
    }
}
