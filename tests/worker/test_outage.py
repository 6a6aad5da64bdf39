"""A store that is away is waited for; one that fails for a single blob fails the attempt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from jobs.errors import StoreUnavailable
from jobs.schema import JobState
from jobs.store import result_key
from tests.worker.in_process import failure, serving, tiles, try_job
from tests.worker.processes import House, wait_for
from worker.attempt import Process


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.outage.FIRST_PAUSE_S", 0.05)


@contextmanager
def waiting(
    house: House, process: Process, job_id: str, folder: str = "results"
) -> Iterator[Future[bool]]:
    """An attempt that waits because no blob can be read or written in a folder of the store, until
    the block ends."""
    path = house.settings.blob_root / folder
    path.mkdir(exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        aside = path.rename(path.with_name("aside"))
        path.touch()
        try:
            attempt = pool.submit(try_job, process, job_id)
            wait_for(lambda: len(process.awaiting_store) == 1, "the job waits")
            yield attempt
        finally:
            path.unlink()
            aside.rename(path)


@pytest.mark.parametrize("folder", ["inputs", "results"])
def test_a_job_waits_for_its_store_with_what_it_has_computed(
    house: House, process: Process, folder: str
) -> None:
    try_job(process, house.submit())
    count = tiles(process)
    assert count is not None
    job_id = house.submit()
    with waiting(house, process, job_id, folder):
        assert house.job(job_id).state is JobState.PROCESSING
    job = house.job(job_id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    assert tiles(process) == 2 * count
    registry = process.metrics.registry
    assert registry.get_sample_value("stablesr_store_outages_total") == 1
    assert not process.awaiting_store


def test_the_time_of_an_outage_counts_for_no_limit(house: House) -> None:
    with serving(house, job_timeout_s=1) as process:
        job_id = house.submit()
        with waiting(house, process, job_id, "inputs"):
            end = time.monotonic() + 1.1
            wait_for(lambda: time.monotonic() > end, "the limit is over")
            assert process.watchdog.stall() is None
        job = house.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.timings is not None
    assert sum(job.timings.model_dump(exclude={"queue", "total"}).values()) < 1


def test_a_job_that_waits_for_its_store_can_be_canceled(house: House, process: Process) -> None:
    job_id = house.submit()
    with waiting(house, process, job_id) as attempt:
        house.queue.cancel(job_id)
        assert attempt.result(10) is False
    assert house.job(job_id).state is JobState.CANCELED


def test_a_job_that_waits_for_its_store_goes_back_when_the_process_leaves(
    house: House, process: Process
) -> None:
    job_id = house.submit()
    with waiting(house, process, job_id) as attempt:
        process.leave()
        assert attempt.result(10) is True
    assert house.job(job_id).state is JobState.QUEUED


def test_a_store_that_fails_for_one_blob_alone_fails_the_attempt_at_its_second_failure(
    house: House, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    put = process.store.put

    def broken(key: str, data: Any, fields: Any = None) -> None:
        if key == result_key(job_id):
            tries.append(key)
            raise StoreUnavailable("/srv/secret is full.")
        put(key, data, fields)

    job_id = house.submit()
    monkeypatch.setattr(process.store, "put", broken)
    with pytest.raises(StoreUnavailable):
        try_job(process, job_id, last=True)
    assert len(tries) == 2
    assert failure(house, job_id) == "store-unavailable"
    error = house.job(job_id).error
    assert error is not None
    assert "secret" not in error.detail
    assert not list((house.settings.blob_root / "results").iterdir())
