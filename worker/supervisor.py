"""The worker as a program: one process, its threads, its signals and its end.

The main thread loads the model, starts the slots and then only waits for a signal; RQ's worker
loops run in threads and cannot have signal handlers of their own. Exit codes:

    0   asked to end, by a signal or `stablesr drain`
    1   not started: the last log line says why
    70  a call stalled (`worker.heartbeat`); start it again
    71  the device failed; start it again

Where starting again would not help, because the device does not compute or the weights cannot be
used, the process stays, is not ready and says why.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from types import FrameType

import structlog
import torch

from jobs import tracing
from jobs.connection import connect
from jobs.errors import JobsError
from jobs.job_store import JobStore
from jobs.logs import configure_logging
from jobs.maintenance import Maintenance
from jobs.recovery import LeaseReaper
from jobs.redis_probe import RedisProbe, check_kind
from jobs.rq_adapter import open_queue
from jobs.settings import Settings
from jobs.store import BlobStore
from jobs.workers import Workers
from models.errors import CheckpointError, ModelError, WeightsNotFound
from models.pipeline import StableSR
from worker.attempt import Process
from worker.device import (
    StartupError,
    UnfitDevice,
    choose_device,
    devices_of,
    is_device_lost,
    reason_without_weights,
    weights_stamp,
)
from worker.device import load as load_model
from worker.heartbeat import PeriodicThread, Registration, end_process, try_to
from worker.metrics import WorkerMetrics
from worker.slot import Slot, SlotWorker

DRAIN = "drain"
"""The reason to end that waits for the jobs in hand"""

EXIT_DEVICE_LOST = 71
"""The exit code of a process whose device failed: a new process gets a new context."""

# How long putting back the jobs in hand may take after STABLESR_GRACE_S, where Redis is slow, and
# how long one that is being brought to its end.
PUT_BACK_S = 2.0
SETTLE_S = 1.5

OnCompile = Callable[[int, int], None]
"""Is told how many sizes of calls are compiled, of how many in total"""

log = structlog.get_logger(__name__)


def main(settings: Settings) -> int:
    """Serve `settings.preset`, as soon as its weights are here, until SIGTERM or SIGINT."""
    configure_logging(settings)

    def load(on_compile: OnCompile) -> StableSR:
        sr = load_model(settings, jobs=settings.slots)
        # Here, where no watchdog takes minutes of compiling for a device that hangs.
        sr.compile(on_compile)
        return sr

    try:
        check_kind(settings)
        device = choose_device(devices_of(settings)[0])
        if (settings.device, device.type) == ("auto", "cpu") and torch.version.cuda:
            log.warning("there is no GPU, the CPU computes", torch=torch.__version__)
        return Supervisor(settings, load, device=str(device)).run()
    except (StartupError, ModelError, JobsError) as error:
        log.error("worker not started", reason=str(error))
        return 1
    except RuntimeError as error:
        # Of `load`; from then on it is a job's.
        if not is_device_lost(error):
            raise
        log.critical("device lost, ending the process", reason=str(error))
        return EXIT_DEVICE_LOST


class Supervisor:
    """Runs `settings.slots` jobs at once on the model that `load` returns.

    `device` is what the model runs on, for the register of workers. Where `load` finds no weights
    or no device that it can use, the process is not ready, says why, and looks for other weights.
    """

    def __init__(
        self, settings: Settings, load: Callable[[OnCompile], StableSR], *, device: str
    ) -> None:
        self._settings = settings
        self._load = load
        # Reasons to end. A signal handler may run while the main thread holds any lock, and putting
        # into a SimpleQueue is the one way to wake a thread that is safe there.
        self._ends: SimpleQueue[str] = SimpleQueue()
        self._exit_code = 0
        self._draining = False
        self._process: Process | None = None
        self._slots: list[Slot] = []
        # Those that can be in the middle of a device call.
        self._threads: list[threading.Thread] = []
        self._quick = connect(settings)
        queue = open_queue(settings.preset, self._quick)
        self._recovery = LeaseReaper(queue, self._quick, patience_s=settings.patience_s)
        self._metrics = WorkerMetrics()
        register = Workers(self._quick, ttl_s=settings.worker_ttl_s)
        self._registration = Registration(settings, register, device, self._running)

    def run(self) -> int:
        """Work until a signal comes; returns the process's exit code.

        Raises:
            What `load` raises, but for weights that are missing and an unfit device, StartupError
            and StoreUnavailable.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._metrics.serve(self._settings)
        end_traces = tracing.start("stablesr-worker")
        store = BlobStore.open(self._settings, patient=True)
        heartbeat = PeriodicThread("heartbeat", self._settings.heartbeat_s, self._beat)
        heartbeat.start()
        store.report()
        try:
            model = self._model()
            self._registration.change("idle")
            self._work(model, store)
        except SystemExit:
            # Of `_on_signal`, while the model was loaded.
            pass
        finally:
            heartbeat.stop()
            self._registration.remove()
            end_traces()
        log.info("worker ends", exit_code=self._exit_code)
        compiles = self._registration.state == "compiling"
        if compiles or any(thread.is_alive() for thread in self._threads):
            # A thread in the middle of a device call, or that compiles, cannot be joined, and
            # unwinding the interpreter under it would crash.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._exit_code)
        return self._exit_code

    def _model(self) -> StableSR:
        """What `load` returns, once there are weights: others than those that it could not use."""
        preset, registration = self._settings.preset, self._registration
        while True:
            stamp = weights_stamp(preset)
            try:
                return self._load(lambda n, total: registration.change("compiling", (n, total)))
            except UnfitDevice as error:
                reason = partial(str, f"its worker's device {error}".removesuffix("."))
                log.error("worker not ready", preset=preset, reason=str(error))
            except (WeightsNotFound, CheckpointError) as error:
                reason = partial(reason_without_weights, preset)
                log.error("worker not ready", preset=preset, reason=reason(), detail=str(error))
            registration.change("not_ready", reason=reason)
            while weights_stamp(preset) in (None, stamp):
                time.sleep(self._settings.maintenance_s)
                if self._draining:
                    raise SystemExit(0)
            log.info("weights have come", preset=preset)
            registration.state = "starting"

    def _work(self, model: StableSR, store: BlobStore) -> None:
        settings, info = self._settings, self._registration.info
        self._metrics.watch_fallbacks(lambda: model.fallbacks)
        process = self._process = Process(
            settings,
            JobStore(self._quick),
            store,
            model,
            self._metrics,
            lose=self._on_device_lost,
            on_stall=self._on_stall,
        )
        queue = open_queue(settings.preset, connect(settings, patient=True))
        self._slots = [
            Slot(process, queue, f"{info.name}.{number}") for number in range(settings.slots)
        ]
        maintenance = Maintenance(self._quick, store, self._metrics.sweep)
        redis = RedisProbe(self._quick, settings)
        rounds = (redis.look, maintenance.run)
        maintaining = PeriodicThread(
            "maintenance", settings.maintenance_s, lambda: [each() for each in rounds]
        )
        self._threads = [*self._slots, process.engine.thread]
        process.watchdog.thread.start()
        for thread in (*self._threads, maintaining):
            thread.start()
        log.info("worker ready", name=info.name, device=info.device)
        reason = self._ends.get()
        if reason == DRAIN:
            self._registration.change("draining")
            log.info("draining", running=self._running()[0])
            process.leave()
            self._join(math.inf, lambda slot: self._ends.empty())
            reason = reason if self._ends.empty() else self._ends.get()
        log.info("leaving", reason=reason, running=self._running()[0])
        # Where the device is lost, there is nothing to wait for but the end of a step.
        process.leave(0.0 if self._exit_code else settings.grace_s)
        self._leave()
        maintaining.stop()
        process.engine.stop()
        process.watchdog.thread.stop()

    def _beat(self) -> None:
        try_to("register", self._registration.write)
        if self._registration.drain_asked and not self._draining:
            self._draining = True
            self._ends.put(DRAIN)
        for slot in self._slots:
            if (worker := slot.worker) is not None:
                try_to("renew a lease", worker.beat)
        # Last: a process that was suspended renews its own leases first.
        try_to("recover jobs of lost workers", self._recovery.run)

    def _running(self) -> tuple[int, int]:
        waiting = len(self._process.awaiting_store) if self._process is not None else 0
        return sum(slot.work_in_hand is not None for slot in self._slots), waiting

    # Ends

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._ends.put(signal.Signals(number).name)
        if self._registration.state in ("starting", "compiling", "not_ready"):
            # Loading a model takes long and has nothing to save.
            raise SystemExit(0)

    def _on_device_lost(self, reason: str) -> None:
        log.critical("device lost, ending the process", reason=reason)
        self._exit_code = EXIT_DEVICE_LOST
        self._ends.put("device lost")

    def _on_stall(self, what: str, seconds: float) -> None:
        """On the watchdog's thread: hand the jobs out at once, if Redis answers, and end."""
        self._of_each_slot("let go", SlotWorker.let_go)
        end_process(what, seconds)

    def _leave(self) -> None:
        """Let every slot come to the end of its job where that is near, else of a step; put back
        what does not get there in time.

        A second signal means: put back now.
        """
        self._registration.change("stopping")
        self._join(self._settings.grace_s, lambda slot: self._ends.empty())
        self._of_each_slot("put back", SlotWorker.put_back)
        # Those whose job is being brought to its end by the slot itself.
        self._join(SETTLE_S, lambda slot: slot.settles)

    def _of_each_slot(self, what: str, action: Callable[[SlotWorker], object]) -> None:
        """For every slot's worker, in total within a time that a lost Redis cannot stretch."""

        def act() -> None:
            for slot in self._slots:
                if slot.is_alive() and (worker := slot.worker) is not None:
                    try_to(what, partial(action, worker))

        helper = threading.Thread(target=act, name=what, daemon=True)
        helper.start()
        helper.join(PUT_BACK_S)

    def _join(self, seconds: float, awaits: Callable[[Slot], bool]) -> None:
        """Wait for the slots of which that is true."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            slots = [slot for slot in self._slots if slot.is_alive() and awaits(slot)]
            if not slots:
                return
            slots[0].join(0.05)
