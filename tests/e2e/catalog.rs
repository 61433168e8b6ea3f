//! The catalog watch: what keeps committed events from coming while the stream is up is seen within ten seconds, named, and
//! mended by the SQL that the text gives.

use std::time::{Duration, Instant};

use walgate::control::parking::create_sql;

use crate::rig::Rig;
use crate::support::postgres::{Options, Postgres, ROLE};
use crate::support::wait::{DEADLINE, eventually, within};
use crate::support::walgate::Walgate;

/// Ten seconds, on a machine that has other things to do.
const SOON: Duration = Duration::from_secs(20);

struct Watched {
    rig: Rig,
    walgate: Walgate,
}

impl Watched {
    fn new() -> Watched {
        let rig = Rig::new();
        create_sql(ROLE).iter().for_each(|statement| drop(rig.database.sql(statement)));
        let mut walgate = rig.run();
        let id = rig.insert("a");
        rig.wait_confirmed(&mut walgate, &id);
        let mut watched = Watched { rig, walgate };
        watched.wait_ok();
        watched
    }

    fn ready(&self) -> (u16, String) {
        self.walgate.page("/readyz").unwrap_or_default()
    }

    fn wait_ok(&mut self) {
        let Watched { rig, walgate } = self;
        walgate.eventually("the catalogs are in order", || {
            rig.database.value("SELECT count(catalog) FROM walgate.gateway") == "1"
        });
        eventually(DEADLINE, "the catalogs are in order", || {
            self.walgate.metric("walgate_catalog_ok", &[]) == Some(1.0)
        });
        assert_eq!(self.ready().0, 200, "{}", self.ready().1);
    }

    fn birth(&self) -> String {
        self.rig.database.value("SELECT birth || ' ' || past_settled FROM walgate.gateway")
    }

    /// It is seen, said everywhere, and the text holds the SQL.
    fn wait_broken(&self, says: &[&str]) -> String {
        let begun = Instant::now();
        let seen = within(SOON, || self.ready().0 == 503);
        let (code, page) = self.ready();
        assert!(seen, "{code} after {:?}: {page}\n{}", begun.elapsed(), self.walgate.said());
        for text in says.iter().chain(&["committed events may not be seen"]) {
            assert!(page.contains(text), "{text:?} is not in {page}");
        }
        assert_eq!(self.walgate.metric("walgate_catalog_ok", &[]), Some(0.0));
        let status = self.walgate.status().expect("a status");
        assert_eq!(status["catalog"]["ok"], false, "{status}");
        status["catalog"]["findings"][0].as_str().expect("a finding").to_owned()
    }

    /// Runs what the text says, as it stands there.
    fn mend(&mut self, finding: &str) {
        let sql: Vec<&str> = finding.lines().filter(|line| line.starts_with("    ")).collect();
        assert!(!sql.is_empty(), "no SQL in {finding}");
        self.rig.database.sql(&sql.join("\n"));
        self.wait_ok();
    }

    /// A fresh event comes, and nothing that is not settled counts as such.
    fn goes_on(&mut self, birth: &str) {
        let rig = &self.rig;
        let id = rig.insert("z");
        self.walgate.eventually("a fresh event arrives", || rig.receiver.has(&id));
        let (walgate, rig) = (&mut self.walgate, &self.rig);
        walgate.eventually("a new life has begun", || {
            rig.database.value("SELECT birth || ' ' || past_settled FROM walgate.gateway") != birth
        });
    }
}

fn has_15(rig: &Rig) -> bool {
    rig.database.value("SELECT current_setting('server_version_num')::int >= 150000") == "t"
}

#[test]
fn s14_a_table_that_was_made_again_is_seen_and_mended() {
    let mut watched = Watched::new();
    let birth = watched.birth();
    let database = &watched.rig.database;
    database.sql("ALTER TABLE outbox_events RENAME TO before; CREATE TABLE outbox_events (LIKE before INCLUDING ALL)");
    database.sql(&format!("ALTER PUBLICATION {} DROP TABLE before", database.publication));
    let finding = watched.wait_broken(&["ALTER PUBLICATION", "ADD TABLE", "outbox_events"]);
    let line = watched.walgate.wait_log(&["events may be committed that walgate never sees"]);
    assert!(line.contains("in_order_until"), "{line}");
    watched.mend(&finding);
    watched.walgate.wait_log(&["the outbox's way into the stream has changed"]);
    watched.goes_on(&birth);
}

#[test]
fn s13_s15_filters_lists_and_kinds_of_changes_are_seen_and_mended() {
    let mut watched = Watched::new();
    let publication = watched.rig.database.publication.clone();
    let changes = [
        (format!("ALTER PUBLICATION {publication} DROP TABLE outbox_events"), "is not in publication"),
        (format!("ALTER PUBLICATION {publication} SET (publish = 'update')"), "inserts"),
        (
            format!("ALTER PUBLICATION {publication} SET TABLE outbox_events WHERE (event_type <> 'order.created')"),
            "filter",
        ),
        (format!("ALTER PUBLICATION {publication} SET TABLE outbox_events (id, event_type)"), "payload"),
    ];
    // Row filters and column lists came with 15.
    let known = if has_15(&watched.rig) { changes.len() } else { 2 };
    for (change, says) in changes.into_iter().take(known) {
        let birth = watched.birth();
        watched.rig.database.sql(&change);
        let finding = watched.wait_broken(&[says]);
        watched.mend(&finding);
        watched.goes_on(&birth);
    }
}

/// Two changes between two looks that undo each other, and that leave no trace but the rows of the catalogs.
#[test]
fn what_was_undone_between_two_looks_is_seen() {
    let mut watched = Watched::new();
    let publication = watched.rig.database.publication.clone();
    for change in [
        format!(
            "ALTER PUBLICATION {publication} DROP TABLE outbox_events; \
             INSERT INTO outbox_events (event_type, payload) VALUES ('order.created', '{{}}'); \
             ALTER PUBLICATION {publication} ADD TABLE outbox_events"
        ),
        format!(
            "ALTER PUBLICATION {publication} SET (publish = 'update'); ALTER PUBLICATION {publication} SET (publish = 'insert')"
        ),
    ] {
        let birth = watched.birth();
        watched.rig.database.sql(&change);
        watched.walgate.wait_log(&["the outbox's way into the stream has changed"]);
        watched.goes_on(&birth);
        watched.wait_ok();
    }
    // And what is none of its business is not.
    let birth = watched.birth();
    watched.rig.database.sql(
        "GRANT SELECT ON outbox_events TO PUBLIC; CREATE INDEX ON outbox_events (event_type); \
         ALTER TABLE outbox_events ADD COLUMN note text",
    );
    watched.rig.database.sql("VACUUM FULL outbox_events");
    let looks = || watched.walgate.status().and_then(|status| status["catalog"]["checked_seconds_ago"].as_f64());
    let before = looks().expect("a look");
    eventually(DEADLINE, "it has looked", || looks().is_some_and(|ago| ago < before));
    eventually(DEADLINE, "and again", || looks().is_some_and(|ago| ago > 1.0));
    eventually(DEADLINE, "and again", || looks().is_some_and(|ago| ago < 1.0));
    assert_eq!(watched.birth(), birth);
}

/// Where the publication does not name the table, PostgreSQL lets it become UNLOGGED.
#[test]
fn a_table_that_was_unlogged_for_a_moment_is_seen() {
    let rig = Rig::new();
    if !has_15(&rig) {
        // There, only a publication of all tables does not name it, and that one takes in walgate's own.
        return;
    }
    create_sql(ROLE).iter().for_each(|statement| drop(rig.database.sql(statement)));
    let publication = rig.database.publication.clone();
    rig.database.sql(&format!(
        "SELECT pg_drop_replication_slot('{}'); DROP PUBLICATION {publication}; \
         CREATE PUBLICATION {publication} FOR TABLES IN SCHEMA public WITH (publish = 'insert')",
        rig.database.slot
    ));
    rig.database.create_slot();
    let walgate = rig.run();
    let mut watched = Watched { rig, walgate };
    watched.wait_ok();
    let birth = watched.birth();
    watched.rig.database.sql("ALTER TABLE outbox_events SET UNLOGGED");
    watched.rig.database.sql("ALTER TABLE outbox_events SET LOGGED");
    watched.walgate.wait_log(&["the outbox's way into the stream has changed", "made again, rewritten"]);
    watched.goes_on(&birth);
}

/// While walgate is down too.
#[test]
fn what_was_undone_while_walgate_was_down_is_seen_at_the_start() {
    let watched = Watched::new();
    let birth = watched.birth();
    let Watched { rig, walgate } = watched;
    walgate.terminate();
    walgate.wait_for_end(DEADLINE).expect(0, &[]);
    let publication = &rig.database.publication;
    rig.database.sql(&format!("ALTER PUBLICATION {publication} DROP TABLE outbox_events"));
    rig.database.sql(&format!("ALTER PUBLICATION {publication} ADD TABLE outbox_events"));
    let mut walgate = rig.run();
    walgate.wait_log(&["the outbox's way into the stream has changed"]);
    let mut watched = Watched { rig, walgate };
    watched.goes_on(&birth);
}

/// A slot that somebody has forgotten keeps WAL for ever.
#[test]
fn a_slot_that_nobody_reads_is_named_with_the_sql_that_drops_it() {
    let server = Postgres::start(Options::default());
    let rig = Rig::on(&server);
    let mut walgate = rig.run();
    rig.database.sql("SELECT pg_create_physical_replication_slot('forgotten', true)");
    rig.database
        .sql("SELECT pg_logical_emit_message(false, 'noise', repeat('x', 1000000)) FROM generate_series(1, 40)");
    let seen = |walgate: &Walgate| {
        (walgate.metric("walgate_idle_slots", &[]), walgate.status().map(|status| status["idle_slots"].to_string()))
    };
    let named = within(SOON, || seen(&walgate).0 == Some(1.0));
    assert!(named, "{:?}", seen(&walgate));
    let (_, said) = seen(&walgate);
    let said = said.expect("a status");
    for text in ["`forgotten` is not being read", "MiB of WAL", "SELECT pg_drop_replication_slot('forgotten');"] {
        assert!(said.contains(text), "{said}");
    }
    let much = || walgate.metric("walgate_idle_slots_retained_bytes", &[]) > Some(40_000_000.0);
    eventually(DEADLINE, "all that it keeps is counted", much);
    rig.database.sql("SELECT pg_drop_replication_slot('forgotten')");
    walgate.eventually("it is gone", || rig.database.value("SELECT count(*) FROM pg_replication_slots") == "1");
    eventually(DEADLINE, "and forgotten", || seen(&walgate) == (Some(0.0), Some("[]".to_owned())));
}
