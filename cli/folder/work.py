"""A run's bookkeeping: what is left to do, and what has become of it, journal and view together."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from cli.errors import InputError
from cli.folder.journal import Journal
from cli.folder.plan import SHOWN, Fault, Item, Plan
from cli.local import Written
from cli.view import FolderView, Moment, printable

__all__ = ["Work"]


class Work:
    """The images that a run has to do.

    Args:
        shared: the parameters of all of them; an image's own are these and its output's format.
        overwrite: also do what is done, and replace what is not the journal's.

    Raises:
        InputError: a result would replace a file that no earlier run has written.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        view: FolderView,
        shared: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        self._journal = journal
        self._view = view
        self._shared = dict(shared)
        self._began: dict[str, float] = {}
        self.failed: list[Fault] = []
        self.done = 0
        self.unbegun = 0
        """Images that failed before anything could be done about them."""
        self.todo: Sequence[Item] = [
            item for item in plan.items if overwrite or not self._is_done(item)
        ]
        self.before = len(plan.items) - len(self.todo)
        if not overwrite:
            self._check_foreign()
        self._sweep()

    def announce(self, faults: Sequence[Fault], summary: str) -> None:
        """Shows how much there is to do, as `summary`, and the faults among it."""
        self.unbegun = len(faults)
        self._view.begin(len(self.todo) + len(faults), summary)
        for fault in faults:
            self._fail(fault)

    def parameters(self, item: Item) -> dict[str, Any]:
        """What an image is upscaled with, as the journal keeps it."""
        return {**self._shared, "output_format": item.output_format}

    def key_of_killed(self, item: Item) -> str | None:
        """The key under which a run that was killed submitted this very image, if one did."""
        entry = self._journal.entry(item.name)
        if entry is None or entry.state != "begun":
            return None
        return entry.key if entry.is_of(item, self.parameters(item)) else None

    def begin(self, item: Item, key: str | None = None) -> bool:
        """Notes that work on an image begins; False when it cannot be read, which is noted too."""
        try:
            item.target.parent.mkdir(parents=True, exist_ok=True)
            self._journal.begin(item, self.parameters(item), key)
        except OSError as error:
            self.fail(item, error.strerror or str(error))
            return False
        self._began[item.name] = monotonic()
        self._view.moved(item.name, Moment("reading"))
        return True

    def moved(self, item: Item, moment: Moment) -> None:
        """Shows where the work on an image is."""
        self._view.moved(item.name, moment)

    def end(self, item: Item, written: Written) -> None:
        """Notes that an image's result is in its place."""
        seconds = monotonic() - self._began.pop(item.name)
        self._journal.end(
            item,
            "done",
            output_bytes=written.bytes,
            width=written.width,
            height=written.height,
            seconds=round(seconds, 3),
        )
        self.done += 1
        self._view.done(item.name, item.output, written.width, written.height, seconds)

    def fail(self, item: Item, reason: str) -> None:
        """Notes that an image could not be upscaled."""
        # On one line, and without the path that stands before it anyway.
        reason = " ".join(reason.removeprefix(f"{item.source}: ").split())
        self._journal.end(item, "failed", error=reason)
        self._fail(Fault(item.name, reason))

    def stop(self, item: Item) -> None:
        """Notes that work on an image was ended before its end."""
        self._journal.end(item, "stopped")

    def _fail(self, fault: Fault) -> None:
        self.failed.append(fault)
        self._view.failed(fault.name, fault.reason)

    def _is_done(self, item: Item) -> bool:
        entry = self._journal.entry(item.name)
        if entry is None or entry.state != "done":
            return False
        try:
            if item.target.stat().st_size != entry.output_bytes:
                return False
            return entry.is_of(item, self.parameters(item))
        except OSError:
            return False

    def _check_foreign(self) -> None:
        foreign = [
            item.output
            for item in self.todo
            if not self._journal.wrote(item.output) and item.target.exists()
        ]
        if foreign:
            names = printable(", ".join(foreign[:SHOWN]))
            more = f" and {len(foreign) - SHOWN} more" if len(foreign) > SHOWN else ""
            raise InputError(
                f"{names}{more} would be replaced, and no run of this command has written it; "
                "--overwrite replaces it."
            )

    def _sweep(self) -> None:
        """Removes what a killed run was about to rename."""
        for item in self.todo:
            entry = self._journal.entry(item.name)
            if entry is not None and entry.state == "begun":
                for part in item.target.parent.glob(f".{glob.escape(item.target.name)}.*.part"):
                    part.unlink(missing_ok=True)
