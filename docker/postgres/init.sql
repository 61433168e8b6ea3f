-- What `walgate init --with-table` prints, with columns for ordering key and headers. PostgreSQL's image runs it once, in
-- the database POSTGRES_DB, when its volume is new.

CREATE TABLE public.outbox_events (
  id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
  event_type TEXT NOT NULL,
  payload JSONB NOT NULL,
  aggregate_id TEXT,
  headers JSONB,
  created_at TIMESTAMPTZ DEFAULT now(),
  published BOOLEAN DEFAULT false
);

-- The role that walgate connects as: it needs no right to read or write the outbox.
\set password `cat /run/secrets/walgate_password`
CREATE ROLE walgate LOGIN REPLICATION PASSWORD :'password';

-- walgate's own tables: what a sink cannot take waits there. They must not be published.
CREATE SCHEMA IF NOT EXISTS walgate;
CREATE TABLE IF NOT EXISTS walgate.parked (
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
  stored_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS parked_place ON walgate.parked (slot, sink, commit_lsn, ordinal, delivery);
CREATE INDEX IF NOT EXISTS parked_key ON walgate.parked (slot, sink, hold_key, commit_lsn, ordinal, delivery) WHERE hold_key IS NOT NULL;
CREATE TABLE IF NOT EXISTS walgate.dead_letters (
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
  stored_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX IF NOT EXISTS dead_letters_place ON walgate.dead_letters (slot, sink, commit_lsn, ordinal, delivery);
CREATE INDEX IF NOT EXISTS dead_letters_age ON walgate.dead_letters (slot, stored_at);
CREATE TABLE IF NOT EXISTS walgate.requests (
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
  affected bigint
);
CREATE INDEX IF NOT EXISTS requests_open ON walgate.requests (slot, id) WHERE done_at IS NULL;
CREATE TABLE IF NOT EXISTS walgate.gateway (
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
  written_at timestamptz NOT NULL
) WITH (fillfactor = 10);
GRANT USAGE ON SCHEMA walgate TO walgate;
GRANT SELECT, INSERT, UPDATE, DELETE ON walgate.parked, walgate.dead_letters, walgate.requests, walgate.gateway TO walgate;

-- The publication before the slot: a slot cannot read what was written before its publication existed.
CREATE PUBLICATION walgate_outbox FOR TABLE public.outbox_events WITH (publish = 'insert', publish_via_partition_root = true);

SELECT pg_create_logical_replication_slot('walgate', 'pgoutput');
-- What is inserted from here on is streamed: clean-up has to know where that began.
INSERT INTO walgate.gateway (slot, term, system_id, timeline, confirmed_lsn, birth, written_at)
SELECT s.slot_name, 0, c.system_identifier, p.timeline_id, s.confirmed_flush_lsn,
  pg_snapshot_xmax(pg_current_snapshot()), now()
FROM pg_replication_slots s, pg_control_system() c, pg_control_checkpoint() p WHERE s.slot_name = 'walgate'
ON CONFLICT DO NOTHING;
