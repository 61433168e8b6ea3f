//! The sink itself.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rdkafka::error::RDKafkaErrorCode;
use tokio::time::{Instant, sleep, sleep_until};
use walgate_sink::{
    Batch, ByteString, Capabilities, ConfigIssue, DeliveryReport, Escape, Failure, FailureKind, Outcome, Reading,
    RejectReason, Rejection, Sink, SinkContext, SinkError, SinkFactory, TargetField,
};

use crate::{
    KafkaConfig,
    classify::{self, Class, Sent, class_of},
    config::Compression,
    context::Surroundings,
    flights::Flight,
    generation::Generation,
    held::Identity,
    link::Link,
    look::{Found, Lookout},
    message::{Record, Records},
    properties,
    token::TokenFile,
    topic,
    topics::{Facts, Known, Topics},
};

/// Records in one batch, all of which are outstanding at once: with one batch at a time this is the window.
const WINDOW: usize = 1024;
/// While the client's queue is full: how soon it is asked again whether it has room.
const ROOM: Duration = Duration::from_millis(5);

/// Makes [`KafkaSink`]s.
#[derive(Debug)]
pub struct KafkaFactory;

impl SinkFactory for KafkaFactory {
    const KIND: &'static str = "kafka";
    const TARGET: &'static [TargetField] = &[
        TargetField { name: "topic", required: true, ordering_key: false, escape: Escape::None },
        TargetField { name: "key", required: false, ordering_key: true, escape: Escape::None },
    ];
    const SECRETS: &'static [&'static str] = &["sasl.password", "sasl.oidc.client_secret", "tls.key_password"];
    const FILES: &'static [&'static str] = &["tls.ca_file", "tls.cert_file", "tls.key_file"];

    type Config = KafkaConfig;
    type Sink = KafkaSink;

    fn validate(config: &KafkaConfig) -> Vec<ConfigIssue> {
        config.issues()
    }

    fn check_target(field: &str, value: &str) -> Result<(), String> {
        // A record's key is any bytes.
        if field == "topic" { topic::check(value) } else { Ok(()) }
    }

    async fn connect(config: &KafkaConfig, context: SinkContext) -> Result<KafkaSink, SinkError> {
        let sink = KafkaSink::new(config, &context)?;
        // Reads the files that the settings name. The producer asks for its number as soon as a broker is there, so that
        // the first delivery does not wait for that.
        sink.link.generation(Instant::now() + context.timeout).await?;
        Ok(sink)
    }
}

/// Sends events to topics, and waits for the brokers' acknowledgements.
#[derive(Debug)]
pub struct KafkaSink {
    link: Link,
    lookout: Lookout,
    topics: Topics,
    records: Records,
    name: Arc<str>,
    place: String,
    fixed: Option<String>,
    compressed: bool,
    timeout: Duration,
    warnings: Mutex<Vec<String>>,
}

/// A record on its way, and its place in the batch.
type Numbered = (usize, Record);

/// How an attempt ended.
enum Flown {
    /// Every record has its outcome.
    Done,
    /// What is left has the same cause.
    Failed(Failure),
    /// The producer has ended over one of these records; and the cause for all others.
    Suspected(Vec<(usize, RDKafkaErrorCode)>, Failure),
}

impl KafkaSink {
    fn new(config: &KafkaConfig, context: &SinkContext) -> Result<Self, SinkError> {
        let issues: Vec<String> = config.issues().iter().map(ToString::to_string).collect();
        if !issues.is_empty() {
            let issues = issues.join("; ");
            return Err(SinkError::fatal(format!("the configuration of sink {} is wrong: {issues}", context.name)));
        }
        warn_of(config, &context.name);
        let surroundings = Surroundings {
            name: Arc::clone(&context.name),
            secrets: config.secrets().into(),
            token: config.sasl.as_ref().and_then(|sasl| sasl.token_file.as_deref()).map(TokenFile::new),
        };
        let (place, timeout) = (config.place(), context.timeout);
        let looking = properties::of_any_client(config, timeout);
        Ok(KafkaSink {
            link: Link::new(properties::of_producer(config, timeout), surroundings.clone(), place.clone()),
            lookout: Lookout::new(looking, surroundings, place.clone(), config.create_topics.clone()),
            topics: Topics::default(),
            records: Records::new(
                config.headers.clone(),
                config.envelope.clone(),
                config.tombstones,
                config.max_message.0,
            ),
            name: Arc::clone(&context.name),
            place,
            fixed: config.fixed_topic().map(str::to_owned),
            compressed: config.compression != Compression::None,
            timeout,
            warnings: Mutex::default(),
        })
    }

    fn sent<'a>(&'a self, topic: &'a str) -> Sent<'a> {
        Sent { place: &self.place, topic, fixed: self.is_fixed(topic), timeout: self.timeout }
    }

    fn is_fixed(&self, topic: &str) -> bool {
        self.fixed.as_deref() == Some(topic)
    }

    /// Records for these deliveries; what cannot be one is rejected.
    fn build(&self, batch: &Batch, report: &DeliveryReport) -> Vec<Numbered> {
        let mut records = Vec::with_capacity(batch.len());
        for (index, delivery) in batch.iter().enumerate() {
            match self.records.build(delivery) {
                Ok(record) => records.push((index, record)),
                Err(rejection) => report.rejected(index, rejection),
            }
        }
        records
    }

    /// Sees to it that the topics are there; what is for others is marked.
    async fn to_known_topics(
        &self,
        records: Vec<Numbered>,
        report: &DeliveryReport,
        deadline: Instant,
    ) -> Result<Vec<Numbered>, SinkError> {
        let now = Instant::now().into_std();
        let mut known: HashMap<ByteString, Known> = HashMap::new();
        let mut unknown: Vec<ByteString> = Vec::new();
        for (_, record) in &records {
            if known.contains_key(&record.topic) || unknown.contains(&record.topic) {
                continue;
            }
            match self.topics.get(&record.topic, now) {
                // The sink's own topic is asked for each time it is missing: nothing else waits for that.
                Some(Known::Absent(_)) if self.is_fixed(&record.topic) => unknown.push(record.topic.clone()),
                Some(what) => drop(known.insert(record.topic.clone(), what)),
                None => unknown.push(record.topic.clone()),
            }
        }
        if !unknown.is_empty() {
            for (topic, found) in self.lookout.topics(unknown, deadline).await? {
                let what = match found {
                    Found::There(facts) => Known::There(Arc::new(facts)),
                    Found::Not(code) => Known::Absent(code),
                };
                self.topics.learn(topic.clone(), what.clone(), now);
                known.insert(topic, what);
            }
        }
        let mut ready = Vec::with_capacity(records.len());
        for (index, record) in records {
            match known.get(&record.topic) {
                Some(Known::Absent(code)) => report.mark(index, self.sent(&record.topic).refused(*code)),
                Some(Known::There(facts)) => match self.check_size(&record, facts) {
                    Ok(()) => ready.push((index, record)),
                    Err(rejection) => report.rejected(index, rejection),
                },
                None => {}
            }
        }
        Ok(ready)
    }

    /// What the topic would refuse, and with it every record in the same set, is not sent at all.
    fn check_size(&self, record: &Record, facts: &Facts) -> Result<(), Rejection> {
        let (Some(max), size) = (facts.max_batch, record.batch_size()) else { return Ok(()) };
        // Compressed it has another size, which the broker judges.
        if size <= max || self.compressed {
            return Ok(());
        }
        let message = format!(
            "the record has {size} bytes, and topic `{}` on {} takes {max} (its `max.message.bytes`): raise it there",
            record.topic, self.place
        );
        Err(Rejection::new(RejectReason::TooLarge, message))
    }

    /// Sends the records and waits for their reports.
    async fn fly(&self, records: &[Numbered], batch: &Batch, report: &DeliveryReport, deadline: Instant) -> Flown {
        let generation = match self.link.generation(deadline).await {
            Ok(generation) => generation,
            Err(error) => return Flown::Failed(classify::failure_of(&error)),
        };
        let mut notices = generation.notices();
        let before = notices.borrow_and_update().clone();
        let flight = self.link.flights.open(report);
        let mut left = records;
        let mut suspects = Vec::new();
        // How often no broker was there, and what was acknowledged by then.
        let (mut downs, mut acknowledged) = (before.down, 0);
        loop {
            let full = !self.queue(&generation, &flight, &mut left, batch, report);
            // In this order: once nothing is waited for, every fault is there.
            let waited = flight.waiting() > 0;
            let faults = flight.faults();
            // Reports on what a fatal error has taken may come before it is told.
            let ended = !generation.is_sound() || (!faults.is_empty() && generation.fatal().is_some());
            self.judge(faults, ended, records, report, &mut suspects);
            if !ended && left.is_empty() && !waited && suspects.is_empty() {
                return Flown::Done;
            }
            if ended {
                return self.after_the_end(&generation, &flight, records, report, suspects, deadline).await;
            }
            if left.is_empty() && !waited {
                // It goes on after a refusal: only so is it with `unsafe_acks`.
                return Flown::Suspected(suspects, classify::broken(&self.place, None, &before));
            }
            {
                let now = notices.borrow();
                if now.refused > before.refused {
                    return Flown::Failed(classify::failure_of(&classify::unwelcome(&self.place, &now)));
                }
                if now.down > downs {
                    let meanwhile = flight.acknowledged();
                    if meanwhile == acknowledged {
                        return Flown::Failed(classify::failure_of(&classify::unreachable(&self.place, &now)));
                    }
                    (downs, acknowledged) = (now.down, meanwhile);
                }
            }
            tokio::select! {
                () = flight.changed() => {}
                _ = notices.changed() => {}
                () = sleep(ROOM), if full => {}
                () = sleep_until(deadline) => {
                    let topic = records.first().map_or("", |(_, record)| &*record.topic);
                    return Flown::Failed(self.sent(topic).silent(&notices.borrow()));
                }
            }
        }
    }

    /// Queues what is left, in order, as far as there is room; whether all of it was queued.
    fn queue(
        &self,
        generation: &Generation,
        flight: &Flight,
        left: &mut &[Numbered],
        batch: &Batch,
        report: &DeliveryReport,
    ) -> bool {
        while let [(index, record), rest @ ..] = left {
            let Some(delivery) = batch.get(*index) else { return true };
            if let Some(sequence) = flight.take(Identity::of(delivery), *index)
                && let Err(code) = generation.queue(sequence, record)
            {
                flight.unqueued(sequence);
                match class_of(code) {
                    // The client itself refuses this one, and no other.
                    Class::Content(_) | Class::NoTopic | Class::Denied => {
                        self.topics.forget(&record.topic);
                        report.mark(*index, self.sent(&record.topic).refused(code));
                    }
                    // No room, or the end of the producer: nothing is queued before this one.
                    Class::Lost | Class::Passing => return false,
                }
            }
            *left = rest;
        }
        true
    }

    /// Marks what became of records that were not accepted; whose set alone is to blame is left for later, and so is what
    /// was lost with a producer that has `ended`.
    fn judge(
        &self,
        faults: Vec<(usize, RDKafkaErrorCode)>,
        ended: bool,
        records: &[Numbered],
        report: &DeliveryReport,
        suspects: &mut Vec<(usize, RDKafkaErrorCode)>,
    ) {
        for (index, code) in faults {
            let Ok(place) = records.binary_search_by_key(&index, |(index, _)| *index) else { continue };
            let Some((_, record)) = records.get(place) else { continue };
            match class_of(code) {
                Class::Content(_) => suspects.push((index, code)),
                Class::Lost if ended => {}
                Class::NoTopic | Class::Denied => {
                    self.topics.forget(&record.topic);
                    report.mark(index, self.sent(&record.topic).refused(code));
                }
                Class::Lost | Class::Passing => report.mark(index, self.sent(&record.topic).refused(code)),
            }
        }
    }

    /// The producer has ended: its last reports say what became of the rest.
    async fn after_the_end(
        &self,
        generation: &Generation,
        flight: &Flight,
        records: &[Numbered],
        report: &DeliveryReport,
        mut suspects: Vec<(usize, RDKafkaErrorCode)>,
        deadline: Instant,
    ) -> Flown {
        let fatal = generation.fatal();
        let failure = classify::broken(&self.place, fatal.as_ref(), &generation.notices().borrow());
        generation.stop();
        tokio::select! {
            () = generation.gone() => {}
            () = sleep_until(deadline) => {}
        }
        self.judge(flight.faults(), true, records, report, &mut suspects);
        tracing::debug!(sink = %self.name, "the producer has ended: {failure}");
        if suspects.is_empty() { Flown::Failed(failure) } else { Flown::Suspected(suspects, failure) }
    }

    /// Sends each suspect alone, so that only the culprits are blamed.
    async fn one_by_one(
        &self,
        suspects: Vec<(usize, RDKafkaErrorCode)>,
        records: &[Numbered],
        batch: &Batch,
        report: &DeliveryReport,
        deadline: Instant,
    ) -> Option<Failure> {
        for (index, _) in suspects {
            let place = records.binary_search_by_key(&index, |(index, _)| *index).ok()?;
            let alone = records.get(place..=place)?;
            match Box::pin(self.fly(alone, batch, report, deadline)).await {
                Flown::Done => {}
                Flown::Failed(failure) => return Some(failure),
                Flown::Suspected(found, _) => {
                    for (index, code) in found {
                        let topic = alone.first().map_or("", |(_, record)| &*record.topic);
                        report.mark(index, self.sent(topic).refused(code));
                    }
                }
            }
        }
        None
    }
}

/// What in the configuration is a risk, once at the start.
fn warn_of(config: &KafkaConfig, name: &str) {
    if config.tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify) {
        tracing::warn!(sink = %name, "tls.insecure_skip_verify is set: the brokers' certificates are not checked");
    }
    if config.unsafe_acks {
        tracing::warn!(
            sink = %name,
            "unsafe_acks is set: `properties` may weaken what an acknowledgement is; events can be lost, and a key's order \
             with them"
        );
    }
    let plain = config.sasl.as_ref().is_some_and(|sasl| {
        matches!(sasl.mechanism, crate::Mechanism::Plain | crate::Mechanism::OauthBearer) && config.tls.is_none()
    });
    if plain {
        tracing::warn!(sink = %name, "sasl sends the credentials in clear text: add `tls: {{}}`");
    }
}

impl Sink for KafkaSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        let deadline = Instant::now() + self.timeout;
        if self.link.is_closed() {
            return report.fail_rest(&Failure::new(FailureKind::Connection, "the sink is closed"));
        }
        let records = self.build(batch, report);
        let records = match Box::pin(self.to_known_topics(records, report, deadline)).await {
            Ok(records) => records,
            Err(error) => return report.fail_rest(&classify::failure_of(&error)),
        };
        if records.is_empty() {
            return;
        }
        let failure = match Box::pin(self.fly(&records, batch, report, deadline)).await {
            Flown::Done => None,
            Flown::Failed(failure) => Some(failure),
            Flown::Suspected(suspects, failure) => {
                let again = Instant::now() + self.timeout;
                let stopped = Box::pin(self.one_by_one(suspects, &records, batch, report, again)).await;
                Some(stopped.unwrap_or(failure))
            }
        };
        if let Some(failure) = failure {
            report.fail_rest(&failure);
        }
    }

    async fn check(&self) -> Result<(), SinkError> {
        if self.link.is_closed() {
            return Err(SinkError::retryable("the sink is closed"));
        }
        let deadline = Instant::now() + self.timeout;
        let Some(topic) = self.fixed.as_deref() else { return self.lookout.cluster(deadline).await };
        let found = self.lookout.topics(vec![ByteString::from(topic)], deadline).await?;
        match found.into_iter().next() {
            Some((topic, Found::There(facts))) => {
                self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&facts.warnings);
                self.topics.learn(topic, Known::There(Arc::new(facts)), Instant::now().into_std());
                Ok(())
            }
            Some((topic, Found::Not(code))) => match self.sent(&topic).refused(code) {
                Outcome::Failed(failure) => Err(SinkError::fatal(failure.message)),
                Outcome::Rejected(rejection) => Err(SinkError::fatal(rejection.message)),
                _ => Err(SinkError::retryable("the topic was not found")),
            },
            None => Ok(()),
        }
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn readings(&self) -> Vec<Reading> {
        self.link.statistics.readings()
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
