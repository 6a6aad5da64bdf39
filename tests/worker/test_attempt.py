"""How far a job is, and what becomes of it when an attempt ends without a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from torch import Tensor

from jobs.connection import connect
from jobs.errors import QueueUnavailable
from jobs.job_store import JobStore
from jobs.schema import Job, JobState, Origin, Progress
from jobs.store import result_key
from models.errors import (
    InvalidOption,
    MissingTextTower,
    ModelError,
    NotEnoughMemory,
    ScratchFull,
)
from models.parameters import UpscaleParameters
from models.sampling import StepRequest
from tests.worker.double import ERROR, OUT_OF_MEMORY, Counting, Double, Encoded
from tests.worker.in_process import failure, serving, try_job
from tests.worker.processes import House
from worker.attempt import Attempt, LeaseLost, Process
from worker.tasks import upscale


@pytest.fixture
def records(house: House) -> Iterator[JobStore]:
    """The records as another process sees them."""
    with connect(house.settings) as connection:
        yield JobStore(connection)


@pytest.mark.parametrize(
    "refusal",
    [
        InvalidOption("tile_overlap is 56, but must be smaller than the tile of 8."),
        MissingTextTower("These weights hold no text tower."),
    ],
)
def test_parameters_that_the_pipeline_refuses_fail_the_job_with_its_sentence(
    house: House, refusal: ModelError
) -> None:
    class Picky(Double):
        def prepare(
            self, image: Tensor, options: object, on_progress: Callable[[float], None]
        ) -> Any:
            raise refusal

    with serving(house, Picky()) as process:
        job_id = house.submit()
        try_job(process, job_id)
    assert failure(house, job_id) == "invalid-parameters"
    error = house.job(job_id).error
    assert error is not None
    assert error.detail == str(refusal)


def test_a_job_that_takes_too_long_fails(house: House) -> None:
    with serving(house, Double(step_s=0.1), job_timeout_s=1) as process:
        job_id = house.submit(steps=500)
        assert not try_job(process, job_id)
    assert failure(house, job_id) == "job-timed-out"


def test_a_job_is_stopped_at_the_step_after_its_own_deadline(house: House) -> None:
    with serving(house, Double(step_s=0.2)) as process:
        job_id = house.submit(steps=100, origin=Origin(expires_in=1))
        try_job(process, job_id)
        error = house.job(job_id).error
        assert error is not None
        assert (error.type, "expires_in" in error.detail) == ("job-timed-out", True)
        # One that is further away than the limit of every job changes nothing.
        try_job(process, job_id := house.submit(origin=Origin(expires_in=86_400)))
        assert house.job(job_id).state is JobState.SUCCEEDED


def test_a_job_of_a_process_that_leaves_is_run_again(house: House, process: Process) -> None:
    process.leave(within_s=0)
    job_id = house.submit()
    assert try_job(process, job_id)
    assert house.job(job_id).state is JobState.QUEUED


class Interfered(Double):
    """Has something done to the job between its steps."""

    def __init__(self, interfere: Callable[[], object]) -> None:
        super().__init__()
        self._interfere = interfere

    def predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        if requests[0].step == 1:
            self._interfere()
        return super().predict(requests)


def test_a_run_whose_job_another_worker_has_started_says_nothing(
    house: House, records: JobStore
) -> None:
    job_id = house.submit()
    model = Interfered(lambda: records.start(job_id, "other"))
    with serving(house, model) as process, pytest.raises(LeaseLost):
        try_job(process, job_id)
    job = house.job(job_id)
    assert (job.state, job.worker) == (JobState.PROCESSING, "other")
    assert not house.store.exists(result_key(job_id))


def test_a_run_whose_job_waits_again_says_nothing(house: House, records: JobStore) -> None:
    job_id = house.submit()
    model = Interfered(lambda: records.requeue(job_id))
    with serving(house, model) as process, pytest.raises(LeaseLost):
        try_job(process, job_id)
    assert house.job(job_id).state is JobState.QUEUED


def test_a_run_that_the_supervisor_has_put_back_says_nothing(house: House) -> None:
    job_id = house.submit()
    model = Interfered(lambda: attempt.take_back())
    with serving(house, model) as process:
        attempt = Attempt(process, job_id, worker="w")
        with pytest.raises(LeaseLost):
            upscale(attempt)
    assert house.job(job_id).state is JobState.PROCESSING
    assert not house.store.exists(result_key(job_id))


def test_of_slot_and_supervisor_the_first_has_the_last_word(process: Process) -> None:
    settled, lost = (Attempt(process, "a", worker="w") for _ in range(2))
    settled.claim()
    assert not settled.take_back()
    settled.claim()
    assert lost.take_back()
    assert not lost.take_back()
    with pytest.raises(LeaseLost):
        lost.claim()


def test_a_fault_that_another_attempt_may_mend_is_raised_and_the_record_left(
    house: House, process: Process
) -> None:
    job_id = house.submit(seed=OUT_OF_MEMORY)
    with pytest.raises(RuntimeError, match="no memory"):
        try_job(process, job_id)
    assert house.job(job_id).state is JobState.PROCESSING


def test_the_last_attempt_says_what_was_wrong(house: House, process: Process) -> None:
    job_id = house.submit(seed=OUT_OF_MEMORY)
    with pytest.raises(RuntimeError, match="no memory"):
        try_job(process, job_id, last=True)
    assert failure(house, job_id) == "out-of-memory"


def test_a_fault_of_the_network_itself_is_not_tried_twice(house: House, process: Process) -> None:
    job_id = house.submit(seed=ERROR)
    assert not try_job(process, job_id)
    assert failure(house, job_id) == "internal-error"


@pytest.mark.parametrize("error", [NotEnoughMemory("no plan fits"), ScratchFull("no room")])
def test_an_image_without_room_is_tried_again_alone_and_then_fails(
    house: House, error: Exception
) -> None:
    class Full(Double):
        def prepare(
            self, image: Tensor, options: UpscaleParameters, on_progress: Callable[[float], None]
        ) -> Encoded:
            raise error

    with serving(house, Full()) as process:
        job_id = house.submit()
        with pytest.raises(type(error)):
            try_job(process, job_id)
        assert house.job(job_id).state is JobState.PROCESSING
        with pytest.raises(type(error)):
            try_job(process, job_id, last=True)
    assert failure(house, job_id) == "out-of-memory"


def test_the_stages_are_written_in_order_and_the_fraction_only_grows(house: House) -> None:
    writes: list[Progress] = []

    class Listening(JobStore):
        def progress(self, job_id: str, progress: Progress, *, worker: str | None = None) -> Job:
            writes.append(progress)
            return super().progress(job_id, progress, worker=worker)

    with serving(house, Double(step_s=0.1)) as process, connect(house.settings) as connection:
        process.records = Listening(connection)
        job_id = house.submit(steps=12)
        try_job(process, job_id)
    stages = list(dict.fromkeys(progress.stage for progress in writes))
    assert stages == ["load", "encode", "denoise", "decode", "save"]
    fractions = [progress.fraction for progress in writes]
    assert fractions == sorted(fractions)
    steps = [progress for progress in writes if progress.stage == "denoise"]
    # Four a second, not one a step.
    timings = house.job(job_id).timings
    assert timings is not None
    assert 3 <= len(steps) <= 2 + 4 * timings.denoise
    etas = [progress.eta_seconds for progress in steps if progress.eta_seconds is not None]
    assert etas
    assert all(0 < eta < 10 for eta in etas)


def test_progress_that_cannot_be_written_does_not_hold_up_the_job(
    house: House, process: Process
) -> None:
    class Silent(JobStore):
        def progress(self, job_id: str, progress: Progress, *, worker: str | None = None) -> Job:
            raise QueueUnavailable("Redis does not answer.")

    with connect(house.settings) as connection:
        job_id = house.submit()
        process.records = Silent(connection)
        try_job(process, job_id)
    assert house.job(job_id).state is JobState.SUCCEEDED


@pytest.mark.parametrize("stage", ["encode", "decode"])
def test_a_job_canceled_between_two_strips_ends_there_and_frees_what_it_held(
    house: House, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.attempt.WRITE_S", 0.0)
    stages: list[str] = []

    class Canceling(Counting):
        def prepare(self, image: Tensor, options: UpscaleParameters, on_progress: Any) -> Encoded:
            if stage == "encode":
                house.queue.cancel(job_id)
            encoded_image = super().prepare(image, options, on_progress)
            stages.append("encode")
            return encoded_image

        def rows(
            self, image: Encoded, latent: Tensor, options: UpscaleParameters, on_progress: Any
        ) -> Iterator[Tensor]:
            house.queue.cancel(job_id)
            rows = super().rows(image, latent, options, on_progress)
            stages.append("decode")
            return rows

    model = Canceling()
    with serving(house, model) as process:
        job_id = house.submit()
        try_job(process, job_id)
        assert not house.store.exists(result_key(job_id))
    assert house.job(job_id).state is JobState.CANCELED
    assert stages == ([] if stage == "encode" else ["encode"])
    assert model.count == 0
