//! The sink itself.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry};
use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use tokio::time::{Instant, timeout_at};
use walgate_sink::{
    Batch, ByteString, Capabilities, ConfigIssue, DeliveryReport, Envelope, Escape, Failure, FailureKind, Outcome,
    RejectReason, Rejection, Sink, SinkContext, SinkError, SinkFactory, TargetField, envelope::ContentMode, text,
};

use crate::{
    SqsConfig,
    attributes::Attributes,
    classify::{Asked, Class, Trouble, class_of},
    connector::Connector,
    message::Message,
    pack, queue,
    queues::{Queue, Queues},
};

/// Packs that one batch has under way at once.
const PACKS_AT_ONCE: usize = 8;
/// Deliveries in a batch where they may go to several queues.
const SPREAD_BATCH: usize = 80;

/// Makes [`SqsSink`]s.
#[derive(Debug)]
pub struct SqsFactory;

impl SinkFactory for SqsFactory {
    const KIND: &'static str = "sqs";
    const TARGET: &'static [TargetField] = &[
        TargetField { name: "queue", required: true, ordering_key: false, escape: Escape::None },
        TargetField { name: "group", required: false, ordering_key: true, escape: Escape::None },
    ];
    const SECRETS: &'static [&'static str] = &["access_key_id", "secret_access_key", "session_token"];
    const FILES: &'static [&'static str] = &["ca_file"];

    type Config = SqsConfig;
    type Sink = SqsSink;

    fn validate(config: &SqsConfig) -> Vec<ConfigIssue> {
        config.issues()
    }

    fn check_target(field: &str, value: &str) -> Result<(), String> {
        // A group that SQS would refuse is hashed.
        if field == "queue" { queue::check(value) } else { Ok(()) }
    }

    #[allow(clippy::unused_async, reason = "the trait's signature; nothing is waited for by its contract")]
    async fn connect(config: &SqsConfig, context: SinkContext) -> Result<SqsSink, SinkError> {
        SqsSink::new(config, &context)
    }
}

/// Sends events to queues of Amazon SQS, up to ten in a request.
#[derive(Debug)]
pub struct SqsSink {
    connector: Connector,
    queues: Queues,
    name: Arc<str>,
    place: String,
    /// The configured queue, or its template.
    queue: Option<String>,
    forward_headers: Vec<String>,
    envelope: Envelope,
    timeout: Duration,
    closed: AtomicBool,
    /// What was logged of queues, so that it is said once.
    said: Mutex<HashSet<String>>,
    warnings: Mutex<Vec<String>>,
}

/// Messages of one request, and what they are about.
struct Pack {
    to: ByteString,
    queue: Arc<Queue>,
    messages: Vec<Message>,
}

impl SqsSink {
    fn new(config: &SqsConfig, context: &SinkContext) -> Result<Self, SinkError> {
        let issues: Vec<String> = config.issues().iter().map(ToString::to_string).collect();
        if !issues.is_empty() {
            let issues = issues.join("; ");
            return Err(SinkError::fatal(format!("the configuration of sink {} is wrong: {issues}", context.name)));
        }
        let connector = Connector::new(config, context.timeout)?;
        Ok(SqsSink {
            place: connector.place(),
            connector,
            queues: Queues::default(),
            name: Arc::clone(&context.name),
            queue: config.queue.clone(),
            forward_headers: config.forward_headers.clone(),
            envelope: config.envelope.clone().or_mode(ContentMode::Structured),
            timeout: context.timeout,
            closed: AtomicBool::new(false),
            said: Mutex::default(),
            warnings: Mutex::default(),
        })
    }

    /// The one queue of the configuration.
    fn fixed(&self) -> Option<&str> {
        self.queue.as_deref().filter(|queue| !queue::is_template(queue))
    }

    fn asked<'a>(&'a self, to: &'a str) -> Asked<'a> {
        Asked {
            place: &self.place,
            queue: to,
            fixed: self.fixed() == Some(to),
            timeout: self.timeout,
            secrets: self.connector.secrets(),
        }
    }

    /// Whether a rendered queue can be sent to.
    fn check_queue(&self, to: &str) -> Result<(), Rejection> {
        let allowed = queue::check(to).and_then(|()| {
            // A URL names an account: that is for the configuration to choose, not for a row or a route.
            let base = self.queue.as_deref().map(queue::base).unwrap_or_default();
            if queue::is_url(to) && (base.is_empty() || queue::base(to) != base) {
                return Err("its URL is not of the account that the sink's own `queue` names: give a name".to_owned());
            }
            Ok(())
        });
        allowed.map_err(|why| {
            let shown = text::excerpt(to.as_bytes(), &[]);
            Rejection::new(
                RejectReason::InvalidTarget,
                format!("the rendered queue `{shown}` cannot be sent to: {why}"),
            )
        })
    }

    /// The messages of a batch by queue, in order. What cannot be a message is rejected.
    fn messages(&self, batch: &Batch, report: &DeliveryReport) -> Vec<(ByteString, Vec<Message>)> {
        let mut queues = Vec::<(ByteString, Vec<Message>)>::new();
        for (index, delivery) in batch.iter().enumerate() {
            let to = delivery.target.get("queue").cloned().unwrap_or_default();
            let message = self.check_queue(&to);
            let message =
                message.and_then(|()| Message::build(index, delivery, &to, &self.forward_headers, &self.envelope));
            match message {
                Err(rejection) => report.rejected(index, rejection),
                Ok(message) => match queues.iter_mut().find(|(queue, _)| *queue == to) {
                    Some((_, messages)) => messages.push(message),
                    None => queues.push((to, vec![message])),
                },
            }
        }
        queues
    }

    /// The queue, with its risks in the log; marks its messages where there is none.
    async fn resolve(
        &self,
        to: ByteString,
        messages: Vec<Message>,
        report: &DeliveryReport,
        deadline: Instant,
    ) -> Option<Pack> {
        match self.queues.get(&to, &self.connector, deadline).await {
            Ok(queue) => {
                self.say(&queue);
                Some(Pack { to, queue, messages })
            }
            Err(trouble) => {
                let outcome = self.asked(&to).outcome(&trouble);
                // Whatever ails the queue, the event is not to blame: but for a queue that is not there.
                mark_all(report, &messages, &outcome);
                None
            }
        }
    }

    fn say(&self, queue: &Queue) {
        for warning in &queue.warnings {
            let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            // Bounded, as the queues are.
            if said.len() < 1024 && said.insert(warning.clone()) {
                tracing::warn!(sink = %self.name, "{warning}");
            }
        }
    }

    /// Sends a pack; where the content is refused as a whole, its halves, down to the message that is at fault.
    async fn send(&self, pack: Pack, report: &DeliveryReport, deadline: Instant) {
        let Pack { to, queue, messages } = pack;
        let mut parts = vec![messages];
        while let Some(mut part) = parts.pop() {
            let trouble = match self.request(&to, &queue, &part, report, deadline).await {
                Ok(()) => continue,
                Err(trouble) => trouble,
            };
            let class = match &trouble {
                Trouble::Answered(answer) => Some(class_of(answer.status, &answer.code, &answer.message)),
                _ => None,
            };
            if matches!(class, Some(Class::Content(_))) && part.len() > 1 {
                let half = part.split_off(part.len() / 2);
                parts.extend([half, part]);
                continue;
            }
            if class == Some(Class::NoQueue) {
                self.queues.forget(&to);
            }
            let outcome = self.asked(&to).outcome(&trouble);
            mark_all(report, &part, &outcome);
            if matches!(outcome, Outcome::Failed(_)) {
                // What ails the queue ails it for the rest as well.
                for part in parts.drain(..) {
                    mark_all(report, &part, &outcome);
                }
            }
        }
    }

    /// One request. Marks what a success says of each entry.
    async fn request(
        &self,
        to: &ByteString,
        queue: &Queue,
        messages: &[Message],
        report: &DeliveryReport,
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let entries = messages.iter().enumerate().map(|(place, message)| entry(place, message));
        let entries = entries.collect::<Result<Vec<_>, _>>().map_err(|error| Trouble::Unusable(error.to_string()))?;
        let client = self.connector.client(deadline).await?;
        let request = client.send_message_batch().queue_url(&queue.url).set_entries(Some(entries));
        // A dropped request closes its connection: nothing of it can be written behind what comes next.
        let answer = match timeout_at(deadline, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.connector.trouble(&error)),
            Err(_) => return Err(Trouble::Silent),
        };
        let of = |id: &str| id.parse::<usize>().ok().and_then(|place| messages.get(place));
        for taken in answer.successful() {
            if let Some(message) = of(taken.id()) {
                report.mark(message.index, Outcome::Acknowledged { duplicate: false });
            }
        }
        let asked = self.asked(to);
        for refused in answer.failed() {
            if let Some(message) = of(refused.id()) {
                let said = refused.message().unwrap_or_default();
                report.mark(message.index, asked.entry(refused.code(), said, refused.sender_fault()));
            }
        }
        // The first mark counts: this one is for what the answer leaves out.
        mark_all(report, messages, &asked.unnamed());
        Ok(())
    }
}

fn entry(place: usize, message: &Message) -> Result<SendMessageBatchRequestEntry, aws_sdk_sqs::error::BuildError> {
    let mut entry = SendMessageBatchRequestEntry::builder()
        .id(place.to_string())
        .message_body(&message.body)
        .set_message_group_id(message.group.clone())
        .set_message_deduplication_id(message.dedup.clone());
    for (name, value) in message.attributes.iter() {
        let value = MessageAttributeValue::builder().data_type(Attributes::data_type()).string_value(value).build()?;
        entry = entry.message_attributes(name, value);
    }
    entry.build()
}

fn mark_all(report: &DeliveryReport, messages: &[Message], outcome: &Outcome) {
    for message in messages {
        report.mark(message.index, outcome.clone());
    }
}

impl Sink for SqsSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        if self.closed.load(Ordering::Relaxed) {
            report.fail_rest(&Failure::new(FailureKind::Connection, "the sink is closed"));
            return;
        }
        let deadline = Instant::now() + self.timeout;
        let queues = self.messages(batch, report).into_iter();
        let resolved = join_all(queues.map(|(to, messages)| self.resolve(to, messages, report, deadline))).await;
        let mut waiting: Vec<Pack> = resolved.into_iter().flatten().collect();
        // The lane has one event of a key under way, so that there is a second round only where two of its deliveries
        // share a queue and a group.
        while !waiting.is_empty() {
            let mut ready = Vec::new();
            let mut later = Vec::new();
            for Pack { to, queue, messages } in waiting {
                let messages =
                    messages.into_iter().filter(|message| match message.check_size(queue.max_message, &to) {
                        Ok(()) => true,
                        Err(rejection) => {
                            report.rejected(message.index, rejection);
                            false
                        }
                    });
                let (packs, rest) = pack::packs(messages.collect(), queue::is_fifo(&to));
                let pack = |messages| Pack { to: to.clone(), queue: Arc::clone(&queue), messages };
                ready.extend(packs.into_iter().map(pack));
                if !rest.is_empty() {
                    later.push(pack(rest));
                }
            }
            let mut ready = ready.into_iter();
            let mut under_way = FuturesUnordered::new();
            loop {
                while under_way.len() < PACKS_AT_ONCE
                    && let Some(pack) = ready.next()
                {
                    under_way.push(self.send(pack, report, deadline));
                }
                if under_way.next().await.is_none() {
                    break;
                }
            }
            waiting = later;
        }
    }

    async fn check(&self) -> Result<(), SinkError> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(SinkError::retryable("the sink is closed"));
        }
        let deadline = Instant::now() + self.timeout;
        if let Some(to) = self.fixed() {
            let found = self.queues.look(&ByteString::from(to), &self.connector, deadline).await;
            let queue = found.map_err(|trouble| self.asked(to).error(&trouble))?;
            self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&queue.warnings);
            return Ok(());
        }
        // Events name the queues: whether SQS answers, and knows the credentials, is all that can be asked.
        let shown = self.queue.as_deref().unwrap_or("*");
        let client = self.connector.client(deadline).await.map_err(|trouble| self.asked(shown).error(&trouble))?;
        let trouble = match timeout_at(deadline, client.list_queues().max_results(1).send()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => self.connector.trouble(&error),
            Err(_) => Trouble::Silent,
        };
        match &trouble {
            // The right to list is none that sending needs.
            Trouble::Answered(answer) if answer.code.contains("AccessDenied") => Ok(()),
            _ => Err(self.asked(shown).error(&trouble)),
        }
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    fn capabilities(&self) -> Capabilities {
        let batch = if self.fixed().is_some() { pack::MAX_ENTRIES } else { SPREAD_BATCH };
        Capabilities::default().with_max_batch(batch).with_max_batch_bytes(pack::MAX_BYTES).with_concurrency(16)
    }
}
