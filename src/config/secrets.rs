//! Secrets: `<key>_file`, and literal ones in the configuration file.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    loading::Loading,
    path::{KeyPath, Step},
    redact::{is_reference, secret_ranges},
    source_map::{Layer, Point},
    typed::{get, get_mut},
};

/// The largest secret file, in bytes.
const MAX_SECRET_BYTES: u64 = 64 * 1024;

/// Reads the `_file` key of a secret wherever `pattern` matches, and puts the value under the secret's own key. A step
/// of `*` matches every key.
pub(crate) fn resolve(root: &mut Value, pattern: &[String], loading: &mut Loading) {
    let Some((last, above)) = pattern.split_last() else { return };
    for parent in matching(root, above) {
        let Some(object) = get(root, &parent).and_then(Value::as_object) else {
            if last == "*" {
                note_secret(root, &parent, loading);
            }
            continue;
        };
        let names: Vec<String> = match last.as_str() {
            "*" => object.keys().map(|key| key.strip_suffix("_file").unwrap_or(key).to_owned()).collect(),
            name => vec![name.to_owned()],
        };
        for name in names {
            resolve_one(root, &parent, &name, loading);
        }
    }
}

fn resolve_one(root: &mut Value, parent: &KeyPath, name: &str, loading: &mut Loading) {
    let file_key = format!("{name}_file");
    let (path, file_path) = (parent.key(name), parent.key(&file_key));
    let Some(object) = get_mut(root, parent).and_then(Value::as_object_mut) else { return };
    let Some(file) = object.shift_remove(&file_key) else { return note_secret(root, &path, loading) };
    let other = object.get(name).is_some_and(|value| !value.is_null());
    let (layer, other_layer) = (loading.map.layer(&file_path), loading.map.layer(&path));
    if other && layer < other_layer {
        return note_secret(root, &path, loading);
    }
    if other && layer == other_layer {
        note_secret(root, &path, loading);
        loading.error(&file_path, Point::Key, format!("both `{name}` and `{file_key}` are given: keep one of them"));
        return;
    }
    let Value::String(file) = file else {
        loading.error(&file_path, Point::Value, "expected the path of a file that holds the secret".into());
        object.insert(name.to_owned(), Value::String("x".into()));
        loading.broken.push(path);
        return;
    };
    let secret = match read(&loading.folder(layer), &file) {
        Ok(secret) => secret,
        Err(message) => {
            loading.error(&file_path, Point::Value, message);
            loading.broken.push(path.clone());
            // Present, so that it is not reported as missing as well.
            Secret { value: "x".into(), warning: None }
        }
    };
    loading.map.hidden.secret(&path, &secret.value);
    object.insert(name.to_owned(), Value::String(secret.value));
    loading.map.move_to(&path, &file_path);
    if let Some(warning) = secret.warning {
        loading.warn(&file_path, warning);
    }
}

/// Notes the value so that no message shows it, and warns where it stands in the file as it is.
fn note_secret(root: &Value, path: &KeyPath, loading: &mut Loading) {
    match get(root, path) {
        Some(Value::String(value)) if is_reference(value) => {}
        Some(Value::String(value)) => {
            loading.map.hidden.secret(path, value);
            let literal = loading.map.layer(path) == Layer::File && !loading.expanded.contains(path);
            if literal && !value.is_empty() {
                let name = path.last_key().unwrap_or("secret");
                let message = format!(
                    "literal secret in the configuration file: use ${{VARIABLE}} or `{name}_file: /path/to/it`"
                );
                loading.warn(path, message);
            }
        }
        Some(Value::Array(values)) => {
            for index in 0..values.len() {
                note_secret(root, &path.index(index), loading);
            }
        }
        Some(value @ (Value::Number(_) | Value::Bool(_))) => loading.map.hidden.secret(path, &value.to_string()),
        _ => {}
    }
}

/// Notes passwords that stand inside other values: in URLs and connection strings.
pub(crate) fn note_embedded(value: &Value, path: &KeyPath, loading: &mut Loading) {
    match value {
        Value::String(text) => {
            let ranges = secret_ranges(text);
            for range in &ranges {
                loading.map.hidden.secret(path, &text[range.clone()]);
            }
            let literal = loading.map.layer(path) == Layer::File && !loading.expanded.contains(path);
            if loading.map.sensitivity.covers(path) {
                if !is_reference(text) {
                    loading.map.hidden.secret(path, text);
                }
            } else if literal && !ranges.is_empty() {
                loading.warn(path, "literal password in the configuration file: use ${VARIABLE} in its place".into());
            }
        }
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                note_embedded(value, &path.index(index), loading);
            }
        }
        Value::Object(object) => {
            for (key, value) in object {
                note_embedded(value, &path.key(key), loading);
            }
        }
        _ => {}
    }
}

/// The paths of what matches a pattern of keys.
fn matching(root: &Value, pattern: &[String]) -> Vec<KeyPath> {
    let mut paths = vec![KeyPath::root()];
    for step in pattern {
        let mut below = Vec::new();
        for path in paths {
            match get(root, &path) {
                Some(Value::Object(object)) if step == "*" => below.extend(object.keys().map(|key| path.key(key))),
                Some(Value::Object(object)) if object.contains_key(step) => below.push(path.key(step)),
                Some(Value::Array(values)) if step == "*" => {
                    below.extend((0..values.len()).map(|index| path.with(Step::Index(index))));
                }
                _ => {}
            }
        }
        paths = below;
    }
    paths
}

struct Secret {
    value: String,
    warning: Option<String>,
}

/// Reads a secret's file. Relative paths start at `folder`. Messages name the file, never its content.
fn read(folder: &Path, file: &str) -> Result<Secret, String> {
    let path: PathBuf = folder.join(file);
    let shown = super::snippet::printable(&super::redact::redact(&path.to_string_lossy()), 200);
    let failed = |error: std::io::Error| format!("cannot read secret file `{shown}`: {}", plain(&error));
    let metadata = fs::metadata(&path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(format!("secret file `{shown}` is not a regular file"));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o002 != 0 {
        return Err(format!(
            "secret file `{shown}` may be written by everyone (mode {mode:04o}): run `chmod 0600` on it"
        ));
    }
    let mut bytes = Vec::new();
    fs::File::open(&path)
        .and_then(|file| file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot read secret file `{shown}`: {}", plain(&error)))?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(format!("secret file `{shown}` is larger than {MAX_SECRET_BYTES} bytes"));
    }
    let value = String::from_utf8(bytes).map_err(|_| format!("secret file `{shown}` is not text in UTF-8"))?;
    let value = value.trim_end_matches(['\n', '\r']).to_owned();
    if value.is_empty() {
        return Err(format!("secret file `{shown}` is empty"));
    }
    let who = match mode {
        mode if mode & 0o004 != 0 => Some("read by everyone"),
        mode if mode & 0o020 != 0 => Some("written by its group"),
        _ => None,
    };
    let warning = who.map(|who| format!("secret file `{shown}` may be {who} (mode {mode:04o}): `chmod 0600` suits it"));
    Ok(Secret { value, warning })
}

/// An input or output error without its number.
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_lowercase(),
        None => text,
    }
}
