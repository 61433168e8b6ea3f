//! The clean-up of settled rows: what may go goes, and nothing else, whatever happens. A trigger on the outbox refuses to
//! let walgate delete or change a row that the receiver has not acknowledged: the receiver writes that down in the same
//! database before it answers.

mod crashes;
mod guards;
mod modes;
mod plans;
mod sweeper;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use walgate::control::parking::create_sql;

use crate::support::database::Database;
use crate::support::postgres::{Options, Postgres, ROLE};
use crate::support::receiver::{Answer, Receiver, ok, reply};
use crate::support::sql::Sql;
use crate::support::wait::watch_for;
use crate::support::walgate::{Setup, Walgate};

/// What the trigger says. It must stand in no log.
const UNSETTLED: &str = "ROW THAT IS NOT SETTLED";

/// The keyed outbox, with what the tests need beside it: an index by age, a mark, and the trigger.
const TABLE: &str = "\
CREATE TABLE outbox_events (
  id UUID NOT NULL DEFAULT gen_random_uuid(), event_type TEXT, aggregate_id TEXT, payload JSONB,
  headers JSONB, created_at TIMESTAMPTZ DEFAULT now(), published BOOLEAN DEFAULT false)";
const INDEXES: &str = "\
CREATE INDEX outbox_age ON outbox_events (created_at);
CREATE INDEX outbox_unmarked ON outbox_events (created_at) WHERE published IS NOT TRUE;";
const BESIDE: &str = "\
CREATE TABLE ledger (id UUID PRIMARY KEY, key TEXT, n BIGINT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE acknowledged (id UUID PRIMARY KEY);
CREATE FUNCTION only_settled() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
  IF session_user <> 'postgres' AND NOT EXISTS (SELECT FROM public.acknowledged a WHERE a.id = OLD.id) THEN
    RAISE EXCEPTION 'ROW THAT IS NOT SETTLED: % in %', OLD.id, current_database();
  END IF;
  RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END; END $$;
CREATE TRIGGER only_settled BEFORE DELETE OR UPDATE ON outbox_events FOR EACH ROW EXECUTE FUNCTION only_settled();";

/// A receiver that writes down what it acknowledges, or takes nothing.
struct Clerk {
    receiver: Receiver,
    taking: Arc<AtomicBool>,
}

impl Clerk {
    fn new(database: &Database) -> Clerk {
        let receiver = Receiver::start();
        let taking = Arc::new(AtomicBool::new(true));
        let (server, name) = (database.server.clone(), database.name.clone());
        let connection: Mutex<Option<Sql>> = Mutex::default();
        let takes = taking.clone();
        receiver.script(move |request| {
            if !takes.load(Ordering::SeqCst) {
                return reply(503).into();
            }
            let mut connection = connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let open = connection.take_if(|open| !open.is_closed());
            let open = open.or_else(|| {
                let open = Sql::superuser(&server.sockets(), server.port(), &name).ok()?;
                open.try_run("SET synchronous_commit = on").ok()?;
                Some(open)
            });
            let Some(open) = open else { return reply(503).into() };
            let written =
                open.try_run(&format!("INSERT INTO acknowledged VALUES ('{}') ON CONFLICT DO NOTHING", request.id));
            *connection = Some(open);
            written.map_or_else(|_| reply(503).into(), |_| -> Answer { ok() })
        });
        Clerk { receiver, taking }
    }

    fn take(&self, takes: bool) {
        self.taking.store(takes, Ordering::SeqCst);
    }
}

/// A server for these tests alone: who else holds a transaction open holds marks back everywhere.
fn server() -> Arc<Postgres> {
    static SERVER: OnceLock<Arc<Postgres>> = OnceLock::new();
    SERVER.get_or_init(|| Postgres::start(Options::default())).clone()
}

/// A database with an outbox, and who reads it. Dropped in this order: those who talk before those who are talked to.
struct Yard {
    clerk: Clerk,
    database: Database,
}

impl Yard {
    fn new() -> Yard {
        Yard::on(&server())
    }

    fn on(server: &Arc<Postgres>) -> Yard {
        Yard::with(server, TABLE, INDEXES)
    }

    /// Another outbox table.
    fn with(server: &Arc<Postgres>, table: &str, more: &str) -> Yard {
        let database = server.database();
        database.sql(&format!("{table}; {more} {BESIDE}"));
        database.publish();
        database.create_slot();
        create_sql(ROLE).iter().for_each(|statement| drop(database.sql(statement)));
        database.sql(&format!("GRANT SELECT, DELETE, UPDATE ON outbox_events TO {ROLE}"));
        Yard { clerk: Clerk::new(&database), database }
    }

    /// Everything goes to the clerk; `cleanup` is the inside of `cleanup: { }`.
    fn setup(&self, cleanup: &str) -> Setup {
        Setup::of(&self.database)
            .keyed()
            .webhook("hook", &self.clerk.receiver)
            .sink("nothing: { discard: {} }")
            .route("order.*", "hook")
            .route("push", "nothing")
            .more(&format!("cleanup: {{ {cleanup} }}"))
    }

    /// A walgate that has found no row from before the slot.
    fn run(&self, cleanup: &str) -> Walgate {
        let mut walgate = Walgate::run(&self.setup(cleanup));
        self.wait_begun(&mut walgate);
        walgate
    }

    fn wait_begun(&self, walgate: &mut Walgate) {
        walgate.wait_log(&["no row from before the slot is owed"]);
    }

    fn insert(&self, key: &str) -> String {
        self.database.insert("order.created", key, r#"{"total": 1}"#)
    }

    fn insert_many(&self, count: usize) {
        self.database.sql(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) \
             SELECT 'order.created', 'k' || i % 50, jsonb_build_object('i', i) FROM generate_series(1, {count}) i"
        ));
    }

    fn rows(&self) -> usize {
        self.number("SELECT count(*) FROM outbox_events")
    }

    fn number(&self, sql: &str) -> usize {
        self.database.value(sql).parse().expect("a number")
    }

    /// Waits while other events are settled, which is what lets the checkpoint pass a mark.
    #[track_caller]
    fn wait(&self, walgate: &mut Walgate, what: &str, condition: impl FnMut() -> bool) {
        let mut condition = condition;
        let mut noise = Instant::now();
        walgate.eventually(what, || {
            if noise.elapsed() > Duration::from_millis(400) {
                noise = Instant::now();
                let _ = self.database.connection().try_run(PUSH);
            }
            condition()
        });
    }

    #[track_caller]
    fn wait_rows(&self, walgate: &mut Walgate, rows: usize) {
        self.wait(walgate, &format!("the outbox has {rows} rows"), || self.rows() == rows);
    }

    /// Waits until the checkpoint has passed a mark from now.
    fn pass_mark(&self, walgate: &mut Walgate) {
        let mark = "SELECT COALESCE(max(mark_lsn), '0/0') FROM walgate.gateway";
        let written = self.database.wal_position().to_string();
        self.wait(walgate, "a mark is passed", || self.number(&format!("SELECT (({mark}) > '{written}')::int")) == 1);
    }

    /// Waits until the clean-up has looked at the table with a mark from now: what may go has gone.
    fn let_it_sweep(&self, walgate: &mut Walgate) {
        self.pass_mark(walgate);
        let now = self.database.value("SELECT now()");
        self.wait(walgate, "a round with it is done", || {
            self.number(&format!(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%-cleanup' AND state = 'idle' \
                 AND datname = current_database() AND query_start > '{now}' AND query LIKE '%behind%'"
            )) == 1
        });
    }

    /// While something holds the checkpoint: as much time as a round would take.
    fn push_for_a_while(&self) {
        for _ in 0..8 {
            self.database.sql(PUSH);
            watch_for(Duration::from_millis(400));
        }
    }

    /// Nothing that was not settled was touched.
    #[track_caller]
    fn assert_clean(&self, walgate: &Walgate) {
        assert!(!walgate.stderr().contains(UNSETTLED), "{}", walgate.said());
        let log = self.database.server.log();
        let name = format!("in {}", self.database.name);
        let line = log.lines().find(|line| line.contains(UNSETTLED) && line.ends_with(&name));
        assert_eq!(line, None);
    }
}

/// An event that is settled at once, and leaves no row: with it the checkpoint passes marks.
const PUSH: &str = "INSERT INTO outbox_events (event_type, payload) VALUES ('push', '{}'); \
                    DELETE FROM outbox_events WHERE event_type = 'push'";

fn cleanup_status(walgate: &Walgate) -> serde_json::Value {
    walgate.status().map(|status| status["cleanup"].clone()).unwrap_or_default()
}
