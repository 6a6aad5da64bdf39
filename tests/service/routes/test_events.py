"""GET /jobs/{id}/events: told as it happens, resumed where it stopped, and nothing left behind."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from redis import Redis

from jobs.schema import Progress
from jobs.settings import Settings
from jobs.states import CHANNEL
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, eventually, plain_client, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")


@dataclass(frozen=True)
class Event:
    name: str
    id: int
    data: dict[str, Any]


def events(answer: httpx.Response) -> Iterator[Event | str]:
    """The events of a stream; comments as text."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line.startswith(":"):
            yield line
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "event" in fields:
            yield Event(fields["event"], int(fields["id"]), json.loads(fields["data"]))
            fields = {}


@contextmanager
def following(
    client: httpx.Client, job: str, last: int | None = None
) -> Iterator[Iterator[Event | str]]:
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with client.stream("GET", f"/jobs/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        yield events(answer)


def told(stream: Iterator[Event | str]) -> Event:
    event = next(stream)
    assert isinstance(event, Event)
    return event


def listeners(redis: Redis) -> int:
    return int(dict(redis.pubsub_numsub(CHANNEL))[CHANNEL.encode()])


@pytest.fixture
def job(client: httpx.Client, redis: Redis) -> str:
    # Each test's flush forgets nothing of this, but a server that just started may not listen yet.
    eventually(lambda: listeners(redis) > 0)
    return str(upload(client, PNG).json()["id"])


def test_a_job_is_followed_from_the_queue_to_its_end(
    client: httpx.Client, job: str, worker: FakeWorker
) -> None:
    with following(client, job) as stream:
        queued = told(stream)
        assert (queued.name, queued.data["state"], queued.id) == ("state", "queued", 1)
        assert queued.data == client.get(f"/jobs/{job}").json()

        worker.start(job)
        started = told(stream)
        assert (started.name, started.data["state"]) == ("state", "processing")

        half = Progress(stage="denoise", step=2, steps=4, fraction=0.5)
        worker.progress(job, half)
        progress = told(stream)
        assert progress.name == "progress"
        assert progress.data == half.model_dump()

        worker.succeed(job, PNG)
        end = told(stream)
        assert (end.name, end.data["state"]) == ("end", "succeeded")
        assert end.data == client.get(f"/jobs/{job}").json()
        assert queued.id < started.id < progress.id < end.id
        assert list(stream) == []


def test_events_come_at_once_and_not_at_the_next_look(
    client: httpx.Client, job: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with following(client, job) as stream:
        told(stream)
        started = time.monotonic()
        worker.start(job)
        told(stream)
        assert time.monotonic() - started < 2, "it came with the safety net's look, after 5 s"


def test_a_cancel_of_a_running_job_is_a_state(
    client: httpx.Client, job: str, worker: FakeWorker
) -> None:
    worker.start(job)
    with following(client, job) as stream:
        assert not told(stream).data["cancel_requested"]
        client.delete(f"/jobs/{job}")
        marked = told(stream)
        assert (marked.name, marked.data["cancel_requested"]) == ("state", True)
        worker.stop(job)
        assert told(stream).data["state"] == "canceled"


def test_the_place_in_the_queue_is_told_when_it_moves(
    client: httpx.Client, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.listener.LOOK_S", 0.05)
    second = upload(client, PNG).json()["id"]
    with following(client, second) as stream:
        assert told(stream).data["queue_position"] == 2
        client.delete(f"/jobs/{job}")
        moved = told(stream)
        assert (moved.name, moved.data["queue_position"]) == ("state", 1)


def test_an_ended_job_tells_its_end_at_once(
    client: httpx.Client, job: str, worker: FakeWorker
) -> None:
    client.delete(f"/jobs/{job}")
    with following(client, job) as stream:
        assert [event.name for event in stream if isinstance(event, Event)] == ["end"]


def test_a_stream_resumes_with_what_is_newer(
    client: httpx.Client, job: str, worker: FakeWorker
) -> None:
    with following(client, job) as stream:
        seen = told(stream).id
    with following(client, job, seen) as stream:
        # What is known is not told again: the next event is the next thing that happens.
        worker.start(job)
        started = told(stream)
        assert started.data["state"] == "processing"
    worker.succeed(job, PNG)
    with following(client, job, started.id) as stream:
        assert told(stream).name == "end"


def test_a_client_that_knows_the_end_is_told_to_stop_asking(client: httpx.Client, job: str) -> None:
    client.delete(f"/jobs/{job}")
    with following(client, job) as stream:
        end = told(stream)
    answer = client.get(f"/jobs/{job}/events", headers={"Last-Event-ID": str(end.id)})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("last", ["-1", "x", "9" * 30, "1.5", "٣"])
def test_a_last_event_id_of_another_server_begins_anew(
    client: httpx.Client, job: str, last: str
) -> None:
    headers = {b"Last-Event-ID": last.encode()}
    with client.stream("GET", f"/jobs/{job}/events", headers=headers) as answer:
        assert told(events(answer)).data["state"] == "queued"


def test_a_quiet_stream_has_heartbeats(
    client: httpx.Client, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.events.HEARTBEAT_S", 0.1)
    monkeypatch.setattr("service.listener.LOOK_S", 0.05)
    with following(client, job) as stream:
        told(stream)
        assert str(next(stream)).startswith(":")
        assert str(next(stream)).startswith(":")


def test_an_unknown_job_has_no_events(client: httpx.Client) -> None:
    problem(client.get("/jobs/nothing/events"), 404, "job-not-found")


def test_head_does_not_wait_for_events(client: httpx.Client, job: str) -> None:
    answer = client.head(f"/jobs/{job}/events")
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")


@pytest.fixture
def narrow(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    monkeypatch.setattr(Settings, "max_streams", 3)
    monkeypatch.setattr(Settings, "max_each", 2)
    with serving(settings) as client:
        yield client


def test_open_streams_are_bounded_and_closing_one_makes_room(
    narrow: httpx.Client, job: str
) -> None:
    with following(narrow, job) as one, following(narrow, job) as two:
        told(one)
        told(two)
        answer = narrow.get(f"/jobs/{job}/events")
        body = problem(answer, 429, "too-many-streams")
        assert body["limit"] == 2
    # A client that leaves gives its place back.
    eventually(lambda: narrow.head(f"/jobs/{job}").status_code == 200)

    def fits() -> bool:
        with narrow.stream("GET", f"/jobs/{job}/events") as answer:
            return answer.status_code == 200

    eventually(fits)


def test_a_stream_lives_through_a_restart_of_redis(settings: Settings) -> None:
    with RedisServer() as redis_server:
        own = settings.model_copy(update={"redis_url": redis_server.url})
        with serving(own) as client:
            job = upload(client, PNG).json()["id"]
            with following(client, job) as stream:
                told(stream)
                redis_server.restart()
                with redis_server.connect() as connection:
                    eventually(lambda: listeners(connection) > 0)
                    FakeWorker(connection, own).start(job)
                    assert told(stream).data["state"] == "processing"


def test_a_server_that_stops_ends_its_streams_first(settings: Settings) -> None:
    ready, ended = threading.Event(), threading.Event()

    def follow(client: httpx.Client, job: str) -> None:
        with following(client, job) as stream:
            told(stream)
            ready.set()
            assert list(stream) == []
        ended.set()

    with plain_client() as other:
        with serving(settings) as client:
            other.base_url = client.base_url
            job = upload(client, PNG).json()["id"]
            thread = threading.Thread(target=follow, args=(other, job))
            thread.start()
            assert ready.wait(10)
            started = time.monotonic()
        assert time.monotonic() - started < 5, "the server waited for its streams"
        thread.join(10)
        assert ended.is_set()
