"""Connections to Redis, and its errors as one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .breaker import Breaker
from .errors import QueueUnavailable
from .settings import Settings

__all__ = ["as_text", "connect", "queue_errors"]


# What a request of the service waits for an answer of Redis, which takes a millisecond.
ANSWER_S = 1.0


def connect(settings: Settings, *, patient: bool = False, breaker: Breaker | None = None) -> Redis:
    """A client with a pool of connections; nothing is sent yet. Safe to share between threads.

    Answers are bytes, as RQ needs them. By default a lost connection is tried once more and then
    reported. patient is for workers, which would rather wait some seconds for a Redis that
    restarts than give up a long job. breaker is for the service, whose requests must not hang:
    Redis has a second to answer, and who gets none spares the others the wait.
    """
    retry = Retry(ExponentialBackoff(cap=2, base=0.1), 6) if patient else Retry(NoBackoff(), 1)
    return Redis.from_url(
        settings.redis_url,
        socket_connect_timeout=2 if breaker is None else ANSWER_S,
        socket_timeout=5 if breaker is None else ANSWER_S,
        health_check_interval=30,
        retry=retry if breaker is None else breaker,
    )


@contextmanager
def queue_errors(connection: Redis) -> Iterator[None]:
    """Turns what redis-py raises into QueueUnavailable, which says where and what."""
    try:
        yield
    except RedisError as error:
        raise QueueUnavailable(
            f"The job queue at {_address(connection)} does not answer as it should: "
            f"{str(error).rstrip('.')}. Check that Redis runs there and takes commands.",
            retry_after=5,
        ) from error


def as_text(answer: object) -> str:
    """A string that Redis sent. Our connections answer bytes; redis-py's types allow more."""
    if not isinstance(answer, bytes):
        raise TypeError(f"Redis' answers should be bytes; got {type(answer).__name__}.")
    return answer.decode()


def _address(connection: Redis) -> str:
    parameters = connection.get_connection_kwargs()
    if path := parameters.get("path"):
        return str(path)
    return f"{parameters.get('host', 'localhost')}:{parameters.get('port', 6379)}"
