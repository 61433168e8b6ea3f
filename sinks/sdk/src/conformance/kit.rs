//! What the checks are made of: events, attempts, and comparing what was said with what arrived.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{runtime::Runtime, sync::Semaphore, task::JoinSet, time::timeout};

use super::{Harness, Received, verdict::Fault};
use crate::{
    Batch, ByteString, Bytes, Delivery, DeliveryReport, DynSink, ErasedFactory, Event, FailureKind, Lsn, Outcome,
    PayloadFormat, Position, SinkContext, Target, Timestamp,
};

/// Times that the kit grants.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// [`SinkContext::timeout`]: what one attempt of a delivery may take.
    pub attempt: Duration,
    /// How soon after the receiver's return a delivery must be acknowledged.
    pub recovery: Duration,
    /// Within this everything must have been repeated with success, once nothing is broken any more.
    pub settle: Duration,
    /// How long an acknowledged event may take to become readable.
    pub readable: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            attempt: Duration::from_secs(1),
            recovery: Duration::from_secs(2),
            settle: Duration::from_secs(60),
            readable: Duration::from_secs(10),
        }
    }
}

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(25);

/// What was sent under an id.
struct Sent {
    key: Option<String>,
    /// Number of the event among those of its key, from 1.
    number: u64,
    body: Bytes,
}

/// See the module.
pub(super) struct Kit<'a> {
    pub(super) factory: Arc<dyn ErasedFactory>,
    pub(super) harness: &'a mut dyn Harness,
    pub(super) runtime: Runtime,
    pub(super) limits: Limits,
    /// Every text that the sink has given away.
    pub(super) texts: Vec<String>,
    run: String,
    target: Target,
    sent: HashMap<String, Sent>,
    numbers: HashMap<String, u64>,
}

/// Attempts that are under way.
pub(super) struct Flight {
    reports: Vec<DeliveryReport>,
    tasks: JoinSet<()>,
    limit: Duration,
}

impl<'a> Kit<'a> {
    pub(super) fn new(
        factory: Arc<dyn ErasedFactory>,
        harness: &'a mut dyn Harness,
        limits: Limits,
    ) -> Result<Self, Fault> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| format!("no runtime for the kit: {error}"))?;
        let target = target(&factory, &harness.target())?;
        // Ids differ from those of an earlier run on the same receiver.
        let run = format!("{:x}", Timestamp::now().0);
        let (texts, sent, numbers) = (Vec::new(), HashMap::new(), HashMap::new());
        Ok(Kit { factory, harness, runtime, limits, texts, run, target, sent, numbers })
    }

    /// A new sink with the harness's configuration.
    pub(super) fn open(&mut self) -> Result<Arc<dyn DynSink>, Fault> {
        let config = self.harness.config();
        self.open_with(config)
    }

    pub(super) fn open_with(&mut self, config: Value) -> Result<Arc<dyn DynSink>, Fault> {
        let parsed = self.factory.parse(config).map_err(|issue| {
            self.texts.push(issue.message.clone());
            format!("the harness's configuration is refused: {issue}")
        })?;
        let issues = self.factory.validate(&parsed);
        self.texts.extend(issues.iter().map(|issue| issue.message.clone()));
        if let Some(issue) = issues.first() {
            return Err(format!("the harness's configuration has an issue: {issue}").into());
        }
        let context = SinkContext::new("conformance", self.limits.attempt);
        let (factory, limit) = (Arc::clone(&self.factory), self.limits.attempt * 5);
        let connected = self.runtime.block_on(async { timeout(limit, factory.connect(&parsed, context)).await });
        match connected {
            Ok(Ok(sink)) => Ok(sink),
            Ok(Err(error)) => {
                self.texts.push(error.message.clone());
                Err(format!("`connect` failed: {error}").into())
            }
            Err(_) => Err(format!("`connect` did not return within {limit:?}").into()),
        }
    }

    pub(super) fn close(&self, sink: &Arc<dyn DynSink>) -> Result<(), Fault> {
        let limit = self.limits.attempt * 5;
        let closed = self.runtime.block_on(async { timeout(limit, sink.close()).await });
        closed.map_err(|_| format!("`close` did not return within {limit:?}").into())
    }

    /// The next event of a key, with a small payload of its own.
    pub(super) fn next(&mut self, key: &str) -> Delivery {
        let number = self.numbers.get(key).copied().unwrap_or_default() + 1;
        self.event(Some(key), Some(Bytes::from(format!("{{\"n\":{number}}}"))), PayloadFormat::Json)
    }

    /// The next events of so many keys of their own.
    pub(super) fn each(&mut self, name: &str, keys: usize) -> Vec<Delivery> {
        (0..keys).map(|key| self.next(&format!("{name}-{key}"))).collect()
    }

    /// An event with this payload.
    pub(super) fn event(&mut self, key: Option<&str>, payload: Option<Bytes>, format: PayloadFormat) -> Delivery {
        let count = self.sent.len() as u64 + 1;
        let id = format!("kit-{}-{count}", self.run);
        let mut event = Event::new(id.as_str(), "conformance.checked");
        event.key = key.map(ByteString::from);
        event.payload = payload;
        event.format = format;
        event.position = Position { commit_lsn: Lsn(count << 8), ordinal: 0 };
        event.committed_at = Timestamp::now();
        let number = key.map_or(0, |key| {
            let number = self.numbers.entry(key.to_owned()).or_default();
            *number += 1;
            *number
        });
        let body = event.payload.clone().unwrap_or_default();
        self.sent.insert(id.clone(), Sent { key: key.map(str::to_owned), number, body });
        Delivery {
            ordering_key: event.key.clone(),
            dedup_id: event.id.clone(),
            event,
            target: self.target.clone(),
            attempt: 1,
        }
    }

    /// The same delivery to another target.
    pub(super) fn redirect(&self, delivery: &mut Delivery, values: &[(&'static str, String)]) -> Result<(), Fault> {
        delivery.target = target(&self.factory, values)?;
        Ok(())
    }

    /// Starts an attempt of these, in batches as the sink asks for them.
    pub(super) fn start(&self, sink: &Arc<dyn DynSink>, deliveries: &[Delivery]) -> Flight {
        let wants = sink.capabilities();
        let (size, at_once) = (wants.max_batch.max(1), wants.concurrency.max(1));
        let turns = Arc::new(Semaphore::new(at_once));
        let mut flight = Flight { reports: Vec::new(), tasks: JoinSet::new(), limit: Duration::ZERO };
        for chunk in deliveries.chunks(size) {
            let (batch, report) = (Batch::new(chunk.to_vec()), DeliveryReport::new(chunk.len()));
            flight.reports.push(report.clone());
            let (sink, turns) = (Arc::clone(sink), Arc::clone(&turns));
            flight.tasks.spawn_on(
                async move {
                    let _turn = turns.acquire().await;
                    sink.deliver(&batch, &report).await;
                },
                self.runtime.handle(),
            );
        }
        let rounds = u32::try_from(flight.reports.len().div_ceil(at_once)).unwrap_or(u32::MAX).max(1);
        flight.limit = self.limits.attempt.saturating_mul(2).saturating_mul(rounds) + Duration::from_secs(3);
        flight
    }

    /// Waits for the end of an attempt; the outcomes in the order of its deliveries.
    pub(super) fn finish(&mut self, mut flight: Flight) -> Result<Vec<Outcome>, Fault> {
        let limit = flight.limit;
        let ended = self.runtime.block_on(async {
            timeout(limit, async {
                let mut broken = None;
                while let Some(ended) = flight.tasks.join_next().await {
                    broken = broken.or(ended.err());
                }
                broken
            })
            .await
        });
        match ended {
            Ok(None) => Ok(self.outcomes(&flight)),
            Ok(Some(error)) => Err(format!("`deliver` panicked: {error}").into()),
            Err(_) => Err(format!(
                "`deliver` did not return within {limit:?}, though each attempt has {:?}",
                self.limits.attempt
            )
            .into()),
        }
    }

    /// Drops the futures of an attempt; what had been marked until then.
    pub(super) fn drop_flight(&mut self, mut flight: Flight) -> Vec<Outcome> {
        self.runtime.block_on(flight.tasks.shutdown());
        self.outcomes(&flight)
    }

    fn outcomes(&mut self, flight: &Flight) -> Vec<Outcome> {
        let outcomes: Vec<Outcome> = flight.reports.iter().flat_map(DeliveryReport::take).collect();
        for outcome in &outcomes {
            self.texts.extend(text(outcome).map(str::to_owned));
            self.texts.push(format!("{outcome:?}"));
        }
        outcomes
    }

    /// One attempt.
    pub(super) fn attempt(&mut self, sink: &Arc<dyn DynSink>, deliveries: &[Delivery]) -> Result<Vec<Outcome>, Fault> {
        let flight = self.start(sink, deliveries);
        self.finish(flight)
    }

    /// Repeats what was not acknowledged until everything is.
    pub(super) fn settle(
        &mut self,
        sink: &Arc<dyn DynSink>,
        mut waiting: Vec<Delivery>,
        within: Duration,
    ) -> Result<(), Fault> {
        let begin = Instant::now();
        loop {
            let outcomes = self.attempt(sink, &waiting)?;
            let mut last = None;
            let mut again = Vec::new();
            for (mut delivery, outcome) in waiting.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Acknowledged { .. } => {}
                    Outcome::Rejected(why) => {
                        return Err(format!("a sound event was reported as rejected ({}): {why}", why.reason).into());
                    }
                    other => {
                        delivery.attempt += 1;
                        again.push(delivery);
                        last = Some(other);
                    }
                }
            }
            if again.is_empty() {
                return Ok(());
            }
            if begin.elapsed() > within {
                let count = again.len();
                let last = last.unwrap_or_default();
                return Err(format!("{count} events were not acknowledged within {within:?}; last: {last:?}").into());
            }
            waiting = again;
            std::thread::sleep(PAUSE);
        }
    }

    /// A new sink that has delivered one event: what follows does not wait for a first connection.
    pub(super) fn open_warm(&mut self) -> Result<Arc<dyn DynSink>, Fault> {
        let sink = self.open()?;
        let first = self.each("first", 1);
        self.settle_all(&sink, first)?;
        Ok(sink)
    }

    /// Attempts one delivery until something is decided: a first connection may take longer than an attempt.
    pub(super) fn decide(&mut self, sink: &Arc<dyn DynSink>, delivery: &Delivery) -> Result<Outcome, Fault> {
        let begin = Instant::now();
        loop {
            let outcomes = self.attempt(sink, std::slice::from_ref(delivery))?;
            let Some(outcome) = outcomes.into_iter().next() else { return Err("no outcome".to_owned().into()) };
            let late = matches!(&outcome, Outcome::Failed(why) if why.kind == FailureKind::Timeout
                || why.kind == FailureKind::Connection);
            if !late || begin.elapsed() >= self.limits.settle {
                return Ok(outcome);
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// As [`Kit::settle`], for as long as anything sound takes.
    pub(super) fn settle_all(&mut self, sink: &Arc<dyn DynSink>, deliveries: Vec<Delivery>) -> Result<(), Fault> {
        self.settle(sink, deliveries, self.limits.settle)
    }

    /// Waits until these are readable; everything of the kit's that the receiver holds, in its order. Fails where one is
    /// missing, or has another key or payload than was sent.
    pub(super) fn arrived(&mut self, wanted: &[&Delivery]) -> Result<Vec<Received>, Fault> {
        let begin = Instant::now();
        loop {
            let mut received = self.harness.read();
            received.retain(|message| self.sent.contains_key(&message.id));
            let missing: Vec<&&Delivery> = {
                let there: HashSet<&str> = received.iter().map(|message| message.id.as_str()).collect();
                wanted.iter().filter(|delivery| !there.contains(&*delivery.event.id)).collect()
            };
            if missing.is_empty() {
                self.compare(&received)?;
                return Ok(received);
            }
            if begin.elapsed() > self.limits.readable {
                let (count, all) = (missing.len(), wanted.len());
                let first = missing.first().map(|delivery| delivery.event.id.to_string()).unwrap_or_default();
                return Err(format!(
                    "{count} of {all} events were acknowledged, and the receiver does not hold them after {:?} (the \
                     first is {first})",
                    self.limits.readable
                )
                .into());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn compare(&self, received: &[Received]) -> Result<(), Fault> {
        let has_key = self.harness.carries().key;
        for message in received {
            let Some(sent) = self.sent.get(&message.id) else { continue };
            if sent.body != message.body {
                let (id, was, is) = (&message.id, sent.body.len(), message.body.len());
                return Err(format!("event {id} was sent with {was} bytes, and other {is} bytes arrived").into());
            }
            if has_key && sent.key != message.key {
                let (id, was, is) = (&message.id, &sent.key, &message.key);
                return Err(format!("event {id} was sent with the key {was:?}, and arrived with {is:?}").into());
            }
        }
        Ok(())
    }

    /// The receipts of a key never skip forward: each is a repeat, or the next.
    pub(super) fn in_order(&self, received: &[Received]) -> Result<(), Fault> {
        let mut highest: HashMap<&str, u64> = HashMap::new();
        for message in received {
            let Some(Sent { key: Some(key), number, .. }) = self.sent.get(&message.id) else { continue };
            let highest = highest.entry(key).or_default();
            if *number > *highest + 1 {
                return Err(
                    format!("event {number} of the key `{key}` arrived when {highest} was the last before it").into()
                );
            }
            *highest = (*number).max(*highest);
        }
        Ok(())
    }

    /// Which deliveries were acknowledged.
    pub(super) fn acknowledged<'d>(deliveries: &'d [Delivery], outcomes: &[Outcome]) -> Vec<&'d Delivery> {
        let pairs = deliveries.iter().zip(outcomes);
        pairs.filter(|(_, outcome)| is_acknowledged(outcome)).map(|(delivery, _)| delivery).collect()
    }
}

pub(super) fn is_acknowledged(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Acknowledged { .. })
}

/// The sink's own words.
pub(super) fn text(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Rejected(why) => Some(&why.message),
        Outcome::Failed(why) => Some(&why.message),
        _ => None,
    }
}

/// What a fault of the link may look like: it passes, and nothing is anybody's fault.
pub(super) fn may_pass(outcome: &Outcome) -> Result<(), Fault> {
    match outcome {
        Outcome::Rejected(why) => {
            Err(format!("a fault of the link was reported as rejected ({}): {why}", why.reason).into())
        }
        Outcome::Failed(why) if matches!(why.kind, FailureKind::Fatal | FailureKind::Closed) => {
            Err(format!("a fault of the link was reported as {}: {why}", why.kind.as_str()).into())
        }
        _ => Ok(()),
    }
}

fn target(factory: &Arc<dyn ErasedFactory>, values: &[(&'static str, String)]) -> Result<Target, Fault> {
    let fields = factory.target();
    if let Some((name, _)) = values.iter().find(|(name, _)| !fields.iter().any(|field| field.name == *name)) {
        return Err(format!("the harness names a target field `{name}` that the sink does not have").into());
    }
    let value = |name: &str| values.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str().into());
    Ok(Target::new(fields, fields.iter().map(|field| value(field.name))))
}
