//! The consumers' own databases, as the tests read them.

use crate::rig::Rig;
use crate::support::processes::Process;
use crate::support::sql::Sql;
use crate::support::wait::{DEADLINE, eventually};

/// See the module.
pub trait Ledger {
    /// What keeps the consumer from writing until it is dropped.
    type Hold;

    /// Whether the consumer has made its tables.
    fn is_made(&self) -> bool;

    /// From now on every take is counted, those of repeats too.
    fn count_takes(&self);

    fn hold(&self) -> Self::Hold;

    /// Returns when the consumer is within a transaction that the hold keeps from going on.
    fn wait_until_held(&self, consumer: &mut Process);

    fn done(&self) -> Done;
}

/// What a consumer has done.
#[derive(Debug)]
pub struct Done {
    pub effects: usize,
    /// Ids in the inbox.
    pub events: usize,
    pub takes: usize,
}

/// A database of the consumers in Rust, on the rig's PostgreSQL.
pub struct Totals<'a> {
    rig: &'a Rig,
    database: String,
    reader: Sql,
}

impl Totals<'_> {
    pub fn new(rig: &Rig) -> Totals<'_> {
        let database = format!("{}_inbox", rig.database.name);
        rig.database.server.sql(&format!("CREATE DATABASE {database}"));
        let reader = rig.database.server.client(&database);
        Totals { rig, database, reader }
    }

    /// Its address, for a consumer.
    pub fn url(&self) -> String {
        let postgres = &self.rig.database.server;
        format!("host={} port={} dbname={} user=postgres", postgres.sockets().display(), postgres.port(), self.database)
    }
}

impl Ledger for Totals<'_> {
    type Hold = Sql;

    fn is_made(&self) -> bool {
        self.reader.value("SELECT to_regclass('totals') IS NOT NULL") == "t"
    }

    fn count_takes(&self) {
        // A sequence keeps what a transaction that is rolled back has counted.
        self.reader.run(
            "CREATE SEQUENCE takes; \
             CREATE FUNCTION count_take() RETURNS trigger LANGUAGE plpgsql AS \
             'BEGIN PERFORM nextval(''takes''); RETURN NEW; END'; \
             CREATE TRIGGER count_take BEFORE INSERT ON inbox FOR EACH ROW EXECUTE FUNCTION count_take()",
        );
    }

    fn hold(&self) -> Sql {
        let holder = self.rig.database.server.client(&self.database);
        holder.run("BEGIN; LOCK TABLE totals IN SHARE MODE");
        holder
    }

    fn wait_until_held(&self, _: &mut Process) {
        let waiting = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND relation = 'totals'::regclass";
        eventually(DEADLINE, "the consumer waits within a transaction", || self.reader.value(waiting) == "t");
    }

    fn done(&self) -> Done {
        let rows = self.reader.run(
            "SELECT coalesce(sum(events), 0), (SELECT count(*) FROM inbox), (SELECT last_value FROM takes) FROM totals",
        );
        let number = |at: usize| rows[0][at].as_deref().and_then(|text| text.parse().ok()).expect("a number");
        Done { effects: number(0), events: number(1), takes: number(2) }
    }
}
