"""Why a job's run ends early, and what the worker cannot start with.

WorkerError
├── Stopped        the run ends before the picture is done
│   ├── Interrupted   the process is asked to leave: the job goes back to the queue
│   ├── Canceled      somebody canceled the job
│   ├── LeaseLost     the queue gave the job to another worker: nothing may be written
│   └── TimedOut      the job ran longer than it may
├── EngineBroken   the engine's thread ended, no network call is possible any more
└── NotStarted     the worker cannot start: the message says what to do
"""

from __future__ import annotations

from models.memory import is_out_of_memory

__all__ = [
    "Canceled",
    "EngineBroken",
    "Interrupted",
    "LeaseLost",
    "NotStarted",
    "Stopped",
    "TimedOut",
    "WorkerError",
    "is_device_lost",
    "is_out_of_memory",
]


class WorkerError(Exception):
    """Base of every error raised by `worker` on purpose."""


class Stopped(WorkerError):
    """The run of a job ends before the picture is done."""


class Interrupted(Stopped):
    """The process is asked to leave; the job goes back to the front of the queue."""


class Canceled(Stopped):
    """The job was canceled while it ran."""


class LeaseLost(Stopped):
    """The queue took this run for dead and gave the job away: nothing may be written any more."""


class TimedOut(Stopped):
    """The job ran longer than a job may."""


class EngineBroken(WorkerError):
    """The engine's thread has ended; only a new process can go on."""


class NotStarted(WorkerError):
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
