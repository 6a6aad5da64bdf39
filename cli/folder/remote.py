"""A folder's images through a server, several at once."""

from __future__ import annotations

import asyncio
import math
import signal
import uuid
from collections.abc import Iterator
from contextlib import aclosing

from cli.folder.plan import Item
from cli.folder.work import Work
from cli.local import Written
from cli.options import Choices
from cli.remote import as_cli_error, connected, form, moment_of
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
OF_ALL = frozenset({"", "invalid-parameters", "unknown-preset"})


def default_preset(server: str, api_key: str | None) -> str | None:
    """The preset that the server takes when none is named.

    Asked for first of all, it also tells whether the address is right.

    Raises:
        CliError: the server does not answer, or not as it should.
    """
    with connected(server, api_key) as http:
        default = http.models().default
    return None if default is None else default.name


def upscale_all(
    work: Work, choices: Choices, server: str, api_key: str | None, parallel: int
) -> None:
    """Does what `work` has to do, `parallel` images at once.

    An interruption cancels the jobs that are under way.

    Raises:
        CliError: the server is away, or refuses what is the same for every image.
    """
    try:
        asyncio.run(_all(work, choices, server, api_key, parallel))
    except ClientError as error:
        raise as_cli_error(error) from error
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


async def _all(
    work: Work, choices: Choices, server: str, api_key: str | None, parallel: int
) -> None:
    items = iter(work.todo)
    this = asyncio.current_task()
    assert this is not None  # it runs in one
    for number in (signal.SIGTERM, signal.SIGHUP):
        # As asyncio.run does it for Ctrl-C: an exception out of a handler could hit any task.
        asyncio.get_running_loop().add_signal_handler(number, this.cancel)
    try:
        async with (
            AsyncClient(server, api_key=api_key, retry_policy=RETRY_POLICY) as http,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(parallel):
                group.create_task(_some(http, work, items, choices))
    except BaseExceptionGroup as errors:
        # One is enough to end with: what ends a run would have met every image.
        raise errors.exceptions[0] from None


async def _some(http: AsyncClient, work: Work, items: Iterator[Item], choices: Choices) -> None:
    """One of the tasks that share the images."""
    for item in items:
        try:
            await _one(http, work, item, choices)
        except (JobFailed, DownloadFailed) as error:
            work.fail(item, str(error))
        except Refused as error:
            if not _is_of_image(error):
                raise
            work.fail(item, str(error))
        except OSError as error:
            work.fail(item, error.strerror or str(error))


async def _one(http: AsyncClient, work: Work, item: Item, choices: Choices) -> None:
    job = await _submitted(http, work, item, choices)
    if job is None:
        return
    try:
        async with aclosing(http.events(job)) as events:
            async for event in events:
                job = event.job
                work.moved(item, moment_of(job))
        if not job.succeeded:
            raise JobFailed(job)
        work.moved(item, Moment("downloading", 1.0))
        job = await http.download(job, item.target)
    except asyncio.CancelledError:
        await _cancel(http, work, item, job)
        raise
    assert job.result is not None  # what was downloaded
    work.end(item, Written(job.result.width, job.result.height, job.result.bytes))


async def _submitted(http: AsyncClient, work: Work, item: Item, choices: Choices) -> Job | None:
    """The image's job: that of a run which was killed, if it has one; None for no readable file."""
    killed = work.key_of_killed(item)
    if killed is not None:
        if not work.begin(item, killed):
            return None
        try:
            job = await _submit(http, work, item, choices, killed)
        # The key has been used up, in one of several ways; a new one tells what is wrong.
        except Refused:
            pass
        else:
            if job.succeeded or not job.ended:
                return job
    key = uuid.uuid4().hex
    if not work.begin(item, key):
        return None
    return await _submit(http, work, item, choices, key)


async def _submit(http: AsyncClient, work: Work, item: Item, choices: Choices, key: str) -> Job:
    work.moved(item, Moment("uploading"))
    fields = form(choices, item.output_format)
    submission = asyncio.create_task(http.submit(item.source, idempotency_key=key, **fields))
    try:
        return await asyncio.shield(submission)
    except asyncio.CancelledError:
        # There may be a job already whose id is still on its way here.
        done, _ = await asyncio.wait([submission], timeout=CANCEL_S)
        if done and submission.exception() is None:
            await _cancel(http, work, item, submission.result())
        else:
            submission.cancel()
        raise


async def _cancel(http: AsyncClient, work: Work, item: Item, job: Job) -> None:
    """Cancels the job of an interrupted run; one that cannot be reached is left to the next run."""
    try:
        async with asyncio.timeout(CANCEL_S):
            await http.cancel(job)
    except (ClientError, TimeoutError):
        return
    work.stop(item)


def _is_of_image(error: Refused) -> bool:
    problem = error.problem
    if problem.status not in OF_AN_IMAGE:
        return False
    # A proxy that refuses a large body gives no problem.
    return problem.status == 413 or problem.slug not in OF_ALL
