//! The files under `docker/` are true: what the image is built from exists, and what compose.yaml starts is valid.
//! `docker/try.sh` carries the Dockerfile out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::walgate::{Setup, Walgate};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The Dockerfile's instructions: comments left out, continued lines joined.
fn instructions() -> Vec<(String, String)> {
    let text = read("docker/Dockerfile");
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", "");
    let lines = joined.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| line.split_once(' ').expect("an instruction")).map(|(a, b)| (a.into(), b.into())).collect()
}

/// What the only instruction that begins so says after it.
#[track_caller]
fn said(name: &str, beginning: &str) -> String {
    let instructions = instructions();
    let found =
        instructions.iter().filter(|(word, _)| word == name).filter_map(|(_, rest)| rest.strip_prefix(beginning));
    let found: Vec<&str> = found.collect();
    assert_eq!(found.len(), 1, "{name} {beginning}: {found:?}");
    found[0].to_owned()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The names after `/run/secrets/` in a text.
fn secrets(text: &str) -> BTreeSet<String> {
    let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    text.split("/run/secrets/").skip(1).map(word).collect()
}

#[test]
#[cfg(all(feature = "kafka", feature = "nats", feature = "rabbitmq", feature = "sqs"))]
fn the_configurations_are_valid_and_have_their_secrets() {
    let folder = crate::support::processes::folder("secrets");
    let compose = yaml("docker/compose.yaml");
    let mut checked = 0;
    for entry in std::fs::read_dir(root().join("docker")).expect("docker/") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a file");
        if !text.lines().any(|line| line == "sinks:") {
            continue;
        }
        for secret in secrets(&text) {
            let given = strings(&compose["services"]["walgate"]["secrets"]);
            assert!(given.contains(&secret.as_str()), "{}: compose.yaml gives no {secret}", path.display());
            std::fs::write(folder.join(secret), "secret").expect("a secret");
        }
        let text = text.replace("/run/secrets", &folder.display().to_string());
        Walgate::command(&Setup::literal(text), &["check", "--config", "{config}"]).expect(0, &["order.*"]);
        checked += 1;
    }
    assert!(checked >= 2, "{checked} configurations");
}

#[test]
fn the_image_is_built_from_what_exists() {
    let ignored = read(".dockerignore");
    let lines: Vec<&str> = ignored.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines[0], "*", "nothing is let through that is not named");
    let mut copied = BTreeSet::new();
    for (_, rest) in instructions().iter().filter(|(word, rest)| word == "COPY" && !rest.starts_with("--from")) {
        let mut names: Vec<&str> = rest.split_whitespace().collect();
        names.pop();
        for name in names {
            assert!(root().join(name).exists(), "COPY {name}: there is no such file");
            copied.insert(format!("!{name}"));
        }
    }
    assert_eq!(copied, lines[1..].iter().map(|&line| line.to_owned()).collect(), ".dockerignore");
    // Every member of the workspace is in what is copied: without its manifest nothing is built.
    let manifest = read("Cargo.toml");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).expect("members");
    for member in members.split('"').filter(|member| member.contains('/')) {
        let folder = member.split('/').next().expect("a folder");
        assert!(copied.contains(&format!("!{folder}")), "{member} is not copied");
    }
}

#[test]
fn the_dockerfile_agrees_with_the_manifest_and_with_compose() {
    let manifest = read("Cargo.toml");
    let features = manifest.split("[features]").nth(1).and_then(|rest| rest.split("\n[").next()).expect("features");
    for feature in said("ARG", "FEATURES=").split(',') {
        assert!(features.lines().any(|line| line.starts_with(&format!("{feature} = "))), "no feature {feature}");
    }
    assert_eq!(said("ARG", "VERSION="), env!("CARGO_PKG_VERSION"));
    let number = |version: &str| version.split('.').map(|part| part.parse().expect("a number")).collect::<Vec<u32>>();
    assert!(number(&said("ARG", "RUST=")) >= number(env!("CARGO_PKG_RUST_VERSION")), "Rust is too old");

    let program = said("COPY", "--from=build ").split(' ').next_back().expect("a target").to_owned();
    assert_eq!(said("ENTRYPOINT", ""), format!("[{program:?}]"));
    assert!(said("HEALTHCHECK", "").ends_with(&format!("CMD [{program:?}, \"status\"]")));
    assert!(said("USER", "").chars().all(|c| c.is_ascii_digit() || c == ':'), "Kubernetes wants the user's number");

    let compose = yaml("docker/compose.yaml");
    let walgate = &compose["services"]["walgate"];
    assert_eq!(walgate["image"], format!("walgate:{}", env!("CARGO_PKG_VERSION")));
    assert!(
        root().join("docker").join(walgate["build"]["context"].as_str().expect("a context")).join("docker").exists()
    );
    assert_eq!(walgate["build"]["dockerfile"], "docker/Dockerfile");
    let config = said("ENV", "WALGATE_CONFIG=");
    assert!(strings(&walgate["volumes"]).iter().any(|volume| volume.ends_with(&format!(":{config}:ro"))));
}

#[test]
fn compose_pins_versions_mounts_what_exists_and_publishes_on_loopback() {
    let compose = yaml("docker/compose.yaml");
    let declared = compose["secrets"].as_object().expect("secrets");
    let script = read("docker/secrets.sh");
    for secret in declared.values() {
        let file = Path::new(secret["file"].as_str().expect("a file")).file_name().expect("a name").to_string_lossy();
        assert!(script.contains(&*file), "secrets.sh does not make {file}");
    }
    let services = compose["services"].as_object().expect("services");
    for (name, service) in services {
        let (_, tag) = service["image"].as_str().expect("an image").split_once(':').expect("a tag");
        assert!(
            tag.split('.').count() >= 2 && tag.starts_with(|c: char| c.is_ascii_digit()),
            "{name}: {tag} may change"
        );
        for port in strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name}: port {port} is open to others");
        }
        for secret in service["secrets"].as_array().into_iter().flatten() {
            let secret = secret.as_str().or(secret["source"].as_str()).expect("a secret's name");
            assert!(declared.contains_key(secret), "{name}: secret {secret} is not declared");
        }
        for volume in strings(&service["volumes"]) {
            let source = volume.replace("${WALGATE_YAML:-walgate.yaml}", "walgate.yaml");
            let source = source.split(':').next().expect("a source");
            let exists = match source.strip_prefix("./") {
                Some(file) => root().join("docker").join(file).is_file(),
                None => compose["volumes"].get(source).is_some(),
            };
            assert!(exists, "{name}: there is no {source}");
        }
        for dependency in service["depends_on"].as_object().into_iter().flat_map(serde_json::Map::keys) {
            let target = services.get(dependency).unwrap_or_else(|| panic!("{name} depends on {dependency}"));
            let optional = service["depends_on"][dependency]["required"] == false;
            let started = target.get("profiles").is_none() || target["profiles"] == service["profiles"];
            assert!(started || optional, "{name} depends on {dependency}, which its profile does not start");
            let healthy = service["depends_on"][dependency]["condition"] == "service_healthy";
            assert!(!healthy || target.get("healthcheck").is_some(), "{dependency} has no health check");
        }
    }
}

#[test]
fn the_database_is_that_of_walgate_init() {
    let sql = read("docker/postgres/init.sql");
    let printed = Walgate::command(&Setup::literal("sinks: {}\n"), &["init", "--with-table"]);
    printed.expect(0, &[]);
    let statement = |line: &&str| line.starts_with("CREATE PUBLICATION") || line.starts_with("SELECT pg_create_");
    let wanted: Vec<&str> = printed.stdout.lines().filter(statement).collect();
    assert_eq!(wanted.len(), 2, "{}", printed.output());
    for statement in wanted {
        assert!(sql.lines().any(|line| line == statement), "init.sql lacks: {statement}");
    }
    // walgate's own tables, word for word.
    let own = |text: &str| {
        let from = text.find("CREATE SCHEMA IF NOT EXISTS walgate;").expect("walgate's schema");
        text[from..].split("\n\n").next().map(str::to_owned)
    };
    assert_eq!(own(&sql), own(&printed.stdout));
    // A column may be added, none is missing.
    let table =
        |text: &str| text.split("CREATE TABLE").nth(1).and_then(|rest| rest.split(");").next()).map(str::to_owned);
    let ours = table(&sql).expect("a table");
    for column in table(&printed.stdout).expect("a table").lines().map(|line| line.trim().trim_end_matches(',')) {
        assert!(ours.contains(column), "init.sql lacks the column: {column}");
    }
    let command = yaml("docker/compose.yaml");
    assert!(strings(&command["services"]["postgres"]["command"]).contains(&"wal_level=logical"));
}
