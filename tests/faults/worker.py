"""A worker process whose network is a double and which can be held at any point of a job.

A file `hold-PLACE` in its folder holds the next job that gets to that place until the file is
gone; the process writes its number to `held-PLACE`, so that a fault can be aimed at it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, ClassVar

from jobs.schema import Stage
from jobs.settings import Settings
from jobs.store import BlobStore
from models.sampling import Step
from tests.worker import double
from worker import slot, supervisor
from worker.attempt import Attempt

PLACES = ("load", "encode", "denoise", "decode", "save", "storing", "stored")
"""The stages of a job, the middle of storing the result, and the moment between that and saying
so."""

HELD_STEP = 2


class HeldAttempt(Attempt):
    """Told of each stage anyway, so this is where a job can be held."""

    folder: ClassVar[Path]

    @contextmanager
    def stage(self, name: Stage, *, steps: int = 0) -> Iterator[None]:
        with super().stage(name, steps=steps):
            if name != "denoise":
                hold(self.folder, name)
            yield
            if name == "save":
                hold(self.folder, "stored")

    def on_step(self, request: Step) -> None:
        super().on_step(request)
        if request.step == HELD_STEP:
            hold(self.folder, "denoise")


class _GoOn(Exception):
    """The put that was held is over; the real one follows."""


class HeldStore(BlobStore):
    """Its puts can be held while a part of the blob is written."""

    folder: ClassVar[Path]

    def put(
        self,
        key: str,
        data: bytes | Path | IO[bytes] | Iterable[bytes],
        fields: Mapping[str, str] | None = None,
    ) -> None:
        def half() -> Iterator[bytes]:
            yield b"a part"
            hold(self.folder, "storing")
            raise _GoOn

        if (self.folder / "hold-storing").exists():
            with suppress(_GoOn):
                super().put(key, half())
        super().put(key, data, fields)


def hold(folder: Path, place: str) -> None:
    mark = folder / f"hold-{place}"
    if not mark.exists():
        return
    held = folder / f"held-{place}"
    held.with_suffix(".part").write_text(str(os.getpid()))
    held.with_suffix(".part").rename(held)
    while mark.exists():
        time.sleep(0.02)


def serve(settings: Settings, folder: Path, step_s: float, clock_s: float) -> int:
    double.shift_clock(clock_s)
    HeldAttempt.folder = HeldStore.folder = folder
    if (variables := folder / "environment").exists():
        os.environ.update(json.loads(variables.read_text()))
    vars(slot)["Attempt"] = HeldAttempt
    vars(supervisor)["BlobStore"] = HeldStore
    return double.main(settings, step_s=step_s, load_s=0.0)
