//! Looking at the cluster, apart from what is being sent: whether it is there, whether a topic is, and what is a risk in
//! its settings.
//!
//! Each look has clients of its own, so that it finds things as they are now, not as a client remembers them. Their calls
//! block: they run on a thread of their own, which nobody has to wait for.

mod settings;

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::Client,
    config::FromClientConfigAndContext as _,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, Producer as _},
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::timeout_at,
};
use walgate_sink::{ByteString, SinkError, text};

use crate::{
    CreateTopics, classify,
    context::{Context, Surroundings},
    notices::Notices,
    properties,
    topics::Facts,
};

/// What taking in the client's events may take: without any time it would take in one, and log lines come first.
const SERVE: Duration = Duration::from_millis(2);
/// What one question may take before what else was heard is looked at.
const STEP: Duration = Duration::from_millis(100);
/// How long a topic that is not there is waited for: brokers that make topics by themselves do so when they are asked.
const APPEARING: Duration = Duration::from_millis(600);
/// Between two questions about what is not there yet.
const PAUSE: Duration = Duration::from_millis(20);

/// What came of looking for a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    There(Facts),
    /// Why not.
    Not(RDKafkaErrorCode),
}

/// How the cluster is looked at.
#[derive(Clone)]
pub(crate) struct Lookout {
    client: ClientConfig,
    surroundings: Surroundings,
    place: String,
    create: Option<CreateTopics>,
}

impl std::fmt::Debug for Lookout {
    // The client's settings hold passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lookout").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Lookout {
    pub(crate) fn new(
        client: ClientConfig,
        surroundings: Surroundings,
        place: String,
        create: Option<CreateTopics>,
    ) -> Self {
        Lookout { client, surroundings, place, create }
    }

    /// Looks for topics, and makes those that are missing where that is configured.
    pub(crate) async fn topics(
        &self,
        topics: Vec<ByteString>,
        deadline: tokio::time::Instant,
    ) -> Result<Vec<(ByteString, Found)>, SinkError> {
        self.run(deadline, move |look| look.topics(topics)).await
    }

    /// Whether a broker answers, and lets the client in.
    pub(crate) async fn cluster(&self, deadline: tokio::time::Instant) -> Result<(), SinkError> {
        self.run(deadline, Look::cluster).await
    }

    /// Records of a topic, by its offsets.
    #[cfg(test)]
    pub(crate) async fn count(
        &self,
        topic: &str,
        partitions: i32,
        deadline: tokio::time::Instant,
    ) -> Result<i64, SinkError> {
        let topic = topic.to_owned();
        self.run(deadline, move |look| {
            (0..partitions).try_fold(0, |sum, partition| {
                let (low, high) = look.ask(|client, step| client.fetch_watermarks(&topic, partition, step).ok())?;
                Ok(sum + high - low)
            })
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        deadline: tokio::time::Instant,
        work: impl FnOnce(&mut Look) -> Result<T, SinkError> + Send + 'static,
    ) -> Result<T, SinkError> {
        let (done, result) = oneshot::channel();
        let (lookout, runtime, until) = (self.clone(), Handle::current(), deadline.into_std());
        std::thread::Builder::new()
            .name("walgate-kafka-look".to_owned())
            .spawn(move || {
                let result = Look::start(lookout, runtime, until).and_then(|mut look| work(&mut look));
                let _ = done.send(result);
            })
            .map_err(|error| SinkError::retryable(format!("no thread to look at {} with: {error}", self.place)))?;
        match timeout_at(deadline, result).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(SinkError::retryable(format!("looking at {} ended by itself", self.place))),
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> SinkError {
        SinkError::retryable(format!("{} does not answer within the time of an attempt", self.place))
    }
}

/// A topic as the brokers describe it at one moment.
#[derive(Clone, Copy, Debug)]
enum Seen {
    There {
        /// Of the partition that has the fewest.
        replicas: usize,
    },
    /// It is being made, and has no leader yet.
    Starting,
    Missing(RDKafkaErrorCode),
    Refused(RDKafkaErrorCode),
}

/// One look.
struct Look {
    lookout: Lookout,
    runtime: Handle,
    until: Instant,
    client: BaseProducer<Context>,
    notices: watch::Receiver<Notices>,
}

impl Look {
    fn start(lookout: Lookout, runtime: Handle, until: Instant) -> Result<Self, SinkError> {
        let (context, notices) = Context::looking(&lookout.surroundings);
        let client = BaseProducer::from_config_and_context(&lookout.client, context).map_err(|error| {
            let why = properties::unusable(&lookout.client, &error);
            let why = text::excerpt(why.as_bytes(), &lookout.surroundings.secrets);
            SinkError::fatal(format!("no client for {} can be made: {why}: check `tls` and `sasl`", lookout.place))
        })?;
        Ok(Look { lookout, runtime, until, client, notices })
    }

    /// Asks until there is an answer, the cluster is known to be out of reach, or the time is over.
    fn ask<T>(&mut self, question: impl Fn(&Client<Context>, Duration) -> Option<T>) -> Result<T, SinkError> {
        loop {
            // Serves what the client calls back, such as the wish for a token.
            self.client.poll(SERVE);
            if let Some(answer) = question(self.client.client(), STEP) {
                return Ok(answer);
            }
            self.client.poll(SERVE);
            let notices = self.notices.borrow();
            if notices.refused > 0 {
                return Err(classify::unwelcome(&self.lookout.place, &notices));
            }
            if notices.down > 0 {
                return Err(classify::unreachable(&self.lookout.place, &notices));
            }
            if Instant::now() >= self.until {
                return Err(match notices.complaint() {
                    Some(_) => classify::unreachable(&self.lookout.place, &notices),
                    None => self.lookout.silent(),
                });
            }
        }
    }

    fn cluster(&mut self) -> Result<(), SinkError> {
        self.ask(|client, step| client.fetch_cluster_id(step).map(|_| ()))
    }

    /// Looks for all of them at once, so that waiting for one to appear is waiting for all.
    fn topics(&mut self, mut wanted: Vec<ByteString>) -> Result<Vec<(ByteString, Found)>, SinkError> {
        let (mut absent, mut there) = (Vec::new(), Vec::new());
        let mut made: HashSet<ByteString> = HashSet::new();
        let appearing = Instant::now() + APPEARING;
        loop {
            let mut waiting = Vec::new();
            for topic in std::mem::take(&mut wanted) {
                // One that walgate makes is there soon; one that the brokers may make by themselves, perhaps.
                let until = if made.contains(&topic) { self.until } else { appearing.min(self.until) };
                match self.topic(&topic)? {
                    Seen::There { replicas } => there.push((topic, replicas)),
                    Seen::Refused(code) => absent.push((topic, Found::Not(code))),
                    Seen::Missing(_) if self.lookout.create.is_some() && made.insert(topic.clone()) => {
                        self.make(&topic)?;
                        waiting.push(topic);
                    }
                    Seen::Missing(code) if Instant::now() >= until => absent.push((topic, Found::Not(code))),
                    Seen::Starting if Instant::now() >= self.until => return Err(self.lookout.silent()),
                    Seen::Missing(_) | Seen::Starting => waiting.push(topic),
                }
            }
            if waiting.is_empty() {
                break;
            }
            wanted = waiting;
            // Asking does not wait, and the cluster takes a moment to change.
            std::thread::sleep(PAUSE);
        }
        let settings = self.settings(&there);
        let known = there.into_iter().map(|(topic, replicas)| {
            let facts = settings::facts(&topic, replicas, settings.get(&*topic));
            (topic, Found::There(facts))
        });
        Ok(absent.into_iter().chain(known).collect())
    }

    fn topic(&mut self, topic: &str) -> Result<Seen, SinkError> {
        self.ask(|client, step| {
            let metadata = client.fetch_metadata(Some(topic), step).ok()?;
            let found = metadata.topics().iter().find(|found| found.name() == topic)?;
            // Its partitions must not be looked at where there is an error: there may be none.
            Some(match found.error().map(RDKafkaErrorCode::from) {
                Some(code @ (RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)) => {
                    Seen::Missing(code)
                }
                Some(code @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic)) => {
                    Seen::Refused(code)
                }
                Some(_) => Seen::Starting,
                None => match found.partitions().iter().map(|partition| partition.replicas().len()).min() {
                    Some(replicas) if replicas > 0 => Seen::There { replicas },
                    _ => Seen::Starting,
                },
            })
        })
    }

    fn admin(&self) -> Result<AdminClient<Context>, KafkaError> {
        let (context, _) = Context::looking(&self.lookout.surroundings);
        AdminClient::from_config_and_context(&self.lookout.client, context)
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()).max(STEP)
    }

    /// Makes a topic. That another has made it meanwhile is as good.
    fn make(&self, topic: &str) -> Result<(), SinkError> {
        let Some(create) = &self.lookout.create else { return Ok(()) };
        let partitions = create.partitions.and_then(|count| i32::try_from(count).ok()).unwrap_or(-1);
        let replicas = create.replication.map_or(-1, i32::from);
        let mut wanted = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
        for (name, value) in &create.config {
            wanted = wanted.set(name, value.as_str());
        }
        let failed = |why: &str| {
            let why = text::excerpt(why.as_bytes(), &self.lookout.surroundings.secrets);
            format!("topic `{topic}` cannot be made on {}: {why}", self.lookout.place)
        };
        let admin = self.admin().map_err(|error| SinkError::retryable(failed(&error.to_string())))?;
        let options = AdminOptions::new().request_timeout(Some(self.left())).operation_timeout(Some(self.left()));
        match self.runtime.block_on(admin.create_topics([&wanted], &options)) {
            Ok(results) => match results.into_iter().next() {
                Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => Ok(()),
                Some(Err((_, code))) => Err(SinkError::fatal(format!(
                    "{}: make it by hand, or mend `create_topics`",
                    failed(&code.to_string())
                ))),
                _ => {
                    tracing::info!(sink = %self.lookout.surroundings.name, topic, "topic made");
                    Ok(())
                }
            },
            Err(error) => Err(SinkError::retryable(failed(&error.to_string()))),
        }
    }

    /// The topics' settings, where the brokers tell them: the right to ask is none that sending needs.
    fn settings(&self, topics: &[(ByteString, usize)]) -> HashMap<String, settings::Settings> {
        // The administration's client reads no tokens of a file.
        if self.lookout.surroundings.token.is_some() || topics.is_empty() {
            return HashMap::new();
        }
        let Ok(admin) = self.admin() else { return HashMap::new() };
        // They are good to know, and nothing that a delivery must wait long for.
        let options = AdminOptions::new().request_timeout(Some(self.left() / 4));
        let topics: Vec<&str> = topics.iter().map(|(topic, _)| &**topic).collect();
        settings::read(&self.runtime, &admin, &topics, &options)
    }
}
