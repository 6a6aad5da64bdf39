"""`stablesr jobs` as an operator types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from typer.testing import CliRunner, Result

from cli.main import app
from jobs.errors import Problem
from jobs.job_store import JobStore
from jobs.queue import JobQueue
from jobs.schema import ImageInfo, JobState, Progress, new_job_id
from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from models.parameters import UpscaleParameters
from tests.redis_server import RedisServer

PROBLEM = Problem(type="worker-lost", title="Lost", detail="The worker was lost.")


class Service:
    """What the command acts on, and the command."""

    def __init__(self, settings: Settings, connection: Redis) -> None:
        self.settings = settings
        self.records = JobStore(connection)
        self.queue = JobQueue(settings)
        self.store = BlobStore.open(settings)

    def submit(self, filename: str = "photo.png", preset: str = "tiny") -> str:
        image = ImageInfo(
            width=9, height=9, format="PNG", media_type="image/png", bytes=9, filename=filename
        )
        self.store.put(input_key(job_id := new_job_id()), b"in")
        return self.queue.submit(job_id, UpscaleParameters(preset=preset), image).id

    def fail(self) -> str:
        self.records.fail(job_id := self.submit(), PROBLEM)
        return job_id

    def state(self, job_id: str) -> JobState:
        return self.records.get(job_id).state

    def jobs(self, *arguments: str) -> Result:
        settings = self.settings
        env = {
            "STABLESR_REDIS_URL": settings.redis_url,
            "STABLESR_BLOB_ROOT": str(settings.blob_root),
            "COLUMNS": "160",
        }
        return CliRunner().invoke(app, ["jobs", *arguments], env=env)


@pytest.fixture
def service(redis_url: str, tmp_path: Path) -> Iterator[Service]:
    with Redis.from_url(redis_url) as connection:
        service = Service(Settings(redis_url=redis_url, blob_root=tmp_path / "blobs"), connection)
        yield service
        service.queue.close()


def test_the_list_shows_the_newest_first_and_what_was_asked_for(service: Service) -> None:
    assert "no such jobs" in service.jobs("list").stderr
    waiting, failed, other = service.submit(), service.fail(), service.submit(preset="stablesr-512")
    lines = service.jobs("list").stdout.splitlines()
    shown = [
        line.split()[1] for line in lines if any(one in line for one in (waiting, failed, other))
    ]
    assert shown == [other, failed, waiting]

    def listed(*arguments: str) -> list[str]:
        answer = service.jobs("list", "--json", *arguments)
        assert answer.exit_code == 0, answer.output
        return [json.loads(line)["id"] for line in answer.stdout.splitlines()]

    assert listed() == [other, failed, waiting]
    assert listed("--limit", "1") == [other]
    assert listed("--state", "failed") == [failed]
    assert listed("--preset", "tiny") == [failed, waiting]
    assert listed("--owner", "00000000") == []
    assert listed("--owner", "", "--state", "queued") == [other, waiting]


def test_a_job_is_shown_whole_and_cannot_move_the_terminal(service: Service) -> None:
    job_id = service.submit("a\x1b]0;title\x07[red]b\x9b2J.png")
    service.records.start(job_id, "worker-1.0")
    service.records.progress(job_id, Progress(stage="denoise", step=1, steps=4))
    service.records.fail(job_id, PROBLEM)
    shown = service.jobs("show", job_id).stdout
    for word in (job_id, "failed", "worker-1.0", "The worker was lost.", "attempt", "started_at"):
        assert word in shown
    as_json = service.jobs("show", job_id, "--json").stdout
    for text in (shown, as_json):
        assert not {"\x1b", "\x07", "\x9b"} & set(text)
    fields = json.loads(as_json)
    assert (fields["attempt"], fields["error"]["type"]) == (1, "worker-lost")
    assert "[red]" in fields["input"]["filename"]
    assert "[red]" in shown


def test_a_failed_job_is_queued_again(service: Service) -> None:
    job_id = service.fail()
    answer = service.jobs("retry", job_id)
    assert answer.exit_code == 0, answer.output
    assert f"{job_id} queued" in answer.stderr
    assert service.state(job_id) is JobState.QUEUED
    again = service.jobs("retry", job_id)
    assert again.exit_code == 5
    assert "is queued; only a failed one runs again" in again.stderr


def test_all_failed_jobs_are_queued_again_and_those_without_image_named(service: Service) -> None:
    waiting, *failed = service.submit(), service.fail(), service.fail(), service.fail()
    service.store.delete(input_key(failed[1]))
    answer = service.jobs("retry", "--all")
    assert answer.exit_code == 5
    assert f"image of job {failed[1]} is gone" in answer.stderr
    assert "1 of 3 jobs are as they were" in answer.stderr
    states = [service.state(job_id) for job_id in (waiting, *failed)]
    assert states == [JobState.QUEUED, JobState.QUEUED, JobState.FAILED, JobState.QUEUED]
    service.jobs("purge", "--state", "failed")
    assert "no such jobs" in service.jobs("retry", "--all").stderr


def test_jobs_are_canceled(service: Service) -> None:
    waiting, running = service.submit(), service.submit()
    service.records.start(running, "w")
    answer = service.jobs("cancel", waiting, running)
    assert answer.exit_code == 0, answer.output
    assert f"{waiting} canceled" in answer.stderr
    assert f"{running} processing, will stop" in answer.stderr
    assert service.state(waiting) is JobState.CANCELED
    assert service.jobs("cancel", waiting).exit_code == 5


def test_ended_jobs_are_purged_one_or_all_of_a_state(service: Service) -> None:
    waiting, *failed = service.submit(), service.fail(), service.fail(), service.fail()
    assert service.jobs("purge", failed[0]).exit_code == 0
    assert service.jobs("show", failed[0]).exit_code == 2
    assert service.jobs("purge", "--state", "failed").exit_code == 0
    assert service.jobs("list", "--state", "failed", "--json").stdout == ""
    assert not any(service.store.exists(input_key(job_id)) for job_id in failed)
    answer = service.jobs("purge", waiting)
    assert answer.exit_code == 5
    assert "is queued; purge can happen only" in answer.stderr
    assert service.store.exists(input_key(waiting))


@pytest.mark.parametrize(
    "arguments",
    [
        ("retry",),
        ("retry", "x", "--all"),
        ("purge",),
        ("purge", "x", "--state", "failed"),
        ("purge", "--state", "queued"),
        ("purge", "--state", "lost"),
        ("show", "unknown"),
    ],
)
def test_a_wrong_argument_ends_with_2(service: Service, arguments: tuple[str, ...]) -> None:
    assert service.jobs(*arguments).exit_code == 2


def test_without_redis_the_command_says_where_it_looked(tmp_path: Path) -> None:
    with RedisServer() as server:
        url, port = server.url, server.port
    env = {"STABLESR_REDIS_URL": url, "STABLESR_BLOB_ROOT": str(tmp_path)}
    answer = CliRunner().invoke(app, ["jobs", "list"], env=env)
    assert answer.exit_code == 4
    assert str(port) in answer.stderr
