"""How a service is, from its `/readyz` and `/metrics`, and what is done to it through its Redis:
`stablesr status`, `stablesr drain`, `stablesr queue` and `stablesr keys`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import httpx
import typer
from annotated_types import Gt, Le
from rich.table import Table

from cli.errors import BadSettings, Refusal, Unreachable, load, translate
from cli.options import ApiKey, Server, argument, option, parser
from cli.view import console, print_table
from jobs.errors import KeyNotFound, QueueUnavailable, WorkerNotFound
from jobs.settings import Settings
from models.presets import PRESETS

if TYPE_CHECKING:  # help needs neither metrics nor keys
    from prometheus_client.samples import Sample

    from jobs.keys import KeyInfo, Keys

queue = typer.Typer(
    help="The queue of the service whose Redis STABLESR_REDIS_URL names.", no_args_is_help=True
)

keys = typer.Typer(
    help="API keys of the service whose Redis STABLESR_REDIS_URL names.", no_args_is_help=True
)

Preset = Annotated[str, argument("Whose jobs are meant.", "PRESET")]
KeyId = Annotated[str, argument("The key's id, or the key itself.", "KEY")]
LIFE = Annotated[timedelta, Gt(timedelta()), Le(timedelta(days=36_500))]
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
    from jobs.workers import Workers

    settings = load()
    with _redis(settings) as connection:
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

    if preset not in PRESETS:
        raise BadSettings(f"PRESET must be one of {', '.join(PRESETS)}; got {preset!r}.")
    change = fair_queue.pause if to_paused else fair_queue.resume
    with _redis(load()) as connection:
        change(connection, preset)


@keys.command()
def create(
    name: Annotated[str, argument("Whose key it is.")],
    max_queued: Annotated[
        int | None,
        option("Jobs that may wait at once.", default="a tenth of STABLESR_MAX_QUEUED", min=1),
    ] = None,
    per_minute: Annotated[
        int | None, option("Uploads a minute.", default="STABLESR_UPLOADS_PER_MINUTE", min=1)
    ] = None,
    scope: Annotated[
        Literal["all", "jobs", "metrics"],
        option("jobs: all but GET /metrics; metrics: that alone.", default="all"),
    ] = "all",
    expires_in: Annotated[
        timedelta | None,
        option(
            "Such as 90d, or PT12H.",
            default="no end",
            parser=parser(LIFE, "time such as 90d or PT12H"),
            metavar="TIME",
        ),
    ] = None,
) -> None:
    """Make a key and print it, once: only a digest of it is kept."""
    with _keys() as all_keys:
        info, text = all_keys.create(
            name,
            max_queued=max_queued,
            per_minute=per_minute,
            scope=scope,
            expires_in=expires_in,
        )
    console.print(f"Key {info.id} for {info.name}. It is shown now and never again:", markup=False)
    typer.echo(text)


@keys.command("list")
def list_keys() -> None:
    """Show every key, ended ones too."""
    with _keys() as all_keys:
        infos = all_keys.list()
    columns = ("id", "name", "scope", "made", "last used", "waiting jobs", "uploads a minute")
    table = Table(*columns, "state")
    for info in infos:
        table.add_row(
            info.id,
            info.name,
            info.scope,
            f"{info.created_at:%Y-%m-%d}",
            "never" if info.used_at is None else f"{info.used_at:%Y-%m-%d %H:%M} UTC",
            "the server's" if info.max_queued is None else str(info.max_queued),
            "the server's" if info.per_minute is None else str(info.per_minute),
            _state(info),
        )
    print_table(table, "There are no keys.")


def _state(info: KeyInfo) -> str:
    if info.revoked_at is not None:
        return f"revoked {info.revoked_at:%Y-%m-%d}"
    if info.expires_at is None:
        return "valid"
    verb = "expired" if info.has_expired else "valid until"
    return f"{verb} {info.expires_at:%Y-%m-%d %H:%M} UTC"


@keys.command()
def revoke(key: KeyId) -> None:
    """End a key: within seconds the service refuses it. Its jobs run on."""
    with _keys() as all_keys:
        info = all_keys.revoke(key)
    console.print(f"Key {info.id} of {info.name} is revoked.", markup=False)


@keys.command("webhook-secret")
def webhook_secret(key: KeyId) -> None:
    """Print the secret with which the webhooks of a key's jobs are signed (whsec_...)."""
    with _keys() as all_keys:
        secret = all_keys.webhook_secret(key)
    typer.echo(secret)


@contextmanager
def _keys() -> Iterator[Keys]:
    from jobs.keys import Keys

    with _redis(load()) as connection:
        yield Keys(connection)


@contextmanager
def _redis(settings: Settings) -> Iterator[Any]:
    """A connection to the service's Redis, whose type help does not need."""
    from jobs.connection import connect

    errors = {
        **dict.fromkeys((KeyNotFound, WorkerNotFound), BadSettings),
        QueueUnavailable: Unreachable,
    }
    with closing(connect(settings)) as connection, translate(errors):
        yield connection
