"""A primary, replicas and Sentinels, for tests: real processes on free ports."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
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

    `servers` are the first primary and its replicas. A server that comes back is made a replica by
    the Sentinels. `options` are further arguments of each server, `users` members of the URL.
    """

    def __init__(self, replicas: int = 2, sentinels: int = 3, program: Path | None = None) -> None:
        self._program = program
        first = RedisServer(program=program)
        follow = ("--replicaof", "127.0.0.1", str(first.port))
        self.servers = [
            first,
            *(
                RedisServer(*follow, "--repl-diskless-sync-delay", "0", program=program)
                for _ in range(replicas)
            ),
        ]
        self.ports = [free_port() for _ in range(sentinels)]
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        self.url = f"redis+sentinel://{hosts}/{NAME}"
        self.sentinels: list[subprocess.Popen[bytes]] = []
        self._folder = Path(tempfile.mkdtemp(prefix="stablesr-sentinel-"))
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for server in self.servers:
            self._stack.enter_context(server)
        first = self.servers[0]
        self.until(lambda: self._info(first)["connected_slaves"] == len(self.servers) - 1)
        for number, port in enumerate(self.ports):
            self._start_sentinel(number, port, first.port)
        for port in self.ports:
            self.until(lambda port=port: self._knows_all(port))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.sentinels:
            process.kill()
            process.wait()
        self._stack.close()
        shutil.rmtree(self._folder, ignore_errors=True)

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

    def failed_over(self, old: RedisServer) -> bool:
        """Whether another server than that one is the primary and takes writes."""
        new = self.primary
        return new is not old and self._info(new)["role"] == "master"

    def replicas_are(self, count: int) -> bool:
        return bool(self._info(self.primary)["connected_slaves"] == count)

    @staticmethod
    def until(true: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"still not so after {seconds:g} s"
            time.sleep(0.05)

    @staticmethod
    def _info(server: RedisServer) -> dict[str, Any]:
        with server.connect() as connection:
            info: Any = connection.info("replication")
        return dict(info)

    def _start_sentinel(self, number: int, port: int, first: int) -> None:
        config = self._folder / f"sentinel-{number}.conf"
        config.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self._folder}\n"
            f"logfile {self._folder}/sentinel-{number}.log\n"
            f"sentinel monitor {NAME} 127.0.0.1 {first} {len(self.ports) // 2 + 1}\n"
            f"sentinel down-after-milliseconds {NAME} {DOWN_MS}\n"
            f"sentinel failover-timeout {NAME} 1000\n"
        )
        program = self._program or find_redis_server()
        self.sentinels.append(
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
