//! The program of examples/custom-sink: walgate with a sink that it does not know.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::rig::Rig;
use crate::support::processes;
use crate::support::wait;
use crate::support::walgate::{Setup, Walgate};

/// Builds the examples' programs, with the features that `make test` has given everything: then next to nothing is left to
/// be compiled. The folder of the programs.
pub fn build() -> PathBuf {
    let walgate = Path::new(env!("CARGO_BIN_EXE_walgate"));
    let target = walgate.parent().and_then(Path::parent).expect("the target folder");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Cargo describes the package under test in the environment, and some build scripts run again when that changes.
    for (name, _) in std::env::vars_os() {
        let described = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "CARGO_PRIMARY_"];
        if name.to_str().is_some_and(|name| described.iter().any(|start| name.starts_with(start))) {
            command.env_remove(name);
        }
    }
    command.args([
        "build",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--features",
        "full",
        "--target-dir",
    ]);
    command.arg(target);
    let built = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    target.join("debug")
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build().join("walgate-example-custom-sink"))
}

fn setup(rig: &Rig, folder: &Path) -> Setup {
    rig.source()
        .program(program())
        .sink(&format!("archive: {{ file: {{ folder: {folder:?}, name: \"{{event_type}}.ndjson\" }} }}"))
        .route("**", "archive")
}

/// The events of a file in their order, and how many lines are none.
fn read(path: &Path) -> (Vec<Value>, usize) {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let events: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let torn = text.lines().count() - events.len();
    (events, torn)
}

#[test]
fn a_sink_of_ones_own_delivers_and_a_kill_loses_nothing() {
    let (rig, folder) = (Rig::new(), processes::folder("archive"));
    let setup = setup(&rig, &folder);
    let file = setup.write();
    let path = folder.join("order.created.ndjson");
    let mut kills = 0;
    for round in 0..6 {
        let mut walgate = Walgate::run_file(&setup, &file);
        for part in 0..20 {
            let from = round * 500 + part * 25;
            rig.database.sql(&format!(
                "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'order.created', 'k' || i % 7, \
                 jsonb_build_object('i', i) FROM generate_series({from}, {from} + 24) i"
            ));
        }
        let wanted = if round == 5 { 3000 } else { round * 500 + 100 };
        walgate.eventually(&format!("{wanted} lines"), || distinct(&read(&path).0) >= wanted);
        if round < 5 {
            walgate.kill9();
            kills += 1;
            rig.database.confirmed_when_released();
        } else {
            let last = rig.insert("last");
            rig.wait_confirmed(&mut walgate, &last);
            walgate.terminate();
            walgate.wait_for_end(wait::DEADLINE).expect(0, &[]);
        }
    }
    let (events, torn) = read(&path);
    assert_eq!(distinct(&events), 3001, "after {kills} kills");
    assert!(torn <= kills, "{torn} torn lines");
    // What a reader sees of a key never skips forward.
    let mut highest: HashMap<&str, i64> = HashMap::new();
    for event in &events {
        let (Some(key), Some(i)) = (event["key"].as_str(), event["payload"]["i"].as_i64()) else { continue };
        let highest = highest.entry(key).or_insert(i - 7);
        assert!(i <= *highest + 7, "key {key}: {i} after {highest}");
        *highest = i.max(*highest);
    }
}

fn distinct(events: &[Value]) -> usize {
    events.iter().filter_map(|event| event["id"].as_str()).collect::<std::collections::HashSet<_>>().len()
}

#[test]
fn a_sink_of_ones_own_is_configured_checked_and_named_like_any_other() {
    let (rig, folder) = (Rig::new(), processes::folder("archive"));
    let good = setup(&rig, &folder);
    Walgate::command(&good, &["check", "--connect", "--config", "{config}"]).expect(0, &["archive"]);
    let away = setup(&rig, &folder.join("away"));
    Walgate::command(&away, &["check", "--connect", "--config", "{config}"]).expect(3, &["cannot use the folder"]);
    let relative = setup(&rig, Path::new("relative"));
    Walgate::command(&relative, &["check", "--config", "{config}"])
        .expect(2, &["sinks.archive.file.folder", "not an absolute path"]);
    let unknown = rig.source().program(program()).sink("archive: { fil: {} }").route("**", "archive");
    Walgate::command(&unknown, &["check", "--config", "{config}"]).expect(2, &["fil", "file", "discard", "stdout"]);
}
