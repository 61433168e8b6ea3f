//! A PostgreSQL of our own: a cluster in a temporary folder, reachable through a unix socket in it and by nothing else.

use std::{
    fs,
    os::unix::{fs as unix_fs, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::Failure;
use crate::cli::systemd::VARIABLES;

const HOW_TO_GET_IT: &str = "PostgreSQL's server programs (initdb and postgres) were not found. Install PostgreSQL 14 to \
     18 (Debian: apt-get install postgresql; in a checkout of walgate: make setup), put their folder into the PATH, or \
     use a server that runs already: walgate demo --postgres-url postgres://...";

/// A running cluster; stopped and removed when this is dropped.
pub struct Cluster {
    process: Child,
    folder: TempDir,
    version: String,
}

impl Cluster {
    /// Makes and starts one. Takes a few seconds.
    pub fn start() -> Result<Self, Failure> {
        let programs = find_programs().ok_or(HOW_TO_GET_IT)?;
        let folder = tempfile::Builder::new()
            .prefix("walgate-demo-")
            .tempdir()
            .map_err(|error| format!("cannot make a temporary folder: {error}"))?;
        // PostgreSQL refuses to run as root: then it runs as the user of its package, or as nobody.
        let user = if rustix::process::geteuid().is_root() { Some(unprivileged_user()?) } else { None };
        let (data, log) = (folder.path().join("data"), folder.path().join("postgres.log"));
        fs::create_dir(&data).map_err(|error| format!("cannot make {}: {error}", data.display()))?;
        if let Some((uid, gid)) = user {
            for path in [folder.path(), &data] {
                unix_fs::chown(path, Some(uid), Some(gid))
                    .map_err(|error| format!("cannot give PostgreSQL its folder: {error}"))?;
            }
        }
        let command = |program: &str| {
            let mut command = Command::new(programs.join(program));
            command.current_dir(folder.path()).stdin(Stdio::null()).process_group(0).env("LC_ALL", "C");
            for name in VARIABLES {
                command.env_remove(name);
            }
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command
        };
        let made = command("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"])
            .output()
            .map_err(|error| format!("cannot run initdb: {error}"))?;
        if !made.status.success() {
            return Err(format!("initdb failed: {}", String::from_utf8_lossy(&made.stderr).trim()));
        }
        let output = fs::File::create(&log).map_err(|error| format!("cannot make {}: {error}", log.display()))?;
        let errors = output.try_clone().map_err(|error| error.to_string())?;
        let process = command("postgres")
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(folder.path())
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "wal_level=logical",
                "-c",
                "fsync=off",
                "-c",
                "full_page_writes=off",
            ])
            .args(["-c", "max_connections=50", "-c", "shared_buffers=32MB"])
            .stdout(output)
            .stderr(errors)
            .spawn()
            .map_err(|error| format!("cannot run postgres: {error}"))?;
        let version = fs::read_to_string(data.join("PG_VERSION")).unwrap_or_default().trim().to_owned();
        let mut cluster = Cluster { process, folder, version };
        cluster.wait_until_ready(&data, &log)?;
        Ok(cluster)
    }

    /// The folder of its socket.
    pub fn socket_folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its major version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Line 8 of postmaster.pid says so, without a client.
    fn wait_until_ready(&mut self, data: &Path, log: &Path) -> Result<(), Failure> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            let pid_file = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
            if pid_file.lines().nth(7).is_some_and(|state| state.trim() == "ready") {
                return Ok(());
            }
            if self.process.try_wait().is_ok_and(|status| status.is_some()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let log = fs::read_to_string(log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        Err(format!("PostgreSQL did not start: {}", tail.into_iter().rev().collect::<Vec<_>>().join("; ")))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SIGINT is a fast shutdown; the folder goes with the TempDir afterwards.
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::INT);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            match self.process.try_wait() {
                Ok(None) => std::thread::sleep(Duration::from_millis(20)),
                Ok(Some(_)) | Err(_) => return,
            }
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The folder that holds `initdb` and `postgres`: what the tests use, the PATH, then the usual places.
fn find_programs() -> Option<PathBuf> {
    let named = std::env::var_os("WALGATE_TEST_PG_BIN").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = named.into_iter().chain(std::env::split_paths(&path)).collect();
    for versions in ["/usr/lib/postgresql", ".cache/postgresql"] {
        let Ok(versions) = fs::read_dir(versions) else { continue };
        let mut versions: Vec<PathBuf> = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).collect();
        versions.sort();
        places.extend(versions.into_iter().rev());
    }
    let folder = places.into_iter().find(|place| place.join("initdb").is_file() && place.join("postgres").is_file())?;
    // A link in the PATH leads to the folder where the programs find their files.
    let real = fs::canonicalize(folder.join("postgres")).ok()?;
    real.parent().filter(|parent| parent.join("initdb").is_file()).map(Path::to_path_buf).or(Some(folder))
}

fn unprivileged_user() -> Result<(u32, u32), Failure> {
    let passwd = fs::read_to_string("/etc/passwd").map_err(|error| format!("cannot read /etc/passwd: {error}"))?;
    let ids = |name: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    ids("postgres").or_else(|| ids("nobody")).ok_or_else(|| {
        "PostgreSQL does not run as root, and there is no user postgres or nobody to run it as".to_owned()
    })
}
