"""`stablesr upscale --server`: the work done by a server, and what its words become here."""

from __future__ import annotations

import asyncio
import math
import secrets
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import stablesr_client
from cli import errors
from cli.folder import Item
from cli.journal import Work
from cli.options import PARALLEL, UpscaleOptions
from cli.view import ProgressView, console
from models.parameters import SEED_MAX
from stablesr_client import AsyncClient, Client, ClientError, Job, JobFailed, Progress, Refused

CLIENT_ERRORS = {
    stablesr_client.Unreachable: errors.Unreachable,
    Refused: errors.Refusal,
    stablesr_client.UnexpectedAnswer: errors.Refusal,
    ClientError: errors.JobFailure,
}
"""What the command ends with after an error of the client."""

# A full queue is waited for as long as the server says; that is what a queue is for.
RETRY_POLICY = stablesr_client.RetryPolicy(busy_s=math.inf)
CANCEL_S = 10.0
"""How long an interrupted run spends on canceling its jobs."""

# Refusals that are about one image; all others would meet every image.
OF_AN_IMAGE = frozenset({404, 409, 410, 413, 422})
OF_ALL = frozenset({"", "invalid-parameters"})


@contextmanager
def connect(server: str, api_key: str | None) -> Iterator[Client]:
    """A client whose errors are the command's own."""
    with errors.translate({ValueError: errors.BadSettings}, "--server "):
        client = Client(server, api_key=api_key)
    try:
        with errors.translate(CLIENT_ERRORS), client:
            yield client
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise errors.InputError(f"{where}{error.strerror or error}.") from error


def follow(client: Client, job: Job, view: ProgressView) -> Job:
    """Shows a job until it has ended, and gives it as it ended."""
    view.show(_progress(job))
    for event in client.events(job):
        job = event.job
        view.show(_progress(job))
    if not job.succeeded:
        raise JobFailed(job)
    return job


def upscale_file(options: UpscaleOptions, output_format: str, server: str) -> None:
    """Upscales one file; each of `--seeds` is a job, all submitted at once.

    An interruption cancels the jobs there; with several, so does the end of one without a result.
    """
    requests = {options.target: options}
    if options.seeds is not None:
        seed = secrets.randbelow(SEED_MAX + 1) if options.seed is None else options.seed
        requests = {path: replace(options, seed=s) for s, path in options.targets(seed).items()}
    jobs: dict[Path, Job] = {}
    with connect(server, options.api_key) as client, ProgressView("uploading") as view:
        try:
            for path, request in requests.items():
                form = request.parameters(output_format) | request.handling()
                jobs[path] = client.submit(request.source, **form)
            for path in requests:
                job = follow(client, jobs[path], view)
                client.download(job, path)
                del jobs[path]
        except BaseException as error:
            if options.seeds is not None or isinstance(error, KeyboardInterrupt):
                for job in jobs.values():
                    _cancel(client, job)
            raise
    assert job.result is not None  # a succeeded job has one
    size = f"{job.result.width} x {job.result.height} pixels, {job.result.bytes} bytes"
    for path in requests:
        text = f": {size}, preset {job.preset}, seed {job.seed}." if options.seeds is None else ""
        console.print(f"{path}{text}", soft_wrap=True)


def _cancel(client: Client, job: Job) -> None:
    """Cancels a job and says so, or that it could not be."""
    try:
        client.cancel(job)
    except ClientError as error:
        console.print(f"The job {job.id} could not be canceled: {error}")
    else:
        console.print(f"The job {job.id} was canceled.")


def _progress(job: Job) -> Progress:
    """Where a job is: its place in the queue, or its stage and step."""
    if job.state == "queued" and job.queue_position is not None:
        return Progress(stage=f"queued ({job.queue_position})")
    if job.state == "queued" or job.ended or job.progress is None:
        return Progress(stage=job.state, fraction=float(job.ended))
    return job.progress


def upscale_folder(server: str, work: Work) -> None:
    """Does the work, `--parallel` images at once; an interruption cancels the jobs under way."""
    try:
        with errors.translate(CLIENT_ERRORS):
            asyncio.run(_upscale_all(server, work))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _upscale_all(server: str, work: Work) -> None:
    items, options = iter(work.todo), work.options
    this = asyncio.current_task()
    assert this is not None  # it runs in one
    if sys.platform != "win32":
        for number in (signal.SIGTERM, signal.SIGHUP):
            # As asyncio.run does it for Ctrl-C: an exception out of a handler could hit any task.
            asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    try:
        async with (
            AsyncClient(server, api_key=options.api_key, retry_policy=RETRY_POLICY) as client,
            asyncio.TaskGroup() as group,
        ):
            run = _Run(client, work)
            for _ in range(options.parallel or PARALLEL):
                group.create_task(run.consume(items))
    except BaseExceptionGroup as failures:
        # One is enough to end with: what ends a run would have met every image.
        raise failures.exceptions[0] from None


@dataclass(frozen=True)
class _Run:
    client: AsyncClient
    work: Work

    async def consume(self, items: Iterator[Item]) -> None:
        """One of the tasks that share the images: does the next one, until there is none."""
        for item in items:
            try:
                await self._upscale(item)
            except (JobFailed, stablesr_client.DownloadFailed) as error:
                self.work.fail(item, str(error))
            except Refused as error:
                status, slug = error.problem.status, error.problem.slug
                # A proxy that refuses a large body gives no problem.
                if status not in OF_AN_IMAGE or (status != 413 and slug in OF_ALL):
                    raise
                self.work.fail(item, str(error))
            except OSError as error:
                self.work.fail(item, error.strerror or str(error))

    async def _upscale(self, item: Item) -> None:
        job = await self._resume(item) or await self._submit(item, uuid.uuid4().hex)
        try:
            async with aclosing(self.client.events(job)) as events:
                async for event in events:
                    job = event.job
                    self.work.view.show(item.name, _progress(job))
            if not job.succeeded:
                raise JobFailed(job)
            self.work.view.show(item.name, Progress(stage="downloading", fraction=1))
            job = await self.client.download(job, item.target)
        except asyncio.CancelledError:
            await self._cancel(item, job)
            raise
        assert job.result is not None  # what was downloaded
        self.work.end(item, job.result.width, job.result.height)

    async def _resume(self, item: Item) -> Job | None:
        """The job of a run that was killed, if the image has one that is of use."""
        entry = self.work.entry(item, "begun")
        if entry is None or "key" not in entry:
            return None
        try:
            job = await self._submit(item, entry["key"])
        # The key has been used up, in one of several ways; a new one tells what is wrong.
        except Refused:
            return None
        return job if job.succeeded or not job.ended else None

    async def _submit(self, item: Item, key: str) -> Job:
        self.work.begin(item, key)
        self.work.view.show(item.name, Progress(stage="uploading"))
        options = self.work.options_of(item)
        form = options.parameters(item.output_format) | options.handling()
        submission = asyncio.create_task(
            self.client.submit(item.source, idempotency_key=key, **form)
        )
        try:
            return await asyncio.shield(submission)
        except asyncio.CancelledError:
            # There may be a job already whose id is still on its way here.
            await asyncio.wait([submission], timeout=CANCEL_S)
            if submission.done() and submission.exception() is None:
                await self._cancel(item, submission.result())
            else:
                submission.cancel()
            raise

    async def _cancel(self, item: Item, job: Job) -> None:
        """Cancels a job; one that cannot be reached is left to the next run."""
        try:
            async with asyncio.timeout(CANCEL_S):
                await self.client.cancel(job)
        except (ClientError, TimeoutError):
            return
        self.work.stop(item)
