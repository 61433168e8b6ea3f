//! The SQLite file of the consumer in Python, read with Python's own library.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::ledger::{Done, Ledger};
use crate::support::processes::{self, Process};
use crate::support::wait::{DEADLINE, eventually};

/// Runs each statement, and prints the values of the last one's first row.
const RUN: &str = "
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
for statement in sys.argv[2:]:
    row = db.execute(statement).fetchone()
print(*(row or ()), flush=True)
";
/// Goes on to hold what the statements have begun.
const THEN_STAY: &str = "sys.stdin.read()";

/// The interpreter, in an environment with what the consumer needs.
#[track_caller]
pub fn python() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/consumers-python/bin/python3");
    assert!(path.exists(), "{} is missing: tests/setup.sh makes it", path.display());
    path
}

/// See the module.
pub struct File(PathBuf);

impl File {
    pub fn new() -> File {
        File(processes::folder("inbox").join("inbox.sqlite"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    #[track_caller]
    fn run(&self, statements: &[&str]) -> Vec<usize> {
        let mut command = Command::new(python());
        command.args(["-c", RUN]).arg(&self.0).args(statements).stdin(Stdio::null());
        let output = command.output().expect("python3");
        assert!(output.status.success(), "{statements:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        text.split_whitespace().map(|number| number.parse().expect("a number")).collect()
    }
}

impl Ledger for File {
    type Hold = Process;

    fn is_made(&self) -> bool {
        self.run(&["SELECT count(*) FROM sqlite_master WHERE name = 'totals'"]) == [1]
    }

    fn count_takes(&self) {
        self.run(&[
            "CREATE TABLE takes (n INTEGER)",
            "INSERT INTO takes VALUES (0)",
            "CREATE TRIGGER count_take BEFORE INSERT ON inbox BEGIN UPDATE takes SET n = n + 1; END",
        ]);
    }

    fn hold(&self) -> Process {
        let mut command = Command::new(python());
        command.arg("-c").arg(format!("{RUN}{THEN_STAY}")).arg(&self.0).arg("BEGIN IMMEDIATE");
        let mut holder = Process::spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()), Signal::KILL);
        let mut line = String::new();
        let said = BufReader::new(holder.child().stdout.take().expect("its output")).read_line(&mut line);
        assert!(said.is_ok_and(|bytes| bytes > 0), "the file is not held");
        holder
    }

    fn wait_until_held(&self, consumer: &mut Process) {
        // A file has one writer, and the library waits five seconds for its turn.
        eventually(DEADLINE, "the consumer has ended, since it cannot write", || consumer.ended().is_some());
    }

    fn done(&self) -> Done {
        let sums = "SELECT coalesce(sum(events), 0), (SELECT count(*) FROM inbox), (SELECT n FROM takes) FROM totals";
        let [effects, events, takes] = self.run(&[sums])[..] else { panic!("three numbers") };
        Done { effects, events, takes }
    }
}
