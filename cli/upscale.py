"""`stablesr upscale`: one file, by a server or by this process alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cli.client import Client, RemoteJob
from cli.errors import CliError
from cli.files import check_input, check_output
from cli.view import ProgressView, console

__all__ = ["Choices", "remote", "show_job"]


@dataclass(frozen=True)
class Choices:
    """What the person chose; None leaves a thing to the server's or the preset's default."""

    fidelity_weight: float | None = None
    scale: float | None = None
    steps: int | None = None
    seed: int | None = None
    color_fix: str | None = None
    sampler: str | None = None
    preset: str | None = None

    def given(self) -> dict[str, float | int | str]:
        """Only what was chosen."""
        return {key: value for key, value in vars(self).items() if value is not None}


def remote(source: Path, target: Path, server: str, choices: Choices) -> None:
    """Upscales `source` to `target` through the server at `server`.

    An interruption cancels the job there.

    Raises:
        CliError: as `cli.client` raises them.
    """
    output_format = check_output(target)
    check_input(source)
    fields: Mapping[str, str] = {
        **{key: str(value) for key, value in choices.given().items()},
        "output_format": output_format,
    }
    with Client(server) as client, ProgressView("uploading") as view:
        job = client.submit(source, fields)
        try:
            job = client.wait(job, lambda now: show_job(view, now))
            size = client.download(job, target)
        except KeyboardInterrupt:
            _cancel(client, job.id)
            raise
    assert job.result is not None  # a succeeded job has one
    console.print(
        f"{target}: {job.result.width} x {job.result.height} pixels, {size} bytes, "
        f"preset {job.preset}, seed {job.seed}.",
        soft_wrap=True,
    )


def show_job(view: ProgressView, job: RemoteJob) -> None:
    """Shows where a job is: its place in the queue, or its stage and step."""
    if job.state == "queued":
        place = "" if job.queue_position is None else f" ({job.queue_position})"
        view.update(f"queued{place}", fraction=0.0)
    elif job.progress is None:
        view.update(job.state, fraction=1.0 if job.ended else 0.0)
    else:
        now = job.progress
        view.update(
            now.stage,
            fraction=now.fraction,
            step=now.step,
            steps=now.steps,
            eta_seconds=now.eta_seconds,
        )


def _cancel(client: Client, job_id: str) -> None:
    try:
        client.cancel(job_id)
    except CliError as error:
        console.print(f"The job {job_id} could not be canceled: {error}")
    else:
        console.print(f"The job {job_id} was canceled.")
