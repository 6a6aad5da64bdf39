"""What is to do of a folder and what has become of it: OUT_DIR/.stablesr.jsonl.

The journal has one JSON object a line. A line is on the disk before anything is built on it, so
that a run that is killed leaves no doubt: an image whose last line says "begun" is not done,
whatever its result looks like. A line that was cut off itself counts for nothing. `input` and
`output` are paths relative to the two folders.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO

from cli.errors import InputError, file_errors
from cli.folder import Item, Plan, list_names
from cli.options import UpscaleOptions
from cli.view import FolderView, print_text
from models.checkpoints.files import partial_path
from models.parameters import SEED_MAX
from stablesr_client import Progress

NAME = ".stablesr.jsonl"
# Within what msvcrt takes, 2**31.
LOCK_OFFSET = 2**30


@contextmanager
def open_work(plan: Plan, view: FolderView, options: UpscaleOptions) -> Iterator[Work]:
    """The work of a run, as a context that holds the journal's lock.

    Raises:
        InputError: the folder cannot be written, another run is at work in it, or a result would
            replace a file that no earlier run has written.
    """
    path = options.target / NAME
    with file_errors(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        try:
            _lock(file)
        # Windows and file systems of Windows servers say EACCES where others say EAGAIN.
        except (BlockingIOError, PermissionError):
            raise InputError(f"Another run is at work in {path.parent}.") from None
        # Many network file systems have no locks.
        except OSError as error:
            print_text(
                f"{path.parent} cannot be locked ({error.strerror}): see to it that no other run "
                "works in it."
            )
        yield Work(plan, view, options, file)


def _lock(file: BinaryIO) -> None:
    """Locks a file until it is closed, or the process ends: nothing has to be cleared away after a
    kill, as a file that says "locked" would have to be. Raises OSError."""
    if sys.platform == "win32":
        import msvcrt

        # What is locked there cannot be read either, so it is a byte that the file never gets to.
        file.seek(LOCK_OFFSET)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


class Work:
    """The images that a run has to do, with journal and view.

    `options` have a seed: without one it is that of the folder's last run, and drawn for the first,
    so that a run that resumes gives the images that the first would have given. With `overwrite`,
    what is done is done again, and foreign files are replaced.

    `_entries` has what the journal says of each input: its `state` is "begun", "done", "failed" or
    "stopped", its `key` the Idempotency-Key of what a server was asked, its `scale` the one that
    was made in place of a larger one.
    """

    def __init__(
        self, plan: Plan, view: FolderView, options: UpscaleOptions, file: BinaryIO
    ) -> None:
        self.view, self._file = view, file
        self._entries: dict[str, dict[str, Any]] = {}
        self._outputs: set[str] = set()
        self._start_times: dict[str, float] = {}
        self.faults: dict[str, str] = {}
        self.result_count = 0
        seed = secrets.randbelow(SEED_MAX + 1)
        file.seek(0)
        content = file.read()
        for line in content.splitlines():
            seed = self._read(line, seed)
        if content and not content.endswith(b"\n"):
            # Cut off when a run was killed; the next line must not be glued to it.
            file.write(b"\n")
        self.options = options if options.seed is not None else replace(options, seed=seed)
        self.todo = [item for item in plan.items if options.overwrite or not self._is_done(item)]
        self.total = len(self.todo) + len(plan.faults)
        self.before = len(plan.items) - len(self.todo)
        foreign = [
            item.output
            for item in self.todo
            if not (options.overwrite or item.output in self._outputs)
            and os.path.exists(item.target)
        ]
        if foreign:
            raise InputError(
                f"{list_names(foreign, ', ', ' and ')} would be replaced, and no run of "
                "this command has written it; --overwrite replaces it."
            )
        for item in self.todo:
            if self._entries.get(item.name, {}).get("state") == "begun":
                # What a killed run was about to rename.
                for part in item.target.parent.glob(partial_path(item.target, "*").name):
                    part.unlink(missing_ok=True)
        self._write("run", seed=self.options.seed)

    def options_of(self, item: Item) -> UpscaleOptions:
        """The options with the scale that the image is made at."""
        if item.scale is None:
            return self.options
        return replace(self.options, scale=item.scale, width=None, height=None, megapixels=None)

    def begin(self, item: Item, key: str | None = None) -> None:
        """Notes that work on an image begins; OSError when it is unreadable."""
        item.target.parent.mkdir(parents=True, exist_ok=True)
        self._write(
            "begun",
            **{"input": item.name, "mtime_ns": item.mtime_ns, "sha256": _digest(item.source)},
            **self._request(item) | ({} if key is None else {"key": key}),
            **({} if item.scale is None else {"scale": item.scale}),
        )
        self._start_times[item.name] = monotonic()
        self.view.show(item.name, Progress(stage="reading"))

    def end(self, item: Item, width: int, height: int) -> None:
        """Notes that an image's result is in its place."""
        seconds = monotonic() - self._start_times.pop(item.name)
        size = {"output_bytes": item.target.stat().st_size, "width": width, "height": height}
        self._write("done", input=item.name, **size, seconds=round(seconds, 3))
        self.result_count += 1
        self.view.end(item.name, item.output, width, height, seconds)

    def fail(self, item: Item, reason: str) -> None:
        """Notes that an image could not be upscaled."""
        # On one line, and without the path that stands before it anyway.
        reason = " ".join(reason.removeprefix(f"{item.source}: ").split())
        self._write("failed", input=item.name, error=reason)
        self.note(item.name, reason)

    def note(self, name: str, reason: str) -> None:
        """Counts and shows a failure."""
        self.faults[name] = reason
        self.view.fail(name, reason)

    def stop(self, item: Item) -> None:
        """Notes that work on an image was ended before its end."""
        self._write("stopped", input=item.name)

    def _write(self, state: str, **values: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        # ASCII: a name may be made of bytes that are no UTF-8.
        line = json.dumps({"state": state, **values, "time": now}).encode() + b"\n"
        with file_errors(self.options.target / NAME, "written"):
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())

    def _read(self, line: bytes, seed: int) -> int:
        """Takes in a line of earlier runs, and gives the seed of the last one so far."""
        # What is not a line of ours, or a part of one, counts for nothing.
        with suppress(ValueError, KeyError, TypeError):
            values = json.loads(line)
            if values["state"] == "run":
                return int(values["seed"])
            if values["state"] == "begun":
                self._entries[values["input"]] = values
                self._outputs.add(values["output"])
            else:
                self._entries[values["input"]] |= values
        return seed

    def _is_done(self, item: Item) -> bool:
        try:
            entry = self.entry(item, "done")
            return entry is not None and entry.get("output_bytes") == item.target.stat().st_size
        except OSError:
            return False

    def entry(self, item: Item, state: str) -> dict[str, Any] | None:
        """The journal's entry of this image as it is now, if it has that state.

        A file that was only touched or copied is the same one: then its content decides.
        """
        entry = self._entries.get(item.name, {})
        if not {"state": state, **self._request(item)}.items() <= entry.items():
            return None
        # Smaller than asked for: done for a run with --fit alone.
        if "scale" in entry and not self.options.fit:
            return None
        is_untouched = entry.get("mtime_ns") == item.mtime_ns
        return entry if is_untouched or entry.get("sha256") == _digest(item.source) else None

    def _request(self, item: Item) -> dict[str, Any]:
        """What a result depends on, beside the image's content."""
        parameters = self.options.parameters(item.output_format)
        return {"size": item.size, "output": item.output, "parameters": parameters}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
