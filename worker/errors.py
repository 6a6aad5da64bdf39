"""Why an attempt at a job ends early (`worker.attempt` says what becomes of the job), and what the
worker cannot start with."""

from __future__ import annotations

from models.memory import is_out_of_memory


class Interruption(Exception):
    """The process is asked to leave; the job goes back to the front of the queue."""


class Cancellation(Exception):
    """The job was canceled while it ran."""


class LeaseLost(Exception):
    """The job is not this attempt's any more: nothing may be written."""


class EngineBroken(Exception):
    """The engine's thread has ended; only a new process can go on."""


class StartupError(Exception):
    """The worker cannot start; the message says what to do."""


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
