//! Other files in YAML than the configuration, read as strictly and with the same errors.

use std::{path::PathBuf, sync::Arc};

use serde::de::DeserializeOwned;
use walgate_sink::read_config;

use super::{
    errors::{ConfigErrors, Finding, place},
    load::{FileSource, read},
    loading::{Loading, plain_value},
    path::KeyPath,
    source_map::{Origin, Point, SourceMap},
    typed::read_all,
    yaml,
};

/// A file that was read, and where everything in it stands.
#[derive(Debug)]
pub struct Document<T> {
    /// What it says.
    pub value: T,
    map: Arc<SourceMap>,
}

impl<T> Document<T> {
    /// An empty list of errors that knows the file's places.
    #[must_use]
    pub fn errors(&self) -> ConfigErrors {
        ConfigErrors::new(Arc::clone(&self.map))
    }

    /// Where `path` stands: `routes.test.yaml:3:7`.
    #[must_use]
    pub fn locate(&self, path: &KeyPath) -> String {
        place(&self.map.locate(path, Point::Value), &self.map)
    }
}

/// Reads one file: bounded, no variables, unknown and repeated keys are errors. `what` is the kind of file, as errors
/// call it: "test".
///
/// # Errors
/// Everything that is wrong with it, each with its place.
pub fn read_document<T: DeserializeOwned>(source: &FileSource, what: &str) -> Result<Document<T>, ConfigErrors> {
    let (name, text, _) = match read(source, what) {
        Ok(read) => read,
        Err((name, message)) => {
            let mut errors = ConfigErrors::new(Arc::new(SourceMap::new(name, "")));
            errors.push(Finding { origin: Origin::WholeFile, path: KeyPath::root(), message, related: Vec::new() });
            return Err(errors);
        }
    };
    let mut loading = Loading::new(SourceMap::new(name, &text), PathBuf::new());
    let root = KeyPath::root();
    let node = match yaml::parse(&text) {
        Ok(node) => node,
        Err(error) => {
            let origin = error.span.map_or(Origin::WholeFile, Origin::File);
            loading.error_from(origin, &root, error.message);
            return Err(loading.into_errors());
        }
    };
    loading.map.record(&node);
    loading.duplicates(&root, &node);
    let reading = read_all(plain_value(&node), &(&loading.map, &loading.expanded, &root), &mut |value| {
        read_config::<T>(value).map_err(|issue| (issue.path.as_slice().into(), issue.message))
    });
    let value = loading.take(&root, reading);
    let errors = loading.into_errors();
    match value {
        Some(value) if errors.is_empty() => Ok(Document { value, map: errors.map }),
        _ => Err(errors),
    }
}
