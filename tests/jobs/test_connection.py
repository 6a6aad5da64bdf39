"""How long a lost Redis is waited for: a request hardly, a worker some seconds."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from redis.exceptions import TimeoutError

from jobs.connection import CircuitBreaker, LoopClient, StillSilent, connect, queue_errors
from jobs.errors import QueueUnavailable
from jobs.settings import Settings
from tests.redis_server import RedisServer

from .conftest import run


def test_a_worker_outwaits_a_redis_that_restarts(settings: Settings, server: RedisServer) -> None:
    with connect(settings, patient=True) as connection:
        connection.set("kept", 1)
        server.kill()
        restart = threading.Timer(0.2, server.start)
        restart.start()
        try:
            assert connection.get("kept") == b"1"
        finally:
            restart.join()


def test_a_connection_that_went_stale_is_made_anew_within_a_request(
    settings: Settings, server: RedisServer
) -> None:
    with connect(settings) as connection:
        connection.set("kept", 1)
        server.restart()
        assert connection.get("kept") == b"1"


def test_a_redis_that_hangs_is_asked_once_a_second_by_all_who_share_a_breaker(
    settings: Settings, server: RedisServer
) -> None:
    breaker = CircuitBreaker(silent_s=5)
    with connect(settings, breaker=breaker) as one, connect(settings, breaker=breaker) as two:
        one.set("kept", 1)
        with server.hanging():
            with pytest.raises(TimeoutError) as error:
                one.get("kept")
            assert not isinstance(error.value, StillSilent)
            for call in (one.ping, two.ping, one.pipeline().get("kept").execute):
                with pytest.raises(StillSilent):
                    call()
            with pytest.raises(QueueUnavailable), queue_errors(one):
                one.ping()


def test_a_breaker_closes_by_itself(settings: Settings, server: RedisServer) -> None:
    with connect(settings, breaker=CircuitBreaker(silent_s=0.05)) as connection:
        with server.hanging(), pytest.raises(TimeoutError):
            connection.ping()
        threading.Event().wait(0.06)
        assert connection.ping()
        server.restart()
        assert connection.ping()


def test_an_address_nobody_listens_at_is_named() -> None:
    with RedisServer() as gone:
        url = gone.url
    with (
        connect(Settings(redis_url=url)) as connection,
        pytest.raises(QueueUnavailable, match=str(gone.port)),
        queue_errors(connection),
    ):
        connection.ping()


def test_a_socket_is_named_by_its_path() -> None:
    settings = Settings(redis_url="unix:///nowhere/redis.sock")
    with (
        connect(settings) as connection,
        pytest.raises(QueueUnavailable, match=r"at /nowhere/redis\.sock does not"),
        queue_errors(connection),
    ):
        connection.ping()


def test_a_redis_that_hangs_is_waited_for_a_while_and_a_busy_loop_is_not_its_fault(
    settings: Settings, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.connection.TICK_S", 0.1)

    async def hang(client: LoopClient) -> float:
        await client.call(("PING",))
        start = time.monotonic()
        with server.hanging():
            for _ in range(2):
                # The second call is not made.
                with pytest.raises(QueueUnavailable):
                    await client.call(("PING",))
        return time.monotonic() - start

    async def busy(client: LoopClient) -> list[Any]:
        call = asyncio.create_task(client.call(("PING",)))
        await asyncio.sleep(0)
        time.sleep(0.6)
        return await call

    assert 0.3 < run(settings, hang) < 3
    assert run(settings, busy) == [b"PONG"]
