//! What is found, and the statements, as texts.

use walgate_sink::HumanDuration;

use super::{
    facts::{CleanupFacts, CleanupTable, LeafFacts, PublishedBy},
    judge,
    statements::Touch,
    *,
};

fn plan(mode: CleanupMode) -> Plan {
    let cleanup = Cleanup { mode, ..Cleanup::default() };
    Plan { cleanup, table: TableName::new("public", "outbox_events"), slot: "walgate".to_owned() }
}

fn leaf(name: &str) -> LeafFacts {
    LeafFacts {
        oid: 16_400,
        name: name.to_owned(),
        parent: None,
        is_default: false,
        upper: None,
        may_select: true,
        may_delete: true,
        may_mark: true,
        owned: true,
        indexed: true,
        has_replica_identity: true,
        bytes: 0,
    }
}

fn facts() -> CleanupFacts {
    CleanupFacts {
        role: "cleaner".to_owned(),
        database: "shop".to_owned(),
        table: Some(CleanupTable {
            oid: 16_400,
            kind: 'r',
            may_use_schema: true,
            hides_rows: false,
            age_type: Some("timestamptz".to_owned()),
            mark_type: Some("bool".to_owned()),
            mark_generated: false,
            mark_partitions: false,
            leaves: vec![leaf("public.outbox_events")],
            publications: vec![PublishedBy { name: "walgate_outbox".to_owned(), update: false, delete: false }],
            delete_triggers: Vec::new(),
            update_triggers: Vec::new(),
        }),
        may_hold_term: true,
    }
}

fn told(mode: CleanupMode, change: impl FnOnce(&mut CleanupTable, &mut Plan)) -> String {
    let (mut facts, mut plan) = (facts(), plan(mode));
    change(facts.table.as_mut().unwrap(), &mut plan);
    let lines = judge(&facts, &plan);
    lines.iter().map(|finding| format!("{:?}: {finding}", finding.severity)).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_table_that_suits_says_nothing() {
    for mode in [CleanupMode::Delete, CleanupMode::Mark] {
        assert_eq!(told(mode, |_, _| {}), "");
    }
}

#[test]
fn each_finding_says_what_to_do() {
    insta::assert_snapshot!(
        "rights",
        told(CleanupMode::Delete, |table, _| {
            table.may_use_schema = false;
            table.hides_rows = true;
            table.leaves =
                (1..=7).map(|n| LeafFacts { may_delete: false, ..leaf(&format!("public.part_{n}")) }).collect();
        })
    );
    insta::assert_snapshot!(
        "age_and_index",
        [
            told(CleanupMode::Delete, |table, _| table.age_type = None),
            told(CleanupMode::Delete, |table, _| table.age_type = Some("date".to_owned())),
            told(CleanupMode::Delete, |table, _| table.age_type = Some("timestamp".to_owned())),
            told(CleanupMode::Delete, |table, _| table.leaves[0].indexed = false),
            told(CleanupMode::Mark, |table, _| table.leaves[0].indexed = false),
        ]
        .join("\n---\n")
    );
    assert_eq!(
        told(CleanupMode::Delete, |table, plan| {
            table.age_type = None;
            plan.cleanup.retain = HumanDuration(std::time::Duration::ZERO);
        }),
        ""
    );
    insta::assert_snapshot!(
        "mark",
        [
            told(CleanupMode::Mark, |table, _| table.mark_type = None),
            told(CleanupMode::Mark, |table, _| table.mark_type = Some("text".to_owned())),
            told(CleanupMode::Mark, |table, _| table.mark_generated = true),
            told(CleanupMode::Mark, |table, _| table.mark_partitions = true),
        ]
        .join("\n---\n")
    );
    insta::assert_snapshot!(
        "published_and_triggers",
        [
            told(CleanupMode::Delete, |table, _| {
                table.publications[0].delete = true;
                table.delete_triggers = vec!["audit".to_owned(), "log \"it\"".to_owned()];
            }),
            told(CleanupMode::Mark, |table, _| {
                table.publications[0].update = true;
                table.leaves[0].has_replica_identity = false;
            }),
        ]
        .join("\n---\n")
    );
    insta::assert_snapshot!(
        "partitions",
        [
            told(CleanupMode::DropPartitions, |_, _| {}),
            told(CleanupMode::DropPartitions, |table, _| {
                table.kind = 'p';
                let parent = Some("public.outbox_events".to_owned());
                let upper = Some("2026-11-02 00:00:00+00".to_owned());
                table.leaves = vec![LeafFacts { parent, upper, owned: false, ..leaf("public.outbox_1") }];
            }),
        ]
        .join("\n---\n")
    );
}

#[test]
fn the_statements_are_these() {
    let leaf = leaf("public.\"Out box\"");
    let touch = |mode| Touch {
        leaf: &leaf,
        mode,
        mark: "published",
        age: Some(("created_at", "timestamptz")),
        holds_term: true,
    };
    insta::assert_snapshot!("delete_by_age", touch(CleanupMode::Delete).by_age("created_at", "timestamptz"));
    insta::assert_snapshot!("mark_by_place", Touch { holds_term: false, ..touch(CleanupMode::Mark) }.by_place());
}
