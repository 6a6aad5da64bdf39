"""`stablesr status`: how a service is, in a few lines, from its `/readyz` and `/metrics`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import httpx
import typer
from prometheus_client.parser import text_string_to_metric_families

from cli.errors import Refused, Unreachable

__all__ = ["DEFAULT_SERVER", "run"]

DEFAULT_SERVER = "http://127.0.0.1:8000"
STATES = ("queued", "processing", "succeeded", "failed", "canceled", "expired")

Labels = frozenset[tuple[str, str]]


def run(server: str, api_key: str | None) -> None:
    """Prints it to stdout.

    Raises:
        Unreachable: no server answers at the address.
        Refused: the key is missing or wrong, or the answer is not that of this service.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    try:
        with httpx.Client(base_url=server, headers=headers, timeout=10) as client:
            ready, figures = client.get("/readyz"), client.get("/metrics")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        raise Unreachable(f"No server answers at {server}: {error}.") from error
    if figures.status_code != httpx.codes.OK:
        raise Refused(f"{server}/metrics answers {figures.status_code}: {_detail(figures)}")
    typer.echo(f"{'ready' if ready.is_success else 'not ready'}: {_ready(ready)}")
    for line in _lines(_samples(figures.text)):
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
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][frozenset(sample.labels.items())] = sample.value
    return found


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
        told = dict(labels)
        lines.append(f"memory    {told['worker']}: {told['kind']} {size / 2**20:.0f} MiB")
    return lines


def _by_state(samples: Mapping[str, Mapping[Labels, float]], name: str) -> str:
    counts = {dict(labels)["state"]: count for labels, count in samples.get(name, {}).items()}
    told = [f"{counts[state]:.0f} {state}" for state in STATES if round(counts.get(state, 0))]
    return ", ".join(told) or "nothing"
