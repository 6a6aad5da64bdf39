"""Attempts in this process: a real Redis and store, a double of the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from jobs.connection import connect
from jobs.job_store import JobStore
from jobs.schema import JobState
from models.pipeline import StableSR
from tests.worker.double import Double
from tests.worker.processes import House
from worker.attempt import Attempt, Process
from worker.heartbeat import end_process
from worker.metrics import WorkerMetrics
from worker.tasks import upscale


@contextmanager
def serving(house: House, model: Double | None = None, **settings: Any) -> Iterator[Process]:
    """A process's shared parts around a model, without its threads but the engine's."""
    model = model or Double()
    values = house.settings.model_copy(update=settings)
    with connect(values) as connection:
        process = Process(
            values,
            JobStore(connection),
            house.store,
            cast(StableSR, model),
            WorkerMetrics(),
            lose=lambda reason: None,
            on_stall=end_process,
        )
        process.engine.thread.start()
        try:
            yield process
        finally:
            process.engine.stop()


def try_job(process: Process, job_id: str, *, last: bool = False) -> bool:
    """One attempt at a job."""
    return upscale(Attempt(process, job_id, worker="w", last=last))


def tiles(process: Process) -> float | None:
    """How many the network has predicted."""
    return process.metrics.registry.get_sample_value("stablesr_tiles_total")


def failure(house: House, job_id: str) -> str:
    """The type of problem that a job failed with."""
    job = house.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    return job.error.type
