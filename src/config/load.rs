//! From the sources to a typed configuration.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

use super::{
    checks,
    errors::{ConfigErrors, Finding, Warning, place},
    explain,
    layers::Override,
    loading::Loading,
    model::{Config, ROOT_KEYS},
    path::KeyPath,
    secrets,
    sinks::{self, KindCatalog, Sink},
    snippet::printable,
    source_map::{Origin, Point, SourceMap},
    yaml::{self, MAX_FILE_BYTES, NodeValue},
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
    pub(super) map: Arc<SourceMap>,
}

impl Loaded {
    /// An empty list of errors that knows this configuration's places: for checks that are made elsewhere.
    #[must_use]
    pub fn errors(&self) -> ConfigErrors {
        ConfigErrors::new(Arc::clone(&self.map))
    }

    /// The sink of this name.
    ///
    /// # Errors
    /// There is none: a sentence that names those that there are, and the nearest.
    pub fn sink(&self, name: &str) -> Result<&Sink, String> {
        self.sinks.iter().find(|sink| sink.name == name).ok_or_else(|| {
            let names: Vec<String> = self.sinks.iter().map(|sink| sink.name.clone()).collect();
            explain::no_sink(name, &names)
        })
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

/// What a configuration's routes are judged by, as far as the rest could be read.
pub struct Readable<'a> {
    /// Everything but the sinks.
    pub config: &'a Config,
    /// The sinks that are sound.
    pub sinks: &'a [Sink],
    /// The names of those that are not: what is said of them elsewhere is enough.
    pub faulty_sinks: &'a [String],
}

/// Judges the routes: each fault with the key where it stands. It is also asked where other things are wrong, so that
/// all errors are reported at once.
pub type RouteCheck<'a> = &'a dyn Fn(&Readable<'_>) -> Vec<(KeyPath, String)>;

/// Loads a configuration: everything that can be known offline and without the routes' meaning.
///
/// # Errors
/// Everything that is wrong, each with its place. Exit status 2 belongs to them.
pub fn load(sources: Sources, catalog: &dyn KindCatalog) -> Result<Loaded, ConfigErrors> {
    load_with_routes(sources, catalog, &|_| Vec::new())
}

/// As [`load`], and the routes are judged too.
///
/// # Errors
/// Everything that is wrong, each with its place. Exit status 2 belongs to them.
pub fn load_with_routes(
    sources: Sources,
    catalog: &dyn KindCatalog,
    routes: RouteCheck<'_>,
) -> Result<Loaded, ConfigErrors> {
    let (name, text, folder) = match read(&sources.file, "configuration") {
        Ok(read) => read,
        Err((name, message)) => {
            let mut errors = ConfigErrors::new(Arc::new(SourceMap::new(name, "")));
            errors.push(Finding { origin: Origin::WholeFile, path: KeyPath::root(), message, related: Vec::new() });
            return Err(errors);
        }
    };
    let mut loading = Loading::new(SourceMap::new(name, &text), folder);
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

    let password = ["source", "password"].map(str::to_owned).to_vec();
    secrets::resolve(&mut value, &password, &mut loading);
    loading.map.sensitivity.declare(password);
    let token = ["admin", "token"].map(str::to_owned).to_vec();
    secrets::resolve(&mut value, &token, &mut loading);
    loading.map.sensitivity.declare(token);
    // A URL is no secret as a whole, unless a file holds it.
    if value.get("cleanup").is_some_and(|cleanup| cleanup.get("url_file").is_some()) {
        let url = ["cleanup", "url"].map(str::to_owned).to_vec();
        secrets::resolve(&mut value, &url, &mut loading);
        loading.map.sensitivity.declare(url);
    }
    sinks::resolve_secrets(&mut value, catalog, &mut loading);
    secrets::note_embedded(&value, &KeyPath::root(), &mut loading);

    let sinks = value.as_object_mut().and_then(|object| object.shift_remove("sinks"));
    let config = loading.core(value);
    let named: Vec<String> =
        sinks.as_ref().and_then(Value::as_object).into_iter().flat_map(Map::keys).cloned().collect();
    let sinks = sinks::load(sinks, catalog, &mut loading);
    if let Some(config) = &config {
        let mut known = named.clone();
        known.extend(sinks.iter().map(|sink| sink.name.clone()).filter(|name| !named.contains(name)));
        // Where there is no sink at all, that is said.
        let mut unknown = if known.is_empty() { Vec::new() } else { checks::sacrifice(&config.wal_budget, &known) };
        unknown.extend(checks::destinations(&sinks, &known));
        for (path, message) in unknown {
            if !loading.is_broken(&path) && !loading.has_error_at(&path) && !loading.is_full() {
                let message = loading.map.hidden.scrub(&path, &message);
                loading.error(&path, Point::Value, message);
            }
        }
        let faulty: Vec<String> =
            named.into_iter().filter(|name| !sinks.iter().any(|sink| sink.name == *name)).collect();
        for (path, message) in routes(&Readable { config, sinks: &sinks, faulty_sinks: &faulty }) {
            // What a sink says of its own configuration is enough.
            let said = path.keys().next() == Some("sinks") && loading.has_error_at(&path);
            if !said && !loading.is_broken(&path) && !loading.is_full() {
                let message = loading.map.hidden.scrub(&path, &message);
                loading.error(&path, Point::Value, message);
            }
        }
    }
    loading.finish(config, sinks)
}

/// The file's name, its text and its folder; or its name and why it cannot be read.
pub(super) fn read(source: &FileSource, what: &str) -> Result<(String, String, PathBuf), (String, String)> {
    let too_large =
        || format!("larger than {}: a {what} file is not that long", walgate_sink::ByteSize(MAX_FILE_BYTES));
    let (name, bytes, folder) = match source {
        FileSource::None => (String::new(), Vec::new(), PathBuf::new()),
        FileSource::Text(name, text) if text.len() as u64 > MAX_FILE_BYTES => return Err((name.clone(), too_large())),
        FileSource::Text(name, text) => (name.clone(), text.clone().into_bytes(), PathBuf::new()),
        FileSource::Path(path) => {
            let name = printable(&path.to_string_lossy(), 200);
            let failed = |error: std::io::Error| {
                (name.clone(), format!("cannot read the {what} file: {}", secrets::plain(&error)))
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
