//! What the commands over the outbox's rows have in common: why nothing more is done, and the connection.

use std::fmt::Display;

use walgate_sink::Secret;

use super::{complain, setup};
use crate::{
    config::Loaded,
    control::{Link, LinkError},
    error::ExitStatus,
    postgres::ConnectSettings,
};

/// Why nothing more is done.
pub struct Refusal {
    /// The exit status.
    pub status: ExitStatus,
    /// In a sentence; empty: it was said already.
    pub message: String,
}

impl Refusal {
    /// With this status.
    pub fn new(status: ExitStatus, message: impl Display) -> Self {
        Refusal { status, message: message.to_string() }
    }

    /// Something around walgate is missing.
    pub fn environment(message: impl Display) -> Self {
        Refusal::new(ExitStatus::Environment, message)
    }

    /// It was said already.
    pub fn said(status: ExitStatus) -> Self {
        Refusal { status, message: String::new() }
    }

    /// Says it; the exit status.
    pub fn complain(self) -> ExitStatus {
        if !self.message.is_empty() {
            complain(&self.message);
        }
        self.status
    }
}

/// A secret as an argument of the command line.
#[allow(clippy::unnecessary_wraps, reason = "clap's form of a value parser")]
pub fn secret(text: &str) -> Result<Secret, std::convert::Infallible> {
    Ok(Secret::new(text))
}

/// Where the command connects to: an administrator's address, or the configuration's.
pub fn settings(loaded: &Loaded, admin_url: Option<&Secret>) -> Result<ConnectSettings, Refusal> {
    match admin_url {
        None => setup::settings(loaded).map_err(|errors| Refusal::said(setup::refuse(&errors))),
        Some(url) => {
            let env = |name: &str| std::env::var(name).ok();
            ConnectSettings::parse(Some(url.expose()), &env).map_err(Refusal::environment)
        }
    }
}

/// An SQL connection there.
pub async fn connect(settings: &ConnectSettings) -> Result<Link, Refusal> {
    let cannot = |error: LinkError| Refusal::environment(format!("cannot connect to PostgreSQL: {error}"));
    setup::connect(settings).await.map_err(cannot)
}
