"""`stablesr status`: how a service is, in a few lines, from its `/readyz` and `/metrics`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import typer

from cli.errors import Refused, Unreachable
from cli.options import ApiKey, Server

if TYPE_CHECKING:  # help needs neither HTTP nor metrics
    import httpx

__all__ = ["status"]

STATES = ("queued", "processing", "succeeded", "failed", "canceled", "expired")

Labels = frozenset[tuple[str, str]]


def status(server: Server = None, api_key: ApiKey = None) -> None:
    """Show a server's workers, its queue and what became of its jobs."""
    import httpx

    server = server or "http://127.0.0.1:8000"
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with httpx.Client(base_url=server, headers=headers, timeout=10) as client:
            ready, metrics = client.get("/readyz"), client.get("/metrics")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unreachable(f"No server answers at {server}: {error}.") from error
    if metrics.status_code != httpx.codes.OK:
        raise Refused(f"{server}/metrics answers {metrics.status_code}: {_detail(metrics)}")
    typer.echo(f"{'ready' if ready.is_success else 'not ready'}: {_ready(ready)}")
    for line in _lines(_samples(metrics.text)):
        typer.echo(line)


def _detail(answer: httpx.Response) -> str:
    if answer.headers.get("Content-Type") == "application/problem+json":
        return str(answer.json().get("detail"))
    return "not the answer of this service."


def _ready(answer: httpx.Response) -> str:
    if not answer.is_success:
        return _detail(answer)
    components = answer.json()["components"]
    return ", ".join(f"{name} {part['detail']}" for name, part in components.items())


def _samples(text: str) -> Mapping[str, Mapping[Labels, float]]:
    from prometheus_client.parser import text_string_to_metric_families

    samples: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return samples


def _lines(samples: Mapping[str, Mapping[Labels, float]]) -> list[str]:
    lines = []
    oldest = samples.get("stablesr_queue_oldest_seconds", {})
    running = samples.get("stablesr_running_jobs", {})
    for labels, count in samples.get("stablesr_workers", {}).items():
        preset, state = dict(labels)["preset"], dict(labels)["state"]
        lines.append(f"workers   {preset}: {count:g} {state}")
    for labels, count in running.items():
        lines.append(f"running   {dict(labels)['preset']}: {count:g} jobs")
    for labels, count in samples.get("stablesr_queue_jobs", {}).items():
        if count:
            waits = f"the next one for {oldest.get(labels, 0):.0f} s"
            lines.append(f"waiting   {dict(labels)['preset']}: {count:g} jobs, {waits}")
    lines.append("last minute   " + _by_state(samples, "stablesr_job_moves_last_minute"))
    lines.append("since ever    " + _by_state(samples, "stablesr_job_moves_total"))
    for labels, size in samples.get("stablesr_worker_memory_bytes", {}).items():
        names = dict(labels)
        lines.append(f"memory    {names['worker']}: {names['kind']} {size / 2**20:.0f} MiB")
    return lines


def _by_state(samples: Mapping[str, Mapping[Labels, float]], name: str) -> str:
    counts = {dict(labels)["state"]: count for labels, count in samples.get(name, {}).items()}
    parts = [f"{counts[state]:.0f} {state}" for state in STATES if round(counts.get(state, 0))]
    return ", ".join(parts) or "nothing"
