//! A receiver in memory with a link that breaks, and a sink for it with a mistake planted on demand.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};

use super::super::{Able, Carries, Harness, Received, Refused, Unable, UnknownTarget};
use crate::{
    Batch, Capabilities, Delivery, DeliveryReport, Escape, Failure, FailureKind, RejectReason, Rejection, Secret, Sink,
    SinkContext, SinkError, SinkFactory, TargetField,
};

const PASSWORD: &str = "correct-horse-battery";
const LIMIT: usize = 100_000;

/// What is true of the link.
#[derive(Clone, Copy, Default)]
struct Link {
    /// Goes up whenever connections break.
    generation: u64,
    down: bool,
    frozen: bool,
    answers_lost: bool,
}

pub(super) struct Receiver {
    link: watch::Sender<Link>,
    held: Mutex<Vec<Received>>,
    returned: Mutex<Option<Instant>>,
}

fn receivers() -> MutexGuard<'static, HashMap<u64, Arc<Receiver>>> {
    static RECEIVERS: OnceLock<Mutex<HashMap<u64, Arc<Receiver>>>> = OnceLock::new();
    RECEIVERS.get_or_init(Mutex::default).lock().unwrap()
}

/// See the module.
pub(super) struct World {
    number: u64,
    plant: String,
    receiver: Arc<Receiver>,
    /// Nothing can be broken.
    pub(super) rigid: bool,
}

impl World {
    pub(super) fn new(plant: &str) -> World {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let receiver = Arc::new(Receiver {
            link: watch::Sender::new(Link::default()),
            held: Mutex::default(),
            returned: Mutex::default(),
        });
        receivers().insert(number, Arc::clone(&receiver));
        World { number, plant: plant.to_owned(), receiver, rigid: false }
    }

    fn change(&self, change: impl FnOnce(&mut Link)) -> Able {
        if self.rigid {
            return Err(Unable("nothing can be broken here"));
        }
        self.receiver.link.send_modify(change);
        Ok(())
    }
}

impl Harness for World {
    fn config(&self) -> Value {
        json!({ "receiver": self.number, "password": PASSWORD, "plant": self.plant })
    }

    fn target(&self) -> Vec<(&'static str, String)> {
        vec![("queue", "events".to_owned())]
    }

    fn read(&mut self) -> Vec<Received> {
        self.receiver.held.lock().unwrap().clone()
    }

    fn heal(&mut self) {
        self.receiver.link.send_modify(|link| *link = Link { generation: link.generation, ..Link::default() });
    }

    fn cut(&mut self) -> Able {
        self.change(|link| link.generation += 1)
    }

    fn stop(&mut self) -> Able {
        self.change(|link| (link.generation, link.down) = (link.generation + 1, true))
    }

    fn start(&mut self) {
        *self.receiver.returned.lock().unwrap() = Some(Instant::now());
        self.receiver.link.send_modify(|link| link.down = false);
    }

    fn freeze(&mut self) -> Able {
        self.change(|link| link.frozen = true)
    }

    fn lose_answers(&mut self) -> Able {
        self.change(|link| link.answers_lost = true)
    }

    fn refused(&mut self) -> Result<Refused, Unable> {
        let mut config = self.config();
        config["password"] = json!("wrong-horse-battery");
        Ok(Refused { config, named: format!("receiver {}", self.number) })
    }

    fn unknown_target(&mut self) -> Result<UnknownTarget, Unable> {
        let target = vec![("queue", "nowhere".to_owned())];
        Ok(UnknownTarget { config: self.config(), target, named: "nowhere".to_owned() })
    }

    fn carries(&self) -> Carries {
        Carries::default().with_sizes(LIMIT, Some(LIMIT + 1))
    }

    fn secrets(&self) -> Vec<String> {
        vec![PASSWORD.to_owned(), "wrong-horse-battery".to_owned()]
    }
}

impl Receiver {
    /// Sends over the connection of a generation, and waits for the answer.
    async fn put(&self, generation: u64, message: Received) -> Result<(), &'static str> {
        let mut link = self.link.subscribe();
        let mut pass = async |wait: fn(&Link) -> bool| loop {
            let now = *link.borrow_and_update();
            if now.down || now.generation != generation {
                return Err("the connection broke");
            }
            if !wait(&now) {
                return Ok(());
            }
            let _ = link.changed().await;
        };
        pass(|link| link.frozen).await?;
        // The way there: breaks find events on it.
        tokio::time::sleep(Duration::from_millis(1)).await;
        pass(|link| link.frozen).await?;
        self.held.lock().unwrap().push(message);
        pass(|link| link.frozen || link.answers_lost).await
    }

    fn connect(&self) -> Result<u64, &'static str> {
        let link = *self.link.borrow();
        if link.down { Err("the connection was refused") } else { Ok(link.generation) }
    }
}

#[derive(Deserialize)]
pub(super) struct Config {
    receiver: u64,
    password: Secret,
    plant: String,
    #[serde(flatten)]
    more: HashMap<String, Value>,
}

pub(super) struct PlantedFactory;

impl SinkFactory for PlantedFactory {
    const KIND: &'static str = "planted";
    const TARGET: &'static [TargetField] =
        &[TargetField { name: "queue", required: true, ordering_key: false, escape: Escape::None }];
    const SECRETS: &'static [&'static str] = &["password"];

    type Config = Checked;
    type Sink = PlantedSink;

    async fn connect(config: &Checked, context: SinkContext) -> Result<PlantedSink, SinkError> {
        let Checked(config) = config;
        Ok(PlantedSink {
            receiver: Arc::clone(&receivers()[&config.receiver]),
            name: format!("receiver {}", config.receiver),
            password: config.password.clone(),
            plant: config.plant.clone(),
            timeout: context.timeout,
            state: Mutex::default(),
        })
    }
}

/// A configuration whose keys are checked as the plant would have it.
pub(super) struct Checked(Config);

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let config = Config::deserialize(deserializer)?;
        match config.more.keys().next().filter(|_| config.plant != "takes any key") {
            Some(key) => Err(serde::de::Error::custom(format!("unknown field `{key}`"))),
            None => Ok(Checked(config)),
        }
    }
}

#[derive(Default)]
struct State {
    closed: bool,
    generation: Option<u64>,
    /// What was acknowledged, and not sent.
    kept: Vec<Received>,
    answers: usize,
}

pub(super) struct PlantedSink {
    receiver: Arc<Receiver>,
    name: String,
    password: Secret,
    plant: String,
    timeout: Duration,
    state: Mutex<State>,
}

impl PlantedSink {
    fn is(&self, plant: &str) -> bool {
        self.plant == plant
    }

    fn generation(&self) -> Result<u64, &'static str> {
        if self.is("recovers too late") {
            let returned = *self.receiver.returned.lock().unwrap();
            if returned.is_some_and(|at| at.elapsed() < Duration::from_millis(2500)) {
                return Err("the connection was refused a moment ago");
            }
        }
        let now = self.receiver.connect()?;
        self.state.lock().unwrap().generation = Some(now);
        Ok(now)
    }

    async fn put(&self, delivery: &Delivery) -> Result<(), &'static str> {
        let event = &delivery.event;
        let mut body = event.body().to_vec();
        if self.is("cuts long payloads") {
            body.truncate(1000);
        }
        let again = self.is("changes the id of a repeat") && delivery.attempt > 1;
        let message = Received {
            id: if again { format!("{}-{}", event.id, delivery.attempt) } else { event.id.to_string() },
            key: event.key.as_ref().map(ToString::to_string),
            headers: event.headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            body,
        };
        if self.is("acknowledges on send") {
            let (receiver, generation) = (Arc::clone(&self.receiver), self.generation()?);
            tokio::spawn(async move { receiver.put(generation, message).await });
            return Ok(());
        }
        if self.is("reorders a key after a reconnect") {
            let key = message.key.clone();
            let sent = match self.generation() {
                Ok(generation) => timeout(self.timeout, self.receiver.put(generation, message.clone())).await,
                Err(why) => Ok(Err(why)),
            };
            // What a broken connection took with it is sent with the next event of its key: behind it.
            let is_sent = matches!(sent, Ok(Ok(())));
            let mut late = Vec::new();
            {
                let mut state = self.state.lock().unwrap();
                if is_sent {
                    late.extend(state.kept.extract_if(.., |kept| kept.key == key));
                } else if !self.receiver.held.lock().unwrap().iter().any(|held| held.id == message.id) {
                    state.kept.push(message);
                }
            }
            for message in late {
                let _ = timeout(self.timeout, self.receiver.put(self.generation()?, message)).await;
            }
            return Ok(());
        }
        self.receiver.put(self.generation()?, message).await
    }

    fn refusal(&self) -> Option<Failure> {
        let sound = self.password.expose() == PASSWORD;
        let message = match &*self.plant {
            "blames nobody" => "access denied".to_owned(),
            _ => format!("{} refuses the credentials", self.name),
        };
        (!sound).then(|| Failure::new(FailureKind::Fatal, message))
    }

    fn mark(&self, report: &DeliveryReport, index: usize, sent: Result<(), &'static str>) {
        match sent {
            Ok(()) => report.acknowledged(index),
            Err(why) if self.is("reports a dead connection as rejected") => {
                report.rejected(index, Rejection::new(RejectReason::Refused, why));
            }
            Err(why) => {
                let secret = if self.is("leaks its password") { self.password.expose() } else { "[secret]" };
                let message = format!("the connection to walgate:{secret}@{} failed: {why}", self.name);
                report.failed(index, Failure::new(FailureKind::Connection, message));
            }
        }
    }
}

impl Sink for PlantedSink {
    async fn deliver(&self, batch: &Batch, report: &DeliveryReport) {
        if self.state.lock().unwrap().closed && !self.is("works after close") {
            return report.fail_rest(&Failure::new(FailureKind::Connection, "the sink is closed"));
        }
        if let Some(failure) = self.refusal() {
            return report.fail_rest(&failure);
        }
        let mut order: Vec<usize> = (0..batch.len()).collect();
        if self.is("turns batches round") {
            order.reverse();
        }
        let tail = if self.is("loses the tail of a batch") { batch.len().max(8) - 7 } else { batch.len() };
        for index in order {
            let delivery = &batch[index];
            if delivery.target.get("queue").is_none_or(|queue| &**queue != "events") {
                let message = format!("there is no queue {:?}", delivery.target.get("queue"));
                report.rejected(index, Rejection::new(RejectReason::UnknownTarget, message));
                continue;
            }
            if delivery.event.body().len() > LIMIT {
                report.rejected(index, Rejection::new(RejectReason::TooLarge, "too large"));
                continue;
            }
            if index >= tail && batch.len() > 8 {
                report.acknowledged(index);
                continue;
            }
            if self.is("takes an answer for another") {
                // An answer that nobody has taken is still there for the next delivery.
                let spare = {
                    let mut state = self.state.lock().unwrap();
                    state.answers += 1;
                    state.answers > 1
                };
                if spare {
                    self.state.lock().unwrap().answers -= 1;
                    report.acknowledged(index);
                    continue;
                }
            }
            let sent = match self.is("waits for ever") {
                true => Ok(self.put(delivery).await),
                false => timeout(self.timeout, self.put(delivery)).await,
            };
            match sent {
                Ok(sent) => self.mark(report, index, sent),
                Err(_) => {
                    report.fail_rest(&Failure::new(FailureKind::Timeout, format!("{} is silent", self.name)));
                    return;
                }
            }
            let mut state = self.state.lock().unwrap();
            state.answers = state.answers.saturating_sub(1);
        }
    }

    async fn check(&self) -> Result<(), SinkError> {
        if let Some(failure) = self.refusal() {
            return Err(SinkError::fatal(failure.message));
        }
        self.receiver.connect().map(|_| ()).map_err(SinkError::retryable)
    }

    async fn close(&self) {
        self.state.lock().unwrap().closed = true;
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::default().with_max_batch(50)
    }
}
