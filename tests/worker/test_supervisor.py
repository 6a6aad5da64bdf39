"""Real worker processes on a real Redis: first with a double of the network, then the program with
its own: what it says when it cannot start, and what it does without its weights."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs.schema import JobState
from jobs.settings import Settings
from jobs.store import result_key
from models.checkpoints.files import note_absence, preset_folder
from models.presets import get_preset
from tests.redis_server import RedisServer
from tests.worker.double import (
    CRASH,
    DEVICE_ERROR,
    ERROR,
    HANG_ONCE,
    OUT_OF_MEMORY,
)
from tests.worker.processes import House, WorkerProcess, png, wait_for
from worker.heartbeat import EXIT_STALLED
from worker.supervisor import EXIT_DEVICE_LOST, main

PRESET = "stablesr-512"


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def served(own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house with one worker of two slots that lives through several tests."""
    house = House(own_redis.url, tmp_path_factory.mktemp("house"))
    with house.worker(step_s=0.03) as worker:
        house.ready()
        yield house
        house.queue.close()
        assert worker.exit_code is None, worker.log.read_text()


def test_a_job_goes_from_the_upload_to_the_result(served: House) -> None:
    job = served.ended(served.submit(png(10, 6), scale=3.0))
    assert job.state is JobState.SUCCEEDED
    assert job.attempt == 1
    assert job.error is None
    assert job.result is not None
    data = served.store.get(result_key(job.id))
    assert job.result.bytes == len(data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (job.result.width, job.result.height) == (30, 18)
    timings = job.timings
    assert timings is not None
    assert timings.denoise >= 4 * 0.03
    assert timings.total >= timings.queue + timings.load + timings.denoise


def test_progress_is_told_while_a_job_runs(served: House) -> None:
    job_id = served.submit(steps=60)
    served.reaches(job_id, 20)
    progress = served.job(job_id).progress
    assert progress is not None
    assert progress.stage == "denoise"
    assert progress.steps == 60
    assert 0.3 < progress.fraction < 0.9
    assert progress.eta_seconds is not None
    assert 0 < progress.eta_seconds < 60
    assert served.ended(job_id).state is JobState.SUCCEEDED


def test_jobs_in_both_slots_give_what_each_gives_alone(served: House) -> None:
    together = [served.submit(seed=seed, steps=20) for seed in (5, 6)]
    files = [served.store.get(result_key(served.ended(job).id)) for job in together]
    for seed, file in zip((5, 6), files, strict=True):
        alone = served.ended(served.submit(seed=seed, steps=20))
        assert served.store.get(result_key(alone.id)) == file
    assert files[0] != files[1]


def test_a_running_job_that_is_canceled_stops_within_a_step(served: House) -> None:
    job_id = served.submit(steps=1000)
    served.reaches(job_id, 2)
    assert served.queue.cancel(job_id).cancel_requested
    canceled = time.monotonic()
    job = served.ended(job_id, seconds=5)
    assert job.state is JobState.CANCELED
    # Progress, which also tells of a cancel, is noted at most four times a second.
    assert time.monotonic() - canceled < 2
    assert not served.store.exists(result_key(job_id))
    assert served.ended(served.submit()).state is JobState.SUCCEEDED


def test_a_job_that_takes_longer_than_a_lease_is_run_once(house: House) -> None:
    assert house.settings.worker_ttl_s == 2
    with house.worker(step_s=0.1):
        house.ready()
        job = house.ended(house.submit(steps=45))
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)


def test_a_broken_image_fails_at_once_and_the_worker_goes_on(served: House) -> None:
    job = served.ended(served.submit(png(64, 64)[:-30]))
    assert job.state is JobState.FAILED
    assert job.attempt == 1
    assert job.error is not None
    assert job.error.type == "image-truncated"
    assert served.ended(served.submit()).state is JobState.SUCCEEDED


def test_a_network_that_raises_fails_its_job_once_and_no_other(served: House) -> None:
    good = served.submit(steps=15)
    job = served.ended(served.submit(seed=ERROR))
    assert job.state is JobState.FAILED
    assert job.attempt == 1
    assert job.error is not None
    assert job.error.type == "internal-error"
    assert "like this image" not in job.error.detail
    assert served.ended(good).state is JobState.SUCCEEDED


def test_too_little_memory_fails_a_job_after_the_last_attempt(served: House) -> None:
    job = served.ended(served.submit(seed=OUT_OF_MEMORY))
    assert job.state is JobState.FAILED
    assert job.attempt == 3
    assert job.error is not None
    assert job.error.type == "out-of-memory"


def test_a_store_that_is_away_fails_no_job_and_the_register_says_who_waits(served: House) -> None:
    served.ended(served.submit())
    results = served.settings.blob_root / "results"
    aside = results.rename(results.with_name("aside"))
    results.touch()
    try:
        jobs = [served.submit() for _ in range(4)]
        said = "busy (2 jobs wait for the image store)"
        wait_for(lambda: served.queue.capacity().workers[0].condition == said, "both slots wait")
    finally:
        results.unlink()
        aside.rename(results)
    ends = [served.ended(job_id) for job_id in jobs]
    assert [(job.state, job.attempt) for job in ends] == 4 * [(JobState.SUCCEEDED, 1)]


def test_a_job_lives_through_a_restart_of_redis(served: House, own_redis: RedisServer) -> None:
    job_id = served.submit(steps=60)
    served.reaches(job_id, 5)
    own_redis.stop()
    time.sleep(1)
    own_redis.start()
    job = served.ended(job_id)
    assert job.state is JobState.SUCCEEDED
    assert served.ended(served.submit()).state is JobState.SUCCEEDED


def test_every_log_line_of_a_worker_is_json(served: House) -> None:
    served.ended(served.submit())
    lines = (served.folder / "worker-1.log").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    assert {"worker ready", "job started", "job done"} <= set(events)


def test_a_worker_that_still_loads_its_model_is_seen_and_leaves_at_once(house: House) -> None:
    with house.worker(load_s=3600) as worker:
        wait_for(lambda: len(house.queue.capacity().workers) == 1, "the worker is registered")
        [info] = house.queue.capacity().workers
        assert info.state == "starting"
        worker.signal(signal.SIGTERM)
        assert worker.wait(5) == 0
    assert house.queue.capacity().workers == []


def test_a_worker_compiles_before_it_is_ready_and_says_how_far_it_is(house: House) -> None:
    with house.worker(compile="on") as worker:
        wait_for(lambda: _compiled(house) == (0, 2), "the worker compiles")
        [info] = house.queue.capacity().workers
        assert (info.state, info.ready) == ("compiling", False)
        job_id = house.submit()
        (house.folder / "compiled").touch()
        assert house.ended(job_id).state is JobState.SUCCEEDED
        [info] = house.queue.capacity().workers
        assert (info.ready, info.compiled) == (True, None)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_a_worker_that_still_compiles_leaves_at_once(house: House) -> None:
    with house.worker(compile="on") as worker:
        wait_for(lambda: _compiled(house) == (0, 2), "the worker compiles")
        worker.signal(signal.SIGTERM)
        assert worker.wait(5) == 0
    assert house.queue.capacity().workers == []


def _compiled(house: House) -> tuple[int, int] | None:
    return next((worker.compiled for worker in house.queue.capacity().workers), None)


def test_a_job_whose_worker_is_killed_runs_again_and_ends_once(house: House) -> None:
    with house.worker(step_s=0.05) as killed, house.worker(step_s=0.05) as other:
        house.ready(2)
        job_id = house.submit(steps=60)
        house.reaches(job_id, 3)
        pids = {worker.name: worker.pid for worker in house.queue.capacity().workers}
        running = house.job(job_id).worker or ""
        mine = next(pid for name, pid in pids.items() if running.startswith(name))
        victim = killed if killed.pid == mine else other
        died = time.monotonic()
        victim.signal(signal.SIGKILL)
        house.reaches(job_id, 1, attempt=2)
        # worker_ttl_s (2 s) and a heartbeat (0.5 s); the defaults give 25 s by the same sum.
        assert time.monotonic() - died < 8
        job = house.ended(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.attempt == 2


def test_a_job_that_kills_its_workers_fails_after_three_and_takes_no_other_along(
    house: House,
) -> None:
    poison = house.submit(seed=CRASH)
    innocent = [house.submit(seed=seed, steps=30) for seed in (1, 2)]
    deaths = 0
    while not all(house.job(job).state.is_final for job in (poison, *innocent)):
        with house.worker(step_s=0.02) as worker:
            wait_for(
                lambda: (
                    worker.exit_code is not None
                    or all(house.job(job).state.is_final for job in (poison, *innocent))
                ),
                "the worker dies or all jobs end",
            )
            deaths += worker.exit_code == -signal.SIGKILL
    assert deaths == 3
    job = house.job(poison)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.type == "worker-lost"
    assert [house.job(job).state for job in innocent] == [JobState.SUCCEEDED] * 2


@pytest.mark.parametrize(
    ("seed", "exit_code"), [(HANG_ONCE, EXIT_STALLED), (DEVICE_ERROR, EXIT_DEVICE_LOST)]
)
def test_a_worker_that_is_of_no_use_ends_itself_and_the_next_does_its_job(
    house: House, seed: int, exit_code: int
) -> None:
    job_id = house.submit(seed=seed)
    with house.worker(job_timeout_s=6) as first, house.worker(job_timeout_s=6) as second:
        workers: list[WorkerProcess] = [first, second]
        wait_for(lambda: any(w.exit_code is not None for w in workers), "one ends")
        codes = [w.exit_code for w in workers]
        assert exit_code in codes
        job = house.ended(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.attempt == 2


def _program(settings: Settings, weights: Path | None) -> int:
    if weights is not None:
        os.environ["STABLESR_WEIGHTS"] = str(weights)
    return main(settings)


def program(house: House, weights: Path | None = None, **settings: Any) -> WorkerProcess:
    """The process of the real program; its log is the house's."""
    changed = house.settings.model_copy(update=settings)
    return WorkerProcess(_program, changed, house.folder / "log", weights)


def lines(house: House) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (house.folder / "log").read_text().splitlines()]


def terminate(worker: WorkerProcess, house: House) -> None:
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0, lines(house)
    wait_for(lambda: house.queue.capacity().workers == [], "the worker is off the register")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda:7"}, "STABLESR_DEVICE is 'cuda:7'"),
        ({"blob_root": Path("/dev/null/blobs")}, "/dev/null/blobs"),
    ],
)
def test_a_worker_that_cannot_start_says_why_and_ends_with_1(
    house: House, settings: dict[str, Any], message: str
) -> None:
    with program(house, **settings) as worker:
        assert worker.wait(60) == 1
    last = lines(house)[-1]
    assert last["event"] == "worker not started"
    assert message in last["reason"]
    assert "Traceback" not in (house.folder / "log").read_text()
    assert house.queue.capacity().workers == []


def test_a_worker_upscales_with_the_embedded_weights_and_ends_with_0(house: House) -> None:
    with program(house) as worker:
        job = house.ended(house.submit(png(24, 16), steps=2, scale=4.0), seconds=90)
        assert job.state is JobState.SUCCEEDED, lines(house)
        with Image.open(io.BytesIO(house.store.get(result_key(job.id)))) as image:
            assert image.size == (96, 64)
        [info] = house.queue.capacity().workers
        assert (info.preset, info.device, info.slots) == ("tiny", "cpu", 2)
        terminate(worker, house)


def test_a_worker_without_its_weights_is_not_ready_until_they_come(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    monkeypatch.setenv("STABLESR_WEIGHTS", str(weights))
    folder = weights / PRESET

    def not_ready(reason: str) -> None:
        wait_for(
            lambda: (
                [(w.state, w.reason) for w in house.queue.capacity().workers]
                == [("not_ready", reason)]
            ),
            f"the worker says that {reason}",
            seconds=60,
        )

    with program(house, weights, preset=PRESET) as worker:
        not_ready("its weights are not on the worker's machine")
        [line] = [line for line in lines(house) if line["event"] == "worker not ready"]
        assert (line["level"], line["preset"]) == ("error", PRESET)
        assert line["reason"] == "its weights are not on the worker's machine"
        assert str(weights) in line["detail"]
        # What keeps them away is said as it is now, and not for weights that are there but unfit.
        for reason in ("its licence is not accepted", "the hub does not answer"):
            note_absence(get_preset(PRESET), reason)
            not_ready(reason)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        not_ready("its weights on the worker's machine cannot be used")

        folder.rename(weights / "unfit")
        shutil.copytree(preset_folder(get_preset("tiny")), weights / "aside")
        (weights / "aside" / "config.json").touch()
        (weights / "aside").rename(folder)
        house.ready()
        [info] = house.queue.capacity().workers
        assert (info.preset, info.reason) == (PRESET, None)
        job = house.ended(house.submit(png(12, 8), steps=1, preset=PRESET), seconds=120)
        assert job.state is JobState.SUCCEEDED, lines(house)
        terminate(worker, house)


def test_a_worker_that_waits_for_its_weights_ends_when_it_is_asked_to(
    house: House, tmp_path: Path
) -> None:
    with program(house, tmp_path / "weights", preset=PRESET, worker_ttl_s=600) as worker:
        wait_for(
            lambda: [info.state for info in house.queue.capacity().workers] == ["not_ready"],
            "the worker is not ready",
            seconds=60,
        )
        terminate(worker, house)
