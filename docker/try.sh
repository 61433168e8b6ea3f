#!/usr/bin/env bash
# Tries docker/Dockerfile where there is no Docker: reads the instructions from the file itself and carries them out in two
# bare Debian 12 folders, one for each stage, with this machine's Rust toolchain in place of the image `rust`. Then it runs
# the image's command as its user beside a PostgreSQL of its own, asks the health check, writes an event and stops it.
#
#   docker/try.sh [FOLDER]                  FOLDER (/var/tmp/walgate-try): about 2 GB; what is there is used again
#   FEATURES=kafka,webhook docker/try.sh    each ARG of the Dockerfile may be given so
#   docker/try.sh --run [FOLDER]            only the second half
#
# Needs root, debootstrap, cargo, and PostgreSQL 14 or later with psql (WALGATE_TEST_PG_BIN: its folder). All mounts are in
# a mount namespace of its own, and all servers in a network namespace: nothing of them is left, or seen from outside.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf 'try: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

phase=build
[ "${1:-}" != --run ] || { phase=run; shift; }
work=$(realpath -m "${1:-/var/tmp/walgate-try}")
[ "$(id -u)" = 0 ] || die "needs root, for chroot and mounts"
if [ -z "${TRY_INSIDE:-}" ]; then
  [ $phase = run ] || TRY_INSIDE=1 unshare --mount --propagation private -- "$0" "$work"
  exec env TRY_INSIDE=1 unshare --mount --propagation private --net -- "$0" --run "$work"
fi

# What both images have.
path=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The instructions, one a line: comments left out, continued lines joined.
instructions() {
  sed '/^[[:space:]]*#/d; /^[[:space:]]*$/d' docker/Dockerfile | sed -e ':again' -e '/\\$/{N; s/\\\n[[:space:]]*//; b again' -e '}'
}
# What the last instruction of this name says.
instruction() { instructions | sed -n "s/^$1 //p" | tail -n 1; }
# The elements of a JSON array, one a line.
elements() { grep -o '"[^"]*"' <<< "${1#*[}" | tr -d '"'; }

# --- First half: the stages.

# A bare Debian 12, made once.
bare() {
  [ ! -e "$work/bare/.made" ] || return 0
  command -v debootstrap > /dev/null || die "debootstrap is missing: apt-get install debootstrap"
  say "making a bare Debian 12 in $work/bare"
  debootstrap --variant=minbase bookworm "$work/bare" "${MIRROR:-http://deb.debian.org/debian}" > "$work/debootstrap.log"
  cat > "$work/bare/etc/apt/sources.list" <<SOURCES
deb ${MIRROR:-http://deb.debian.org/debian} bookworm main
deb ${MIRROR:-http://deb.debian.org/debian} bookworm-updates main
deb ${SECURITY_MIRROR:-http://deb.debian.org/debian-security} bookworm-security main
SOURCES
  # As in the image debian:12-slim: apt keeps no files, and there are no manuals.
  printf 'APT::Keep-Downloaded-Packages "false";\nDir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n' > "$work/bare/etc/apt/apt.conf.d/docker-clean"
  printf 'path-exclude /usr/share/%s/*\n' doc man locale info > "$work/bare/etc/dpkg/dpkg.cfg.d/docker"
  rm -rf "$work"/bare/var/cache/apt/* "$work"/bare/var/lib/apt/lists/* "$work"/bare/usr/share/{doc,man,locale,info}/*
  touch "$work/bare/.made"
}

# Starts a stage: a fresh copy of the bare folder as $root.
from() { # image, "AS", name
  stage=${3:-final} root=$work/${3:-final} folder=/ arguments=() environment=("$path")
  say "stage $stage: $1"
  : > "$work/$stage.log"
  rm -rf "$root"
  cp -a "$work/bare" "$root"
  cp -L /etc/resolv.conf "$root/etc/resolv.conf"
  mount -t proc proc "$root/proc"
  case $1 in
    debian:12-slim) ;;
    rust:*-slim-bookworm)
      # What that image has beside Debian: a C compiler, certificates, the toolchain; and whom this machine trusts.
      inside 'apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev'
      cp -L "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" "$root/etc/ssl/certs/ca-certificates.crt"
      mkdir -p "$root/usr/local/rust" "$root/usr/local/cargo/registry"
      mount --bind -o ro "$(rustc --print sysroot)" "$root/usr/local/rust"
      [ ! -e "${CARGO_HOME:-$HOME/.cargo}/config.toml" ] || cp "${CARGO_HOME:-$HOME/.cargo}/config.toml" "$root/usr/local/cargo/"
      environment=("PATH=/usr/local/rust/bin:${environment[0]#PATH=}" CARGO_HOME=/usr/local/cargo)
      ;;
    *) die "there is no stand-in for the image $1" ;;
  esac
}

# A shell command in $root, as RUN has it.
inside() {
  env -i "${environment[@]}" "${arguments[@]}" DEBIAN_FRONTEND=noninteractive \
    chroot "$root" /bin/sh -c "cd '$folder' && $1" < /dev/null >> "$work/$stage.log" 2>&1 || { tail -n 20 "$work/$stage.log" >&2; die "failed: $1"; }
}

run() {
  local command=$1 option target cache start=$SECONDS
  while [[ $command == --* ]]; do
    option=${command%% *} command=${command#* }
    command=${command#"${command%%[! ]*}"}
    [[ $option =~ ^--mount=type=cache,target=([^,]+) ]] || die "try.sh does not know RUN $option"
    target=${BASH_REMATCH[1]} cache=$work/cache/$(tr / _ <<< "${BASH_REMATCH[1]}")
    mkdir -p "$cache" "$root$target"
    mount --bind "$cache" "$root$target"
  done
  say "RUN $command"
  inside "$command"
  say "  $((SECONDS - start)) s"
}

copy() {
  local words from=. name target
  read -ra words <<< "$1"
  [[ ${words[0]} != --from=* ]] || { from=$work/${words[0]#--from=}; words=("${words[@]:1}"); }
  target=${words[-1]}
  [[ $target == /* ]] || target=${folder%/}/$target
  for name in "${words[@]::${#words[@]}-1}"; do
    # Docker sees what .dockerignore lets through, and nothing else.
    [ "$from" != . ] || grep -qx "!$name" .dockerignore || die "COPY $name: not in .dockerignore"
    if [[ $target == */ ]]; then mkdir -p "$root$target"; else mkdir -p "$root$(dirname "$target")"; fi
    cp -a --no-preserve=ownership "$from/$name" "$root$target"
  done
}

build() {
  local line word rest name
  declare -A given=()
  mkdir -p "$work"
  bare
  while read -r line <&3; do
    word=${line%% *} rest=${line#* }
    case $word in
      ARG)
        name=${rest%%=*}
        [ -n "${!name:-}" ] && rest="$name=${!name}"
        if [ -z "${root:-}" ]; then given[$name]=${rest#*=}; else arguments+=("$rest"); fi ;;
      FROM)
        for name in "${!given[@]}"; do rest=${rest//\$\{$name\}/${given[$name]}}; done
        # shellcheck disable=SC2086
        from $rest ;;
      RUN) run "$rest" ;;
      COPY) copy "$rest" ;;
      WORKDIR) folder=$rest; mkdir -p "$root$folder" ;;
      ENV | LABEL | USER | EXPOSE | STOPSIGNAL | HEALTHCHECK | ENTRYPOINT | CMD) ;; # what the container is run with
      *) die "try.sh does not know $word" ;;
    esac
  done 3< <(instructions)
  umount "$root/proc"
  say "size: base $(size "$work/bare"), image $(size "$root"), of it the binary $(size "$root/usr/local/bin/walgate")"
}
size() { du --apparent-size -B 100000 -s "$1" | awk '{ printf "%.1f MB", $1 / 10 }'; }

# --- Second half: the container.

# A command in the container, as its user and with its environment, in place of this shell.
container() {
  local environment
  mapfile -t environment < <(instructions | sed -n 's/^ENV //p')
  exec env -i "$path" "${environment[@]}" chroot --userspec="$(instruction USER)" "$work/final" "$@"
}
health() { # prints; its exit status is the check's
  local check
  mapfile -t check < <(elements "$(instruction HEALTHCHECK)")
  (container "${check[@]}" 2>&1)
}
# Waits until a command succeeds.
eventually() { # what, command...
  local what=$1
  shift
  for _ in {1..300}; do
    ! "$@" || return 0
    sleep 0.2
  done
  die "waited in vain: $what"
}
expect() { # exit status, what, command...
  local wanted=$1 what=$2 got=0 output
  shift 2
  output=$("$@" 2>&1) || got=$?
  [ $got = "$wanted" ] || die "$what: exit status $got in place of $wanted: $output"
  say "$what: exit status $got${output:+: $(tail -n 1 <<< "$output")}"
}

start_postgres() {
  local bin as=()
  for bin in "${WALGATE_TEST_PG_BIN:-}" /usr/lib/postgresql/*/bin; do [ ! -x "$bin/initdb" ] || break; done
  [ -x "$bin/initdb" ] || die "PostgreSQL is missing: apt-get install postgresql"
  as=(setpriv --reuid "${WALGATE_TEST_PG_USER:-postgres}" --regid "$(id -g "${WALGATE_TEST_PG_USER:-postgres}")" --init-groups --)
  rm -rf "$work/pg"
  install -d -m 0711 "$work/pg"
  install -d -m 0700 -o "${as[2]}" "$work/pg/data" "$work/pg/socket"
  install -m 0400 -o "${as[2]}" /run/secrets/postgres_password "$work/pg/password"
  "${as[@]}" "$bin/initdb" -D "$work/pg/data" -U postgres -A scram-sha-256 --pwfile="$work/pg/password" --no-sync > "$work/pg/log"
  export PGUSER=postgres PGPASSWORD PATH="$bin:$PATH"
  PGPASSWORD=$(cat /run/secrets/postgres_password)
  server() {
    "${as[@]}" "$bin/postgres" -D "$work/pg/data" -c wal_level=logical -c unix_socket_directories="$work/pg/socket" -c fsync=off "$@" \
      >> "$work/pg/log" 2>&1 &
    postgres=$!
  }
  # As the image's entry point does it: reachable by the socket alone until it is set up.
  server -c listen_addresses=
  eventually "PostgreSQL answers" psql -h "$work/pg/socket" -qAtc 'CREATE DATABASE shop' 2>> "$work/pg/log"
  psql -h "$work/pg/socket" -v ON_ERROR_STOP=1 --no-psqlrc -q -d shop -f docker/postgres/init.sql > /dev/null
  kill -INT "$postgres"
  wait "$postgres" || true
  export PGHOST=127.0.0.1
  server -c listen_addresses=127.0.0.1
}

into() { # file, place in the container
  mkdir -p "$root$(dirname "$2")"
  touch "$root$2"
  mount --bind "$1" "$root$2"
}

try() {
  local command got=0 id root=$work/final
  trap 'kill -KILL ${walgate:-} ${postgres:-} 2> /dev/null || true' EXIT
  ip link set lo up
  mount -t tmpfs tmpfs /run
  # Passwords by bind mount, as compose does.
  docker/secrets.sh "$work/secrets" > /dev/null
  mkdir /run/secrets
  mount --bind "$work/secrets" /run/secrets
  # docker/walgate.yaml with a sink that needs no broker.
  sed '/^sinks:/,$d' docker/walgate.yaml > "$work/walgate.yaml"
  printf 'sinks: { log: { stdout: {} } }\nroutes: [{ event_type: "order.*", to: log }]\nadmin: { listen: "0.0.0.0:9432" }\n' >> "$work/walgate.yaml"
  printf '127.0.0.1 localhost postgres\n' > "$work/hosts"
  chmod 644 "$work/walgate.yaml" "$work/hosts"
  # The container's root can only be read; files are mounted into it as compose does.
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  into "$work/hosts" /etc/hosts
  into "$work/walgate.yaml" "$(instruction ENV | sed 's/^WALGATE_CONFIG=//')"
  into "$work/secrets/walgate_password" /run/secrets/walgate_password
  mount -o remount,bind,ro "$root"

  say "libraries: $( (container ldd /usr/local/bin/walgate) | awk '{ print $1 }' | paste -sd ' ')"
  ! (container ldd /usr/local/bin/walgate) | grep 'not found' || die "a library is missing in the image"
  mapfile -t command < <(elements "$(instruction ENTRYPOINT)"; elements "$(instruction CMD)")
  expect 0 "walgate --version" container_command "${command[0]}" --version
  expect 0 "walgate check" container_command "${command[0]}" check
  expect 3 "health, nothing runs" health
  (container "${command[@]}") > "$work/events" 2> "$work/walgate.log" &
  walgate=$!
  eventually "walgate listens" grep -q starting "$work/walgate.log"
  expect 1 "health, no PostgreSQL" health
  start_postgres
  eventually "healthy" health_quiet
  expect 0 "health, streaming" health
  say "runs as $(awk '/^Uid:/ { print $2 }' "/proc/$walgate/status"): $(tr '\0' ' ' < "/proc/$walgate/cmdline")"
  id=$(psql -qAt -d shop -c "INSERT INTO outbox_events (event_type, aggregate_id, payload) VALUES ('order.created', '7', '{\"order_id\": 7}') RETURNING id")
  eventually "the event arrives" grep -q "$id" "$work/events"
  say "delivered: $(cat "$work/events")"
  kill -s "$(instruction STOPSIGNAL)" "$walgate"
  wait "$walgate" || got=$?
  [ $got = 0 ] || die "stopped with exit status $got in place of 0"
  say "$(instruction STOPSIGNAL): exit status 0"
  kill -INT "$postgres"
  wait "$postgres" || true
  say "all is well"
}
container_command() { (container "$@"); }
health_quiet() { health > /dev/null; }

if [ $phase = build ]; then build; else try; fi
