//! The arrangement with two sinks: every event goes to a webhook receiver and to a stream of a real nats-server, with a
//! witness on every link.

use std::sync::Arc;

use serde_json::json;

use crate::support::database::Database;
use crate::support::lsn::Lsn;
use crate::support::nats::NatsServer;
use crate::support::nats_witness::NatsWitness;
use crate::support::oracle::{self, Committed};
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::receiver::Receiver;
use crate::support::wait::{DEADLINE, eventually};
use crate::support::walgate::{Setup, Walgate};
use crate::support::witness::PgWitness;

/// The stream that takes every event.
pub const STREAM: &str = "EVENTS";
/// Longer than any run, so that a repeat is stored once only.
const DAY: u64 = 86_400_000_000_000;

/// See the module. Its fields are dropped in this order: those who talk before those who are talked to.
pub struct Both {
    pub witness: PgWitness,
    pub hook_link: Proxy,
    pub bus: NatsWitness,
    pub receiver: Receiver,
    pub server: NatsServer,
    pub database: Database,
    pub confirmed_before: Lsn,
}

/// How both sinks came out.
#[derive(Debug)]
pub struct Outcome {
    pub events: usize,
    pub hook_repeats: usize,
    pub bus_repeats: usize,
    /// Repeats that the stream holds.
    pub stored_repeats: usize,
    pub statuses: usize,
}

impl Both {
    pub fn on(postgres: &Arc<Postgres>) -> Both {
        let database = postgres.database().with_keyed_outbox();
        let server = NatsServer::start();
        server.add_stream(STREAM, &["events.>"], json!({ "duplicate_window": DAY }));
        let (receiver, witness) = (Receiver::lean(), PgWitness::on(postgres.port()));
        let (hook_link, bus) = (Proxy::to(receiver.port()), NatsWitness::on(server.port()));
        let confirmed_before = database.confirmed_flush();
        Both { witness, hook_link, bus, receiver, server, database, confirmed_before }
    }

    /// Both sinks take everything; `timeout` is that of an attempt.
    pub fn setup(&self, timeout: &str) -> Setup {
        let delivery = format!("timeout: {timeout}, retry: {{ initial: 20ms, max: 500ms, connection_max: 200ms }}");
        let nats = format!("servers: [\"127.0.0.1:{}\"], subject: \"events.{{event_type}}\"", self.bus.port());
        Setup::through(&self.database, self.witness.port())
            .keyed()
            .webhook_at("hook", &format!("http://127.0.0.1:{}/hook", self.hook_link.port()), &delivery)
            .sink(&format!("bus: {{ nats: {{ {nats} }}, delivery: {{ {delivery} }} }}"))
            .route("**", "[hook, bus]")
    }

    /// Events with a payload of so many bytes and more, of `keys` keys in turn, in one transaction.
    pub fn insert(&self, count: usize, keys: usize, bytes: usize) {
        self.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
             SELECT 'order.created', 'k' || i % {keys}, jsonb_build_object('i', i, 'pad', repeat('x', {bytes})) \
             FROM generate_series(1, {count}) i"
        ));
    }

    /// Different events that both have acknowledged, at the most.
    pub fn settled(&self) -> usize {
        self.receiver.settled_count().min(self.bus.settled_count())
    }

    /// SIGKILL; returns when nothing that the dead one has sent is still on its way.
    #[track_caller]
    pub fn kill(&self, walgate: &mut Walgate) {
        walgate.kill9();
        self.mend();
        self.hook_link.cut();
        self.bus.cut();
        self.receiver.wait_until_deserted();
        eventually(DEADLINE, "the dead one's link to NATS is gone", || self.bus.open_connections() == 0);
        self.witness.note_kill(self.database.confirmed_when_released());
        self.receiver.release_all();
        eventually(DEADLINE, "no answer is owed to the dead one", || self.receiver.in_flight() == 0);
    }

    /// Ends what was done to the links of the sinks.
    pub fn mend(&self) {
        for link in [&self.hook_link, &*self.bus] {
            link.drop_replies(false);
            link.black_hole(false);
            link.throttle(0);
            link.delay(std::time::Duration::ZERO);
            link.accept();
        }
    }

    /// Waits until both have everything that the ledger, or without one the outbox, holds, and the slot has confirmed
    /// it.
    #[track_caller]
    pub fn wait_for_all(&self, walgate: &mut Walgate) {
        let count: usize = self.database.value("SELECT count(*) FROM outbox_events").parse().expect("a number");
        // As long as it goes on, it may take its time.
        loop {
            let before = self.receiver.settled_count() + self.bus.settled_count();
            walgate.eventually("the sinks go on", || {
                self.settled() >= count || self.receiver.settled_count() + self.bus.settled_count() > before
            });
            if self.settled() >= count {
                break;
            }
        }
        let last = self.witness.log().commits.iter().map(|commit| commit.end).max().expect("commits");
        walgate.eventually("everything is confirmed", || self.witness.flush() >= last);
    }

    /// What the outbox holds, in the order of the commits as the witness saw them.
    pub fn committed(&self) -> Vec<Committed> {
        oracle::outbox(&self.database, &self.witness.log())
    }

    /// Both have received everything, whole and in order, and nothing else; the stream holds each event once; nothing
    /// was confirmed before both had acknowledged it.
    #[track_caller]
    pub fn assert_all(&self, committed: &[Committed]) -> Outcome {
        assert_eq!(self.receiver.bad_signatures(), Vec::<String>::new());
        let hook_repeats = oracle::assert_reconciled(committed, &self.receiver.receipts());
        let bus_repeats = oracle::assert_reconciled(committed, &self.bus.receipts());
        let stored_repeats = crate::nats::assert_stored(committed, &self.server.stored(STREAM));
        assert_eq!(stored_repeats, 0, "repeats within the stream's window were stored");
        let (by_hook, by_bus) = (self.receiver.all_settled(), self.bus.all_settled());
        let log = self.witness.log();
        oracle::assert_wire(&log, self.confirmed_before, |id| Some(*by_hook.get(id)?.max(by_bus.get(id)?)));
        Outcome { events: committed.len(), hook_repeats, bus_repeats, stored_repeats, statuses: log.statuses.len() }
    }
}
