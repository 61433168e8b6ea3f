use bytes::Bytes;
use walgate_sink::{Lsn, PayloadFormat, Position, Timestamp};

use super::*;
use crate::source::pgoutput::{
    Change, decode,
    encode::{self, Cell, text},
};

const UUID: u32 = 2950;
const TEXT: u32 = 25;
const JSONB: u32 = 3802;
const BYTEA: u32 = 17;
const SEED: [(&str, u32); 5] =
    [("id", UUID), ("event_type", TEXT), ("payload", JSONB), ("created_at", 1184), ("published", 16)];
const PLACE: Position = Position { commit_lsn: Lsn(0x10), ordinal: 3 };
const TIME: Timestamp = Timestamp(1_767_225_600_000_000);

fn reader(change: impl FnOnce(&mut config::Outbox), columns: &[&str]) -> OutboxReader {
    let mut outbox = config::Outbox::default();
    change(&mut outbox);
    let columns: Vec<_> = columns.iter().map(|column| (*column).to_owned()).collect();
    OutboxReader::new(outbox, &columns).unwrap()
}

fn describe(reader: &mut OutboxReader, oid: u32, name: &str, columns: &[(&str, u32)]) -> Result<(), MappingError> {
    let (schema, name) = name.split_once('.').unwrap();
    match decode(&encode::relation(oid, schema, name, columns)).unwrap() {
        Change::Relation(relation) => reader.relation(relation),
        _ => panic!("not a Relation"),
    }
}

fn insert(reader: &OutboxReader, oid: u32, cells: &[Cell]) -> Result<Option<Inserted>, MappingError> {
    match decode(&encode::insert(oid, cells)).unwrap() {
        Change::Insert { relation, tuple } => reader.insert(relation, &tuple, PLACE, TIME),
        _ => panic!("not an Insert"),
    }
}

fn row(reader: &OutboxReader, oid: u32, cells: &[Cell]) -> Row {
    match insert(reader, oid, cells) {
        Ok(Some(Inserted::Row(row))) => row,
        other => panic!("not a row: {other:?}"),
    }
}

fn unusable(reader: &OutboxReader, oid: u32, cells: &[Cell]) -> Unusable {
    match insert(reader, oid, cells) {
        Ok(Some(Inserted::Unusable(unusable))) => unusable,
        other => panic!("not an unusable row: {other:?}"),
    }
}

/// A reader with an outbox `public.outbox_events` of these columns under OID 1, all columns mapped.
fn mapped(columns: &[(&str, u32)]) -> OutboxReader {
    let mut reader = reader(
        |outbox| {
            outbox.columns.key = config::KeySource::parse("key").ok();
            outbox.columns.headers = Some("headers".into());
        },
        &[],
    );
    describe(&mut reader, 1, "public.outbox_events", columns).unwrap();
    reader
}

const ALL: [(&str, u32); 5] =
    [("id", TEXT), ("event_type", TEXT), ("payload", JSONB), ("key", TEXT), ("headers", JSONB)];

#[test]
fn the_seed_table_works_without_a_mapping() {
    let mut reader = reader(|_| {}, &[]);
    describe(&mut reader, 42, "public.outbox_events", &SEED).unwrap();
    let cells = [text("5c8e"), text("order.created"), text("{\"a\": 1}"), text("2026-01-01"), text("f")];
    let row = row(&reader, 42, &cells);
    assert_eq!((&*row.event.id, &*row.event.event_type), ("5c8e", "order.created"));
    assert_eq!(row.event.payload.as_deref(), Some(&b"{\"a\": 1}"[..]));
    assert_eq!((row.event.format, row.event.position, row.event.committed_at), (PayloadFormat::Json, PLACE, TIME));
    assert!(row.event.key.is_none() && row.event.headers.is_empty() && row.columns.is_empty());
    let size: usize =
        ["5c8e", "order.created", "{\"a\": 1}", "2026-01-01", "f"].iter().map(|cell| cell.len() + 5).sum();
    assert_eq!(row.bytes, size as u64 + ROW_OVERHEAD);
}

#[test]
fn every_place_is_filled() {
    let mut reader = reader(
        |outbox| {
            outbox.table = "\"My App\".\"Out.box\"".into();
            outbox.columns.key = config::KeySource::parse("aggregate_id").ok();
            outbox.columns.headers = Some("meta".into());
            outbox.header_columns.insert("traceparent".into(), "trace".into());
            outbox.header_columns.insert("absent".into(), "nothing".into());
        },
        &["region", "aggregate_id", "nothing"],
    );
    let columns = [
        ("trace", TEXT),
        ("region", TEXT),
        ("meta", JSONB),
        ("nothing", TEXT),
        ("payload", TEXT),
        ("aggregate_id", 23),
        ("event_type", TEXT),
        ("id", 20),
    ];
    describe(&mut reader, 1, "My App.Out.box", &columns).unwrap();
    let cells = [
        text("00-ab"),
        text("eu"),
        text("{\"tenant\": \"t1\", \"traceparent\": \"data\"}"),
        Cell::Null,
        text("hello"),
        text("17"),
        text("x"),
        text("9"),
    ];
    let row = row(&reader, 1, &cells);
    assert_eq!((&*row.event.id, row.event.key.as_deref()), ("9", Some("17")));
    assert_eq!((row.event.format, row.event.body()), (PayloadFormat::Text, &b"hello"[..]));
    let headers: Vec<_> = row.event.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(headers, [("traceparent", "00-ab"), ("tenant", "t1")]);
    let columns: Vec<_> = row.columns.iter().map(|column| column.as_deref()).collect();
    assert_eq!(columns, [Some("eu"), Some("17"), None]);
}

#[test]
fn a_key_may_come_from_the_payload() {
    let pointer = |outbox: &mut config::Outbox| {
        outbox.columns.payload = "body".into();
        outbox.columns.key = config::KeySource::parse("payload:/order/id").ok();
    };
    let keyed = |type_oid: u32, cell: Cell| {
        let mut reader = reader(pointer, &[]);
        describe(&mut reader, 1, "public.outbox_events", &[("id", TEXT), ("event_type", TEXT), ("body", type_oid)])
            .unwrap();
        let row = row(&reader, 1, &[text("1"), text("x"), cell]);
        (row.event.key.map(|key| key.to_string()), row.no_key)
    };
    for (type_oid, cell, key) in [
        (JSONB, text(r#"{"order": {"id": "A-7"}}"#), Ok("A-7")),
        (TEXT, text(r#"{"order": {"id": 7.50}}"#), Ok("7.50")),
        (BYTEA, text(&format!("\\x{}", "7b226f72646572223a7b226964223a317d7d")), Ok("1")),
        (JSONB, text("{}"), Err(NoKey::Absent)),
        (JSONB, text(r#"{"order": {"id": null}}"#), Err(NoKey::Absent)),
        (JSONB, Cell::Null, Err(NoKey::Absent)),
        (JSONB, text(r#"{"order": {"id": [1]}}"#), Err(NoKey::NotScalar)),
        (TEXT, text("hello"), Err(NoKey::NotJson)),
        (BYTEA, text("\\x00ff"), Err(NoKey::NotJson)),
    ] {
        assert_eq!(keyed(type_oid, cell), (key.ok().map(str::to_owned), key.err()));
    }
}

#[test]
fn an_imagined_row_is_read_as_one_of_the_table() {
    let mut reader = reader(
        |outbox| {
            outbox.columns.key = config::KeySource::parse("aggregate_id").ok();
            outbox.columns.headers = Some("meta".into());
            outbox.header_columns.insert("tenant".into(), "tenant".into());
        },
        &["region"],
    );
    let columns =
        [("id", "1"), ("event_type", "x"), ("payload", "{}"), ("aggregate_id", "k"), ("meta", r#"{"a": "b"}"#)];
    let more = [("tenant", "acme"), ("region", "eu")];
    let all: Vec<(&str, &str)> = columns.into_iter().chain(more).collect();
    let described: Vec<(&str, u32)> =
        all.iter().map(|(name, _)| (*name, if *name == "meta" { JSONB } else { TEXT })).collect();
    describe(&mut reader, 1, "public.outbox_events", &described).unwrap();
    let real = row(&reader, 1, &all.iter().map(|(_, value)| text(value)).collect::<Vec<_>>());
    let value_of =
        |name: &str| all.iter().find(|(known, _)| *known == name).map(|(_, value)| Bytes::from(value.to_string()));
    let imagined = reader.imagine(&value_of, PayloadFormat::Text).unwrap();
    let shown = |row: &Row| {
        let Row { event, columns, .. } = row;
        format!("{} {} {:?} {:?} {:?} {columns:?}", event.id, event.event_type, event.key, event.payload, event.headers)
    };
    assert_eq!(shown(&imagined), shown(&real));
    let error = reader.imagine(&|name| value_of(name).filter(|_| name != "id"), PayloadFormat::Json).unwrap_err();
    assert_eq!(error.as_str(), "null_column");
}

#[test]
fn null_is_no_payload_no_key_and_no_headers() {
    let reader = mapped(&ALL);
    let row = row(&reader, 1, &[text("1"), text("x"), Cell::Null, Cell::Null, Cell::Null]);
    assert!(row.event.payload.is_none() && row.event.key.is_none() && row.event.headers.is_empty());
}

#[test]
fn hostile_text_passes_through_and_payload_bytes_are_untouched() {
    let reader = mapped(&[("id", TEXT), ("event_type", TEXT), ("payload", TEXT), ("key", TEXT), ("headers", JSONB)]);
    let hostile = "\u{1}\r\n\u{202e}../*>\u{1F600}";
    let payload = Cell::Text(b"\xff\x00\xfe".to_vec());
    let row = row(&reader, 1, &[text(hostile), text(hostile), payload, text(""), Cell::Null]);
    assert_eq!((&*row.event.id, &*row.event.event_type, row.event.key.as_deref()), (hostile, hostile, Some("")));
    assert_eq!(row.event.body(), b"\xff\x00\xfe");
}

#[test]
fn the_type_of_the_payload_says_what_it_is() {
    for (type_oid, cell, format, body) in [
        (114, "{}", PayloadFormat::Json, &b"{}"[..]),
        (JSONB, "{}", PayloadFormat::Json, b"{}"),
        (BYTEA, "\\x00ff", PayloadFormat::Binary, b"\x00\xff"),
        (BYTEA, "a\\\\\\000", PayloadFormat::Binary, b"a\\\x00"),
        (70_000, "{a,b}", PayloadFormat::Text, b"{a,b}"),
    ] {
        let reader =
            mapped(&[("id", TEXT), ("event_type", TEXT), ("payload", type_oid), ("key", TEXT), ("headers", JSONB)]);
        let row = row(&reader, 1, &[text("1"), text("x"), text(cell), Cell::Null, Cell::Null]);
        assert_eq!((row.event.format, row.event.body()), (format, body), "{type_oid}");
    }
}

#[test]
fn a_domain_is_what_it_is_made_of() {
    let mut reader = reader(|_| {}, &[]);
    for (oid, schema, name) in [(70_001, "", "jsonb"), (70_002, "", "bytea"), (70_003, "app", "jsonb")] {
        let Change::Type(name) = decode(&encode::type_name(oid, schema, name)).unwrap() else { panic!("not a Type") };
        reader.type_name(&name);
    }
    for (oid, format) in [(70_001, PayloadFormat::Json), (70_002, PayloadFormat::Binary), (70_003, PayloadFormat::Text)]
    {
        let columns = [("id", UUID), ("event_type", TEXT), ("payload", oid)];
        describe(&mut reader, 1, "public.outbox_events", &columns).unwrap();
        assert_eq!(row(&reader, 1, &[text("1"), text("x"), text("\\x01")]).event.format, format);
    }
}

#[test]
fn a_row_that_cannot_be_an_event_is_handed_back_with_its_reason() {
    let reader = mapped(&ALL);
    let bad = || Cell::Text(b"\xff".to_vec());
    let ok = [text("1"), text("x"), text("{}"), text("k"), text("{}")];
    for (column, cell, label) in [
        (0, Cell::Null, "null_column"),
        (1, Cell::Null, "null_column"),
        (0, bad(), "not_utf8"),
        (1, bad(), "not_utf8"),
        (3, bad(), "not_utf8"),
        (4, bad(), "not_utf8"),
        (4, text("[]"), "invalid_headers"),
        (4, text("{"), "invalid_headers"),
    ] {
        let mut cells = ok.clone();
        cells[column] = cell.clone();
        let unusable = unusable(&reader, 1, &cells);
        assert_eq!(unusable.reason.as_str(), label);
        assert_eq!((unusable.position, unusable.committed_at), (PLACE, TIME));
        assert!(unusable.bytes > ROW_OVERHEAD);
        let id = if let Cell::Text(id) = &cells[0] { id.clone() } else { Vec::new() };
        assert_eq!(unusable.id, id);
        assert_eq!(unusable.event_type.is_some(), column != 1);
    }
    let reader = mapped(&[("id", TEXT), ("event_type", TEXT), ("payload", BYTEA), ("key", TEXT), ("headers", JSONB)]);
    let unusable = unusable(&reader, 1, &[text("1"), text("x"), text("\\x0"), Cell::Null, Cell::Null]);
    assert_eq!(unusable.reason.as_str(), "invalid_bytea");
}

#[test]
fn the_reasons_read_well() {
    let reader = mapped(&ALL);
    let reason = |cells: &[Cell]| unusable(&reader, 1, cells).reason.to_string();
    insta::assert_snapshot!(reason(&[text("1"), Cell::Null, Cell::Null, Cell::Null, Cell::Null]), @"column `event_type` is NULL, and an event needs a type: write one in the transaction that inserts the row");
    insta::assert_snapshot!(reason(&[Cell::Text(vec![255]), text("x"), Cell::Null, Cell::Null, Cell::Null]), @"column `id` is not valid UTF-8: an SQL_ASCII database stores any bytes, so encode it when writing");
    insta::assert_snapshot!(reason(&[text("1"), text("x"), Cell::Null, Cell::Null, text("7")]), @r#"column `headers` cannot be read as headers: it is not a JSON object; write a JSON object, such as {"tenant": "a"}, or NULL"#);
}

#[test]
fn a_missing_column_is_explained() {
    let mut seed = reader(|outbox| outbox.columns.event_type = "event_typ".into(), &[]);
    let error = describe(&mut seed, 42, "public.outbox_events", &SEED).unwrap_err();
    insta::assert_snapshot!(error, @"the outbox table public.outbox_events has no column `event_typ`, which `outbox.columns.event_type` names (did you mean `event_type`?): its published columns are id, event_type, payload, created_at, published; correct the configuration, or add the column to the table and to the publication's column list if it has one");
    // Its rows give the same error: nothing is guessed, and nothing passes for another table's.
    assert_eq!(insert(&seed, 42, &[text("1")]).unwrap_err(), error);

    let mut all = reader(
        |outbox| {
            outbox.columns.key = config::KeySource::parse("order_id").ok();
            outbox.header_columns.insert("tenant".into(), "tenant".into());
        },
        &["Region"],
    );
    let error = describe(&mut all, 42, "public.outbox_events", &[("id", UUID), ("event_type", TEXT), ("region", TEXT)]);
    insta::assert_snapshot!(error.unwrap_err(), @"the outbox table public.outbox_events has no column `payload`, which `outbox.columns.payload` names, nor `order_id`, which `outbox.columns.key` names, nor `tenant`, which `outbox.header_columns.tenant` names, nor `Region`, which a route with `column.Region` names (did you mean `region`?): its published columns are id, event_type, region; correct the configuration, or add the column to the table and to the publication's column list if it has one");
}

#[test]
fn the_newest_relation_message_decides() {
    let mut reader = reader(|_| {}, &[]);
    describe(&mut reader, 1, "public.outbox_events", &SEED).unwrap();
    let reordered = [("payload", TEXT), ("extra", 23), ("event_type", TEXT), ("id", 20)];
    describe(&mut reader, 1, "public.outbox_events", &reordered).unwrap();
    let event = row(&reader, 1, &[text("p"), Cell::Null, text("x"), text("7")]).event;
    assert_eq!((&*event.id, &*event.event_type, event.body()), ("7", "x", &b"p"[..]));
    // A dropped column stops it, and a new description mends it.
    describe(&mut reader, 1, "public.outbox_events", &reordered[1..]).unwrap_err();
    assert!(matches!(insert(&reader, 1, &[text("7")]), Err(MappingError::Missing { .. })));
    describe(&mut reader, 1, "public.outbox_events", &SEED).unwrap();
    assert!(matches!(insert(&reader, 1, &[text("7")]), Err(MappingError::Width { described: 5, row: 1, .. })));
}

#[test]
fn a_renamed_table_and_its_successor_are_both_the_outbox() {
    let mut reader = reader(|_| {}, &[]);
    describe(&mut reader, 1, "public.outbox_events", &SEED).unwrap();
    describe(&mut reader, 1, "archive.outbox_old", &SEED).unwrap();
    describe(&mut reader, 2, "public.outbox_events", &SEED).unwrap();
    let cells = [text("1"), text("x"), text("{}"), Cell::Null, Cell::Null];
    for oid in [1, 2] {
        assert!(reader.is_outbox(oid));
        assert_eq!(&*row(&reader, oid, &cells).event.id, "1");
    }
}

#[test]
fn other_tables_are_told_apart_and_unknown_ones_are_an_error() {
    let mut reader = reader(|_| {}, &[]);
    describe(&mut reader, 1, "public.orders", &[("id", 20)]).unwrap();
    describe(&mut reader, 2, "other.outbox_events", &SEED).unwrap();
    for oid in [1, 2] {
        assert!(matches!(insert(&reader, oid, &[text("1")]), Ok(None)));
        assert!(!reader.is_outbox(oid));
    }
    assert_eq!(insert(&reader, 3, &[text("1")]).unwrap_err(), MappingError::Undescribed { oid: 3 });
    // A table that takes the outbox's name becomes the outbox.
    describe(&mut reader, 1, "public.outbox_events", &SEED).unwrap();
    assert!(reader.is_outbox(1));
}

#[test]
fn a_partition_can_be_included_by_its_oid() {
    let mut reader = reader(|_| {}, &[]);
    reader.include(7);
    describe(&mut reader, 7, "public.outbox_events_p1", &SEED).unwrap();
    assert!(reader.is_outbox(7));
}

#[test]
fn a_row_shares_the_memory_of_its_message() {
    let reader = mapped(&ALL);
    let body = encode::insert(1, &[text("1"), text("x"), text("{}"), text("k"), text("{\"a\": \"b\"}")]);
    let Change::Insert { relation, tuple } = decode(&body).unwrap() else { panic!("not an Insert") };
    let Ok(Some(Inserted::Row(row))) = reader.insert(relation, &tuple, PLACE, TIME) else { panic!("not a row") };
    let shared = |bytes: &Bytes| body.as_ptr_range().contains(&bytes.as_ptr());
    assert!(shared(row.event.id.as_bytes()) && shared(row.event.payload.as_ref().unwrap()));
    assert!(shared(row.event.headers.get("a").unwrap().as_bytes()));
}
