//! The sink itself.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::jetstream::{context::PublishError, publish::PublishAck};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, error::Elapsed, timeout_at};
use walgate_sink::{
    Batch, Capabilities, ConfigIssue, DeliveryReport, Escape, Failure, FailureKind, Outcome, Sink, SinkContext,
    SinkError, SinkErrorKind, SinkFactory, TargetField,
};

use crate::{
    NatsConfig, NoStream,
    classify::{self, Published},
    connector::Connector,
    generation::{Doubt, Generation, Notices},
    link::Link,
    message::{Message, Messages},
    streams::Look,
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

    type Config = NatsConfig;
    type Sink = NatsSink;

    fn validate(config: &NatsConfig) -> Vec<ConfigIssue> {
        config.checked().err().unwrap_or_default()
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
    messages: Messages,
    name: Arc<str>,
    subject: Option<String>,
    no_stream: NoStream,
    timeout: Duration,
    /// The streams were looked at once, so that their risks are in the log.
    looked: AtomicBool,
    warnings: Mutex<Vec<String>>,
}

/// What became of a publish that was sent.
type Answer = Result<Result<PublishAck, PublishError>, Elapsed>;

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
        Ok(NatsSink {
            link: Link::new(Connector::new(config, servers, &context.name, context.timeout)?),
            messages: Messages::new(headers, config.subject.as_deref()),
            name: Arc::clone(&context.name),
            subject: config.subject.clone(),
            no_stream: config.no_stream,
            timeout: context.timeout,
            looked: AtomicBool::new(false),
            warnings: Mutex::default(),
        })
    }

    fn look<'a>(&'a self, server: &'a str) -> Look<'a> {
        Look {
            subject: self.subject.as_deref(),
            server,
            no_stream: self.no_stream,
            timeout: self.timeout,
            secrets: self.link.connector().secrets(),
        }
    }

    fn published<'a>(&'a self, message: &'a Message, server: &'a str) -> Published<'a> {
        Published {
            subject: &message.subject,
            fixed: message.fixed,
            server,
            no_stream: self.no_stream,
            timeout: self.timeout,
            secrets: self.link.connector().secrets(),
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

    /// Publishes everything, in order, then takes the acknowledgements as they come.
    async fn publish(
        &self,
        generation: &Arc<Generation>,
        messages: Vec<Option<Message>>,
        report: &DeliveryReport,
        deadline: Instant,
    ) {
        let server = &*generation.server;
        let mut notices = generation.notices();
        let denied = notices.borrow_and_update().denied();
        let doubt = Doubt::over(generation);
        let mut answers = FuturesUnordered::new();
        let mut waiting: Vec<Option<Message>> = Vec::with_capacity(messages.len());
        let mut open = true;
        for (index, message) in messages.into_iter().enumerate() {
            waiting.push(None);
            let Some(mut message) = message.filter(|_| open) else { continue };
            let publish = std::mem::take(&mut message.publish);
            match timeout_at(deadline, generation.context.send_publish(message.subject.to_string(), publish)).await {
                Ok(Ok(answer)) => {
                    answers.push(timeout_at(deadline, answer.into_future()).map(move |answer| (index, answer)));
                    waiting[index] = Some(message);
                }
                // Nothing was sent; what follows would come before it.
                Ok(Err(error)) => {
                    report.mark(index, self.published(&message, server).refused(&error));
                    open = false;
                }
                Err(_) => {
                    report.mark(index, self.published(&message, server).silent());
                    open = false;
                }
            }
        }
        let mut sure = open;
        while waiting.iter().any(Option::is_some) {
            tokio::select! {
                biased;
                answer = answers.next() => match answer {
                    Some((index, answer)) => {
                        if let Some(message) = waiting.get_mut(index).and_then(Option::take) {
                            sure &= self.take_in(&message, index, answer, server, report);
                        }
                    }
                    None => break,
                },
                changed = notices.changed() => {
                    let said = notices.borrow_and_update().clone();
                    self.heed(&said, denied, &mut waiting, server, report);
                    if changed.is_err() || said.broken.is_some() {
                        // What has come before the end counts.
                        while let Some(Some((index, answer))) = answers.next().now_or_never() {
                            if let (Some(message), Ok(Ok(_))) = (waiting.get_mut(index).and_then(Option::take), &answer) {
                                self.take_in(&message, index, answer, server, report);
                            }
                        }
                        sure = false;
                        break;
                    }
                }
            }
        }
        if sure {
            doubt.dispel();
        } else {
            let why = generation.fault();
            drop(doubt);
            report.fail_rest(&Failure::new(FailureKind::Connection, classify::lost(server, &why)));
        }
    }

    /// Takes in an answer. False where it leaves a doubt about the connection.
    fn take_in(&self, message: &Message, index: usize, answer: Answer, server: &str, report: &DeliveryReport) -> bool {
        let published = self.published(message, server);
        let outcome = match answer {
            Ok(Ok(ack)) => Outcome::Acknowledged { duplicate: ack.duplicate },
            Ok(Err(error)) => published.refused(&error),
            Err(_) => published.silent(),
        };
        // A 503 for want of a stream has the class of a broken link, and is an answer.
        let unheard = outcome == published.unheard();
        let sure = match &outcome {
            Outcome::Failed(failure) => {
                unheard || !matches!(failure.kind, FailureKind::Connection | FailureKind::Timeout)
            }
            _ => true,
        };
        report.mark(index, outcome);
        sure
    }

    /// Marks what the server has refused without an answer.
    fn heed(&self, said: &Notices, since: u64, waiting: &mut [Option<Message>], server: &str, report: &DeliveryReport) {
        if said.denied() == since {
            return;
        }
        for (index, place) in waiting.iter_mut().enumerate() {
            if place.as_ref().is_some_and(|message| said.denies(&message.subject, since))
                && let Some(message) = place.take()
            {
                report.mark(index, self.published(&message, server).denied());
            }
        }
    }
}

impl Sink for NatsSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        let deadline = Instant::now() + self.timeout;
        let mut messages = Vec::with_capacity(batch.len());
        for (index, delivery) in batch.iter().enumerate() {
            let built = self.messages.build(delivery);
            messages.push(built.map_err(|rejection| report.rejected(index, rejection)).ok());
        }
        if messages.iter().all(Option::is_none) {
            return;
        }
        let generation = match self.generation(deadline).await {
            Ok(generation) => generation,
            Err(error) => return report.fail_rest(&classify::failure_of(&error)),
        };
        let max_payload = generation.client.max_payload();
        for (index, place) in messages.iter_mut().enumerate() {
            if let Some(Err(rejection)) =
                place.as_ref().map(|message| message.check_size(max_payload, &generation.server))
            {
                *place = None;
                report.rejected(index, rejection);
            }
        }
        self.publish(&generation, messages, report, deadline).await;
    }

    async fn check(&self) -> Result<(), SinkError> {
        let generation = self.link.generation(Instant::now() + self.timeout).await?;
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
