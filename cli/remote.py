"""`stablesr upscale --server`: one file through a server; and what a server's words become here."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import stablesr_client
from cli.checks import check_input, check_output
from cli.errors import (
    BadSettings,
    CliError,
    InputError,
    JobFailed,
    Refused,
    Unreachable,
    translate,
)
from cli.options import UpscaleOptions
from cli.view import Moment, ProgressView, console
from models.parameters import SEED_MAX
from stablesr_client import Client, ClientError, Job, Parameters

__all__ = ["CLIENT_ERRORS", "connected", "follow", "form", "moment_of", "run"]

CLIENT_ERRORS: Mapping[type[Exception], type[CliError]] = {
    stablesr_client.Unreachable: Unreachable,
    stablesr_client.Refused: Refused,
    stablesr_client.UnexpectedAnswer: Refused,
    ClientError: JobFailed,
}
"""What the command ends with after an error of the client."""


def run(options: UpscaleOptions, server: str) -> None:
    """Upscales one file through `server`; each of `--seeds` is a job, all submitted at once.

    An interruption cancels the jobs there; with several, so does the end of one without a result.

    Raises:
        CliError: the file, the server or a job is at fault.
    """
    output_format = check_output(options.target)
    check_input(options.source)
    requests = {options.target: options}
    if options.seeds is not None:
        seed = secrets.randbelow(SEED_MAX + 1) if options.seed is None else options.seed
        requests = {path: replace(options, seed=s) for s, path in options.targets(seed).items()}
    jobs: dict[Path, Job] = {}
    with connected(server, options.api_key) as client, ProgressView("uploading") as view:
        try:
            for path, request in requests.items():
                jobs[path] = client.submit(options.source, **form(request, output_format))
            for path in requests:
                job = follow(client, jobs[path], view)
                client.download(job, path)
                del jobs[path]
        except BaseException as error:
            if options.seeds is not None or isinstance(error, KeyboardInterrupt):
                for job in jobs.values():
                    _cancel(client, job)
            raise
    if options.seeds is not None:
        for path in requests:
            console.print(f"{path}", soft_wrap=True)
        return
    assert job.result is not None  # a succeeded job has one
    console.print(
        f"{options.target}: {job.result.width} x {job.result.height} pixels, "
        f"{job.result.bytes} bytes, preset {job.preset}, seed {job.seed}.",
        soft_wrap=True,
    )


def follow(client: Client, job: Job, view: ProgressView) -> Job:
    """Shows a job until it has ended, and gives it as it ended.

    Raises:
        stablesr_client.JobFailed: it has not succeeded.
    """
    view.show(moment_of(job))
    for event in client.events(job):
        job = event.job
        view.show(moment_of(job))
    if not job.succeeded:
        raise stablesr_client.JobFailed(job)
    return job


def form(options: UpscaleOptions, output_format: str) -> Parameters:
    """The options as the client takes them; `UpscaleOptions` names its fields after them."""
    return cast(Parameters, {**options.parameters(), "output_format": output_format})


def moment_of(job: Job) -> Moment:
    """Where a job is: its place in the queue, or its stage and step."""
    if job.state == "queued":
        place = "" if job.queue_position is None else f" ({job.queue_position})"
        return Moment(f"queued{place}")
    if job.ended or job.progress is None:
        return Moment(job.state, 1.0 if job.ended else 0.0)
    now = job.progress
    return Moment(now.stage, now.fraction, now.step, now.steps, now.eta_seconds)


@contextmanager
def connected(server: str, api_key: str | None) -> Iterator[Client]:
    """A client whose errors are the command's own.

    Raises:
        CliError: whatever the client or a file of it ends with.
    """
    try:
        client = Client(server, api_key=api_key)
    except ValueError as error:
        raise BadSettings(f"--server {error}") from error
    try:
        with translate(CLIENT_ERRORS), client:
            yield client
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise InputError(f"{where}{error.strerror or error}.") from error


def _cancel(client: Client, job: Job) -> None:
    """Cancels a job and says so, or that it could not be."""
    try:
        client.cancel(job)
    except ClientError as error:
        console.print(f"The job {job.id} could not be canceled: {error}")
    else:
        console.print(f"The job {job.id} was canceled.")
