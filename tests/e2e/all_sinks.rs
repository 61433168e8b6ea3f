//! The arrangement with all sinks: every event goes to Kafka, NATS JetStream, RabbitMQ, SQS and a webhook receiver,
//! each a server of its own that can be hurt, with a witness on every link.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;

use crate::parking;
use crate::support::amqp_wire::Argument;
use crate::support::clock::Tick;
use crate::support::database::Database;
use crate::support::kafka::{self, Kafka};
use crate::support::link_log::LinkLog;
use crate::support::lsn::Lsn;
use crate::support::nats::NatsServer;
use crate::support::nats_witness::NatsWitness;
use crate::support::oracle::{self, Committed, Kept};
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::rabbitmq::Rabbit;
use crate::support::receiver::{Receipt, Receiver};
use crate::support::sqs::{self, Server};
use crate::support::wait::{DEADLINE, eventually};
use crate::support::walgate::{Setup, Walgate};
use crate::support::witness::PgWitness;
use crate::support::{amqp_witness, kafka_witness, sqs_witness};
use crate::tasks::Tasks;

/// The stream, topic and queue that take every event.
const EVENTS: &str = "events";
const STREAM: &str = "EVENTS";
/// Longer than any run, so that a repeat is stored once only.
const DAY: u64 = 86_400_000_000_000;
/// So short that later repeats are stored, and seen; and that ministack, which looks through all the ids that it knows
/// for each message, stays quick.
const WINDOW: Duration = Duration::from_secs(5);

/// One of the five.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    Kafka,
    Nats,
    Rabbitmq,
    Sqs,
    Webhook,
}

impl Sink {
    pub const ALL: [Sink; 5] = [Sink::Kafka, Sink::Nats, Sink::Rabbitmq, Sink::Sqs, Sink::Webhook];

    /// The one with this name.
    pub fn named(name: &str) -> Option<Sink> {
        Sink::ALL.into_iter().find(|sink| sink.name() == name)
    }

    /// Its name in the configuration.
    pub fn name(self) -> &'static str {
        ["kafka", "nats", "rabbitmq", "sqs", "webhook"][self as usize]
    }
}

/// See the module. Its fields are dropped in this order: those who talk before those who are talked to.
pub struct AllSinks {
    pub witness: PgWitness,
    nats_link: NatsWitness,
    rabbit_link: Proxy,
    sqs_link: Proxy,
    hook_link: Proxy,
    logs: [LinkLog; 3],
    /// Reads the SQS queue while it is filled.
    pub tasks: Tasks,
    pub kafka: Kafka,
    pub nats: NatsServer,
    pub rabbit: Rabbit,
    pub sqs: Arc<Server>,
    /// Its memory is what it holds: it is taken off the net, and not ended.
    pub receiver: Receiver,
    pub database: Database,
    pub confirmed_before: Lsn,
    /// walgate has its own tables: what a sink that is away is owed may wait there.
    parks: bool,
}

/// What was ever in `walgate.parked`, which forgets what is delivered. Not published.
const EVER_PARKED: &str = "\
CREATE TABLE ever_parked (sink TEXT NOT NULL, event_id TEXT NOT NULL);
CREATE FUNCTION note_parked() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
  $$BEGIN INSERT INTO public.ever_parked SELECT sink, event_id FROM fresh; RETURN NULL; END$$;
CREATE TRIGGER note_parked AFTER INSERT ON walgate.parked REFERENCING NEW TABLE AS fresh
  FOR EACH STATEMENT EXECUTE FUNCTION note_parked()";

/// How the sinks came out.
#[derive(Debug)]
pub struct Outcome {
    pub events: usize,
    /// Sent more than once, by sink.
    pub repeats: HashMap<&'static str, usize>,
    /// Of these, what the brokers hold more than once.
    pub stored_repeats: HashMap<&'static str, usize>,
    /// Parked at some time, by sink.
    pub parked: HashMap<&'static str, usize>,
    pub statuses: usize,
}

impl AllSinks {
    /// Without walgate's own tables: outages are held.
    pub fn on(postgres: &Arc<Postgres>) -> AllSinks {
        AllSinks::of(postgres.database().with_keyed_outbox(), false)
    }

    /// With walgate's own tables: outages are parked.
    pub fn that_park(postgres: &Arc<Postgres>) -> AllSinks {
        let database = parking::with_tables(postgres.database().with_keyed_outbox());
        database.sql(EVER_PARKED);
        AllSinks::of(database, true)
    }

    fn of(database: Database, parks: bool) -> AllSinks {
        let postgres = &database.server;
        let logs = [(); 3].map(|()| LinkLog::default());
        let kafka_log = logs[0].clone();
        let (kafka, rabbit) = std::thread::scope(|scope| {
            let rabbit = scope.spawn(rabbit);
            let through: Box<dyn FnOnce(u16) -> Proxy> = Box::new(move |port| kafka_witness::proxy(port, &kafka_log));
            let kafka = Kafka::with(kafka::Options { through: Some(through), ..kafka::Options::default() });
            kafka.wire().create_topic(EVENTS, 4, &[]);
            (kafka, rabbit.join().expect("a RabbitMQ node"))
        });
        let nats = NatsServer::start();
        nats.add_stream(STREAM, &["events.>"], json!({ "duplicate_window": DAY }));
        let sqs = Arc::new(Server::with(sqs::Options { dedup_window: Some(WINDOW), ..sqs::Options::default() }));
        sqs.create("events.fifo", &[]);
        let (receiver, witness) = (Receiver::lean(), PgWitness::on(postgres.port()));
        AllSinks {
            witness,
            nats_link: NatsWitness::on(nats.port()),
            rabbit_link: amqp_witness::proxy(rabbit.port(), &logs[1]),
            sqs_link: sqs_witness::proxy(sqs.port(), &logs[2]),
            hook_link: Proxy::to(receiver.port()),
            logs,
            tasks: Tasks::take_from(&sqs, "events.fifo"),
            kafka,
            nats,
            rabbit,
            sqs,
            receiver,
            confirmed_before: database.confirmed_flush(),
            database,
            parks,
        }
    }

    /// All sinks take everything; `timeout` is that of an attempt. An outage is parked after a second, where it can be.
    pub fn setup(&self, timeout: &str) -> Setup {
        let park = if self.parks { ", on_outage: park, park_after: 1s" } else { "" };
        let delivery =
            format!("timeout: {timeout}{park}, retry: {{ initial: 20ms, max: 500ms, connection_max: 200ms }}");
        let inside = |sink: Sink| {
            let port = self.link(sink).port();
            match sink {
                Sink::Kafka => format!("brokers: [\"127.0.0.1:{port}\"], topic: {EVENTS}"),
                Sink::Nats => format!("servers: [\"127.0.0.1:{port}\"], subject: \"{EVENTS}.{{event_type}}\""),
                Sink::Rabbitmq => {
                    format!("url: \"amqp://walgate:secret@127.0.0.1:{port}/%2F\", routing_key: {EVENTS}")
                }
                Sink::Sqs => format!("{}, queue: {EVENTS}.fifo", self.sqs.by(port)),
                Sink::Webhook => String::new(),
            }
        };
        let setup = Setup::through(&self.database, self.witness.port()).keyed();
        let url = format!("http://127.0.0.1:{}/hook", self.hook_link.port());
        let setup = Sink::ALL[..4].iter().fold(setup.webhook_at("webhook", &url, &delivery), |setup, sink| {
            let name = sink.name();
            // ministack is one thread: sixteen requests at once, as is usual, would each take sixteen times as long.
            let more = if *sink == Sink::Sqs { ", concurrency: 4" } else { "" };
            setup.sink(&format!("{name}: {{ {name}: {{ {} }}, delivery: {{ {delivery}{more} }} }}", inside(*sink)))
        });
        setup.route("**", &format!("[{}]", Sink::ALL.map(Sink::name).join(", ")))
    }

    pub fn link(&self, sink: Sink) -> &Proxy {
        match sink {
            Sink::Kafka => self.kafka.proxy(),
            Sink::Nats => &self.nats_link,
            Sink::Rabbitmq => &self.rabbit_link,
            Sink::Sqs => &self.sqs_link,
            Sink::Webhook => &self.hook_link,
        }
    }

    fn log(&self, sink: Sink) -> &LinkLog {
        match sink {
            Sink::Kafka => &self.logs[0],
            Sink::Rabbitmq => &self.logs[1],
            Sink::Sqs => &self.logs[2],
            Sink::Nats | Sink::Webhook => panic!("{sink:?} keeps its own"),
        }
    }

    /// Deliveries that a sink was sent, repeats included.
    pub fn count(&self, sink: Sink) -> usize {
        match sink {
            Sink::Nats => self.nats_link.count(),
            Sink::Webhook => self.receiver.count(),
            _ => self.log(sink).count(),
        }
    }

    /// Different events that a sink has acknowledged.
    pub fn settled_by(&self, sink: Sink) -> usize {
        match sink {
            Sink::Nats => self.nats_link.settled_count(),
            Sink::Webhook => self.receiver.settled_count(),
            _ => self.log(sink).settled_count(),
        }
    }

    /// Different events that all have acknowledged, at the most.
    pub fn settled(&self) -> usize {
        Sink::ALL.into_iter().map(|sink| self.settled_by(sink)).min().expect("sinks")
    }

    /// Rows of `walgate.parked`.
    #[track_caller]
    pub fn parked(&self, sink: Sink) -> usize {
        let count = format!("SELECT count(*) FROM walgate.parked WHERE sink = '{}'", sink.name());
        self.database.value(&count).parse().expect("a number")
    }

    /// Events that were parked for a sink at some time.
    fn ever_parked(&self, sink: Sink) -> HashSet<String> {
        if !self.parks {
            return HashSet::new();
        }
        let rows = self.database.sql(&format!("SELECT event_id FROM ever_parked WHERE sink = '{}'", sink.name()));
        rows.into_iter().filter_map(|row| row.into_iter().next()?).collect()
    }

    fn receipts(&self, sink: Sink) -> Vec<Receipt> {
        match sink {
            Sink::Nats => self.nats_link.receipts(),
            Sink::Webhook => self.receiver.receipts(),
            _ => self.log(sink).receipts(),
        }
    }

    fn all_settled(&self, sink: Sink) -> HashMap<String, Tick> {
        match sink {
            Sink::Nats => self.nats_link.all_settled(),
            Sink::Webhook => self.receiver.all_settled(),
            _ => self.log(sink).all_settled(),
        }
    }

    fn garbled(&self) -> usize {
        self.nats_link.garbled() + self.logs.iter().map(LinkLog::garbled).sum::<usize>()
    }

    /// SIGKILL of a sink's server. The receiver goes off the net instead, and ministack, which does not keep over
    /// SIGKILL all that it has acknowledged, is asked to end.
    pub fn end(&self, sink: Sink) {
        match sink {
            Sink::Kafka => self.kafka.kill9(),
            Sink::Nats => self.nats.kill9(),
            Sink::Rabbitmq => self.rabbit.kill9(),
            Sink::Sqs => self.tasks.pause(|| self.sqs.stop()),
            Sink::Webhook => self.receiver.go_down(),
        }
    }

    /// SIGTERM; the same as [`AllSinks::end`] where that is as gentle.
    pub fn stop(&self, sink: Sink) {
        match sink {
            Sink::Kafka => self.kafka.stop(),
            Sink::Nats => self.nats.stop(),
            Sink::Rabbitmq => self.rabbit.stop(),
            Sink::Sqs | Sink::Webhook => self.end(sink),
        }
    }

    /// Ends what [`AllSinks::end`] and [`AllSinks::stop`] have begun.
    pub fn start_again(&self, sink: Sink) {
        match sink {
            Sink::Kafka => self.kafka.start_again(),
            Sink::Nats => self.nats.start_again(),
            Sink::Rabbitmq => self.rabbit.start_again(),
            Sink::Sqs => {
                self.sqs.start_again();
                self.tasks.go_on();
            }
            Sink::Webhook => self.receiver.come_back(),
        }
    }

    /// SIGSTOP; the receiver holds its answers back instead.
    pub fn freeze(&self, sink: Sink) {
        match sink {
            Sink::Kafka => self.kafka.freeze(),
            Sink::Nats => self.nats.signal(Signal::STOP),
            Sink::Rabbitmq => self.rabbit.signal(Signal::STOP),
            Sink::Sqs => self.tasks.pause(|| self.sqs.signal(Signal::STOP)),
            Sink::Webhook => self.receiver.hold(),
        }
    }

    /// SIGCONT.
    pub fn thaw(&self, sink: Sink) {
        match sink {
            Sink::Kafka => self.kafka.thaw(),
            Sink::Nats => self.nats.signal(Signal::CONT),
            Sink::Rabbitmq => self.rabbit.signal(Signal::CONT),
            Sink::Sqs => {
                self.sqs.signal(Signal::CONT);
                self.tasks.go_on();
            }
            Sink::Webhook => self.receiver.release_all(),
        }
    }

    /// SIGKILL of walgate; returns when nothing that it has sent is still on its way.
    #[track_caller]
    pub fn kill(&self, walgate: &mut Walgate) {
        walgate.kill9();
        for sink in Sink::ALL {
            self.link(sink).cut();
        }
        for sink in Sink::ALL {
            let what = format!("the dead one's link to {} is gone", sink.name());
            eventually(DEADLINE, &what, || self.link(sink).open_connections() == 0);
        }
        self.receiver.wait_until_deserted();
        self.witness.note_kill(self.database.confirmed_when_released());
        self.receiver.release_all();
        eventually(DEADLINE, "no answer is owed to the dead one", || self.receiver.in_flight() == 0);
    }

    /// Ends what was done to a sink's link. No connection is left that has lost a part of what passed: neither walgate
    /// nor a witness could go on with it.
    #[track_caller]
    pub fn mend(&self, sink: Sink) {
        let link = self.link(sink);
        link.refuse();
        link.cut();
        eventually(DEADLINE, "the broken connections are gone", || link.open_connections() == 0);
        link.drop_replies(false);
        link.black_hole(false);
        link.delay(Duration::ZERO);
        link.accept();
    }

    /// Waits until all have everything that the outbox holds, and the slot has confirmed it.
    #[track_caller]
    pub fn wait_for_all(&self, walgate: &mut Walgate) {
        let count: usize = self.database.value("SELECT count(*) FROM outbox_events").parse().expect("a number");
        let sum = || Sink::ALL.into_iter().map(|sink| self.settled_by(sink)).sum::<usize>();
        // As long as they go on, they may take their time.
        while self.settled() < count {
            let before = sum();
            walgate.eventually("the sinks go on", || self.settled() >= count || sum() > before);
        }
        let last = self.witness.log().commits.iter().map(|commit| commit.end).max().expect("commits");
        walgate.eventually("everything is confirmed", || self.witness.flush() >= last);
        let nothing_parked = || !self.parks || self.database.value("SELECT count(*) FROM walgate.parked") == "0";
        walgate.eventually("nothing is parked", nothing_parked);
    }

    /// All that the brokers hold, read by hand; what the receiver has received stands in its receipts.
    fn kept(&self, sink: Sink) -> Vec<Kept> {
        let own = |text: Option<&str>| text.map(str::to_owned);
        match sink {
            Sink::Kafka => {
                let records = self.kafka.wire().read_all(EVENTS);
                let kept = |record: &crate::support::kafka_records::Record| Kept {
                    id: record.id().to_owned(),
                    key: own(record.key_text()),
                    hash: record.hash(),
                };
                records.iter().map(kept).collect()
            }
            Sink::Nats => {
                let stored = self.nats.stored(STREAM);
                let kept = |message: &crate::support::nats_wire::Stored| Kept {
                    id: message.id().to_owned(),
                    key: own(message.header("walgate-key")),
                    hash: message.hash(),
                };
                stored.iter().map(kept).collect()
            }
            Sink::Rabbitmq => {
                let stored = self.rabbit.wire("/").drain(EVENTS);
                let kept = |message: &crate::support::amqp_wire::Stored| Kept {
                    id: message.id().to_owned(),
                    key: own(message.header("walgate-key")),
                    hash: message.hash(),
                };
                stored.iter().map(kept).collect()
            }
            Sink::Sqs => self.tasks.all(),
            Sink::Webhook => panic!("its receipts are all that it keeps"),
        }
    }

    /// Every sink was sent and holds every committed event, whole and in order, and nothing else; nothing is parked any
    /// more; nothing was confirmed before all had acknowledged it. A row of `walgate.parked` is as good as an
    /// acknowledgement there. When it was written in the order of the ticks is not known, so an event that was parked at
    /// some time counts as settled for its sink from the beginning: what was never parked is judged as strictly as ever.
    #[track_caller]
    pub fn assert_all(&self, committed: &[Committed]) -> Outcome {
        assert_eq!(self.receiver.bad_signatures(), Vec::<String>::new());
        assert_eq!(self.garbled(), 0, "connections that a witness could not follow");
        let mut outcome = Outcome {
            events: committed.len(),
            repeats: HashMap::new(),
            stored_repeats: HashMap::new(),
            parked: HashMap::new(),
            statuses: self.witness.log().statuses.len(),
        };
        for sink in Sink::ALL {
            let verdict = oracle::reconcile(committed, &self.receipts(sink));
            assert!(verdict.is_clean(), "{}: of {} committed events:\n{verdict}", sink.name(), committed.len());
            outcome.repeats.insert(sink.name(), verdict.duplicates);
        }
        for sink in &Sink::ALL[..4] {
            let repeats = oracle::judge_kept(committed, &self.kept(*sink))
                .unwrap_or_else(|fault| panic!("what {} holds: {fault}", sink.name()));
            outcome.stored_repeats.insert(sink.name(), repeats);
        }
        assert_eq!(outcome.stored_repeats["nats"], 0, "repeats within the stream's window were stored");
        if self.parks {
            let left = self.database.value("SELECT count(*) FROM walgate.parked");
            assert_eq!(left, "0", "rows that are parked though everything is delivered");
            assert_eq!(self.database.value("SELECT count(*) FROM walgate.dead_letters"), "0");
        }
        let settled = Sink::ALL.map(|sink| {
            let mut settled = self.all_settled(sink);
            let parked = self.ever_parked(sink);
            outcome.parked.insert(sink.name(), parked.len());
            settled.extend(parked.into_iter().map(|id| (id, 0)));
            settled
        });
        oracle::assert_wire(&self.witness.log(), self.confirmed_before, |id| {
            settled.iter().try_fold(0, |latest, sink| Some(*sink.get(id)?.max(&latest)))
        });
        outcome
    }
}

/// A node with a quorum queue that takes everything.
fn rabbit() -> Rabbit {
    // What is not yet in the queue's own files stands in memory: by default as much as a node may have here.
    let rabbit = Rabbit::with("raft.wal_max_size_bytes = 33554432\n", "", |_| {});
    rabbit.wire("/").declare_queue(EVENTS, &[("x-queue-type", Argument::Text("quorum"))]);
    // RabbitMQ 3.10 was seen not to bring a quorum queue back that was declared a moment before a SIGKILL.
    rabbit.stop();
    rabbit.start_again();
    rabbit
}
