"""Compiling beside the jobs: another process does it, and this one computes eagerly meanwhile.

Compiling full-size networks takes many minutes, in which a new worker would serve nothing. Where
nothing was kept from an earlier start, a second process loads the same weights and compiles into
the cache. Not a thread: what compiles is Python, and would keep the jobs' Python from launching
their kernels. When it has ended, this process takes from the cache what it can use, between two
jobs: while it reads, it cannot serve.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import structlog
import torch

from jobs.logs import configure_logging
from jobs.settings import Settings
from models.memory import in_words
from models.parent import end_with_parent
from models.pipeline import StableSR
from worker.errors import Interrupted, is_device_lost
from worker.gate import Gate, GateTaken
from worker.loading import Loaded, load

__all__ = ["Aside", "warmed"]

# How long to wait for a moment without jobs. After that no further one is begun, and those that
# run are awaited.
PATIENCE_S = 600.0
# Until another attempt, where a job must be alone.
AGAIN_S = 1.0
# What the other process takes at most, as multiples of its weights: on a GPU these, its calls and a
# context, and on the host while it loads them; on a processor also what weights grow by, as far as
# a third of what is free beside them.
_GPU, _GPU_HOST, _PROCESSOR = 3, 2, 4
_NICE = 10
_INCOMPLETE = 3
"""The other process's exit code where something could not be compiled; the log has said what."""

log = structlog.get_logger(__name__)


def warmed(loaded: Loaded, settings: Settings) -> Aside | None:
    """Compiles what is to be compiled, or returns who will have that done beside the jobs.

    Here where it was done before, so that the cache has it; where results must not depend on what
    is compiled when (a fixed batch); over several devices; and where memory is short.
    """
    sr = loaded.sr
    # Of networks that take turns on the device nothing is compiled.
    if not sr.denoiser.wanted or sr.planner.resources.offload:
        return None
    done = _mark(sr, settings)
    if not (done.exists() or settings.fixed_batch is not None or loaded.peers is not None):
        short = _short(sr)
        if short is None:
            sr.defer()
            return Aside(sr, settings, done)
        log.warning(
            "compiling before the first job: memory is too short to do it beside jobs", reason=short
        )
    sr.warm()
    _note(sr, done)
    return None


def _short(sr: StableSR) -> str | None:
    """What the other process would lack, in words."""
    weights = sr.planner.estimate.weights.all
    free = sr.planner.resources.free(sr.device)
    if sr.device.type == "cuda":
        needs = [(_GPU, free.device, "the device's"), (_GPU_HOST, free.host, "the host's")]
    else:
        needs = [(_PROCESSOR, free.host, "the host's")]
    for times, there, whose in needs:
        if there < times * weights:
            return f"{in_words(times * weights)} of {whose} needed, {in_words(there)} free"
    return None


class Aside:
    """Waits for the process that compiles, then has the model use what it made.

    Args:
        sr: deferred.
        settings: of this process.
        done: the file that says that the cache has all.
        compile_: what the other process runs.
    """

    def __init__(
        self,
        sr: StableSR,
        settings: Settings,
        done: Path,
        compile_: Callable[[Settings, Path], None] | None = None,
    ) -> None:
        self._sr = sr
        given = {"tile_batch": sr.tile_batch, "offload": "off", "slots": 1}
        self._process = multiprocessing.get_context("spawn").Process(
            target=compile_ or _compile,
            args=(settings.model_copy(update=given), done),
            name="compiling",
        )
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, gate: Gate, lose: Callable[[str], None]) -> None:
        """`gate`: of the jobs. `lose`: called where the device fails."""
        self._thread = threading.Thread(
            target=self._run, args=(gate, lose), name="aside", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends the other process."""
        with self._lock:
            self._stopping.set()
            if self._process.pid is not None:
                self._process.kill()

    def ended(self, *, timeout_s: float | None) -> bool:
        """Whether there is nothing more to come, after waiting so long for it at most; None is as
        long as it takes."""
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self, gate: Gate, lose: Callable[[str], None]) -> None:
        with suppress(Interrupted):
            self._await()
            while not self._adopted(gate, lose):
                self._stopping.wait(AGAIN_S)
                self._check()

    def _await(self) -> None:
        log.info("compiling beside the jobs, which are computed eagerly meanwhile")
        with self._lock:
            self._check()
            self._process.start()
        self._process.join()
        self._check()
        if self._process.exitcode not in (0, _INCOMPLETE):
            log.warning(
                "the process that compiles has failed; this one compiles between two jobs",
                exit_code=self._process.exitcode,
            )

    def _adopted(self, gate: Gate, lose: Callable[[str], None]) -> bool:
        """Between two jobs; False where one must be alone that has come before."""
        try:
            with gate.enter(alone=True, poll=self._check, patience_s=PATIENCE_S):
                log.info("reading what was compiled; jobs wait")
                self._warm(lose)
        except GateTaken:
            return False
        return True

    def _warm(self, lose: Callable[[str], None]) -> None:
        try:
            self._sr.warm()
        # Of as many kinds as torch has. Jobs go on as they did.
        except Exception as error:
            self._sr.defer()
            log.exception("jobs go on without compiled calls")
            if is_device_lost(error):
                lose(str(error))
        else:
            log.info("jobs are computed by compiled calls")

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Interrupted("The process is asked to leave.")


def _compile(settings: Settings, done: Path) -> None:
    """The other process's life."""
    # Ctrl-C reaches all processes of a terminal; the first one says what becomes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()
    # Jobs come first.
    os.nice(_NICE)
    configure_logging(settings)
    structlog.contextvars.bind_contextvars(process="compiling")
    with _alone(done):
        sr = load(settings, jobs=1).sr
        sr.warm()
        if not _note(sr, done):
            sys.exit(_INCOMPLETE)


@contextmanager
def _alone(done: Path) -> Iterator[None]:
    """Of the processes of several workers that share the cache one after the other: what the first
    has compiled the next one finds."""
    try:
        lock = done.with_suffix(".lock").open("a")
    except OSError:  # There is no cache to share, which loading will say.
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _note(sr: StableSR, done: Path) -> bool:
    """Notes that the cache has all, if it does."""
    if any(what.startswith("eager_") for what in sr.departures):
        return False
    with suppress(OSError):  # Nothing can be kept there, which loading has said.
        done.touch()
    return True


def _mark(sr: StableSR, settings: Settings) -> Path:
    """The file that says that the cache has all that this model calls."""
    cuda = sr.device.type == "cuda"
    known = {
        "project": version("stablesr-server"),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(sr.device) if cuda else "cpu",
        "dtype": str(sr.dtype),
        "preset": settings.preset,
        "networks": asdict(sr.networks.config),
        "tiles": sr.tile_batch,
    }
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return settings.compile_cache / f"complete-{digest[:16]}"
