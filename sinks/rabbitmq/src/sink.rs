//! The sink itself.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lapin::protocol::AMQPError;
use tokio::time::{Instant, timeout_at};
use walgate_sink::{
    Batch, Capabilities, ConfigIssue, Delivery, DeliveryReport, Escape, Failure, FailureKind, Outcome, Sink,
    SinkContext, SinkError, SinkFactory, TargetField, text,
};

use crate::{
    RabbitmqConfig, Topology, Unroutable,
    classify::{self, Place, Published},
    connector::Connector,
    generation::{Doubt, Generation},
    link::Link,
    message::{self, Message, Messages},
    names, topology,
    window::{End, Fate, Window},
};

/// Messages in one batch, all of which are outstanding at once: with one batch at a time this is the window.
const WINDOW: usize = 256;

/// Makes [`RabbitmqSink`]s.
#[derive(Debug)]
pub struct RabbitmqFactory;

const fn field(name: &'static str, required: bool) -> TargetField {
    TargetField { name, required, ordering_key: false, escape: Escape::None }
}

impl SinkFactory for RabbitmqFactory {
    const KIND: &'static str = "rabbitmq";
    const TARGET: &'static [TargetField] = &[field("exchange", false), field("routing_key", true)];
    const SECRETS: &'static [&'static str] = &["url", "password"];
    const FILES: &'static [&'static str] = &["tls.ca_file", "tls.cert_file", "tls.key_file"];

    type Config = RabbitmqConfig;
    type Sink = RabbitmqSink;

    fn validate(config: &RabbitmqConfig) -> Vec<ConfigIssue> {
        config.checked().err().unwrap_or_default()
    }

    fn check_target(field: &str, value: &str) -> Result<(), String> {
        match field {
            "exchange" => names::check_exchange(value),
            _ => names::check_routing_key(value),
        }
    }

    #[allow(clippy::unused_async, reason = "the trait's signature; nothing is waited for by its contract")]
    async fn connect(config: &RabbitmqConfig, context: SinkContext) -> Result<RabbitmqSink, SinkError> {
        RabbitmqSink::new(config, &context)
    }
}

/// Publishes each event, and waits for the server's confirm.
#[derive(Debug)]
pub struct RabbitmqSink {
    link: Link,
    messages: Messages,
    unroutable: Unroutable,
    timeout: Duration,
    name: Arc<str>,
    exchange: Option<String>,
    routing_key: Option<String>,
    topology: Option<Topology>,
    /// What is a risk in the configuration was logged.
    warned: AtomicBool,
    warnings: Mutex<Vec<String>>,
}

/// How a window ended, and over which connection.
enum Flown {
    /// Every message has its outcome.
    Done,
    /// The server has closed the channel: one of the messages is at fault.
    Closed(AMQPError),
    /// What is left has the same cause.
    Failed(Failure),
}

impl RabbitmqSink {
    fn new(config: &RabbitmqConfig, context: &SinkContext) -> Result<Self, SinkError> {
        let addresses = config.checked().map_err(|issues| {
            let issues: Vec<String> = issues.iter().map(ToString::to_string).collect();
            SinkError::fatal(format!("the configuration of sink {} is wrong: {}", context.name, issues.join("; ")))
        })?;
        if config.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify) {
            tracing::warn!(sink = %context.name, "tls.insecure_skip_verify is set: the servers' certificates are not checked");
        }
        let (exchange, routing_key) = (config.exchange.as_deref(), config.routing_key.as_deref());
        Ok(RabbitmqSink {
            link: Link::new(Connector::new(config, addresses, &context.name, context.timeout)?),
            messages: Messages::new(
                config.headers.clone(),
                config.app_id.as_deref(),
                exchange,
                routing_key,
                config.envelope.clone(),
            ),
            unroutable: config.unroutable,
            timeout: context.timeout,
            name: Arc::clone(&context.name),
            exchange: config.exchange.clone(),
            routing_key: config.routing_key.clone(),
            topology: config.declare.clone(),
            warned: AtomicBool::new(false),
            warnings: Mutex::default(),
        })
    }

    /// A generation to publish over: what the configuration declares is there.
    async fn generation(&self, deadline: Instant) -> Result<Arc<Generation>, SinkError> {
        let generation = self.link.generation(deadline).await?;
        let Some(topology) = &self.topology else { return Ok(generation) };
        if !self.warned.swap(true, Ordering::Relaxed) {
            for warning in topology.warnings() {
                tracing::warn!(sink = %self.name, "{warning}");
            }
        }
        let declaring = generation.declared.get_or_try_init(|| Box::pin(topology.declare(&generation)));
        let declared = timeout_at(deadline, declaring).await;
        match declared {
            Ok(Ok(())) => Ok(generation),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                generation.stop("a declaration was not answered in time");
                Err(SinkError::retryable(format!("{} does not answer to declarations", generation.place)))
            }
        }
    }

    fn published<'a>(&'a self, exchange: &'a str, routing_key: &'a str, place: &'a Place) -> Published<'a> {
        Published {
            exchange,
            routing_key,
            fixed_exchange: self.messages.is_fixed_exchange(exchange),
            fixed: self.messages.is_fixed(exchange, routing_key),
            unroutable: self.unroutable,
            timeout: self.timeout,
            place,
        }
    }

    /// What a fate or a reply means for a delivery.
    fn outcome(&self, delivery: &Delivery, place: &Place, decide: impl FnOnce(&Published<'_>) -> Outcome) -> Outcome {
        let (exchange, routing_key) = message::target(delivery);
        decide(&self.published(&exchange, &routing_key, place))
    }

    /// Messages for these deliveries; what cannot be one is rejected.
    fn build(&self, batch: &Batch, report: &DeliveryReport) -> Vec<(usize, Message)> {
        let mut messages = Vec::with_capacity(batch.len());
        for (index, delivery) in batch.iter().enumerate() {
            match self.messages.build(delivery) {
                Ok(message) => messages.push((index, message)),
                Err(rejection) => report.rejected(index, rejection),
            }
        }
        messages
    }

    /// Sends the messages over a channel of their own and waits for their confirms.
    async fn fly(
        &self,
        generation: &Arc<Generation>,
        messages: &[(usize, Message)],
        batch: &Batch,
        report: &DeliveryReport,
        deadline: Instant,
    ) -> Flown {
        let place = &generation.place;
        // Nothing is sent into a connection that takes nothing: so nothing is in doubt.
        let mut notices = generation.notices();
        let free = notices.wait_for(|notices| notices.blocked.is_none() || notices.broken.is_some());
        if timeout_at(deadline, free).await.is_err() {
            return Flown::Failed(classify::blocked(place, &generation.blocked().unwrap_or_default(), false));
        }
        let doubt = Doubt::over(generation);
        let channel = match timeout_at(deadline, generation.publishing_channel()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Flown::Failed(classify::lost(place, &self.why(generation, &error))),
            Err(_) => return Flown::Failed(classify::lost(place, "no channel was opened in time")),
        };
        let mut window = Window::new(|index, fate| {
            let Some(delivery) = batch.get(index) else { return };
            report.mark(
                index,
                match fate {
                    Fate::Stored => Outcome::Acknowledged { duplicate: false },
                    Fate::Returned => self.outcome(delivery, place, |it| it.returned()),
                    Fate::Refused => self.outcome(delivery, place, |it| it.nacked()),
                },
            );
        });
        for (index, message) in messages {
            match message.check_size(generation.frame_max(), &place.server) {
                Ok(()) => window.send(&channel, *index, message.clone()).await,
                Err(rejection) => report.rejected(*index, rejection),
            }
        }
        let end = window.drive(deadline).await;
        window.settle();
        drop(window);
        match end {
            End::Settled => {
                generation.keep(channel);
                doubt.dispel();
                Flown::Done
            }
            End::Silent => match generation.blocked() {
                // The connection is kept: what was sent is in the server's hands, and a new one would send it once more
                // with each attempt. The channel is not: it ends behind what was sent.
                Some(reason) => {
                    doubt.dispel();
                    Flown::Failed(classify::blocked(place, &reason, true))
                }
                None => {
                    for (index, _) in messages {
                        if let Some(delivery) = batch.get(*index) {
                            report.mark(*index, self.outcome(delivery, place, |it| it.silent()));
                        }
                    }
                    Flown::Done
                }
            },
            End::Broken(error) => match classify::reply(&error) {
                Some(reply) if generation.connection.status().connected() => Flown::Closed(reply.clone()),
                _ => Flown::Failed(classify::lost(place, &self.why(generation, &error))),
            },
        }
    }

    fn why(&self, generation: &Generation, error: &lapin::Error) -> String {
        let secrets = &generation.place.secrets;
        match classify::reply(error) {
            Some(reply) => format!("the server said `{}`", classify::said(reply, secrets)),
            None if generation.is_sound() => text::cause(error, secrets),
            None => generation.fault(),
        }
    }

    /// The server has closed the channel over one of several messages: each is sent alone, so that only the culprits are
    /// blamed.
    async fn one_by_one(
        &self,
        messages: &[(usize, Message)],
        batch: &Batch,
        report: &DeliveryReport,
        deadline: Instant,
    ) -> Option<Failure> {
        let mut absent: HashMap<String, AMQPError> = HashMap::new();
        for (index, message) in messages {
            let (Some(delivery), true) = (batch.get(*index), self.is_unknown(report, *index)) else { continue };
            let generation = match self.generation(deadline).await {
                Ok(generation) => generation,
                Err(error) => return Some(classify::failure_of(&error)),
            };
            // The server has said that of the exchange, not of the message.
            if let Some(reply) = absent.get(&*message.exchange) {
                report.mark(*index, self.outcome(delivery, &generation.place, |published| published.condemned(reply)));
                continue;
            }
            let alone = std::slice::from_ref(messages.iter().find(|(other, _)| other == index)?);
            match Box::pin(self.fly(&generation, alone, batch, report, deadline)).await {
                Flown::Done => {}
                Flown::Closed(reply) => {
                    report.mark(*index, self.outcome(delivery, &generation.place, |it| it.condemned(&reply)));
                    if classify::is_about_exchange(&reply) {
                        absent.insert(message.exchange.to_string(), reply);
                    }
                }
                Flown::Failed(failure) => return Some(failure),
            }
        }
        None
    }

    fn is_unknown(&self, report: &DeliveryReport, index: usize) -> bool {
        matches!(report.outcomes().get(index), Some(Outcome::Unknown))
    }
}

impl Sink for RabbitmqSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        let deadline = Instant::now() + self.timeout;
        let messages = self.build(batch, report);
        if messages.is_empty() {
            return;
        }
        let generation = match self.generation(deadline).await {
            Ok(generation) => generation,
            Err(error) => return report.fail_rest(&classify::failure_of(&error)),
        };
        let failure = match Box::pin(self.fly(&generation, &messages, batch, report, deadline)).await {
            Flown::Done => None,
            Flown::Failed(failure) => Some(failure),
            Flown::Closed(reply) => {
                if let [(index, _)] = &messages[..]
                    && let Some(delivery) = batch.get(*index)
                {
                    report.mark(*index, self.outcome(delivery, &generation.place, |it| it.condemned(&reply)));
                    None
                } else {
                    let again = Instant::now() + self.timeout;
                    Box::pin(self.one_by_one(&messages, batch, report, again)).await
                }
            }
        };
        let rest = "its turn did not come: another message of its batch has made the server close the channel";
        report.fail_rest(&failure.unwrap_or_else(|| Failure::new(FailureKind::Connection, rest)));
    }

    async fn check(&self) -> Result<(), SinkError> {
        let deadline = Instant::now() + self.timeout;
        let generation = self.link.generation(deadline).await?;
        if let Some(reason) = generation.blocked() {
            return Err(SinkError::retryable(classify::blocked(&generation.place, &reason, false).message));
        }
        let doubt = Doubt::over(&generation);
        let (exchange, routing_key) = (self.exchange.as_deref(), self.routing_key.as_deref());
        let looking = topology::look(&generation, exchange, routing_key, self.topology.as_ref());
        let found = timeout_at(deadline, Box::pin(looking)).await.map_err(|_| {
            SinkError::retryable(format!("{} does not answer within the time of an attempt", generation.place))
        })?;
        if generation.is_sound() {
            doubt.dispel();
        }
        found?;
        let warnings = self.topology.as_ref().map(Topology::warnings).unwrap_or_default();
        *self.warnings.lock().unwrap_or_else(PoisonError::into_inner) = warnings;
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
