//! The demo tells its story to the end and leaves nothing behind: the examples' code, run.

use std::process::{Command, Stdio};

fn demo(folder: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walgate"));
    command.arg("demo").args(arguments).env("TMPDIR", folder).stdin(Stdio::null());
    command
}

/// A folder that PostgreSQL's user may enter.
fn folder() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

fn left_behind(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn nothing_vanishes_through_the_outbox_and_nothing_is_left_behind() {
    let folder = folder();
    // The service manager of whoever runs the demo is not told of the processes in it (PostgreSQL's would speak, too).
    let manager = std::os::unix::net::UnixDatagram::bind(folder.path().join("notify")).unwrap();
    manager.set_nonblocking(true).unwrap();
    let ended = demo(folder.path(), &["--orders", "150"])
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .env("WATCHDOG_USEC", "1000000")
        .output()
        .unwrap();
    assert!(manager.recv(&mut [0; 100]).is_err(), "nobody speaks to the service manager");
    std::fs::remove_file(folder.path().join("notify")).unwrap();
    let told = String::from_utf8(ended.stdout).unwrap();
    assert_eq!(ended.status.code(), Some(0), "{told}\n{}", String::from_utf8_lossy(&ended.stderr));
    for words in ["Act one", "Act two", "150 orders saved", "messages that vanished", "0 vanished"] {
        assert!(told.contains(words), "{words:?} is not in:\n{told}");
    }
    assert!(!told.contains('\u{1b}'), "no colours in a pipe");
    assert_eq!(left_behind(folder.path()), Vec::<std::path::PathBuf>::new());
}

#[test]
fn ctrl_c_ends_the_demo_and_leaves_nothing_behind() {
    use std::io::{BufRead, BufReader};
    let folder = folder();
    let mut child = demo(folder.path(), &[]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("Act one")), "it began");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert!(lines.any(|line| line.unwrap().contains("nothing is left behind")));
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(left_behind(folder.path()), Vec::<std::path::PathBuf>::new());
}
