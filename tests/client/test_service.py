"""Both clients against the real service; the worker does as the test tells it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from redis import Redis

from jobs.errors import ImageTruncated
from jobs.keys import Keys
from jobs.schema import Progress
from jobs.settings import Settings
from stablesr_client import Busy, Event, Job, JobFailed, NotFound, Refused, TimedOut, Unauthorized
from tests.client.conftest import MakeClient
from tests.client.cuts import CutAsyncTransport, Cuts, CutTransport
from tests.client.shells import FakeClock, Shell, SyncShell
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, serving
from tests.service.pictures import picture

PNG = picture("PNG")
RESULT = os.urandom(200_000)
STEP = Progress(stage="denoise", step=1, steps=4, fraction=0.25, eta_seconds=3)


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Log lines go nowhere: the server's thread may write them after a test's output is closed."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, str]]:
    settings = Settings(
        redis_url=redis_server.url, blob_root=tmp_path_factory.mktemp("blobs"), max_queued=2
    )
    with serving(settings) as plain:
        yield settings, str(plain.base_url)


@pytest.fixture
def url(service: tuple[Settings, str], redis_url: str) -> str:
    """The address of a service that has seen nothing yet."""
    return service[1]


@pytest.fixture
def redis(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def worker(service: tuple[Settings, str], redis: Redis) -> FakeWorker:
    return FakeWorker(redis, service[0])


@pytest.fixture
def client(make_client: MakeClient, url: str) -> Shell:
    return make_client(url)


@pytest.fixture
def cuts() -> Cuts:
    return Cuts()


@pytest.fixture
def cut_client(make_client: MakeClient, url: str, cuts: Cuts) -> Shell:
    """A client that loses what `cuts` says."""
    plain = make_client(url)
    transport = CutTransport if isinstance(plain, SyncShell) else CutAsyncTransport
    return make_client(url, transport=transport(cuts))


def one_step_each(worker: FakeWorker) -> Callable[[Job], None]:
    """Moves a job on each time it is seen: start, progress, end."""

    def move(now: Job) -> None:
        if now.state == "queued":
            worker.start(now.id)
        elif now.state == "processing" and now.progress is None:
            worker.progress(now.id, STEP)
        elif now.state == "processing":
            worker.succeed(now.id, RESULT)

    return move


def test_an_image_goes_in_and_its_result_comes_out(
    client: Shell, worker: FakeWorker, tmp_path: Path
) -> None:
    seen: list[Job] = []
    move = one_step_each(worker)

    def on_progress(now: Job) -> None:
        seen.append(now)
        move(now)

    target = tmp_path / "out.png"
    ended = client.upscale(PNG, target, on_progress, scale=2, seed=9)
    assert target.read_bytes() == RESULT
    assert [now.state for now in seen] == ["queued", "processing", "processing", "succeeded"]
    assert seen[0].queue_position == 1
    assert seen[2].progress is not None
    assert (seen[2].progress.stage, seen[2].progress.steps) == ("denoise", 4)
    assert ended.seed == 9
    assert ended.parameters is not None
    assert ended.parameters["scale"] == 2
    assert ended.result is not None
    assert (ended.result.bytes, ended.result.media_type) == (len(RESULT), "image/png")
    assert ended.created_at is not None
    assert ended.expires_at is not None


def test_events_tell_a_job_as_it_happens(client: Shell, worker: FakeWorker) -> None:
    move = one_step_each(worker)
    job = client.submit(PNG)
    told = client.events(job, each=lambda event: move(event.job))
    assert [event.name for event in told] == ["state", "state", "progress", "end"]
    assert told[-1].job.succeeded
    # What the last event's id says is known is not told again.
    assert client.events(job, last_event_id=told[-1].id) == []
    again: list[Event] = client.events(job.id, last_event_id="1")
    assert [event.name for event in again] == ["end"]


def test_a_cut_event_stream_misses_nothing(
    cut_client: Shell, cuts: Cuts, worker: FakeWorker
) -> None:
    move = one_step_each(worker)
    # In the middle of the second event; each holds a whole job.
    cuts.after["/events"] = 2000
    told = cut_client.events(cut_client.submit(PNG), each=lambda event: move(event.job))
    assert [event.job.state for event in told] == ["queued", *["processing"] * 2, "succeeded"]
    streams = [request for request in cuts.seen if request.url.path.endswith("/events")]
    assert len(streams) == 2


def test_a_submission_whose_answer_is_lost_makes_one_job(
    cut_client: Shell, cuts: Cuts, redis: Redis
) -> None:
    cuts.after["/upscale"] = None
    job = cut_client.submit(PNG, scale=2)
    assert len(cuts.seen) == 2
    assert [now.id for now in cut_client.jobs()] == [job.id]
    assert len(redis.keys("stablesr:job:*")) == 1


def test_a_cut_download_is_resumed_with_a_range(
    cut_client: Shell, cuts: Cuts, worker: FakeWorker, tmp_path: Path
) -> None:
    job = cut_client.submit(PNG)
    worker.start(job.id)
    worker.succeed(job.id, RESULT)
    cuts.after["/result"] = 50_000
    cut_client.download(job, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == RESULT
    ranges = [r.headers.get("range") for r in cuts.seen if r.url.path.endswith("/result")]
    assert ranges == [None, "bytes=50000-"]


def test_no_request_of_a_wait_lasts_longer_than_the_wait(cut_client: Shell, cuts: Cuts) -> None:
    with pytest.raises(TimedOut):
        cut_client.wait(cut_client.submit(PNG), timeout=3)
    silences = [r.extensions["timeout"]["read"] for r in cuts.seen if r.method == "GET"]
    assert silences
    assert max(silences) <= 3


def test_a_failed_job_brings_its_problem(client: Shell, worker: FakeWorker) -> None:
    job = client.submit(PNG)
    worker.start(job.id)
    worker.fail(job.id, ImageTruncated("The pixels end early.", row=3).problem())
    with pytest.raises(JobFailed, match="The pixels end early") as caught:
        client.wait(job)
    assert caught.value.job.error is not None
    assert caught.value.job.error.slug == "image-truncated"


def test_refusals_say_what_is_wrong(client: Shell, tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        client.submit(b"no image at all")
    assert caught.value.problem.slug.startswith("image-")
    with pytest.raises(Refused, match="fidelity_weight must be") as caught:
        client.submit(PNG, fidelity_weight=7)
    assert caught.value.problem.slug == "invalid-parameters"
    with pytest.raises(NotFound):
        client.get("0" * 32)
    job = client.submit(PNG)
    with pytest.raises(JobFailed, match="is queued"):
        client.download(job, tmp_path / "out.png")


def test_canceling_in_every_state(client: Shell, worker: FakeWorker) -> None:
    job = client.submit(PNG)
    assert client.cancel(job).state == "canceled"
    assert client.cancel(job).state == "canceled"
    running = client.submit(PNG)
    worker.start(running.id)
    asked = client.cancel(running.id)
    assert (asked.state, asked.cancel_requested) == ("processing", True)


def test_a_full_queue_is_waited_for_as_it_says(client: Shell, url: str, clock: FakeClock) -> None:
    first = client.submit(PNG)
    client.submit(PNG)
    with pytest.raises(Busy) as caught:
        client.submit(PNG)
    assert caught.value.problem.slug == "queue-full"
    assert caught.value.problem.retry_after is not None
    assert min(clock.slept) >= caught.value.problem.retry_after
    # As soon as there is room, a waiting submission goes through.
    clock.slept.clear()

    def make_room() -> None:
        if len(clock.slept) == 2:
            httpx.delete(f"{url}/jobs/{first.id}")

    clock.on_sleep = make_room
    assert client.submit(PNG).state == "queued"
    assert len(clock.slept) == 2


def test_the_list_and_the_presets(client: Shell, worker: FakeWorker) -> None:
    first = client.submit(PNG)
    worker.start(first.id)
    second = client.submit(PNG)
    assert [job.id for job in client.jobs()] == [second.id, first.id]
    assert [job.id for job in client.jobs("processing")] == [first.id]
    assert len(client.jobs(limit=1)) == 1
    default = client.models().default
    assert default is not None
    assert default.name == "tiny"


def test_a_key_opens_its_own_jobs_and_no_others(
    service: tuple[Settings, str], make_client: MakeClient, redis: Redis
) -> None:
    keys = Keys(redis)
    (_, mine), (_, other) = keys.create("mine"), keys.create("other")
    with serving(service[0].model_copy(update={"require_key": True})) as plain:
        url = str(plain.base_url)
        with pytest.raises(Unauthorized):
            make_client(url).submit(PNG)
        job = make_client(url, api_key=mine).submit(PNG)
        with pytest.raises(NotFound):
            make_client(url, api_key=other).get(job)
        assert make_client(url, api_key=other).jobs() == []
        assert [now.id for now in make_client(url, api_key=mine).jobs()] == [job.id]
