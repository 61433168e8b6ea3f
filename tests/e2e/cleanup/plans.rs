//! How rows are found: by the index that is asked for, or a few blocks at a time; never by reading a large table as a whole.

use super::Yard;

/// A table of 40,000 rows that have to stay, and a few that may go: the statements as they were run.
fn statements(yard: &Yard, mode: &str) -> Vec<serde_json::Value> {
    let name = &yard.database.name;
    for setting in ["log_min_duration = 0", "log_format = json", "log_analyze = on", "log_timing = off"] {
        yard.database.sql(&format!("ALTER DATABASE {name} SET auto_explain.{setting}"));
    }
    yard.database.sql(&format!("ALTER DATABASE {name} SET session_preload_libraries = auto_explain"));
    let before = yard.database.server.log().len();
    let mut walgate = yard.run(&format!("mode: {mode}, retain: 1h, pause: 10ms"));
    yard.database.sql(
        "INSERT INTO outbox_events (event_type, aggregate_id, payload, created_at)
         SELECT 'nobody.cares', 'k' || i, '{}', now() - CASE WHEN i % 100 = 0 THEN interval '2 hours' ELSE interval '1 minute' END
         FROM generate_series(1, 40000) i",
    );
    yard.database.sql("INSERT INTO acknowledged SELECT id FROM outbox_events; ANALYZE outbox_events");
    let left = if mode == "mark" { "WHERE NOT published" } else { "" };
    yard.wait(&mut walgate, "the old ones are done", || {
        yard.number(&format!("SELECT count(*) FROM outbox_events {left}")) == 39_600
    });
    yard.let_it_sweep(&mut walgate);
    yard.assert_clean(&walgate);
    let log = yard.database.server.log();
    let mut plans = Vec::new();
    let mut rest = &log[before..];
    while let Some(at) = rest.find("  plan:\n") {
        rest = &rest[at + "  plan:\n".len()..];
        let mut stream = serde_json::Deserializer::from_str(rest).into_iter::<serde_json::Value>();
        if let Some(Ok(plan)) = stream.next()
            && plan["Query Text"].as_str().is_some_and(|text| text.contains("chosen AS MATERIALIZED"))
            && plan.to_string().contains(&format!("'{}'", yard.database.slot))
        {
            plans.push(plan);
        }
    }
    assert!(!plans.is_empty());
    plans
}

/// Every node: its kind, its index, the rows that it gave and those that it left out.
fn nodes(plan: &serde_json::Value, found: &mut Vec<(String, String, u64)>) {
    let text = |key: &str| plan[key].as_str().unwrap_or_default().to_owned();
    let rows = |key: &str| plan[key].as_f64().map_or(0, |rows| rows as u64);
    found.push((text("Node Type"), text("Index Name"), rows("Actual Rows") + rows("Rows Removed by Filter")));
    plan["Plans"].as_array().into_iter().flatten().for_each(|plan| nodes(plan, found));
}

fn has_auto_explain(yard: &Yard) -> bool {
    let has = yard.database.connection().try_run("LOAD 'auto_explain'").is_ok();
    if !has {
        eprintln!("this PostgreSQL has no auto_explain");
    }
    has
}

#[test]
fn rows_are_found_by_their_index() {
    for (mode, index) in [("delete", "outbox_age"), ("mark", "outbox_unmarked")] {
        let yard = Yard::new();
        if !has_auto_explain(&yard) {
            return;
        }
        if mode == "mark" {
            yard.database.sql("DROP INDEX outbox_age");
        } else {
            yard.database.sql("DROP INDEX outbox_unmarked");
        }
        for plan in statements(&yard, mode) {
            let mut found = Vec::new();
            nodes(&plan["Plan"], &mut found);
            let on_table: Vec<_> = found.iter().filter(|(node, ..)| node.contains("Seq Scan")).collect();
            assert!(on_table.is_empty(), "{plan:#}");
            let by_index: Vec<_> = found.iter().filter(|(_, name, _)| name == index).collect();
            assert!(!by_index.is_empty() && by_index.iter().all(|(.., rows)| *rows <= 1000), "{plan:#}");
        }
    }
}

#[test]
fn without_an_index_a_part_of_the_table_is_read_at_a_time() {
    let yard = Yard::new();
    if !has_auto_explain(&yard) {
        return;
    }
    yard.database.sql("DROP INDEX outbox_age; DROP INDEX outbox_unmarked");
    for plan in statements(&yard, "delete") {
        let mut found = Vec::new();
        nodes(&plan["Plan"], &mut found);
        assert!(found.iter().all(|(node, ..)| node != "Seq Scan"), "{plan:#}");
        let ranges: Vec<_> = found.iter().filter(|(node, ..)| node == "Tid Range Scan").collect();
        assert!(!ranges.is_empty() && ranges.iter().all(|(.., rows)| *rows <= 40_000 / 2), "{plan:#}");
    }
}
