//! A real nats-server with JetStream as a child process, to be killed and started again.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::nats_wire::{Login, Stored, Wire};
use super::processes::{self, Process};
use super::{http_get, wait};

/// See the module. Its folder, and so what it has stored, outlives a kill.
pub struct NatsServer {
    folder: PathBuf,
    port: u16,
    monitor: u16,
    login: Login,
    process: Mutex<Option<Process>>,
}

impl NatsServer {
    /// Takes anybody, without TLS.
    pub fn start() -> NatsServer {
        NatsServer::with("", Login::default())
    }

    /// With further lines in its configuration; `login` is how the test itself connects.
    pub fn with(lines: &str, login: Login) -> NatsServer {
        let folder = processes::folder("nats");
        let (port, monitor) = (wait::free_port(), wait::free_port());
        let store = folder.join("js");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitor}\"\nserver_name: walgate-test\n\
             jetstream {{ store_dir: {store:?}, max_mem: 64M, max_file: 1G }}\n{lines}\n"
        );
        std::fs::write(folder.join("nats.conf"), text).expect("nats.conf");
        let server = NatsServer { folder, port, monitor, login, process: Mutex::new(None) };
        server.start_again();
        server
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts the stopped or killed server again: same data, same port. Returns when JetStream answers.
    #[track_caller]
    pub fn start_again(&self) {
        let mut slot = self.process.lock().expect("the server's process");
        assert!(slot.is_none(), "the server runs already");
        let log = File::options().append(true).create(true).open(self.folder.join("nats.log")).expect("nats.log");
        let mut command = Command::new(binary());
        command.arg("-c").arg(self.folder.join("nats.conf"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut process = Process::spawn(&mut command, Signal::TERM);
        let healthy = wait::within(wait::DEADLINE, || {
            process.ended().is_some()
                || http_get::get(self.monitor, "/healthz").is_some_and(|(status, _)| status == 200)
        });
        assert!(healthy && process.ended().is_none(), "nats-server did not start:\n{}", self.log());
        *slot = Some(process);
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill9(&self) {
        self.end(Signal::KILL);
    }

    /// SIGTERM; returns when it is gone.
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    /// Replaces a text in its configuration; returns when the server goes by the new one.
    #[track_caller]
    pub fn reconfigure(&self, old: &str, new: &str) {
        let path = self.folder.join("nats.conf");
        let text = std::fs::read_to_string(&path).expect("nats.conf");
        assert!(text.contains(old), "{old} is not in its configuration");
        std::fs::write(path, text.replace(old, new)).expect("nats.conf");
        let reloads = || self.log().matches("Reloaded server configuration").count();
        let before = reloads();
        self.signal(Signal::HUP);
        // Until then it takes what it took before.
        wait::eventually(wait::DEADLINE, "nats-server has read its configuration again", || reloads() > before);
    }

    /// STOP and CONT.
    pub fn signal(&self, signal: Signal) {
        self.process.lock().expect("the server's process").as_ref().expect("a running server").signal(signal);
    }

    fn end(&self, signal: Signal) {
        let mut process = self.process.lock().expect("the server's process").take().expect("a running server");
        process.signal(signal);
        assert!(process.reap(wait::DEADLINE).is_some(), "nats-server did not end");
    }

    /// The server's log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("nats.log")).unwrap_or_default()
    }

    /// Connections of clients that were made since it started.
    pub fn connections(&self) -> u64 {
        let (_, body) = http_get::get(self.monitor, "/varz").expect("the server's monitor");
        let varz: Value = serde_json::from_str(&body).expect("JSON");
        varz["total_connections"].as_u64().expect("a number")
    }

    /// A connection of the test's own.
    #[track_caller]
    pub fn wire(&self) -> Wire {
        Wire::connect(self.port, &self.login)
    }

    /// Makes a stream for these subjects; `more` are further settings.
    #[track_caller]
    pub fn add_stream(&self, name: &str, subjects: &[&str], more: Value) {
        let mut config = json!({ "name": name, "subjects": subjects, "storage": "file", "num_replicas": 1 });
        let (Some(config_map), Value::Object(more)) = (config.as_object_mut(), more) else { panic!("objects") };
        config_map.extend(more);
        self.wire().api(&format!("STREAM.CREATE.{name}"), &config);
    }

    /// Changes settings of a stream.
    #[track_caller]
    pub fn edit_stream(&self, name: &str, changes: Value) {
        let mut wire = self.wire();
        let mut config = wire.api(&format!("STREAM.INFO.{name}"), &Value::Null)["config"].take();
        let (Some(config_map), Value::Object(changes)) = (config.as_object_mut(), changes) else { panic!("objects") };
        config_map.extend(changes);
        wire.api(&format!("STREAM.UPDATE.{name}"), &config);
    }

    /// How many messages a stream holds.
    #[track_caller]
    pub fn count(&self, stream: &str) -> u64 {
        self.wire().api(&format!("STREAM.INFO.{stream}"), &Value::Null)["state"]["messages"].as_u64().expect("a number")
    }

    /// The names of the streams.
    #[track_caller]
    pub fn streams(&self) -> Vec<String> {
        let names = self.wire().api("STREAM.NAMES", &Value::Null);
        names["streams"].as_array().into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    }

    /// Everything that a stream holds, in its order.
    #[track_caller]
    pub fn stored(&self, stream: &str) -> Vec<Stored> {
        self.wire().stored(stream)
    }
}

/// `WALGATE_TEST_NATS_SERVER`, or the newest that `tests/setup.sh` has put into `.cache`, or the system's.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os("WALGATE_TEST_NATS_SERVER") {
            return named.into();
        }
        let cached = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/nats/nats-server");
        let known = [cached, "/usr/sbin/nats-server".into(), "/usr/local/bin/nats-server".into()];
        // What is in PATH, if it is nowhere else.
        known.into_iter().find(|path| path.exists()).unwrap_or_else(|| "nats-server".into())
    })
}
