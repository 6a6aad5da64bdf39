"""Whether this Redis suits a queue: it must take writes, evict nothing, and be no Redis Cluster."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from .connection import CLUSTER, CircuitBreaker, connect, misfit
from .errors import InvalidSettings, QueueUnsuitable
from .settings import Settings

logger = logging.getLogger(__name__)

# Asked more often, the last answer is repeated: /readyz needs no key, and each look is a write.
REMEMBER_S = 5.0
AGAIN_S = 1.0
PROBE_KEY = "stablesr:probe"
SAFE_POLICY = "noeviction"


@dataclass(frozen=True)
class RedisState:
    """`detail` is what follows the word Redis. `policy` is its maxmemory-policy; it is empty where
    Redis answers and does not tell."""

    ready: bool
    detail: str
    policy: str | None = None

    @property
    def may_evict(self) -> bool:
        return self.policy not in (None, "", SAFE_POLICY)


def inspect(connection: Redis, *, allow_eviction: bool = False) -> RedisState:
    """Looks at a Redis, with a small write: an answer to PING says nothing of those."""
    pipe: Any
    try:
        with connection.pipeline(transaction=False) as pipe:
            pipe.set(PROBE_KEY, 1, ex=60)
            pipe.info("memory").info("cluster")
            write, memory, cluster = pipe.execute(raise_on_error=False)
        policy = _policy(connection, memory)
    except RedisError:
        return RedisState(False, "does not answer")
    if isinstance(cluster, dict) and cluster.get("cluster_enabled") == 1:
        return RedisState(False, CLUSTER)
    if isinstance(write, RedisError):
        return RedisState(False, misfit(write) or f"takes no writes: {write}")
    state = RedisState(True, "answers", policy)
    if not state.may_evict:
        return state
    evicts = f"may evict jobs: its maxmemory-policy is {policy}"
    if allow_eviction:
        return RedisState(True, f"answers, but {evicts}", policy)
    return RedisState(False, f"{evicts} and must be {SAFE_POLICY}", policy)


def _policy(connection: Redis, memory: Any) -> str:
    """By INFO, or where that is forbidden by CONFIG GET; empty where both are."""
    if isinstance(memory, dict) and (policy := memory.get("maxmemory_policy")):
        return str(policy)
    try:
        config: Any = connection.config_get("maxmemory-policy")
    except ResponseError:
        return ""
    return str(config.get("maxmemory-policy", ""))


def check_kind(settings: Settings) -> None:
    """Raises InvalidSettings for a Redis Cluster, which refuses every job; one that is away now is
    no error."""
    with connect(settings, breaker=CircuitBreaker()) as connection:
        state = inspect(connection, allow_eviction=settings.allow_eviction)
    if state.detail == CLUSTER:
        raise InvalidSettings(
            f"STABLESR_REDIS_URL leads to what {CLUSTER} (redis+sentinel://HOST,HOST/NAME)."
        )


class RedisProbe:
    """Looks now and then, and logs what changes. Safe to share between threads."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self._connection = connection
        self._allow_eviction = settings.allow_eviction
        self._lock = threading.Lock()
        self._due = 0.0
        self.state = RedisState(False, "was not asked yet")

    def look(self) -> RedisState:
        """The state now, or as it was some seconds ago. Blocking."""
        with self._lock:
            if time.monotonic() >= self._due:
                state = inspect(self._connection, allow_eviction=self._allow_eviction)
                if state != self.state:
                    self._tell(state)
                self.state = state
                self._due = time.monotonic() + (REMEMBER_S if state.ready else AGAIN_S)
            return self.state

    def check(self) -> None:
        """Raises QueueUnsuitable while jobs could be evicted, by the last look. Does not block.

        As only the operator can help, the problem has no `retry_after`. What else is wrong, the
        commands of a request find out.
        """
        state = self.state
        if state.may_evict and not state.ready:
            raise QueueUnsuitable(f"No job is taken while Redis {state.detail}.")

    def _tell(self, state: RedisState) -> None:
        if not state.ready or state.may_evict:
            logger.warning("Redis %s.", state.detail)
        elif state.policy == "":
            logger.warning(
                "Redis tells its maxmemory-policy neither by INFO nor by CONFIG GET; "
                "see that it is %s.",
                SAFE_POLICY,
            )
        else:
            logger.info("Redis %s, its maxmemory-policy is %s.", state.detail, state.policy)
