"""What a person sees while work goes on: one line with the stage, a bar, the steps and the time."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from stablesr_client import Progress as JobProgress

if TYPE_CHECKING:  # torch takes seconds; help needs none of it
    from models.checkpoints.files import WeightsProgress

console = Console(stderr=True, highlight=False)
"""Messages go to standard error; standard output stays free for what a script reads."""

UNLIMITED = 1000
"""Characters, more than any line has."""

PERCENTAGE = "{task.percentage:>3.0f} %"
WEIGHTS_STAGES = {
    "wait": "another process is at work; waiting",
    "download": "downloading",
    "check": "checking",
    "convert": "converting to",
    "verify": "verifying",
}


class _View(Progress):
    """A bar that is drawn anew in place on a terminal, and not at all elsewhere."""

    def __init__(self, *columns: str | ProgressColumn, expand: bool = False) -> None:
        disable = not console.is_terminal
        super().__init__(*columns, console=console, transient=True, expand=expand, disable=disable)

    def print_line(self, text: str) -> None:
        """A line where there is no bar."""
        if not console.is_terminal:
            print_text(text)


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
        self.print_line(stage)

    def show(self, now: JobProgress) -> None:
        """Shows the stage, the fraction of all work, the step, and the time left."""
        self.update(
            self._task,
            description=now.stage,
            completed=now.fraction,
            steps=f"step{_steps(now)}" if _steps(now) else "",
            eta="" if now.eta_seconds is None else f"{duration(now.eta_seconds)} left",
        )
        if now.stage != self._stage:
            self._stage = now.stage
            self.print_line(now.stage)


class WeightsView(_View):
    """The progress of work on weights, as a context; without a terminal a line for each stage of
    each file."""

    def __init__(self) -> None:
        super().__init__(
            "{task.description}", BarColumn(bar_width=32), DownloadColumn(), TimeRemainingColumn()
        )
        self._task = self.add_task("", total=None, visible=False)
        self._description = ""

    def __call__(self, now: WeightsProgress) -> None:
        description = f"{WEIGHTS_STAGES[now.stage]} {now.name}"
        if description != self._description:
            self._description = description
            self.reset(self._task, description=description, visible=True)
            self.print_line(description)
        self.update(self._task, completed=now.position, total=now.total or None)


class FolderView(_View):
    """The progress of a folder: images done of all, the time left, the failures, and the image
    that is worked on. Where standard error is no terminal, a line for each image."""

    def __init__(self) -> None:
        super().__init__(
            SpinnerColumn(),
            "{task.fields[ends]}/{task.total}",
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
        self._ends = self._failures = 0
        self._fractions: dict[str, float] = {}
        self._start_time: float | None = None
        self._task = self.add_task("", ends=0, failures="", left="", current="beginning")

    def __enter__(self) -> Self:
        # The line comes with `begin`: what is printed before it stands alone.
        return self

    def begin(self, total: int, summary: str) -> None:
        console.print(summary)
        self.update(self._task, total=total)
        self.start()

    def look(self, name: str) -> None:
        """An image's header is read."""
        self._draw(current=f"looking at {printable(name)}")

    def fit(self, name: str, scale: float, request: float) -> None:
        """An image will be smaller than asked for."""
        self._print(f"{printable(name)} is made at scale {scale:g} instead of {request:g}")

    def show(self, name: str, now: JobProgress) -> None:
        """An image is at this stage."""
        self._start_time = monotonic() if self._start_time is None else self._start_time
        self._fractions[name] = now.fraction
        others = f" (+{len(self._fractions) - 1})" if len(self._fractions) > 1 else ""
        # The name last: it is what may be cut off.
        self._draw(current=f"{now.stage}{_steps(now)} {printable(name)}{others}")

    def end(self, name: str, output: str, width: int, height: int, seconds: float) -> None:
        """An image's result is in its place."""
        self._drop(name)
        if not console.is_terminal:
            left = self._left()
            self._print(
                f"{printable(name)} -> {printable(output)}, {width} x {height} pixels, "
                f"{seconds:.1f} s" + (f"; {left}" if left else "")
            )

    def fail(self, name: str, reason: str) -> None:
        """An image failed; said at once, on a terminal too."""
        self._failures += 1
        self._drop(name)
        self._print(f"{printable(name)} failed: {reason}", style="red")

    def _drop(self, name: str) -> None:
        self._fractions.pop(name, None)
        self._ends += 1
        self._draw(ends=self._ends, failures=f"{self._failures} failed" if self._failures else "")

    def _images(self) -> float:
        return self._ends + sum(self._fractions.values())

    def _draw(self, **fields: Any) -> None:
        self.update(self._task, completed=self._images(), left=self._left(), **fields)

    def _print(self, text: str, style: str | None = None) -> None:
        count = f"[{self._ends}/{self.tasks[0].total}] " if not console.is_terminal else ""
        console.print(escape(count + text), style=style, soft_wrap=True)

    def _left(self) -> str:
        """The time left, if the rest goes as what has been done."""
        images, total = self._images(), self.tasks[0].total or 0
        if self._start_time is None or images <= self._failures:
            return ""
        image_s = (monotonic() - self._start_time) / (images - self._failures)
        return f"{duration(image_s * (total - images))} left"


def _steps(now: JobProgress) -> str:
    return f" {now.step}/{now.steps}" if now.step is not None and now.steps else ""


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
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in name)


def print_text(text: str) -> None:
    """A message as it is: never cut, and its brackets are no markup."""
    console.print(text, soft_wrap=True, markup=False)


def print_table(table: Table, absence: str = "") -> None:
    """Prints a table on standard output: within a terminal's width, and for programs uncut. Of one
    without rows the message `absence`."""
    if absence and not table.row_count:
        console.print(absence)
        return
    out = Console(highlight=False)
    if not out.is_terminal:
        out = Console(highlight=False, width=UNLIMITED)
    out.print(table)
