//! A database of a test's own, with an outbox in it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::lsn::Lsn;
use super::postgres::{PASSWORD, Postgres, ROLE};
use super::sql::{Row, Sql};

/// The seed's table, literally.
pub const SEED_TABLE: &str = "\
CREATE TABLE outbox_events (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(), event_type TEXT NOT NULL, payload JSONB NOT NULL,
  created_at TIMESTAMPTZ DEFAULT now(), published BOOLEAN DEFAULT false );";

/// The seed's table with an ordering key and headers; and a ledger, unpublished, of what was committed.
const KEYED_TABLE: &str = "\
CREATE TABLE outbox_events (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(), event_type TEXT, aggregate_id TEXT, payload JSONB,
  headers JSONB, created_at TIMESTAMPTZ DEFAULT now());
CREATE TABLE ledger (id UUID PRIMARY KEY, key TEXT, n BIGINT NOT NULL, hash TEXT NOT NULL);";

/// The columns of [`KEYED_TABLE`] for `outbox:`.
pub const KEYED_COLUMNS: &str = "outbox: { columns: { key: aggregate_id, headers: headers } }\n";

/// A database. At the end of the test its slots and itself are dropped.
pub struct Database {
    pub server: Arc<Postgres>,
    pub name: String,
    pub slot: String,
    pub publication: String,
    connection: Mutex<Option<Arc<Sql>>>,
}

impl Database {
    pub(super) fn create(server: Arc<Postgres>, encoding: &str) -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("shop_{n}");
        let admin = server.client("postgres");
        // Several tests at once: whoever comes second finds the role.
        let role = format!("CREATE ROLE {ROLE} LOGIN REPLICATION PASSWORD '{PASSWORD}'");
        let _ = admin.try_run(&role);
        admin.run(&format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'"));
        Database {
            server,
            name,
            slot: format!("slot_{n}"),
            publication: format!("walgate_outbox_{n}"),
            connection: Mutex::new(None),
        }
    }

    /// The seed's table, publication of its inserts, then the slot.
    pub fn with_seed_outbox(self) -> Database {
        self.sql(SEED_TABLE);
        self.publish();
        self.create_slot();
        self
    }

    /// The seed's table with `aggregate_id` and `headers` and nothing NOT NULL; a `ledger`; publication, then slot.
    pub fn with_keyed_outbox(self) -> Database {
        self.sql(KEYED_TABLE);
        self.publish();
        self.create_slot();
        self
    }

    pub fn publish(&self) {
        let publication = &self.publication;
        self.sql(&format!("CREATE PUBLICATION {publication} FOR TABLE outbox_events WITH (publish = 'insert')"));
    }

    pub fn create_slot(&self) {
        self.sql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", self.slot));
    }

    /// The superuser's connection of this database; a new one when the old one is gone.
    #[track_caller]
    pub fn connection(&self) -> Arc<Sql> {
        let mut connection = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match connection.as_ref() {
            Some(open) if !open.is_closed() => open.clone(),
            _ => connection.insert(Arc::new(self.server.client(&self.name))).clone(),
        }
    }

    /// A further connection, for a transaction of its own.
    #[track_caller]
    pub fn client(&self) -> Sql {
        self.server.client(&self.name)
    }

    /// Runs statements; an error fails the test.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> Vec<Row> {
        self.connection().run(statements)
    }

    /// The first column of the first row.
    #[track_caller]
    pub fn value(&self, statement: &str) -> String {
        self.connection().value(statement)
    }

    /// Inserts one event into the keyed outbox, in a transaction of its own; its id.
    #[track_caller]
    pub fn insert(&self, event_type: &str, key: &str, payload: &str) -> String {
        self.value(&format!(
            "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('{event_type}', '{key}', '{payload}') \
             RETURNING id"
        ))
    }

    /// Inserts one event into the seed's outbox; its id.
    #[track_caller]
    pub fn insert_seed(&self, event_type: &str, payload: &str) -> String {
        self.value(&format!(
            "INSERT INTO outbox_events (event_type, payload) VALUES ('{event_type}', '{payload}') RETURNING id"
        ))
    }

    /// What the slot has confirmed.
    #[track_caller]
    pub fn confirmed_flush(&self) -> Lsn {
        let slot = &self.slot;
        self.value(&format!("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{slot}'"))
            .parse()
            .expect("an LSN")
    }

    /// Where the next WAL record will be written.
    #[track_caller]
    pub fn wal_position(&self) -> Lsn {
        self.value("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN")
    }

    /// Whether a walsender streams from the slot.
    pub fn is_streaming(&self) -> bool {
        let slot = &self.slot;
        self.value(&format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active")) == "1"
    }

    /// Waits until nobody streams from the slot; what it has confirmed then.
    #[track_caller]
    pub fn confirmed_when_released(&self) -> Lsn {
        super::wait::eventually(super::wait::DEADLINE, "the dead client's walsender is gone", || !self.is_streaming());
        self.confirmed_flush()
    }

    /// `source:` of the configuration, on this port (the server's own, or a proxy's).
    pub fn source(&self, port: u16) -> String {
        let Database { name, slot, publication, .. } = self;
        format!(
            "source:\n  url: postgres://{ROLE}:{PASSWORD}@127.0.0.1:{port}/{name}?sslmode=disable\n  slot: {slot}\n  \
             publication: {publication}\n"
        )
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A server that a test has killed takes its databases with it.
        if self.server.pid().is_none() {
            return;
        }
        let Ok(admin) = Sql::superuser(&self.server.sockets(), self.server.port(), "postgres") else { return };
        let name = &self.name;
        let slots = format!("FROM pg_replication_slots WHERE database = '{name}'");
        // Nobody streams any more: walgate was ended before; what hangs on is ended here.
        super::wait::within(std::time::Duration::from_secs(10), || {
            let _ = admin.try_run(&format!("SELECT pg_terminate_backend(active_pid) {slots} AND active"));
            admin.try_run(&format!("SELECT pg_drop_replication_slot(slot_name) {slots}")).is_ok()
        });
        let _ = admin.try_run(&format!("DROP DATABASE {name} WITH (FORCE)"));
    }
}
