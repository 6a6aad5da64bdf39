"""OUT_DIR/.stablesr.jsonl: what was done to which image, one JSON object a line.

A line is on the disk before anything is built on it, so that a run that is killed leaves no doubt:
an image whose last line says "begun" is not done, whatever its result looks like. A line that was
cut off itself counts for nothing. `input` and `output` are paths relative to the two folders.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cli.errors import InputError
from cli.folder.plan import Item

__all__ = ["Entry", "Journal"]

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
        return self.mtime_ns == item.mtime_ns or self.sha256 == digest(item.source)


class Journal:
    """The journal of an output folder, as a context that holds its lock.

    Raises:
        InputError: the folder cannot be written, or another run is at work in it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._entries: dict[str, Entry] = {}
        self._outputs: set[str] = set()
        self.seed: int | None = None
        """The seed of the last run."""

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
            self._take(line)
        if content and not content.endswith(b"\n"):
            # Cut off when a run was killed; the next line must not be glued to it.
            self._file.write(b"\n")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def entry(self, name: str) -> Entry | None:
        """What is known of an input."""
        return self._entries.get(name)

    def wrote(self, output: str) -> bool:
        """Whether a file of this name is the journal's own, whole or not."""
        return output in self._outputs

    def run(self, seed: int) -> None:
        """A run begins."""
        self.seed = seed
        self._write({"state": "run", "seed": seed})

    def begin(self, item: Item, parameters: Mapping[str, Any], key: str | None) -> None:
        """Work on an image begins.

        Raises:
            OSError: the image cannot be read.
        """
        entry = {
            "state": "begun",
            "input": item.name,
            "size": item.size,
            "mtime_ns": item.mtime_ns,
            "sha256": digest(item.source),
            "output": item.output,
            "parameters": dict(parameters),
        }
        self._write(entry if key is None else {**entry, "key": key})

    def end(self, item: Item, state: str, **more: Any) -> None:
        """Work on an image that was begun has ended: "done" (with `output_bytes`), "failed" (with
        `error`), or "stopped" before its end."""
        self._write({"state": state, "input": item.name, **more})

    def _write(self, line: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        # ASCII: a name may be made of bytes that are no UTF-8.
        content = json.dumps({**line, "time": now}).encode() + b"\n"
        try:
            self._file.write(content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror}.") from error
        self._take(content)

    def _take(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            if values["state"] == "run":
                self.seed = int(values["seed"])
                return
            name = values["input"]
            if values["state"] == "begun":
                names = ("state", "size", "mtime_ns", "sha256", "output", "parameters")
                entry = Entry(**{name: values[name] for name in names}, key=values.get("key"))
                self._outputs.add(entry.output)
            else:
                state, output_bytes = values["state"], values.get("output_bytes")
                entry = replace(self._entries[name], state=state, output_bytes=output_bytes)
            self._entries[name] = entry
        # Not a line of ours, or a part of one.
        except (ValueError, KeyError, TypeError):
            return


def digest(path: Path) -> str:
    """The sha256 of a file's content; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
