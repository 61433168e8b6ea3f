//! The consumers of examples/consumers: events come again and again, the work is done once.

#[cfg(feature = "kafka")]
mod kafka;
mod ledger;
#[cfg(feature = "kafka")]
mod sqlite;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::process::Signal;

use self::ledger::{Ledger, Totals};
use crate::custom_sink::build;
use crate::rig::Rig;
use crate::support::processes::Process;
use crate::support::receiver::reply;
use crate::support::wait::{DEADLINE, eventually};
use crate::support::walgate::Walgate;

/// The examples' program of this name.
fn program(name: &str) -> PathBuf {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(build).join(name)
}

const ROUNDS: usize = 5;
const EVENTS: usize = 120;

/// Kills walgate each round while events flow, and the consumer in one of them, and starts them again; what was done must
/// be what was committed. A second sink that takes nothing holds the checkpoint: each walgate sends everything once more.
///
/// In the end, when nothing repeats any more, the consumer is killed within its transaction: the event must come again.
fn once_each(rig: &Rig, sink: &str, ledger: &impl Ledger, consumer: impl Fn() -> Command) {
    let setup = rig.source().sink(&format!("bus: {{ {sink} }}")).webhook("away", &rig.receiver);
    let setup = setup.route("**", "[bus, away]");
    rig.receiver.script(|_| reply(503).into());
    let start = || Process::spawn(consumer().stdin(Stdio::null()), Signal::KILL);
    let file = setup.write();
    let mut taker = start();
    eventually(DEADLINE, "the consumer has made its tables", || taker.ended().is_some() || ledger.is_made());
    assert!(taker.ended().is_none(), "the consumer has ended");
    ledger.count_takes();
    for round in 1..=ROUNDS {
        let mut walgate = Walgate::run_file(&setup, &file);
        rig.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) SELECT 'order.created', 'k' || i % 7, \
             jsonb_build_object('i', i) FROM generate_series(1, {EVENTS}) i"
        ));
        walgate.eventually("half of it is done", || ledger.done().events >= (round - 1) * EVENTS + EVENTS / 2);
        if round == 3 {
            drop(taker);
            taker = start();
        }
        walgate.kill9();
        rig.database.confirmed_when_released();
    }
    rig.receiver.accept_all();
    let mut walgate = Walgate::run_file(&setup, &file);
    let settled = rig.insert("settled");
    rig.wait_confirmed(&mut walgate, &settled);
    // Inserted when every repeat has been sent, so that it is behind them.
    rig.insert("behind");
    let all = ROUNDS * EVENTS + 2;
    walgate.eventually("all of it is done", || ledger.done().events == all);
    let hold = ledger.hold();
    rig.insert("last");
    ledger.wait_until_held(&mut taker);
    drop(taker);
    drop(hold);
    taker = start();
    walgate.eventually("the last one too", || ledger.done().events > all);
    let done = ledger.done();
    assert_eq!((done.effects, done.events), (all + 1, all + 1), "effects and events");
    assert!(done.takes > 2 * all, "only {} takes: hardly anything came again", done.takes);
    assert!(taker.ended().is_none(), "the consumer has ended");
}

#[cfg(feature = "nats")]
#[test]
fn nats_in_rust_does_its_work_once_per_event() {
    let (rig, server) = (Rig::new(), crate::support::nats::NatsServer::start());
    // A window that lets repeats through.
    server.add_stream("ORDERS", &["orders.>"], serde_json::json!({ "duplicate_window": 100_000_000 }));
    let sink = format!("nats: {{ servers: [\"127.0.0.1:{}\"], subject: \"orders.{{key}}\" }}", server.port());
    let (program, totals) = (program("consume-nats"), Totals::new(&rig));
    once_each(&rig, &sink, &totals, || {
        let mut command = Command::new(&program);
        command.env("DATABASE_URL", totals.url()).env("NATS_STREAM", "ORDERS");
        command.env("NATS_URL", format!("nats://127.0.0.1:{}", server.port()));
        command
    });
    assert!(server.count("ORDERS") >= (ROUNDS * EVENTS) as u64);
}

#[cfg(feature = "rabbitmq")]
#[test]
fn rabbitmq_in_rust_does_its_work_once_per_event() {
    let (rig, server) = (Rig::new(), crate::support::rabbitmq::Rabbit::shared());
    let vhost = server.vhost();
    server.wire(&vhost).declare_queue("orders", &[]);
    let url = format!("amqp://walgate:secret@127.0.0.1:{}/{vhost}", server.port());
    let (program, totals) = (program("consume-rabbitmq"), Totals::new(&rig));
    once_each(&rig, &format!("rabbitmq: {{ url: {url:?}, routing_key: orders }}"), &totals, || {
        let mut command = Command::new(&program);
        command.env("DATABASE_URL", totals.url()).env("AMQP_URL", &url).env("AMQP_QUEUE", "orders");
        command
    });
    eventually(DEADLINE, "everything is acknowledged", || {
        server.ctl(&["list_queues", "-p", &vhost, "messages"]).trim().ends_with('0')
    });
}

#[cfg(feature = "sqs")]
#[test]
fn sqs_in_rust_does_its_work_once_per_event() {
    use crate::support::sqs::{KEY, Options, SECRET, Server};
    // A window that lets repeats through, and a queue that soon hands out again what a consumer that died had taken.
    let dedup_window = Some(std::time::Duration::from_millis(10));
    let (rig, server) = (Rig::new(), Server::with(Options { dedup_window, ..Options::default() }));
    server.create("orders.fifo", &[("VisibilityTimeout", "5")]);
    let (program, totals) = (program("consume-sqs"), Totals::new(&rig));
    let sink = format!("sqs: {{ {}, queue: orders.fifo }}", server.by(server.port()));
    once_each(&rig, &sink, &totals, || {
        let mut command = Command::new(&program);
        command.env("DATABASE_URL", totals.url()).env("SQS_QUEUE_URL", server.url("orders.fifo"));
        command.env("AWS_ENDPOINT_URL_SQS", format!("http://127.0.0.1:{}", server.port()));
        command.env("AWS_REGION", "us-east-1").env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
        command
    });
    eventually(DEADLINE, "everything is deleted", || server.count("orders.fifo") == 0);
}

#[cfg(feature = "webhook")]
#[test]
fn webhooks_in_rust_do_their_work_once_per_event() {
    use crate::support::receiver::SECRET;
    let (rig, port) = (Rig::new(), crate::support::wait::free_port());
    let (program, totals) = (program("consume-webhook"), Totals::new(&rig));
    let sink = format!(
        "webhook: {{ url: \"http://127.0.0.1:{port}/webhook\", secret: {SECRET} }}, \
         delivery: {{ retry: {{ initial: 20ms, max: 500ms, connection_max: 200ms }} }}"
    );
    once_each(&rig, &sink, &totals, || {
        let mut command = Command::new(&program);
        command.env("DATABASE_URL", totals.url()).env("WEBHOOK_SECRET", SECRET);
        command.env("LISTEN", format!("127.0.0.1:{port}"));
        command
    });
}
