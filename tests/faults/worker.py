"""A worker process whose network is a double and which can be held at any point of a job.

A file `hold-PLACE` in its folder holds the next job that gets to that place until the file is
gone; the process writes its number to `held-PLACE`, so that a fault can be aimed at it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from jobs.schema import Stage
from jobs.settings import Settings
from models.sampling import Step
from tests.worker import double
from worker import tasks
from worker.progress import Reporter

__all__ = ["PLACES", "WorkerProcess"]

PLACES = ("load", "encode", "denoise", "decode", "save", "stored")
"""The stages of a job, and the moment between storing the result and saying so."""

HELD_STEP = 2

# Importing torch takes seconds; this server does so once and forks each worker from there.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])


class HeldReporter(Reporter):
    """Told of each stage anyway, so this is where a job can be held."""

    folder: ClassVar[Path]

    @contextmanager
    def stage(self, name: Stage, *, steps: int = 0) -> Iterator[None]:
        with super().stage(name, steps=steps):
            if name != "denoise":
                self._hold(name)
            yield
            if name == "save":
                self._hold("stored")

    def on_step(self, request: Step) -> None:
        super().on_step(request)
        if request.step == HELD_STEP:
            self._hold("denoise")

    def _hold(self, place: str) -> None:
        mark = self.folder / f"hold-{place}"
        if not mark.exists():
            return
        held = self.folder / f"held-{place}"
        held.with_suffix(".part").write_text(str(os.getpid()))
        held.with_suffix(".part").rename(held)
        while mark.exists():
            time.sleep(0.02)


def _serve(settings: dict[str, Any], folder: Path, log: Path, step_s: float) -> None:
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    HeldReporter.folder = folder
    vars(tasks)["Reporter"] = HeldReporter
    sys.exit(double.main(Settings(**settings), step_s=step_s, load_s=0.0))


class WorkerProcess:
    """One worker, started at once."""

    def __init__(self, settings: Settings, folder: Path, log: Path, step_s: float) -> None:
        self.log = log
        self.process = CONTEXT.Process(
            target=_serve, args=(settings.model_dump(), folder, log, step_s)
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number when one ended it."""
        return self.process.exitcode

    def wait(self, seconds: float) -> int | None:
        """The exit code, None when it still runs."""
        self.process.join(seconds)
        return self.process.exitcode

    def close(self) -> None:
        self.process.kill()
        self.process.join()
