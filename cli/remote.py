"""`stablesr upscale --server`: one file through a server; and what a server's words become here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import stablesr_client
from cli.errors import CliError, InputError, JobFailed, Refused, Unreachable
from cli.files import check_input, check_output
from cli.options import Choices
from cli.settings import BadSettings
from cli.view import Moment, ProgressView, console
from stablesr_client import Client, ClientError, Job, Parameters

__all__ = ["as_cli_error", "cancel", "connected", "follow", "form", "moment_of", "run"]


def run(source: Path, target: Path, server: str, api_key: str | None, choices: Choices) -> None:
    """Upscales `source` to `target` through the server at `server`.

    An interruption cancels the job there.

    Raises:
        CliError: the file, the server or the job is at fault.
    """
    output_format = check_output(target)
    check_input(source)
    with connected(server, api_key) as http, ProgressView("uploading") as view:
        job = http.submit(source, **form(choices, output_format))
        try:
            job = follow(http, job, view)
            http.download(job, target)
        except KeyboardInterrupt:
            cancel(http, job)
            raise
    assert job.result is not None  # a succeeded job has one
    console.print(
        f"{target}: {job.result.width} x {job.result.height} pixels, {job.result.bytes} bytes, "
        f"preset {job.preset}, seed {job.seed}.",
        soft_wrap=True,
    )


def follow(http: Client, job: Job, view: ProgressView) -> Job:
    """Shows a job until it has ended, and gives it as it ended.

    Raises:
        stablesr_client.JobFailed: it has not succeeded.
    """
    view.show(moment_of(job))
    for event in http.events(job):
        job = event.job
        view.show(moment_of(job))
    if not job.succeeded:
        raise stablesr_client.JobFailed(job)
    return job


def form(choices: Choices, output_format: str) -> Parameters:
    """The choices as the client takes them; `Choices` names its fields after them."""
    return cast(Parameters, {**choices.given(), "output_format": output_format})


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
        http = Client(server, api_key=api_key)
    except ValueError as error:
        raise BadSettings(f"--server {error}") from error
    try:
        with http:
            yield http
    except ClientError as error:
        raise as_cli_error(error) from error
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise InputError(f"{where}{error.strerror or error}.") from error


def as_cli_error(error: ClientError) -> CliError:
    """What the command says and ends with after an error of the client."""
    match error:
        case stablesr_client.Unreachable():
            return Unreachable(str(error))
        case stablesr_client.Refused() | stablesr_client.UnexpectedAnswer():
            return Refused(str(error))
        case _:
            return JobFailed(str(error))


def cancel(http: Client, job: Job) -> None:
    """Cancels a job and says so, or that it could not be."""
    try:
        http.cancel(job)
    except ClientError as error:
        console.print(f"The job {job.id} could not be canceled: {error}")
    else:
        console.print(f"The job {job.id} was canceled.")
