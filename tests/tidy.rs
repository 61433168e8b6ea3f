//! The rules of the house that a compiler does not enforce: which module may import which, and what no file may hold.

#![allow(clippy::panic, clippy::unwrap_used, reason = "tests")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Modules of the package by rank: a module imports only from lower ranks (ARCHITECTURE.md). Modules of the last
/// rank are the binary's outside and may see each other; those of one rank below it never do.
const RANKS: &[&[&str]] = &[
    &["error", "metrics", "telemetry"],
    &["config", "postgres"],
    &["source", "router", "checkpoint", "control"],
    &["lane"],
    &["pipeline"],
    &["admin"],
    &["app", "registry", "cli"],
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(below: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![below.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The top-level modules that a file names in `crate::…` paths, comments left out.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            let rest = &line[at + "crate::".len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let mut depth = 0;
                for part in group.split_inclusive([',', '{', '}']) {
                    let name: String = part.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    if depth == 0 && !name.is_empty() {
                        found.push(name);
                    }
                    depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
                }
            } else {
                found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            }
        }
    }
    found
}

#[test]
fn imports_point_one_way() {
    let ranks: BTreeMap<&str, usize> =
        RANKS.iter().enumerate().flat_map(|(rank, names)| names.iter().map(move |name| (*name, rank))).collect();
    let outside = RANKS.len() - 1;
    let mut wrong = Vec::new();
    for file in rust_files(&root().join("src")) {
        let relative = file.strip_prefix(root().join("src")).unwrap().to_path_buf();
        let module = relative.components().next().unwrap().as_os_str().to_string_lossy().replace(".rs", "");
        if module == "lib" || module == "main" {
            continue;
        }
        let rank = *ranks.get(module.as_str()).unwrap_or_else(|| panic!("{module} has no rank: add it to RANKS"));
        for import in imports(&fs::read_to_string(&file).unwrap()) {
            let Some(&imported) = ranks.get(import.as_str()) else { continue };
            let allowed = import == module || imported < rank || (imported == rank && rank == outside);
            if !allowed {
                wrong.push(format!("src/{} imports {import}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports against the direction of ARCHITECTURE.md:\n{}", wrong.join("\n"));
}

#[test]
fn grouped_imports_are_read() {
    let text =
        "use crate::{config::{Sink, Retry}, lane, source::wire};\n// use crate::cli;\nlet x = crate::pipeline::y();";
    assert_eq!(imports(text), ["config", "lane", "source", "pipeline"]);
}

#[test]
fn a_sink_knows_only_the_contract() {
    for entry in fs::read_dir(root().join("sinks")).unwrap() {
        let manifest = fs::read_to_string(entry.unwrap().path().join("Cargo.toml")).unwrap();
        let own = manifest.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"').to_owned();
        for line in manifest.lines().filter(|line| line.starts_with("walgate")) {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            assert!(name == "walgate-sink" || name == own, "{own} depends on {name}");
        }
    }
}

#[test]
fn only_the_registry_knows_which_sinks_are_compiled_in() {
    for file in rust_files(&root().join("src")) {
        if file.ends_with("registry.rs") {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let named = ["stdout", "discard", "webhook", "nats", "rabbitmq"].map(|kind| format!("walgate_sink_{kind}"));
        assert!(!named.iter().any(|name| text.contains(name)), "{} names a sink's crate", file.display());
    }
}

#[test]
fn nothing_is_left_unfinished() {
    let marks = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("FIX", "ME"), concat!("TO", "DO")];
    for folder in ["src", "sinks", "examples", "tests"] {
        for file in rust_files(&root().join(folder)) {
            let text = fs::read_to_string(&file).unwrap();
            for mark in marks {
                assert!(!text.contains(mark), "{} holds {mark}", file.display());
            }
        }
    }
}

#[test]
fn files_stay_small() {
    for folder in ["src", "sinks"] {
        for file in rust_files(&root().join(folder)) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            let limit = if file.to_string_lossy().contains("test") { 1000 } else { 700 };
            assert!(lines <= limit, "{} has {lines} lines: does it still have one responsibility?", file.display());
        }
    }
}

/// Bugs that are kept as patches must stay plantable: `make planted` plants them.
#[test]
fn planted_bugs_still_apply() {
    let folder = root().join("tests/planted");
    let mut patches: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    patches.retain(|path| path.extension().is_some_and(|extension| extension == "patch"));
    patches.sort();
    assert!(patches.len() >= 12, "{} patches in {}", patches.len(), folder.display());
    let git = |arguments: &[&str]| Command::new("git").current_dir(root()).args(arguments).output();
    // Without git, or outside a checkout of it, nothing can be applied.
    let is_checkout = git(&["ls-files", "--error-unmatch", "Cargo.toml"]).is_ok_and(|output| output.status.success());
    let mut wrong = Vec::new();
    for patch in &patches {
        let name = patch.file_name().unwrap().to_string_lossy();
        let text = fs::read_to_string(patch).unwrap();
        let head = text.split("\ndiff ").next().unwrap();
        for field in ["Bug: ", "Caught by: "] {
            if !head.lines().any(|line| line.starts_with(field)) {
                wrong.push(format!("{name} has no line `{field}`"));
            }
        }
        if is_checkout {
            let output = git(&["apply", "--check", &patch.to_string_lossy()]).unwrap();
            if !output.status.success() {
                wrong.push(format!("{name}: {}", String::from_utf8_lossy(&output.stderr)));
            }
        }
    }
    assert!(wrong.is_empty(), "plant these bugs anew:\n{}", wrong.join("\n"));
}
