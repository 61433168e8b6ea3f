#!/usr/bin/env bash
# The end-to-end tests on the versions of the servers that `make test` does not run: `make test-matrix`.
#
#   tests/matrix.sh                       all of them; 3 to 5 minutes each on two cores
#   PG="18 14" tests/matrix.sh            only these versions of PostgreSQL
#   FILTER=nats tests/matrix.sh           only the tests with this in their name
#
# PostgreSQL 14, 16, 17 and 18, each with nats-server 2.15 and Kafka 3.9; the servers are fetched into .cache/ and checked
# by hash.
set -uo pipefail
cd "$(dirname "$0")/.."
PG=${PG:-18 17 16 14} FILTER=${FILTER:-} LOGS=target/matrix
mkdir -p "$LOGS"
cargo test --locked --features full --test e2e --no-run || exit 1
tests/setup.sh nats 2.15 || exit 3
export WALGATE_TEST_NATS_SERVER=$PWD/.cache/nats-2.15/nats-server
tests/setup.sh kafka 3.9 || exit 3
export WALGATE_TEST_KAFKA=$PWD/.cache/kafka-3.9
nats=$("$WALGATE_TEST_NATS_SERVER" --version | tr -dc '0-9.')
failed=0 table="| $(date -u +%F) | nats-server | tests | minutes |"$'\n'"|---|---|---|---|"
for major in $PG; do
  tests/setup.sh postgres "$major" || { failed=1; table+=$'\n'"| PostgreSQL $major | | could not be fetched | |"; continue; }
  export WALGATE_TEST_PG_BIN=$PWD/.cache/postgresql/$major/bin
  server=$("$WALGATE_TEST_PG_BIN/postgres" --version | sed 's/[^0-9]*\([0-9.]*\).*/\1/')
  echo "matrix: PostgreSQL $server with nats-server $nats" >&2
  start=$(date +%s)
  cargo test --locked --features full --test e2e -- $FILTER > "$LOGS/$major.log" 2>&1 || { failed=1; grep -A12 '^failures:' "$LOGS/$major.log" | tail -n 12 >&2; }
  result=$(sed -n 's/^test result: [A-Za-z]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$LOGS/$major.log" | tail -n 1)
  table+=$'\n'"| PostgreSQL $server | $nats | ${result:-did not end} | $(( ($(date +%s) - start + 30) / 60 )) |"
done
echo "$table"
exit $failed
