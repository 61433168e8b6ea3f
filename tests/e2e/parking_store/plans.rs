//! That reading costs the same however many rows there are: the plans of the statements as they ran, from the server's log.

use std::time::Duration;

use walgate::control::gateway;
use walgate::control::parking::{HoldKey, PageLimit, ParkingStore, expire};

use super::{Rig, SINK, SLOT};

/// The plans of the statements as they ran, from the server's log.
fn plans(log: &str) -> Vec<serde_json::Value> {
    let mut plans = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.contains("ms  plan:") {
            continue;
        }
        let mut json = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with('\t')) {
            json.push_str(line);
        }
        plans.push(serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {json}")));
    }
    plans
}

/// A node of a plan: its type, its index, rows that it gave, and rows that it looked at and left out.
type Node = (String, String, u64, u64);

fn nodes(plan: &serde_json::Value, found: &mut Vec<Node>) {
    let text = |key: &str| plan[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| plan[key].as_f64().unwrap_or_default() as u64;
    found.push((text("Node Type"), text("Index Name"), number("Actual Rows"), number("Rows Removed by Filter")));
    plan["Plans"].as_array().into_iter().flatten().for_each(|plan| nodes(plan, found));
}

/// Without statistics, as in the first minutes of an outage, and with them.
#[test]
fn reading_neither_sorts_nor_scans() {
    let rig = Rig::new();
    if rig.database.connection().try_run("LOAD 'auto_explain'").is_err() {
        eprintln!("this PostgreSQL has no auto_explain");
        return;
    }
    explain_everything(&rig);
    // 40,000 rows of four sinks; of ours every tenth waits for one of 50 keys.
    let fill = "INSERT INTO walgate.parked (slot, sink, commit_lsn, ordinal, delivery, hold_key, event_id, event_type, dedup_id,
           route, target, payload, payload_format, committed_at, bytes, attempts)
         SELECT 'slot_of_the_test', (ARRAY['partner', 'b', 'c', 'd'])[n % 4 + 1], ('0/' || to_hex(n / 3))::pg_lsn, n % 3, n,
           CASE WHEN n % 40 = 0 THEN 'key:' || n / 40 % 50 END, n, 't', n, 'r', '{}', repeat('x', 300)::bytea, 'json', now(), 300, 0
         FROM generate_series(1, 40000) n";
    rig.database.sql(fill);
    look_at_plans(&rig, "key:7", false);
    rig.database.sql("ANALYZE walgate.parked");
    look_at_plans(&rig, "key:8", true);
}

/// The plan of each statement goes to the server's log.
fn explain_everything(rig: &Rig) {
    let name = &rig.database.name;
    for setting in ["log_min_duration = 0", "log_format = json", "log_analyze = on", "log_timing = off"] {
        rig.database.sql(&format!("ALTER DATABASE {name} SET auto_explain.{setting}"));
    }
    rig.database.sql(&format!("ALTER DATABASE {name} SET session_preload_libraries = auto_explain"));
}

/// However many there are, those that are too old are found by their age.
#[test]
fn x16_expiring_neither_sorts_nor_scans() {
    let rig = Rig::new();
    if rig.database.connection().try_run("LOAD 'auto_explain'").is_err() {
        eprintln!("this PostgreSQL has no auto_explain");
        return;
    }
    explain_everything(&rig);
    // 40,000 rows of four slots, ten seconds between two of them.
    rig.database.sql(
        "INSERT INTO walgate.dead_letters (slot, sink, commit_lsn, ordinal, delivery, event_id, event_type, dedup_id, route, \
           target, payload, payload_format, committed_at, bytes, attempts, stored_at) \
         SELECT (ARRAY['slot_of_the_test', 'b', 'c', 'd'])[n % 4 + 1], 'partner', '0/1', n, n, n, 't', n, 'r', '{}', \
           repeat('x', 300)::bytea, 'json', now(), 300, 0, now() - n * interval '10 seconds' FROM generate_series(1, 40000) n",
    );
    let claim = rig.client();
    let term = rig.runtime.block_on(gateway::claim(&claim, SLOT, "1", 1, false)).unwrap().term;
    let connect = super::connect(&rig.database);
    let expired_by = |term: i64, age: u64| {
        rig.runtime.block_on(async {
            let link = connect().await.unwrap();
            let driver = tokio::spawn(link.driver);
            let expired = expire(&link.client, SLOT, term, Duration::from_secs(age)).await.unwrap();
            driver.abort();
            expired.iter().map(|expired| expired.rows).sum::<u64>()
        })
    };
    assert_eq!(expired_by(term + 1, 390_005), 0, "another term");
    let expired = |age| expired_by(term, age);
    let before = rig.database.server.log().len();
    assert_eq!((expired(400_100), expired(390_005), expired(350_005)), (0, 250, 1000));
    rig.database.sql("ANALYZE walgate.dead_letters");
    assert_eq!((expired(350_005), expired(349_905)), (0, 3));
    let log = rig.database.server.log();
    let mut deletes = 0;
    for plan in plans(&log[before..]) {
        if !plan["Query Text"].as_str().unwrap().contains("SKIP LOCKED") {
            continue;
        }
        let mut found = Vec::new();
        nodes(&plan["Plan"], &mut found);
        let bad = |node: &str| node == "Seq Scan" || node.contains("Sort") || node.contains("Hash Join");
        assert!(!found.iter().any(|(node, ..)| bad(node)), "{plan:#}");
        let (.., rows, removed) = found.iter().find(|(_, index, ..)| index == "dead_letters_age").expect("by age");
        assert!(*rows <= 1000 && *removed == 0, "{plan:#}");
        deletes += 1;
    }
    assert_eq!(deletes, 5);
}

fn look_at_plans(rig: &Rig, key: &str, analyzed: bool) {
    let store = rig.store();
    let before = rig.database.server.log().len();
    // More often than it takes to come to a plan for all parameters.
    let mut after = None;
    for _ in 0..8 {
        let page = store.page(after, 100, usize::MAX);
        assert_eq!(page.rows.len(), 100);
        after = page.rows.last().map(|row| row.place);
    }
    let key = HoldKey::from_text(key);
    let mut after = None;
    for _ in 0..8 {
        let page =
            store.run(store.store.page_of(key.clone(), after, PageLimit { rows: 2, bytes: usize::MAX })).unwrap();
        assert_eq!(page.rows.len(), 2);
        after = page.rows.last().map(|row| row.place);
    }
    store.run(store.store.open(10)).unwrap();
    let ids = store.page(None, 1000, usize::MAX).rows.iter().map(|row| row.id).collect::<Vec<_>>();
    for some in ids.chunks(100) {
        store.run(store.store.hold(some[..50].iter().map(|id| (*id, key.clone())).collect())).unwrap();
        store.run(store.store.delivered(some.to_vec())).unwrap();
    }

    let log = rig.database.server.log();
    let plans = plans(&log[before..]);
    let (mut pages, mut pages_of_key, mut keys, mut changes) = (0, 0, 0, 0);
    for plan in &plans {
        let query = plan["Query Text"].as_str().unwrap();
        let mut found = Vec::new();
        nodes(&plan["Plan"], &mut found);
        let has = |kind: &str| found.iter().any(|(node, ..)| node.contains(kind));
        if query.contains("r.is_last") {
            assert!(!has("Sort") && !has("Seq Scan") && !has("Bitmap"), "{plan:#}");
            let (_, index, rows, removed) = found.iter().find(|(node, ..)| node == "Index Scan").unwrap();
            if query.contains("hold_key IS NULL") {
                // A tenth of the rows waits for keys; the second time so do those before the first page.
                assert!(index == "parked_place" && *rows <= 1001 && *removed <= rows / 9 + 113, "{plan:#}");
                pages += 1;
            } else {
                assert_eq!((index.as_str(), *rows, *removed), ("parked_key", 3, 0), "{plan:#}");
                pages_of_key += 1;
            }
            if analyzed {
                explain_elsewhere(rig, query);
            }
        } else if query.contains("RECURSIVE") {
            // The keys are jumped to: eleven looks into their index, not a row for each that waits.
            let looks: Vec<_> = found.iter().filter(|(_, index, ..)| index == "parked_key").collect();
            assert!(!looks.is_empty() && looks.iter().all(|(_, _, rows, _)| *rows <= 1), "{plan:#}");
            keys += 1;
        } else if query.starts_with("DELETE") || query.contains("UPDATE walgate.parked") {
            let by_number = found.iter().any(|(_, index, ..)| index == "parked_pkey");
            assert!(by_number && !has("Seq Scan"), "{plan:#}");
            changes += 1;
        }
    }
    assert_eq!((pages, pages_of_key, keys, changes), (9, 8, 1, 20));
}

/// The store's connection forbids sorting: a planner that is free chooses the same.
fn explain_elsewhere(rig: &Rig, query: &str) {
    let client = rig.database.client();
    client.run("SET search_path = pg_catalog; SET auto_explain.log_min_duration = -1");
    client.run(&format!("PREPARE page AS {query}"));
    let key = if query.contains("$8") { ", 'key:7'" } else { "" };
    for mode in ["force_custom_plan", "force_generic_plan"] {
        client.run(&format!("SET plan_cache_mode = {mode}"));
        let rows = client
            .run(&format!("EXPLAIN (FORMAT JSON) EXECUTE page('{SLOT}', '{SINK}', '0/100', 0, 0, 100, 1000000{key})"));
        let plan: serde_json::Value = serde_json::from_str(rows[0][0].as_ref().unwrap()).unwrap();
        let mut found = Vec::new();
        nodes(&plan[0]["Plan"], &mut found);
        let bad = |node: &str| ["Sort", "Seq Scan", "Bitmap"].iter().any(|kind| node.contains(kind));
        assert!(!found.iter().any(|(node, ..)| bad(node)), "{mode}: {plan:#}");
    }
}
