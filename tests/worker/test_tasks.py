"""The task itself, in this process: a real Redis and store, a double of the network."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rq import Retry
from torch import Tensor

from jobs.connection import connect
from jobs.errors import StoreUnavailable
from jobs.job_store import JobStore
from jobs.schema import Job, JobState, Progress
from jobs.settings import Settings
from jobs.store import input_key, result_key
from models.errors import InvalidOption, MissingTextTower, ModelError
from models.sampling import StepRequest
from tests.worker.double import ERROR, OUT_OF_MEMORY, Double
from tests.worker.processes import House, png
from worker.context import Process, Run, entered
from worker.engine import Engine
from worker.errors import LeaseLost
from worker.metrics import WorkerMetrics
from worker.tasks import upscale
from worker.watchdog import Watchdog


@pytest.fixture
def process(house: House) -> Iterator[Process]:
    with serving(house, Double()) as made:
        yield made


class serving:
    """A process's shared parts around a model, without its threads but the engine's."""

    def __init__(self, house: House, model: Double, **settings: Any) -> None:
        self._house = house
        self._model = model
        self._settings = house.settings.model_copy(update=settings)

    def __enter__(self) -> Process:
        self._connection = connect(self._settings)
        records = JobStore(self._connection)
        self._metrics = WorkerMetrics()
        self._engine = Engine(self._model, metrics=self._metrics)
        self._engine.start()
        return Process(
            settings=self._settings,
            records=records,
            quick_records=records,
            store=self._house.store,
            model=self._model,
            engine=self._engine,
            metrics=self._metrics,
            watchdog=Watchdog(3600),
            leaving=threading.Event(),
            lose=lambda reason: None,
        )

    def __exit__(self, *error: object) -> None:
        self._engine.stop()
        self._connection.close()


@pytest.fixture
def records(house: House) -> Iterator[JobStore]:
    """The records as somebody else sees them."""
    with connect(house.settings) as connection:
        yield JobStore(connection)


def attempt(process: Process, job_id: str, *, last: bool = False) -> Retry | None:
    with entered(Run(process, job_id, worker="w", last=last)):
        return upscale(job_id)


def failure(house: House, job_id: str) -> str:
    job = house.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    return job.error.type


def test_a_result_that_an_earlier_attempt_stored_is_not_computed_again(
    house: House, process: Process
) -> None:
    job_id = house.submit()
    process.records.start(job_id, "lost")
    process.records.requeue(job_id)
    # Nor decoded: what was stored is whole, and nothing that could be decoded is here.
    stored = bytes(range(256)) * 5000
    house.store.put(result_key(job_id), stored)
    attempt(process, job_id)
    job = house.job(job_id)
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert (job.result.width, job.result.height) == (20, 12)
    assert job.result.bytes == len(stored)
    assert job.result.sha256 == hashlib.sha256(stored).hexdigest()
    assert process.engine.calls == 0


def test_an_attempt_after_the_end_changes_nothing(house: House, process: Process) -> None:
    job_id = house.submit()
    attempt(process, job_id)
    before = house.job(job_id)
    calls = process.engine.calls
    assert attempt(process, job_id) is None
    assert house.job(job_id) == before
    assert process.engine.calls == calls


def test_two_attempts_give_the_same_bytes(house: House, process: Process) -> None:
    files = []
    for _ in range(2):
        job_id = house.submit(seed=77)
        attempt(process, job_id)
        files.append(house.store.get(result_key(job_id)))
    assert files[0] == files[1]


def test_transparency_comes_out_enlarged(house: House, process: Process) -> None:
    values = np.full((8, 8, 4), 200, dtype=np.uint8)
    values[:, 4:, 3] = 0
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    job_id = house.submit(file.getvalue(), scale=4.0)
    attempt(process, job_id)
    with Image.open(io.BytesIO(house.store.get(result_key(job_id)))) as image:
        assert image.mode == "RGBA"
        assert image.size == (32, 32)
        alpha = np.asarray(image.getchannel("A"))
    assert (alpha[:, :8] > 190).all()
    assert (alpha[:, 24:] < 10).all()


@pytest.mark.parametrize(
    ("format", "media_type"),
    [("png", "image/png"), ("webp", "image/webp"), ("jpeg", "image/jpeg")],
)
def test_the_result_is_of_the_format_that_was_asked_for(
    house: House, process: Process, format: str, media_type: str
) -> None:
    job_id = house.submit(output_format=format)
    attempt(process, job_id)
    result = house.job(job_id).result
    assert result is not None
    assert result.media_type == media_type
    with Image.open(io.BytesIO(house.store.get(result.key))) as image:
        assert image.format == format.upper()


def test_a_result_of_too_many_pixels_is_refused_before_the_network_sees_it(house: House) -> None:
    with serving(house, Double(), max_output_pixels=200) as process:
        job_id = house.submit(scale=2.0)
        attempt(process, job_id)
        assert process.engine.calls == 0
    assert failure(house, job_id) == "output-too-large"


def test_a_webp_that_no_webp_can_hold_is_refused(house: House, process: Process) -> None:
    job_id = house.submit(png(2000, 1), scale=16.0, output_format="webp")
    attempt(process, job_id)
    assert failure(house, job_id) == "output-too-large"


def test_an_image_larger_than_its_header_said_to_the_service_is_refused(house: House) -> None:
    with serving(house, Double(), max_input_pixels=50) as process:
        job_id = house.submit(png(10, 6))
        attempt(process, job_id)
    assert failure(house, job_id) == "image-too-large"


def test_an_upload_that_is_gone_fails_the_job(house: House, process: Process) -> None:
    job_id = house.submit()
    house.store.delete(input_key(job_id))
    assert attempt(process, job_id) is None
    assert failure(house, job_id) == "blob-not-found"


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
        def prepare(self, image: Tensor, options: object, tell: Callable[[float], None]) -> Any:
            raise refusal

    with serving(house, Picky()) as process:
        job_id = house.submit()
        attempt(process, job_id)
    assert failure(house, job_id) == "invalid-parameters"
    error = house.job(job_id).error
    assert error is not None
    assert error.detail == str(refusal)


def test_a_job_that_takes_too_long_fails(house: House) -> None:
    with serving(house, Double(step_s=0.4), job_timeout_s=1) as process:
        job_id = house.submit(steps=500)
        assert attempt(process, job_id) is None
    assert failure(house, job_id) == "job-timed-out"


def test_a_job_of_a_process_that_leaves_is_run_again(house: House, process: Process) -> None:
    process.leaving.set()
    job_id = house.submit()
    outcome = attempt(process, job_id)
    assert isinstance(outcome, Retry)
    assert outcome.enqueue_at_front
    assert house.job(job_id).state is JobState.QUEUED


def test_a_run_whose_job_another_worker_has_started_says_nothing(
    house: House, records: JobStore
) -> None:
    class Overtaken(Double):
        def predict(
            self, requests: Sequence[StepRequest], poll: Callable[[], None] = lambda: None
        ) -> list[Tensor]:
            if requests[0].step == 1:
                records.start(job_id, "other")
            return super().predict(requests)

    job_id = house.submit()
    with serving(house, Overtaken()) as process, pytest.raises(LeaseLost):
        attempt(process, job_id)
    job = house.job(job_id)
    assert (job.state, job.worker) == (JobState.PROCESSING, "other")
    assert not house.store.exists(result_key(job_id))


def test_a_run_whose_job_waits_again_says_nothing(house: House, records: JobStore) -> None:
    class Recovered(Double):
        def predict(
            self, requests: Sequence[StepRequest], poll: Callable[[], None] = lambda: None
        ) -> list[Tensor]:
            if requests[0].step == 1:
                records.requeue(job_id)
            return super().predict(requests)

    job_id = house.submit()
    with serving(house, Recovered()) as process, pytest.raises(LeaseLost):
        attempt(process, job_id)
    assert house.job(job_id).state is JobState.QUEUED


def test_a_run_that_the_supervisor_has_put_back_says_nothing(
    house: House, process: Process
) -> None:
    job_id = house.submit()
    run = Run(process, job_id, worker="w")
    assert run.settle("supervisor")
    with entered(run), pytest.raises(LeaseLost):
        upscale(job_id)
    assert house.job(job_id).state is JobState.PROCESSING


def test_a_fault_that_another_attempt_may_mend_is_raised_and_the_record_left(
    house: House, process: Process
) -> None:
    job_id = house.submit(seed=OUT_OF_MEMORY)
    with pytest.raises(RuntimeError, match="no memory"):
        attempt(process, job_id)
    assert house.job(job_id).state is JobState.PROCESSING


def test_the_last_attempt_says_what_was_wrong(house: House, process: Process) -> None:
    job_id = house.submit(seed=OUT_OF_MEMORY)
    with pytest.raises(RuntimeError, match="no memory"):
        attempt(process, job_id, last=True)
    assert failure(house, job_id) == "out-of-memory"


def test_a_fault_of_the_network_itself_is_not_tried_twice(house: House, process: Process) -> None:
    job_id = house.submit(seed=ERROR)
    assert attempt(process, job_id) is None
    assert failure(house, job_id) == "internal-error"


def test_the_stages_are_told_in_order_and_the_fraction_only_grows(house: House) -> None:
    told: list[Progress] = []

    class Listening(JobStore):
        def progress(self, job_id: str, progress: Progress, *, worker: str | None = None) -> Job:
            told.append(progress)
            return super().progress(job_id, progress, worker=worker)

    with serving(house, Double(step_s=0.1)) as process, connect(house.settings) as connection:
        listening = replace(process, quick_records=Listening(connection))
        attempt(listening, house.submit(steps=12))
    stages = list(dict.fromkeys(progress.stage for progress in told))
    assert stages == ["load", "encode", "denoise", "decode", "save"]
    fractions = [progress.fraction for progress in told]
    assert fractions == sorted(fractions)
    steps = [progress for progress in told if progress.stage == "denoise"]
    # 1.2 s of steps at four notes a second, not one note a step.
    assert 3 <= len(steps) <= 7
    etas = [progress.eta_seconds for progress in steps if progress.eta_seconds is not None]
    assert etas
    assert all(0 < eta < 10 for eta in etas)


def test_progress_that_cannot_be_noted_does_not_hold_up_the_job(
    house: House, process: Process
) -> None:
    with connect(Settings(redis_url="redis://127.0.0.1:1/0")) as nowhere:
        job_id = house.submit()
        attempt(replace(process, quick_records=JobStore(nowhere)), job_id)
    assert house.job(job_id).state is JobState.SUCCEEDED


def test_a_store_that_fails_twice_does_not_tell_clients_where_it_is(
    house: House, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(key: str, data: object) -> None:
        raise StoreUnavailable("/srv/secret is full.")

    job_id = house.submit()
    monkeypatch.setattr(process.store, "put", broken)
    with pytest.raises(StoreUnavailable):
        attempt(process, job_id, last=True)
    assert failure(house, job_id) == "store-unavailable"
    error = house.job(job_id).error
    assert error is not None
    assert "secret" not in error.detail
