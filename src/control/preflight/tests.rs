//! Every finding from facts alone, so that its text is seen without a server.

use walgate_sink::Lsn;

use super::*;
use crate::control::{
    finding::{Severity, only_waits},
    slot::{SlotStatus, SlotUser, WalStatus},
};

fn wanted() -> Wanted {
    Wanted::new("walgate", "walgate_outbox", "public", "outbox_events").with_mapping(&config::Outbox::default(), &[])
}

fn column(name: &str, base_type: &str) -> ColumnFacts {
    let (name, sql_type, base_type) = (name.to_owned(), base_type.to_owned(), base_type.to_owned());
    ColumnFacts { name, sql_type, base_type, not_null: true, generated: false }
}

fn slot() -> SlotStatus {
    SlotStatus {
        name: "walgate".into(),
        logical: true,
        plugin: Some("pgoutput".into()),
        database: Some("shop".into()),
        temporary: false,
        active: false,
        user: None,
        restart_lsn: Some(Lsn(0x1_5300_0000)),
        confirmed_flush_lsn: Some(Lsn(0x1_5300_0038)),
        catalog_xmin: Some("741".into()),
        current_wal_lsn: Some(Lsn(0x1_5500_0000)),
        retained_bytes: Some(32 << 20),
        lag_bytes: Some(0x1ff_ffc8),
        wal_status: Some(WalStatus::Reserved),
        safe_wal_size: None,
        invalidation_reason: None,
        inactive_since: None,
        in_recovery: false,
    }
}

/// Everything as it should be: the seed's table, made by `init`.
fn sound() -> Facts {
    Facts {
        server: ServerFacts {
            version: "15.18".into(),
            version_num: 150_018,
            database: "shop".into(),
            role: "walgate".into(),
            may_replicate: true,
            in_recovery: false,
            wal_level: "logical".into(),
            max_replication_slots: 10,
            replication_slots: 1,
            max_wal_senders: 10,
            wal_senders: 0,
            synchronous_standby_names: String::new(),
            max_slot_wal_keep_size: None,
        },
        table: Some(TableFacts {
            oid: 16_400,
            kind: 'r',
            persistence: 'p',
            has_replica_identity: true,
            may_select: false,
            partitions: Vec::new(),
            columns: vec![
                column("id", "uuid"),
                column("event_type", "text"),
                column("payload", "jsonb"),
                column("created_at", "timestamptz"),
                column("published", "bool"),
            ],
        }),
        publication: Some(PublicationFacts {
            all_tables: false,
            insert: true,
            update: false,
            delete: false,
            via_root: true,
            entry: Some(PublicationEntry { attnames: None, rowfilter: None }),
            named: true,
            partitions: false,
            ancestor: None,
            without_identity: None,
            younger_than_slot: Some(false),
        }),
        slots: SlotReport {
            slot: Some(slot()),
            holders: Vec::new(),
            current_wal_lsn: Some(Lsn(0x1_5500_0000)),
            in_recovery: false,
        },
        existing: None,
        past: PastFacts::NotAsked,
        parking: ParkingFacts { exists: true, may_write: true, published: false, named: Vec::new() },
        gateway: None,
        near_table: None,
    }
}

fn findings(wanted: &Wanted, change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
    let mut facts = sound();
    change(&mut facts);
    judge(&facts, wanted)
}

/// The findings as text, one after the other, each with its code and severity.
fn text(wanted: &Wanted, change: impl FnOnce(&mut Facts)) -> String {
    let list = findings(wanted, change);
    list.iter().map(|finding| format!("{:?} {:?}: {finding}\n", finding.severity, finding.code)).collect()
}

fn server(facts: &mut Facts) -> &mut ServerFacts {
    &mut facts.server
}

fn table(facts: &mut Facts) -> &mut TableFacts {
    facts.table.as_mut().unwrap()
}

fn publication(facts: &mut Facts) -> &mut PublicationFacts {
    facts.publication.as_mut().unwrap()
}

fn slot_of(facts: &mut Facts) -> &mut SlotStatus {
    facts.slots.slot.as_mut().unwrap()
}

#[test]
fn nothing_is_found_where_everything_holds() {
    assert_eq!(findings(&wanted(), |_| ()), []);
    assert_eq!(
        findings(&wanted(), |facts| {
            let names = table(facts).columns.iter().map(|column| column.name.clone()).collect();
            publication(facts).entry = Some(PublicationEntry { attnames: Some(names), rowfilter: None });
            publication(facts).younger_than_slot = Some(true);
            facts.past = PastFacts::Readable;
            table(facts).kind = 'p';
            // All of them are in use, and ours is one of them.
            server(facts).max_replication_slots = 1;
        }),
        []
    );
}

#[test]
fn the_server() {
    insta::assert_snapshot!(text(&wanted(), |facts| {
        *server(facts) = ServerFacts {
            in_recovery: true,
            wal_level: "replica".into(),
            replication_slots: 10,
            wal_senders: 10,
            may_replicate: false,
            synchronous_standby_names: "FIRST 1 (s1, WALGATE)".into(),
            ..facts.server.clone()
        };
        facts.slots.slot = None;
    }));
    insta::assert_snapshot!(
        "the_server_star",
        text(&wanted(), |facts| {
            server(facts).synchronous_standby_names = "*".into();
            server(facts).version_num = 160_001;
            server(facts).in_recovery = true;
        })
    );
    insta::assert_snapshot!(server::too_old(Some(&ServerFacts { version: "13.22".into(), ..sound().server })), @"PostgreSQL 13.22 is too old: walgate needs 14 or later; upgrade the server");
}

#[test]
fn the_table() {
    let mut all = String::new();
    all += &text(&wanted(), |facts| {
        facts.table = None;
        facts.near_table = Some("app.outbox_events".into());
        publication(facts).entry = None;
    });
    all += &text(&wanted(), |facts| {
        table(facts).kind = 'v';
        publication(facts).entry = None;
    });
    for persistence in ['u', 't'] {
        all += &text(&wanted(), |facts| {
            table(facts).persistence = persistence;
            publication(facts).entry = None;
        });
    }
    insta::assert_snapshot!(all);
}

#[test]
fn the_columns() {
    let mapped = config::Outbox {
        columns: config::Columns {
            key: config::KeySource::parse("agregate_id").ok(),
            headers: Some("meta".into()),
            ..config::Columns::default()
        },
        header_columns: [("tenant".to_owned(), "tenant".to_owned())].into(),
        ..config::Outbox::default()
    };
    let wanted = wanted().with_mapping(&mapped, &["tenant".to_owned(), "payload".to_owned(), "region".to_owned()]);
    assert_eq!(wanted.columns.len(), 7);
    insta::assert_snapshot!(text(&wanted, |facts| {
        table(facts).columns = vec![
            column("event_type", "text"),
            ColumnFacts { not_null: false, ..column("payload", "hstore") },
            column("aggregate_id", "uuid"),
            column("meta", "text"),
            ColumnFacts { generated: true, ..column("region", "text") },
        ];
    }));
    insta::assert_snapshot!(
        "the_columns_generated_18",
        text(&super::tests::wanted(), |facts| {
            server(facts).version_num = 180_000;
            table(facts).columns[2].generated = true;
            publication(facts).entry =
                Some(PublicationEntry { attnames: Some(vec!["id".into(), "event_type".into()]), rowfilter: None });
        })
    );
    // Texts of every kind are payloads; from 18 on generated columns can be published.
    for base_type in ["jsonb", "json", "text", "bytea", "varchar"] {
        let found = findings(&super::tests::wanted(), |facts| {
            server(facts).version_num = 180_000;
            table(facts).columns[2] = ColumnFacts { generated: true, ..column("payload", base_type) };
        });
        assert_eq!(found, []);
    }
}

#[test]
fn the_publication() {
    let mut all = String::new();
    all += &text(&wanted(), |facts| facts.publication = None);
    all += &text(&wanted(), |facts| {
        facts.publication = None;
        facts.slots.slot = None;
    });
    all += &text(&wanted(), |facts| {
        let found = publication(facts);
        (found.insert, found.update, found.delete) = (false, true, true);
        found.without_identity =
            Some(["public.outbox_events", "public.a", "public.b", "public.c"].map(String::from).into());
        found.entry = Some(PublicationEntry {
            attnames: Some(vec!["id".into(), "created_at".into()]),
            rowfilter: Some("(event_type <> 'x'::text)".into()),
        });
    });
    all += &text(&wanted(), |facts| {
        publication(facts).entry = None;
        publication(facts).named = false;
    });
    all += &text(&wanted(), |facts| {
        table(facts).kind = 'p';
        (publication(facts).entry, publication(facts).partitions) = (None, true);
    });
    all += &text(&wanted(), |facts| {
        (publication(facts).entry, publication(facts).named) = (None, false);
        publication(facts).ancestor = Some("public.events".into());
    });
    insta::assert_snapshot!(all);
}

#[test]
fn a_publication_that_is_younger_than_the_slot() {
    let mut all = String::new();
    for (major, past) in
        [(15, PastFacts::Missing(Some(Lsn(0x19480A8)))), (15, PastFacts::Unknown), (18, PastFacts::NotAsked)]
    {
        all += &text(&wanted(), |facts| {
            server(facts).version_num = major * 10_000;
            publication(facts).younger_than_slot = Some(true);
            facts.past = past;
        });
    }
    insta::assert_snapshot!(all);
}

#[test]
fn the_slot() {
    let mut all = String::new();
    all += &text(&wanted(), |facts| facts.slots.slot = None);
    all += &text(&wanted(), |facts| slot_of(facts).logical = false);
    all += &text(&wanted(), |facts| {
        let slot = slot_of(facts);
        slot.plugin = Some("test_decoding".into());
        slot.database = Some("other".into());
        slot.temporary = true;
    });
    for reason in [None, Some("wal_removed"), Some("idle_timeout"), Some("rows_removed"), Some("something\nnew")] {
        all += &text(&wanted(), |facts| {
            let slot = slot_of(facts);
            slot.wal_status = Some(WalStatus::Lost);
            (slot.restart_lsn, slot.retained_bytes) = (None, None);
            slot.invalidation_reason = reason.map(String::from);
        });
    }
    all += &text(&wanted(), |facts| {
        server(facts).max_slot_wal_keep_size = Some(16);
        slot_of(facts).wal_status = Some(WalStatus::Unreserved);
    });
    insta::assert_snapshot!(all);
}

#[test]
fn a_slot_in_use_is_waited_for() {
    let found = findings(&wanted(), |facts| {
        // Its walsender is one of those in use.
        (server(facts).wal_senders, server(facts).max_wal_senders) = (1, 1);
        slot_of(facts).active = true;
        slot_of(facts).user = Some(SlotUser {
            pid: 4711,
            user: Some("walgate".into()),
            application_name: Some("walgate".into()),
            client_addr: Some("10.0.0.3".into()),
        });
    });
    assert!(only_waits(&found));
    assert_eq!(found[0].severity, Severity::Wait);
    insta::assert_snapshot!(found[0]);
}

#[test]
fn rows_that_are_there_already() {
    let wanted = wanted().counting_rows();
    let mut all = text(&wanted, |_| ());
    for (rows, behind_slot, exists) in [
        (3, 0, false),
        (3, 3, true),
        (1, 1, true),
        (5, 2, true),
        (5, 0, true),
        (ROWS_COUNTED, ROWS_COUNTED, true),
        (0, 0, true),
    ] {
        all += &text(&wanted, |facts| {
            table(facts).may_select = true;
            facts.existing = Some(ExistingRows { rows, behind_slot });
            if !exists {
                facts.slots.slot = None;
            }
        });
    }
    insta::assert_snapshot!(all);
}

#[test]
fn the_parking_tables() {
    let mut all = String::new();
    let mut seen = Vec::new();
    let mut look = |change: &dyn Fn(&mut Facts)| {
        let mut facts = sound();
        change(&mut facts);
        seen.push(facts.parking());
        all += &text(&wanted(), |facts| change(facts));
    };
    look(&|_| ());
    look(&|facts| facts.parking = ParkingFacts::default());
    look(&|facts| facts.parking.may_write = false);
    look(&|facts| facts.parking.published = true);
    look(&|facts| {
        facts.parking.published = true;
        facts.parking.named = ["walgate.dead_letters", "walgate.parked"].map(String::from).into();
    });
    look(&|facts| {
        facts.parking.published = true;
        publication(facts).all_tables = true;
    });
    look(&|facts| {
        server(facts).in_recovery = true;
        server(facts).version_num = 160_000;
    });
    use Parking::{Absent, Denied, Published, Usable};
    assert_eq!(seen, [Usable, Absent, Denied, Published, Published, Published, Denied]);
    insta::assert_snapshot!(all);
}
