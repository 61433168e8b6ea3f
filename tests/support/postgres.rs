//! A real PostgreSQL as a child process, in a temporary folder, on a free port.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::database::Database;
use super::processes::{self, Process};
use super::sql::{self, Sql};
use super::wait;

/// The role that walgate runs as: LOGIN and REPLICATION, no SELECT on anything.
pub const ROLE: &str = "walgate";
/// Its password; a canary too: it must not appear in any output.
pub const PASSWORD: &str = "canary-pg-4f7a91";

const HBA: &str = "\
local   all          all                 trust
local   replication  all                 trust
host    all          open  127.0.0.1/32  trust
host    all          all   127.0.0.1/32  scram-sha-256
";
const HBA_TLS: &str = "\
local   all          all                    trust
local   replication  all                    trust
hostssl all          certuser  127.0.0.1/32 cert
hostssl all          tlsonly   127.0.0.1/32 scram-sha-256
host    all          tlsonly   127.0.0.1/32 reject
host    all          all       127.0.0.1/32 scram-sha-256
";

/// How a server differs from the usual one.
#[derive(Clone, Default)]
pub struct Options {
    /// More settings, as `name=value`; later ones win.
    pub settings: Vec<String>,
    /// A certificate for localhost, and TLS switched on.
    pub tls: bool,
    /// MiB of a disk of its own. In a namespace with mounts of its own only: [`super::namespace`].
    pub disk: Option<u32>,
}

/// A server. Stopped, and its processes reaped, when dropped.
pub struct Postgres {
    folder: PathBuf,
    port: u16,
    options: Options,
    process: Mutex<Option<Process>>,
}

impl Postgres {
    /// The server that most tests share, each with a database of its own. It lives as long as the test process.
    pub fn shared() -> Arc<Postgres> {
        static SHARED: OnceLock<Arc<Postgres>> = OnceLock::new();
        SHARED.get_or_init(|| Postgres::start(Options::default())).clone()
    }

    /// A server for one test: to be killed, stopped or set up differently.
    pub fn start(options: Options) -> Arc<Postgres> {
        let folder = processes::folder("pg");
        if let Some(size) = options.disk {
            let data = folder.join("data");
            std::fs::create_dir(&data).expect("a folder for data");
            let size = format!("size={size}m");
            done(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "disk"]).arg(data));
        }
        copy(&template().join("data"), &folder);
        let sockets = folder.join("sock");
        std::fs::create_dir(&sockets).expect("a folder for sockets");
        std::fs::write(folder.join("data/pg_hba.conf"), if options.tls { HBA_TLS } else { HBA }).expect("pg_hba.conf");
        if options.tls {
            certificates(&folder.join("tls"));
        }
        own(&folder);
        let server = Postgres { folder, port: wait::free_port(), options, process: Mutex::new(None) };
        server.start_again();
        Arc::new(server)
    }

    /// A new database on this server, dropped with what belongs to it at the end of the test.
    pub fn database(self: &Arc<Self>) -> Database {
        Database::create(self.clone(), "UTF8")
    }

    /// The same in another encoding, such as `LATIN1` or `SQL_ASCII`.
    pub fn database_in(self: &Arc<Self>, encoding: &str) -> Database {
        Database::create(self.clone(), encoding)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the unix socket.
    pub fn sockets(&self) -> PathBuf {
        self.folder.join("sock")
    }

    /// The folder with `ca.crt`, `server.crt`, `client.crt`, `client.key`; only where TLS was asked for.
    pub fn certificates(&self) -> PathBuf {
        self.folder.join("tls")
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("pg.log")).unwrap_or_default()
    }

    /// A superuser's connection to a database.
    #[track_caller]
    pub fn client(&self, database: &str) -> Sql {
        Sql::superuser(&self.sockets(), self.port, database)
            .unwrap_or_else(|error| panic!("cannot connect to the test's PostgreSQL: {}", sql::explain(&error)))
    }

    /// Runs statements as a superuser in the database `postgres`.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> Vec<sql::Row> {
        self.client("postgres").run(statements)
    }

    /// The pid of the server, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::pid)
    }

    /// Also after a panic while it was held: a destructor that panics as well would hide the first text.
    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the stopped or killed server again: same data, same port. Returns when it takes connections.
    pub fn start_again(&self) {
        let mut slot = self.process();
        assert!(slot.is_none(), "the server runs already");
        let log = File::options().append(true).create(true).open(self.folder.join("pg.log")).expect("pg.log");
        let settings = [
            "listen_addresses=127.0.0.1",
            "wal_level=logical",
            "max_wal_senders=40",
            "max_replication_slots=40",
            "max_connections=150",
            "max_prepared_transactions=10",
            "shared_buffers=64MB",
            "max_wal_size=4GB",
            "checkpoint_timeout=1h",
            "autovacuum=off",
            "fsync=off",
            "full_page_writes=off",
            "password_encryption=scram-sha-256",
        ];
        let mut command = as_server_user(&binaries().join("postgres"));
        command.arg("-D").arg(self.folder.join("data")).args(["-p", &self.port.to_string()]);
        command.arg("-c").arg(format!("unix_socket_directories={}", self.sockets().display()));
        for setting in settings.into_iter().chain(self.options.settings.iter().map(String::as_str)) {
            command.args(["-c", setting]);
        }
        if self.options.tls {
            let tls = self.certificates();
            command.args(["-c", "ssl=on"]);
            for (setting, file) in
                [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("ssl_ca_file", "ca.crt")]
            {
                command.arg("-c").arg(format!("{setting}={}", tls.join(file).display()));
            }
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("pg.log twice")).stderr(log);
        // QUIT is the immediate shutdown: it leaves no shared memory behind, and waits for nobody.
        let mut process = Process::spawn(&mut command, Signal::QUIT);
        let pid_file = self.folder.join("data/postmaster.pid");
        wait::eventually(wait::DEADLINE, "PostgreSQL takes connections", || {
            assert!(process.ended().is_none(), "PostgreSQL did not start:\n{}", self.log());
            let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            // The last line is written when it is ready; the first is whose file this is.
            lines.get(7).is_some_and(|line| line.trim() == "ready")
                && lines.first().is_some_and(|line| line.trim() == process.pid().to_string())
        });
        *slot = Some(process);
    }

    /// Takes every byte that its disk has left.
    pub fn fill_disk(&self) {
        assert!(self.options.disk.is_some(), "it has no disk of its own");
        let mut ballast = File::create(self.ballast()).expect("a file");
        let mut block = vec![1_u8; 1 << 20];
        while !block.is_empty() {
            match std::io::Write::write(&mut ballast, &block) {
                Ok(1..) => {}
                // Smaller pieces may fit still.
                _ => block.truncate(block.len() / 2),
            }
        }
    }

    /// Gives the space back.
    pub fn relieve_disk(&self) {
        std::fs::remove_file(self.ballast()).expect("a disk that was filled");
    }

    fn ballast(&self) -> PathBuf {
        self.folder.join("data/ballast")
    }

    /// Whether the server has ended by itself. It may be started again then.
    pub fn has_given_up(&self) -> bool {
        let mut process = self.process();
        if process.as_mut().is_some_and(|process| process.ended().is_some()) {
            // Reaped.
            drop(process.take());
        }
        process.is_none()
    }

    /// Fast shutdown. Returns how long it took; fails the test after `deadline`.
    #[track_caller]
    pub fn stop_fast(&self, deadline: Duration) -> Duration {
        let mut process = self.process().take().expect("a server that runs");
        let begin = Instant::now();
        process.signal(Signal::INT);
        assert!(process.reap(deadline).is_some(), "the fast shutdown hung past {deadline:?}:\n{}", tail(&self.log()));
        begin.elapsed()
    }

    /// Immediate shutdown: like a crash, but that its processes are told.
    #[track_caller]
    pub fn stop_immediate(&self) {
        let mut process = self.process().take().expect("a server that runs");
        process.signal(Signal::QUIT);
        assert!(process.reap(wait::DEADLINE).is_some(), "the immediate shutdown hung:\n{}", tail(&self.log()));
    }

    /// Smart shutdown, which waits for all sessions, and a fast one after a pause.
    #[track_caller]
    pub fn stop_smart_then_fast(&self, pause: Duration, deadline: Duration) {
        let running = self.process();
        running.as_ref().expect("a server that runs").signal(Signal::TERM);
        drop(running);
        wait::watch_for(pause);
        self.stop_fast(deadline);
    }

    /// `kill -9` of all its processes.
    pub fn kill9(&self) {
        let mut process = self.process().take().expect("a server that runs");
        // Stopped first: else it may make another child that is not in the list.
        process.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", process.pid());
        wait::eventually(wait::DEADLINE, "the postmaster is stopped", || {
            std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "))
        });
        let children = processes::children_of(process.pid());
        process.signal(Signal::KILL);
        for child in &children {
            processes::signal_pid(*child, Signal::KILL);
        }
        assert!(process.reap(wait::DEADLINE).is_some(), "killed and still there");
        // A restart on the same data needs all of them gone: the orphans are reaped by another than us.
        wait::eventually(wait::DEADLINE, "PostgreSQL's processes are gone", || {
            children.iter().all(|pid| processes::has_ended(*pid))
        });
    }

    /// The pid of the walsender that streams from a slot, if there is one.
    pub fn walsender_of(&self, slot: &str) -> Option<u32> {
        let rows = self.sql(&format!("SELECT active_pid FROM pg_replication_slots WHERE slot_name = '{slot}'"));
        rows.into_iter().next()?.into_iter().next()??.parse().ok()
    }

    /// Signals one of the server's processes, such as a walsender (`STOP`, `CONT`).
    pub fn signal_backend(&self, pid: u32, signal: Signal) {
        processes::signal_pid(pid, signal);
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// The folder of `postgres` and `initdb`.
pub fn binaries() -> &'static Path {
    static BINARIES: OnceLock<PathBuf> = OnceLock::new();
    BINARIES.get_or_init(|| {
        let complete = |folder: &PathBuf| folder.join("postgres").is_file() && folder.join("initdb").is_file();
        if let Some(folder) = std::env::var_os("WALGATE_TEST_PG_BIN").map(PathBuf::from) {
            assert!(complete(&folder), "WALGATE_TEST_PG_BIN={}: no postgres and initdb there", folder.display());
            return folder;
        }
        let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache");
        let mut found: Vec<PathBuf> = Vec::new();
        for parent in [Path::new("/usr/lib/postgresql").to_owned(), cache.join("postgresql")] {
            let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
            let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path().join("bin")).collect();
            // 15 is what the tests are written for; else the newest.
            folders.sort_by_key(|folder| {
                let version = folder.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
                let major: u32 = version.and_then(|text| text.split('.').next()?.parse().ok()).unwrap_or(0);
                (major != 15, std::cmp::Reverse(major))
            });
            found.extend(folders);
        }
        found.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
        found.into_iter().find(complete).unwrap_or_else(|| {
            panic!(
                "no PostgreSQL found for the tests (looked in WALGATE_TEST_PG_BIN, /usr/lib/postgresql/*/bin, \
                 {} and PATH): run `make setup`, or set WALGATE_TEST_PG_BIN to the folder with postgres and initdb",
                cache.display()
            )
        })
    })
}

/// PostgreSQL refuses to run as root: then it runs as `postgres` (`WALGATE_TEST_PG_USER` names another).
fn server_user() -> Option<String> {
    rustix::process::geteuid()
        .is_root()
        .then(|| std::env::var("WALGATE_TEST_PG_USER").unwrap_or_else(|_| "postgres".to_owned()))
}

fn as_server_user(program: &Path) -> Command {
    let mut command = match server_user() {
        Some(user) => {
            // An exec chain: the pid that we hold is the server's own.
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &user, "--regid", &primary_group(&user), "--init-groups", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.current_dir("/");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    command
}

fn primary_group(user: &str) -> String {
    static GROUP: OnceLock<String> = OnceLock::new();
    GROUP
        .get_or_init(|| {
            let output = Command::new("id").args(["-g", user]).output().expect("id");
            assert!(
                output.status.success(),
                "the tests run as root and PostgreSQL refuses to: there is no user {user:?}; \
                 set WALGATE_TEST_PG_USER to one that exists"
            );
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        })
        .clone()
}

fn own(folder: &Path) {
    if let Some(user) = server_user() {
        let owner = format!("{user}:{}", primary_group(&user));
        done(Command::new("chown").args(["-R", &owner]).arg(folder));
    }
}

fn copy(from: &Path, to: &Path) {
    done(Command::new("cp").arg("-a").arg(from).arg(to));
}

/// `initdb` once per process; servers are copies of it.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let folder = processes::folder("template");
        own(&folder);
        let mut initdb = as_server_user(&binaries().join("initdb"));
        initdb.arg("-D").arg(folder.join("data"));
        initdb.args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]);
        done(&mut initdb);
        folder
    })
}

fn certificates(folder: &Path) {
    std::fs::create_dir(folder).expect("a folder for certificates");
    let script = r#"
set -eu; cd "$1"; umask 077
openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 3650 -subj "/CN=walgate test CA" \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign -keyout ca.key -out ca.crt
leaf() {
  openssl req -newkey rsa:2048 -nodes -sha256 -subj "/CN=$2" -keyout "$1.key" -out "$1.csr"
  printf "%s\n" "$3" > "$1.ext"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 3650 -sha256 -extfile "$1.ext" -out "$1.crt"
}
leaf server localhost 'basicConstraints=CA:FALSE
extendedKeyUsage=serverAuth
subjectAltName=DNS:localhost,IP:127.0.0.1'
leaf client certuser 'basicConstraints=CA:FALSE
extendedKeyUsage=clientAuth'
chmod 644 *.crt
"#;
    done(Command::new("sh").args(["-c", script, "tls"]).arg(folder));
}

fn done(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
