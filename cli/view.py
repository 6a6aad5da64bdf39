"""What a person sees while work goes on: one line with the stage, a bar, the steps and the time."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

__all__ = ["Moment", "ProgressView", "console", "duration"]

console = Console(stderr=True, highlight=False)
"""Messages go to standard error; standard output stays free for what a script reads."""


@dataclass(frozen=True)
class Moment:
    """How far the work on an image is.

    `fraction` of all of it is 0 to 1; `step` of `steps` counts from 1 within the stage that has
    steps; `eta_seconds` is None while it is unknown.
    """

    stage: str
    fraction: float = 0.0
    step: int | None = None
    steps: int | None = None
    eta_seconds: float | None = None


class ProgressView:
    """The progress line, as a context; on a terminal it is drawn anew in place.

    Where standard error is no terminal, a line is printed when the stage changes.
    """

    def __init__(self, first: str) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=32),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[steps]}"),
            TextColumn("{task.fields[eta]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task(first, total=1.0, steps="", eta="")
        self._stage = first

    def __enter__(self) -> Self:
        self._bar.start()
        self._say()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, now: Moment) -> None:
        """Shows the stage, the fraction of all work, the step, and the time left."""
        self._bar.update(
            self._task,
            description=now.stage,
            completed=now.fraction,
            steps=f"step {now.step}/{now.steps}" if now.step is not None and now.steps else "",
            eta="" if now.eta_seconds is None else f"{duration(now.eta_seconds)} left",
        )
        if now.stage != self._stage:
            self._stage = now.stage
            self._say()

    def _say(self) -> None:
        if not console.is_terminal:
            console.print(self._stage)


def duration(seconds: float) -> str:
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
