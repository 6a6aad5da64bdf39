"""`stablesr queue`: pauses the jobs of a preset, through the service's Redis."""

from __future__ import annotations

from contextlib import closing
from typing import Annotated

import typer

from cli.errors import BadSettings, Unreachable, load, translate
from cli.options import argument
from cli.view import console
from models.presets import PRESETS

app = typer.Typer(
    help="The queue of the service whose Redis STABLESR_REDIS_URL names.", no_args_is_help=True
)

Preset = Annotated[str, argument("Whose jobs are meant.", "PRESET")]


@app.command()
def pause(preset: Preset) -> None:
    """Start no further job of a preset. Jobs that run go on; new ones are taken in and wait."""
    _change(preset, to_paused=True)
    console.print(f"{preset} is paused; `stablesr queue resume {preset}` goes on.", markup=False)


@app.command()
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
