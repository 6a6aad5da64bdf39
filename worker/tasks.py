"""The one thing a worker does: upscale the image of a job, and say how that ended.

    the attempt ends with                       the job is      and RQ
    its result                                  succeeded       forgets it
    Cancellation                                canceled        forgets it
    Interruption, DeviceTaken                   queued          runs it again, first in the queue
    an error that a further attempt may mend    queued          runs it again, alone on its device
        in the last attempt                     failed          forgets it
    another error                               failed          forgets it
    LeaseLost                                   of another attempt, which alone may write

A further attempt, after a pause, may mend a blob that cannot be read or written, memory that ran
out, and a lost device; a store or a Redis that is away is waited for (`outlast`). How many
attempts there are `STABLESR_RETRY_PAUSES_S` says; those that a lost worker cost count as well
(`jobs.rq_adapter.on_failure`), those that were interrupted do not.

An attempt may happen twice (a worker was lost, or the queue only thought so), so it is idempotent:
the result's key follows from the job's id, its bytes follow from the parameters and their seed, and
a result that is already in the store is what the attempt ends with.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TypeVar

import structlog
import torch
from torch import Tensor

from jobs.errors import (
    BlobNotFound,
    ImageError,
    JobEnded,
    JobFault,
    JobNotFound,
    JobsError,
    OutOfMemory,
    Problem,
    QueueUnavailable,
    StoreUnavailable,
    WrongState,
)
from jobs.image_file import RESULT_TYPES, check_output
from jobs.schema import Job, ResultInfo, Stage
from jobs.store import BlobStore, file_fields, input_key, result_key
from models.errors import InvalidOption, MissingTextTower, NotEnoughMemory, NotFinite, ScratchFull
from models.geometry import output_size
from models.memory import is_out_of_memory
from worker.attempt import Attempt, Cancellation, Interruption, LeaseLost
from worker.device import is_device_lost
from worker.device_lock import DeviceTaken
from worker.engine import EngineBroken
from worker.images import DecodedImage, Metadata, decode, metadata_of, rows_of, write

OPEN_FILES = Path("/proc/self/fd")
# Between two trials of a store that is away, doubled each time; between two looks at the job
# meanwhile.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
LOOK_S = 0.1

T = TypeVar("T")

log = structlog.get_logger(__name__)


def upscale(attempt: Attempt) -> bool:
    """Run a job to its end; whether RQ has to run it again.

    Raises:
        LeaseLost: the job is not this attempt's any more.
        Exception: what another attempt may mend.
    """
    # Every line of the attempt has both ids; the record says which request it was.
    with structlog.contextvars.bound_contextvars(job=attempt.job_id, request_id=None):
        try:
            return _conclude(attempt)
        except (JobEnded, JobNotFound) as error:
            # Canceled while it waited, or finished by an earlier attempt: there is nothing to do.
            log.info("job needs nothing", reason=error.detail)
            return False
        except WrongState as error:
            raise LeaseLost(error.detail) from error
        finally:
            attempt.spans.end()


def _conclude(attempt: Attempt) -> bool:
    """Do the work, and what the table above says when it ends; whether RQ runs the job again."""
    process, records = attempt.process, attempt.process.records
    try:
        with process.device.job(alone=attempt.alone, poll=attempt.check):
            _work(attempt)
    except DeviceTaken:
        # Not begun, so the record still says queued: only RQ has to be told.
        attempt.claim()
        log.info("job given back, another one runs alone", job=attempt.job_id)
        return True
    except Interruption:
        attempt.settle(records.requeue)
        log.info("job put back", job=attempt.job_id)
        return True
    except Cancellation:
        attempt.settle(records.stop)
        log.info("job canceled", job=attempt.job_id)
    except (LeaseLost, WrongState, JobNotFound):
        raise
    # Every other error of an attempt is the job's failure and not the worker's.
    except Exception as error:
        is_image = isinstance(error, ImageError)
        attempt.spans.fail(error)
        log.warning("attempt failed", job=attempt.job_id, exc_info=not is_image)
        device_lost = isinstance(error, EngineBroken) or is_device_lost(error)
        may_be_mended = (
            device_lost
            or _lacks_memory(error)
            or isinstance(error, BlobNotFound | StoreUnavailable | QueueUnavailable)
        )
        if attempt.last or not may_be_mended:
            attempt.settle(records.fail, _problem(error))
        # A process that ends anyway may have closed its engine.
        if device_lost and math.isinf(process.leave_by):
            process.lose(str(error))
        if may_be_mended:
            raise
    return False


def _work(attempt: Attempt) -> None:
    process = attempt.process
    attempt.check()
    job = attempt.start()
    structlog.contextvars.bind_contextvars(request_id=job.request_id)
    if job.started_at is not None and job.attempt == 1:
        wait = (job.started_at - job.created_at).total_seconds()
        process.metrics.observe_job({"queue": wait})
    log.info("job started", job=job.id, attempt=job.attempt, alone=attempt.alone)
    result = _stored_result(attempt, job) or _upscale(attempt, job)
    job = attempt.settle(process.records.succeed, result, attempt.timings)
    if job.timings is not None:
        # What it waited was observed when it started.
        process.metrics.observe_job(job.timings.model_dump(exclude={"queue"}))
    total = job.timings.total if job.timings else None
    log.info("job done", job=job.id, seconds=total, size=f"{result.width}x{result.height}")


def _stored_result(attempt: Attempt, job: Job) -> ResultInfo | None:
    """The result of an earlier attempt that ended between storing it and saying so."""
    store = attempt.process.store

    def read(key: str) -> ResultInfo | None:
        if not store.exists(key):
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

    if job.attempt < 2:
        return None
    with attempt.stage("load"):
        return outlast(attempt, read, result_key(job.id))


def _upscale(attempt: Attempt, job: Job) -> ResultInfo:
    """From the stored upload to the stored result.

    What the decoder reads is freed however this ends, and the result goes to its file, and from
    there to the store, a few rows at a time.
    """
    process, options = attempt.process, job.parameters
    model = process.model
    with attempt.stage("load"):
        upload = outlast(attempt, process.store.get, input_key(job.id))
        source = decode(upload, process.settings.max_input_pixels, options.page)
        check_output(*source.size, options, process.settings.max_output_pixels)
        width, height = output_size(*source.size, options.scale)
        metadata = metadata_of(upload, source.header, options, width, height)
        if metadata is not None and metadata.faults:
            process.metrics.broken_metadata.inc()
    small = model.steps_in(source.rgb, options)

    @contextmanager
    def autoencoder(stage: Stage) -> Iterator[Callable[[float], None]]:
        """Gives what is called between two strips, where small images are let in."""
        with (
            attempt.stage(stage),
            process.device.autoencoder(small=small, poll=attempt.poll) as pause,
        ):

            def on_progress(share: float) -> None:
                attempt.on_progress(share)
                pause()

            yield on_progress

    with torch.inference_mode(), ExitStack() as resources:
        with autoencoder("encode") as on_progress:
            encoded_image = model.prepare(source.rgb, options, on_progress)
            resources.callback(encoded_image.close)
        log.info("job planned", job=job.id, **encoded_image.summary)
        attempt.spans.describe(**encoded_image.summary)
        with attempt.stage("denoise", steps=options.steps):
            latent = process.engine.run(
                model.sample(encoded_image, options), on_step=attempt.on_step, poll=attempt.poll
            )
        with autoencoder("decode") as on_progress:
            rows = model.rows(encoded_image, latent, options, on_progress)
        encoded_image.close()
        return _save(attempt, job, source, rows, metadata)


def _save(
    attempt: Attempt,
    job: Job,
    source: DecodedImage,
    rows: Iterable[Tensor],
    metadata: Metadata | None,
) -> ResultInfo:
    """Write the image's rows to a file of its own and that into the store."""
    width, height = output_size(*source.size, job.parameters.scale)

    def strips() -> Iterator[Tensor]:
        for strip in rows:
            attempt.poll()
            yield strip

    with attempt.stage("save"), _temporary_file() as path:
        write(
            path,
            rows_of(source, strips(), height, width, job.parameters.alpha),
            width=width,
            height=height,
            channels=source.channels,
            format=job.parameters.output_format,
            depth=source.depth,
            quality=job.parameters.quality,
            metadata=metadata,
        )
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        attempt.poll()
        result = _result_info(job, path.stat().st_size, sha256, width, height)
        fields = file_fields(job, result.media_type)
        outlast(attempt, lambda key: attempt.process.store.put(key, path, fields), result.key)
        return result


@contextmanager
def _temporary_file() -> Iterator[Path]:
    """A path for the block; on Linux of a file without a name, which a kill does not leave."""
    if OPEN_FILES.exists():
        with TemporaryFile() as file:
            yield OPEN_FILES / str(file.fileno())
    else:
        with TemporaryDirectory(prefix="stablesr-") as folder:
            yield Path(folder, "result")


def _result_info(job: Job, size: int, sha256: str, width: int, height: int) -> ResultInfo:
    return ResultInfo(
        key=result_key(job.id),
        width=width,
        height=height,
        bytes=size,
        sha256=sha256,
        media_type=RESULT_TYPES[job.parameters.output_format],
    )


def _lacks_memory(error: Exception) -> bool:
    return is_out_of_memory(error) or isinstance(error, NotEnoughMemory | ScratchFull)


def _problem(error: Exception) -> Problem:
    """What the client is told; the log has the rest."""
    match error:
        case InvalidOption() | MissingTextTower():
            title = "The parameters do not fit"
            return Problem(type="invalid-parameters", title=title, detail=str(error))
        case NotFinite():
            return JobFault(str(error)).problem()
        case StoreUnavailable():
            return StoreUnavailable(
                "The worker could not use the image store, in any attempt; "
                "submit the image again later."
            ).problem()
        case _ if _lacks_memory(error):
            return OutOfMemory(
                "The worker has too little memory for this image; ask for a smaller scale."
            ).problem()
        case JobsError() if not isinstance(error, QueueUnavailable):
            return error.problem()
    return JobFault(
        "The worker could not finish the job because of a fault of its own; "
        "its log says more under the job's id."
    ).problem()


def outlast(attempt: Attempt, call: Callable[[str], T], key: str) -> T:
    """What `call(key)` gives, once the store works; for use within a stage of the attempt.

    A call of the store that fails says little: the store may be away, or only this blob unreadable.
    So a trial blob is written beside it. Where that works, the call is repeated once and then fails
    for good; where it does not, the job waits with what it has, however long it takes, and spends
    no attempt.

    Raises:
        StoreUnavailable: the store works, but not for this blob.
        Interruption: the process is asked to leave meanwhile.
        What `call` raises otherwise, and `Attempt.poll`.
    """
    is_repeated = False
    while True:
        try:
            return call(key)
        except StoreUnavailable as error:
            if (reason := _fault(attempt.process.store, key)) is not None:
                _wait(attempt, key, reason)
            elif is_repeated:
                raise
            else:
                log.warning("store failed", job=attempt.job_id, reason=error.detail)
                is_repeated = True


def _fault(store: BlobStore, key: str) -> str | None:
    """Why no blob can be written beside this one, or None where it can."""
    trial = f"{key.partition('/')[0]}/try-{secrets.token_hex(8)}"
    try:
        store.put(trial, b"1")
        store.delete(trial)
    except StoreUnavailable as error:
        return error.detail
    return None


def _wait(attempt: Attempt, key: str, reason: str) -> None:
    process = attempt.process
    process.metrics.store_outages.inc()
    log.warning("image store is away, the job waits", job=attempt.job_id, reason=reason)
    start, pause = time.monotonic(), FIRST_PAUSE_S
    with attempt.awaiting_store():
        while True:
            end = time.monotonic() + pause
            while time.monotonic() < end:
                if process.leaving.wait(LOOK_S):
                    raise Interruption(f"Job {attempt.job_id} goes back to the queue.")
                attempt.poll()
            if _fault(process.store, key) is None:
                break
            pause = min(2 * pause, LONGEST_PAUSE_S)
    seconds = round(time.monotonic() - start, 1)
    log.info("image store is back, the job goes on", job=attempt.job_id, seconds=seconds)
