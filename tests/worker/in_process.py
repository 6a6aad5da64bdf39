"""Attempts in this process: a real Redis and store, a double of the network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from rq import Retry

from jobs.connection import connect
from jobs.job_store import JobStore
from jobs.schema import JobState
from models.pipeline import StableSR
from tests.worker.double import Double
from tests.worker.processes import House
from worker.attempt import CURRENT, Attempt, Process
from worker.engine import Engine
from worker.metrics import WorkerMetrics
from worker.tasks import upscale
from worker.watchdog import Watchdog


@contextmanager
def serving(house: House, model: Double | None = None, **settings: Any) -> Iterator[Process]:
    """A process's shared parts around a model, without its threads but the engine's."""
    model = model or Double()
    values = house.settings.model_copy(update=settings)
    metrics = WorkerMetrics()
    engine = Engine(model.predict, metrics=metrics)
    engine.start()
    with connect(values) as connection:
        records = JobStore(connection)
        try:
            yield Process(
                settings=values,
                records=records,
                quick_records=records,
                store=house.store,
                model=cast(StableSR, model),
                engine=engine,
                metrics=metrics,
                watchdog=Watchdog(3600),
                leaving=threading.Event(),
                lose=lambda reason: None,
            )
        finally:
            engine.stop()


def try_job(process: Process, job_id: str, *, last: bool = False) -> Retry | None:
    """One attempt at a job."""
    return run(Attempt(process, job_id, worker="w", last=last))


def run(attempt: Attempt) -> Retry | None:
    token = CURRENT.set(attempt)
    try:
        return upscale(attempt.job_id)
    finally:
        CURRENT.reset(token)


def failure(house: House, job_id: str) -> str:
    """The type of problem that a job failed with."""
    job = house.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    return job.error.type
