"""Why an attempt at a job ends early, and what the worker cannot start with.

WorkerError
├── Interruption   the process is asked to leave: the job goes back to the queue
├── Cancellation   the client canceled the job
├── LeaseLost      the queue gave the job to another worker: nothing may be written
├── TimedOut       the job ran longer than it may
├── EngineBroken   the engine's thread ended, no network call is possible any more
└── StartupError   the worker cannot start: the message says what to do
"""

from __future__ import annotations

from models.memory import is_out_of_memory

__all__ = [
    "Cancellation",
    "EngineBroken",
    "Interruption",
    "LeaseLost",
    "StartupError",
    "TimedOut",
    "WorkerError",
    "is_device_lost",
]


class WorkerError(Exception):
    """Base of every error raised by `worker` on purpose."""


class Interruption(WorkerError):
    """The process is asked to leave; the job goes back to the front of the queue."""


class Cancellation(WorkerError):
    """The job was canceled while it ran."""


class LeaseLost(WorkerError):
    """The queue took this attempt for dead and gave the job away: nothing may be written."""


class TimedOut(WorkerError):
    """The job ran longer than a job may."""


class EngineBroken(WorkerError):
    """The engine's thread has ended; only a new process can go on."""


class StartupError(WorkerError):
    """The worker cannot start."""


def is_device_lost(error: BaseException) -> bool:
    """Whether every further call on this process's device will fail too.

    After an asynchronous device error (an illegal access, a failed assertion, a bus fault) the
    context is gone for good and only a new process gets another.
    """
    if isinstance(error, EngineBroken):
        return True
    if is_out_of_memory(error) or not isinstance(error, RuntimeError):
        return False
    return any(sign in str(error) for sign in ("CUDA error", "HIP error", "cuDNN error"))
