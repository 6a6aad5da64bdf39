"""`stablesr drain`: asks a worker to finish what it has and end, through Redis."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

from cli.errors import BadSettings, Unreachable, load, translate
from cli.options import argument
from cli.view import console


def drain(name: Annotated[str, argument("As `stablesr status` shows it.")]) -> None:
    """Let a worker take no further job, finish those it has, and end with code 0."""
    from jobs.connection import connect
    from jobs.errors import QueueUnavailable, WorkerNotFound
    from jobs.workers import Workers

    settings = load()
    errors = {WorkerNotFound: BadSettings, QueueUnavailable: Unreachable}
    with closing(connect(settings)) as connection, translate(errors):
        Workers(connection, ttl_s=settings.worker_ttl_s).drain(name)
    seconds = f"{settings.heartbeat_s:g}"
    console.print(f"Worker {name} drains from its next heartbeat on, within {seconds} s.")
