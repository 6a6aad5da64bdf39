"""The one thing a worker does: upscale the image of a job.

An attempt may happen twice (a worker was lost, or the queue only thought so), so it is idempotent:
the result's key follows from the job's id, its bytes follow from the parameters and their seed, and
a result that is already in the store is what the attempt ends with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import structlog
import torch
from rq import Retry
from torch import Tensor

from jobs.errors import JobEnded, JobNotFound, OutputTooLarge, WrongState
from jobs.image_file import RESULT_TYPES, check_side
from jobs.schema import Job, ResultInfo, Stage
from jobs.store import input_key, result_key
from models.geometry import output_size
from worker.attempt import Attempt, conclude
from worker.errors import LeaseLost
from worker.images import DecodedImage, decode, rows_of, write
from worker.progress import Reporter

log = structlog.get_logger(__name__)


def upscale(attempt: Attempt) -> Retry | None:
    """Run a job to its end. Returns what RQ has to do next, which is nothing or to run it again.

    A job that cannot succeed is failed here and is done for RQ. Only what another attempt may
    mend is raised: the store or Redis out of reach, memory, the device.
    """
    # Every line of the attempt has both ids; the record says which request it was.
    with structlog.contextvars.bound_contextvars(job=attempt.job_id, request_id=None):
        try:
            return conclude(attempt, _work)
        except (JobEnded, JobNotFound) as error:
            # Canceled while it waited, or finished by an earlier attempt: there is nothing to do.
            log.info("job needs nothing", reason=error.detail)
            return None
        except WrongState as error:
            raise LeaseLost(error.detail) from error


def _work(attempt: Attempt) -> None:
    metrics = attempt.process.metrics
    attempt.check()
    job = attempt.start()
    structlog.contextvars.bind_contextvars(request_id=job.request_id)
    if job.started_at is not None and job.attempt == 1:
        wait = (job.started_at - job.created_at).total_seconds()
        metrics.observe_job({"queue": wait})
    log.info("job started", job=job.id, attempt=job.attempt, alone=attempt.alone)
    report = Reporter(attempt)
    result = _stored_result(attempt, job) or _upscale(attempt, job, report)
    job = attempt.settle(attempt.process.records.succeed, result, report.timings)
    if job.timings is not None:
        # What it waited was observed when it started.
        metrics.observe_job(job.timings.model_dump(exclude={"queue"}))
    total = job.timings.total if job.timings else None
    log.info("job done", job=job.id, seconds=total, size=f"{result.width}x{result.height}")


def _stored_result(attempt: Attempt, job: Job) -> ResultInfo | None:
    """The result of an earlier attempt that ended between storing it and saying so."""
    store, key = attempt.process.store, result_key(job.id)
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
    return _result_info(job, size, digest.hexdigest(), width, height)


def _upscale(attempt: Attempt, job: Job, report: Reporter) -> ResultInfo:
    """From the stored upload to the stored result.

    What the decoder reads is freed however this ends, and the result goes to its file, and from
    there to the store, a few rows at a time.
    """
    process, options = attempt.process, job.parameters
    model = process.model
    with report.stage("load"):
        source = decode(process.store.get(input_key(job.id)), process.settings.max_input_pixels)
        _check_output(source, job, process.settings.max_output_pixels)
    small = model.steps_in(source.rgb, options)

    @contextmanager
    def autoencoder(stage: Stage) -> Iterator[Callable[[float], None]]:
        """Gives what is called between two strips, where small images are let in."""
        with (
            report.stage(stage),
            process.device.autoencoder(small=small, poll=report.poll) as pause,
        ):

            def on_progress(share: float) -> None:
                report.on_progress(share)
                pause()

            yield on_progress

    with torch.inference_mode(), ExitStack() as resources:
        with autoencoder("encode") as on_progress:
            encoded_image = model.prepare(source.rgb, options, on_progress)
            resources.callback(encoded_image.close)
        log.info("job planned", job=job.id, **encoded_image.summary)
        with report.stage("denoise", steps=options.steps):
            latent = process.engine.run(
                model.sample(encoded_image, options), on_step=report.on_step, poll=report.poll
            )
        with autoencoder("decode") as on_progress:
            rows = model.rows(encoded_image, latent, options, on_progress)
        encoded_image.close()
        return _save(attempt, job, source, rows, report)


def _check_output(source: DecodedImage, job: Job, max_pixels: int) -> None:
    width, height = output_size(*source.size, job.parameters.scale)
    if width * height > max_pixels:
        raise OutputTooLarge(
            f"The result would have {width} x {height} = {width * height} pixels; "
            f"at most {max_pixels} are allowed.",
            limit=max_pixels,
        )
    check_side(width, height, job.parameters.output_format)


def _save(
    attempt: Attempt, job: Job, source: DecodedImage, rows: Iterable[Tensor], report: Reporter
) -> ResultInfo:
    """Write the image's rows to a file of its own and that into the store."""
    width, height = output_size(*source.size, job.parameters.scale)

    def strips() -> Iterator[Tensor]:
        for strip in rows:
            report.poll()
            yield strip

    with report.stage("save"), TemporaryDirectory(prefix="stablesr-") as folder:
        path = Path(folder, "result")
        write(
            path,
            rows_of(source, strips(), height, width),
            width=width,
            height=height,
            channels=source.channels,
            format=job.parameters.output_format,
            depth=source.depth,
        )
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        report.poll()
        attempt.process.store.put(result_key(job.id), path)
        return _result_info(job, path.stat().st_size, sha256, width, height)


def _result_info(job: Job, size: int, sha256: str, width: int, height: int) -> ResultInfo:
    return ResultInfo(
        key=result_key(job.id),
        width=width,
        height=height,
        bytes=size,
        sha256=sha256,
        media_type=RESULT_TYPES[job.parameters.output_format],
    )
