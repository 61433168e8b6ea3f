//! What a check finds of walgate's own tables, and that the SQL that it shows mends it.

use walgate::control::parking::create_sql;
use walgate::control::{Finding, FindingCode, Parking, Wanted, preflight};

use super::{Rig, connect, parcel_of_key};
use crate::support::database::Database;
use crate::support::postgres::{Postgres, ROLE};
use crate::support::receiver::Receiver;
use crate::support::walgate::{Setup, Walgate};

/// What walgate's role sees; of the findings those that are about its own tables.
fn look(rig: &Rig) -> (Parking, Vec<Finding>) {
    let Database { slot, publication, .. } = &rig.database;
    let wanted = Wanted::new(slot, publication, "public", "outbox_events");
    let found = rig.runtime.block_on(async {
        let link = connect(&rig.database)().await.unwrap();
        let driver = tokio::spawn(link.driver);
        let found = preflight(&link.client, &wanted).await.unwrap();
        driver.abort();
        found
    });
    use FindingCode::{ParkingAbsent, ParkingDenied, ParkingPublished};
    let about = |finding: &Finding| matches!(finding.code, ParkingAbsent | ParkingDenied | ParkingPublished);
    (found.facts.parking(), found.warnings.into_iter().filter(about).collect())
}

#[test]
fn what_is_missing_is_found_and_mended() {
    let rig = Rig::without_tables(Postgres::shared().database().with_seed_outbox());
    let (parking, findings) = look(&rig);
    assert_eq!((parking, findings[0].code, findings.len()), (Parking::Absent, FindingCode::ParkingAbsent, 1));
    rig.create_tables();
    assert_eq!(look(&rig), (Parking::Usable, vec![]));

    for (harm, parking) in [
        (format!("REVOKE DELETE ON walgate.dead_letters FROM {ROLE}"), Parking::Denied),
        (format!("REVOKE UPDATE ON walgate.requests FROM {ROLE}"), Parking::Denied),
        (format!("REVOKE USAGE ON SCHEMA walgate FROM {ROLE}"), Parking::Denied),
        ("ALTER TABLE walgate.parked DROP COLUMN hold_key".to_owned(), Parking::Absent),
        ("DROP TABLE walgate.requests".to_owned(), Parking::Absent),
    ] {
        rig.database.sql(&harm);
        let (found, findings) = look(&rig);
        assert_eq!((found, findings.len()), (parking, 1), "{harm}");
        match &findings[0].hint_sql {
            Some(sql) => drop(rig.database.sql(sql)),
            None => {
                rig.database.sql("DROP TABLE walgate.parked");
                create_sql(ROLE).iter().for_each(|statement| drop(rig.database.sql(statement)));
            }
        }
        assert_eq!(look(&rig), (Parking::Usable, vec![]), "{harm}");
    }
}

#[test]
fn tables_that_are_published_are_found_and_taken_out() {
    let version: i64 = Postgres::shared().sql("SHOW server_version_num")[0][0].as_ref().unwrap().parse().unwrap();
    for published in ["FOR ALL TABLES", "FOR TABLE outbox_events, walgate.requests", "FOR TABLES IN SCHEMA walgate"] {
        if published.contains("SCHEMA") && version < 150_000 {
            continue;
        }
        let rig = Rig::new();
        let Database { slot, publication, .. } = &rig.database;
        rig.database.sql(crate::support::database::SEED_TABLE);
        rig.database.sql(&format!("CREATE PUBLICATION {publication} {published} WITH (publish = 'insert')"));
        if published.contains("SCHEMA") {
            rig.database.sql(&format!("ALTER PUBLICATION {publication} ADD TABLE outbox_events"));
        }
        rig.database.create_slot();
        let first = rig.database.insert_seed("order.created", "{}");
        rig.store().park(&[parcel_of_key(1, "a")]);
        let (parking, findings) = look(&rig);
        assert_eq!((parking, findings.len()), (Parking::Published, 1), "{published}: {findings:?}");
        rig.database.sql(findings[0].hint_sql.as_ref().unwrap());
        let (parking, findings) = look(&rig);
        assert_eq!(parking, Parking::Usable, "{published}: {findings:?}");

        // What was written before and after is still read through the slot.
        let second = rig.database.insert_seed("order.created", "{}");
        let receiver = Receiver::start();
        let mut walgate = Walgate::run(&Setup::of(&rig.database).webhook("hook", &receiver).route("**", "hook"));
        walgate.eventually("both arrive", || receiver.has(&first) && receiver.has(&second));
        assert_eq!(receiver.count(), 2, "{slot}");
    }
}

#[test]
fn a_check_says_what_a_missing_table_means() {
    let rig = Rig::without_tables(Postgres::shared().database().with_seed_outbox());
    let receiver = Receiver::start();
    let setup = Setup::of(&rig.database).webhook("hook", &receiver).route("**", "hook");
    let check =
        |more: &[&str]| Walgate::command(&setup, &[&["check", "--connect", "--config", "{config}"], more].concat());
    check(&[]).expect(0, &["is ready", "note: walgate's own tables", "walgate init --apply"]);
    rig.create_tables();
    let ended = check(&["--json"]);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
    let about =
        |finding: &&serde_json::Value| finding["code"].as_str().is_some_and(|code| code.starts_with("parking_"));
    assert_eq!(report["postgres"].as_array().unwrap().iter().find(about), None, "{report}");
}
