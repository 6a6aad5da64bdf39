"""A primary, replicas and Sentinels, for tests: real processes on free ports."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.exceptions import RedisError

from cli.processes import find_redis_server, free_port
from tests.redis_server import RedisServer

NAME = "jobs"
# How long the primary is silent before a Sentinel takes it for gone.
DOWN_MS = 1000


class RedisGroup:
    """`with RedisGroup() as group: Settings(redis_url=group.url)`.

    kill() and hanging() are done to the primary of the moment; start() starts again what was
    killed, which the Sentinels then make a replica. A job is accepted once `acknowledged` replicas
    have it.
    """

    def __init__(
        self, *, replicas: int = 2, acknowledged: int = 0, program: Path | None = None
    ) -> None:
        self._program = program
        # As docs/deployment.md says: a primary that was cut off takes no writes that would be lost.
        options = ("--min-replicas-to-write", str(acknowledged), "--repl-diskless-sync-delay", "0")
        first = RedisServer(*options, program=program)
        follow = ("--replicaof", "127.0.0.1", str(first.port))
        others = (RedisServer(*options, *follow, program=program) for _ in range(replicas))
        self.servers = [first, *others]
        self.ports = [free_port() for _ in range(3)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.url = f"redis+sentinel://{hosts}/{NAME}?replicas={acknowledged}"
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="stablesr-sentinel-"))

    def start(self) -> Self:
        """Starts what does not run; the first time all, until all know of one another."""
        for server in self.servers:
            if not server.running:
                server.start()
        if self._sentinels:
            return self
        self.until(lambda: self.role(self.servers[0])["connected_slaves"] == len(self.servers) - 1)
        for number, port in enumerate(self.ports):
            self._start_sentinel(number, port, self.servers[0].port)
        self.until(lambda: all(self._knows_all(port) for port in self.ports))
        return self

    def kill(self) -> None:
        self.primary.kill()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        with self.primary.hanging():
            yield

    def close(self) -> None:
        for process in self._sentinels:
            process.kill()
            process.wait()
        for server in self.servers:
            server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def primary(self) -> RedisServer:
        """The server that the first Sentinel that answers calls so."""
        for port in self.ports:
            try:
                with Redis(port=port, socket_timeout=2) as sentinel:
                    address: Any = sentinel.sentinel_get_master_addr_by_name(NAME)
            except RedisError:
                continue
            return next(server for server in self.servers if server.port == int(address[1]))
        raise AssertionError("no Sentinel answers")

    def fails_over(self, old: RedisServer) -> None:
        """Waits until another server than that one is the primary and takes writes."""
        self.until(lambda: self.primary is not old and self.role(self.primary)["role"] == "master")

    def has_replicas(self, count: int) -> None:
        """Waits until so many follow the primary, close enough for it to take writes."""

        def are_there() -> bool:
            role = self.role(self.primary)
            # It counts only those that it needs (min-replicas-to-write).
            good = role.get("min_slaves_good_slaves", count)
            return bool(role["connected_slaves"] == count and good >= min(count, 1))

        self.until(are_there)

    @staticmethod
    def role(server: RedisServer) -> dict[str, Any]:
        """What the server says of replication."""
        with server.connect() as connection:
            info: Any = connection.info("replication")
        return dict(info)

    @staticmethod
    def until(true: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"still not so after {seconds:g} s"
            time.sleep(0.05)

    def _start_sentinel(self, number: int, port: int, first: int) -> None:
        config = self._folder / f"sentinel-{number}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"logfile {self._folder}/sentinel-{number}.log\n"
            f"sentinel monitor {NAME} 127.0.0.1 {first} 2\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_MS}\n"
            f"sentinel failover-timeout {NAME} 2000\n"
        )
        program = self._program or find_redis_server()
        self._sentinels.append(
            subprocess.Popen(
                [str(program), str(config), "--sentinel"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    def _knows_all(self, port: int) -> bool:
        try:
            with Redis(port=port, socket_timeout=2) as sentinel:
                state: Any = sentinel.sentinel_master(NAME)
        except RedisError:
            return False
        others = state["num-other-sentinels"] == len(self.ports) - 1
        return bool(others and state["num-slaves"] == len(self.servers) - 1)
