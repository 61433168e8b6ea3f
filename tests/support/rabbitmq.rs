//! A real RabbitMQ node as a child process, with an epmd of its own, to be killed and started again.
//!
//! One node is shared by the tests, each with a virtual host of its own; those that hurt a node start another. Where
//! `WALGATE_TEST_RABBITMQ_ROOT` names a folder with another Debian in it, nodes run from there (`tests/setup.sh rabbitmq`).

use std::fs::File;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use rustix::process::Signal;

use super::amqp_wire::Wire;
use super::processes::{self, Process};
use super::wait;

/// Where Debian puts the scripts; the wrappers in /usr/sbin would change user and environment.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";
/// Whom the package makes for the server.
const USER: &str = "rabbitmq";
/// Whom a node in a root of its own runs as: every Debian has him, and under the same number.
const NOBODY: &str = "65534";
/// Becomes a program in another root, with the node's folder in its place. The mounts are this process's, and end with it.
const ENTER: &str = r#"
mount -t tmpfs tmpfs "$1/tmp" && mkdir -p "$1$2" && mount --bind "$2" "$1$2" && mount -t proc proc "$1/proc" || exit 1
root=$1 user=$3; shift 3
exec chroot --userspec="$user:$user" "$root" "$@"
"#;

/// See the module. Its folder, and so what it has stored, outlives a kill.
pub struct Rabbit {
    folder: PathBuf,
    port: u16,
    tls_port: u16,
    /// Whether it listens there.
    tls: bool,
    ports: [u16; 3],
    process: Mutex<Option<Process>>,
    _epmd: Process,
}

impl Rabbit {
    /// The shared node.
    pub fn shared() -> &'static Rabbit {
        static SHARED: OnceLock<Rabbit> = OnceLock::new();
        SHARED.get_or_init(Rabbit::start)
    }

    /// A node of the test's own: user `walgate`, password `secret`.
    pub fn start() -> Rabbit {
        Rabbit::with("", "", |_| {})
    }

    /// With further lines in its configuration, and plugins; `prepare` gets its folder before it starts, for files that
    /// the lines name as `{folder}`.
    pub fn with(lines: &str, plugins: &str, prepare: impl FnOnce(&Path)) -> Rabbit {
        let folder = processes::folder("rabbit");
        for name in ["home", "mnesia", "log", "gen"] {
            std::fs::create_dir(folder.join(name)).expect("a folder");
        }
        let (port, tls_port) = (wait::free_port(), wait::free_port());
        let ports = [(); 3].map(|()| wait::free_port());
        let shown = folder.display().to_string();
        let text = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\ndefault_user = walgate\ndefault_pass = secret\nloopback_users = none\n\
             log.console = false\nlog.file.level = info\nvm_memory_high_watermark.absolute = 512MB\n\
             disk_free_limit.absolute = 50MB\n{}\n",
            lines.replace("{folder}", &shown).replace("{tls_port}", &tls_port.to_string())
        );
        std::fs::write(folder.join("rabbitmq.conf"), text).expect("rabbitmq.conf");
        std::fs::write(folder.join("enabled_plugins"), format!("[{plugins}].")).expect("enabled_plugins");
        std::fs::write(folder.join("advanced.config"), "[].").expect("advanced.config");
        let cookie = folder.join("home/.erlang.cookie");
        std::fs::write(&cookie, format!("walgate{port}{}", std::process::id())).expect("a cookie");
        std::fs::set_permissions(&cookie, std::fs::Permissions::from_mode(0o400)).expect("chmod");
        prepare(&folder);
        if is_root() {
            let user = if root().is_some() { NOBODY } else { USER };
            let status = Command::new("chown").arg("-R").arg(user).arg(&folder).status().expect("chown");
            assert!(status.success(), "chown");
        }
        let mut command = as_user("epmd", &folder);
        command.args(["-address", "127.0.0.1", "-port", &ports[0].to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let epmd = Process::spawn(&mut command, Signal::KILL);
        let tls = lines.contains("{tls_port}");
        let rabbit = Rabbit { folder, port, tls_port, tls, ports, process: Mutex::new(None), _epmd: epmd };
        rabbit.start_again();
        rabbit
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn tls_port(&self) -> u16 {
        self.tls_port
    }

    fn environment(&self, command: &mut Command) {
        let [epmd, dist, cli] = self.ports.map(|port| port.to_string());
        let at = |name: &str| self.folder.join(name);
        command
            .env("HOME", at("home"))
            .env("ERL_EPMD_PORT", epmd)
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", format!("wg{}@localhost", self.port))
            .env("RABBITMQ_DIST_PORT", dist)
            .env("RABBITMQ_CONF_ENV_FILE", at("none"))
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", at("advanced.config"))
            .env("RABBITMQ_MNESIA_BASE", at("mnesia"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("enabled_plugins"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", at("gen"))
            .env("RABBITMQ_PID_FILE", at("home/rabbit.pid"))
            .env("RABBITMQ_CTL_DIST_PORT_MIN", &cli)
            .env("RABBITMQ_CTL_DIST_PORT_MAX", &cli)
            .env("RABBITMQ_CTL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +A 4 +SDio 2",
            )
            // The script then becomes the server: its pid is ours to kill.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("LANG", "C.UTF-8")
            .current_dir("/");
    }

    /// Starts the stopped or killed node again: same data, same port. Returns when it speaks AMQP.
    #[track_caller]
    pub fn start_again(&self) {
        let mut slot = self.process.lock().expect("the node's process");
        assert!(slot.is_none(), "the node runs already");
        let log = File::options().append(true).create(true).open(self.folder.join("out.log")).expect("out.log");
        let mut command = as_user(&format!("{SCRIPTS}/rabbitmq-server"), &self.folder);
        self.environment(&mut command);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        let mut process = Process::spawn(&mut command, Signal::KILL);
        // The listener for TLS opens a moment later.
        let open = || !self.tls || TcpStream::connect(("127.0.0.1", self.tls_port)).is_ok();
        let speaks = wait::within(3 * wait::DEADLINE, || process.ended().is_some() || (speaks(self.port) && open()));
        assert!(speaks && process.ended().is_none(), "RabbitMQ did not start:\n{}", self.log());
        *slot = Some(process);
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill9(&self) {
        let mut process = self.process.lock().expect("the node's process").take().expect("a running node");
        process.signal(Signal::KILL);
        assert!(process.reap(wait::DEADLINE).is_some(), "RabbitMQ did not end");
    }

    /// SIGTERM; returns when it is gone.
    pub fn stop(&self) {
        let mut process = self.process.lock().expect("the node's process").take().expect("a running node");
        process.signal(Signal::TERM);
        assert!(process.reap(wait::DEADLINE).is_some(), "RabbitMQ did not end");
    }

    /// STOP and CONT.
    pub fn signal(&self, signal: Signal) {
        self.process.lock().expect("the node's process").as_ref().expect("a running node").signal(signal);
    }

    /// What it has logged and said.
    pub fn log(&self) -> String {
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let name = format!("log/wg{}@localhost.log", self.port);
        read(self.folder.join("out.log")) + &read(self.folder.join(name))
    }

    /// `rabbitmqctl`, which must succeed; what it prints.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = as_user(&format!("{SCRIPTS}/rabbitmqctl"), &self.folder);
        self.environment(&mut command);
        let output = command.arg("-q").args(arguments).stdin(Stdio::null()).output().expect("rabbitmqctl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// A new virtual host that the user `walgate` may do everything in; its name.
    #[track_caller]
    pub fn vhost(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("v{}", NEXT.fetch_add(1, Ordering::Relaxed));
        self.ctl(&["add_vhost", &name]);
        self.ctl(&["set_permissions", "-p", &name, "walgate", ".*", ".*", ".*"]);
        name
    }

    /// A connection of the test's own.
    #[track_caller]
    pub fn wire(&self, vhost: &str) -> Wire {
        Wire::connect(self.port, vhost)
    }

    /// The pids of the connections of clients in a virtual host, but for the test's own.
    #[track_caller]
    pub fn connections(&self, vhost: &str) -> Vec<String> {
        let table = self.ctl(&["list_connections", "vhost", "pid", "channels", "client_properties"]);
        let ours = |line: &&str| line.starts_with(&format!("{vhost}\t")) && line.contains("connection_name");
        table.lines().filter(ours).filter_map(|line| Some(line.split('\t').nth(1)?.to_owned())).collect()
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The other root that nodes run in.
fn root() -> Option<PathBuf> {
    let root = std::env::var_os("WALGATE_TEST_RABBITMQ_ROOT")?;
    Some(std::path::absolute(root).expect("a path"))
}

/// A program as the server's user: the child becomes it. Here, or where the other root is.
fn as_user(program: &str, folder: &Path) -> Command {
    if let Some(root) = root() {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]);
        command.arg(root).arg(folder).args([NOBODY, program]);
        return command;
    }
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups", program]);
    command
}

/// Whether a node answers the protocol's header with Connection.Start.
fn speaks(port: u16) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut socket) = TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)) else { return false };
    let _ = socket.set_read_timeout(Some(std::time::Duration::from_secs(2)));
    let mut first = [0];
    socket.write_all(b"AMQP\x00\x00\x09\x01").is_ok() && socket.read_exact(&mut first).is_ok() && first == [1]
}
