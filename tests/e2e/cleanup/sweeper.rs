//! The clean-up from inside: rounds as they are never asked for while the guards hold.

use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::{Config, NoTls};
use walgate::config::{Cleanup, CleanupMode};
use walgate::control::cleanup::{Plan, Round, Sweeper, SweeperError, place};
use walgate::control::{Link, Mark, TableName, gateway};
use walgate_sink::{HumanDuration, Lsn};

use super::{Yard, server};
use crate::support::postgres::{Options, Postgres};
use crate::support::wait::{DEADLINE, watch_for, within};

/// The slot's row as a gateway has left it: term 1.
const TERM: i64 = 1;

struct Bench {
    runtime: tokio::runtime::Runtime,
    yard: Yard,
    plan: Plan,
}

impl Bench {
    fn on(server: &Arc<Postgres>) -> Bench {
        let yard = Yard::on(server);
        yard.database.sql("DROP TRIGGER only_settled ON outbox_events");
        let slot = &yard.database.slot;
        yard.database.sql(&format!(
            "INSERT INTO walgate.gateway (slot, term, system_id, timeline, confirmed_lsn, birth, past_settled, written_at) \
             VALUES ('{slot}', {TERM}, '1', 1, '0/0', '3', true, now())"
        ));
        let cleanup =
            Cleanup { mode: CleanupMode::Delete, retain: HumanDuration(Duration::ZERO), ..Cleanup::default() };
        let plan = Plan { cleanup, table: TableName::new("public", "outbox_events"), slot: slot.clone() };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        Bench { runtime, yard, plan }
    }

    async fn link(&self) -> Link {
        let server = &self.yard.database.server;
        let mut config = Config::new();
        config.host_path(server.sockets()).port(server.port()).user("postgres").dbname(&self.yard.database.name);
        let (client, connection) = config.connect(NoTls).await.expect("a connection");
        Link::new(client, connection)
    }

    fn sweeper(&self, known: Option<Mark>) -> Sweeper {
        self.runtime.block_on(async {
            let Link { client, driver } = self.link().await;
            let driver = tokio::spawn(driver);
            let theirs = place(&client, &self.plan.table).await.expect("an answer").expect("a place");
            driver.abort();
            Sweeper::open(self.link().await, &self.plan, &theirs, || known).await.expect("a sweeper")
        })
    }

    /// A mark that is behind everything that has ended until now: transactions of other databases of the server hold marks
    /// back too.
    fn mark(&self) -> Mark {
        let begun: u64 =
            self.yard.database.value("SELECT pg_snapshot_xmax(pg_current_snapshot())").parse().expect("a number");
        let mut mark = self.take_mark();
        let reached = within(DEADLINE, || {
            mark = self.take_mark();
            mark.xmin >= begun
        });
        assert!(reached, "a transaction goes on that began before {begun}: {mark:?}");
        mark
    }

    fn take_mark(&self) -> Mark {
        self.runtime.block_on(async {
            let Link { client, driver } = self.link().await;
            let driver = tokio::spawn(driver);
            let mark = gateway::take_mark(&client).await.expect("a mark");
            driver.abort();
            mark
        })
    }

    fn round(&self, sweeper: &mut Sweeper, mark: Mark, term: i64) -> Result<Round, SweeperError> {
        self.runtime.block_on(sweeper.round(&self.plan, mark, term, 10))
    }
}

/// After a crash PostgreSQL hands out transaction numbers again that no WAL record on disk told of: a row that is written
/// then looks older than a mark of before. Such a mark is not taken; and were it taken, the row would go.
#[test]
fn s1_a_mark_of_before_a_crash_is_not_used() {
    // Nobody writes the log to disk unasked.
    let settings = vec!["wal_writer_delay=10s".to_owned()];
    let server = Postgres::start(Options { settings, ..Options::default() });
    let bench = Bench::on(&server);
    let yard = &bench.yard;
    // Somebody may write the log to disk all the same: then the numbers are not handed out again.
    let mark = (0..10)
        .find_map(|_| {
            // On disk; then numbers that only live in memory.
            yard.database.sql("CREATE TABLE flushed (); DROP TABLE flushed");
            let before = bench.sweeper(None);
            yard.database.sql(&"BEGIN; SELECT pg_current_xact_id(); ROLLBACK;".repeat(50));
            let mark = bench.mark();
            assert!(before.takes(mark), "it became known after the connection was made");
            server.kill9();
            server.start_again();
            assert!(within(DEADLINE, || before.is_closed()), "with the server's life its own has ended");
            yard.database.sql("DELETE FROM outbox_events");
            yard.insert("reused");
            let row: u64 = yard.database.value("SELECT xmin FROM outbox_events").parse().expect("a number");
            (row < mark.xmin).then_some(mark)
        })
        .expect("numbers that are handed out again, though the mark says that all before it is settled");
    let mut after = bench.sweeper(Some(mark));
    assert!(!after.takes(mark));
    assert!(after.takes(bench.mark()));
    let round = bench.round(&mut after, mark, TERM).expect("a round");
    assert_eq!((round.touched, yard.rows()), (0, 1), "the mark is from the future");
    for _ in 0..60 {
        yard.database.sql("SELECT pg_current_xact_id()");
    }
    let round = bench.round(&mut after, mark, TERM).expect("a round");
    assert_eq!((round.touched, yard.rows()), (1, 0), "the guard is needed");
}

#[test]
fn a_term_that_is_over_and_a_mark_that_cannot_be_touch_nothing() {
    let bench = Bench::on(&server());
    let yard = &bench.yard;
    yard.insert_many(5);
    let mut sweeper = bench.sweeper(None);
    let mark = bench.mark();
    let over = bench.round(&mut sweeper, mark, TERM + 1);
    assert!(matches!(over, Err(SweeperError::TermOver)), "{over:?}");
    // From the future, as one of before a crash may be; and from so far back that ages cannot be compared.
    for xmin in [mark.xmin + 1_000, mark.xmin + (1 << 31), mark.xmin + (1 << 32)] {
        let round = bench.round(&mut sweeper, Mark { xmin, lsn: Lsn(u64::MAX) }, TERM).expect("a round");
        assert_eq!((round.touched, yard.rows()), (0, 5), "{xmin}");
    }
    let row: u64 = yard.database.value("SELECT min(xmin::text::bigint) FROM outbox_events").parse().expect("a number");
    let round = bench.round(&mut sweeper, Mark { xmin: row, ..mark }, TERM).expect("a round");
    assert_eq!((round.touched, yard.rows()), (0, 5), "the row's own transaction is not older than the mark");
    yard.database.sql("UPDATE walgate.gateway SET past_settled = false");
    assert!(matches!(bench.round(&mut sweeper, mark, TERM), Err(SweeperError::TermOver)));
    yard.database.sql("UPDATE walgate.gateway SET past_settled = true");
    let round = bench.round(&mut sweeper, bench.mark(), TERM).expect("a round");
    assert_eq!((round.touched, yard.rows()), (5, 0));
}

/// A round waits for whoever changes a row, and then looks at what has become of it.
#[test]
fn a_row_that_is_updated_meanwhile_stays() {
    let bench = Bench::on(&server());
    let yard = &bench.yard;
    for index in [true, false] {
        if !index {
            yard.database.sql("DROP INDEX outbox_age, outbox_unmarked");
        }
        yard.insert_many(3);
        let mut sweeper = bench.sweeper(None);
        let mark = bench.mark();
        let other = yard.database.client();
        other.run("BEGIN; UPDATE outbox_events SET payload = '{}' WHERE ctid = (SELECT min(ctid) FROM outbox_events)");
        let round = std::thread::scope(|scope| {
            let round = scope.spawn(|| bench.round(&mut sweeper, mark, TERM));
            watch_for(Duration::from_millis(150));
            other.run("COMMIT");
            round.join().expect("a round")
        });
        assert_eq!((round.expect("a round").touched, yard.rows()), (2, 1));
        // While somebody holds it for longer, nothing waits for long, and nothing is touched.
        other.run("BEGIN; SELECT FROM outbox_events FOR UPDATE");
        let failed = bench.round(&mut sweeper, bench.mark(), TERM);
        assert!(matches!(failed, Err(SweeperError::Query(_))), "{failed:?}");
        other.run("COMMIT");
        let mut touched = 0;
        within(DEADLINE, || {
            touched += bench.round(&mut sweeper, bench.mark(), TERM).expect("a round").touched;
            touched > 0
        });
        assert_eq!((touched, yard.rows()), (1, 0));
    }
}
