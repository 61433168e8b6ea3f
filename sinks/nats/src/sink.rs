//! The sink itself.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use tokio::time::Instant;
use walgate_sink::{
    Batch, Capabilities, ConfigIssue, DeliveryReport, Escape, Failure, FailureKind, Sink, SinkContext, SinkError,
    SinkErrorKind, SinkFactory, TargetField,
};

use crate::{
    NatsConfig, classify,
    connector::Connector,
    flight::{Building, Flight, Publisher},
    generation::{Doubt, Generation},
    link::Link,
    message::Messages,
    streams::Look,
    subject,
};

/// Messages in one batch, all of which are outstanding at once: with one batch at a time this is the window.
const WINDOW: usize = 512;

/// Makes [`NatsSink`]s.
#[derive(Debug)]
pub struct NatsFactory;

impl SinkFactory for NatsFactory {
    const KIND: &'static str = "nats";
    const TARGET: &'static [TargetField] =
        &[TargetField { name: "subject", required: true, ordering_key: false, escape: Escape::None }];
    const SECRETS: &'static [&'static str] = &["password", "token", "nkey", "creds"];
    const FILES: &'static [&'static str] = &["tls.ca_file", "tls.cert_file", "tls.key_file"];

    type Config = NatsConfig;
    type Sink = NatsSink;

    fn validate(config: &NatsConfig) -> Vec<ConfigIssue> {
        config.checked().err().unwrap_or_default()
    }

    fn check_target(_: &str, subject: &str) -> Result<(), String> {
        subject::check(subject)
    }

    #[allow(clippy::unused_async, reason = "the trait's signature; nothing is waited for by its contract")]
    async fn connect(config: &NatsConfig, context: SinkContext) -> Result<NatsSink, SinkError> {
        NatsSink::new(config, &context)
    }
}

/// Publishes each event to JetStream, and waits for its acknowledgement.
#[derive(Debug)]
pub struct NatsSink {
    link: Link,
    publisher: Arc<Publisher>,
    name: Arc<str>,
    subject: Option<String>,
    /// The streams were looked at once, so that their risks are in the log.
    looked: AtomicBool,
    warnings: Mutex<Vec<String>>,
}

impl NatsSink {
    fn new(config: &NatsConfig, context: &SinkContext) -> Result<Self, SinkError> {
        let servers = config.checked().map_err(|issues| {
            let issues: Vec<String> = issues.iter().map(ToString::to_string).collect();
            SinkError::fatal(format!("the configuration of sink {} is wrong: {}", context.name, issues.join("; ")))
        })?;
        if config.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify) {
            tracing::warn!(sink = %context.name, "tls.insecure_skip_verify is set: the servers' certificates are not checked");
        }
        let headers = config.headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let connector = Connector::new(config, servers, &context.name, context.timeout)?;
        let publisher = Publisher {
            messages: Messages::new(headers, config.subject.as_deref(), config.envelope.clone()),
            no_stream: config.no_stream,
            timeout: context.timeout,
            secrets: connector.secrets().to_vec(),
        };
        Ok(NatsSink {
            link: Link::new(connector),
            publisher: Arc::new(publisher),
            name: Arc::clone(&context.name),
            subject: config.subject.clone(),
            looked: AtomicBool::new(false),
            warnings: Mutex::default(),
        })
    }

    fn look<'a>(&'a self, server: &'a str) -> Look<'a> {
        Look {
            subject: self.subject.as_deref(),
            server,
            no_stream: self.publisher.no_stream,
            timeout: self.publisher.timeout,
            secrets: &self.publisher.secrets,
        }
    }

    /// A generation to publish over. With the first one the streams are looked at: what is a risk is logged, and one
    /// that acknowledges nothing is not published to.
    async fn generation(&self, deadline: Instant) -> Result<Arc<Generation>, SinkError> {
        let generation = self.link.generation(deadline).await?;
        if self.looked.load(Ordering::Relaxed) {
            return Ok(generation);
        }
        match self.look(&generation.server).at(&generation).await {
            // One of several deliveries at once logs it.
            Ok(found) if !self.looked.swap(true, Ordering::Relaxed) => {
                for warning in found.warnings {
                    tracing::warn!(sink = %self.name, "{warning}");
                }
            }
            Err(error) if error.kind == SinkErrorKind::Fatal => return Err(error),
            // Whether there is a stream is for the publish itself to say.
            _ => {}
        }
        Ok(generation)
    }
}

impl Sink for NatsSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        let deadline = Instant::now() + self.publisher.timeout;
        let mut messages = Building::new(&self.publisher, batch, report).peekable();
        if messages.peek().is_none() {
            return;
        }
        let generation = match self.generation(deadline).await {
            Ok(generation) => generation,
            Err(error) => return report.fail_rest(&classify::failure_of(&error)),
        };
        let doubt = Doubt::over(&generation);
        let flight = Flight::new(&self.publisher, &generation, batch, report);
        // Over there a message costs no switch between threads, neither out nor back.
        if let Some(true) = generation.run(flight.fly(messages, deadline)).await {
            return doubt.dispel();
        }
        let why = generation.fault();
        drop(doubt);
        report.fail_rest(&Failure::new(FailureKind::Connection, classify::lost(&generation.server, &why)));
    }

    async fn check(&self) -> Result<(), SinkError> {
        let generation = self.link.generation(Instant::now() + self.publisher.timeout).await?;
        let doubt = Doubt::over(&generation);
        let found = self.look(&generation.server).at(&generation).await;
        if !generation.is_sound() {
            let fault = generation.fault();
            return Err(SinkError::retryable(format!("no connection to {}: {fault}", generation.server)));
        }
        let found = match found {
            Ok(found) if found.silent => found,
            found => {
                doubt.dispel();
                found?
            }
        };
        *self.warnings.lock().unwrap_or_else(PoisonError::into_inner) = found.warnings;
        Ok(())
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn close(&self) {
        self.link.close().await;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_max_batch(WINDOW)
    }
}

#[cfg(test)]
mod tests;
