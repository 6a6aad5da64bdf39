"""A real redis-server for tests: on a free port, with its own folder, gone afterwards."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from cli.processes import find_redis_server, free_port


class RedisServer:
    """`with RedisServer() as redis: Redis.from_url(redis.url)`.

    The port and the append-only file outlive stop(), kill() and restart(), so a test can take
    Redis away and give it back with its data. close() removes everything. `program` and `options`
    stand for another redis-server and further arguments.
    """

    def __init__(self, *options: str, program: Path | None = None) -> None:
        self.options = options
        self._program = program or find_redis_server()
        self.port = free_port()
        while "--cluster-enabled" in options and self.port > 55_535:
            # Nodes speak to each other at a port that is 10 000 higher.
            self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.folder = Path(tempfile.mkdtemp(prefix="stablesr-redis-"))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, wait_s: float = 20) -> Self:
        """Starts the server and returns when it answers PING."""
        if self.running:
            raise RuntimeError(f"redis-server already runs on port {self.port}.")
        log = self.folder / "redis.log"
        self._process = subprocess.Popen(
            [
                str(self._program),
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
                *("--save", "", "--appendonly", "yes", "--appendfsync", "always"),
                *("--logfile", str(log), "--daemonize", "no"),
                *self.options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + wait_s
        with self.connect() as connection:
            while True:
                try:
                    connection.ping()
                except RedisError:
                    if not self.running or time.monotonic() > deadline:
                        said = log.read_text() if log.exists() else "nothing"
                        self.kill()
                        raise RuntimeError(f"redis-server did not start; it said: {said}") from None
                    time.sleep(0.02)
                else:
                    return self

    def connect(self) -> Redis:
        """A plain client; it reports a lost server at once."""
        return Redis.from_url(self.url, retry=Retry(NoBackoff(), 0), socket_timeout=10)

    def flush(self) -> None:
        """Forgets all data, scripts too: a clean server for the next test."""
        with self.connect() as connection:
            connection.flushall()
            connection.script_flush()

    def stop(self) -> None:
        """Ends the server in order (SIGTERM); data stays on disk."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=20)
            self._process = None

    def kill(self) -> None:
        """Ends the server at once (SIGKILL)."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=20)
            self._process = None

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """It accepts connections and answers nothing (SIGSTOP) until the block ends."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def restart(self) -> Self:
        self.stop()
        return self.start()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
