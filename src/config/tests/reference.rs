//! The shipped files are true: every key of what exists, with its default.

use serde_json::{Value, json};

use super::{super::*, support::*};

const REFERENCE: &str = include_str!("../../../config/walgate.reference.yaml");
const MINIMAL: &str = include_str!("../../../config/minimal.yaml");

#[test]
fn the_reference_holds_every_key_with_its_default() {
    let loaded = load_text(REFERENCE).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let mut config = loaded.config.clone();
    assert!(!config.routes.is_empty());
    config.routes.clear();
    assert_eq!(format!("{config:#?}"), format!("{:#?}", Config::default()));
    for sink in &loaded.sinks {
        assert_eq!(format!("{:#?}", sink.delivery), format!("{:#?}", Delivery::default()), "{}", sink.name);
    }
    let mut written: Value = serde_saphyr::from_str(REFERENCE).unwrap();
    let sinks = written.as_object_mut().unwrap().shift_remove("sinks").unwrap();
    let structs = serde_json::to_value(Config::default()).unwrap();
    assert_eq!(keys(&structs, ""), keys(&written, ""));
    let delivery = serde_json::to_value(Delivery::default()).unwrap();
    let first = sinks.as_object().unwrap().values().next().unwrap();
    assert_eq!(keys(&delivery, ""), keys(&first["delivery"], ""));
}

/// Every key, with its path; what a user names (headers) is not one.
fn keys(value: &Value, path: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{key}");
        if key != "header_columns" {
            all.extend(keys(value, &path));
        }
        all.push(path);
    }
    all.sort();
    all
}

#[test]
fn the_minimal_file_loads() {
    let loaded = load_text(MINIMAL).unwrap();
    assert!(loaded.warnings.is_empty() && loaded.sinks.len() == 1);
}

#[test]
fn lists_of_keys_are_those_of_the_structs() {
    let names = |value: Value| -> Vec<String> {
        let mut names: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    let sorted = |keys: &[&str]| {
        let mut keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        keys.sort();
        keys
    };
    let mut root = serde_json::to_value(Config::default()).unwrap();
    root["sinks"] = json!({});
    assert_eq!(names(root), sorted(ROOT_KEYS));
    assert_eq!(names(serde_json::to_value(Delivery::default()).unwrap()), sorted(DELIVERY_KEYS));
}
