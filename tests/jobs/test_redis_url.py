"""What a URL of Redis says; a failover is gone through by every kind of connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from jobs.connection import CircuitBreaker, LoopClient, connect, queue_errors
from jobs.errors import InvalidSettings, QueueUnavailable
from jobs.queue import JobQueue
from jobs.redis_url import AsyncSentinels, parse_redis_url
from jobs.schema import ImageInfo, new_job_id
from jobs.settings import Settings
from models.parameters import UpscaleParameters
from tests.redis_sentinel import NAME, RedisGroup

from .conftest import run

PASSWORD = "s%3Ae%2Fc%40ret"


def test_a_single_server_is_left_to_redis_py() -> None:
    for url in ("redis://h:1/2?socket_timeout=3", "unix:///run/redis.sock?db=1", "rediss://h/0"):
        assert parse_redis_url(url).url == url
        assert not parse_redis_url(url).sentinels


def test_the_number_of_replicas_is_ours() -> None:
    target = parse_redis_url("redis://h/0?replicas=2&socket_timeout=3")
    assert (target.url, target.replicas) == ("redis://h/0?socket_timeout=3", 2)


def test_sentinels_their_primary_and_its_database_are_read() -> None:
    url = f"rediss+sentinel://ada:{PASSWORD}@a,b:7,[::1]:8/my%20jobs/3?replicas=1&ssl_ca_certs=/ca"
    target = parse_redis_url(url + "&sentinel_password=other")
    assert target.sentinels == (("a", 26379), ("b", 7), ("::1", 8))
    assert (target.primary, target.replicas) == ("my jobs", 1)
    common = {"ssl_ca_certs": "/ca", "ssl": True}
    login = {"username": "ada", "password": "s:e/c@ret"}
    assert target.options == {"db": 3, **login, **common}
    assert target.sentinel_options == {"password": "other", **common}
    assert "s:e/c@ret" not in repr(target)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://:geheim@h", "must begin with one of redis://"),
        ("redis://:ge:heim/x@h:1/0", "%3A %2F %40"),
        ("redis+sentinel://:geheim@h:26379", "must end with /NAME"),
        ("redis+sentinel://:geheim@h:26379,/jobs", "must end with /NAME"),
        ("redis+sentinel://:geheim@h:one/jobs", "a port is a number"),
        ("redis://:geheim@h/0?replicas=two", "replicas must be a number"),
    ],
)
def test_a_wrong_url_is_refused_in_a_sentence_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(InvalidSettings, match="STABLESR_REDIS_URL is wrong: ") as error:
        Settings(redis_url=url)
    assert reason in str(error.value)
    assert "heim" not in str(error.value)


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
