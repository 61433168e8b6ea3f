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

-- The role that walgate connects as: it needs no right to read or write any table.
\set password `cat /run/secrets/walgate_password`
CREATE ROLE walgate LOGIN REPLICATION PASSWORD :'password';

-- The publication before the slot: a slot cannot read what was written before its publication existed.
CREATE PUBLICATION walgate_outbox FOR TABLE public.outbox_events WITH (publish = 'insert', publish_via_partition_root = true);

SELECT pg_create_logical_replication_slot('walgate', 'pgoutput');
