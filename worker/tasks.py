"""The one thing a worker does: upscale the image of a job.

A run may happen twice (a worker was lost, or the queue only thought so), so it is idempotent: the
result's key follows from the job's id, its bytes follow from the parameters and their seed, and
a result that is already in the store is what the run ends with.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import structlog
import torch
from rq import Retry
from torch import Tensor

from jobs.errors import (
    ImageError,
    JobEnded,
    JobFault,
    JobNotFound,
    JobsError,
    JobTimedOut,
    OutOfMemory,
    OutputTooLarge,
    Problem,
    QueueUnavailable,
    StoreUnavailable,
    WrongState,
)
from jobs.rq_adapter import run_again
from jobs.schema import Job, ResultInfo
from jobs.store import input_key, result_key
from models.errors import (
    InvalidOption,
    MissingTextTower,
    NotEnoughMemory,
    NotFinite,
    ScratchFull,
)
from models.geometry import output_size
from models.parameters import UpscaleParameters
from worker.context import Run, current_run
from worker.device_lock import DeviceTaken, Pause
from worker.errors import (
    Canceled,
    Interrupted,
    LeaseLost,
    TimedOut,
    is_device_lost,
    is_out_of_memory,
)
from worker.images import MEDIA_TYPES, DecodedImage, check_side, decode, rows_of, write
from worker.progress import Reporter

__all__ = ["upscale"]

log = structlog.get_logger(__name__)

T = TypeVar("T")


def upscale(job_id: str) -> Retry | None:
    """Run a job to its end. Returns what RQ has to do next, which is nothing or to run it again.

    A job that cannot succeed is failed here and is done for RQ. Only what another attempt may
    mend is raised: the store or Redis out of reach, memory, the device.
    """
    run = current_run()
    # Every line of the run carries both ids; which request it was the record says when it starts.
    with structlog.contextvars.bound_contextvars(job=job_id, request_id=None):
        try:
            return _run(run)
        except (JobEnded, JobNotFound) as error:
            # Canceled while it waited, or finished by an earlier attempt: there is nothing to do.
            log.info("job needs nothing", reason=error.detail)
            return None
        except WrongState as error:
            raise LeaseLost(error.detail) from error


def _run(run: Run) -> Retry | None:
    records, job_id, worker = run.process.records, run.job_id, run.worker
    try:
        with run.process.device.job(alone=run.alone, poll=run.check):
            _attempt(run)
    except DeviceTaken:
        # Not begun, so the record still says queued: only RQ has to be told.
        _settle(run)
        log.info("job given back, another one runs alone", job=job_id)
        return run_again()
    except Interrupted:
        _settle(run)
        _insist(run, lambda: records.requeue(job_id, worker=worker))
        log.info("job put back", job=job_id)
        return run_again()
    except Canceled:
        _settle(run)
        _insist(run, lambda: records.stop(job_id, worker=worker))
        log.info("job canceled", job=job_id)
    except (LeaseLost, WrongState, JobNotFound):
        raise
    # Whatever else ends an attempt is the job's failure and not the worker's.
    except Exception as error:
        _failed(run, error)
    return None


def _failed(run: Run, error: Exception) -> None:
    """Fail the job, or raise `error` when another attempt may mend it."""
    log.warning("attempt failed", job=run.job_id, exc_info=not isinstance(error, ImageError))
    mendable = (
        isinstance(error, StoreUnavailable | QueueUnavailable)
        or _out_of_memory(error)
        or is_device_lost(error)
    )
    if run.last or not mendable:
        _settle(run)
        problem = _problem(run, error)
        _insist(run, lambda: run.process.records.fail(run.job_id, problem, worker=run.worker))
    if is_device_lost(error):
        run.process.lose(str(error))
    if mendable:
        raise error


def _problem(run: Run, error: Exception) -> Problem:
    """What the client is told; the log has the rest."""
    if isinstance(error, ImageError):
        return error.problem()
    if isinstance(error, TimedOut):
        limit = run.process.settings.job_timeout_s
        return JobTimedOut(
            f"The job ran for its limit of {limit} seconds without an end; "
            "a smaller image, scale or number of steps takes less.",
            limit_seconds=limit,
        ).problem()
    if isinstance(error, InvalidOption | MissingTextTower):
        return Problem(
            type="invalid-parameters", title="The parameters do not fit", detail=str(error)
        )
    if isinstance(error, NotFinite):
        return JobFault(str(error)).problem()
    if isinstance(error, StoreUnavailable):
        detail = "The worker could not use the image store, twice; submit the image again later."
        return StoreUnavailable(detail).problem()
    if _out_of_memory(error):
        detail = "The worker has too little memory for this image; ask for a smaller scale."
        return OutOfMemory(detail).problem()
    if isinstance(error, JobsError) and not isinstance(error, JobFault | QueueUnavailable):
        return error.problem()
    return JobFault(
        "The worker could not finish the job because of a fault of its own; "
        "its log says more under the job's id."
    ).problem()


def _out_of_memory(error: Exception) -> bool:
    """Whether the image did not fit; it may when it is alone, or on another worker."""
    return is_out_of_memory(error) or isinstance(error, NotEnoughMemory | ScratchFull)


def _attempt(run: Run) -> None:
    process = run.process
    run.check()
    run.start()
    job = _insist(run, lambda: process.records.start(run.job_id, run.worker))
    structlog.contextvars.bind_contextvars(request_id=job.request_id)
    if job.started_at is not None and job.attempt == 1:
        waited = (job.started_at - job.created_at).total_seconds()
        process.metrics.observe_job({"queue": waited})
    log.info("job started", job=job.id, attempt=job.attempt, alone=run.alone)
    report = Reporter(process.quick_records, job.id, run.worker, run.check)
    result = _stored_result(run, job)
    if result is None:
        result = _upscaled(run, job, report)
    _settle(run)
    records, timings = process.records, report.timings
    done = _insist(run, lambda: records.succeed(job.id, result, timings, worker=run.worker))
    if done.timings is not None:
        # What it waited was observed when it started.
        process.metrics.observe_job(done.timings.model_dump(exclude={"queue"}))
    total = done.timings.total if done.timings else None
    log.info("job done", job=job.id, seconds=total, size=f"{result.width}x{result.height}")


def _upscaled(run: Run, job: Job, report: Reporter) -> ResultInfo:
    """From the stored upload to the stored result.

    What the decoder reads is freed however this ends, and the result goes to its file, and from
    there to the store, a few rows at a time.
    """
    process = run.process
    options = job.parameters
    watch, model = process.watchdog.watch, process.model
    with report.stage("load"), watch("load"):
        source = decode(process.store.get(input_key(job.id)), process.settings.max_input_pixels)
        _check_output(source, job.parameters, process.settings.max_output_pixels)
    small = model.steps_in(source.rgb, options)
    device = partial(process.device.autoencoder, small=small, poll=report.poll)
    with torch.inference_mode(), ExitStack() as held:
        with report.stage("encode"), device() as pause, watch("encode") as renew:
            prepared = model.prepare(source.rgb, options, _telling(report, renew, pause))
            held.enter_context(closing(prepared))
        log.info("job planned", job=job.id, **prepared.summary)
        with report.stage("denoise", steps=job.parameters.steps):
            latent = process.engine.run(
                model.sample(prepared, options), on_step=report.on_step, poll=report.poll
            )
        with report.stage("decode"), device() as pause, watch("decode") as renew:
            rows = model.rows(prepared, latent, options, _telling(report, renew, pause))
        prepared.close()
        return _save(run, job, source, rows, report)


def _telling(report: Reporter, renew: Callable[[], None], pause: Pause) -> Callable[[float], None]:
    """Notes how far a stage is, for the client and for the watchdog, and lets small images in."""

    def waiting() -> None:
        renew()
        report.poll()

    def tell(done: float) -> None:
        renew()
        report.on_part(done)
        pause(waiting)

    return tell


def _check_output(source: DecodedImage, parameters: UpscaleParameters, max_pixels: int) -> None:
    columns, rows = source.size
    height, width = output_size(rows, columns, parameters.scale)
    if width * height > max_pixels:
        raise OutputTooLarge(
            f"The result would have {width} x {height} = {width * height} pixels; "
            f"at most {max_pixels} are allowed.",
            limit=max_pixels,
        )
    check_side(width, height, parameters.output_format)


def _save(
    run: Run, job: Job, source: DecodedImage, rows: Iterable[Tensor], report: Reporter
) -> ResultInfo:
    """Write the image's rows to a file of its own and that into the store."""
    width, height = output_size(*source.size, job.parameters.scale)
    with report.stage("save"), run.process.watchdog.watch("save") as renew:

        def watched() -> Iterator[Tensor]:
            for strip in rows:
                renew()
                report.poll()
                yield strip

        with TemporaryDirectory(prefix="stablesr-") as folder:
            path = Path(folder, "result")
            write(
                path,
                rows_of(source, watched(), height, width),
                width=width,
                height=height,
                channels=source.channels,
                format=job.parameters.output_format,
                depth=source.depth,
            )
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            renew()
            run.process.store.put(result_key(job.id), path)
            return _describe(job, path.stat().st_size, sha256, width, height)


def _stored_result(run: Run, job: Job) -> ResultInfo | None:
    """The result of an earlier attempt that ended between storing it and saying so."""
    store, key = run.process.store, result_key(job.id)
    if job.attempt < 2 or not store.exists(key):
        return None
    digest, size = hashlib.sha256(), 0
    for piece in store.stream(key):
        digest.update(piece)
        size += len(piece)
    log.info("result of an earlier attempt found", job=job.id)
    # A stored result is whole, and its sides follow from the job; decoding it would take memory
    # that no plan knows of.
    height, width = output_size(job.input.height, job.input.width, job.parameters.scale)
    return _describe(job, size, digest.hexdigest(), width, height)


def _describe(job: Job, size: int, sha256: str, width: int, height: int) -> ResultInfo:
    return ResultInfo(
        key=result_key(job.id),
        width=width,
        height=height,
        bytes=size,
        sha256=sha256,
        media_type=MEDIA_TYPES[job.parameters.output_format],
    )


def _settle(run: Run) -> None:
    if not run.settle():
        raise LeaseLost(f"Job {run.job_id} was put back when the process had to end.")


def _insist(run: Run, move: Callable[[], T]) -> T:
    """Make a transition of the record, waiting for a Redis that is being restarted.

    As long as a lease lasts: after that the queue has given the job away, and this run's word
    does not count any more.
    """
    deadline = time.monotonic() + run.process.settings.worker_ttl_s
    while True:
        try:
            return move()
        except QueueUnavailable:
            if time.monotonic() > deadline or run.process.leaving.wait(0.5):
                raise
