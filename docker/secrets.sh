#!/usr/bin/env bash
# Makes the passwords that compose.yaml hands to its containers: random, each once, as files in docker/secrets (or the
# folder that is given). The folder is for you alone; the files may be read by everyone, because Docker mounts them as they
# are and each container runs as a user of its own.
set -euo pipefail
folder=${1:-$(dirname "$0")/secrets}
umask 022
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
for name in postgres_password walgate_password nats_password rabbitmq_password; do
  [ -s $name ] || od -An -N24 -tx1 /dev/urandom | tr -d ' \n' > $name
done
# The same passwords, in the brokers' own words.
printf 'user: walgate\npassword: "%s"\n' "$(cat nats_password)" > nats_user.conf
printf 'default_user = walgate\ndefault_pass = %s\n' "$(cat rabbitmq_password)" > rabbitmq_user.conf
echo "secrets: $PWD"
