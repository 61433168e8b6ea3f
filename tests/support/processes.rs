//! Child processes that never outlive the tests, and the one temporary folder in which they live.
//!
//! A watcher (a shell of its own process group) holds the read end of a pipe whose write end only this process has.
//! However this process ends, the pipe closes: the watcher then stops what is still registered, by pid, and removes
//! the folder. (`pdeathsig` would be tied to the thread that spawned: a test's thread ends long before the process.)

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::wait;

const WATCHER: &str = r#"
cat >/dev/null
for f in "$1"/pids/*; do [ -e "$f" ] && kill -s "$(cat "$f")" "${f##*/}" 2>/dev/null; done
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
  left=; for f in "$1"/pids/*; do [ -e "$f" ] && kill -0 "${f##*/}" 2>/dev/null && left=1; done
  [ -z "$left" ] && break
  sleep 0.2
done
# A disk of a server's own.
for d in "$1"/*/data; do umount -l "$d" 2>/dev/null; done
rm -rf -- "$1"
"#;

struct Scratch {
    folder: PathBuf,
    /// With the pipe's write end in it.
    _watcher: Child,
}

fn scratch() -> &'static Scratch {
    static SCRATCH: OnceLock<Scratch> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        // Short: a unix socket's path holds 107 bytes. Entered by the server's own user: hence 0711.
        let folder = tempfile::Builder::new().prefix("wg-").rand_bytes(6).tempdir().expect("a temporary folder").keep();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o711)).expect("chmod");
        std::fs::create_dir(folder.join("pids")).expect("a folder for pids");
        let watcher = Command::new("sh")
            .args(["-c", WATCHER, "walgate-e2e-watcher"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("the watcher");
        Scratch { folder, _watcher: watcher }
    })
}

/// A new folder inside the process's temporary folder; mode 0711.
pub fn folder(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let path = scratch().folder.join(format!("{name}{}", NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir(&path).expect("a folder");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711)).expect("chmod");
    path
}

/// A child that is stopped, and reaped, when it is dropped; and by the watcher when the tests die.
pub struct Process {
    child: Option<Child>,
    pid: u32,
    stop: Signal,
    record: PathBuf,
}

impl Process {
    /// Spawns; `stop` is the signal that ends it without a trace left behind.
    pub fn spawn(command: &mut Command, stop: Signal) -> Process {
        let pids = scratch().folder.join("pids");
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {:?}: {error}", command.get_program()));
        let pid = child.id();
        let record = pids.join(pid.to_string());
        let name = if stop == Signal::QUIT { "QUIT" } else { "KILL" };
        std::fs::write(&record, name).expect("the record of a pid");
        Process { child: Some(child), pid, stop, record }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    pub fn child(&mut self) -> &mut Child {
        self.child.as_mut().expect("a child that was not reaped")
    }

    /// Sends a signal; nothing where it has been reaped.
    pub fn signal(&self, signal: Signal) {
        if self.child.is_some() {
            signal_pid(self.pid, signal);
        }
    }

    /// Its exit status, if it has ended. Keeps the child until [`Process::reap`].
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child().try_wait().expect("waiting for a child")
    }

    /// Waits for its end; `None` when the deadline passes first.
    pub fn reap(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let mut status = None;
        wait::within(deadline, || {
            status = self.child.as_mut().and_then(|child| child.try_wait().expect("waiting for a child"));
            status.is_some()
        });
        if status.is_some() {
            let _ = std::fs::remove_file(&self.record);
        }
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A status that was already read stays readable: the pid is signalled only while it is still ours.
        if self.ended().is_none() {
            signal_pid(self.pid, Signal::CONT);
            signal_pid(self.pid, self.stop);
            if self.reap(Duration::from_secs(10)).is_none() {
                signal_pid(self.pid, Signal::KILL);
                let _ = self.child().wait();
            }
        }
        let _ = std::fs::remove_file(&self.record);
    }
}

/// Signals one process by its id.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The direct children of a process.
pub fn children_of(pid: u32) -> Vec<u32> {
    std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|child| child.parse().ok())
        .collect()
}

/// The command line of a process, with spaces between its words.
pub fn command_line(pid: u32) -> String {
    read_words(&format!("/proc/{pid}/cmdline"))
}

/// Whether a process is gone, or only its exit status is left: nothing that it held is held any more. An empty command
/// line says less: it is empty before the shared memory is detached.
pub fn has_ended(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit(") ").next()?.chars().next())
        .is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// Hundredths of a second of a processor that a process has used.
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Behind the name, which may hold anything: user and system time are the 12th and 13th.
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// A line of `/proc/PID/status` in KiB, such as `VmHWM`: the most memory that was ever resident.
pub fn memory_kib(pid: u32, field: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
}

fn read_words(path: &str) -> String {
    let bytes = std::fs::read(Path::new(path)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ")
}
