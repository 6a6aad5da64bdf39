"""How far a job is, told and asked for while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from jobs.connection import connect
from jobs.errors import QueueUnavailable
from jobs.job_store import JobStore
from jobs.schema import Job, JobState, Progress
from jobs.store import result_key
from models.parameters import UpscaleParameters
from tests.worker.double import Counting, Double, Encoded
from tests.worker.in_process import serving, try_job
from tests.worker.processes import House
from worker.attempt import Process


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
