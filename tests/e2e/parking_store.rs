//! walgate's own tables, `walgate.parked` and `walgate.dead_letters`, as a lane sees them.
//!
//! This file alone looks at a part of walgate from inside: it drives [`SqlStore`] itself against a real PostgreSQL, and
//! looks into the tables by SQL. What the gateway makes of it is tested by what it delivers, in other files.

mod init;
mod measure;
mod plans;
mod preflight;
mod requests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use rustix::process::Signal;
use tokio_postgres::{Config, NoTls};
use walgate::control::parking::{
    Attempted, Filter, HoldKey, Page, PageLimit, Parcel, ParkingStore, Place, SqlStore, SqlStoreOptions, StoreError,
    Stored, create_sql,
};
use walgate::control::{Link, LinkError, Term, gateway};
use walgate_sink::{ByteString, Delivery, Escape, Event, Lsn, PayloadFormat, Position, Target, TargetField, Timestamp};

use crate::support::database::Database;
use crate::support::postgres::{Options, PASSWORD, Postgres, ROLE};
use crate::support::wait::{DEADLINE, eventually, watch_for};

const SLOT: &str = "slot_of_the_test";
const SINK: &str = "partner";
const FIELDS: &[TargetField] = &[
    TargetField { name: "topic", required: true, ordering_key: false, escape: Escape::None },
    TargetField { name: "key", required: false, ordering_key: true, escape: Escape::None },
];
const ALL: PageLimit = PageLimit { rows: 100_000, bytes: usize::MAX };
/// As `\0` stands in no text of PostgreSQL, this is a value that a row cannot hold.
const UNWRITABLE: &str = "a\0b";

/// A database with the tables, and a runtime for the store's connections.
struct Rig {
    runtime: tokio::runtime::Runtime,
    database: Database,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(Postgres::shared().database())
    }

    fn with(database: Database) -> Rig {
        let rig = Rig::without_tables(database);
        rig.create_tables();
        rig
    }

    fn without_tables(database: Database) -> Rig {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        Rig { runtime, database }
    }

    fn create_tables(&self) {
        create_sql(ROLE).iter().for_each(|statement| drop(self.database.sql(statement)));
    }

    fn store(&self) -> Store<'_> {
        self.store_of(SLOT, SINK, Duration::from_secs(20), Duration::from_secs(60))
    }

    fn store_of(&self, slot: &str, sink: &str, patience: Duration, idle: Duration) -> Store<'_> {
        let options = SqlStoreOptions { slot: slot.into(), sink: sink.into(), patience, idle, term: Term::default() };
        Store { rig: self, store: Arc::new(SqlStore::new(options, connect(&self.database))) }
    }

    /// A connection for statements beside the store's.
    fn client(&self) -> tokio_postgres::Client {
        let connect = connect(&self.database);
        let Link { client, driver } = self.runtime.block_on(connect()).unwrap();
        self.runtime.spawn(driver);
        client
    }

    fn value(&self, statement: &str) -> String {
        self.database.value(statement)
    }

    fn count(&self, table: &str) -> usize {
        self.value(&format!("SELECT count(*) FROM walgate.{table}")).parse().unwrap()
    }

    /// Sessions of stores in this database.
    fn sessions(&self) -> usize {
        let name = &self.database.name;
        let sql =
            format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{name}' AND application_name = 'parking'");
        self.value(&sql).parse().unwrap()
    }

    fn terminate(&self) {
        let name = &self.database.name;
        self.database.sql(&format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
             WHERE datname = '{name}' AND application_name = 'parking'"
        ));
    }
}

/// As a gateway connects: as a role with no other rights.
fn connect(
    database: &Database,
) -> impl Fn() -> BoxFuture<'static, Result<Link, LinkError>> + Send + Sync + 'static + use<> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(database.server.port()).dbname(&database.name);
    config.user(ROLE).password(PASSWORD).application_name("parking");
    move || {
        let config = config.clone();
        Box::pin(async move {
            let (client, connection) = config.connect(NoTls).await?;
            Ok(Link::new(client, connection))
        })
    }
}

/// A store whose operations are waited for.
struct Store<'a> {
    rig: &'a Rig,
    store: Arc<SqlStore>,
}

impl Store<'_> {
    fn run<T>(&self, operation: BoxFuture<'_, Result<T, StoreError>>) -> Result<T, StoreError> {
        self.rig.runtime.block_on(operation)
    }

    fn park(&self, parcels: &[Parcel]) -> (u64, u64) {
        self.run(self.store.park(parcels.to_vec())).unwrap()
    }

    fn bury(&self, letters: &[Parcel], parked: &[i64]) {
        self.run(self.store.bury(letters.to_vec(), parked.to_vec())).unwrap();
    }

    fn page(&self, after: Option<Place>, rows: usize, bytes: usize) -> Page {
        self.run(self.store.page(after, PageLimit { rows, bytes })).unwrap()
    }

    fn all(&self) -> Vec<Stored> {
        let page = self.run(self.store.page(None, ALL)).unwrap();
        assert!(page.end);
        page.rows
    }

    fn of_key(&self, key: &HoldKey) -> Vec<Stored> {
        self.run(self.store.page_of(key.clone(), None, ALL)).unwrap().rows
    }

    fn revive(&self, filter: Filter, before: i64, run: &str, limit: usize) -> (u64, Vec<HoldKey>, bool) {
        let revived = self.run(self.store.revive(filter, before, run.into(), limit)).unwrap();
        let mut keys = revived.keys;
        keys.sort();
        (revived.rows, keys, revived.end)
    }
}

fn event(commit: u64, ordinal: u32, payload: &str) -> Event {
    let mut event = Event::new(format!("id-{commit}-{ordinal}"), "order.created");
    event.payload = Some(Bytes::copy_from_slice(payload.as_bytes()));
    event.position = Position { commit_lsn: Lsn(commit), ordinal };
    event.committed_at = Timestamp(1_772_366_400_123_456);
    event
}

fn parcel(event: Event) -> Parcel {
    let target = Target::new(FIELDS, [Some("orders".into())]);
    let (dedup_id, ordering_key) = (event.id.clone(), event.key.clone());
    Parcel {
        delivery: Delivery { event, target, ordering_key, dedup_id, attempt: 0 },
        route: "order.*".into(),
        hold: None,
        reason: None,
        message: None,
        errors: Vec::new(),
        contents: true,
    }
}

fn letter(mut parcel: Parcel, reason: &str) -> Parcel {
    parcel.hold = Some(HoldKey::of(&parcel.delivery));
    parcel.reason = Some(reason.into());
    parcel.message = Some(format!("because of {reason}"));
    parcel
}

fn parcel_of_key(commit: u64, key: &str) -> Parcel {
    let mut event = event(commit, 0, "{}");
    event.key = Some(key.into());
    parcel(event)
}

/// What a row holds beside its number and place; comparable.
fn contents_of_row(row: &Stored) -> String {
    let Stored { event, target, ordering_key, dedup_id, route, attempts, rejected, errors, place, .. } = row;
    let target: Vec<(&str, &ByteString)> = target.iter().map(|(name, value)| (&**name, value)).collect();
    format!("{event:?} {target:?} {ordering_key:?} {dedup_id:?} {route:?} {attempts} {rejected:?} {errors:?} {place:?}")
}

fn contents_of_parcel(parcel: &Parcel) -> String {
    let Parcel { delivery, route, reason, message, errors, .. } = parcel;
    let Delivery { event, target, ordering_key, dedup_id, attempt } = delivery;
    let target: Vec<(&str, &ByteString)> = target.iter().collect();
    let rejected = reason.clone().map(|reason| (reason, message.clone().unwrap_or_default()));
    let place = Place::of(delivery);
    format!("{event:?} {target:?} {ordering_key:?} {dedup_id:?} {route:?} {attempt} {rejected:?} {errors:?} {place:?}")
}

/// Parcels that try every field.
fn strange_parcels() -> Vec<Parcel> {
    let hostile = "'\"\\{},NULL;-- \u{1}\t\r\n\u{7f}\u{85}\u{2028}größer \u{1F600} $1 %s \\x00 </script> ";
    let mut parcels = Vec::new();
    let mut binary = event(1, 0, "");
    binary.payload = Some((0..=255).collect::<Vec<u8>>().into());
    binary.format = PayloadFormat::Binary;
    parcels.push(parcel(binary));
    let mut null = event(2, u32::MAX, "");
    null.payload = None;
    parcels.push(parcel(null));
    let mut empty = Event::new("", "");
    (empty.payload, empty.format, empty.key) = (Some(Bytes::new()), PayloadFormat::Text, Some("".into()));
    empty.position = Position { commit_lsn: Lsn(3), ordinal: 0 };
    empty.committed_at = Timestamp(-1);
    let mut empty = parcel(empty);
    (empty.route, empty.delivery.target) = ("".into(), Target::new(FIELDS, []));
    parcels.push(empty);
    let mut strange = event(u64::MAX, 7, hostile);
    (strange.id, strange.event_type, strange.key) = (hostile.into(), hostile.into(), Some(hostile.into()));
    strange.format = PayloadFormat::Text;
    strange.headers = [("a", "1"), ("a", "2"), (hostile, hostile), ("", ""), ("nul", "a\0b")]
        .map(|(name, value)| (ByteString::from(name), ByteString::from(value)))
        .into_iter()
        .collect();
    let mut strange = parcel(strange);
    strange.delivery.target = Target::new(FIELDS, [Some(hostile.into()), Some("k\0".into())]);
    (strange.delivery.dedup_id, strange.delivery.ordering_key) = (hostile.into(), Some(hostile.into()));
    (strange.delivery.attempt, strange.route) = (u32::MAX, hostile.into());
    (strange.reason, strange.message) = (Some(hostile.into()), Some(hostile.into()));
    strange.errors = (0..10)
        .map(|n| Attempted { at: Timestamp(n * 1_000_003), kind: "timeout".into(), error: hostile.into() })
        .collect();
    parcels.push(strange);
    let long: String = "ß".repeat(1_700);
    let mut long_key = event(4, 0, "{}");
    long_key.key = Some(long.clone().into());
    let mut long_key = parcel(long_key);
    long_key.hold = Some(HoldKey::of(&long_key.delivery));
    parcels.push(long_key);
    let mut quoted = parcel_of_key(5, "it's \"quoted\", {\"a\":[1]}");
    quoted.hold = Some(HoldKey::of(&quoted.delivery));
    parcels.push(quoted);
    parcels
}

#[test]
fn every_field_goes_both_ways() {
    let rig = Rig::new();
    let store = rig.store();
    let parcels = strange_parcels();
    let bytes: u64 = parcels.iter().map(|parcel| parcel.delivery.event.size() as u64).sum();
    assert_eq!(store.park(&parcels), (parcels.len() as u64, bytes));
    let mut rows = store.all();
    for held in parcels.iter().filter_map(|parcel| parcel.hold.as_ref()) {
        let of_key = store.of_key(held);
        assert_eq!(of_key.len(), 1, "{held:?}");
        rows.extend(of_key);
    }
    let sorted = |mut contents: Vec<String>| {
        contents.sort();
        contents
    };
    assert_eq!(
        sorted(rows.iter().map(contents_of_row).collect()),
        sorted(parcels.iter().map(contents_of_parcel).collect())
    );
    // For those who look by SQL.
    assert_eq!(
        rig.value(
            "SELECT errors->1->>'at' || ' ' || json_array_length(headers) FROM walgate.parked WHERE errors IS NOT NULL"
        ),
        "1970-01-01T00:00:01.000003Z 5"
    );
    assert_eq!(rig.value("SELECT payload IS NULL FROM walgate.parked WHERE ordinal = 4294967295"), "t");
    assert_eq!(rig.value("SELECT target::text FROM walgate.parked WHERE event_id = ''"), "{}");
}

#[test]
fn what_a_sink_says_never_makes_a_row_unwritable() {
    let rig = Rig::new();
    let store = rig.store();
    let mut refused = parcel(event(1, 0, "{}"));
    (refused.reason, refused.message) = (Some("re\0fused".into()), Some("no\0, \u{1F600}".into()));
    refused.errors = vec![Attempted { at: Timestamp(0), kind: "timeout".into(), error: "\0gone\0".into() }; 12];
    store.park(std::slice::from_ref(&refused));
    let row = &store.all()[0];
    assert_eq!(row.rejected, Some(("refused".into(), "no, \u{1F600}".into())));
    assert_eq!((row.errors.len(), &*row.errors[0].error), (10, "gone"));
}

#[test]
fn a_row_is_written_once() {
    let rig = Rig::new();
    let store = rig.store();
    let parcels: Vec<Parcel> = (1..=5).map(|n| parcel(event(n, 0, "{}"))).collect();
    assert_eq!(store.park(&parcels[..3]).0, 3);
    let before = store.all();
    let mut again = parcels.clone();
    again.iter_mut().for_each(|parcel| parcel.delivery.attempt = 9);
    // Within one call too.
    again.push(again[4].clone());
    let bytes: usize = parcels[3..].iter().map(|parcel| parcel.delivery.event.size()).sum();
    assert_eq!(store.park(&again), (2, bytes as u64));
    assert_eq!(store.park(&again), (0, 0));
    let rows = store.all();
    assert_eq!(rows.len(), 5);
    for (row, old) in rows.iter().zip(&before) {
        assert_eq!((row.id, row.attempts), (old.id, old.attempts), "what was there is left as it is");
    }
    // Two targets of one event are two deliveries, in one place of the order.
    let mut other = parcels[0].clone();
    other.delivery.dedup_id = "id-1-0-other".into();
    assert_eq!(store.park(&[other]).0, 1);
    store.run(store.store.delivered(rows.iter().map(|row| row.id).collect())).unwrap();
    store.run(store.store.delivered(rows.iter().map(|row| row.id).collect())).unwrap();
    assert_eq!(rig.count("parked"), 1);
}

#[test]
fn pages_are_in_order_and_never_larger_than_asked_for() {
    let rig = Rig::new();
    let store = rig.store();
    let mut parcels = Vec::new();
    for commit in 1..=40_u64 {
        for ordinal in 0..5 {
            let size = (commit as usize * 37 + ordinal as usize * 11) % 300;
            let mut parcel = parcel(event(commit << 33, ordinal, &"x".repeat(size)));
            // Some wait for their key, and are no part of these pages.
            parcel.hold = (commit % 4 == 0).then(|| HoldKey::from_text(format!("key:{}", commit % 3)));
            parcels.push(parcel);
        }
    }
    let mut order: Vec<&Parcel> = parcels.iter().filter(|parcel| parcel.hold.is_none()).collect();
    order.sort_by_key(|parcel| Place::of(&parcel.delivery));
    let mut mixed = parcels.clone();
    mixed.sort_by_key(|parcel| Place::of(&parcel.delivery).delivery);
    for chunk in mixed.chunks(33) {
        store.park(chunk);
    }

    for (rows, bytes) in
        [(1, usize::MAX), (7, usize::MAX), (1000, 1000), (20, 900), (1000, 0), (150, usize::MAX), (0, 0)]
    {
        let (mut after, mut seen, mut pages) = (None, Vec::new(), 0);
        loop {
            let page = store.page(after, rows, bytes);
            pages += 1;
            let size: usize = page.rows.iter().map(|row| row.event.size()).sum();
            assert!(page.rows.len() <= rows.max(1) && (size <= bytes || page.rows.len() == 1), "{size} {bytes}");
            assert!(page.end || !page.rows.is_empty(), "always a row if there is one");
            after = page.rows.last().map(|row| row.place).or(after);
            seen.extend(page.rows);
            if page.end {
                break;
            }
        }
        let places: Vec<Place> = seen.iter().map(|row| row.place).collect();
        assert_eq!(places, order.iter().map(|parcel| Place::of(&parcel.delivery)).collect::<Vec<_>>());
        assert!(pages < 2 || seen.len() > rows || bytes < usize::MAX);
        let behind = store.page(after, 10, 1000);
        assert!(behind.end && behind.rows.is_empty());
    }
    // `end` is true exactly with the last row.
    let last = Place::of(&order[order.len() - 2].delivery);
    assert!(!store.page(Some(Place::of(&order[order.len() - 3].delivery)), 1, usize::MAX).end);
    assert!(store.page(Some(last), 1, usize::MAX).end);

    let mut of_key: Vec<Place> = parcels
        .iter()
        .filter(|parcel| parcel.hold.as_ref().is_some_and(|key| key.as_str() == "key:1"))
        .map(|parcel| Place::of(&parcel.delivery))
        .collect();
    of_key.sort();
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let limit = PageLimit { rows: 3, bytes: 700 };
        let page = store.run(store.store.page_of(HoldKey::from_text("key:1"), after, limit)).unwrap();
        after = page.rows.last().map(|row| row.place);
        seen.extend(page.rows.iter().map(|row| row.place));
        if page.end {
            break;
        }
    }
    assert_eq!(seen, of_key);
}

#[test]
fn rows_wait_for_their_key_and_are_looked_for_at_the_start() {
    let rig = Rig::new();
    let store = rig.store();
    assert_eq!(store.run(store.store.open(10)).unwrap(), Default::default());
    let parcels: Vec<Parcel> = (1..=9).map(|n| parcel_of_key(n, &format!("k{}", n % 3))).collect();
    let bytes: usize = parcels.iter().map(|parcel| parcel.delivery.event.size()).sum();
    store.park(&parcels);
    store.bury(&[letter(parcel_of_key(20, "dead"), "refused")], &[]);
    // Another sink, and another gateway.
    rig.store_of(SLOT, "other", Duration::from_secs(20), Duration::from_secs(60)).park(&parcels);
    let other = rig.store_of("other_slot", SINK, Duration::from_secs(20), Duration::from_secs(60));
    other.park(&parcels[..2]);

    let rows = store.all();
    let key = |row: &Stored| HoldKey::from_text(format!("key:{}", row.event.key.as_ref().unwrap()));
    let held: Vec<(i64, HoldKey)> =
        rows.iter().filter(|row| key(row).as_str() != "key:k0").map(|row| (row.id, key(row))).collect();
    assert_eq!(held.len(), 6);
    store.run(store.store.hold(held.clone())).unwrap();
    store.run(store.store.hold(held.clone())).unwrap();
    assert_eq!(store.all().len(), 3);
    let opening = store.run(store.store.open(10)).unwrap();
    assert_eq!((opening.rows, opening.key_rows, opening.bytes, opening.dead_letters), (3, 6, bytes as u64, 1));
    assert_eq!(opening.keys, ["key:k1", "key:k2"].map(HoldKey::from_text));
    assert_eq!(opening.last, Some(Place::of(&parcels[8].delivery)));
    assert_eq!(store.run(store.store.open(1)).unwrap().keys, [HoldKey::from_text("key:k1")]);
    assert_eq!(store.run(store.store.open(0)).unwrap().keys, []);

    let first = HoldKey::from_text("key:k1");
    let of_key = store.of_key(&first);
    assert_eq!(of_key.iter().map(|row| row.event.position.commit_lsn.0).collect::<Vec<_>>(), [1, 4, 7]);
    store.run(store.store.delivered(of_key.iter().map(|row| row.id).collect())).unwrap();
    assert_eq!(store.of_key(&first).len(), 0);
    let opening = store.run(store.store.open(10)).unwrap();
    assert_eq!((opening.rows, opening.key_rows, opening.keys), (3, 3, vec![HoldKey::from_text("key:k2")]));

    // Numbers of others are not ours to delete.
    other.run(other.store.delivered(rows.iter().map(|row| row.id).collect())).unwrap();
    assert_eq!(store.all().len(), 3);
    let opening = other.run(other.store.open(10)).unwrap();
    assert_eq!((opening.rows, opening.dead_letters), (2, 0));
}

#[test]
fn a_letter_is_buried_whole_or_not_at_all() {
    let rig = Rig::new();
    let store = rig.store();
    let parcels: Vec<Parcel> = (1..=3).map(|n| parcel_of_key(n, "a")).collect();
    store.park(&parcels);
    let rows = store.all();
    let mut unwritable = letter(parcels[1].clone(), "refused");
    unwritable.delivery.event.key = Some(UNWRITABLE.into());
    let letters = [letter(parcels[0].clone(), "refused"), unwritable];
    let error = store.run(store.store.bury(letters.to_vec(), vec![rows[0].id, rows[1].id])).unwrap_err();
    assert!(error.lasting, "{error}");
    assert!(error.message.contains("walgate.dead_letters") && error.message.contains("22021"), "{error}");
    assert_eq!((rig.count("parked"), rig.count("dead_letters")), (3, 0));
    // The value was refused, not the connection.
    let session =
        "SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'parking' AND datname = current_database()";
    let pid = rig.value(session);
    store.bury(&[letter(parcels[0].clone(), "refused")], &[rows[0].id]);
    assert_eq!(rig.value(session), pid);
    assert_eq!((rig.count("parked"), rig.count("dead_letters")), (2, 1));

    // The same place again: what became of it since then is what counts.
    let id = rig.value("SELECT id FROM walgate.dead_letters");
    let mut again = letter(parcels[0].clone(), "too_large");
    again.delivery.attempt = 4;
    again.errors = vec![Attempted { at: Timestamp(1), kind: "timeout".into(), error: "no".into() }];
    store.bury(&[letter(parcels[0].clone(), "refused"), again], &[rows[0].id]);
    assert_eq!(rig.count("dead_letters"), 1);
    let sql = "SELECT id || ' ' || attempts || ' ' || reason || ' ' || message || ' ' || (errors->0->>'error') FROM walgate.dead_letters";
    assert_eq!(rig.value(sql), format!("{id} 4 too_large because of too_large no"));
    // Too long for an index, and nothing that gets shorter by compression.
    let mut state = 1_u64;
    let noise = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b'!' + (state >> 33) as u8 % 90)
    });
    let mut long = parcel_of_key(9, "a");
    long.hold = Some(HoldKey::from_text(noise.take(9_000).collect::<String>()));
    let error = store.run(store.store.park(vec![long])).unwrap_err();
    assert!(error.lasting && error.message.contains("54000"), "{error}");
    // Rows alone.
    store.bury(&[], &[rows[1].id]);
    assert_eq!(rig.count("parked"), 1);
}

#[test]
fn dead_letters_come_back_under_another_id() {
    let rig = Rig::new();
    let store = rig.store();
    let mut letters: Vec<Parcel> =
        (1..=6).map(|n| letter(parcel_of_key(n, &format!("k{}", n % 2)), "refused")).collect();
    letters[1] = letter(parcel(event(2, 0, "no key")), "refused");
    letters[2].reason = Some("too_large".into());
    letters[3].delivery.event.event_type = "order.paid".into();
    letters[5].errors = vec![Attempted { at: Timestamp(1), kind: "timeout".into(), error: "no".into() }];
    letters[5].delivery.attempt = 3;
    store.bury(&letters, &[]);
    let other = rig.store_of(SLOT, "other", Duration::from_secs(20), Duration::from_secs(60));
    other.bury(&letters, &[]);
    let now = || rig.value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").parse::<i64>().unwrap();
    let none = |filter: Filter| assert_eq!(store.revive(filter, now(), "r1", 10), (0, Vec::new(), true));
    none(Filter { event_id: Some("id-1".into()), ..Filter::default() });
    none(Filter { older_than_seconds: Some(3600), ..Filter::default() });
    none(Filter { older_than_seconds: Some(u64::MAX), newer_than_seconds: Some(u64::MAX), ..Filter::default() });
    none(Filter { event_type: Some("order.paid".into()), key: Some("k1".into()), ..Filter::default() });
    none(Filter { ids: vec![i64::MAX], ..Filter::default() });
    // Buried after the request.
    assert_eq!(store.revive(Filter::default(), now() - 3_600_000_000, "r1", 10), (0, Vec::new(), true));

    let key = |text: &str| HoldKey::from_text(text);
    let only = |reason: &str| Filter { reason: Some(reason.into()), ..Filter::default() };
    assert_eq!(store.revive(only("too_large"), now(), "r1", 10), (1, vec![key("key:k1")], true));
    let by_type = Filter { event_type: Some("order.paid".into()), newer_than_seconds: Some(3600), ..Filter::default() };
    assert_eq!(store.revive(by_type, now(), "r1", 1), (1, vec![key("key:k0")], false));
    let ids = rig.value(&format!(
        "SELECT string_agg(id::text, ',') FROM walgate.dead_letters WHERE sink = '{SINK}' AND commit_lsn IN ('0/1', '0/6')"
    ));
    let ids: Vec<i64> = ids.split(',').map(|id| id.parse().unwrap()).collect();
    let by_id = Filter { ids: ids.clone(), ..Filter::default() };
    assert_eq!(store.revive(by_id.clone(), now(), "r2", 1), (1, vec![key("key:k1")], false));
    assert_eq!(store.revive(by_id.clone(), now(), "r2", 5), (1, vec![key("key:k0")], true));
    assert_eq!(store.revive(by_id, now(), "r2", 5), (0, Vec::new(), true));
    let alone = HoldKey::of(&letters[1].delivery);
    assert_eq!(store.revive(Filter::default(), now(), "r3", 10), (2, vec![alone.clone(), key("key:k1")], true));

    let mut rows = store.of_key(&key("key:k1"));
    rows.extend(store.of_key(&key("key:k0")));
    rows.extend(store.of_key(&alone));
    assert_eq!(rows.len(), 6);
    for row in rows {
        let letter = &letters[row.event.position.commit_lsn.0 as usize - 1];
        let mut delivery = letter.delivery.clone();
        let run = match row.event.position.commit_lsn.0 {
            3 | 4 => "r1",
            1 | 6 => "r2",
            _ => "r3",
        };
        delivery.dedup_id = format!("{}-{run}", letter.delivery.dedup_id).into();
        delivery.attempt = 0;
        let expected = Parcel { delivery, reason: None, message: None, ..letter.clone() };
        assert_eq!(contents_of_row(&row), contents_of_parcel(&expected));
    }
    assert_eq!(rig.value(&format!("SELECT count(*) FROM walgate.dead_letters WHERE sink = '{SINK}'")), "0");
    assert_eq!(rig.value("SELECT count(*) FROM walgate.dead_letters WHERE sink = 'other'"), "6");
    assert_eq!(other.all().len(), 0);
    // One that is owed already under that id is not owed twice.
    store.bury(&letters[..1], &[]);
    assert_eq!(store.revive(Filter::default(), now(), "r2", 10), (0, Vec::new(), true));
    assert_eq!(
        (rig.count("parked"), rig.value(&format!("SELECT count(*) FROM walgate.dead_letters WHERE sink = '{SINK}'"))),
        (6, "0".into())
    );
}

#[test]
fn x16_a_letter_without_its_contents_never_comes_back() {
    let rig = Rig::new();
    let store = rig.store();
    let whole = |n: u64| {
        let mut parcel = letter(parcel_of_key(n, "k"), "refused");
        parcel.delivery.event.payload = Some(Bytes::from_static(b"canary-payload"));
        parcel.delivery.event.headers =
            [(ByteString::from("a"), ByteString::from("canary-header"))].into_iter().collect();
        parcel.message = Some("it says: canary-message".into());
        parcel.errors = vec![Attempted { at: Timestamp(1), kind: "refused".into(), error: "canary-error".into() }];
        parcel
    };
    let omitted = |n: u64| {
        let mut parcel = whole(n);
        parcel.omit_contents();
        parcel
    };
    let holds_canary = "SELECT count(*) FROM walgate.dead_letters d \
                        WHERE d::text LIKE '%canary%' OR position('canary'::bytea IN payload) > 0";
    // The letter of a place is replaced whole: by one that holds less, and by one that holds more.
    store.bury(&[whole(1), omitted(2)], &[]);
    assert_eq!(rig.value(holds_canary), "1");
    store.bury(&[omitted(1), omitted(2)], &[]);
    assert_eq!((rig.value(holds_canary).as_str(), rig.count("dead_letters")), ("0", 2));
    let kept = "SELECT string_agg(concat_ws(' ', event_id, event_type, event_key, reason, target, errors, payload_format), ',' \
                ORDER BY commit_lsn) FROM walgate.dead_letters";
    let errors = r#"[{"at":"1970-01-01T00:00:00.000001Z","kind":"refused"}]"#;
    let row = |n: u64| format!(r#"id-{n}-0 order.created k refused {{"topic":"orders"}} {errors} omitted"#);
    assert_eq!(rig.value(kept), format!("{},{}", row(1), row(2)));
    assert_eq!(store.revive(Filter::default(), i64::MAX / 2, "r1", 10), (0, Vec::new(), true));
    store.bury(&[whole(2)], &[]);
    assert_eq!(store.revive(Filter::default(), i64::MAX / 2, "r1", 10), (1, vec![HoldKey::from_text("key:k")], true));
    assert_eq!((rig.count("dead_letters"), rig.count("parked")), (1, 1));
    // Who moves it by hand has moved nothing that could be sent.
    let columns = "slot, sink, commit_lsn, ordinal, delivery, event_id, event_type, dedup_id, route, target, payload, \
                   payload_format, committed_at, bytes, attempts";
    rig.database.sql(&format!("INSERT INTO walgate.parked ({columns}) SELECT {columns} FROM walgate.dead_letters"));
    let error = store.run(store.store.page(None, ALL)).unwrap_err();
    assert!(error.message.contains("kept without its payload") && !error.message.contains("canary"), "{error}");
}

#[test]
fn other_encodings_hold_what_they_can() {
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let rig = Rig::with(Postgres::shared().database_in(encoding));
        let store = rig.store();
        let mut event = event(1, 0, "größer \u{1F600}");
        (event.id, event.event_type, event.key) = ("é-1".into(), "größer".into(), Some("clé".into()));
        event.headers = [(ByteString::from("имя"), ByteString::from("значение \u{1F600}"))].into_iter().collect();
        let mut parcel = parcel(event);
        parcel.delivery.target = Target::new(FIELDS, [Some("заказы".into())]);
        parcel.delivery.ordering_key = Some("clé".into());
        parcel.hold = Some(HoldKey::of(&parcel.delivery));
        parcel.message = Some("нет".into());
        parcel.reason = Some("refused".into());
        parcel.errors = vec![Attempted { at: Timestamp(1), kind: "timeout".into(), error: "нет".into() }];
        store.park(std::slice::from_ref(&parcel));
        let rows = store.of_key(&HoldKey::from_text("key:clé"));
        let mut expected = parcel.clone();
        // What the sink said comes as escapes: it need not be in the encoding of the database.
        expected.message = Some("\\u{43d}\\u{435}\\u{442}".into());
        assert_eq!(contents_of_row(&rows[0]), contents_of_parcel(&expected), "{encoding}");

        store.bury(std::slice::from_ref(&parcel), &[rows[0].id]);
        let opening = store.run(store.store.open(10)).unwrap();
        assert_eq!((opening.key_rows, opening.dead_letters), (0, 1));
        let filter = Filter { key: Some("clé".into()), ..Filter::default() };
        assert_eq!(store.revive(filter, i64::MAX / 2, "r1", 10).0, 1);
        let row = &store.of_key(&HoldKey::from_text("key:clé"))[0];
        let mut revived = parcel.delivery.clone();
        revived.dedup_id = "é-1-r1".into();
        assert_eq!((&row.dedup_id, row.place), (&revived.dedup_id, Place::of(&revived)), "{encoding}");

        let mut foreign = parcel_of_key(2, "ключ");
        foreign.hold = Some(HoldKey::of(&foreign.delivery));
        let written = store.run(store.store.park(vec![foreign]));
        match encoding {
            "SQL_ASCII" => assert_eq!(written.unwrap().0, 1),
            _ => {
                let error = written.unwrap_err();
                assert!(error.lasting && error.message.contains("22P05"), "{error}");
            }
        }
    }
}

#[test]
fn a_killed_connection_is_made_anew() {
    let rig = Rig::new();
    let store = rig.store();
    assert_eq!(rig.sessions(), 0, "not connected before there is something to do");
    store.park(&[parcel_of_key(1, "a")]);
    assert_eq!(rig.sessions(), 1);
    // Between two operations.
    rig.terminate();
    eventually(DEADLINE, "the session is gone", || rig.sessions() == 0);
    watch_for(Duration::from_millis(50));
    store.park(&[parcel_of_key(2, "a")]);
    assert_eq!(rig.sessions(), 1);

    // During one: it waits for a lock, so that it is known to be under way.
    let lock = rig.database.client();
    lock.run("BEGIN; LOCK TABLE walgate.parked IN ACCESS EXCLUSIVE MODE");
    let under_way = {
        let store = store.store.clone();
        rig.runtime.spawn(async move { store.park(vec![parcel_of_key(3, "a")]).await })
    };
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'parking' AND wait_event_type = 'Lock' \
                 AND datname = current_database()";
    eventually(DEADLINE, "the operation waits", || rig.value(waits) == "1");
    rig.terminate();
    let error = rig.runtime.block_on(under_way).unwrap().unwrap_err();
    assert!(!error.lasting && error.message.contains("57P01"), "{error}");
    lock.run("ROLLBACK");
    assert_eq!(store.all().len(), 2);
    assert_eq!(store.park(&[parcel_of_key(3, "a")]).0, 1);

    // An operation that is given up half-way leaves no connection behind that somebody else would read on.
    lock.run("BEGIN; LOCK TABLE walgate.parked IN ACCESS EXCLUSIVE MODE");
    let given_up = rig.runtime.block_on(async {
        tokio::time::timeout(Duration::from_millis(100), store.store.park(vec![parcel_of_key(4, "a")])).await
    });
    assert!(given_up.is_err());
    lock.run("ROLLBACK");
    let rows: Vec<u64> = store.all().iter().map(|row| row.event.position.commit_lsn.0).collect();
    assert!(rows == [1, 2, 3] || rows == [1, 2, 3, 4], "{rows:?}");
    store.park(&[parcel_of_key(4, "a")]);
    assert_eq!(store.all().len(), 4);
}

#[test]
fn a_lock_is_waited_for_within_patience() {
    let rig = Rig::new();
    let patience = Duration::from_secs(2);
    let store = rig.store_of(SLOT, SINK, patience, Duration::from_secs(60));
    store.park(&[parcel_of_key(1, "a")]);
    let lock = rig.database.client();
    lock.run("BEGIN; LOCK TABLE walgate.parked IN ACCESS EXCLUSIVE MODE");
    let start = Instant::now();
    let error = store.run(store.store.page(None, ALL)).unwrap_err();
    assert!(start.elapsed() < patience + Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(!error.lasting && error.message.contains("another session holds a lock"), "{error}");
    eventually(DEADLINE, "no statement is left behind", || rig.sessions() == 0);
    lock.run("ROLLBACK");
    assert_eq!(store.all().len(), 1);
}

#[test]
fn a_server_that_does_not_answer_is_waited_for_within_patience() {
    let rig = Rig::new();
    let patience = Duration::from_secs(2);
    let store = rig.store_of(SLOT, SINK, patience, Duration::from_secs(60));
    store.park(&[parcel_of_key(1, "a")]);
    let session =
        "SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'parking' AND datname = current_database()";
    let pid: u32 = rig.value(session).parse().unwrap();
    rig.database.server.signal_backend(pid, Signal::STOP);
    let start = Instant::now();
    let error = store.run(store.store.park(vec![parcel_of_key(2, "a")])).unwrap_err();
    assert!(start.elapsed() < patience + Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(!error.lasting && error.message.contains("not done within 2 s"), "{error}");
    // Another connection, while the first one is still there.
    assert_eq!(store.park(&[parcel_of_key(2, "a"), parcel_of_key(3, "a")]).0, 2);
    rig.database.server.signal_backend(pid, Signal::CONT);
    // What it was told then changes nothing.
    eventually(DEADLINE, "the first session ends", || rig.sessions() == 1);
    assert_eq!(store.all().len(), 3);
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let rig = Rig::new();
    let store = rig.store();
    rig.database.sql(&format!("REVOKE INSERT ON walgate.parked FROM {ROLE}"));
    let error = store.run(store.store.park(vec![parcel_of_key(1, "a")])).unwrap_err();
    assert!(!error.lasting && error.message.contains("walgate check --connect"), "{error}");
    rig.database.sql(&format!("REVOKE USAGE ON SCHEMA walgate FROM {ROLE}"));
    let error = store.run(store.store.open(1)).unwrap_err();
    assert!(!error.lasting && error.message.contains("walgate check --connect"), "{error}");
    rig.create_tables();
    assert_eq!(store.park(&[parcel_of_key(1, "a")]).0, 1);
    rig.database.sql("ALTER TABLE walgate.parked DROP COLUMN route");
    let error = store.run(store.store.park(vec![parcel_of_key(2, "a")])).unwrap_err();
    assert!(!error.lasting && error.message.contains("another version"), "{error}");
    rig.database.sql("DROP TABLE walgate.parked");
    let error = store.run(store.store.page(None, ALL)).unwrap_err();
    assert!(!error.lasting && error.message.contains("walgate init --apply"), "{error}");
    rig.database.sql("DROP SCHEMA walgate CASCADE");
    let error = store.run(store.store.delivered(vec![1])).unwrap_err();
    assert!(!error.lasting && error.message.contains("walgate init --apply"), "{error}");
    // They come back, and so does the store.
    rig.create_tables();
    assert_eq!(store.park(&[parcel_of_key(1, "a")]).0, 1);
}

#[test]
fn a_row_that_somebody_changed_is_not_left_out_without_a_word() {
    let rig = Rig::new();
    let store = rig.store();
    store.park(&[parcel_of_key(1, "a"), parcel_of_key(2, "b")]);
    for change in ["target = '[]'", "headers = '{}'", "payload_format = 'xml'", "ordinal = -1"] {
        rig.database.sql(&format!("BEGIN; UPDATE walgate.parked SET {change} WHERE commit_lsn = '0/2'"));
        // Seen by the store only when it is committed.
        rig.database.sql("COMMIT");
        let id = rig.value("SELECT id FROM walgate.parked WHERE commit_lsn = '0/2'");
        let error = store.run(store.store.page(None, ALL)).unwrap_err();
        let column = change.split(' ').next().unwrap();
        assert!(error.message.contains(&format!("row {id} ")) && error.message.contains(column), "{error}");
        rig.database.sql("DELETE FROM walgate.parked WHERE commit_lsn = '0/2'");
        store.park(&[parcel_of_key(2, "b")]);
    }
}

#[test]
fn a_connection_that_nobody_uses_is_closed() {
    let rig = Rig::new();
    let store = rig.store_of(SLOT, SINK, Duration::from_secs(20), Duration::from_millis(300));
    store.park(&[parcel_of_key(1, "a")]);
    assert_eq!(rig.sessions(), 1);
    eventually(DEADLINE, "it is closed", || rig.sessions() == 0);
    store.park(&[parcel_of_key(2, "a")]);
    // Used more often than that, it stays.
    let pid = |rig: &Rig| {
        rig.value(
            "SELECT min(pid) FROM pg_stat_activity WHERE application_name = 'parking' AND datname = current_database()",
        )
    };
    let first = pid(&rig);
    for _ in 0..8 {
        watch_for(Duration::from_millis(100));
        store.all();
    }
    assert_eq!(pid(&rig), first);
    drop(store);
    eventually(DEADLINE, "it ends with its store", || rig.sessions() == 0);
}

#[test]
fn rows_are_as_durable_as_what_they_release() {
    let rig = Rig::new();
    rig.database.sql(
        "CREATE TABLE seen (setting text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS
         $$BEGIN INSERT INTO public.seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END$$;
         CREATE TRIGGER note AFTER INSERT ON walgate.parked EXECUTE FUNCTION note()",
    );
    let name = &rig.database.name;
    for (n, (set, expected)) in (1..).zip([
        ("off", "on"),
        ("local", "on"),
        ("remote_write", "on"),
        ("on", "on"),
        ("remote_apply", "remote_apply"),
    ]) {
        rig.database.sql(&format!("ALTER DATABASE {name} SET synchronous_commit = '{set}'"));
        rig.store().park(&[parcel_of_key(n, "a")]);
        assert_eq!(rig.value("DELETE FROM seen RETURNING setting"), expected, "{set}");
    }
}

#[test]
fn nothing_is_written_in_a_term_that_is_over() {
    let rig = Rig::new();
    let client = rig.client();
    let claim = || rig.runtime.block_on(gateway::claim(&client, SLOT, "1", 1, false)).unwrap();
    let store = |term: i64| {
        let (patience, idle) = (Duration::from_secs(20), Duration::from_secs(60));
        let options = SqlStoreOptions { slot: SLOT.into(), sink: SINK.into(), patience, idle, term: Term::default() };
        options.term.set(term);
        Store { rig: &rig, store: Arc::new(SqlStore::new(options, connect(&rig.database))) }
    };
    let first = claim();
    assert_eq!((first.term, first.before), (1, None));
    let frozen = store(first.term);
    frozen.run(frozen.store.park(vec![parcel_of_key(1, "a"), parcel_of_key(2, "a")])).unwrap();
    let second = claim();
    assert_eq!((second.term, second.before.map(|before| before.term)), (2, Some(1)));
    let ours = store(second.term);
    let ids: Vec<i64> = ours.page(None, 10, usize::MAX).rows.iter().map(|row| row.id).collect();
    let refused = |result: Result<(), StoreError>| {
        let error = result.unwrap_err();
        assert!(!error.lasting && error.message.contains("another process has taken over the slot"), "{error}");
    };
    let key = HoldKey::from_text("key:a");
    refused(frozen.run(frozen.store.park(vec![parcel_of_key(3, "a")])).map(drop));
    refused(frozen.run(frozen.store.hold(vec![(ids[0], key.clone())])));
    refused(frozen.run(frozen.store.bury(vec![letter(parcel_of_key(1, "a"), "refused")], vec![ids[0]])));
    refused(frozen.run(frozen.store.revive(Filter::default(), i64::MAX / 2, "r1".into(), 10)).map(drop));
    assert_eq!((rig.count("parked"), rig.count("dead_letters")), (2, 0));
    assert_eq!(ours.page(None, 10, usize::MAX).rows.len(), 2, "none of them is held");
    // What the sink has is not owed, whoever has delivered it.
    frozen.run(frozen.store.delivered(vec![ids[1]])).unwrap();
    assert_eq!(rig.count("parked"), 1);
    ours.run(ours.store.hold(vec![(ids[0], key)])).unwrap();
    ours.run(ours.store.bury(vec![letter(parcel_of_key(1, "a"), "refused")], vec![ids[0]])).unwrap();
    assert_eq!((rig.count("parked"), rig.count("dead_letters")), (0, 1));

    // The row: what is going to be confirmed never falls, and only in the term that it is.
    let record = |term, lsn| rig.runtime.block_on(gateway::record(&client, SLOT, term, Lsn(lsn), None)).unwrap();
    assert!(record(2, 700) && record(2, 600) && !record(1, 900));
    let (row, _) = rig.runtime.block_on(gateway::read(&client, SLOT)).unwrap().unwrap();
    assert_eq!((row.term, row.confirmed, row.mark), (2, Lsn(700), None));
    assert!(row.birth > 0);
}

/// Whoever begins a term reads what was being written in the one before.
#[test]
fn a_term_begins_when_the_writers_of_the_one_before_are_done() {
    let rig = Rig::new();
    let (writer, claimer) = (rig.client(), rig.client());
    rig.runtime.block_on(gateway::claim(&claimer, SLOT, "1", 1, false)).unwrap();
    let lock = format!("BEGIN; SELECT 1 FROM walgate.gateway WHERE slot = '{SLOT}' AND term = 1 FOR KEY SHARE");
    rig.runtime.block_on(writer.batch_execute(&lock)).unwrap();
    // The row is written all the same.
    assert!(rig.runtime.block_on(gateway::record(&claimer, SLOT, 1, Lsn(5), None)).unwrap());
    let claiming = rig.runtime.spawn(async move { gateway::claim(&claimer, SLOT, "1", 1, false).await.unwrap().term });
    let waits =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%walgate.gateway%'";
    eventually(DEADLINE, "it waits", || rig.database.value(waits) == "1");
    assert!(!claiming.is_finished());
    rig.runtime.block_on(writer.batch_execute("COMMIT")).unwrap();
    assert_eq!(rig.runtime.block_on(claiming).unwrap(), 2);
}

/// PostgreSQL 17 and later: what is parked has to be on the standby that the slot moves to.
#[test]
fn with_a_failover_slot_rows_wait_for_the_standbys() {
    let server = Postgres::start(Options::default());
    let rig = Rig::with(server.database());
    if rig.value("SELECT current_setting('server_version_num')::int >= 170000") != "t" {
        return;
    }
    rig.database.sql(&format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'pgoutput', failover => true)"));
    // A standby's slot that nobody reads is never there yet.
    rig.database.sql("SELECT pg_create_physical_replication_slot('standby', true)");
    let patience = Duration::from_secs(2);
    let store = rig.store_of(SLOT, SINK, patience, Duration::from_secs(60));
    assert_eq!(store.park(&[parcel_of_key(1, "a")]).0, 1, "the setting is empty");
    rig.database.sql("ALTER SYSTEM SET synchronized_standby_slots = 'standby, \"absent\"'");
    rig.database.sql("SELECT pg_reload_conf()");
    eventually(DEADLINE, "the setting is there", || rig.value("SHOW synchronized_standby_slots").contains("standby"));
    let start = Instant::now();
    let error = store.run(store.store.park(vec![parcel_of_key(2, "a")])).unwrap_err();
    assert!(start.elapsed() < patience + Duration::from_secs(1));
    assert!(!error.lasting && error.message.contains("standby, absent"), "{error}");
    let error = store.run(store.store.bury(vec![letter(parcel_of_key(3, "a"), "refused")], vec![])).unwrap_err();
    assert!(!error.lasting && error.message.contains("synchronized_standby_slots"), "{error}");
    assert_eq!(
        (rig.count("parked"), rig.count("dead_letters")),
        (2, 1),
        "they are written, and may be asked for again"
    );
    // A slot without failover goes nowhere.
    assert_eq!(rig.store_of("other", SINK, patience, patience).park(&[parcel_of_key(1, "a")]).0, 1);
    // The standby has it in the end.
    rig.database.sql("ALTER SYSTEM SET synchronized_standby_slots = 'fresh'");
    rig.database.sql("SELECT pg_reload_conf()");
    let waiting = {
        let store = rig.store().store.clone();
        rig.runtime.spawn(async move { store.park(vec![parcel_of_key(2, "a")]).await })
    };
    rig.database.sql("SELECT pg_create_logical_replication_slot('fresh', 'pgoutput')");
    eventually(DEADLINE, "the standby's slot is far enough", || {
        rig.database.sql("SELECT pg_replication_slot_advance('fresh', pg_current_wal_flush_lsn())");
        waiting.is_finished()
    });
    assert_eq!(rig.runtime.block_on(waiting).unwrap(), Ok((0, 0)));
}
