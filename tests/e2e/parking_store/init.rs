//! `walgate init` makes the tables, and takes them away again where nothing is in them.

use serde_json::Value;

use super::{Rig, SLOT, parcel_of_key};
use crate::support::postgres::Postgres;
use crate::support::walgate::{Ended, Setup, Walgate};

/// A database with nothing in it, and a role of its own.
struct Fresh {
    rig: Rig,
    role: String,
}

impl Fresh {
    fn new() -> Fresh {
        let rig = Rig::without_tables(Postgres::shared().database());
        let role = format!("gateway_of_{}", rig.database.name);
        Fresh { rig, role }
    }

    fn init(&self, arguments: &[&str]) -> Ended {
        let database = &self.rig.database;
        let server = &database.server;
        let socket = server.sockets().display().to_string().replace('/', "%2F");
        let admin = format!("postgres://postgres@/{}?host={socket}&port={}", database.name, server.port());
        let names = ["--slot", &database.slot, "--publication", &database.publication, "--role", &self.role];
        let arguments = [&["init", "--json", "--admin-url", &admin][..], &names, arguments].concat();
        Walgate::command(&Setup::literal("sinks: {}\n"), &arguments)
    }

    /// The steps as `object outcome`, and the report.
    #[track_caller]
    fn done(&self, arguments: &[&str]) -> (Vec<String>, Value) {
        let ended = self.init(arguments);
        ended.expect(0, &[]);
        let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
        let step = |step: &Value| format!("{} {}", step["object"].as_str().unwrap(), step["outcome"].as_str().unwrap());
        (report["steps"].as_array().unwrap().iter().map(step).collect(), report)
    }

    /// Whether the role may do what it must.
    fn may_write(&self) -> bool {
        let may = ["SELECT", "INSERT", "UPDATE", "DELETE"].map(|right| {
            format!("has_table_privilege('{0}', 'walgate.parked', '{right}') AND has_table_privilege('{0}', 'walgate.requests', '{right}')", self.role)
        });
        self.rig.value(&format!(
            "SELECT {} AND has_schema_privilege('{}', 'walgate', 'USAGE')",
            may.join(" AND "),
            self.role
        )) == "t"
    }

    fn tables(&self) -> String {
        self.rig.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'walgate'")
    }

    fn detail(report: &Value, object: &str) -> String {
        let steps = report["steps"].as_array().unwrap();
        let step = steps.iter().find(|step| step["object"] == object).unwrap();
        step["detail"].as_str().unwrap_or_default().to_owned()
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let role = &self.role;
        let _ = self.rig.database.connection().try_run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    }
}

#[test]
fn the_tables_are_made_and_a_database_of_before_gets_them() {
    let fresh = Fresh::new();
    let (steps, _) = fresh.done(&["--apply", "--with-table", "--no-parking"]);
    assert_eq!(steps, ["table created", "role created", "publication created", "slot created"]);
    assert_eq!(fresh.tables(), "0");
    // As a database that an earlier version has prepared.
    let (steps, report) = fresh.done(&["--apply"]);
    let existed = ["table existed", "role existed", "parking tables created", "publication existed", "slot existed"];
    assert_eq!(steps, existed);
    assert!(!report["findings"].to_string().contains("parking"), "{report}");
    assert_eq!((fresh.tables().as_str(), fresh.may_write()), ("4", true));
    // Again: nothing is changed, but for rights that were taken away.
    fresh.rig.database.sql(&format!("REVOKE ALL ON walgate.requests FROM {}", fresh.role));
    let (steps, _) = fresh.done(&["--apply"]);
    assert_eq!(steps, existed.map(|step| step.replace("created", "existed")));
    assert!(fresh.may_write());
    // Half of it.
    fresh.rig.database.sql("DROP TABLE walgate.requests");
    assert_eq!(fresh.done(&["--apply"]).0, existed);
    assert!(fresh.may_write());
    // Something else of that name.
    fresh.rig.database.sql("DROP TABLE walgate.parked; CREATE TABLE walgate.parked (slot text, sink text)");
    let ended = fresh.init(&["--apply"]);
    ended.expect(3, &["--no-parking"]);
    fresh.done(&["--apply", "--no-parking"]);
}

#[test]
fn the_tables_go_when_nothing_is_in_them() {
    let fresh = Fresh::new();
    let database = &fresh.rig.database;
    let (steps, _) = fresh.done(&["--apply", "--with-table"]);
    assert_eq!(
        steps,
        ["table created", "role created", "parking tables created", "publication created", "slot created"]
    );
    database.sql(&format!(
        "INSERT INTO walgate.requests (slot, verb, sink, arguments) VALUES ('{SLOT}', 'pause', 'a', '{{}}')"
    ));
    // Rights for the test's own role, as `create_sql` gives them.
    fresh.rig.create_tables();
    let store = fresh.rig.store();
    store.park(&[parcel_of_key(1, "a"), parcel_of_key(2, "a")]);
    store.bury(&[super::letter(parcel_of_key(3, "a"), "refused")], &[]);
    let (steps, report) = fresh.done(&["--remove", "--drop-role"]);
    assert_eq!(steps, ["slot dropped", "publication dropped", "parking tables kept", "role dropped"]);
    let detail = Fresh::detail(&report, "parking tables");
    for said in ["2 in walgate.parked", "1 in walgate.dead_letters", "DROP TABLE IF EXISTS walgate.parked"] {
        assert!(detail.contains(said), "{detail}");
    }
    assert_eq!(fresh.tables(), "4");

    // Another gateway may read another slot.
    database.sql("TRUNCATE walgate.parked, walgate.dead_letters");
    let other = format!("{}_other", database.slot);
    database.sql(&format!("SELECT pg_create_logical_replication_slot('{other}', 'pgoutput')"));
    let (steps, report) = fresh.done(&["--remove"]);
    assert_eq!(steps, ["slot absent", "publication absent", "parking tables kept", "role absent"]);
    assert!(Fresh::detail(&report, "parking tables").contains(&other), "{report}");
    database.sql(&format!("SELECT pg_drop_replication_slot('{other}')"));

    // Requests alone do not hold them; what is not walgate's stays.
    database.sql("CREATE TABLE walgate.mine ()");
    let (steps, report) = fresh.done(&["--remove"]);
    assert_eq!(steps[2], "parking tables dropped");
    assert!(Fresh::detail(&report, "parking tables").contains("more than them"), "{report}");
    assert_eq!(fresh.tables(), "1");
    database.sql("DROP TABLE walgate.mine");
    assert_eq!(fresh.done(&["--remove"]).0[2], "parking tables absent");
    fresh.done(&["--apply"]);
    assert_eq!(
        fresh.done(&["--remove", "--drop-role"]).0,
        ["slot dropped", "publication dropped", "parking tables dropped", "role dropped"]
    );
    assert_eq!(fresh.rig.value("SELECT count(*) FROM pg_namespace WHERE nspname = 'walgate'"), "0");
}

#[test]
fn tables_that_somebody_uses_are_not_dropped() {
    let fresh = Fresh::new();
    fresh.done(&["--apply", "--with-table"]);
    let lock = fresh.rig.database.client();
    lock.run("BEGIN; LOCK TABLE walgate.parked IN ACCESS SHARE MODE");
    let ended = fresh.init(&["--remove"]);
    ended.expect(3, &["drop walgate's own tables", "lock timeout"]);
    assert_eq!(fresh.tables(), "4");
    lock.run("ROLLBACK");
    assert_eq!(fresh.done(&["--remove"]).0[2], "parking tables dropped");
}
