//! SIGINT and SIGTERM stop in order; a second one at once.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::error::ExitStatus;

/// Sets `stop` at the first SIGINT or SIGTERM, ends the process at the second.
pub fn stop_on_signals(stop: watch::Sender<bool>) {
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(signal);
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = signals else {
        tracing::error!("cannot listen for signals: only SIGKILL will end this process");
        return;
    };
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {
                    tracing::warn!("SIGHUP does nothing: restart walgate to apply a changed configuration");
                    continue;
                }
            }
            if stop.send_replace(true) {
                tracing::warn!("stopping at once: what is unacknowledged is delivered at the next start");
                std::process::exit(ExitStatus::Runtime as i32);
            }
            tracing::info!("stopping; once more stops at once");
        }
    });
}
