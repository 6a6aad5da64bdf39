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
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, Self

from cli.errors import InputError, file_errors
from cli.folder import Item, Plan, list_names
from cli.options import UpscaleOptions
from cli.view import FolderView
from stablesr_client import Progress

NAME = ".stablesr.jsonl"


class Journal:
    """The journal of an output folder, as a context that holds its lock.

    `entries` has what the lines say of each input: its `state` is "begun", "done", "failed" or
    "stopped", its `key` the Idempotency-Key of what a server was asked. `outputs` are the names
    that a run has written, whole or not, and `seed` is that of the last run.

    Raises:
        InputError: the folder cannot be written, or another run is at work in it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self.entries: dict[str, dict[str, Any]] = {}
        self.outputs: set[str] = set()
        self.seed: int | None = None

    def __enter__(self) -> Self:
        with file_errors(self._path, "written"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a+b")
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
        with file_errors(self._path, "written"):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
        self._read(line)

    def _read(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            if values["state"] == "run":
                self.seed = int(values["seed"])
            elif values["state"] == "begun":
                self.entries[values["input"]] = values
                self.outputs.add(values["output"])
            else:
                self.entries[values["input"]] |= values
        # Not a line of ours, or a part of one.
        except (ValueError, KeyError, TypeError):
            return


class Work:
    """The images that a run has to do, with journal and view.

    Args:
        options: with `overwrite`, it also does what is done, and replaces foreign files.

    Raises:
        InputError: a result would replace a file that no earlier run has written.
    """

    def __init__(
        self, plan: Plan, journal: Journal, view: FolderView, options: UpscaleOptions
    ) -> None:
        self._journal, self.view, self._options = journal, view, options
        self._start_times: dict[str, float] = {}
        self.faults: dict[str, str] = {}
        self.result_count = 0
        self.todo = [item for item in plan.items if options.overwrite or not self._is_done(item)]
        self.total = len(self.todo) + len(plan.faults)
        self.before = len(plan.items) - len(self.todo)
        foreign = [
            item.output
            for item in self.todo
            if not (options.overwrite or item.output in journal.outputs) and item.target.exists()
        ]
        if foreign:
            raise InputError(
                f"{list_names(foreign, ', ', ' and ')} would be replaced, and no run of "
                "this command has written it; --overwrite replaces it."
            )
        for item in self.todo:
            if journal.entries.get(item.name, {}).get("state") == "begun":
                # What a killed run was about to rename.
                for part in item.target.parent.glob(f".{glob.escape(item.target.name)}.*.part"):
                    part.unlink(missing_ok=True)

    def open_key(self, item: Item) -> str | None:
        """The key under which a run that was killed submitted this very image, if one did."""
        entry = self._entry(item, "begun")
        return None if entry is None else entry.get("key")

    def begin(self, item: Item, key: str | None = None) -> None:
        """Notes that work on an image begins.

        Raises:
            OSError: it cannot be read, or its result has no place.
        """
        item.target.parent.mkdir(parents=True, exist_ok=True)
        self._journal.write(
            "begun",
            input=item.name,
            mtime_ns=item.mtime_ns,
            sha256=_digest(item.source),
            **self._request(item),
            **({} if key is None else {"key": key}),
        )
        self._start_times[item.name] = monotonic()
        self.view.show(item.name, Progress(stage="reading"))

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
        self.view.end(item.name, item.output, width, height, seconds)

    def fail(self, item: Item, reason: str) -> None:
        """Notes that an image could not be upscaled."""
        # On one line, and without the path that stands before it anyway.
        reason = " ".join(reason.removeprefix(f"{item.source}: ").split())
        self._journal.write("failed", input=item.name, error=reason)
        self.note(item.name, reason)

    def note(self, name: str, reason: str) -> None:
        """Counts and shows a failure."""
        self.faults[name] = reason
        self.view.fail(name, reason)

    def stop(self, item: Item) -> None:
        """Notes that work on an image was ended before its end."""
        self._journal.write("stopped", input=item.name)

    def _is_done(self, item: Item) -> bool:
        try:
            entry = self._entry(item, "done")
            return entry is not None and entry.get("output_bytes") == item.target.stat().st_size
        except OSError:
            return False

    def _entry(self, item: Item, state: str) -> dict[str, Any] | None:
        """The journal's entry of this image as it is now, if it has that state.

        A file that was only touched or copied is the same one: then its content decides.
        """
        entry = self._journal.entries.get(item.name, {})
        if not {"state": state, **self._request(item)}.items() <= entry.items():
            return None
        is_untouched = entry.get("mtime_ns") == item.mtime_ns
        return entry if is_untouched or entry.get("sha256") == _digest(item.source) else None

    def _request(self, item: Item) -> dict[str, Any]:
        """What a result depends on, beside the image's content."""
        parameters = self._options.parameters(item.output_format)
        return {"size": item.size, "output": item.output, "parameters": parameters}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
