//! The usual arrangement: PostgreSQL, a witness on its link, walgate, one webhook receiver.

use std::sync::Arc;

use crate::support::database::Database;
use crate::support::lsn::Lsn;
use crate::support::oracle::{self, Committed};
use crate::support::postgres::{Options, Postgres};
use crate::support::receiver::Receiver;
use crate::support::walgate::{Setup, Walgate};
use crate::support::witness::PgWitness;

/// See the module. Its fields are dropped in this order: those who talk before those who are talked to.
pub struct Rig {
    pub witness: PgWitness,
    pub receiver: Receiver,
    pub database: Database,
    /// What the slot had confirmed before the first connection.
    pub confirmed_before: Lsn,
}

impl Rig {
    /// The keyed outbox, in a database on the shared server.
    pub fn new() -> Rig {
        Rig::on(&Postgres::shared())
    }

    /// The keyed outbox, on a server of the test's own.
    pub fn alone() -> Rig {
        Rig::on(&Postgres::start(Options::default()))
    }

    pub fn on(server: &Arc<Postgres>) -> Rig {
        Rig::with(server.database().with_keyed_outbox())
    }

    pub fn with(database: Database) -> Rig {
        let witness = PgWitness::on(database.server.port());
        let confirmed_before = database.confirmed_flush();
        Rig { witness, receiver: Receiver::start(), database, confirmed_before }
    }

    /// The keyed outbox through the witness; sinks and routes are still to come.
    pub fn source(&self) -> Setup {
        Setup::through(&self.database, self.witness.port()).keyed()
    }

    /// Everything goes to the receiver.
    pub fn setup(&self) -> Setup {
        self.source().webhook("hook", &self.receiver).route("**", "hook")
    }

    pub fn run(&self) -> Walgate {
        Walgate::run(&self.setup())
    }

    /// SIGKILL; returns when nothing that the dead one has sent is still on its way.
    #[track_caller]
    pub fn kill(&self, walgate: &mut Walgate) {
        walgate.kill9();
        self.receiver.wait_until_deserted();
        self.witness.note_kill(self.database.confirmed_when_released());
    }

    /// Inserts an event with a payload of its own; its id.
    #[track_caller]
    pub fn insert(&self, key: &str) -> String {
        self.database.insert("order.created", key, r#"{"total": 1}"#)
    }

    /// Waits until the slot has confirmed the event's commit.
    #[track_caller]
    pub fn wait_confirmed(&self, walgate: &mut Walgate, id: &str) {
        walgate.eventually(&format!("the slot confirms event {id}"), || {
            let log = self.witness.log();
            log.commit_end(id).is_some_and(|end| log.flush() >= end)
        });
        let end = self.witness.commit_end(id);
        walgate.eventually("PostgreSQL has read that status", || self.database.confirmed_flush() >= end);
    }

    /// Waits until the receiver has acknowledged this many different events.
    #[track_caller]
    pub fn wait_settled(&self, walgate: &mut Walgate, count: usize) {
        walgate.eventually(&format!("{count} events are acknowledged"), || self.receiver.settled_count() >= count);
    }

    /// Everything in the outbox was received whole and in order, nothing else was, signatures hold, and the wire is
    /// clean. Returns the repeats.
    #[track_caller]
    pub fn assert_all(&self) -> usize {
        let repeats = oracle::assert_reconciled(&self.committed(), &self.receiver.receipts());
        assert_eq!(self.receiver.bad_signatures(), Vec::<String>::new());
        self.assert_wire();
        repeats
    }

    /// Nothing was confirmed before the receiver had acknowledged it.
    #[track_caller]
    pub fn assert_wire(&self) {
        let settled = self.receiver.all_settled();
        oracle::assert_wire(&self.witness.log(), self.confirmed_before, |id| settled.get(id).copied());
    }

    /// The events in the outbox, in the order of the commits as the witness saw them.
    #[track_caller]
    pub fn committed(&self) -> Vec<Committed> {
        oracle::outbox(&self.database, &self.witness.log())
    }

    /// The flush LSN has not passed this event.
    #[track_caller]
    pub fn assert_not_passed(&self, id: &str) {
        let log = self.witness.log();
        let row = log.first_rows().find(|row| &*row.id == id).expect("an event that was sent");
        assert!(log.flush() <= row.commit_lsn, "flush LSN {} has passed {id} at {}", log.flush(), row.commit_lsn);
    }
}
