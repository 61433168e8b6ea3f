#!/usr/bin/env bash
# One backlog, delivered to a webhook (plain), then parked because the webhook is down, and delivered from the table when
# it is back; beside it, in the same gateway, a sink that is well (discard). Prints events per second of each way, WAL
# bytes of each parked event in and out, CPU seconds of walgate and of PostgreSQL, walgate's peak memory.
# Quote the ratios: absolute figures are this machine's.
#
#   make build && cargo build --release --locked --example bench-receiver && benches/park.sh
#                                  300,000 rows of ~300 B, 10,000 keys, transactions of 10 rows, 3 rounds
#   ROWS=1000000 KEYS=100 ROUNDS=1 benches/park.sh
#   FSYNC=off benches/park.sh      without waiting for the disk (and without images of whole pages in the WAL)
#   VERIFY=1 benches/park.sh       what arrived is counted and its order checked (slower)
#   STATEMENTS=1 benches/park.sh   what each statement took, by pg_stat_statements
#   DELIVERY='concurrency: 8' LIMITS='inflight: 32MiB' ...  the sink's `delivery`, and `limits`
set -euo pipefail
cd "$(dirname "$0")/.."
ROWS=${ROWS:-300000} PER_TX=${PER_TX:-10} ROUNDS=${ROUNDS:-3} KEYS=${KEYS:-10000} FSYNC=${FSYNC:-on}
WALGATE=${WALGATE:-target/release/walgate} RECEIVER=${RECEIVER:-target/release/examples/bench-receiver}
VERIFY=${VERIFY:-} STATEMENTS=${STATEMENTS:-}

die() { echo "park: $*" >&2; exit 3; }
[ -x "$WALGATE" ] || die "no release binary: run \`make build\`"
[ -x "$RECEIVER" ] || die "no receiver: run \`cargo build --release --locked --example bench-receiver\`"
BIN=${WALGATE_TEST_PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | head -n 1)}
for program in postgres initdb psql; do
  [ -x "$BIN/$program" ] || die "$program is missing in '$BIN': apt-get install postgresql, or name its folder in WALGATE_TEST_PG_BIN"
done

DIR=$(mktemp -d) PG= HTTP= W=
stop() { [ -z "$2" ] || { kill "-$1" "$2" 2>/dev/null; wait "$2" 2>/dev/null; } || true; }
cleanup() { stop TERM "$W"; stop TERM "$HTTP"; stop INT "$PG"; rm -rf "$DIR"; }
trap cleanup EXIT
chmod 711 "$DIR"; mkdir "$DIR/data" "$DIR/sock"
AS=()
if [ "$(id -u)" = 0 ]; then chown postgres "$DIR/data" "$DIR/sock"; AS=(setpriv --reuid postgres --regid "$(id -g postgres)" --init-groups); fi
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
PORT=$(free_port) HOOK=$(free_port) ADMIN=$(free_port)
"${AS[@]}" "$BIN/initdb" -D "$DIR/data" -U postgres -A trust --no-sync -E UTF8 --locale=C > "$DIR/initdb.log"
"${AS[@]}" "$BIN/postgres" -D "$DIR/data" -p "$PORT" -c listen_addresses=127.0.0.1 -c unix_socket_directories="$DIR/sock" \
  -c wal_level=logical -c max_wal_senders=20 -c max_replication_slots=20 -c fsync="$FSYNC" -c full_page_writes="$FSYNC" \
  -c max_wal_size=8GB -c autovacuum=off ${STATEMENTS:+-c shared_preload_libraries=pg_stat_statements} > "$DIR/postgres.log" 2>&1 &
PG=$!
sql() { "$BIN/psql" -X -q -At -h "$DIR/sock" -p "$PORT" -U postgres -v ON_ERROR_STOP=1 "$@"; }
until sql -c 'SELECT 1' >/dev/null 2>&1; do kill -0 "$PG" || die "PostgreSQL did not start: $(tail -n 3 "$DIR/postgres.log")"; sleep 0.1; done

sql -c "CREATE TABLE outbox_events (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), event_type TEXT NOT NULL, payload JSONB NOT NULL,
          created_at TIMESTAMPTZ DEFAULT now(), published BOOLEAN DEFAULT false, aggregate_id TEXT);
        CREATE PUBLICATION walgate_outbox FOR TABLE outbox_events WITH (publish = 'insert')"
"$WALGATE" init --only sql | sed -n '/^CREATE SCHEMA/,/fillfactor/p' | sql
[ -z "$STATEMENTS" ] || sql -c 'CREATE EXTENSION pg_stat_statements'
for round in $(seq "$ROUNDS"); do
  for who in plain park; do sql -c "SELECT pg_create_logical_replication_slot('${who}_$round', 'pgoutput')" >/dev/null; done
done
echo "writing $ROWS rows of $KEYS keys in transactions of $PER_TX" >&2
sql <<SQL
CREATE PROCEDURE fill(n int, per int) LANGUAGE plpgsql AS \$\$ BEGIN
  FOR i IN 1 .. n / per LOOP
    INSERT INTO outbox_events (event_type, aggregate_id, payload)
      SELECT 'order.created', ((i * per + j) % $KEYS)::text, jsonb_build_object('order_id', i * per + j, 'customer', 'customer-' || j, 'note', repeat('x', 220))
      FROM generate_series(1, per) j;
    COMMIT;
  END LOOP; END \$\$;
SET synchronous_commit = off;
CALL fill($ROWS, $PER_TX);
SQL
END=$(sql -c 'SELECT pg_current_wal_insert_lsn()')

listen() {
  "$RECEIVER" --listen "127.0.0.1:$HOOK" ${VERIFY:+--verify} > "$DIR/receiver" & HTTP=$!
  until [ -s "$DIR/receiver" ]; do kill -0 "$HTTP" || die "the receiver did not start"; sleep 0.01; done
}
HOOK_SINK="webhook: { url: \"http://127.0.0.1:$HOOK/hooks\", secret: whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD, mode: batch }"
# A gateway on this slot, with these sinks.
start() {
  cat > "$DIR/walgate.yaml" <<YAML
outbox: { columns: { key: aggregate_id } }
source: { url: "postgres://postgres@127.0.0.1:$PORT/postgres", slot: $1 }
sinks: { $2 }
routes: [{ event_type: "**", to: [$3] }]
limits: { ${LIMITS:-} }
admin: { listen: "127.0.0.1:$ADMIN" }
YAML
  "$WALGATE" run --config "$DIR/walgate.yaml" 2>"$DIR/walgate.log" & W=$!
}
finish() {
  awk '/VmHWM/ { print "rss", $2 }' "/proc/$W/status" >> "$DIR/$1"
  kill -TERM "$W"; wait "$W" || die "walgate ended with an error: $(tail -n 3 "$DIR/walgate.log")"
  W=
}
# Watches until `hook` has had all events come to this; a line for each look: time, events, CPU of walgate and PostgreSQL.
cat > "$DIR/watch.py" <<'PY'
import os, subprocess, sys, time, urllib.request
admin, outcome, rows, walgate, postgres = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5]
TICK = os.sysconf("SC_CLK_TCK")
def cpu(pid):
    try:
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    except OSError:
        return 0
ended = {}
def family(pid):
    # Children that have ended still count.
    for child in open(f"/proc/{pid}/task/{pid}/children").read().split():
        ended[child] = max(ended.get(child, 0), cpu(child))
    return cpu(pid) + sum(ended.values())
def count():
    try:
        page = urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5).read().decode()
    except OSError:
        return 0
    lines = (line for line in page.splitlines() if line.startswith("walgate_events_total{"))
    return int(sum(float(l.rsplit(" ", 1)[1]) for l in lines if 'sink="hook"' in l and f'outcome="{outcome}"' in l))
while True:
    if not os.path.exists(f"/proc/{walgate}"):
        sys.exit("walgate has ended")
    now, events = time.time(), count()
    print(now, events, cpu(walgate), family(postgres), flush=True)
    if events >= rows:
        break
    time.sleep(0.05)
PY
watch_until() { python3 "$DIR/watch.py" "$ADMIN" "$1" "$ROWS" "$W" "$PG" > "$DIR/$2" || die "$(tail -n 3 "$DIR/walgate.log")"; }
wal() { sql -c "SELECT pg_current_wal_insert_lsn() - '$1'"; }
statements() {
  [ -n "$STATEMENTS" ] || return 0
  echo "statements, $1:"
  sql -F ' | ' -c "SELECT calls, rows, round(total_exec_time) || ' ms', round(mean_exec_time::numeric, 2) || ' ms each', left(regexp_replace(query, '\s+', ' ', 'g'), 60)
    FROM pg_stat_statements WHERE query ILIKE '%walgate.parked%' ORDER BY total_exec_time DESC LIMIT 5"
  sql -c 'SELECT pg_stat_statements_reset()' >/dev/null
}
verified() { [ -z "$VERIFY" ] || { sleep 0.2; awk -v what="$1" '/verified/ { n = $2; m = $3 } END { printf "verified, %s: %d events, %d out of order\n", what, n, m }' "$DIR/receiver"; }; }

for round in $(seq "$ROUNDS"); do
  sql -c 'TRUNCATE walgate.parked' -c CHECKPOINT
  [ -z "$STATEMENTS" ] || sql -c 'SELECT pg_stat_statements_reset()' >/dev/null
  # The same rows straight to the same receiver.
  listen
  start "plain_$round" "all: { discard: {} }, hook: { $HOOK_SINK, delivery: { ${DELIVERY:-} } }" "all, hook"
  watch_until acknowledged "plain.$round"
  finish "plain.$round"
  verified plain
  stop TERM "$HTTP"; HTTP=

  from=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
  start "park_$round" "all: { discard: {} }, hook: { $HOOK_SINK, delivery: { on_outage: park, park_after: 1s ${DELIVERY:+, $DELIVERY} } }" "all, hook"
  watch_until parked "in.$round"
  until [ "$(sql -c "SELECT confirmed_flush_lsn >= '$END' FROM pg_replication_slots WHERE slot_name = 'park_$round'")" = t ]; do sleep 0.05; done
  echo "wal $(wal "$from")" >> "$DIR/in.$round"
  sql -F ' ' -c "SELECT 'table', pg_total_relation_size('walgate.parked'), count(*) FROM walgate.parked" >> "$DIR/in.$round"
  statements in
  from=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
  listen
  watch_until acknowledged "out.$round"
  until [ "$(sql -c 'SELECT count(*) FROM walgate.parked')" = 0 ]; do sleep 0.2; done
  echo "wal $(wal "$from")" >> "$DIR/out.$round"
  finish "out.$round"
  statements out
  verified out
  stop TERM "$HTTP"; HTTP=
done
python3 - "$DIR" "$ROWS" "$PER_TX" "$KEYS" "$ROUNDS" "$FSYNC" <<'PY'
import statistics, sys
folder, rows, per, keys, rounds, fsync = sys.argv[1], int(sys.argv[2]), *sys.argv[3:5], int(sys.argv[5]), sys.argv[6]
def read(way, round_):
    samples, more = [], {}
    for line in open(f"{folder}/{way}.{round_}"):
        words = line.split()
        if words[0].isalpha():
            more[words[0]] = [float(word) for word in words[1:]]
        else:
            samples.append([float(word) for word in words])
    # From the first events on: the way there, connecting and waiting, is not what is measured.
    begin = next(n for n, sample in enumerate(samples) if sample[1] > 0)
    # So few that one look saw all of them: from the look before.
    begin -= begin == len(samples) - 1
    first, last = samples[begin], samples[-1]
    events = last[1] - first[1]
    return {"rate": events / (last[0] - first[0]), "walgate": (last[2] - first[2]) * 1e6 / events,
            "postgres": (last[3] - first[3]) * 1e6 / events, **more}
found = {way: [read(way, round_) for round_ in range(1, rounds + 1)] for way in ("plain", "in", "out")}
span = lambda values, form: f"{form % statistics.median(values)}  ({form % min(values)} to {form % max(values)})"
print(f"{rows} rows in transactions of {per}, {keys} keys, fsync {fsync}, {rounds} rounds: median (min to max)")
for way, name in (("plain", "straight to the webhook"), ("in", "into walgate.parked"), ("out", "out of walgate.parked")):
    print(f"  {name + ', events/s':<48}", span([f["rate"] for f in found[way]], "%.0f"))
    if way != "plain":
        ratios = [f["rate"] / p["rate"] for f, p in zip(found[way], found["plain"])]
        print(f"  {'  of the way straight there':<48}", span(ratios, "%.2f"))
    print(f"  {'  walgate, CPU s per 1M events':<48}", span([f["walgate"] for f in found[way]], "%.1f"))
    print(f"  {'  PostgreSQL, CPU s per 1M events':<48}", span([f["postgres"] for f in found[way]], "%.1f"))
    if "wal" in found[way][0]:
        print(f"  {'  WAL bytes per event':<48}", span([f["wal"][0] / rows for f in found[way]], "%.0f"))
    if "table" in found[way][0]:
        print(f"  {'  the table with its indexes, bytes per event':<48}", span([f["table"][0] / f["table"][1] for f in found[way]], "%.0f"))
    if "rss" in found[way][0]:
        print(f"  {'  walgate, peak RSS in MiB':<48}", span([f["rss"][0] / 1024 for f in found[way]], "%.1f"))
PY
