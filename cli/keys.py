"""`stablesr keys`: makes, shows and ends the API keys of a service, through its Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from annotated_types import Gt, Le
from rich.table import Table

from cli.errors import BadSettings, Unreachable, load, translate
from cli.options import argument, option, parser
from cli.view import console, print_table

if TYPE_CHECKING:
    from jobs.keys import KeyInfo, Keys

app = typer.Typer(
    help="API keys of the service whose Redis STABLESR_REDIS_URL names.", no_args_is_help=True
)


LIFE = Annotated[timedelta, Gt(timedelta()), Le(timedelta(days=36_500))]
_duration = parser(LIFE, "time such as 90d or PT12H")
KeyId = Annotated[str, argument("The key's id, or the key itself.", "KEY")]


@app.command()
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
        option("Such as 90d, or PT12H.", default="no end", parser=_duration, metavar="TIME"),
    ] = None,
) -> None:
    """Make a key and print it, once: only a digest of it is kept."""
    with _keys() as keys:
        info, text = keys.create(
            name,
            max_queued=max_queued,
            per_minute=per_minute,
            scope=scope,
            expires_in=expires_in,
        )
    console.print(f"Key {info.id} for {info.name}. It is shown now and never again:", markup=False)
    typer.echo(text)


@app.command("list")
def list_keys() -> None:
    """Show every key, ended ones too."""
    with _keys() as keys:
        infos = keys.list()
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


@app.command()
def revoke(key: KeyId) -> None:
    """End a key: within seconds the service refuses it. Its jobs run on."""
    with _keys() as keys:
        info = keys.revoke(key)
    console.print(f"Key {info.id} of {info.name} is revoked.", markup=False)


@app.command("webhook-secret")
def webhook_secret(key: KeyId) -> None:
    """Print the secret with which the webhooks of a key's jobs are signed (whsec_...)."""
    with _keys() as keys:
        secret = keys.webhook_secret(key)
    typer.echo(secret)


@contextmanager
def _keys() -> Iterator[Keys]:
    from jobs.connection import connect
    from jobs.errors import KeyNotFound, QueueUnavailable
    from jobs.keys import Keys

    errors = {KeyNotFound: BadSettings, QueueUnavailable: Unreachable}
    with closing(connect(load())) as connection, translate(errors):
        yield Keys(connection)
