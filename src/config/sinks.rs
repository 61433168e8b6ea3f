//! `sinks:`, a mapping of names to one kind key each, and `delivery` beside it.

use std::{
    fmt,
    fs::{self, File},
    io::Read as _,
    path::Path,
    sync::Arc,
};

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use walgate_sink::{ErasedFactory, ParsedConfig, read_config};

use super::{
    checks, explain,
    loading::Loading,
    model::{DELIVERY_KEYS, Delivery},
    path::KeyPath,
    secrets,
    snippet::key_name,
    source_map::Point,
    typed::{Fault, FaultKind, read_all},
};

/// The kinds of sinks that a build knows.
pub trait KindCatalog {
    /// The factory of a kind that is compiled in.
    fn factory(&self, kind: &str) -> Option<&Arc<dyn ErasedFactory>>;
    /// The kinds that are compiled in, in alphabetical order.
    fn kinds(&self) -> Vec<&str>;
    /// The cargo feature that brings a kind which exists; `None`: there is no such kind, or it needs no feature.
    fn feature_of(&self, kind: &str) -> Option<&str>;
}

/// One sink, ready to be connected.
pub struct Sink {
    /// The key under `sinks:`. Lower case, as it is a label of metrics and part of variables' names.
    pub name: String,
    /// The one kind key, such as `webhook`.
    pub kind: String,
    /// The factory of that kind.
    pub factory: Arc<dyn ErasedFactory>,
    /// What the factory made of the kind's configuration.
    pub settings: ParsedConfig,
    /// For each of the factory's target fields, in their order, the template that its configuration gives.
    pub targets: Vec<Option<String>>,
    /// `delivery:`
    pub delivery: Delivery,
    /// Tells whether another sink of this name is the same: a hash of all that was configured, secrets and the content of
    /// the files that it names included.
    pub fingerprint: [u8; 32],
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .field("targets", &self.targets)
            .field("delivery", &self.delivery)
            .finish_non_exhaustive()
    }
}

/// Bytes of a file that a sink names which are looked at; certificates have less.
const LARGEST_FILE: u64 = 4 << 20;

const SINKS: &str = "sinks";
const DELIVERY: &str = "delivery";

/// Reads the `*_file` keys of all sinks, and notes their secrets.
pub(crate) fn resolve_secrets(root: &mut Value, catalog: &dyn KindCatalog, loading: &mut Loading) {
    let mut patterns = Vec::new();
    for (name, sink) in root.get(SINKS).and_then(Value::as_object).into_iter().flatten() {
        for kind in sink.as_object().into_iter().flat_map(Map::keys) {
            for secret in catalog.factory(kind).map(|factory| factory.secrets()).unwrap_or_default() {
                let above = [SINKS, name, kind].into_iter();
                patterns.push(above.chain(secret.split('.')).map(str::to_owned).collect::<Vec<_>>());
            }
        }
    }
    for pattern in patterns {
        loading.map.sensitivity.declare(pattern.clone());
        secrets::resolve(root, &pattern, loading);
    }
}

/// Parses every sink. Those with faults are reported and left out.
pub(crate) fn load(sinks: Option<Value>, catalog: &dyn KindCatalog, loading: &mut Loading) -> Vec<Sink> {
    let path = KeyPath::root().key(SINKS);
    let example = "such as `out: { stdout: {} }`";
    let sinks = match reinterpret(sinks, &path, loading) {
        Some(Value::Object(sinks)) if !sinks.is_empty() => sinks,
        None => {
            let message = format!("missing key `{SINKS}`: at least one sink is needed, {example}");
            loading.report_missing_sinks(message);
            return Vec::new();
        }
        Some(Value::Object(_) | Value::Null) => {
            loading.error(&path, Point::Key, format!("no sink: at least one is needed, {example}"));
            return Vec::new();
        }
        Some(other) => {
            let found = explain::found(&other, true);
            loading.conceal(&path);
            loading.error(
                &path,
                Point::Value,
                format!("expected a mapping of names to sinks, {example}; found {found}"),
            );
            return Vec::new();
        }
    };
    let mut loaded = Vec::with_capacity(sinks.len());
    for (name, value) in sinks {
        if loading.is_full() {
            break;
        }
        loaded.extend(load_one(&path.key(&name), name, value, catalog, loading));
    }
    loaded
}

fn load_one(
    path: &KeyPath,
    name: String,
    value: Value,
    catalog: &dyn KindCatalog,
    loading: &mut Loading,
) -> Option<Sink> {
    if let Some(message) = checks::sink_name(&name) {
        loading.error(path, Point::Key, message);
    }
    let mut entry = match reinterpret(Some(value), path, loading) {
        Some(Value::Object(entry)) => entry,
        Some(Value::Null) | None => Map::new(),
        Some(other) => {
            let found = explain::found(&other, true);
            loading.conceal(path);
            let message = format!("a sink is a mapping with its kind, one of {}; found {found}", kinds(catalog));
            loading.error(path, Point::Value, message);
            return None;
        }
    };
    let delivery = load_delivery(&path.key(DELIVERY), entry.shift_remove(DELIVERY), loading);
    let kind = the_kind(path, &entry, catalog, loading)?;
    let settings = entry.shift_remove(&kind)?;
    let factory = Arc::clone(catalog.factory(&kind)?);
    let kind_path = path.key(&kind);
    let settings = match reinterpret(Some(settings), &kind_path, loading) {
        Some(Value::Null) | None => Value::Object(Map::new()),
        Some(settings) => settings,
    };
    // Objects are written in the order of the file: another order may be another sink, which does no harm.
    let fingerprint = fingerprint(&kind, &settings, factory.files());
    let fields = factory.target().iter();
    let targets = fields.map(|field| settings.get(field.name).and_then(Value::as_str).map(str::to_owned)).collect();
    let reading = read_all(settings, &(&loading.map, &loading.expanded, &kind_path), &mut |value| {
        factory.parse(value.clone()).map_err(|issue| (KeyPath::from(issue.path.as_slice()), issue.message))
    });
    let sound = reading.faults.is_empty();
    let settings = loading.take(&kind_path, reading).filter(|_| sound)?;
    for issue in factory.validate(&settings) {
        let issue_path = KeyPath::from(issue.path.as_slice());
        loading.report(&kind_path, vec![Fault { path: issue_path, kind: FaultKind::BadValue(issue.message) }]);
    }
    Some(Sink { name, kind, factory, settings, targets, delivery: delivery?, fingerprint })
}

/// A hash of the configuration, and of the content of the files under these keys as it is now: certificates change while
/// their paths do not.
fn fingerprint(kind: &str, settings: &Value, files: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(format!("{kind}\n{settings}\n"));
    for key in files {
        let file = key.split('.').try_fold(settings, |value, step| value.get(step)).and_then(Value::as_str);
        if let Some(content) = file.and_then(|file| content_of(Path::new(file))) {
            hash.update(format!("{key} {}\n", content.len()));
            hash.update(content);
        }
    }
    hash.finalize().into()
}

/// What is in a file; none: it cannot be read, which is the sink's to say. Nothing but a regular file is waited for.
fn content_of(file: &Path) -> Option<Vec<u8>> {
    if !fs::metadata(file).ok()?.is_file() {
        return None;
    }
    let mut content = Vec::new();
    File::open(file).ok()?.take(LARGEST_FILE).read_to_end(&mut content).ok()?;
    Some(content)
}

/// The one kind of a sink; every other key is reported.
fn the_kind(
    path: &KeyPath,
    entry: &Map<String, Value>,
    catalog: &dyn KindCatalog,
    loading: &mut Loading,
) -> Option<String> {
    let mut found: Option<&String> = None;
    let mut faulty = false;
    for key in entry.keys() {
        let here = path.key(key);
        let shown = key_name(key);
        if catalog.factory(key).is_some() {
            match found {
                None => found = Some(key),
                Some(first) => {
                    faulty = true;
                    let message =
                        format!("a second kind: `{first}` is given already, and a sink has one; make it two sinks");
                    loading.error(&here, Point::Key, message);
                }
            }
            continue;
        }
        faulty = true;
        loading.conceal(&here);
        let message = if let Some(feature) = catalog.feature_of(key) {
            format!(
                "sink kind `{shown}` is not in this build: build with `--features {feature}`; compiled in: {}",
                kinds(catalog)
            )
        } else if DELIVERY_KEYS.contains(&key.as_str()) {
            format!("`{shown}` belongs under `delivery`: write `delivery: {{ {shown}: ... }}`")
        } else {
            let known: Vec<String> = catalog.kinds().into_iter().chain([DELIVERY]).map(str::to_owned).collect();
            let suggestion = explain::suggestion(key, &known);
            let join = if suggestion.is_empty() { ";" } else { "" };
            format!(
                "unknown key `{shown}` in a sink{suggestion}{join} allowed here: `delivery` and one kind of {}",
                kinds(catalog)
            )
        };
        loading.error(&here, Point::Key, message);
    }
    if found.is_none() && !faulty {
        loading.error(path, Point::Key, format!("no kind: give the sink one of {}", kinds(catalog)));
    }
    // With a stray key beside it the kind is still read: its own faults are wanted too.
    found.cloned()
}

fn kinds(catalog: &dyn KindCatalog) -> String {
    catalog.kinds().join(", ")
}

fn load_delivery(path: &KeyPath, value: Option<Value>, loading: &mut Loading) -> Option<Delivery> {
    let value = match reinterpret(value, path, loading) {
        None | Some(Value::Null) => return Some(Delivery::default()),
        Some(value) => value,
    };
    let reading = read_all(value, &(&loading.map, &loading.expanded, path), &mut |value| {
        read_config::<Delivery>(value).map_err(|issue| (issue.path.as_slice().into(), issue.message))
    });
    let faulty: Vec<KeyPath> = reading.faults.iter().map(|fault| fault.path.clone()).collect();
    let delivery = loading.take(path, reading);
    let faults = delivery.iter().flat_map(checks::delivery);
    for (key, message) in faults.collect::<Vec<_>>() {
        let below = KeyPath::from(key);
        let same_group = |faulty: &KeyPath| faulty.touches(&below) || faulty.parent() == below.parent();
        let here = path.join(&below);
        if !faulty.iter().any(same_group) && !loading.is_broken(&here) {
            loading.error(&here, Point::Value, message);
        }
    }
    delivery
}

/// A text that stands for a mapping: from a variable or a flag.
fn reinterpret(value: Option<Value>, path: &KeyPath, loading: &Loading) -> Option<Value> {
    use super::typed::Provenance;
    match value {
        Some(Value::String(text)) => {
            let provenance = (&loading.map, &loading.expanded, path);
            Some(provenance.reinterpret(&KeyPath::root(), &text).unwrap_or(Value::String(text)))
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_content_of_files_is_part_of_what_a_sink_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        let of = |settings: &Value| fingerprint("nats", settings, &["tls.ca_file", "tls.key_file"]);
        let settings = json!({ "subject": "a", "tls": { "ca_file": file.display().to_string() } });
        let absent = of(&settings);
        assert_eq!(absent, of(&settings));
        std::fs::write(&file, "one").unwrap();
        let one = of(&settings);
        assert!(one != absent && one == of(&settings));
        std::fs::write(&file, "two").unwrap();
        assert_ne!(of(&settings), one);
        std::fs::write(&file, "one").unwrap();
        assert_eq!(of(&settings), one);
        // Another key with the same content is another sink; what is no regular file is not waited for.
        let key = json!({ "subject": "a", "tls": { "key_file": file.display().to_string() } });
        assert_ne!(of(&key), one);
        for odd in
            [json!({ "tls": { "ca_file": "/dev/zero" } }), json!({ "tls": { "ca_file": 7 } }), json!({ "tls": 7 })]
        {
            assert_eq!(of(&odd), of(&odd), "{odd}");
        }
    }
}
