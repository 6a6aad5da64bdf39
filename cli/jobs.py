"""`stablesr jobs`: shows a service's jobs and acts on them, through its Redis and its images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from cli.errors import BadSettings, CliError, Refusal, Unreachable, load, translate
from cli.options import AsJson, argument, option
from cli.view import console, print_table, print_text, printable
from jobs.errors import (
    BlobNotFound,
    JobNotFound,
    JobsError,
    QueueUnavailable,
    RecordUnreadable,
    StoreUnavailable,
    WrongState,
)
from jobs.schema import FINAL, Job, JobState

if TYPE_CHECKING:
    from jobs.operator import Operator

app = typer.Typer(
    help="Jobs of the service whose Redis and images STABLESR_REDIS_URL and STABLESR_BLOB_* name.",
    no_args_is_help=True,
)

JobId = Annotated[str, argument("The job's id.", "ID")]
JobIds = Annotated[list[str] | None, argument("The jobs' ids.", "ID")]


@app.command("list")
def list_jobs(
    state: Annotated[JobState | None, option("Only jobs in it.", default="all")] = None,
    preset: Annotated[str | None, option("Only jobs for it.", default="all")] = None,
    owner: Annotated[
        str | None, option("Only jobs of the key with this id; '': without one.", default="all")
    ] = None,
    limit: Annotated[int, option("At most so many.", default="20", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    with _operator() as operator:
        jobs = list(islice(operator.jobs(state, preset, owner), limit))
    if as_json:
        for job in jobs:
            print(json.dumps(job.model_dump(mode="json")))
        return
    table = Table(
        Column("id", no_wrap=True),
        "state",
        "preset",
        "key",
        "made (UTC)",
        "attempt",
        "why it failed",
    )
    for job in jobs:
        time, reason = f"{job.created_at:%Y-%m-%d %H:%M:%S}", job.error.type if job.error else ""
        table.add_row(job.id, job.state, job.preset, job.owner, time, str(job.attempt), reason)
    print_table(table, "There are no such jobs.")


@app.command()
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show all that is known of a job."""
    with _operator() as operator:
        fields = operator.get(job_id).model_dump(mode="json")
    if as_json:
        print(json.dumps(fields))
        return
    table = Table("field", "value")
    for name, value in fields.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            # What clients wrote must not move the operator's terminal.
            table.add_row(name, Text(printable(text)))
    print_table(table)


@app.command()
def retry(
    job_ids: JobIds = None,
    all_failed: Annotated[bool, typer.Option("--all", help="All that failed.")] = False,
) -> None:
    """Queue failed jobs again, as if new. Their webhooks are told of the new end, too."""
    with _operator() as operator:
        state = JobState.FAILED if all_failed else None
        _act(operator, operator.retry, job_ids, state, "--all")


@app.command()
def cancel(job_ids: Annotated[list[str], argument("The jobs' ids.", "ID")]) -> None:
    """Cancel jobs; those that run stop at their next step."""
    with _operator() as operator:
        _act(operator, operator.cancel, job_ids)


@app.command()
def purge(
    job_ids: JobIds = None,
    state: Annotated[JobState | None, option("All jobs that ended so.", default="none")] = None,
) -> None:
    """Remove ended jobs now: their images, and that they were there."""
    if state is not None and state not in FINAL:
        raise BadSettings(f"--state is {state}, but must be one of {', '.join(sorted(FINAL))}.")
    with _operator() as operator:
        _act(operator, operator.purge, job_ids, state, "--state")


def _act(
    operator: Operator,
    action: Callable[[str], Job],
    job_ids: list[str] | None,
    state: JobState | None = None,
    selection: str = "",
) -> None:
    """Does it to each job, or to all in the state, and says what it is then; ends with Refusal
    where one refuses."""
    if bool(job_ids) == (state is not None):
        raise BadSettings(f"Give either the ids of jobs or {selection}.")
    refusals, job_ids = 0, job_ids or [job.id for job in operator.jobs(state)]
    for job_id in job_ids:
        try:
            job = action(job_id)
        except (BlobNotFound, JobNotFound, RecordUnreadable, WrongState) as error:
            refusals += 1
            text = error.detail
        else:
            text = f"{job.id} {job.state}" + ", will stop" * job.cancel_requested
        print_text(text)
    if refusals:
        raise Refusal(f"{refusals} of {len(job_ids)} jobs are as they were.")
    if not job_ids:
        console.print("There are no such jobs.")


@contextmanager
def _operator() -> Iterator[Operator]:
    from jobs.operator import Operator

    errors: dict[type[JobsError], type[CliError]] = {
        JobNotFound: BadSettings,
        RecordUnreadable: Refusal,
        QueueUnavailable: Unreachable,
        StoreUnavailable: Unreachable,
    }
    with translate(errors), closing(Operator(load())) as operator:
        yield operator
