//! The tables: how they are made, and what they hold.

use crate::control::names::quote_ident;

/// The schema of walgate's own tables.
pub const SCHEMA: &str = "walgate";
/// Deliveries that are owed.
pub const PARKED: &str = "walgate.parked";
/// Deliveries that are not attempted any more.
pub const DEAD_LETTERS: &str = "walgate.dead_letters";
/// What operators ask for.
pub const REQUESTS: &str = "walgate.requests";
/// What is known of a slot beyond what PostgreSQL keeps of it.
pub const GATEWAY: &str = "walgate.gateway";

/// What `payload_format` says of a dead letter that was kept without payload and headers: it cannot be sent. Every version
/// refuses to read such a row as a delivery.
pub const OMITTED: &str = "omitted";

/// Columns that `parked` and `dead_letters` share. `headers`, `target` and `errors` are json, not jsonb: it keeps texts
/// as they are. Bytes of a payload are kept as bytes: it is never parsed, and need not be text.
const COLUMNS: &str = "\
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  slot text NOT NULL,
  sink text NOT NULL,
  commit_lsn pg_lsn NOT NULL,
  ordinal bigint NOT NULL,
  delivery bigint NOT NULL,
  hold_key text,
  event_id text NOT NULL,
  event_type text NOT NULL,
  event_key text,
  ordering_key text,
  dedup_id text NOT NULL,
  route text NOT NULL,
  target json NOT NULL,
  headers json,
  payload bytea,
  payload_format text NOT NULL,
  committed_at timestamptz NOT NULL,
  bytes bigint NOT NULL,
  attempts bigint NOT NULL,
  reason text,
  message text,
  errors json,
  stored_at timestamptz NOT NULL DEFAULT now()";

/// Columns of `requests`.
const REQUEST_COLUMNS: &str = "\
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  slot text NOT NULL,
  verb text NOT NULL,
  sink text,
  arguments json NOT NULL,
  asked_at timestamptz NOT NULL DEFAULT now(),
  asked_by text NOT NULL DEFAULT session_user,
  done_at timestamptz,
  failed boolean,
  outcome text,
  affected bigint";

/// Columns of `gateway`.
const GATEWAY_COLUMNS: &str = "\
  slot text PRIMARY KEY,
  term bigint NOT NULL,
  system_id text NOT NULL,
  timeline bigint NOT NULL,
  confirmed_lsn pg_lsn NOT NULL,
  birth xid8 NOT NULL,
  born_at timestamptz NOT NULL DEFAULT now(),
  past_settled boolean NOT NULL DEFAULT false,
  catalog text,
  mark_xmin xid8,
  mark_lsn pg_lsn,
  written_at timestamptz NOT NULL";

/// Every column that is read or written, with its table, both without the schema.
pub(in crate::control) fn columns() -> impl Iterator<Item = (&'static str, &'static str)> {
    let tables = [(PARKED, COLUMNS), (DEAD_LETTERS, COLUMNS), (REQUESTS, REQUEST_COLUMNS), (GATEWAY, GATEWAY_COLUMNS)];
    tables.into_iter().flat_map(|(table, columns)| {
        let table = table.split_once('.').map_or(table, |(_, name)| name);
        columns.lines().filter_map(move |line| Some((table, line.split_whitespace().next()?)))
    })
}

/// Lets a role use the tables.
#[must_use]
pub(in crate::control) fn grant_sql(role: &str) -> [String; 2] {
    let role = quote_ident(role);
    [
        format!("GRANT USAGE ON SCHEMA {SCHEMA} TO {role};"),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {PARKED}, {DEAD_LETTERS}, {REQUESTS}, {GATEWAY} TO {role};"),
    ]
}

/// The statements that make what is missing, in order, and let `role` use it. All of them may be run again.
#[must_use]
pub fn create_sql(role: &str) -> Vec<String> {
    let shelf = |table: &str| format!("CREATE TABLE IF NOT EXISTS {table} (\n  {COLUMNS}\n);");
    let places = |name: &str, table: &str| {
        format!("CREATE UNIQUE INDEX IF NOT EXISTS {name} ON {table} (slot, sink, commit_lsn, ordinal, delivery);")
    };
    let mut statements = vec![
        format!("CREATE SCHEMA IF NOT EXISTS {SCHEMA};"),
        shelf(PARKED),
        places("parked_place", PARKED),
        format!(
            "CREATE INDEX IF NOT EXISTS parked_key ON {PARKED} (slot, sink, hold_key, commit_lsn, ordinal, delivery) \
             WHERE hold_key IS NOT NULL;"
        ),
        shelf(DEAD_LETTERS),
        places("dead_letters_place", DEAD_LETTERS),
        format!("CREATE INDEX IF NOT EXISTS dead_letters_age ON {DEAD_LETTERS} (slot, stored_at);"),
        format!("CREATE TABLE IF NOT EXISTS {REQUESTS} (\n  {REQUEST_COLUMNS}\n);"),
        format!("CREATE INDEX IF NOT EXISTS requests_open ON {REQUESTS} (slot, id) WHERE done_at IS NULL;"),
        // It is written every second: its pages have room for that.
        format!("CREATE TABLE IF NOT EXISTS {GATEWAY} (\n  {GATEWAY_COLUMNS}\n) WITH (fillfactor = 10);"),
    ];
    statements.extend(grant_sql(role));
    statements
}

/// The statements that take it all away.
#[must_use]
pub fn drop_sql() -> Vec<String> {
    vec![
        format!("DROP TABLE IF EXISTS {PARKED}, {DEAD_LETTERS}, {REQUESTS}, {GATEWAY};"),
        format!("DROP SCHEMA IF EXISTS {SCHEMA};"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_are_those_of_the_statements() {
        let columns: Vec<_> = columns().collect();
        assert_eq!(columns.len(), 24 + 24 + 11 + 12);
        assert!(columns.contains(&("parked", "hold_key")) && columns.contains(&("requests", "affected")));
    }
}
