#!/usr/bin/env bash
# Drains one backlog again and again, in turn, from slots made before it was written:
#   (b) pg_recvlogical, pgoutput version 1, to /dev/null     (c) walgate to the discard sink
# and prints events per second, the ratio of each pair, walgate's CPU seconds per million events and its peak memory.
# Quote the ratios: absolute figures are this machine's.
#
#   make bench                  1,000,000 rows of ~300 B, transactions of 10 rows, 3 rounds
#   ROWS=200000 PER_TX=1 ROUNDS=5 benches/drain.sh
#   SINK=webhook benches/drain.sh  (c) is walgate to a webhook, signed, in batches of 100; SINK=webhook-single: one by one
#   KEYS=10000 ...              the rows have an ordering key, one of so many; without it they have none
#   VERIFY=1 KEYS=10000 SINK=nats ROUNDS=1 benches/drain.sh   what arrived is read, counted and its order checked (slower)
#   DELIVERY='concurrency: 2' ...  the sink's `delivery`
#   SINK=nats benches/drain.sh  (c) is walgate to NATS JetStream: a nats-server of its own, file storage, one stream
set -euo pipefail
cd "$(dirname "$0")/.."
ROWS=${ROWS:-1000000} PER_TX=${PER_TX:-10} ROUNDS=${ROUNDS:-3}
WALGATE=${WALGATE:-target/release/walgate} SINK=${SINK:-discard} KEYS=${KEYS:-} VERIFY=${VERIFY:-}

die() { echo "drain: $*" >&2; exit 3; }
[ -x "$WALGATE" ] || die "no release binary: run \`make build\`"
BIN=${WALGATE_TEST_PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | head -n 1)}
for program in postgres initdb psql pg_recvlogical; do
  [ -x "$BIN/$program" ] || die "$program is missing in '$BIN': apt-get install postgresql, or name its folder in WALGATE_TEST_PG_BIN"
done
case $SINK in
  discard) ;;
  nats)
    NATS_SERVER=${WALGATE_TEST_NATS_SERVER:-$PWD/.cache/nats/nats-server}
    [ -x "$NATS_SERVER" ] || NATS_SERVER=$(PATH=$PATH:/usr/sbin command -v nats-server) || die "nats-server is missing: apt-get install nats-server" ;;
  webhook | webhook-single)
    RECEIVER=${RECEIVER:-target/release/examples/bench-receiver}
    [ -x "$RECEIVER" ] || die "no receiver: run \`cargo build --release --locked --example bench-receiver\`" ;;
  *) die "SINK=$SINK is not known: discard, webhook, webhook-single or nats" ;;
esac

DIR=$(mktemp -d) PG= NATS= HTTP=
stop() { [ -z "$2" ] || { kill "-$1" "$2" 2>/dev/null; wait "$2" 2>/dev/null; } || true; }
cleanup() { stop INT "$PG"; stop TERM "$NATS"; stop TERM "$HTTP"; rm -rf "$DIR"; }
trap cleanup EXIT
chmod 711 "$DIR"; mkdir "$DIR/data" "$DIR/sock"
AS=()
if [ "$(id -u)" = 0 ]; then chown postgres "$DIR/data" "$DIR/sock"; AS=(setpriv --reuid postgres --regid "$(id -g postgres)" --init-groups); fi
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
PORT=$(free_port)
"${AS[@]}" "$BIN/initdb" -D "$DIR/data" -U postgres -A trust --no-sync -E UTF8 --locale=C > "$DIR/initdb.log"
"${AS[@]}" "$BIN/postgres" -D "$DIR/data" -p "$PORT" -c listen_addresses=127.0.0.1 -c unix_socket_directories="$DIR/sock" \
  -c wal_level=logical -c max_wal_senders=20 -c max_replication_slots=20 -c fsync=off -c full_page_writes=off -c max_wal_size=8GB \
  -c autovacuum=off > "$DIR/postgres.log" 2>&1 &
PG=$!
sql() { "$BIN/psql" -X -q -At -h "$DIR/sock" -p "$PORT" -U postgres -v ON_ERROR_STOP=1 "$@"; }
until sql -c 'SELECT 1' >/dev/null 2>&1; do kill -0 "$PG" || die "PostgreSQL did not start: $(tail -n 3 "$DIR/postgres.log")"; sleep 0.1; done

sql -c "CREATE TABLE outbox_events (id UUID PRIMARY KEY DEFAULT gen_random_uuid(), event_type TEXT NOT NULL, payload JSONB NOT NULL,
          created_at TIMESTAMPTZ DEFAULT now(), published BOOLEAN DEFAULT false${KEYS:+, aggregate_id TEXT});
        CREATE PUBLICATION walgate_outbox FOR TABLE outbox_events WITH (publish = 'insert')"
for round in $(seq "$ROUNDS"); do
  for who in recv walgate; do sql -c "SELECT pg_create_logical_replication_slot('${who}_$round', 'pgoutput')" >/dev/null; done
done
echo "writing $ROWS rows in transactions of $PER_TX" >&2
sql <<SQL
CREATE PROCEDURE fill(n int, per int) LANGUAGE plpgsql AS \$\$ BEGIN
  FOR i IN 1 .. n / per LOOP
    INSERT INTO outbox_events (event_type${KEYS:+, aggregate_id}, payload)
      SELECT 'order.created', ${KEYS:+((i * per + j) % $KEYS)::text,} jsonb_build_object('order_id', i * per + j, 'customer', 'customer-' || j, 'note', repeat('x', 220))
      FROM generate_series(1, per) j;
    COMMIT;
  END LOOP; END \$\$;
SET synchronous_commit = off;
CALL fill($ROWS, $PER_TX);
SQL
# The end of the last commit: both are done when they have confirmed, or written, exactly that.
END=$(sql -c 'SELECT pg_current_wal_insert_lsn()')
sql -c CHECKPOINT

# The sink under test, as a line of YAML.
sink='discard: {}'
if [ "$SINK" = nats ]; then
  NATS_PORT=$(free_port)
  printf 'listen: "127.0.0.1:%s"\njetstream { store_dir: "%s/js", max_file: 16G }\n' "$NATS_PORT" "$DIR" > "$DIR/nats.conf"
  "$NATS_SERVER" -c "$DIR/nats.conf" > "$DIR/nats.log" 2>&1 & NATS=$!
  sink="nats: { servers: [\"127.0.0.1:$NATS_PORT\"], subject: events }"
fi

case $SINK in webhook*)
  "$RECEIVER" ${VERIFY:+--verify} > "$DIR/receiver" & HTTP=$!
  until [ -s "$DIR/receiver" ]; do kill -0 "$HTTP" || die "the receiver did not start"; sleep 0.05; done
  mode=batch; [ "$SINK" = webhook ] || mode=single
  sink="webhook: { url: \"http://$(head -n 1 "$DIR/receiver")/hooks\", secret: whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD, mode: $mode }" ;;
esac

# Makes the stream anew, so that no round finds the events of the one before.
fresh_stream() {
  python3 - "$NATS_PORT" <<'PY'
import json, socket, sys, time
for attempt in range(100):
    try:
        s = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10)
        break
    except OSError:
        time.sleep(0.1)
lines = s.makefile("rwb")
def ask(subject, body):
    lines.write(f"PUB {subject} reply {len(body)}\r\n".encode() + body + b"\r\n"); lines.flush()
    while not (line := lines.readline()).startswith(b"MSG "):
        if line.startswith(b"PING"): lines.write(b"PONG\r\n"); lines.flush()
    return json.loads(lines.read(int(line.split()[-1]) + 2))
lines.write(b'CONNECT {"verbose":false}\r\nSUB reply 1\r\n')
ask("$JS.API.STREAM.DELETE.BENCH", b"")
made = ask("$JS.API.STREAM.CREATE.BENCH", json.dumps({"name": "BENCH", "subjects": ["events"], "storage": "file", "num_replicas": 1}).encode())
sys.exit(str(made["error"]) if "error" in made else 0)
PY
}

KEY=null; [ -z "$KEYS" ] || KEY=aggregate_id
now() { date +%s.%N; }
: > "$DIR/result"
for round in $(seq "$ROUNDS"); do
  for turn in 1 2; do
    # Who goes first alternates.
    if [ $(( (round + turn) % 2 )) = 0 ]; then
      start=$(now)
      "$BIN/pg_recvlogical" -h 127.0.0.1 -p "$PORT" -U postgres -d postgres -S "recv_$round" --start -o proto_version=1 \
        -o publication_names=walgate_outbox --endpos="$END" -f /dev/null 2>"$DIR/recv.log"
      echo "recv $round $(echo "$(now) - $start" | bc)" >> "$DIR/result"
    else
      [ "$SINK" != nats ] || fresh_stream || die "no stream: $(tail -n 3 "$DIR/nats.log")"
      printf 'outbox: { columns: { key: %s } }\nsource: { url: "postgres://postgres@127.0.0.1:%s/postgres", slot: walgate_%s }\nsinks: { all: { %s, delivery: { %s } } }\nroutes: [{ event_type: "**", to: all }]\nadmin: { listen: "off" }\n' "$KEY" "$PORT" "$round" "$sink" "${DELIVERY:-}" > "$DIR/walgate.yaml"
      start=$(now)
      "$WALGATE" run --config "$DIR/walgate.yaml" 2>"$DIR/walgate.log" & W=$!
      until [ "$(sql -c "SELECT confirmed_flush_lsn >= '$END' FROM pg_replication_slots WHERE slot_name = 'walgate_$round'")" = t ]; do
        kill -0 $W || die "walgate ended: $(tail -n 3 "$DIR/walgate.log")"; sleep 0.05
      done
      took=$(echo "$(now) - $start" | bc)
      rss=$(awk '/VmHWM/ { print $2 }' "/proc/$W/status")
      cpu=$(awk -v hz="$(getconf CLK_TCK)" '{ print ($14 + $15) / hz }' "/proc/$W/stat")
      kill -TERM $W; wait $W || die "walgate ended with an error: $(tail -n 3 "$DIR/walgate.log")"
      echo "walgate $round $took $cpu $rss" >> "$DIR/result"
      if [ -n "$VERIFY" ]; then case $SINK in
        nats) python3 benches/order.py "$NATS_PORT" "$ROWS" ;;
        webhook) sleep 0.2; awk '/verified/ { n = $2; m = $3 } END { printf "verified: %d events, %d out of order\n", n, m }' "$DIR/receiver" ;;
      esac; fi
    fi
  done
done
[ -z "$HTTP" ] || { sleep 0.2; awk -v rows="$ROWS" -v rounds="$ROUNDS" '/requests/ { n += $2 } END { if (n) printf "events in a request: %.1f\n", rows * rounds / n }' "$DIR/receiver"; }
python3 - "$DIR/result" "$ROWS" "$PER_TX" "$SINK" <<'PY'
import statistics, sys
rows, per, sink = int(sys.argv[2]), sys.argv[3], sys.argv[4]
recv, walgate = {}, {}
for line in open(sys.argv[1]):
    who, round_, *figures = line.split()
    (recv if who == "recv" else walgate)[round_] = [float(figure) for figure in figures]
ratios = [recv[r][0] / walgate[r][0] for r in walgate]
span = lambda values, form: f"{form % statistics.median(values)}  ({form % min(values)} to {form % max(values)})"
print(f"{rows} rows in transactions of {per}, {len(ratios)} rounds: median (min to max)")
print("  pg_recvlogical, events/s          ", span([rows / v[0] for v in recv.values()], "%.0f"))
print(f"  {f'walgate to {sink}, events/s':<34}", span([rows / v[0] for v in walgate.values()], "%.0f"))
print("  ratio walgate / pg_recvlogical    ", span(ratios, "%.2f"))
print("  walgate, CPU s per 1M events      ", span([v[1] * 1e6 / rows for v in walgate.values()], "%.2f"))
print("  walgate, peak RSS in MiB          ", span([v[2] / 1024 for v in walgate.values()], "%.1f"))
PY
