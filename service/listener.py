"""Hears from Redis when jobs move, once for all requests of this process that wait for one."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator

import anyio
import structlog
from redis.exceptions import ConnectionError, RedisError

from jobs.connection import connect_loop
from jobs.settings import Settings
from jobs.states import CHANNEL, parse_move

log = structlog.stdlib.get_logger(__name__)

# A message can be lost with its connection: each request that waits also looks this often.
LOOK_S = 5.0
AGAIN_S = 1.0


class Listener:
    """One subscription, which wakes many requests. Everything happens on the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # By job: what wakes a request, and whether only the job's end does.
        self._events: defaultdict[str, dict[asyncio.Event, bool]] = defaultdict(dict)
        self._is_leaving = False

    async def watch(self, job_id: str, *, ends_only: bool = False) -> AsyncGenerator[None, None]:
        """Yields when it is time to look at the job: at once, when it has moved, and now and then.

        It ends when the server is about to stop. A move during a look is not missed: the next
        look follows at once. `ends_only` sleeps through everything but the job's end. To be closed.
        """
        event = asyncio.Event()
        self._events[job_id][event] = ends_only
        try:
            while not self._is_leaving:
                event.clear()
                yield
                with anyio.move_on_after(LOOK_S):
                    await event.wait()
        finally:
            del self._events[job_id][event]
            if not self._events[job_id]:
                del self._events[job_id]

    def leave(self) -> None:
        """Ends all watches, because the server is about to stop."""
        self._is_leaving = True
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
        redis = connect_loop(self._settings, max_connections=1, socket_connect_timeout=2)
        async with redis, redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(CHANNEL)
            # What moved before was not heard.
            self._wake_all()
            is_asked = False
            while True:
                message = await channel.get_message(timeout=LOOK_S)
                if message is None:
                    if is_asked:
                        # Its host may be gone, and another one the primary by now.
                        raise ConnectionError("It gave no sign of life.")
                    await channel.ping()
                elif message["type"] == "message":
                    self._notify(message["data"])
                is_asked = message is None

    def _notify(self, data: bytes) -> None:
        try:
            job_id, state = parse_move(data)
        except ValueError:
            # A later version may say more; looking now and then covers it.
            return
        for event, ends_only in self._events.get(job_id, {}).items():
            if state.is_final or not ends_only:
                event.set()

    def _wake_all(self) -> None:
        for events in self._events.values():
            for event in events:
                event.set()
