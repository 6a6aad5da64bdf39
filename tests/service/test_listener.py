"""`Prefer: wait=N`: the answer comes with the job's end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError

from jobs.connection import as_text
from jobs.schema import Progress
from jobs.settings import Settings
from service.listener import Listener
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, eventually, plain_client, serving
from tests.service.pictures import picture

PNG = picture("PNG")


def post(client: httpx.Client, prefer: str) -> httpx.Response:
    return client.post("/upscale", files={"image": ("a.png", PNG)}, headers={"Prefer": prefer})


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def jobs(redis: Redis) -> list[str]:
    return [as_text(key).rpartition(":")[2] for key in redis.keys("stablesr:job:*")]


def only_job(redis: Redis) -> str:
    eventually(lambda: len(jobs(redis)) == 1)
    [job] = jobs(redis)
    return job


def test_the_answer_comes_when_the_job_has_succeeded(
    client: httpx.Client, worker: FakeWorker, redis: Redis, threads: ThreadPoolExecutor
) -> None:
    waiting = threads.submit(post, client, "wait=30")
    job = only_job(redis)
    worker.start(job)
    worker.progress(job, Progress(stage="denoise", step=1, steps=2))
    assert not waiting.done()
    started = time.monotonic()
    worker.succeed(job, PNG)
    answer = waiting.result(timeout=10)
    assert time.monotonic() - started < 3, "it came with the safety net's look, after 5 s"
    assert answer.status_code == 200
    assert answer.json()["state"] == "succeeded"
    assert answer.headers["Preference-Applied"] == "wait=30"
    assert answer.headers["Location"] == f"/jobs/{job}"
    assert answer.json() == client.get(f"/jobs/{job}").json()


@pytest.mark.parametrize("end", ["canceled", "expired"])
def test_every_end_is_an_end(
    client: httpx.Client, worker: FakeWorker, redis: Redis, threads: ThreadPoolExecutor, end: str
) -> None:
    waiting = threads.submit(post, client, "wait=30")
    job = only_job(redis)
    if end == "canceled":
        client.delete(f"/jobs/{job}")
        assert waiting.result(timeout=10).json()["state"] == "canceled"
    else:
        worker.start(job)
        worker.succeed(job, PNG)
        worker.expire(job)
        assert waiting.result(timeout=10).json()["state"] in ("succeeded", "expired")


def test_a_job_that_takes_longer_is_answered_as_it_is(client: httpx.Client) -> None:
    answer = post(client, "wait=1")
    assert answer.status_code == 202
    assert answer.json()["state"] == "queued"
    assert answer.headers["Preference-Applied"] == "wait=1"
    assert "Retry-After" in answer.headers


@pytest.mark.parametrize("prefer", ["", "wait", "wait=", "wait=soon", "wait=-1", "respond-async"])
def test_a_preference_that_makes_no_sense_is_as_none(client: httpx.Client, prefer: str) -> None:
    answer = post(client, prefer)
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers


@pytest.mark.parametrize("prefer", ["wait=0", 'Wait = "0"', "respond-async, wait=0; x=1"])
def test_the_preference_is_found_in_every_form(client: httpx.Client, prefer: str) -> None:
    assert post(client, prefer).headers["Preference-Applied"] == "wait=0"


def test_a_request_waits_fifty_seconds_at_most(
    client: httpx.Client, worker: FakeWorker, redis: Redis, threads: ThreadPoolExecutor
) -> None:
    waiting = threads.submit(post, client, "wait=999999999999")
    client.delete(f"/jobs/{only_job(redis)}")
    assert waiting.result(timeout=10).headers["Preference-Applied"] == "wait=50"


def test_many_can_wait_without_a_thread_each(settings: Settings, redis: Redis) -> None:
    """More than there are threads for requests; others are answered meanwhile."""
    count = 45
    # Of the connections a fortieth, and of the queue a tenth, are one client's.
    changes = {"max_queued": 10 * count, "max_connections": 40 * count}
    settings = settings.model_copy(update=changes)
    with serving(settings) as client, ThreadPoolExecutor(count) as threads:
        limits = httpx.Limits(max_connections=count)
        with plain_client(client.base_url, timeout=60, limits=limits) as other:

            def wait() -> httpx.Response:
                # On a machine that is busy with other things Redis may answer too late.
                while (answer := post(other, "wait=50")).status_code == 503:
                    continue
                return answer

            waiting: list[Future[httpx.Response]] = [threads.submit(wait) for _ in range(count)]
            eventually(lambda: len(jobs(redis)) >= count, 30)
            started = time.monotonic()
            assert client.get("/models").status_code == 200
            assert time.monotonic() - started < 5
            for job in jobs(redis):
                client.delete(f"/jobs/{job}")
            states = [future.result(timeout=30).json()["state"] for future in waiting]
    assert states == ["canceled"] * count


@pytest.fixture
def narrow(settings: Settings) -> Iterator[httpx.Client]:
    """A service in which one request of a client may wait."""
    with serving(settings.model_copy(update={"max_connections": 40})) as client:
        yield client


def test_a_client_that_leaves_gives_its_place_back(narrow: httpx.Client) -> None:
    with (
        plain_client(narrow.base_url, timeout=0.5) as impatient,
        pytest.raises(httpx.ReadTimeout),
    ):
        post(impatient, "wait=60")
    eventually(lambda: "Preference-Applied" in post(narrow, "wait=0").headers)


def test_without_a_place_to_wait_the_job_is_answered_at_once(
    narrow: httpx.Client, redis: Redis, threads: ThreadPoolExecutor
) -> None:
    waiting = threads.submit(post, narrow, "wait=60")
    job = only_job(redis)
    with plain_client(narrow.base_url) as other:
        eventually(lambda: "Preference-Applied" not in post(other, "wait=0").headers)
    narrow.delete(f"/jobs/{job}")
    assert waiting.result(timeout=10).status_code == 200


def test_a_server_that_stops_answers_those_who_wait(settings: Settings, redis: Redis) -> None:
    answers: list[httpx.Response] = []
    with plain_client() as other:
        with serving(settings) as client:
            other.base_url = client.base_url
            thread = threading.Thread(target=lambda: answers.append(post(other, "wait=60")))
            thread.start()
            only_job(redis)
            started = time.monotonic()
        assert time.monotonic() - started < 5
        thread.join(10)
    assert [answer.status_code for answer in answers] == [202]


def test_a_redis_that_gives_no_sign_of_life_is_left_and_a_quiet_one_is_not(
    settings: Settings, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.listener.LOOK_S", 0.1)

    async def listen() -> None:
        listening = asyncio.create_task(Listener(settings)._listen())
        done, _ = await asyncio.wait([listening], timeout=1)
        assert not done
        with redis_server.hanging(), pytest.raises(ConnectionError, match="sign of life"):
            await asyncio.wait_for(listening, 5)

    asyncio.run(listen())
