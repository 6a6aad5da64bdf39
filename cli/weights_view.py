"""What `stablesr weights` shows: a bar while it works, and sizes for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from cli.view import console

if TYPE_CHECKING:
    from models.checkpoints.files import WeightsProgress

__all__ = ["WeightsView", "as_text", "readable"]

_STAGES = {
    "wait": "another process is at work; waiting",
    "download": "downloading",
    "check": "checking",
    "convert": "converting to",
    "verify": "verifying",
}


class WeightsView:
    """Shows the stage and a bar; without a terminal a line for each stage of each file."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            DownloadColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._shown = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, now: WeightsProgress) -> None:
        description = f"{_STAGES[now.stage]} {now.name}"
        if description != self._shown:
            self._shown = description
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(description, total=now.total or None)
            if not console.is_terminal:
                console.print(description, soft_wrap=True, markup=False)
        if self._task is not None:
            self._bar.update(self._task, completed=now.done, total=now.total or None)


def readable(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def as_text(table: Table) -> str:
    """A table as wide as it needs, for a terminal or a script."""
    wide = Console(width=200)
    with wide.capture() as capture:
        wide.print(table)
    return capture.get()
