#!/usr/bin/env bash
# Plants known bugs one by one: each must be caught by the tests that its patch names.
#
#   tests/planted/run.sh                   all of them
#   tests/planted/run.sh settle-on-send    those that are named
#
# Works on the last commit, in a work tree of its own under target/planted. A patch begins with
#   Bug: what is wrong
#   Caught by: arguments of `cargo test`; the last one is the whole name of a test
# The tree must build with the bug, and each named test must fail: a bug that does not compile is not caught. Before,
# each of these tests must pass without a bug.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
cargo=${CARGO:-cargo}
limit=300
base=${CARGO_TARGET_DIR:-$root/target}/planted
tree=$base/tree
logs=$base/logs
say() { printf 'planted: %s\n' "$*" >&2; }
die() { say "$*"; exit 3; }

git rev-parse --git-dir >/dev/null 2>&1 || die "this is no git checkout, and patches are planted in a work tree of git"
patches=()
if [ $# -gt 0 ]; then
  for name in "$@"; do
    name=$(basename "$name" .patch)
    [ -f "tests/planted/$name.patch" ] || die "there is no tests/planted/$name.patch"
    patches+=("$name")
  done
else
  for file in tests/planted/*.patch; do patches+=("$(basename "$file" .patch)"); done
fi
[ -z "$(git status --porcelain --untracked-files=no -- src sinks tests)" ] || say "uncommitted changes are left out: bugs are planted in the last commit"

mkdir -p "$base" "$logs"
exec 9>"$base/lock"
flock -n 9 || die "another run is using $base"
remove_tree() {
  git -C "$root" worktree remove --force "$tree" 2>/dev/null || rm -rf "$tree"
  git -C "$root" worktree prune
}
trap 'exit 130' INT TERM
trap remove_tree EXIT
remove_tree
# Always at the same place, so that builds are incremental.
git worktree add --quiet --detach "$tree" HEAD
[ ! -d "$root/.cache" ] || ln -s "$root/.cache" "$tree/.cache"
export CARGO_TARGET_DIR=$base/build

field() { sed -n "/^diff /q; s/^$1: //p" "$root/tests/planted/$2.patch"; }

# Builds and runs one named test; what came of it is in $result: passed, failed, or why neither is known.
run_test() { # arguments of cargo test, log
  local log=$2 status=0 name=${1##* }
  local -a arguments
  read -ra arguments <<<"$1"
  if ! (cd "$tree" && "$cargo" test --quiet --locked --no-run "${arguments[@]:0:${#arguments[@]}-1}") >"$log" 2>&1 9>&-; then
    result="does not build"
    return
  fi
  (cd "$tree" && timeout --kill-after=10 "$limit" "$cargo" test --locked "${arguments[@]}" -- --exact) >"$log" 2>&1 9>&- || status=$?
  if grep -qF "test $name ... ok" "$log" && [ "$status" = 0 ]; then
    result=passed
  elif [ "$status" = 124 ] || [ "$status" = 137 ]; then
    result="no end within $limit s"
  elif grep -qF "test $name ... FAILED" "$log"; then
    result=failed
  elif ! grep -q '^running 1 test$' "$log"; then
    result="no such test"
  else
    result="ended with status $status"
  fi
}

# What the failed test said, in a line.
reason() {
  sed -n '/ panicked at /,$p' "$1" | sed -n '2,4p' | tr '\n' ' ' | cut -c 1-160
}

wrong=0
say "without a bug: every named test must pass"
while IFS= read -r caught; do
  run_test "$caught" "$logs/sound.log"
  if [ "$result" != passed ]; then
    cp "$logs/sound.log" "$logs/sound-${caught##*::}.log"
    say "  $caught: $result (see $logs/sound-${caught##*::}.log)"
    wrong=1
  fi
done < <(for patch in "${patches[@]}"; do field "Caught by" "$patch"; done | sort -u)
[ "$wrong" = 0 ] || die "nothing was planted: tests that fail anyway catch nothing"

rows=()
for patch in "${patches[@]}"; do
  say "$patch: $(field Bug "$patch")"
  if ! git -C "$tree" apply "$root/tests/planted/$patch.patch"; then
    rows+=("$patch|-|DOES NOT APPLY")
    wrong=1
    continue
  fi
  number=0
  while IFS= read -r caught; do
    number=$((number + 1))
    run_test "$caught" "$logs/$patch-$number.log"
    case $result in
      failed) verdict=caught ;;
      passed) verdict="NOT CAUGHT" ;;
      *) verdict="ERROR: $result" ;;
    esac
    [ "$verdict" = caught ] || wrong=1
    rows+=("$patch|$caught|$verdict")
    say "  $verdict by $caught: $(reason "$logs/$patch-$number.log")"
  done < <(field "Caught by" "$patch")
  if [ "$number" = 0 ]; then
    rows+=("$patch|-|NAMES NO TEST")
    wrong=1
  fi
  git -C "$tree" checkout --quiet -- .
  git -C "$tree" clean --quiet -fd -- src sinks tests
done

printf '\n%-26s %-10s %s\n' "bug" "result" "test"
for row in "${rows[@]}"; do
  IFS='|' read -r patch caught verdict <<<"$row"
  printf '%-26s %-10s %s\n' "$patch" "$verdict" "$caught"
done
if [ "$wrong" = 0 ]; then
  say "${#patches[@]} bugs were planted, and each was caught by every test that it names"
else
  say "not every bug was caught: logs are in $logs"
fi
exit "$wrong"
