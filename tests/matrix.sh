#!/usr/bin/env bash
# The end-to-end tests on the versions of the servers that `make test` does not run: `make test-matrix`.
#
#   tests/matrix.sh                       all of them; 3 to 5 minutes each on two cores
#   PG="18 14" tests/matrix.sh            only these versions of PostgreSQL
#   FILTER=nats tests/matrix.sh           only the tests with this in their name
#   PG= tests/matrix.sh                   only RabbitMQ
#
# PostgreSQL 14, 16, 17 and 18, each with nats-server 2.15 and Kafka 3.9; the servers are fetched into .cache/ and checked
# by hash. Then the tests of the sink `rabbitmq` with RabbitMQ 4.0, which needs root: it runs in a Debian 13 of its own.
set -uo pipefail
cd "$(dirname "$0")/.."
PG=${PG-18 17 16 14} FILTER=${FILTER:-} LOGS=target/matrix
mkdir -p "$LOGS"
cargo test --locked --features full --test e2e --no-run || exit 1
failed=0 table="| $(date -u +%F) | nats-server | tests | minutes |"$'\n'"|---|---|---|---|"

run() { # log, server, nats-server, filter
  local start result log=$LOGS/$1.log
  start=$(date +%s)
  echo "matrix: $2${3:+ with nats-server $3}" >&2
  cargo test --locked --features full --test e2e -- $4 > "$log" 2>&1 || { failed=1; grep -A12 '^failures:' "$log" | tail -n 12 >&2; }
  result=$(sed -n 's/^test result: [A-Za-z]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$log" | tail -n 1)
  table+=$'\n'"| $2 | $3 | ${result:-did not end} | $(( ($(date +%s) - start + 30) / 60 )) |"
}

if [ -n "$PG" ]; then
  tests/setup.sh nats 2.15 || exit 3
  export WALGATE_TEST_NATS_SERVER=$PWD/.cache/nats-2.15/nats-server
  tests/setup.sh kafka 3.9 || exit 3
  export WALGATE_TEST_KAFKA=$PWD/.cache/kafka-3.9
  nats=$("$WALGATE_TEST_NATS_SERVER" --version | tr -dc '0-9.')
fi
for major in $PG; do
  tests/setup.sh postgres "$major" || { failed=1; table+=$'\n'"| PostgreSQL $major | | could not be fetched | |"; continue; }
  export WALGATE_TEST_PG_BIN=$PWD/.cache/postgresql/$major/bin
  run "$major" "PostgreSQL $("$WALGATE_TEST_PG_BIN/postgres" --version | sed 's/[^0-9]*\([0-9.]*\).*/\1/')" "$nats" "$FILTER"
done
unset WALGATE_TEST_PG_BIN WALGATE_TEST_NATS_SERVER WALGATE_TEST_KAFKA

case rabbitmq in *"$FILTER"*)
  if tests/setup.sh rabbitmq 4.0; then
    export WALGATE_TEST_RABBITMQ_ROOT=$PWD/.cache/rabbitmq-4.0
    run rabbitmq "RabbitMQ $(dpkg-query --admindir "$WALGATE_TEST_RABBITMQ_ROOT/var/lib/dpkg" -W -f '${Version}' rabbitmq-server | cut -d- -f1)" "" rabbitmq
  else
    failed=1 table+=$'\n'"| RabbitMQ 4.0 | | could not be built | |"
  fi
esac
echo "$table"
exit $failed
