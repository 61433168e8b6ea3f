//! The service manager: when walgate is ready, what it is doing, and that it lives (systemd's `sd_notify`).
//!
//! Without `NOTIFY_SOCKET` in the environment nothing of this happens.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval_at},
};

use crate::{
    lane::LaneState,
    pipeline::{self, GatewayStatus, Pulse, SourceState, StatusBoard},
    telemetry::clip,
};

/// The variables of the protocol: a child process must not speak for this one.
#[cfg(feature = "demo")]
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Pause between two looks at the state.
const LOOK: Duration = Duration::from_secs(1);

/// Tells the service manager, if there is one, until `stop` becomes true.
pub fn tell(board: StatusBoard, pulse: Pulse, stop: watch::Receiver<bool>) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    let manager = match Manager::at(&path) {
        Ok(manager) => manager,
        Err(error) => {
            tracing::warn!(%error, "NOTIFY_SOCKET names no socket: the service manager is told nothing");
            return;
        }
    };
    let number = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    if let Some(limit) = number("WATCHDOG_USEC").filter(|micros| *micros > 0 && meant).map(Duration::from_micros)
        && let Ok(manager) = manager.again()
    {
        tokio::spawn(keep_watchdog(limit / 2, manager, board.clone(), pulse));
    }
    tokio::spawn(report(manager, board, stop));
}

/// READY=1 once events are streamed, or another walgate has the slot and this one stands by; STATUS= whenever the state
/// is another one; STOPPING=1 at the end.
async fn report(manager: Manager, board: StatusBoard, mut stop: watch::Receiver<bool>) {
    let (mut ready, mut said) = (false, String::new());
    let mut look = interval_at(Instant::now(), LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let stopping = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => true,
            _ = look.tick() => false,
        };
        let status = board.status();
        let mut states = Vec::new();
        if !ready && matches!(status.source.state, SourceState::Streaming | SourceState::Standby) {
            ready = true;
            states.push("READY=1".to_owned());
        }
        let stopping = stopping || status.source.state == SourceState::Stopping;
        if stopping {
            states.push("STOPPING=1".to_owned());
        }
        let sentence = if stopping { "stopping: delivering what was read".to_owned() } else { sentence(&status) };
        if sentence != said {
            states.push(format!("STATUS={sentence}"));
            said = sentence;
        }
        if !states.is_empty() {
            manager.send(&states.join("\n"));
        }
        if stopping {
            return;
        }
    }
}

/// WATCHDOG=1 in every half of the limit in which the gateway and each lane have answered.
async fn keep_watchdog(half: Duration, manager: Manager, board: StatusBoard, pulse: Pulse) {
    let mut turn = interval_at(Instant::now(), half);
    turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        turn.tick().await;
        match pipeline::is_alive(&pulse, &board, half).await {
            Ok(()) => manager.send("WATCHDOG=1"),
            Err(silent) => {
                tracing::error!(silent, "a part of walgate does not answer: the watchdog is not told that it lives");
            }
        }
    }
}

/// One sentence for `systemctl status`.
fn sentence(status: &GatewayStatus) -> String {
    if !status.not_ready.is_empty() {
        return clip(&format!("not ready: {}", status.not_ready.join("; ")));
    }
    if status.source.state == SourceState::Standby {
        return "standing by: another process reads the slot".to_owned();
    }
    let down = status.sinks.iter().filter(|sink| {
        matches!(sink.lane.state, LaneState::Down | LaneState::Probing | LaneState::Closed | LaneState::Halted)
    });
    let down: Vec<&str> = down.map(|sink| sink.name.as_str()).collect();
    if down.is_empty() { "streaming".to_owned() } else { format!("streaming; not well: {}", down.join(", ")) }
}

/// The service manager's socket.
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
}

impl Manager {
    /// At a path, or at a name of the abstract namespace behind `@`.
    fn at(path: &OsStr) -> io::Result<Self> {
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        // A service manager that does not read must not hold anything here.
        socket.set_nonblocking(true)?;
        Ok(Manager { socket, address })
    }

    fn again(&self) -> io::Result<Self> {
        Ok(Manager { socket: self.socket.try_clone()?, address: self.address.clone() })
    }

    fn send(&self, states: &str) {
        if let Err(error) = self.socket.send_to_addr(states.as_bytes(), &self.address) {
            tracing::warn!(%error, "cannot reach the service manager at NOTIFY_SOCKET");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metrics::Metrics, pipeline::Identity};

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_only_by_who_answers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let heard = UnixDatagram::bind(&path).unwrap();
        heard.set_nonblocking(true).unwrap();
        let text = String::new;
        let identity = Identity { version: "0", slot: text(), publication: text(), table: text(), server: text() };
        let board = StatusBoard::new(identity, 1, LOOK, Metrics::new());
        let (pulse, half) = (Pulse::default(), Duration::from_secs(10));
        tokio::spawn(keep_watchdog(half, Manager::at(path.as_os_str()).unwrap(), board, pulse.clone()));
        tokio::time::sleep(10 * half).await;
        assert_eq!(heard.recv(&mut [0; 100]).unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody answered");
        let task = tokio::spawn(pulse.of(std::future::pending::<()>()));
        tokio::time::sleep(10 * half).await;
        let mut message = [0; 100];
        let length = heard.recv(&mut message).unwrap();
        assert_eq!(message[..length], *b"WATCHDOG=1");
        task.abort();
    }

    #[test]
    fn a_service_manager_that_is_not_there_or_does_not_read_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = Manager::at(path.as_os_str()).unwrap();
        manager.send("READY=1");
        let _deaf = UnixDatagram::bind(&path).unwrap();
        (0..10_000).for_each(|_| manager.send("STATUS=streaming"));
    }
}
