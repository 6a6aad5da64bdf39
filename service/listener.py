"""Hears from Redis when jobs move, once for all requests of this process that wait for one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from jobs.settings import Settings
from jobs.states import CHANNEL, parse_move

log = structlog.stdlib.get_logger(__name__)

# A message can be lost with its connection: each request that waits also looks this often.
LOOK_S = 5.0
AGAIN_S = 1.0


class Watch:
    """What one request waits with: `renew`, look at the job, then `wait`.

    A move between the look and the wait is not missed: it ends the wait at once.
    """

    def __init__(self, *, ends_only: bool) -> None:
        self.ends_only = ends_only
        self._event = anyio.Event()

    def renew(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, within_s: float = LOOK_S) -> None:
        """Returns when the job moved, or after `within_s` seconds at the latest."""
        with anyio.move_on_after(within_s):
            await self._event.wait()


class Listener:
    """One subscription, many watches. Everything happens on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_url
        self._watches: defaultdict[str, set[Watch]] = defaultdict(set)
        self.leaving = False
        """Whether the server is about to stop: requests that wait should come to an end."""

    @contextmanager
    def watch(self, job_id: str, *, ends_only: bool = False) -> Iterator[Watch]:
        """Watches one job; `ends_only` sleeps through everything but its end."""
        watch = Watch(ends_only=ends_only)
        self._watches[job_id].add(watch)
        try:
            yield watch
        finally:
            self._watches[job_id].discard(watch)
            if not self._watches[job_id]:
                del self._watches[job_id]

    def leave(self) -> None:
        """Wakes all for the last time."""
        self.leaving = True
        self._wake_all()

    async def run(self) -> None:
        """Listens until canceled; a Redis that is away is tried again every second."""
        while True:
            try:
                await self._listen()
            except (RedisError, OSError) as error:
                log.debug("not listening", reason=str(error))
                await anyio.sleep(AGAIN_S)

    async def _listen(self) -> None:
        redis = Redis.from_url(self._url, socket_connect_timeout=2, health_check_interval=15)
        async with redis, redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(CHANNEL)
            # What moved before was not heard.
            self._wake_all()
            while True:
                message = await channel.get_message(timeout=LOOK_S)
                if message is not None:
                    self._notify(message["data"])

    def _notify(self, data: bytes) -> None:
        try:
            job_id, state = parse_move(data)
        except ValueError:
            # A later version may say more; looking now and then covers it.
            return
        for watch in self._watches.get(job_id, ()):
            if state.is_final or not watch.ends_only:
                watch.set()

    def _wake_all(self) -> None:
        for watches in self._watches.values():
            for watch in watches:
                watch.set()
