"""`stablesr status`: how a service is, in a few lines, from its `/readyz` and `/metrics`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import typer

from cli.errors import Refusal, Unreachable
from cli.options import ApiKey, Server

if TYPE_CHECKING:  # help needs no metrics
    from prometheus_client.samples import Sample

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
