//! The walking skeleton: one event all the way, and what a kill may not undo.

use crate::rig::Rig;
use crate::support::database::SEED_TABLE;
use crate::support::http_get;
use crate::support::postgres::{Options, Postgres, ROLE};
use crate::support::receiver::Receiver;
use crate::support::wait::{DEADLINE, eventually};
use crate::support::walgate::{Setup, Walgate};

#[test]
fn one_row_is_delivered_acknowledged_and_confirmed() {
    // Nobody else writes WAL here: what is confirmed can be compared exactly.
    let server = Postgres::start(Options::default());
    let rig = Rig::with(server.database().with_seed_outbox());
    let setup = Setup::through(&rig.database, rig.witness.port()).webhook("hook", &rig.receiver).route("**", "hook");
    let mut walgate = Walgate::run(&setup);
    let id = rig.database.insert_seed("order.created", r#"{"order": 17, "total": "12.50"}"#);
    rig.wait_settled(&mut walgate, 1);

    let receipt = &rig.receiver.receipts()[0];
    assert_eq!((receipt.id.as_str(), receipt.method.as_str(), receipt.path.as_str()), (&*id, "POST", "/hook"));
    assert_eq!(receipt.text(), r#"{"order": 17, "total": "12.50"}"#);
    assert_eq!(rig.receiver.bad_signatures(), Vec::<String>::new());

    let end = rig.witness.commit_end(&id);
    walgate.eventually("the slot has confirmed exactly the commit's end", || rig.database.confirmed_flush() == end);
    rig.assert_wire();
    assert_eq!(rig.receiver.count(), 1, "no fault, no repeat");
    assert_eq!(walgate.page("/livez").map(|(status, _)| status), Some(200));
    walgate
        .eventually("it is ready", || http_get::get(setup.admin_port(), "/readyz").is_some_and(|page| page.0 == 200));
    assert!(walgate.status().is_some(), "/status is JSON");
}

#[test]
fn a_killed_walgate_sends_again_what_was_not_acknowledged_and_goes_on() {
    let rig = Rig::new();
    let setup = rig.setup();
    let file = setup.write();
    let mut walgate = Walgate::run_file(&setup, &file);
    let first = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &first);

    rig.receiver.hold();
    let held: Vec<String> = ["a", "b", "a"].iter().map(|key| rig.insert(key)).collect();
    // The third waits behind the first of its key.
    walgate.eventually("two deliveries are under way", || rig.receiver.in_flight() == 2);
    rig.kill(&mut walgate);
    rig.receiver.release_all();
    let meanwhile = rig.insert("b");

    let mut walgate = Walgate::run_file(&setup, &file);
    rig.wait_settled(&mut walgate, 5);
    for id in held.iter().chain([&meanwhile]) {
        rig.wait_confirmed(&mut walgate, id);
    }
    assert_eq!(rig.assert_all(), 2, "what was under way was repeated, and nothing else");
    assert_eq!(rig.receiver.receipts_of(&first).len(), 1, "what was confirmed is not sent again");
}

#[test]
fn the_seeds_text_works_in_its_own_order() {
    let database = Postgres::shared().database();
    // The slot before the publication, as its text has it.
    let (slot, publication) = (&database.slot, &database.publication);
    database.sql(SEED_TABLE);
    database.sql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
    database.sql(&format!("CREATE PUBLICATION {publication} FOR TABLE outbox_events"));
    let rig = Rig::with(database);
    let setup = Setup::through(&rig.database, rig.witness.port()).webhook("hook", &rig.receiver).route("**", "hook");
    let mut walgate = Walgate::run(&setup);
    let ids: Vec<String> =
        (0..3).map(|n| rig.database.insert_seed("order.created", &format!("{{\"n\": {n}}}"))).collect();
    rig.wait_settled(&mut walgate, 3);
    rig.wait_confirmed(&mut walgate, &ids[2]);
    rig.assert_wire();
    assert_eq!(rig.receiver.count(), 3);
}

#[test]
fn s16_a_slot_older_than_its_publication_with_a_row_between_is_explained() {
    let database = Postgres::shared().database();
    database.sql(SEED_TABLE);
    database.create_slot();
    database.insert_seed("order.created", "{}");
    database.publish();
    let receiver = Receiver::start();
    let setup = Setup::of(&database).webhook("hook", &receiver).route("**", "hook");
    if database.value("SELECT current_setting('server_version_num')::int >= 180000") == "t" {
        // From 18 on the server passes over such rows, so that nothing but walgate can say it.
        let mut walgate = Walgate::run(&setup);
        walgate.wait_log(&[&database.slot, &database.publication, "are not sent"]);
        let id = database.insert_seed("order.created", "{}");
        walgate.eventually("the next event arrives", || receiver.has(&id));
        assert_eq!(receiver.count(), 1);
        return;
    }
    let ended = Walgate::run(&setup).wait_for_end(DEADLINE);
    ended.expect(
        3,
        &[
            &database.slot,
            &database.publication,
            "before the publication",
            "pg_drop_replication_slot",
            "pg_create_logical_replication_slot",
        ],
    );
    assert_eq!(receiver.count(), 0);

    // The advice works.
    database.sql(&format!("SELECT pg_drop_replication_slot('{}')", database.slot));
    database.create_slot();
    let mut walgate = Walgate::run(&setup);
    let id = database.insert_seed("order.created", "{}");
    walgate.eventually("the event arrives", || receiver.has(&id));
}

#[test]
fn x13_login_and_replication_suffice_no_select_is_needed() {
    let rig = Rig::new();
    let may = |privilege: &str| {
        rig.database.value(&format!("SELECT has_table_privilege('{ROLE}', 'outbox_events', '{privilege}')"))
    };
    assert_eq!((may("SELECT"), may("INSERT"), may("DELETE")), ("f".into(), "f".into(), "f".into()));
    let mut walgate = rig.run();
    let id = rig.insert("a");
    rig.wait_confirmed(&mut walgate, &id);
    rig.assert_all();
}

#[test]
fn rows_from_before_the_slot_are_not_sent() {
    let database = Postgres::shared().database();
    database.sql(SEED_TABLE);
    database.publish();
    (0..3).for_each(|n| drop(database.insert_seed("order.created", &format!("{{\"n\": {n}}}"))));
    database.create_slot();
    let receiver = Receiver::start();
    let setup = Setup::of(&database).webhook("hook", &receiver).route("**", "hook");
    let mut walgate = Walgate::run(&setup);
    let id = database.insert_seed("order.created", "{}");
    eventually(DEADLINE, "the new row arrives", || receiver.has(&id) || walgate.has_ended());
    assert_eq!(receiver.ids(), [id]);
}
