"""Both clients against the real service, and the code in docs/client.md as it stands."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from inspect import getmembers, isfunction, signature
from pathlib import Path

import httpx
import pytest
import structlog
from PIL import Image
from redis import Redis

from jobs.errors import ImageTruncated
from jobs.keys import Keys
from jobs.schema import Progress
from jobs.settings import Settings
from stablesr_client import (
    AsyncClient,
    Busy,
    Client,
    Event,
    Job,
    JobFailed,
    NotFound,
    Refused,
    TimedOut,
    Unauthorized,
)
from tests.client.conftest import MakeClient
from tests.client.cut_transport import CutTransport
from tests.client.shells import FakeClock, Shell
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, serving
from tests.service.pictures import picture

PNG = picture("PNG")
RESULT = os.urandom(200_000)
STEP = Progress(stage="denoise", step=1, steps=4, fraction=0.25, eta_seconds=3)
PAGE = Path(__file__).parents[2] / "docs" / "client.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


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
        redis_url=redis_server.url, blob_root=tmp_path_factory.mktemp("blobs"), max_queued=3
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
def transport() -> CutTransport:
    return CutTransport()


@pytest.fixture
def cut_client(make_client: MakeClient, url: str, transport: CutTransport) -> Shell:
    """A client that loses what `transport.cuts` says."""
    return make_client(url, transport=transport)


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
    states: list[Job] = []
    move = one_step_each(worker)

    def on_progress(now: Job) -> None:
        states.append(now)
        move(now)

    target = tmp_path / "out.png"
    job = client.upscale(PNG, target, on_progress, scale=2, seed=9)
    assert target.read_bytes() == RESULT
    assert [now.state for now in states] == ["queued", "processing", "processing", "succeeded"]
    assert states[0].queue_position == 1
    assert states[2].progress is not None
    assert (states[2].progress.stage, states[2].progress.steps) == ("denoise", 4)
    assert job.seed == 9
    assert job.parameters is not None
    assert job.parameters["scale"] == 2
    assert job.result is not None
    assert (job.result.bytes, job.result.media_type) == (len(RESULT), "image/png")
    assert job.created_at is not None
    assert job.expires_at is not None


def test_events_tell_a_job_as_it_happens(client: Shell, worker: FakeWorker) -> None:
    move = one_step_each(worker)
    job = client.submit(PNG)
    events = client.events(job, each=lambda event: move(event.job))
    assert [event.name for event in events] == ["state", "state", "progress", "end"]
    assert events[-1].job.succeeded
    # What the last event's id says is known is not told again.
    assert client.events(job, last_event_id=events[-1].id) == []
    again: list[Event] = client.events(job.id, last_event_id="1")
    assert [event.name for event in again] == ["end"]


def test_a_cut_event_stream_misses_nothing(
    cut_client: Shell, transport: CutTransport, worker: FakeWorker
) -> None:
    move = one_step_each(worker)
    # In the middle of the second event; each holds a whole job.
    transport.cuts["/events"] = 2000
    events = cut_client.events(cut_client.submit(PNG), each=lambda event: move(event.job))
    assert [event.job.state for event in events] == ["queued", *["processing"] * 2, "succeeded"]
    streams = [request for request in transport.requests if request.url.path.endswith("/events")]
    assert len(streams) == 2


def test_a_submission_whose_answer_is_lost_makes_one_job(
    cut_client: Shell, transport: CutTransport, redis: Redis
) -> None:
    transport.cuts["/upscale"] = 0
    job = cut_client.submit(PNG, scale=2)
    assert len(transport.requests) == 2
    assert [now.id for now in cut_client.jobs()] == [job.id]
    assert len(redis.keys("stablesr:job:*")) == 1


def test_a_cut_download_is_resumed_with_a_range(
    cut_client: Shell, transport: CutTransport, worker: FakeWorker, tmp_path: Path
) -> None:
    job = cut_client.submit(PNG)
    worker.start(job.id)
    worker.succeed(job.id, RESULT)
    transport.cuts["/result"] = 50_000
    cut_client.download(job, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == RESULT
    ranges = [r.headers.get("range") for r in transport.requests if r.url.path.endswith("/result")]
    assert ranges == [None, "bytes=50000-"]


def test_no_request_of_a_wait_lasts_longer_than_the_wait(
    cut_client: Shell, transport: CutTransport
) -> None:
    with pytest.raises(TimedOut):
        cut_client.wait(cut_client.submit(PNG), timeout=3)
    silences = [r.extensions["timeout"]["read"] for r in transport.requests if r.method == "GET"]
    assert silences
    assert max(silences) <= 3


def test_a_failed_job_brings_its_problem(client: Shell, worker: FakeWorker) -> None:
    job = client.submit(PNG)
    worker.start(job.id)
    worker.fail(job.id, ImageTruncated("The pixels end early.", row=3).problem())
    with pytest.raises(JobFailed, match="The pixels end early") as error:
        client.wait(job)
    assert error.value.job.error is not None
    assert error.value.job.error.slug == "image-truncated"


def test_refusals_say_what_is_wrong(client: Shell, tmp_path: Path) -> None:
    with pytest.raises(Refused) as error:
        client.submit(b"no image at all")
    assert error.value.problem.slug.startswith("image-")
    with pytest.raises(Refused, match="fidelity_weight must be") as error:
        client.submit(PNG, fidelity_weight=7)
    assert error.value.problem.slug == "invalid-parameters"
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
    answer = client.cancel(running.id)
    assert (answer.state, answer.cancel_requested) == ("processing", True)


def test_a_full_queue_is_waited_for_as_it_says(client: Shell, url: str, clock: FakeClock) -> None:
    first = client.submit(PNG)
    for _ in range(2):
        client.submit(PNG)
    with pytest.raises(Busy) as error:
        client.submit(PNG)
    assert error.value.problem.slug == "queue-full"
    assert error.value.problem.retry_after is not None
    assert min(clock.pauses) >= error.value.problem.retry_after
    # As soon as there is room, a waiting submission goes through.
    clock.pauses.clear()

    def make_room() -> None:
        if len(clock.pauses) == 2:
            httpx.delete(f"{url}/jobs/{first.id}")

    clock.on_sleep = make_room
    assert client.submit(PNG).state == "queued"
    assert len(clock.pauses) == 2


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
    with serving(service[0].model_copy(update={"access": "keys"})) as plain:
        url = str(plain.base_url)
        with pytest.raises(Unauthorized):
            make_client(url).submit(PNG)
        job = make_client(url, api_key=mine).submit(PNG)
        with pytest.raises(NotFound):
            make_client(url, api_key=other).get(job)
        assert make_client(url, api_key=other).jobs() == []
        assert [now.id for now in make_client(url, api_key=mine).jobs()] == [job.id]


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    methods = [
        {
            name: list(signature(call).parameters.values())
            for name, call in getmembers(kind, isfunction)
            if not name.startswith("_")
        }
        for kind in (Client, AsyncClient)
    ]
    assert methods[0] == methods[1]


@pytest.fixture
def busy_worker(service: tuple[Settings, str], redis: Redis, worker: FakeWorker) -> Iterator[None]:
    """A worker that is done with every job at once."""
    over = threading.Event()

    def work() -> None:
        known: set[bytes] = set()
        while not over.wait(0.01):
            for key in set(redis.scan_iter("stablesr:job:*")) - known:
                known.add(key)
                job = key.decode().rpartition(":")[2]
                worker.start(job)
                worker.progress(job, STEP)
                worker.succeed(job, picture("PNG", 96, 64))

    thread = threading.Thread(target=work)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda code: code.strip().splitlines()[-1][:40])
def test_the_code_runs_as_it_stands(
    snippet: str,
    url: str,
    busy_worker: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in ("photo.jpg", "photos/a.jpg", "photos/b.jpg", "photos/c.jpg"):
        Image.new("RGB", (24, 16), "teal").save(name)
    assert ADDRESS in snippet
    exec(compile(snippet.replace(ADDRESS, url), str(PAGE), "exec"), {"__name__": "snippet"})
    output = capsys.readouterr().out
    if "photos" in snippet:
        assert len(list(Path("photos").glob("*.4x.png"))) == 3
        assert output == ""
    elif "download" in snippet:
        assert Path("photo-2x.png").exists()
        assert "succeeded" in output
    elif "upscale" in snippet:
        assert output.startswith("96 64 ")
    else:
        assert output.split()[-1] == "succeeded"


def test_the_page_has_all_its_code() -> None:
    assert len(SNIPPETS) == 4
