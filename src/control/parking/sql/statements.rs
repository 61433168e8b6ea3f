//! Every statement of the store. `search_path` is `pg_catalog`; $1 is the slot and $2 the sink.
//!
//! The tables fill and empty faster than statistics are gathered, so each statement leaves the planner one way only: rows
//! by number are found by their number (`slot || ''` is in no index), rows by place in the order of one index.

/// Rows must be as durable as the LSN that they release: `on`, or what is stronger. Then whether the database holds every
/// text, and whether the server knows failover slots.
pub(super) const SET_UP: &str = "\
SELECT set_config('synchronous_commit',
        CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false),
    current_setting('server_encoding') = 'UTF8',
    current_setting('synchronized_standby_slots', true) IS NOT NULL";

/// $3: keys at the most. The keys are found by jumping from one to the next in their index.
pub(super) const OPEN: &str = "\
WITH RECURSIVE keys(hold_key) AS (
    (SELECT p.hold_key FROM walgate.parked p
     WHERE p.slot = $1 AND p.sink = $2 AND p.hold_key IS NOT NULL
     ORDER BY p.hold_key LIMIT 1)
    UNION ALL
    SELECT (SELECT p.hold_key FROM walgate.parked p
            WHERE p.slot = $1 AND p.sink = $2 AND p.hold_key > k.hold_key
            ORDER BY p.hold_key LIMIT 1)
    FROM keys k WHERE k.hold_key IS NOT NULL
)
SELECT c.rows, c.key_rows, c.bytes,
    ARRAY(SELECT k.hold_key FROM keys k WHERE k.hold_key IS NOT NULL LIMIT $3::bigint),
    l.commit_lsn, l.ordinal, l.delivery,
    (SELECT count(*) FROM walgate.dead_letters d WHERE d.slot = $1 AND d.sink = $2)
FROM (
    SELECT count(*) - count(p.hold_key) AS rows, count(p.hold_key) AS key_rows,
        COALESCE(sum(p.bytes), 0)::bigint AS bytes
    FROM walgate.parked p WHERE p.slot = $1 AND p.sink = $2
) c
LEFT JOIN (
    SELECT p.commit_lsn, p.ordinal, p.delivery FROM walgate.parked p WHERE p.slot = $1 AND p.sink = $2
    ORDER BY p.commit_lsn DESC, p.ordinal DESC, p.delivery DESC LIMIT 1
) l ON true";

/// Holds the term, its number a parameter, for the length of the statement: none is written in one that is over
/// (`control::gateway`). 0 is the term of whoever does not have one.
macro_rules! in_term {
    ($term:literal) => {
        concat!(
            "term AS MATERIALIZED (
    SELECT 1 FROM walgate.gateway WHERE slot = $1 AND term = ",
            $term,
            "::bigint FOR KEY SHARE
), ours AS MATERIALIZED (
    SELECT ",
            $term,
            "::bigint = 0 OR EXISTS (SELECT FROM term) AS ours
)"
        )
    };
}

/// Rows out of arrays, $3 to $22: a row of the table for each place in them.
macro_rules! insert_into {
    ($table:literal) => {
        concat!(
            "INSERT INTO ",
            $table,
            " (
    slot, sink, commit_lsn, ordinal, delivery, hold_key, event_id, event_type, event_key, ordering_key, dedup_id, route,
    target, headers, payload, payload_format, committed_at, bytes, attempts, reason, message, errors)
SELECT $1, $2, r.commit_lsn, r.ordinal, r.delivery, r.hold_key, r.event_id, r.event_type, r.event_key, r.ordering_key,
    r.dedup_id, r.route, r.target::json, r.headers::json, r.payload, r.payload_format, r.committed_at, r.bytes, r.attempts,
    r.reason, r.message, r.errors::json
FROM unnest($3::pg_lsn[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[],
    $11::text[], $12::text[], $13::text[], $14::text[], $15::bytea[], $16::text[], $17::timestamptz[], $18::bigint[],
    $19::bigint[], $20::text[], $21::text[], $22::text[]) AS r (
    commit_lsn, ordinal, delivery, hold_key, event_id, event_type, event_key, ordering_key, dedup_id, route,
    target, headers, payload, payload_format, committed_at, bytes, attempts, reason, message, errors)
WHERE (SELECT ours FROM ours)
ON CONFLICT (slot, sink, commit_lsn, ordinal, delivery) "
        )
    };
}

/// A row that is there already stays as it is. $23: the term. The last column: whether it is still ours.
pub(super) const PARK: &str = concat!(
    "WITH ",
    in_term!("$23"),
    ", new AS (\n",
    insert_into!("walgate.parked"),
    "DO NOTHING
RETURNING bytes)
SELECT count(*), COALESCE(sum(bytes), 0)::bigint, (SELECT ours FROM ours) FROM new"
);

/// $23: the term; $24: numbers of parked rows. A letter of the same place is replaced, and keeps its number. The column:
/// whether the term is still ours.
pub(super) const BURY: &str = concat!(
    "WITH ",
    in_term!("$23"),
    ", letters AS (\n",
    insert_into!("walgate.dead_letters"),
    "DO UPDATE SET headers = excluded.headers, payload = excluded.payload, payload_format = excluded.payload_format,
    bytes = excluded.bytes, attempts = excluded.attempts, reason = excluded.reason, message = excluded.message,
    errors = excluded.errors, stored_at = now()), gone AS (
DELETE FROM walgate.parked
    WHERE id = ANY($24::bigint[]) AND slot || '' = $1 AND sink || '' = $2 AND (SELECT ours FROM ours))
SELECT ours FROM ours"
);

/// $3 to $5: the place behind which reading goes on; $6: rows at the most; $7: bytes at the most, but always a row. One row
/// more is looked at, so that the last one knows whether it is the last.
macro_rules! page {
    ($behind:literal, $order:literal) => {
        concat!(
            "\
SELECT r.id, r.commit_lsn, r.ordinal, r.delivery, r.event_id, r.event_type, r.event_key, r.ordering_key, r.dedup_id,
    r.route, r.target::text, r.headers::text, r.payload, r.payload_format, r.committed_at, r.attempts, r.reason,
    r.message, r.errors::text, r.is_last
FROM (
    SELECT p.*, row_number() OVER place AS number, sum(p.bytes) OVER place AS total,
        lead(p.id) OVER place IS NULL AS is_last
    FROM (
        SELECT * FROM walgate.parked
        WHERE slot = $1 AND sink = $2 AND ",
            $behind,
            "
        ORDER BY ",
            $order,
            "
        LIMIT $6::bigint + 1
    ) p
    WINDOW place AS (ORDER BY ",
            $order,
            " ROWS UNBOUNDED PRECEDING)
) r
WHERE r.number <= $6::bigint AND (r.number = 1 OR r.total <= $7::bigint)
ORDER BY ",
            $order
        )
    };
}

/// Rows that wait for the sink.
pub(super) const PAGE: &str = page!(
    "hold_key IS NULL AND (commit_lsn, ordinal, delivery) > ($3::pg_lsn, $4::bigint, $5::bigint)",
    "commit_lsn, ordinal, delivery"
);

/// Rows that wait for the key $8. As a range, because only the index of keys has the order that goes with it.
pub(super) const PAGE_OF: &str = page!(
    "hold_key <= $8::text AND (hold_key, commit_lsn, ordinal, delivery) > ($8::text, $3::pg_lsn, $4::bigint, $5::bigint)",
    "hold_key, commit_lsn, ordinal, delivery"
);

/// $3: the term; $4: numbers; $5: the key of each. The column: whether the term is still ours.
pub(super) const HOLD: &str = concat!(
    "WITH ",
    in_term!("$3"),
    ", held AS (
UPDATE walgate.parked p SET hold_key = r.hold_key
FROM unnest($4::bigint[], $5::text[]) AS r (id, hold_key)
WHERE p.id = r.id AND p.slot || '' = $1 AND p.sink || '' = $2 AND (SELECT ours FROM ours))
SELECT ours FROM ours"
);

/// $3: numbers. What the sink has is not owed, in whosever term it was delivered.
pub(super) const DELIVERED: &str = "\
DELETE FROM walgate.parked WHERE id = ANY($3::bigint[]) AND slot || '' = $1 AND sink || '' = $2";

/// $3: dead at the latest; $4: at the earliest; $5 to $9: the filter; $10: letters at the most; $11: what is appended to
/// the dedup id; $12: the term. The last column: whether it is still ours. The delivery's hash is that of `Place::of`: of
/// the dedup id in UTF-8, whatever the database's encoding. A place that is parked already is owed already. A letter
/// without its payload (`OMITTED`) is never sent.
pub(super) const REVIVE: &str = concat!(
    "WITH ",
    in_term!("$12"),
    ", chosen AS MATERIALIZED (
    SELECT id FROM walgate.dead_letters
    WHERE slot = $1 AND sink = $2 AND payload_format <> 'omitted' AND stored_at <= $3::timestamptz
        AND ($4::timestamptz IS NULL OR stored_at >= $4) AND ($5::bigint[] IS NULL OR id = ANY($5))
        AND ($6::text IS NULL OR event_id = $6) AND ($7::text IS NULL OR event_type = $7)
        AND ($8::text IS NULL OR reason = $8) AND ($9::text IS NULL OR event_key = $9)
        AND (SELECT ours FROM ours)
    ORDER BY commit_lsn, ordinal, delivery
    LIMIT $10::bigint
    FOR UPDATE
), gone AS (
    DELETE FROM walgate.dead_letters WHERE id IN (SELECT id FROM chosen) RETURNING *
), fresh AS (
    SELECT g.*, g.dedup_id || '-' || $11::text AS fresh_id,
        ('x' || encode(substr(sha256(convert_to(g.dedup_id || '-' || $11::text, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint
            AS fresh_delivery
    FROM gone g
), new AS (
    INSERT INTO walgate.parked (
        slot, sink, commit_lsn, ordinal, delivery, hold_key, event_id, event_type, event_key, ordering_key, dedup_id,
        route, target, headers, payload, payload_format, committed_at, bytes, attempts, reason, message, errors)
    SELECT slot, sink, commit_lsn, ordinal, fresh_delivery,
        COALESCE(hold_key, 'alone:' || commit_lsn || '#' || ordinal || ':' || fresh_delivery), event_id, event_type,
        event_key, ordering_key, fresh_id, route, target, headers, payload, payload_format, committed_at, bytes, 0, NULL,
        NULL, errors
    FROM fresh
    ON CONFLICT (slot, sink, commit_lsn, ordinal, delivery) DO NOTHING
    RETURNING hold_key, bytes
)
SELECT (SELECT count(*) FROM chosen), (SELECT count(*) FROM new),
    (SELECT COALESCE(sum(bytes), 0)::bigint FROM new), ARRAY(SELECT DISTINCT hold_key FROM new),
    (SELECT ours FROM ours)"
);

/// What has been made durable here, where standbys have to have it too; else none. PostgreSQL 17 and later.
pub(super) const WRITTEN: &str = "\
SELECT CASE WHEN current_setting('synchronized_standby_slots') <> ''
        AND EXISTS (SELECT 1 FROM pg_replication_slots s WHERE s.slot_name = $1::text AND s.failover)
    THEN pg_current_wal_flush_lsn() END";

/// Standbys that do not have everything up to $2; none, if they have. PostgreSQL 17 and later.
pub(super) const BEHIND: &str = "\
SELECT string_agg(n.name, ', ')
FROM (SELECT btrim(part, ' \"') AS name
    FROM unnest(string_to_array(current_setting('synchronized_standby_slots'), ',')) part) n
LEFT JOIN pg_replication_slots s ON s.slot_name = n.name
WHERE EXISTS (SELECT 1 FROM pg_replication_slots o WHERE o.slot_name = $1::text AND o.failover)
    AND NOT COALESCE(COALESCE(s.confirmed_flush_lsn, s.restart_lsn) >= $2::pg_lsn, false)";
