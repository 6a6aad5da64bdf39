"""A primary that Sentinels name: a failover is gone through by every kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from jobs.connection import CircuitBreaker, LoopClient, connect, queue_errors
from jobs.errors import QueueUnavailable
from jobs.queue import JobQueue
from jobs.redis_url import parse_redis_url
from jobs.schema import ImageInfo, new_job_id
from jobs.sentinels import AsyncSentinels
from jobs.settings import Settings
from models.parameters import UpscaleParameters
from tests.redis_sentinel import NAME, RedisGroup

from .conftest import run


@pytest.fixture(scope="module")
def group() -> Iterator[RedisGroup]:
    with RedisGroup(replicas=3, acknowledged=1) as group:
        yield group


def test_connections_follow_the_primary_through_a_failover(group: RedisGroup) -> None:
    settings = Settings(redis_url=group.url)
    old = group.primary
    with connect(settings, breaker=CircuitBreaker()) as quick, connect(settings) as worker:
        quick.set("before", 1)
        assert worker.get("before") == b"1"

        async def use(client: LoopClient) -> None:
            assert await client.call(("GET", "before")) == [b"1"]
            await asyncio.to_thread(old.kill)
            with pytest.raises(QueueUnavailable):
                await client.call(("SET", "lost", 1))
            await asyncio.to_thread(group.fails_over, old)
            await asyncio.sleep(1.1)
            assert await client.call(("SET", "after", 2), ("ROLE",)) != []

        run(settings, use)
        assert quick.get("after") == b"2"
        assert worker.get("after") == b"2"


def test_a_sentinel_that_is_gone_is_passed_over_by_many_at_once(group: RedisGroup) -> None:
    """And not forgotten: the list of them stays as long as it was."""
    sentinels = AsyncSentinels(parse_redis_url(group.url.replace("//", "//127.0.0.1:1,")))

    async def ask() -> list[tuple[str, int]]:
        return list(await asyncio.gather(*(sentinels.discover_master(NAME) for _ in range(8))))

    assert set(asyncio.run(ask())) == {("127.0.0.1", group.primary.port)}
    ports = {one.connection_pool.connection_kwargs["port"] for one in sentinels.sentinels}
    assert ports == {1, *group.ports}


def test_without_any_sentinel_the_primary_is_named_as_the_url_does() -> None:
    settings = Settings(redis_url="redis+sentinel://127.0.0.1:1,127.0.0.1:2/jobs")
    with (
        connect(settings) as connection,
        pytest.raises(QueueUnavailable, match=r"at jobs \(by Sentinel\) does not answer"),
        queue_errors(connection),
    ):
        connection.ping()


def test_a_job_is_accepted_once_a_replica_has_it_and_else_taken_back(
    group: RedisGroup, image: ImageInfo
) -> None:
    # After the failover above there are two.
    group.has_replicas(2)
    queue = JobQueue(Settings(redis_url=group.url))
    primary = group.primary
    first, second = (one for one in group.servers if one is not primary and one.running)
    with primary.connect() as connection:
        connection.flushall()
        job = queue.submit(new_job_id(), UpscaleParameters(seed=1), image)
        with first.hanging(), second.hanging(), pytest.raises(QueueUnavailable, match="0 replicas"):
            queue.submit(new_job_id(), UpscaleParameters(seed=1), image)
        # Nor is one that an earlier request may have made without hearing of them.
        with first.hanging(), second.hanging(), pytest.raises(QueueUnavailable, match="0 replicas"):
            queue.check_replicas(job.id)
        queue.check_replicas(job.id)
        assert connection.keys("stablesr:job:*") == [f"stablesr:job:{job.id}".encode()]
        assert connection.lrange("rq:queue:stablesr:tiny", 0, -1) == [job.id.encode()]
    queue.close()


def test_a_primary_that_hung_and_comes_back_is_not_asked_any_more(group: RedisGroup) -> None:
    """For some seconds it knows nothing of the other one, and would say that a new job is none."""
    group.has_replicas(2)
    settings, old = Settings(redis_url=group.url), group.primary
    with connect(settings, breaker=CircuitBreaker()) as idle, connect(settings) as other:
        idle.set("job", "old")
        with old.hanging():
            group.fails_over(old)
            group.has_replicas(1)
            other.set("job", "new")
        assert idle.get("job") == b"new"
