//! A test in a network of its own, in which every address is this machine's: a listener hears a connection to any of
//! them, public and private, and nothing can leave. Names are asked for at [`NAMESERVER`].
//!
//! The test starts itself once more, as a process in new namespaces of network and mounts: so everything that it starts
//! there, PostgreSQL and walgate included, lives in that network. It takes root.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::processes::{self, Process};
use super::wait;

/// Where the resolver of this network asks for names.
pub const NAMESERVER: &str = "127.0.0.53:53";

const INSIDE: &str = "WALGATE_TEST_INSIDE";

/// The routes make every address a local one. What is mounted ends with the namespace.
const ENTER: &str = r#"
folder=$1; shift
PATH=$PATH:/usr/sbin:/sbin
ip link set lo up && ip route add local 0.0.0.0/0 dev lo && ip -6 route add local ::/0 dev lo || exit 1
printf 'nameserver 127.0.0.53\noptions timeout:5 attempts:2\n' > "$folder/resolv.conf"
printf 'hosts: files dns\n' > "$folder/nsswitch.conf"
for name in resolv.conf nsswitch.conf; do
  chmod 644 "$folder/$name" && mount --bind "$folder/$name" "/etc/$name" || exit 1
done
exec "$@"
"#;

/// Runs the test of this name (`module::function`) in a network of its own.
#[track_caller]
pub fn of_its_own(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        assert_alone();
        return test();
    }
    let folder = processes::folder("namespace");
    let own = std::env::current_exe().expect("this program");
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "sh", "-c", ENTER, "sh"]).arg(&folder);
    command.arg(own).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let output = folder.join("output");
    let file = std::fs::File::create(&output).expect("a file");
    command.stdin(Stdio::null()).stdout(file.try_clone().expect("a handle")).stderr(file);
    let mut process = Process::spawn(&mut command, Signal::TERM);
    let status = process.reap(6 * wait::DEADLINE);
    // Its own watcher clears up after it.
    let said = std::fs::read_to_string(&output).unwrap_or_default();
    let passed = status.is_some_and(|status| status.success()) && said.contains("1 passed");
    assert!(passed, "{name} in a network of its own (which takes root, and `ip`): {status:?}\n{said}");
}

/// Nothing but the loopback device is here: no packet reaches another machine.
fn assert_alone() {
    let devices = std::fs::read_to_string("/proc/net/dev").expect("the devices");
    let names: Vec<&str> = devices.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert_eq!(names, ["lo"], "this is no network of the test's own");
}

/// Whether something at an address can be connected to.
pub fn is_reached(address: std::net::SocketAddr) -> bool {
    std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()
}
