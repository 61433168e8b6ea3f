//! How fast it is: `cargo test --features full --test e2e -- --ignored --nocapture parking_store::measure`.

use std::time::{Duration, Instant};

use walgate::control::parking::{Parcel, ParkingStore};

use super::{Rig, Store, event, parcel};
use crate::support::postgres::{Options, Postgres};

/// CPU time of a process so far.
fn cpu(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = [11, 12].iter().filter_map(|field| fields.get(*field)?.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// What a part of a measurement took.
struct Taken<'a> {
    rig: &'a Rig,
    backend: String,
    start: (Instant, Duration, Duration, u64),
}

impl<'a> Taken<'a> {
    fn start(rig: &'a Rig, store: &Store<'_>) -> Taken<'a> {
        store.page(None, 1, 1);
        let session = "SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'parking'";
        let backend = rig.value(session);
        let start = (Instant::now(), cpu("self"), cpu(&backend), Self::wal(rig));
        Taken { rig, backend, start }
    }

    fn wal(rig: &Rig) -> u64 {
        rig.value("SELECT pg_current_wal_insert_lsn() - '0/0'").parse().unwrap()
    }

    fn say(self, what: &str, rows: usize) {
        let (start, own, backend, wal) = self.start;
        let each = |time: Duration| time.as_secs_f64() * 1e6 / rows as f64;
        eprintln!(
            "{what}: {:.0} rows/s; {:.1} us of CPU per row here, {:.1} us in PostgreSQL; {} bytes of WAL per row",
            rows as f64 / start.elapsed().as_secs_f64(),
            each(cpu("self") - own),
            each(cpu(&self.backend) - backend),
            (Self::wal(self.rig) - wal) / rows as u64
        );
    }
}

/// How fast rows are written, read and deleted, and what they cost the log, on a server that keeps what it confirms and
/// has no statistics.
#[test]
#[ignore = "a measurement"]
fn measure() {
    const ROWS: usize = 120_000;
    let settings = ["fsync=on", "full_page_writes=on", "shared_buffers=128MB"].map(String::from).to_vec();
    let server = Postgres::start(Options { settings, ..Options::default() });
    let rig = Rig::with(server.database());
    for batch in [1000, 4000] {
        rig.database.sql("TRUNCATE walgate.parked");
        rig.database.sql("CHECKPOINT");
        let store = rig.store();
        let parcel_of = |n: usize| {
            let mut event = event(1 + n as u64 / 3, (n % 3) as u32, &"x".repeat(240));
            event.id = format!("7f3c5f5e-3c1b-4d62-9f0e-{n:012}").into();
            event.key = Some(format!("order-{}", n % 5000).into());
            parcel(event)
        };
        let parcels: Vec<Parcel> = (0..ROWS).map(parcel_of).collect();
        let batches: Vec<Vec<Parcel>> = parcels.chunks(batch).map(<[Parcel]>::to_vec).collect();
        let taken = Taken::start(&rig, &store);
        for batch in batches {
            rig.runtime.block_on(store.store.park(batch)).unwrap();
        }
        taken.say(&format!("park, batches of {batch}"), ROWS);
        let taken = Taken::start(&rig, &store);
        let mut after = None;
        loop {
            let page = store.page(after, batch, usize::MAX);
            after = page.rows.last().map(|row| row.place).or(after);
            store.run(store.store.delivered(page.rows.iter().map(|row| row.id).collect())).unwrap();
            if page.end {
                break;
            }
        }
        taken.say(&format!("page and delivered, batches of {batch}"), ROWS);
        assert_eq!(rig.count("parked"), 0);
        // How long a start takes with so many rows.
        store.park(&parcels);
        let taken = Taken::start(&rig, &store);
        store.run(store.store.open(1000)).unwrap();
        taken.say("open", ROWS);
    }
}
