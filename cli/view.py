"""What a person sees while work goes on: one line with the stage, a bar, the steps and the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

if TYPE_CHECKING:
    from models.checkpoints.files import WeightsProgress

__all__ = [
    "FolderView",
    "Moment",
    "ProgressView",
    "WeightsView",
    "console",
    "duration",
    "printable",
    "readable",
]

console = Console(stderr=True, highlight=False)
"""Messages go to standard error; standard output stays free for what a script reads."""

PERCENTAGE = "{task.percentage:>3.0f} %"
WEIGHTS_STAGES = {
    "wait": "another process is at work; waiting",
    "download": "downloading",
    "check": "checking",
    "convert": "converting to",
    "verify": "verifying",
}


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


class _View(Progress):
    """A bar that is drawn anew in place on a terminal, and not at all elsewhere."""

    def __init__(self, *columns: str | ProgressColumn, expand: bool = False) -> None:
        disable = not console.is_terminal
        super().__init__(*columns, console=console, transient=True, expand=expand, disable=disable)


class ProgressView(_View):
    """The progress of an image, as a context; without a terminal a line for each stage."""

    def __init__(self, stage: str) -> None:
        super().__init__(
            SpinnerColumn(),
            "{task.description:<12}",
            BarColumn(bar_width=32),
            PERCENTAGE,
            "{task.fields[steps]}",
            "{task.fields[eta]}",
        )
        self._task = self.add_task(stage, total=1.0, steps="", eta="")
        self._stage = stage

    def __enter__(self) -> Self:
        self._print_stage()
        return super().__enter__()

    def show(self, now: Moment) -> None:
        """Shows the stage, the fraction of all work, the step, and the time left."""
        self.update(
            self._task,
            description=now.stage,
            completed=now.fraction,
            steps=f"step {now.step}/{now.steps}" if now.step is not None and now.steps else "",
            eta="" if now.eta_seconds is None else f"{duration(now.eta_seconds)} left",
        )
        if now.stage != self._stage:
            self._stage = now.stage
            self._print_stage()

    def _print_stage(self) -> None:
        if not console.is_terminal:
            console.print(self._stage)


class WeightsView(_View):
    """The progress of work on weights, as a context; without a terminal a line for each stage of
    each file."""

    def __init__(self) -> None:
        super().__init__(
            "{task.description}", BarColumn(bar_width=32), DownloadColumn(), TimeRemainingColumn()
        )
        self._task: TaskID | None = None
        self._description = ""

    def __call__(self, now: WeightsProgress) -> None:
        description = f"{WEIGHTS_STAGES[now.stage]} {now.name}"
        if self._task is None or description != self._description:
            self._description = description
            if self._task is not None:
                self.remove_task(self._task)
            self._task = self.add_task(description, total=now.total or None)
            if not console.is_terminal:
                console.print(description, soft_wrap=True, markup=False)
        self.update(self._task, completed=now.position, total=now.total or None)


class FolderView(_View):
    """The progress of a folder: images done of all, the time left, the failures, and the image
    that moved last. Where standard error is no terminal, a line for each image.

    `clock` tells the time, for tests.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        super().__init__(
            SpinnerColumn(),
            "{task.fields[count]}",
            BarColumn(bar_width=24),
            PERCENTAGE,
            TextColumn("{task.fields[failures]}", style="red"),
            "{task.fields[left]}",
            TextColumn(
                "{task.fields[current]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            expand=True,
        )
        self._clock = clock
        self._total = 0
        self._ended = 0
        self._failures = 0
        self._current = ""
        self._running: dict[str, float] = {}
        self._start_time: float | None = None
        self._task = self.add_task("", total=1.0, count="", failures="", left="", current="")

    def __enter__(self) -> Self:
        # The line comes with `begin`: what is printed before it stands alone.
        return self

    def begin(self, total: int, summary: str) -> None:
        """`total` images are to be done, which `summary` says."""
        self._total = total
        console.print(summary)
        self._draw("beginning")
        self.start()

    def moved(self, name: str, moment: Moment) -> None:
        """An image is at this stage."""
        self._start_time = self._clock() if self._start_time is None else self._start_time
        self._running[name] = moment.fraction
        steps = f" {moment.step}/{moment.steps}" if moment.step is not None and moment.steps else ""
        others = f" (+{len(self._running) - 1})" if len(self._running) > 1 else ""
        # The name last: it is what may be cut off.
        self._draw(f"{moment.stage}{steps} {printable(name)}{others}")

    def done(self, name: str, output: str, width: int, height: int, seconds: float) -> None:
        """An image's result is in its place."""
        self._end(name)
        if not console.is_terminal:
            left = self._left()
            self._print(
                f"{printable(name)} -> {printable(output)}, {width} x {height} pixels, "
                f"{seconds:.1f} s" + (f"; {left}" if left else "")
            )

    def failed(self, name: str, reason: str) -> None:
        """An image failed; said at once, on a terminal too."""
        self._failures += 1
        self._end(name)
        self._print(f"{printable(name)} failed: {reason}", style="red")

    def _end(self, name: str) -> None:
        self._running.pop(name, None)
        self._ended += 1
        self._draw()

    def _print(self, text: str, style: str | None = None) -> None:
        count = f"[{self._ended}/{self._total}] " if not console.is_terminal else ""
        console.print(escape(count + text), style=style, soft_wrap=True)

    def _draw(self, current: str | None = None) -> None:
        self._current = self._current if current is None else current
        worked = self._ended + sum(self._running.values())
        self.update(
            self._task,
            completed=worked / self._total if self._total else 0.0,
            count=f"{self._ended}/{self._total}",
            failures=f"{self._failures} failed" if self._failures else "",
            left=self._left(),
            current=self._current,
        )

    def _left(self) -> str:
        """The time left, if the rest goes as what has been done."""
        worked = self._ended - self._failures + sum(self._running.values())
        if self._start_time is None or worked <= 0:
            return ""
        pace = (self._clock() - self._start_time) / worked
        todo = self._total - self._ended - sum(self._running.values())
        return f"{duration(pace * todo)} left"


def duration(seconds: float) -> str:
    """Seconds in words."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def readable(size: int) -> str:
    """A number of bytes in words."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def printable(name: str) -> str:
    """A file's name as a terminal can show it, whatever bytes it is made of."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
