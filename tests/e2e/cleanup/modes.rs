//! Marks, and partitions.

use super::{Yard, cleanup_status, server};
use crate::support::postgres::ROLE;
use crate::support::sql::Sql;
use crate::support::wait::{DEADLINE, eventually};
use crate::support::walgate::Walgate;

#[test]
fn rows_are_marked_once_and_only_when_they_are_settled() {
    let yard = Yard::new();
    let mut walgate = yard.run("mode: mark, retain: 0s, pause: 10ms, batch: 7");
    yard.insert_many(50);
    let marked = || yard.number("SELECT count(*) FROM outbox_events WHERE published");
    yard.wait(&mut walgate, "all are marked", || marked() == 50);
    yard.clerk.take(false);
    yard.insert_many(25);
    yard.push_for_a_while();
    assert_eq!((yard.rows(), marked()), (75, 50));
    yard.clerk.take(true);
    yard.wait(&mut walgate, "the rest is marked", || marked() == 75);
    assert_eq!(walgate.metric("walgate_cleanup_rows_total", &["mode=\"mark\""]), Some(75.0), "each once");
    assert_eq!(yard.clerk.receiver.settled_count(), 75);
    yard.assert_clean(&walgate);
}

const PARTITIONED: &str = "\
CREATE TABLE outbox_events (
  id UUID NOT NULL DEFAULT gen_random_uuid(), event_type TEXT, aggregate_id TEXT, payload JSONB,
  headers JSONB, created_at TIMESTAMPTZ DEFAULT now(), published BOOLEAN DEFAULT false) PARTITION BY ";

/// Partitions of a day: three days ago, two days ago, today and on, and what fits nowhere.
fn days() -> String {
    let day = |name: &str, from: &str, to: &str| {
        format!(
            "EXECUTE format('CREATE TABLE outbox_{name} PARTITION OF outbox_events FOR VALUES FROM (%L) TO (%L)', {from}, {to});"
        )
    };
    let today = "date_trunc('day', now())";
    let ago = |days: u32| format!("{today} - interval '{days} days'");
    let days = [
        day("three", &ago(3), &ago(2)),
        day("two", &ago(2), &ago(1)),
        day("today", &ago(1), &format!("{today} + interval '1 day'")),
        day("tomorrow", &format!("{today} + interval '1 day'"), &format!("{today} + interval '2 days'")),
    ];
    format!(
        "DO $$ BEGIN {} EXECUTE 'CREATE TABLE outbox_rest PARTITION OF outbox_events DEFAULT'; END $$; \
         CREATE INDEX ON outbox_events (created_at);",
        days.join(" ")
    )
}

fn partitioned() -> Yard {
    let yard = Yard::with(&server(), &format!("{PARTITIONED} RANGE (created_at)"), &days());
    let name = &yard.database.publication;
    yard.database.sql(&format!("ALTER PUBLICATION {name} SET (publish_via_partition_root = true)"));
    // The slot must not have to read from before that.
    let slot = &yard.database.slot;
    yard.database.sql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
    yard.database.create_slot();
    for leaf in ["three", "two", "today", "tomorrow", "rest"] {
        yard.database.sql(&format!("GRANT SELECT, DELETE, UPDATE ON outbox_{leaf} TO {ROLE}"));
    }
    yard
}

fn insert(yard: &Yard, days_ago: u32, count: usize) {
    yard.database.sql(&format!(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, created_at) \
         SELECT 'order.created', 'k' || i, '{{}}', date_trunc('day', now()) - interval '{days_ago} days' + interval '1 hour' \
         FROM generate_series(1, {count}) i"
    ));
}

/// Somebody holds a lock on a partition, as who writes to it does.
fn locked(yard: &Yard, leaf: &str) -> Sql {
    let client = yard.database.client();
    client.run(&format!("BEGIN; LOCK TABLE outbox_{leaf} IN ROW EXCLUSIVE MODE"));
    client
}

fn leaves(yard: &Yard) -> Vec<String> {
    let rows = yard.database.sql(
        "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
         WHERE i.inhparent = 'outbox_events'::regclass ORDER BY 1",
    );
    rows.into_iter().filter_map(|row| row.into_iter().next()?).map(|name| name.replace("outbox_", "")).collect()
}

#[test]
fn rows_of_partitions_are_deleted_where_they_are() {
    let yard = partitioned();
    let mut walgate = yard.run("mode: delete, retain: 1d, pause: 10ms, batch: 7");
    insert(&yard, 3, 20);
    insert(&yard, 2, 20);
    insert(&yard, 30, 20);
    yard.insert_many(20);
    yard.wait_rows(&mut walgate, 20);
    assert_eq!(yard.number("SELECT count(*) FROM outbox_today"), 20);
    yard.assert_clean(&walgate);
}

/// A partition goes when it is over, old enough, and all of it is settled; not the default one, nor one that waits for
/// its day, nor one that an open transaction has written to.
#[test]
fn whole_partitions_go_when_all_of_them_is_settled() {
    let yard = partitioned();
    yard.database.sql(&format!("GRANT CREATE ON SCHEMA public TO {ROLE}"));
    for table in ["events", "three", "two", "today", "tomorrow", "rest"] {
        yard.database.sql(&format!("ALTER TABLE outbox_{table} OWNER TO {ROLE}"));
    }
    let setup = yard.setup("mode: drop_partitions, retain: 12h, pause: 10ms");
    // They are empty, and would go at once.
    let locked = ["three", "two"].map(|leaf| locked(&yard, leaf));
    let mut walgate = Walgate::run(&setup);
    yard.wait_begun(&mut walgate);
    let open = yard.database.client();
    open.run(
        "BEGIN; INSERT INTO outbox_events (event_type, aggregate_id, payload, created_at) \
         VALUES ('order.created', 'open', '{}', date_trunc('day', now()) - interval '3 days' + interval '2 hours')",
    );
    insert(&yard, 3, 20);
    locked[0].run("COMMIT");
    insert(&yard, 30, 5);
    yard.insert_many(10);
    walgate.eventually("they are delivered", || yard.clerk.receiver.settled_count() == 35);
    yard.push_for_a_while();
    assert_eq!(yard.number("SELECT count(*) FROM outbox_three"), 20, "somebody writes to it");
    yard.clerk.take(false);
    insert(&yard, 2, 20);
    locked[1].run("COMMIT");
    open.run("COMMIT");
    yard.push_for_a_while();
    assert_eq!(leaves(&yard), ["rest", "three", "today", "tomorrow", "two"], "owed to the sink");
    let said = Walgate::command(&setup, &["cleanup", "--dry-run", "--config", "{config}"]);
    said.expect(0, &["not all of its rows are settled", "it is the default partition"]);
    yard.clerk.take(true);
    yard.wait(&mut walgate, "two partitions have gone", || leaves(&yard) == ["rest", "today", "tomorrow"]);
    assert_eq!(yard.rows(), 15);
    let gone = |walgate: &Walgate| walgate.metric("walgate_cleanup_rows_total", &["mode=\"drop_partitions\""]);
    eventually(DEADLINE, "they are counted", || gone(&walgate) == Some(41.0));
    assert_eq!(yard.clerk.receiver.settled_count(), 56);
    yard.assert_clean(&walgate);
}

#[test]
fn a_partition_is_detached_where_that_is_asked_for() {
    let yard = partitioned();
    yard.database.sql(&format!("GRANT CREATE ON SCHEMA public TO {ROLE}"));
    for table in ["events", "three", "two", "today", "tomorrow", "rest"] {
        yard.database.sql(&format!("ALTER TABLE outbox_{table} OWNER TO {ROLE}"));
    }
    let locked = locked(&yard, "three");
    let mut walgate = yard.run("mode: drop_partitions, detach: true, retain: 12h, pause: 10ms");
    insert(&yard, 3, 20);
    locked.run("COMMIT");
    yard.wait(&mut walgate, "the old ones are detached", || leaves(&yard) == ["rest", "today", "tomorrow"]);
    assert_eq!(yard.number("SELECT count(*) FROM outbox_three"), 20);
    yard.assert_clean(&walgate);
}

/// To mark a row would move it: that is an insert, which would be delivered again.
#[test]
fn a_table_that_is_partitioned_by_the_mark_is_not_marked() {
    let table = format!("{PARTITIONED} LIST (published)");
    let more = "CREATE TABLE outbox_new PARTITION OF outbox_events FOR VALUES IN (false, NULL); \
                CREATE TABLE outbox_done PARTITION OF outbox_events FOR VALUES IN (true);";
    let yard = Yard::with(&server(), &table, more);
    let name = &yard.database.publication;
    yard.database.sql(&format!(
        "ALTER PUBLICATION {name} SET (publish_via_partition_root = true); \
         SELECT pg_drop_replication_slot('{}')",
        yard.database.slot
    ));
    yard.database.create_slot();
    let mut walgate = Walgate::run(&yard.setup("mode: mark, retain: 0s"));
    walgate.wait_log(&["is partitioned by `published`", "would be delivered again"]);
    assert_eq!(cleanup_status(&walgate)["state"], "blocked");
}
