"""What is to do of a folder and what has become of it: OUT_DIR/.stablesr.jsonl.

The journal has one JSON object a line. A line is on the disk before anything is built on it, so
that a run that is killed leaves no doubt: an image whose last line says "begun" is not done,
whatever its result looks like. A line that was cut off itself counts for nothing. `input` and
`output` are paths relative to the two folders.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Self

from cli.errors import InputError
from cli.folder import Fault, Item, Plan, list_names
from cli.view import FolderView
from stablesr_client import Progress

NAME = ".stablesr.jsonl"


@dataclass(frozen=True)
class Entry:
    """The last that the journal says about an image.

    `state` is "begun", "done", "failed" or "stopped"; `key` is the Idempotency-Key of what a
    server was asked, None without a server.
    """

    state: str
    size: int
    mtime_ns: int
    sha256: str
    output: str
    parameters: Mapping[str, Any]
    key: str | None = None
    output_bytes: int | None = None

    def is_of(self, item: Item, parameters: Mapping[str, Any]) -> bool:
        """Whether it is about this image, as it is now, and these parameters.

        A file that was only touched or copied is the same one: then its content decides.
        """
        if (self.output, self.size, self.parameters) != (item.output, item.size, parameters):
            return False
        return self.mtime_ns == item.mtime_ns or self.sha256 == _digest(item.source)


class Journal:
    """The journal of an output folder, as a context that holds its lock.

    `entries` has the last of each input, `outputs` the names that a run has written, whole or not,
    and `seed` is that of the last run.

    Raises:
        InputError: the folder cannot be written, or another run is at work in it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.entries: dict[str, Entry] = {}
        self.outputs: set[str] = set()
        self.seed: int | None = None

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise InputError(f"Another run is at work in {self._path.parent}.") from None
        self._file.seek(0)
        content = self._file.read()
        for line in content.splitlines():
            self._read(line)
        if content and not content.endswith(b"\n"):
            # Cut off when a run was killed; the next line must not be glued to it.
            self._file.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, state: str, **values: Any) -> None:
        """Adds a line: "run", or what has become of an `input`."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        # ASCII: a name may be made of bytes that are no UTF-8.
        line = json.dumps({"state": state, **values, "time": now}).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror}.") from error
        self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            state = values["state"]
            if state == "run":
                self.seed = int(values["seed"])
                return
            if state == "begun":
                names = ("state", "size", "mtime_ns", "sha256", "output", "parameters")
                entry = Entry(**{name: values[name] for name in names}, key=values.get("key"))
                self.outputs.add(entry.output)
            else:
                entry = self.entries[values["input"]]
                entry = replace(entry, state=state, output_bytes=values.get("output_bytes"))
            self.entries[values["input"]] = entry
        # Not a line of ours, or a part of one.
        except (ValueError, KeyError, TypeError):
            return


class Work:
    """The images that a run has to do, with journal and view.

    Args:
        parameters: those of all of them; an image's own are these and its output's format.
        overwrite: also do what is done, and replace what is not the journal's.

    Raises:
        InputError: a result would replace a file that no earlier run has written.
    """

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        view: FolderView,
        parameters: Mapping[str, Any],
        *,
        overwrite: bool,
    ) -> None:
        self._journal = journal
        self._view = view
        self._options = dict(parameters)
        self._start_times: dict[str, float] = {}
        self.faults: list[Fault] = []
        self.result_count = 0
        self.todo = [item for item in plan.items if overwrite or not self._is_done(item)]
        self.total = len(self.todo) + len(plan.faults)
        self.before = len(plan.items) - len(self.todo)
        foreign = [
            item.output
            for item in self.todo
            if not overwrite and item.output not in journal.outputs and item.target.exists()
        ]
        if foreign:
            raise InputError(
                f"{list_names(foreign, ', ', ' and ')} would be replaced, and no run of "
                "this command has written it; --overwrite replaces it."
            )
        for item in self.todo:
            entry = journal.entries.get(item.name)
            if entry is not None and entry.state == "begun":
                # What a killed run was about to rename.
                for part in item.target.parent.glob(f".{glob.escape(item.target.name)}.*.part"):
                    part.unlink(missing_ok=True)

    def open_key(self, item: Item) -> str | None:
        """The key under which a run that was killed submitted this very image, if one did."""
        entry = self._journal.entries.get(item.name)
        if entry is None or entry.state != "begun":
            return None
        return entry.key if entry.is_of(item, self._parameters(item)) else None

    def begin(self, item: Item, key: str | None = None) -> None:
        """Notes that work on an image begins.

        Raises:
            OSError: it cannot be read, or its result has no place.
        """
        item.target.parent.mkdir(parents=True, exist_ok=True)
        self._journal.write(
            "begun",
            input=item.name,
            size=item.size,
            mtime_ns=item.mtime_ns,
            sha256=_digest(item.source),
            output=item.output,
            parameters=self._parameters(item),
            **({} if key is None else {"key": key}),
        )
        self._start_times[item.name] = monotonic()
        self.show(item, Progress(stage="reading"))

    def show(self, item: Item, now: Progress) -> None:
        """Shows where the work on an image is."""
        self._view.show(item.name, now)

    def end(self, item: Item, width: int, height: int) -> None:
        """Notes that an image's result is in its place."""
        seconds = monotonic() - self._start_times.pop(item.name)
        self._journal.write(
            "done",
            input=item.name,
            output_bytes=item.target.stat().st_size,
            width=width,
            height=height,
            seconds=round(seconds, 3),
        )
        self.result_count += 1
        self._view.end(item.name, item.output, width, height, seconds)

    def fail(self, item: Item, reason: str) -> None:
        """Notes that an image could not be upscaled."""
        # On one line, and without the path that stands before it anyway.
        reason = " ".join(reason.removeprefix(f"{item.source}: ").split())
        self._journal.write("failed", input=item.name, error=reason)
        self.note(Fault(item.name, reason))

    def note(self, fault: Fault) -> None:
        """Counts and shows a fault."""
        self.faults.append(fault)
        self._view.fail(fault.name, fault.reason)

    def stop(self, item: Item) -> None:
        """Notes that work on an image was ended before its end."""
        self._journal.write("stopped", input=item.name)

    def _parameters(self, item: Item) -> dict[str, Any]:
        return {**self._options, "output_format": item.output_format}

    def _is_done(self, item: Item) -> bool:
        entry = self._journal.entries.get(item.name)
        if entry is None or entry.state != "done":
            return False
        try:
            same_size = item.target.stat().st_size == entry.output_bytes
            return same_size and entry.is_of(item, self._parameters(item))
        except OSError:
            return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
