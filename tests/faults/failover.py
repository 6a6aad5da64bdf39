"""Faults of a Redis that Sentinels watch over: its primary dies, hangs, or has no replica left."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial

from tests.faults.cases import Case, insistent
from tests.faults.house import House, Job, until
from tests.redis_sentinel import RedisGroup

# Where Redis hangs, it is not waited for: another server is the primary within seconds.
NOT_SO = ("Redis hangs",)


def on_a_group(cases: Iterable[Case]) -> list[Case]:
    """Those of the cases that make sense there, and its own."""
    return [
        *(case for case in cases if case.name not in NOT_SO),
        Case("primary killed under load", partial(failover, "kill"), {}),
        Case("primary hangs under load", partial(failover, "hang"), {}),
        Case("no replica left", no_replica, {}),
    ]


def failover(fault: str, house: House) -> float:
    """A client submits without a pause while the primary goes away; it is told of no job that is
    lost. The seconds until uploads are taken again, without any process being started anew."""
    group = house.redis
    assert isinstance(group, RedisGroup)
    worker = house.worker(step_s=0.02)
    house.ready()
    old = group.primary
    with insistent(house) as ids:
        until(lambda: len(ids) >= 5, "five jobs are accepted", seconds=30)
        if fault == "kill":
            old.kill()
            again = _accepts(house)
            old.start()
        else:
            with old.hanging():
                again = _accepts(house)
    house.jobs += [Job(one) for one in ids]
    house.submit()
    house.all_ended()
    assert group.primary is not old, "it did not fail over"
    assert worker.exit_code is None, "the worker ended"
    listed, known = sorted(house.listed()), {job.id for job in house.jobs}
    assert known <= set(listed), f"{known - set(listed)} are not listed"
    return again


def _accepts(house: House) -> float:
    """The seconds until an upload was. One that Redis left without an answer is not tried again by
    its client for up to a minute, while its idempotency key is taken."""
    began = time.monotonic()

    def accepts() -> bool:
        answer = house.post()
        if answer.status_code == 202:
            house.jobs.append(Job(answer.json()["id"]))
        return answer.status_code == 202

    until(accepts, "an upload is accepted", seconds=60)
    return time.monotonic() - began


def no_replica(house: House) -> float:
    """The primary takes no writes: uploads are refused and leave nothing, and what runs goes on
    when a replica is back."""
    group = house.redis
    assert isinstance(group, RedisGroup)
    worker = house.worker(step_s=0.1)
    house.ready()
    jobs = house.submit(4, steps=40)
    until(lambda: (house.look(jobs[0])["progress"] or {}).get("step", 0) > 2, "the first runs")
    replicas = [server for server in group.servers if server is not group.primary]
    for server in replicas:
        server.kill()
    asked = time.monotonic()
    refused = house.post()
    assert refused.status_code == 503, refused.text
    assert int(refused.headers["Retry-After"]) >= 1
    assert time.monotonic() - asked < 3
    assert len(house.listed()) == len(jobs)
    time.sleep(max(0.0, asked + 5 - time.monotonic()))
    for server in replicas:
        server.start()
    back = time.monotonic()
    group.has_replicas(2)
    house.submit()
    seconds = time.monotonic() - back
    house.all_ended()
    assert worker.exit_code is None, "the worker ended"
    return seconds
