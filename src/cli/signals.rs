//! SIGINT and SIGTERM stop in order; a second one at once. SIGHUP reads the configuration again.

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use crate::{admin::Wish, error::ExitStatus};

/// Sets `stop` at the first SIGINT or SIGTERM, ends the process at the second; asks for a reload at SIGHUP.
pub fn listen(stop: watch::Sender<bool>, reload: mpsc::Sender<Wish>) {
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
                    // One that waits already will read what is there then.
                    let _ = reload.try_send(Wish { answer: None });
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
