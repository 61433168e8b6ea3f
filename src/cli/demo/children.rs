//! The story's processes: this same binary, started as a service or as the gateway, and killed with SIGKILL.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::process::{Child, Command};

use super::{Failure, service};
use crate::cli::systemd::VARIABLES;

/// A process that can be killed and started again, always in the same way.
pub struct Restartable {
    name: &'static str,
    program: PathBuf,
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
    log: PathBuf,
    child: Option<Child>,
    kills: u32,
}

impl Restartable {
    /// One of the story's services.
    pub fn service(kind: service::Kind, env: Vec<(&'static str, String)>, folder: &Path) -> Result<Self, Failure> {
        let args = vec!["demo".to_owned(), "--service".to_owned(), kind.flag().to_owned()];
        Self::new("orders", args, env, folder.join("orders.log"))
    }

    /// walgate itself.
    pub fn gateway(config: &Path, env: Vec<(&'static str, String)>, folder: &Path) -> Result<Self, Failure> {
        let args = vec!["run".to_owned(), "--config".to_owned(), config.display().to_string()];
        Self::new("walgate", args, env, folder.join("walgate.log"))
    }

    fn new(
        name: &'static str,
        args: Vec<String>,
        env: Vec<(&'static str, String)>,
        log: PathBuf,
    ) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(|error| format!("cannot find this program's file: {error}"))?;
        Ok(Restartable { name, program, args, env, log, child: None, kills: 0 })
    }

    /// Starts it, unless it runs.
    pub fn start(&mut self) -> Result<(), Failure> {
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(None))
        {
            return Ok(());
        }
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .map_err(|error| format!("cannot write {}: {error}", self.log.display()))?;
        let output = log.try_clone().map_err(|error| error.to_string())?;
        let mut command = Command::new(&self.program);
        for name in VARIABLES {
            command.env_remove(name);
        }
        let child = command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (*name, value.as_str())))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log)
            // Ctrl-C is the story's: it ends its children itself.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.name))?;
        self.child = Some(child);
        Ok(())
    }

    /// SIGKILL: it gets no chance to say or save anything.
    pub async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself: then there is nothing to kill.
            let _ = child.kill().await;
            self.kills += 1;
        }
    }

    /// How often it was killed.
    pub fn kills(&self) -> u32 {
        self.kills
    }

    /// Ends it in order.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if tokio::time::timeout(Duration::from_secs(10), child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }

    /// The last lines that it wrote.
    pub fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Whether it ended without being killed.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))))
    }
}
