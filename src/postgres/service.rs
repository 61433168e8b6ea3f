//! libpq's connection service file: named groups of parameters in an ini file.

use std::path::{Path, PathBuf};

use super::{
    conninfo::SettingsError,
    parameters::{Pairs, SUPPORTED},
};

/// The most that is read of a service file.
const LIMIT: u64 = 1 << 20;

/// The parameters of a service, from the first file that has it: `PGSERVICEFILE` or `~/.pg_service.conf`, then
/// `pg_service.conf` in `PGSYSCONFDIR` (`/etc/postgresql-common` where that is not set, as Debian has it).
pub(super) fn look_up(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Pairs, SettingsError> {
    let own = env("PGSERVICEFILE")
        .map(PathBuf::from)
        .or_else(|| env("HOME").map(|home| Path::new(&home).join(".pg_service.conf")));
    let system = env("PGSYSCONFDIR").unwrap_or_else(|| "/etc/postgresql-common".into());
    let files: Vec<PathBuf> = own.into_iter().chain([Path::new(&system).join("pg_service.conf")]).collect();
    for path in &files {
        let text = match std::fs::File::open(path) {
            Ok(file) => std::io::read_to_string(std::io::Read::take(file, LIMIT)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => Err(error),
        };
        let text = text.map_err(|error| SettingsError::File {
            what: "service file",
            path: path.display().to_string(),
            reason: error.to_string(),
        })?;
        if let Some(pairs) = parse(&text, name, path)? {
            return Ok(pairs);
        }
    }
    Err(SettingsError::UnknownService {
        name: name.to_owned(),
        files: files.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", "),
    })
}

fn parse(text: &str, name: &str, path: &Path) -> Result<Option<Pairs>, SettingsError> {
    let mut found: Option<Pairs> = None;
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('[') {
            if found.is_some() {
                break;
            }
            if line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) == Some(name) {
                found = Some(Vec::new());
            }
            continue;
        }
        let Some(pairs) = &mut found else { continue };
        match line.split_once('=') {
            Some((key, value)) if SUPPORTED.contains(&key.trim()) && key.trim() != "service" => {
                pairs.push((key.trim().to_owned(), value.trim().to_owned()));
            }
            _ => {
                return Err(SettingsError::File {
                    what: "service file",
                    path: path.display().to_string(),
                    reason: format!("line {} is not a supported parameter with its value", number + 1),
                });
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_in_its_group_only() {
        let text = "# c\n[other]\nhost=no\n[shop]\nhost = db\nport=5433\n\n[last]\nhost=no";
        let pairs = parse(text, "shop", Path::new("f")).unwrap().unwrap();
        assert_eq!(pairs, [("host".to_owned(), "db".to_owned()), ("port".to_owned(), "5433".to_owned())]);
        assert!(parse(text, "none", Path::new("f")).unwrap().is_none());
        let error = parse("[shop]\npasswort=canary", "shop", Path::new("f")).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("canary"), "{error}");
    }
}
