//! The real binary, as a user runs it.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::database::Database;
use super::processes::{self, Process};
use super::receiver::{Receiver, SECRET};
use super::{http_get, wait};

/// Short pauses, so that nothing waits for a backoff.
const QUICK: &str = "timeout: 5s, retry: { initial: 20ms, max: 500ms, connection_max: 200ms }";

/// A configuration file and an environment.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    source: String,
    outbox: String,
    sinks: String,
    routes: String,
    more: String,
    literal: Option<String>,
    env: Vec<(String, String)>,
    program: Option<PathBuf>,
    admin: u16,
}

impl Setup {
    /// Reads the database straight from its server.
    pub fn of(database: &Database) -> Setup {
        Setup::through(database, database.server.port())
    }

    /// Reads the database through a proxy on this port.
    pub fn through(database: &Database, port: u16) -> Setup {
        Setup { source: database.source(port), admin: wait::free_port(), ..Setup::default() }
    }

    /// This text as the whole file.
    pub fn literal(text: impl Into<String>) -> Setup {
        Setup { literal: Some(text.into()), admin: wait::free_port(), ..Setup::default() }
    }

    /// The outbox has the columns of `Database::with_keyed_outbox`.
    pub fn keyed(mut self) -> Setup {
        self.outbox = super::database::KEYED_COLUMNS.to_owned();
        self
    }

    /// Another `source:`.
    pub fn source(mut self, text: impl Into<String>) -> Setup {
        self.source = text.into();
        self
    }

    /// A further line of `source:`.
    pub fn in_source(mut self, line: &str) -> Setup {
        let _ = writeln!(self.source, "  {line}");
        self
    }

    /// What PostgreSQL is to call it.
    pub fn called(mut self, name: &str) -> Setup {
        self.source = self.source.replace("?sslmode=disable", &format!("?sslmode=disable&application_name={name}"));
        self
    }

    /// A webhook sink that posts to the receiver, with short pauses.
    pub fn webhook(self, name: &str, receiver: &Receiver) -> Setup {
        let url = receiver.url();
        self.webhook_at(name, &url, QUICK)
    }

    /// A webhook sink on any URL; `delivery` is the inside of its `delivery: { }`.
    pub fn webhook_at(self, name: &str, url: &str, delivery: &str) -> Setup {
        self.sink(&format!("{name}: {{ webhook: {{ url: {url:?}, secret: {SECRET:?} }}, delivery: {{ {delivery} }} }}"))
    }

    /// A line under `sinks:`.
    pub fn sink(mut self, line: &str) -> Setup {
        let _ = writeln!(self.sinks, "  {line}");
        self
    }

    /// An entry of `routes:`.
    pub fn route(mut self, event_type: &str, to: &str) -> Setup {
        let _ = writeln!(self.routes, "  - {{ event_type: {event_type:?}, to: {to} }}");
        self
    }

    /// Further lines at the top level.
    pub fn more(mut self, lines: &str) -> Setup {
        let _ = writeln!(self.more, "{lines}");
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Setup {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Another program than walgate's own binary.
    pub fn program(mut self, path: &Path) -> Setup {
        self.program = Some(path.to_owned());
        self
    }

    /// The port of the admin interface.
    pub fn admin_port(&self) -> u16 {
        self.admin
    }

    /// The file's text.
    pub fn yaml(&self) -> String {
        if let Some(text) = &self.literal {
            return text.clone();
        }
        let Setup { source, outbox, sinks, routes, more, admin, .. } = self;
        format!("{source}{outbox}sinks:\n{sinks}routes:\n{routes}{more}admin: {{ listen: \"127.0.0.1:{admin}\" }}\n")
    }

    /// Writes the file; its path.
    pub fn write(&self) -> PathBuf {
        use std::io::Write as _;
        let path = processes::folder("walgate").join("walgate.yaml");
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).expect("walgate.yaml");
        file.write_all(self.yaml().as_bytes()).expect("walgate.yaml");
        path
    }
}

/// The lines that a process has written so far.
type Lines = Arc<Mutex<Vec<String>>>;

/// A running walgate. Killed when dropped.
pub struct Walgate {
    process: Process,
    stdout: Lines,
    stderr: Lines,
    admin: u16,
    status: Option<ExitStatus>,
}

/// A walgate that has ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Both streams, for texts that may stand on either.
    pub fn output(&self) -> String {
        format!("{}\n{}", self.stdout, self.stderr)
    }

    /// Fails the test unless it ended with this code and each of the texts stands in its output.
    #[track_caller]
    pub fn expect(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "exit code; it said:\n{}", self.output());
        let output = self.output();
        for text in texts {
            assert!(output.contains(text), "{text:?} is not in what it said:\n{output}");
        }
    }
}

impl Walgate {
    /// `walgate run` with this configuration.
    pub fn run(setup: &Setup) -> Walgate {
        let path = setup.write();
        Walgate::run_file(setup, &path)
    }

    /// `walgate run` with a file that [`Setup::write`] has written: again, after it has ended.
    pub fn run_file(setup: &Setup, path: &Path) -> Walgate {
        Walgate::spawn(setup, &["run", "--config", &path.display().to_string()])
    }

    /// `walgate run` with this configuration and further arguments.
    pub fn run_with(setup: &Setup, arguments: &[&str]) -> Walgate {
        let path = setup.write().display().to_string();
        let run = ["run", "--config", path.as_str()];
        Walgate::spawn(setup, &[&run, arguments].concat())
    }

    /// Any command, to its end. `{config}` in an argument stands for the file's path.
    #[track_caller]
    pub fn command(setup: &Setup, arguments: &[&str]) -> Ended {
        let path = setup.write().display().to_string();
        let arguments: Vec<String> = arguments.iter().map(|argument| argument.replace("{config}", &path)).collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Walgate::spawn(setup, &arguments).wait_for_end(wait::DEADLINE)
    }

    fn spawn(setup: &Setup, arguments: &[&str]) -> Walgate {
        let own = Path::new(env!("CARGO_BIN_EXE_walgate"));
        let mut command = Command::new(setup.program.as_deref().unwrap_or(own));
        command.args(arguments).current_dir(processes::folder("cwd"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("PG") || text.starts_with("WALGATE_") || text == "RUST_LOG" {
                command.env_remove(&name);
            }
        }
        command.envs(setup.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::spawn(&mut command, Signal::KILL);
        let stdout = collect(process.child().stdout.take().expect("a pipe"));
        let stderr = collect(process.child().stderr.take().expect("a pipe"));
        Walgate { process, stdout, stderr, admin: setup.admin, status: None }
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill9(&mut self) {
        self.process.signal(Signal::KILL);
        self.reap(wait::DEADLINE);
    }

    /// SIGTERM.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Whether it has ended; keeps its status.
    pub fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.process.ended();
        }
        self.status.is_some()
    }

    /// The signal that ended it, if it has ended by one.
    pub fn killed_by(&self) -> Option<i32> {
        self.status.and_then(|status| status.signal())
    }

    /// Waits for its end, and for the end of its output.
    #[track_caller]
    pub fn wait_for_end(mut self, deadline: Duration) -> Ended {
        self.reap(deadline);
        // The pipes close with the process; their readers then let go of the lines.
        wait::within(wait::DEADLINE, || Arc::strong_count(&self.stdout) == 1 && Arc::strong_count(&self.stderr) == 1);
        let code = self.status.and_then(|status| status.code());
        Ended { code, stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }

    #[track_caller]
    fn reap(&mut self, deadline: Duration) {
        if self.status.is_none() {
            self.status = self.process.reap(deadline);
        }
        assert!(self.status.is_some(), "walgate did not end within {deadline:?}; it said:\n{}", self.said());
    }

    /// Waits for a condition for as long as walgate runs.
    #[track_caller]
    pub fn eventually(&mut self, what: &str, mut condition: impl FnMut() -> bool) {
        let mut held = false;
        wait::within(wait::DEADLINE, || {
            held = condition();
            held || self.has_ended()
        });
        // It may have come about just before walgate's end. What held once need not hold again.
        if !held && !condition() {
            let state = self.status.map_or_else(|| "it runs".to_owned(), |status| status.to_string());
            panic!("not within {:?}: {what}; walgate: {state}; it said:\n{}", wait::DEADLINE, self.said());
        }
    }

    /// Waits until a line of its log holds all the texts; that line.
    #[track_caller]
    pub fn wait_log(&mut self, texts: &[&str]) -> String {
        let lines = [self.stderr.clone(), self.stdout.clone()];
        let mut found = None;
        self.eventually(&format!("a line with {texts:?}"), || {
            found = lines.iter().find_map(|lines| {
                let lines = lines.lock().expect("the lines");
                lines.iter().find(|line| texts.iter().all(|text| line.contains(text))).cloned()
            });
            found.is_some()
        });
        found.expect("the line that was found")
    }

    /// What it has written to stderr.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// What it has written to stdout.
    pub fn stdout(&self) -> String {
        text(&self.stdout)
    }

    /// The end of what it has written.
    pub fn said(&self) -> String {
        let all = format!("{}\n{}", self.stdout(), self.stderr());
        let lines: Vec<&str> = all.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// A page of the admin interface: status and body.
    pub fn page(&self, path: &str) -> Option<(u16, String)> {
        http_get::get(self.admin, path)
    }

    /// `/status`.
    pub fn status(&self) -> Option<Value> {
        let (_, body) = self.page("/status")?;
        serde_json::from_str(&body).ok()
    }

    /// The sum of a metric over the lines whose labels hold all the texts; `None` where there is no such line.
    pub fn metric(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let (_, body) = self.page("/metrics")?;
        let values = body.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = rest.rsplit_once(' ')?;
            let whole_name = found.is_empty() || found.starts_with('{');
            (whole_name && labels.iter().all(|label| found.contains(label))).then(|| value.parse::<f64>().ok())?
        });
        values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
    }

    /// The most memory that was ever resident, in KiB.
    pub fn peak_memory_kib(&self) -> u64 {
        processes::memory_kib(self.pid(), "VmHWM").expect("a running walgate")
    }
}

fn collect(pipe: impl Read + Send + 'static) -> Lines {
    let lines = Lines::default();
    let shared = lines.clone();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
            shared.lock().expect("the lines").push(text);
            line.clear();
        }
    });
    lines
}

fn text(lines: &Lines) -> String {
    lines.lock().expect("the lines").join("\n")
}
