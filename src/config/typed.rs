//! From a value to a type, with every error and not only the first.
//!
//! serde stops at its first error. So the value at fault is taken out, or replaced by one that fits, and the whole is
//! read again, until it goes through; what is a consequence of a replacement is not reported.

use serde_json::{Value, json};

use super::{
    explain::{self, Complaint},
    path::{KeyPath, Step},
};

/// One fault, at a path below the value that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub path: KeyPath,
    pub kind: FaultKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FaultKind {
    /// The key at the end of the path is not known.
    UnknownKey { key: String, allowed: Vec<String> },
    /// The key at the end of the path is missing.
    MissingKey { key: String },
    /// The value does not do, for the reason in this message.
    BadValue(String),
    /// A single value stands where a mapping belongs; it may be anything, and must not be shown.
    Misplaced(String),
}

/// What the reading needs to know of a value's origin.
pub(crate) trait Provenance {
    /// The value that a text stands for, where its source cannot tell texts from other values (a variable, a flag).
    fn reinterpret(&self, path: &KeyPath, text: &str) -> Option<Value>;
    /// Whether a message must not show the value.
    fn conceals(&self, path: &KeyPath) -> bool;
}

/// What a reading came to.
pub(crate) struct Reading<T> {
    /// The result. Where there were faults it holds replacements, and is good for further checks only.
    pub result: Option<T>,
    pub faults: Vec<Fault>,
}

/// The path and the message of the first thing that is wrong with a value.
pub(crate) type FirstFault = (KeyPath, String);

const MAX_ROUNDS: usize = 600;
const MAX_FAULTS: usize = 50;

/// Reads `value` with `attempt`, which names the first thing that is wrong.
pub(crate) fn read_all<T>(
    mut value: Value,
    provenance: &dyn Provenance,
    attempt: &mut dyn FnMut(&Value) -> Result<T, FirstFault>,
) -> Reading<T> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut mended: Vec<Mended> = Vec::new();
    let mut reinterpreted: Vec<KeyPath> = Vec::new();
    for _ in 0..MAX_ROUNDS {
        let (path, message) = match attempt(&value) {
            Ok(result) => return Reading { result: Some(result), faults },
            Err(error) => error,
        };
        let complaint = explain::read(&message);
        let path = match &complaint {
            Complaint::UnknownKey { key, .. } if path.last_key() != Some(key) => path.key(key),
            Complaint::MissingKey { key } => path.key(key),
            _ => path,
        };
        // A text that may stand for something else: try that first.
        if let (Some(Value::String(text)), false) = (get(&value, &path), reinterpreted.contains(&path))
            && let Some(other) = provenance.reinterpret(&path, text)
        {
            reinterpreted.push(path.clone());
            if let Some(slot) = get_mut(&mut value, &path) {
                *slot = other;
                continue;
            }
        }
        // A section whose keys are all commented out is an empty one.
        if let (Complaint::Type { expected }, Some(Value::Null)) = (&complaint, get(&value, &path))
            && matches!(expected.as_str(), "a mapping" | "a list")
            && remove(&mut value, &path)
        {
            continue;
        }
        let nearest =
            mended.iter().filter(|mended| mended.path.touches(&path)).max_by_key(|mended| mended.path.steps().len());
        let mut at = match nearest.map(|mended| mended.path.clone()) {
            // A stand-in of `{}` wants its keys.
            Some(above) if matches!(complaint, Complaint::MissingKey { .. }) && above != path && above.holds(&path) => {
                mended.push(Mended { path: path.clone(), tried: 0, removable: false });
                path
            }
            Some(at) => at,
            None => {
                let found = get(&value, &path);
                faults
                    .push(Fault { kind: describe(&complaint, found, provenance.conceals(&path)), path: path.clone() });
                if faults.len() >= MAX_FAULTS {
                    break;
                }
                mended.push(Mended { path: path.clone(), tried: 0, removable: found.is_some() });
                path
            }
        };
        // Where nothing fits, what holds it has to go.
        while !step(&mut mended, &at, &mut value, &complaint) {
            match at.parent().filter(|parent| !parent.steps().is_empty()) {
                Some(parent) => at = parent,
                None => return Reading { result: None, faults },
            }
        }
    }
    Reading { result: None, faults }
}

fn describe(complaint: &Complaint, found: Option<&Value>, concealed: bool) -> FaultKind {
    match complaint {
        Complaint::UnknownKey { key, allowed } => FaultKind::UnknownKey { key: key.clone(), allowed: allowed.clone() },
        Complaint::MissingKey { key } => FaultKind::MissingKey { key: key.clone() },
        Complaint::UnknownVariant { allowed } => FaultKind::BadValue(explain::unknown_word(found, allowed, concealed)),
        Complaint::Type { expected } if expected == "a mapping" => {
            FaultKind::Misplaced(explain::wrong_type(expected, found.unwrap_or(&Value::Null), true))
        }
        Complaint::Type { expected } => {
            FaultKind::BadValue(explain::wrong_type(expected, found.unwrap_or(&Value::Null), concealed))
        }
        Complaint::Other(message) => FaultKind::BadValue(message.clone()),
    }
}

/// A place where something was wrong and what has been tried so that the reading can go on.
struct Mended {
    path: KeyPath,
    tried: usize,
    removable: bool,
}

/// Tries the next thing at a path; false: there is none.
fn step(mended: &mut Vec<Mended>, path: &KeyPath, value: &mut Value, complaint: &Complaint) -> bool {
    let index = match mended.iter().position(|mended| mended.path == *path) {
        Some(index) => index,
        None => {
            mended.push(Mended { path: path.clone(), tried: 0, removable: true });
            mended.len() - 1
        }
    };
    let Some(place) = mended.get_mut(index) else { return false };
    if std::mem::take(&mut place.removable) && remove(value, path) {
        return true;
    }
    place.tried += 1;
    let stand_ins = [
        json!("x"),
        json!("1s"),
        json!("1MiB"),
        json!(1),
        json!(true),
        json!([]),
        json!({}),
        json!("http://localhost/"),
        json!(["x"]),
        Value::Null,
    ];
    let stand_in = match complaint {
        Complaint::UnknownVariant { allowed } if place.tried <= stand_ins.len() => {
            allowed.first().map(|word| json!(word))
        }
        _ => stand_ins.into_iter().nth(place.tried - 1),
    };
    stand_in.is_some_and(|stand_in| put(value, path, stand_in))
}

/// The value at a path.
pub(crate) fn get<'a>(value: &'a Value, path: &KeyPath) -> Option<&'a Value> {
    path.steps().iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.as_object()?.get(key),
        Step::Index(index) => value.as_array()?.get(*index),
    })
}

/// The value at a path, to be changed.
pub(crate) fn get_mut<'a>(value: &'a mut Value, path: &KeyPath) -> Option<&'a mut Value> {
    path.steps().iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.as_object_mut()?.get_mut(key),
        Step::Index(index) => value.as_array_mut()?.get_mut(*index),
    })
}

/// Takes a key out of its mapping; elements of lists stay, so that the others keep their numbers.
fn remove(value: &mut Value, path: &KeyPath) -> bool {
    let (Some(key), Some(parent)) = (path.last_key(), path.parent()) else { return false };
    let parent = get_mut(value, &parent).and_then(Value::as_object_mut);
    parent.is_some_and(|parent| parent.shift_remove(key).is_some())
}

fn put(value: &mut Value, path: &KeyPath, stand_in: Value) -> bool {
    if let Some(slot) = get_mut(value, path) {
        *slot = stand_in;
        return true;
    }
    let (Some(key), Some(parent)) = (path.last_key(), path.parent()) else { return false };
    let parent = get_mut(value, &parent).and_then(Value::as_object_mut);
    parent.is_some_and(|parent| parent.insert(key.to_owned(), stand_in).is_none())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use walgate_sink::{HumanDuration, read_config};

    use super::*;

    struct Plain;

    impl Provenance for Plain {
        fn reinterpret(&self, path: &KeyPath, text: &str) -> Option<Value> {
            (path.last_key() == Some("from_env")).then(|| serde_json::from_str(text).ok())?
        }

        fn conceals(&self, path: &KeyPath) -> bool {
            path.last_key() == Some("secret")
        }
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Sample {
        name: String,
        #[serde(default)]
        from_env: Vec<u16>,
        #[serde(default)]
        items: Vec<Item>,
        secret: Option<String>,
        mode: Option<Mode>,
        #[serde(default)]
        wait: Option<HumanDuration>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Item {
        to: u8,
        on: bool,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        Fast,
        Slow,
    }

    fn read(value: Value) -> Reading<Sample> {
        read_all(value, &Plain, &mut |value| {
            read_config::<Sample>(value).map_err(|issue| (issue.path.as_slice().into(), issue.message))
        })
    }

    fn lines(reading: &Reading<Sample>) -> Vec<String> {
        reading.faults.iter().map(|fault| format!("{} {:?}", fault.path, fault.kind)).collect()
    }

    #[test]
    fn every_fault_is_found_and_no_consequence() {
        let reading = read(json!({
            "nam": "x", "items": [{"to": 1, "on": "yes"}, {"to": -1, "on": true, "extra": 1}, 5, {"on": false}],
            "secret": 12345, "mode": "fats", "wait": 15, "from_env": "[1, 2]",
        }));
        let found = lines(&reading).join("\n");
        for part in [
            "nam UnknownKey",
            "name MissingKey",
            "items[0].on BadValue(\"expected true or false, found the text `yes` (in YAML 1.2",
            "items[1].to BadValue(\"expected a whole number of 0 or more, found the number -1",
            "items[1].extra UnknownKey",
            "items[2] Misplaced(\"expected a mapping, found a number",
            "items[3].to MissingKey",
            "secret BadValue(\"expected a string, found a number",
            "mode BadValue(\"unknown value `fats`: did you mean `fast`? allowed: fast, slow",
            "wait BadValue(\"expected a duration such as 500ms, 15s or 2m, found the number 15: add the unit",
        ] {
            assert!(found.contains(part), "{part}\n{found}");
        }
        assert_eq!(reading.faults.len(), 10, "{found}");
    }

    #[test]
    fn empty_sections_and_texts_of_variables_are_understood() {
        let reading = read(json!({"name": "x", "items": null, "from_env": "[7]"}));
        assert_eq!(reading.result.unwrap().from_env, [7]);
        let reading = read(json!({"name": null}));
        assert_eq!(
            lines(&reading),
            ["name BadValue(\"expected a string, found nothing: give it a value, or leave the key out\")"]
        );
    }
}
