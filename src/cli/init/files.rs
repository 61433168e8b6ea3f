//! The files that `init --apply` writes: a new role's password, and a first configuration. Neither is ever overwritten.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use uuid::Uuid;
use walgate_sink::Secret;

/// A file, and what became of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FileStep {
    /// `password` or `configuration`.
    pub what: &'static str,
    pub path: PathBuf,
    /// False: it existed, and was left as it is.
    pub written: bool,
    /// What is left to do by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_do: Option<String>,
}

/// The password's file is written before the role is made: the password would be lost otherwise. Unless it is kept, it
/// is taken away again.
pub(super) struct Files {
    config: PathBuf,
    password: Option<PasswordFile>,
    verifier: String,
}

struct PasswordFile {
    path: PathBuf,
    kept: bool,
}

impl Files {
    /// Makes a password and writes it, where a role is to be made.
    pub fn prepare(config: &Path, new_role: bool) -> Result<Self, String> {
        let mut files = Files { config: config.to_owned(), password: None, verifier: String::new() };
        if new_role {
            let path = config.with_extension("password");
            let password = generate();
            write_new(&path, password.expose(), 0o600).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => format!(
                    "{} exists, and is not overwritten: move it away, or choose another place with --config",
                    path.display()
                ),
                _ => format!("cannot write the new role's password to {}: {error}", path.display()),
            })?;
            files.verifier = postgres_protocol::password::scram_sha_256(password.expose().as_bytes());
            files.password = Some(PasswordFile { path, kept: false });
        }
        Ok(files)
    }

    /// What the server keeps of the password.
    pub fn verifier(&self) -> &str {
        &self.verifier
    }

    /// The role has been made: the file stays.
    pub fn keep_password(&mut self, steps: &mut Vec<FileStep>) {
        if let Some(password) = &mut self.password {
            password.kept = true;
            steps.push(FileStep { what: "password", path: password.path.clone(), written: true, to_do: None });
        }
    }

    /// The password's file as the configuration beside it names it.
    pub fn password_name(&self) -> Option<String> {
        Some(self.password.as_ref()?.path.file_name()?.to_string_lossy().into_owned())
    }

    pub fn write_configuration(&self, text: &str) -> Result<FileStep, String> {
        let step = FileStep { what: "configuration", path: self.config.clone(), written: true, to_do: None };
        match write_new(&self.config, text, 0o644) {
            Ok(()) => Ok(step),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let to_do = self.password_name().map(|name| format!("set source.password_file to {name} in it"));
                Ok(FileStep { written: false, to_do, ..step })
            }
            Err(error) => Err(format!(
                "the database is ready, but {} cannot be written: {error}; save it yourself",
                self.config.display()
            )),
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Some(password) = self.password.as_ref().filter(|password| !password.kept) {
            // The role was not made, so the password is good for nothing; if the file stays, the next run names it.
            let _ = fs::remove_file(&password.path);
        }
    }
}

/// 244 random bits from the system's generator, as 64 hexadecimal digits: safe in every place a password can stand.
fn generate() -> Secret {
    Secret::new(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()))
}

/// Writes a file that must not exist, and sees to it that it lasts.
fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a file is worse than none.
        let _ = fs::remove_file(path);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_password_is_written_for_the_owner_only_and_never_over_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("walgate.yaml");
        let path = folder.path().join("walgate.password");
        let mut files = Files::prepare(&config, true).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(&path).unwrap().len(), 64);
        assert!(files.verifier().starts_with("SCRAM-SHA-256$4096:"));
        assert_eq!(files.password_name().unwrap(), "walgate.password");
        files.keep_password(&mut Vec::new());
        drop(files);
        let before = fs::read(&path).unwrap();
        assert!(Files::prepare(&config, true).err().unwrap().contains("is not overwritten"));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_password_whose_role_was_not_made_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        drop(Files::prepare(&folder.path().join("walgate.yaml"), true).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_configuration_that_exists_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("walgate.yaml");
        fs::write(&config, "mine").unwrap();
        let files = Files::prepare(&config, false).unwrap();
        assert!(!files.write_configuration("other").unwrap().written);
        assert_eq!(fs::read_to_string(&config).unwrap(), "mine");
        let nowhere = Files::prepare(&folder.path().join("no/such/walgate.yaml"), false).unwrap();
        assert!(nowhere.write_configuration("x").unwrap_err().contains("save it yourself"));
        assert!(Files::prepare(&folder.path().join("no/such/walgate.yaml"), true).is_err());
    }

    #[test]
    fn passwords_differ() {
        assert_ne!(generate().expose(), generate().expose());
    }
}
