"""One worker process: its threads, its signals and its end.

The main thread loads the model, starts the slots and then only waits for a signal; RQ's worker
loops run in threads and cannot have signal handlers of their own.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from queue import SimpleQueue
from types import FrameType

import structlog
from redis.exceptions import RedisError

from jobs.connection import connect
from jobs.errors import JobsError
from jobs.job_store import JobStore
from jobs.maintenance import Maintenance
from jobs.rq_adapter import LeaseReaper, open_queue
from jobs.settings import Settings
from jobs.store import BlobStore
from jobs.workers import WorkerInfo, Workers, WorkerState
from models.errors import CheckpointError, WeightsNotFound
from worker.context import Process
from worker.device import memory_in_use
from worker.device_lock import DeviceLock
from worker.engine import Engine
from worker.loading import reason_without_weights, weights_stamp
from worker.metrics import WorkerMetrics
from worker.model import Upscaler
from worker.pulse import Repeating
from worker.slot import Slot
from worker.watchdog import Watchdog, end_process
from worker.worker import SlotWorker

__all__ = ["EXIT_DEVICE_LOST", "Supervisor"]

EXIT_DEVICE_LOST = 71
"""The exit code of a process whose device failed: a new process gets a new context."""

# How long the jobs in hand have to come to the end of their step before they are put back as they
# are, how long that may take, and how long one that is being brought to its end. Together below
# the 10 s that containers get by default.
LEAVE_S = 4.0
PUT_BACK_S = 2.0
SETTLE_S = 1.5

log = structlog.get_logger(__name__)


class Supervisor:
    """Runs `settings.slots` jobs at once on the model that `load` returns. While it compiles,
    `load` calls what it is given with how many sizes of calls are ready, of how many in total.

    `device` is what the model runs on, for the register of workers. Where `load` finds no weights
    that it can use, the process is not ready, says why, and looks for others.
    """

    def __init__(
        self,
        settings: Settings,
        load: Callable[[Callable[[int, int], None]], Upscaler],
        *,
        device: str,
    ) -> None:
        self._settings = settings
        self._load = load
        self._leaving = threading.Event()
        # Reasons to end. A signal handler may run while the main thread holds any lock, and putting
        # into a SimpleQueue is the one way to wake a thread that is safe there.
        self._ends: SimpleQueue[str] = SimpleQueue()
        self._exit_code = 0
        self._slots: list[Slot] = []
        self._engine: Engine | None = None
        self._patient = connect(settings, patient=True)
        self._quick = connect(settings)
        self._queue = open_queue(settings.preset, self._patient)
        self._registry = Workers(self._quick, ttl_s=settings.worker_ttl_s)
        self._recovery = LeaseReaper(open_queue(settings.preset, self._quick), self._quick)
        self._metrics = WorkerMetrics()
        self._model: Upscaler | None = None
        self._state: WorkerState = "starting"
        self._compiled: tuple[int, int] | None = None
        self._info = WorkerInfo(
            name=f"{settings.preset}-{secrets.token_hex(4)}",
            preset=settings.preset,
            device=device,
            slots=settings.slots,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            started_at=datetime.now(UTC),
        )

    def run(self) -> int:
        """Work until a signal comes; returns the process's exit code.

        Raises:
            What `load` raises, but for weights that are missing, NotStarted and StoreUnavailable.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._metrics.serve(self._settings)
        store = BlobStore.open(self._settings)
        pulse = Repeating("pulse", self._settings.heartbeat_s, self._beats)
        pulse.start()
        try:
            model = self._loaded()
            self._model = model
            self._state, self._compiled = "idle", None
            if self._ends.empty():
                self._work(model, store)
        except SystemExit:
            # Of `_on_signal`, while the model was loaded.
            pass
        finally:
            pulse.stop()
            self._attempt("unregister", lambda: self._registry.unregister(self._info.name))
        log.info("worker ends", exit_code=self._exit_code)
        if self._compiled is not None or self._busy_threads():
            # A thread in the middle of a device call, or that compiles, cannot be joined, and
            # unwinding the interpreter under it would crash.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self._exit_code)
        return self._exit_code

    def _loaded(self) -> Upscaler:
        """What `load` returns, once there are weights: others than those that it could not use."""
        preset = self._settings.preset
        while True:
            stamp = weights_stamp(preset)
            try:
                return self._load(self._on_compile)
            except (WeightsNotFound, CheckpointError) as error:
                reason = reason_without_weights(preset)
                log.error("worker not ready", preset=preset, reason=reason, detail=str(error))
            self._state = "not_ready"
            self._attempt("register", self._register)
            while weights_stamp(preset) in (None, stamp):
                time.sleep(self._settings.maintenance_s)
            log.info("weights have come", preset=preset)
            self._state = "starting"

    def _work(self, model: Upscaler, store: BlobStore) -> None:
        settings = self._settings
        watchdog = Watchdog(settings.step_timeout_s, self._on_stall)
        device = DeviceLock(offload=model.offload)
        engine = self._engine = Engine(
            model,
            max_tiles=model.tile_batch,
            watch=watchdog.watch,
            device=device,
            metrics=self._metrics,
        )
        # There from the start, so that the first time is an increase.
        self._metrics.watch_departures(lambda: {"tile_batch": 0, **model.departures})
        process = Process(
            settings=settings,
            records=JobStore(self._patient),
            quick_records=JobStore(self._quick),
            store=store,
            model=model,
            engine=engine,
            metrics=self._metrics,
            watchdog=watchdog,
            leaving=self._leaving,
            lose=self._on_device_lost,
            device=device,
        )
        self._slots = [
            Slot(process, self._queue, self._patient, f"{self._info.name}.{number}")
            for number in range(settings.slots)
        ]
        rounds = Maintenance(self._quick, store, self._metrics.put_off)
        maintenance = Repeating("maintenance", settings.maintenance_s, lambda: [rounds.run])
        watchdog.start()
        engine.start()
        for slot in self._slots:
            slot.thread.start()
        maintenance.start()
        self._attempt("register", self._register)
        log.info("worker ready", name=self._info.name, device=self._info.device)
        reason = self._ends.get()
        self._leave(reason)
        maintenance.stop()
        engine.stop()
        watchdog.stop()

    def _beats(self) -> list[Callable[[], object]]:
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        # Recovery comes last: a process that was suspended renews its own leases first.
        return [self._register, *(worker.beat for worker in workers), self._recovery.run]

    def _register(self) -> None:
        running = sum(slot.busy for slot in self._slots)
        state = "busy" if running and self._state == "idle" else self._state
        # Asked each time, because what keeps the weights away may change.
        missing = self._state == "not_ready"
        reason = reason_without_weights(self._settings.preset) if missing else None
        # Before the model is loaded, asking a GPU would begin to use it, from this thread.
        memory = memory_in_use(self._info.device) if self._model is not None else {}
        now = {
            "state": state,
            "running": running,
            "reason": reason,
            "compiled": self._compiled,
            "memory": memory,
        }
        self._registry.heartbeat(self._info.model_copy(update=now))

    def _busy_threads(self) -> bool:
        engine = self._engine is not None and not self._engine.ended(timeout_s=1.0)
        return engine or any(slot.thread.is_alive() for slot in self._slots)

    def _on_compile(self, done: int, total: int) -> None:
        self._state, self._compiled = "compiling", (done, total)
        self._attempt("register", self._register)

    # Ends

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._ends.put(signal.Signals(number).name)
        if self._state in ("starting", "compiling", "not_ready"):
            # Loading a model takes long and has nothing to save.
            raise SystemExit(0)

    def _on_device_lost(self, reason: str) -> None:
        if self._leaving.is_set():
            # A thread that was left behind, whose engine has gone.
            return
        log.critical("device lost, ending the process", reason=reason)
        self._exit_code = EXIT_DEVICE_LOST
        self._ends.put("device lost")

    def _on_stall(self, what: str, seconds: float) -> None:
        """On the watchdog's thread: hand the jobs out at once, if Redis answers, and end."""
        self._of_each_slot("let go", SlotWorker.let_go)
        end_process(what, seconds)

    def _leave(self, reason: str) -> None:
        """Let every slot come to the end of a step; put back what does not get there in time.

        A second signal means: put back now.
        """
        log.info("leaving", reason=reason, running=sum(slot.busy for slot in self._slots))
        self._state = "stopping"
        self._leaving.set()
        for slot in self._slots:
            slot.leave()
        self._attempt("register", self._register)
        self._join(LEAVE_S)
        self._of_each_slot("put back", SlotWorker.put_back)
        self._join(SETTLE_S, only_settled=True)

    def _of_each_slot(self, what: str, action: Callable[[SlotWorker], object]) -> None:
        """For every slot's worker, all in all within a time that a lost Redis cannot stretch."""

        def act() -> None:
            for slot in self._slots:
                if slot.thread.is_alive() and slot.worker is not None:
                    self._attempt(what, partial(action, slot.worker))

        helper = threading.Thread(target=act, name=what, daemon=True)
        helper.start()
        helper.join(PUT_BACK_S)

    def _join(self, seconds: float, *, only_settled: bool = False) -> None:
        """Wait for the slots' threads, but not for those whose job was put back, nor in a hurry."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            waiting = [slot for slot in self._slots if slot.thread.is_alive()]
            if only_settled:
                waiting = [slot for slot in waiting if slot.ending]
            elif not self._ends.empty():
                return
            if not waiting:
                return
            waiting[0].thread.join(0.05)

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        """Do what is good to do but must not keep the process from going on, or from ending."""
        try:
            action()
        except (RedisError, JobsError) as error:
            log.warning(f"could not {what}", reason=str(error))
