"""What a person sees while a folder is worked on: one line for the whole."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import TracebackType
from typing import Self

from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

from cli.folder.plan import printable
from cli.view import Moment, console, duration

__all__ = ["FolderView"]


class FolderView:
    """The progress of a folder, as a context: images done of all, the time left, the failures,
    and the image that moved last. Where standard error is no terminal, a line for each image.

    `now` tells the time, for tests.
    """

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._total = 0
        self._ended = 0
        self._failures = 0
        self._running: dict[str, float] = {}
        self._began: float | None = None
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[count]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[failures]}", style="red"),
            TextColumn("{task.fields[left]}"),
            TextColumn(
                "{task.fields[current]}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=1.0, count="", failures="", left="", current="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Takes the line away; what is printed next stands alone."""
        self._bar.stop()

    def begin(self, total: int, said: str) -> None:
        """`total` images are to be done, which `said` tells."""
        self._total = total
        console.print(said)
        self._draw("beginning")
        self._bar.start()

    def moved(self, name: str, moment: Moment) -> None:
        """An image is at this stage."""
        self._began = self._now() if self._began is None else self._began
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
            self._say(
                f"{printable(name)} -> {printable(output)}, {width} x {height} pixels, "
                f"{seconds:.1f} s" + (f"; {left}" if left else "")
            )

    def failed(self, name: str, reason: str) -> None:
        """An image failed; said at once, on a terminal too."""
        self._failures += 1
        self._end(name)
        self._say(f"{printable(name)} failed: {reason}", style="red")

    def _end(self, name: str) -> None:
        self._running.pop(name, None)
        self._ended += 1
        self._draw()

    def _say(self, text: str, style: str | None = None) -> None:
        count = f"[{self._ended}/{self._total}] " if not console.is_terminal else ""
        console.print(escape(count + text), style=style, soft_wrap=True)

    def _draw(self, current: str | None = None) -> None:
        worked = self._ended + sum(self._running.values())
        if current is not None:
            self._bar.update(self._task, current=current)
        self._bar.update(
            self._task,
            completed=worked / self._total if self._total else 0.0,
            count=f"{self._ended}/{self._total}",
            failures=f"{self._failures} failed" if self._failures else "",
            left=self._left(),
        )

    def _left(self) -> str:
        """The time left, if the rest goes as what has been done."""
        worked = self._ended - self._failures + sum(self._running.values())
        if self._began is None or worked <= 0:
            return ""
        pace = (self._now() - self._began) / worked
        todo = self._total - self._ended - sum(self._running.values())
        return f"{duration(pace * todo)} left"
