use bytes::Bytes;
use proptest::prelude::*;
use walgate_sink::{Lsn, Timestamp};

use super::{
    encode::{self, Cell, text},
    *,
};

/// The columns of a row as text; `None`: NULL.
fn cells(tuple: &Tuple) -> Vec<Option<Bytes>> {
    let cells: Vec<_> = tuple
        .values()
        .map(|value| match value {
            Value::Null => None,
            Value::Text(text) => Some(text.to_bytes()),
        })
        .collect();
    assert_eq!(cells.len(), tuple.len());
    cells
}

fn error(bytes: &'static [u8]) -> String {
    decode(&Bytes::from_static(bytes)).unwrap_err().to_string()
}

#[test]
fn a_transaction_is_read() {
    // 2026-01-01 00:00:00 UTC: 9497 days after 2000-01-01.
    let time = 9497 * 86_400_000_000_i64;
    let Change::Begin { final_lsn, committed_at, xid } = decode(&encode::begin(Lsn(0x1_0000_0010), time, 771)).unwrap()
    else {
        panic!("not a Begin");
    };
    assert_eq!((final_lsn, committed_at, xid), (Lsn(0x1_0000_0010), Timestamp(1_767_225_600_000_000), 771));
    let Change::Commit { commit_lsn, end_lsn, committed_at } = decode(&encode::commit(Lsn(7), Lsn(9), time)).unwrap()
    else {
        panic!("not a Commit");
    };
    assert_eq!((commit_lsn, end_lsn, committed_at), (Lsn(7), Lsn(9), Timestamp(1_767_225_600_000_000)));
}

#[test]
fn bytes_as_the_manual_lays_them_out() {
    let insert = b"I\x00\x00\x40\x01N\x00\x03t\x00\x00\x00\x02hint\x00\x00\x00\x00";
    let Change::Insert { relation, tuple } = decode(&Bytes::from_static(insert)).unwrap() else {
        panic!("not an Insert");
    };
    assert_eq!(relation, 0x4001);
    assert_eq!(cells(&tuple), [Some(Bytes::from_static(b"hi")), None, Some(Bytes::new())]);

    let relation = b"R\x00\x00\x40\x01public\0t\0d\x00\x02\x01id\0\x00\x00\x00\x17\xff\xff\xff\xff\x00v\0\x00\x00\x0e\xda\x00\x00\x00\x05";
    let Change::Relation(relation) = decode(&Bytes::from_static(relation)).unwrap() else {
        panic!("not a Relation");
    };
    let column = |name: &str, type_oid, type_modifier, key| RelationColumn {
        name: name.to_owned(),
        type_oid,
        type_modifier,
        key,
    };
    let columns = vec![column("id", 23, -1, true), column("v", 3802, 5, false)];
    assert_eq!(relation, Relation { oid: 0x4001, schema: "public".into(), name: "t".into(), columns });
}

#[test]
fn columns_share_the_memory_of_the_message() {
    let body = encode::insert(1, &[text("shared")]);
    let Change::Insert { tuple, .. } = decode(&body).unwrap() else { panic!("not an Insert") };
    let column = cells(&tuple).remove(0).unwrap();
    assert!(body.as_ptr_range().contains(&column.as_ptr()));
}

#[test]
fn the_rest_is_read_far_enough_to_be_counted() {
    let row = [text("a"), Cell::Null, Cell::Unchanged];
    for (body, oid) in [
        (encode::update(5, None, &row), 5),
        (encode::update(6, Some((b'K', &row)), &row), 6),
        (encode::update(7, Some((b'O', &row)), &[]), 7),
    ] {
        assert!(matches!(decode(&body), Ok(Change::Update { relation }) if relation == oid));
    }
    assert!(decode(&encode::update(5, None, &[Cell::Binary(vec![1])])).is_err());
    assert!(matches!(decode(&encode::delete(8, b'K', &row)), Ok(Change::Delete { relation: 8 })));
    assert!(matches!(decode(&encode::delete(9, b'O', &row)), Ok(Change::Delete { relation: 9 })));
    assert!(matches!(decode(&encode::truncate(3, &[1, 2])), Ok(Change::Truncate { relations }) if relations == [1, 2]));
    assert!(
        matches!(decode(&encode::origin(Lsn(4), "up")), Ok(Change::Origin { commit_lsn: Lsn(4), name }) if name == "up")
    );
    let Ok(Change::Type(name)) = decode(&encode::type_name(70_000, "", "jsonb")) else { panic!("not a Type") };
    assert_eq!(name, TypeName { oid: 70_000, schema: "pg_catalog".into(), name: "jsonb".into() });
    let Ok(Change::Message(message)) = decode(&encode::message(true, Lsn(3), "outbox", b"\x00\xff")) else {
        panic!("not a Message");
    };
    assert!(message.transactional);
    assert_eq!((message.lsn, &message.prefix[..], &message.content[..]), (Lsn(3), &b"outbox"[..], &b"\x00\xff"[..]));
}

#[test]
fn errors_name_the_message_the_place_and_both_sides() {
    insta::assert_snapshot!(error(b""), @"malformed pgoutput message (empty): wanted a message type at byte 0, found the end of the message");
    insta::assert_snapshot!(error(b"S\x00\x00\x00\x01\x01"), @"malformed pgoutput message (unknown): wanted a message type of protocol version 1 (one of B, C, D, I, M, O, R, T, U, Y) at byte 0, found `S`");
    insta::assert_snapshot!(error(b"\x00"), @"malformed pgoutput message (unknown): wanted a message type of protocol version 1 (one of B, C, D, I, M, O, R, T, U, Y) at byte 0, found byte 0x00");
    insta::assert_snapshot!(error(b"B\x00\x00"), @"malformed pgoutput message Begin: wanted the LSN of the commit at byte 1, found 2 bytes");
    insta::assert_snapshot!(error(b"I\x00\x00\x40\x01K\x00\x00"), @"malformed pgoutput message Insert: wanted `N`, a new row at byte 5, found `K`");
    insta::assert_snapshot!(error(b"I\x00\x00\x40\x01N\x00\x01u"), @"malformed pgoutput message Insert: wanted a column as text or NULL at byte 8, found the marker of an unchanged TOASTed value");
    insta::assert_snapshot!(error(b"I\x00\x00\x40\x01N\x00\x01b\x00\x00\x00\x01x"), @"malformed pgoutput message Insert: wanted a column as text or NULL at byte 8, found a value in binary form");
    insta::assert_snapshot!(error(b"I\x00\x00\x40\x01N\x00\x01t\x7f\xff\xff\xffx"), @"malformed pgoutput message Insert: wanted the text of a column at byte 13, found 1 byte");
    insta::assert_snapshot!(error(b"I\x00\x00\x40\x01N\x00\x01t\xff\xff\xff\xffx"), @"malformed pgoutput message Insert: wanted the length of a column at byte 9, found length -1");
    insta::assert_snapshot!(error(b"I\x00\x00\x40\x01N\x00\x01nn"), @"malformed pgoutput message Insert: wanted the end of the message at byte 9, found 1 byte");
    insta::assert_snapshot!(error(b"R\x00\x00\x40\x01public\0t"), @"malformed pgoutput message Relation: wanted the name of a table at byte 12, found 1 byte");
    insta::assert_snapshot!(error(b"T\xff\xff\xff\xff\x00\x00\x00\x00\x01"), @"malformed pgoutput message Truncate: wanted the OID of a table at byte 10, found the end of the message");
}

#[test]
fn no_debug_output_holds_data() {
    let insert = decode(&encode::insert(1, &[text("canary")])).unwrap();
    let message = decode(&encode::message(false, Lsn(1), "prefix", b"canary")).unwrap();
    assert!(!format!("{insert:?}{message:?}").contains("canary"));
}

/// A row whose columns may be there in new rows, and in old ones where `unchanged`.
fn row(unchanged: bool) -> impl Strategy<Value = Vec<Cell>> {
    let cell = prop_oneof![
        4 => any::<Vec<u8>>().prop_map(Cell::Text),
        1 => Just(Cell::Null),
        1 => Just(if unchanged { Cell::Unchanged } else { Cell::Null }),
    ];
    proptest::collection::vec(cell, 0..12)
}

fn any_message() -> impl Strategy<Value = Bytes> {
    let name = "[a-zA-Z_ .é\"]{0,12}";
    prop_oneof![
        any::<(u64, i64, u32)>().prop_map(|(lsn, time, xid)| encode::begin(Lsn(lsn), time, xid)),
        any::<(u64, u64, i64)>().prop_map(|(commit, end, time)| encode::commit(Lsn(commit), Lsn(end), time)),
        (any::<u32>(), name, name, proptest::collection::vec((name, any::<u32>()), 0..9)).prop_map(
            |(oid, schema, table, columns)| {
                let columns: Vec<_> = columns.iter().map(|(name, oid)| (&**name, *oid)).collect();
                encode::relation(oid, &schema, &table, &columns)
            }
        ),
        (any::<u32>(), row(false)).prop_map(|(oid, row)| encode::insert(oid, &row)),
        (any::<u32>(), row(true), row(true)).prop_map(|(oid, old, new)| encode::update(oid, Some((b'O', &old)), &new)),
        (any::<u32>(), row(true)).prop_map(|(oid, new)| encode::update(oid, None, &new)),
        (any::<u32>(), row(true)).prop_map(|(oid, old)| encode::delete(oid, b'K', &old)),
        (any::<u8>(), any::<Vec<u32>>()).prop_map(|(options, oids)| encode::truncate(options, &oids)),
        (any::<u64>(), name).prop_map(|(lsn, name)| encode::origin(Lsn(lsn), &name)),
        (any::<u32>(), name, name).prop_map(|(oid, schema, name)| encode::type_name(oid, &schema, &name)),
        (any::<bool>(), any::<u64>(), name, any::<Vec<u8>>()).prop_map(|(own, lsn, prefix, content)| encode::message(
            own,
            Lsn(lsn),
            &prefix,
            &content
        )),
    ]
}

/// Encodes what was decoded again, as far as a change keeps its message.
fn encoded(change: &Change) -> Option<Bytes> {
    let since_2000 = |time: &Timestamp| time.0 - POSTGRES_EPOCH;
    Some(match change {
        Change::Begin { final_lsn, committed_at, xid } => encode::begin(*final_lsn, since_2000(committed_at), *xid),
        Change::Commit { commit_lsn, end_lsn, committed_at } => {
            encode::commit(*commit_lsn, *end_lsn, since_2000(committed_at))
        }
        Change::Relation(relation) => {
            let columns: Vec<_> = relation.columns.iter().map(|column| (&*column.name, column.type_oid)).collect();
            encode::relation(relation.oid, &relation.schema, &relation.name, &columns)
        }
        Change::Insert { relation, tuple } => {
            let cells = cells(tuple).into_iter().map(|cell| cell.map_or(Cell::Null, |text| Cell::Text(text.into())));
            encode::insert(*relation, &cells.collect::<Vec<_>>())
        }
        Change::Origin { commit_lsn, name } => encode::origin(*commit_lsn, name),
        Change::Type(name) => encode::type_name(name.oid, &name.schema, &name.name),
        Change::Message(message) => encode::message(
            message.transactional,
            message.lsn,
            std::str::from_utf8(&message.prefix).ok()?,
            &message.content,
        ),
        Change::Update { .. } | Change::Delete { .. } | Change::Truncate { .. } => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = decode(&bytes.into());
    }

    #[test]
    fn no_bytes_after_a_known_type_panic(kind in "[BCRIUDTOYM]", bytes: Vec<u8>) {
        let _ = decode(&[kind.as_bytes(), &bytes].concat().into());
    }

    #[test]
    fn what_is_encoded_is_decoded(message in any_message()) {
        let change = decode(&message).unwrap();
        // An empty schema is decoded as what it stands for, and a time beyond the range saturates.
        let exact = !matches!(&change, Change::Relation(Relation { schema, .. }) | Change::Type(TypeName { schema, .. })
            if schema == "pg_catalog")
            && !matches!(change, Change::Begin { committed_at: Timestamp(i64::MAX), .. } | Change::Commit { committed_at: Timestamp(i64::MAX), .. });
        if let Some(again) = encoded(&change).filter(|_| exact) {
            prop_assert_eq!(again, message);
        }
    }

    #[test]
    fn a_message_cut_short_or_with_more_is_an_error(message in any_message(), cut: prop::sample::Index, more: u8) {
        prop_assert!(decode(&message.slice(..cut.index(message.len()))).is_err());
        prop_assert!(decode(&[&message[..], &[more]].concat().into()).is_err());
    }

    #[test]
    fn no_mutation_of_a_message_panics(message in any_message(), flips: Vec<(prop::sample::Index, u8)>) {
        let mut bytes = message.to_vec();
        for (place, byte) in flips {
            let place = place.index(bytes.len());
            bytes[place] ^= byte;
        }
        if let Ok(Change::Insert { tuple, .. }) = decode(&bytes.into()) {
            cells(&tuple);
        }
    }
}
