"""The simulation of `tools.capacity`: small days, in a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from redis import Redis

from jobs.queue import JobQueue
from jobs.settings import Settings
from tests.redis_server import RedisServer
from tools.capacity.devices import DEVICES
from tools.capacity.limits import limits
from tools.capacity.simulation import Outcome, Simulation, image_seconds

CPU = DEVICES["cpu"]
IMAGE_S = image_seconds(CPU)


@pytest.fixture
def redis(redis_server: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(redis_server.url) as client:
        client.flushdb()
        yield client


def simulated(
    redis: Redis,
    rate: Callable[[float], float],
    *,
    pods: int,
    seconds: float = 1200,
    most_queued: int = 20_000,
    stabilization_s: float = 120,
) -> Outcome:
    queue = JobQueue(Settings(max_queued=most_queued), redis)
    return Simulation(CPU, rate, pods, stabilization_s, redis, queue).run(seconds, 300)


def test_images_wait_for_nothing_where_workers_are_enough(redis: Redis) -> None:
    outcome = simulated(redis, lambda now: 1 / IMAGE_S, pods=4)
    assert len(outcome.waits) > 300
    assert sorted(outcome.waits)[len(outcome.waits) // 2] < 1
    assert min(outcome.totals) >= CPU.encode_s + CPU.call_s(1) + CPU.decode_s


def test_the_same_seed_gives_the_same_day(redis: Redis) -> None:
    first, second = (simulated(redis, lambda now: 0.5, pods=2, seconds=300) for _ in range(2))
    assert first == second


def test_pods_come_with_a_burst_and_go_after_it(redis: Redis) -> None:
    outcome = simulated(
        redis, lambda now: (8 if 400 <= now < 700 else 0.2) / IMAGE_S, pods=1, seconds=2400
    )
    counts = [count for _, count in outcome.pods]
    assert (counts[0], counts[-1]) == (1, 1)
    assert max(counts) == 3
    # None was taken away while it worked: all images came to their end.
    assert len(outcome.totals) == len(outcome.waits)


def test_uploads_beyond_the_limit_are_refused_and_come_again(redis: Redis) -> None:
    def rate(now: float) -> float:
        return (20 if 400 <= now < 460 else 0.01) / IMAGE_S

    bounded = simulated(redis, rate, pods=1, seconds=2400, most_queued=5)
    free = simulated(redis, rate, pods=1, seconds=2400)
    assert bounded.refusals > 0
    assert bounded.most_waiting <= 5
    assert free.refusals == 0
    assert abs(len(bounded.totals) - len(free.totals)) <= 5


def test_the_limits_name_every_part_and_curve(redis: Redis) -> None:
    outcome = simulated(redis, lambda now: 0.5, pods=2, seconds=300)
    table = limits({"steady": [(0.5, outcome)]})
    assert [column.header for column in table.columns] == ["part", "steady", "one does"]
    assert table.row_count == 4
