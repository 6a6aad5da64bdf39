"""Connections to Redis, its locks, its answers in text, and its errors as one sentence."""

from __future__ import annotations

import asyncio
import builtins
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError, MovedError, RedisError, TimeoutError
from redis.retry import Retry
from redis.sentinel import SentinelConnectionPool

from .errors import QueueUnavailable, QueueUnsuitable
from .redis_url import AsyncSentinels, BlockingSentinelPool, Sentinels, parse_redis_url
from .settings import Settings

# What a request of the service waits for an answer of Redis, which takes a millisecond.
ANSWER_S = 1.0
TICKS = 4
TICK_S = ANSWER_S / TICKS
# Of one event loop at once; further requests wait for one.
MAX_CONNECTIONS = 40

CLUSTER = "is a Redis Cluster; the service needs a single Redis, or Sentinel"
# What Redis says when it suits no queue, or not now; a script's error has it in its text.
_MISFITS = {
    CLUSTER: r"keys in request don't hash|keys not in the same slot|non local key|MOVED \d|"
    r"CLUSTERDOWN|hash slot not served",
    "is a read-only replica": r"against a read ?only (replica|slave)",
    "takes no writes: its memory (maxmemory) is full": r"used memory > 'maxmemory'",
    "takes no writes: it cannot save to its disk": r"MISCONF|writes? commands? (are|is) disabled",
    "takes no writes: fewer replicas are connected than it asks for": r"not enough good replicas",
}

logger = logging.getLogger(__name__)

Command = tuple[str | int, ...]


class StillSilent(TimeoutError):
    """Redis did not answer a moment ago, so it was not asked."""


class CircuitBreaker(Retry):
    """A Redis that hangs is waited for once, not by every call of every request.

    A lost connection is tried once more: Redis may have restarted. After a call without an answer
    in time every call fails at once for `silent_s` seconds, in whatever thread.
    """

    def __init__(self, silent_s: float = 1.0) -> None:
        super().__init__(NoBackoff(), 1, supported_errors=(ConnectionError,))
        self._silent_s = silent_s
        self._until = 0.0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: each connection copies its retries, and all must know of one another."""
        return self

    def call_with_retry(self, *arguments: Any, **options: Any) -> Any:
        self.check()
        try:
            return super().call_with_retry(*arguments, **options)
        except StillSilent:
            raise
        except TimeoutError:
            self.trip()
            raise

    def check(self) -> None:
        """Raises StillSilent while no call is to be made."""
        if time.monotonic() < self._until:
            raise StillSilent(f"It gave no answer within the last {self._silent_s:g} seconds")

    def trip(self) -> None:
        """A call had no answer in time."""
        self._until = time.monotonic() + self._silent_s


def connect(
    settings: Settings, *, patient: bool = False, breaker: CircuitBreaker | None = None
) -> Redis:
    """A client with a pool of connections; nothing is sent yet. Safe to share between threads.

    Answers are bytes, as RQ needs them. A lost connection is tried once more; a `patient` worker
    would rather wait some seconds for a Redis that restarts than give up a long job. `breaker` is
    for the service, whose requests must not hang.
    """
    retry = Retry(ExponentialBackoff(cap=2, base=0.1), 6) if patient else Retry(NoBackoff(), 1)
    options: dict[str, Any] = {
        "socket_connect_timeout": ANSWER_S if breaker else 2,
        "socket_timeout": ANSWER_S if breaker else 5,
        "health_check_interval": 30,
        "retry": breaker or retry,
    }
    target = parse_redis_url(settings.redis_url)
    if not target.sentinels:
        return Redis.from_url(target.url, **options)
    sentinels: Any = Sentinels(target)
    client: Redis = sentinels.master_for(target.primary, **options)
    return client


def connect_loop(settings: Settings, **options: Any) -> AsyncRedis:
    """A client for one event loop, of as many connections at once as `max_connections`; further
    uses wait for one. The other options are redis-py's for a connection."""
    target = parse_redis_url(settings.redis_url)
    # The caller ends every wait.
    options |= {"timeout": None}
    if not target.sentinels:
        return AsyncRedis.from_pool(BlockingConnectionPool.from_url(target.url, **options))
    client: AsyncRedis = AsyncSentinels(target).master_for(
        target.primary, connection_pool_class=BlockingSentinelPool, **options
    )
    return client


class LoopClient:
    """Commands from the event loop of the service. Redis has a second to answer."""

    def __init__(self, settings: Settings, breaker: CircuitBreaker) -> None:
        self._redis = connect_loop(
            settings,
            max_connections=MAX_CONNECTIONS,
            # `call` ends every wait.
            socket_connect_timeout=None,
            socket_timeout=None,
            health_check_interval=30,
            retry=AsyncRetry(NoBackoff(), 1, supported_errors=(ConnectionError,)),
        )
        self._breaker = breaker

    async def call(self, *commands: Command) -> list[Any]:
        """The answers to some commands, which are sent together; raises QueueUnavailable."""
        with queue_errors(self._redis):
            self._breaker.check()
            try:
                async with _answer_timeout():
                    return await self._send(commands)
            except builtins.TimeoutError:
                self._breaker.trip()
                raise TimeoutError(f"It gave no answer within {ANSWER_S:g} seconds") from None

    async def _send(self, commands: tuple[Command, ...]) -> list[Any]:
        # The methods of the client, and its pipelines, take twice the processor time. A connection
        # that went stale is found and made anew where it is taken from the pool.
        pool: Any = self._redis.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await connection.read_response() for _ in commands]
        except BaseException:
            # What is still to come must not be the answer to others.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)

    async def close(self) -> None:
        await self._redis.aclose()


@asynccontextmanager
async def _answer_timeout() -> AsyncIterator[None]:
    """Ends a wait after ANSWER_S. Time in which the loop is late does not count: under load the
    answer may be there, and nothing has read it yet."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def tick(left: int, due: float) -> None:
        nonlocal timer
        if loop.time() - due < TICK_S / 2:
            left -= 1
        if left:
            due = loop.time() + TICK_S
            timer = loop.call_at(due, tick, left, due)
        else:
            timeout.reschedule(loop.time())

    tick(TICKS + 1, loop.time())
    try:
        async with asyncio.timeout(None) as timeout:
            yield
    finally:
        timer.cancel()


@contextmanager
def queue_errors(connection: Redis | AsyncRedis) -> Iterator[None]:
    """Turns what redis-py raises into QueueUnavailable, which says where and what; or into
    QueueUnsuitable, where this Redis would say the same to every job."""
    try:
        yield
    except RedisError as error:
        if reason := misfit(error):
            raise QueueUnsuitable(f"Redis {reason}.", retry_after=5) from error
        raise QueueUnavailable(
            f"The job queue at {_address(connection)} does not answer as it should: "
            f"{str(error).rstrip('.')}. Check that Redis runs there and takes commands.",
            retry_after=5,
        ) from error


def misfit(error: RedisError) -> str | None:
    """What follows the word Redis in a sentence of why it would refuse every job so; None for
    other errors."""
    text = f"MOVED {error}" if isinstance(error, MovedError) else str(error)
    for reason, pattern in _MISFITS.items():
        if re.search(pattern, text, re.IGNORECASE):
            return reason
    return None


@contextmanager
def lock(connection: Redis, name: str, most_s: int) -> Iterator[bool]:
    """Whether this process has the lock, within the block and for most_s seconds. What takes longer
    runs on without it, so each step has to be safe to do twice. Raises RedisError."""
    held = connection.lock(name, timeout=most_s)
    is_mine = held.acquire(blocking=False)
    try:
        yield is_mine
    finally:
        try:
            if is_mine:
                held.release()
        except RedisError as error:
            logger.warning("The lock %s was not released: %s", name, error)


def as_text(answer: Any) -> str:
    """A string that Redis sent; TypeError for what is no bytes, which our connections answer."""
    return str(answer, "utf-8")


def as_texts(raw: Mapping[Any, Any]) -> dict[str, str]:
    """A hash as Redis answers it, in text."""
    return {as_text(name): as_text(value) for name, value in raw.items()}


def seconds_of(time: Any) -> float:
    """What Redis' TIME answers."""
    return float(time[0] + time[1] / 1e6)


def _address(connection: Redis | AsyncRedis) -> str:
    pool = connection.connection_pool
    if isinstance(pool, SentinelConnectionPool | BlockingSentinelPool):
        return f"{pool.service_name} (by Sentinel)"
    parameters = connection.get_connection_kwargs()
    if path := parameters.get("path"):
        return str(path)
    return f"{parameters.get('host', 'localhost')}:{parameters.get('port', 6379)}"
