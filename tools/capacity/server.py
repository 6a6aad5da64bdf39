"""A Redis of its own, as `stablesr up` starts one."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis import Redis
from redis.exceptions import ConnectionError as NoConnection

from cli.processes import find_redis_server, free_port, redis_config


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Its URL, until the block ends."""
    port = free_port()
    url = f"redis://:password@127.0.0.1:{port}/0"
    with subprocess.Popen(
        [find_redis_server(), "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdin is not None  # a pipe
            process.stdin.write(redis_config(folder, port, "password").encode())
            process.stdin.close()
            with Redis.from_url(url) as client:
                _await(client)
            yield url
        finally:
            process.terminate()


def _await(client: Redis) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            return
        except NoConnection:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
