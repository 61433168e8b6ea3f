//! `*_file` keys. FAULTS C3.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use super::{super::*, support::*};

fn write(folder: &Path, name: &str, content: &[u8], mode: u32) {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn load_in(folder: &Path, text: &str, pairs: &[(&str, &str)]) -> Result<Loaded, ConfigErrors> {
    write(folder, "walgate.yaml", text.as_bytes(), 0o600);
    let file = FileSource::Path(folder.join("walgate.yaml"));
    load(Sources { file, env: env(pairs), flags: vec![] }, &Catalog::new())
}

#[test]
fn secrets_are_read_from_files() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "pw", b"  hunter2 \n\n", 0o600);
    write(folder.path(), "open", b"hunter3", 0o644);
    let text = format!(
        "source: {{ password_file: pw }}\nsinks:\n  a: {{ webhook: {{ url: 'http://x', secret_file: {}, headers: {{ Pin_file: ${{DIR}}/pw }}, basic_auth: {{ user: u, password_file: pw }} }} }}\n",
        folder.path().join("open").display()
    );
    let directory = folder.path().display().to_string();
    let loaded = load_in(folder.path(), &text, &[("DIR", &directory)]).unwrap();
    assert_eq!(loaded.config.source.password.as_ref().unwrap().expose(), "  hunter2 ", "only line ends are cut off");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    let warning = loaded.warnings[0].to_string();
    assert!(
        warning.contains("sinks.a.webhook.secret_file: secret file") && warning.contains("(mode 0644)"),
        "{warning}"
    );
}

#[test]
fn c3_files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "empty", b"\n", 0o600);
    write(folder.path(), "binary", b"\xff\xfe", 0o600);
    write(folder.path(), "world", b"hunter2", 0o666);
    write(folder.path(), "large", &[b'x'; 70_000], 0o600);
    let folder = folder.path();
    for (file, told) in [
        ("none", "no such file or directory"),
        (".", "is not a regular file"),
        ("empty", "is empty"),
        ("binary", "is not text in UTF-8"),
        ("world", "may be written by everyone (mode 0666)"),
        ("large", "is larger than 65536 bytes"),
    ] {
        let text = format!("source:\n  password_file: {file}\nsinks: {{ out: {{ stdout: {{}} }} }}\n");
        let errors = load_in(folder, &text, &[]).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors}");
        let shown = errors.to_string();
        assert!(shown.contains(told) && shown.contains("walgate.yaml:2:18: source.password_file"), "{shown}");
        assert!(!shown.contains("hunter2"));
    }
}

#[test]
fn a_value_and_a_file_are_one_too_many() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "pw", b"hunter2", 0o600);
    let folder = folder.path();
    let sinks = "sinks: { out: { stdout: {} } }\n";
    let text = format!("source: {{ password: x, password_file: pw }}\n{sinks}");
    let errors = load_in(folder, &text, &[]).unwrap_err();
    assert!(errors.to_string().contains("both `password` and `password_file` are given"), "{errors}");
    // The environment goes over the file, whichever of the two it sets.
    let text = format!("source: {{ password: x }}\n{sinks}");
    let path = folder.join("pw").display().to_string();
    let loaded = load_in(folder, &text, &[("WALGATE_SOURCE__PASSWORD_FILE", &path)]).unwrap();
    assert_eq!(loaded.config.source.password.as_ref().unwrap().expose(), "hunter2");
    assert!(loaded.warnings.is_empty());
    let text = format!("source: {{ password_file: pw }}\n{sinks}");
    let loaded = load_in(folder, &text, &[("WALGATE_SOURCE__PASSWORD", "env")]).unwrap();
    assert_eq!(loaded.config.source.password.as_ref().unwrap().expose(), "env");
}

#[test]
fn a_mapping_in_a_variable_may_name_files() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "pw", b"hunter2", 0o600);
    let hook = format!("{{ url: 'http://x', secret_file: {} }}", folder.path().join("pw").display());
    let text = "sinks: { a: { webhook: { url: 'http://file', path: '/x' } } }\n";
    let loaded = load_in(folder.path(), text, &[("WALGATE_SINKS__A__WEBHOOK", &hook)]).unwrap();
    assert_eq!(loaded.sinks[0].targets, [Some("/x".to_owned())], "merged key by key");
    let errors = load_in(folder.path(), text, &[("WALGATE_SINKS__A__WEBHOOK", "{ secret_file: /nowhere/at/all }")]);
    let shown = errors.unwrap_err().to_string();
    assert!(
        shown.starts_with("error: environment variable WALGATE_SINKS__A__WEBHOOK: sinks.a.webhook.secret_file"),
        "{shown}"
    );
}

#[test]
fn a_missing_secret_names_both_its_keys() {
    let errors = load_text("sinks: { a: { webhook: { url: 'http://x', basic_auth: { user: u } } } }\n").unwrap_err();
    assert!(errors.to_string().contains("or `password_file` with the path"), "{errors}");
}

#[test]
fn files_that_are_no_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let told = |path: &Path| {
        load(Sources { file: FileSource::Path(path.into()), ..Sources::default() }, &Catalog::new())
            .unwrap_err()
            .to_string()
    };
    let missing = folder.path().join("none.yaml");
    assert!(told(&missing).contains("none.yaml: cannot read the configuration file: no such file or directory"));
    assert!(told(folder.path()).contains("is a directory"), "{}", told(folder.path()));
    write(folder.path(), "binary", b"sinks:\n \xff", 0o600);
    assert!(told(&folder.path().join("binary")).contains("not text in UTF-8: line 2"));
    write(folder.path(), "bom", "\u{FEFF}sinks: { Out: { stdout: {} } }".as_bytes(), 0o600);
    assert!(told(&folder.path().join("bom")).contains("bom:1:10: sinks.Out"), "{}", told(&folder.path().join("bom")));
}
