"""How a service is, from its `/readyz` and `/metrics`, and what is done to it through its Redis:
`stablesr status`, `stablesr drain` and `stablesr queue`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import httpx
import typer

from cli.errors import BadSettings, Refusal, Unreachable, load, translate
from cli.options import ApiKey, Server, argument
from cli.view import console
from models.presets import PRESETS

if TYPE_CHECKING:  # help needs no metrics
    from prometheus_client.samples import Sample

queue = typer.Typer(
    help="The queue of the service whose Redis STABLESR_REDIS_URL names.", no_args_is_help=True
)

Preset = Annotated[str, argument("Whose jobs are meant.", "PRESET")]
STATES = ("queued", "processing", "succeeded", "failed", "canceled", "expired")


def status(server: Server = None, api_key: ApiKey = None) -> None:
    """Show a server's workers, its queue and what became of its jobs."""
    from prometheus_client.parser import text_string_to_metric_families

    server = server or "http://127.0.0.1:8000"
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with httpx.Client(base_url=server, headers=headers, timeout=10) as client:
            ready, metrics = client.get("/readyz"), client.get("/metrics")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unreachable(f"No server answers at {server}: {error}.") from error
    if metrics.status_code != httpx.codes.OK:
        raise Refusal(f"{server}/metrics answers {metrics.status_code}: {_detail(metrics)}")
    if ready.is_success:
        components = ready.json()["components"].items()
        typer.echo("ready: " + ", ".join(f"{name} {part['detail']}" for name, part in components))
    else:
        typer.echo(f"not ready: {_detail(ready)}")
    families = text_string_to_metric_families(metrics.text)
    for line in _lines([sample for family in families for sample in family.samples]):
        typer.echo(line)


def _detail(response: httpx.Response) -> str:
    if response.headers.get("Content-Type") == "application/problem+json":
        return str(response.json().get("detail"))
    return "not the answer of this service."


def _lines(samples: list[Sample]) -> Iterator[str]:
    def select(name: str) -> list[Sample]:
        return [sample for sample in samples if sample.name == f"stablesr_{name}"]

    def by_state(name: str) -> str:
        counts = {sample.labels["state"]: sample.value for sample in select(name)}
        parts = [f"{counts[state]:.0f} {state}" for state in STATES if round(counts.get(state, 0))]
        return ", ".join(parts) or "nothing"

    for s in select("workers"):
        yield f"workers   {s.labels['preset']}: {s.value:g} {s.labels['state']}"
    for s in select("running_jobs"):
        yield f"running   {s.labels['preset']}: {s.value:g} jobs"
    oldest, paused = (
        {s.labels["preset"]: s.value for s in select(name)}
        for name in ("queue_oldest_seconds", "queue_paused")
    )
    for s in select("queue_jobs"):
        preset = s.labels["preset"]
        pause = "; paused" * bool(paused.get(preset))
        if s.value or pause:
            waits = f"the next one for {oldest.get(preset, 0):.0f} s"
            yield f"waiting   {preset}: {s.value:g} jobs, {waits}{pause}"
    yield "last minute   " + by_state("job_moves_last_minute")
    yield "since ever    " + by_state("job_moves_total")
    for s in select("worker_memory_bytes"):
        yield f"memory    {s.labels['worker']}: {s.labels['kind']} {s.value / 2**20:.0f} MiB"


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


@queue.command()
def pause(preset: Preset) -> None:
    """Start no further job of a preset. Jobs that run go on; new ones are taken in and wait."""
    _change(preset, to_paused=True)
    console.print(f"{preset} is paused; `stablesr queue resume {preset}` goes on.", markup=False)


@queue.command()
def resume(preset: Preset) -> None:
    """Start jobs of a preset again, the next within a second."""
    _change(preset, to_paused=False)
    console.print(f"{preset} goes on.", markup=False)


def _change(preset: str, *, to_paused: bool) -> None:
    from jobs import fair_queue
    from jobs.connection import connect
    from jobs.errors import QueueUnavailable

    if preset not in PRESETS:
        raise BadSettings(f"PRESET must be one of {', '.join(PRESETS)}; got {preset!r}.")
    change = fair_queue.pause if to_paused else fair_queue.resume
    with closing(connect(load())) as connection, translate({QueueUnavailable: Unreachable}):
        change(connection, preset)
