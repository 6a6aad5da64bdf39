"""A folder's images through a server, several at once."""

from __future__ import annotations

import asyncio
import math
import signal
import uuid
from collections.abc import Iterator
from contextlib import aclosing

from cli.errors import translate
from cli.folder.journal import Work
from cli.folder.plan import Item
from cli.local import Written
from cli.options import PARALLEL, UpscaleOptions
from cli.remote import CLIENT_ERRORS, connected, form, moment_of
from cli.view import Moment
from stablesr_client import (
    AsyncClient,
    ClientError,
    DownloadFailed,
    Job,
    JobFailed,
    Refused,
    RetryPolicy,
)

__all__ = ["default_preset", "upscale_all"]

# A full queue is waited for as long as the server says; that is what a queue is for.
RETRY_POLICY = RetryPolicy(busy_s=math.inf)
CANCEL_S = 10.0
"""How long an interrupted run spends on canceling its jobs."""

# Refusals that are about one image; all others would meet every image.
OF_AN_IMAGE = frozenset({404, 409, 410, 413, 422})
OF_ALL = frozenset({"", "invalid-parameters"})


def default_preset(server: str, api_key: str | None) -> str | None:
    """The preset that the server takes when none is named.

    Asked for first of all, it also tells whether the address is right.

    Raises:
        CliError: the server does not answer, or not as it should.
    """
    with connected(server, api_key) as client:
        default = client.models().default
    return None if default is None else default.name


def upscale_all(work: Work, options: UpscaleOptions, server: str) -> None:
    """Does what `work` has to do, `--parallel` images at once.

    An interruption cancels the jobs that are under way.

    Raises:
        CliError: the server is away, or refuses what is the same for every image.
    """
    try:
        with translate(CLIENT_ERRORS):
            asyncio.run(_all(work, options, server))
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _all(work: Work, options: UpscaleOptions, server: str) -> None:
    items = iter(work.todo)
    this = asyncio.current_task()
    assert this is not None  # it runs in one
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As asyncio.run does it for Ctrl-C: an exception out of a handler could hit any task.
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    try:
        async with (
            AsyncClient(server, api_key=options.api_key, retry_policy=RETRY_POLICY) as client,
            asyncio.TaskGroup() as group,
        ):
            run = _Run(client, work, options)
            for _ in range(options.parallel or PARALLEL):
                group.create_task(run.share(items))
    except BaseExceptionGroup as errors:
        # One is enough to end with: what ends a run would have met every image.
        raise errors.exceptions[0] from None


class _Run:
    """A run through one client; its tasks share the images."""

    def __init__(self, client: AsyncClient, work: Work, options: UpscaleOptions) -> None:
        self._client = client
        self._work = work
        self._options = options

    async def share(self, items: Iterator[Item]) -> None:
        """One of the tasks: the next image, until there is none."""
        for item in items:
            try:
                await self._one(item)
            except (JobFailed, DownloadFailed) as error:
                self._work.fail(item, str(error))
            except Refused as error:
                if not _is_of_image(error):
                    raise
                self._work.fail(item, str(error))
            except OSError as error:
                self._work.fail(item, error.strerror or str(error))

    async def _one(self, item: Item) -> None:
        job = await self._submitted(item)
        if job is None:
            return
        try:
            async with aclosing(self._client.events(job)) as events:
                async for event in events:
                    job = event.job
                    self._work.moved(item, moment_of(job))
            if not job.succeeded:
                raise JobFailed(job)
            self._work.moved(item, Moment("downloading", 1.0))
            job = await self._client.download(job, item.target)
        except asyncio.CancelledError:
            await self._cancel(item, job)
            raise
        assert job.result is not None  # what was downloaded
        self._work.end(item, Written(job.result.width, job.result.height, job.result.bytes))

    async def _submitted(self, item: Item) -> Job | None:
        """The image's job, a killed run's if it has one; None when the file cannot be read."""
        killed = self._work.key_of_killed(item)
        if killed is not None:
            if not self._work.begin(item, killed):
                return None
            try:
                job = await self._submit(item, killed)
            # The key has been used up, in one of several ways; a new one tells what is wrong.
            except Refused:
                pass
            else:
                if job.succeeded or not job.ended:
                    return job
        key = uuid.uuid4().hex
        if not self._work.begin(item, key):
            return None
        return await self._submit(item, key)

    async def _submit(self, item: Item, key: str) -> Job:
        self._work.moved(item, Moment("uploading"))
        fields = form(self._options, item.output_format)
        submission = asyncio.create_task(
            self._client.submit(item.source, idempotency_key=key, **fields)
        )
        try:
            return await asyncio.shield(submission)
        except asyncio.CancelledError:
            # There may be a job already whose id is still on its way here.
            done, _ = await asyncio.wait([submission], timeout=CANCEL_S)
            if done and submission.exception() is None:
                await self._cancel(item, submission.result())
            else:
                submission.cancel()
            raise

    async def _cancel(self, item: Item, job: Job) -> None:
        """Cancels a job; one that cannot be reached is left to the next run."""
        try:
            async with asyncio.timeout(CANCEL_S):
                await self._client.cancel(job)
        except (ClientError, TimeoutError):
            return
        self._work.stop(item)


def _is_of_image(error: Refused) -> bool:
    problem = error.problem
    if problem.status not in OF_AN_IMAGE:
        return False
    # A proxy that refuses a large body gives no problem.
    return problem.status == 413 or problem.slug not in OF_ALL
