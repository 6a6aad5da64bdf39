"""The worker as a program: `main(settings)` returns its exit code.

0   asked to end
1   not started: the last log line says why
70  a call stalled (`worker.watchdog`); start it again
71  the device failed (`worker.supervisor`); start it again
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from jobs.errors import JobsError
from jobs.logs import configure_logging
from jobs.settings import Settings
from models.errors import ModelError
from worker.device import choose_device, devices_of
from worker.errors import NotStarted
from worker.loading import load as load_model
from worker.model import Upscaler
from worker.supervisor import Supervisor

__all__ = ["main"]

log = structlog.get_logger(__name__)


def main(settings: Settings) -> int:
    """Serve `settings.preset`, as soon as its weights are here, until SIGTERM or SIGINT."""
    configure_logging(settings)
    try:
        return _serve(settings)
    except (NotStarted, ModelError, JobsError) as error:
        log.error("worker not started", reason=str(error))
        return 1


def _serve(settings: Settings) -> int:
    device = choose_device(devices_of(settings)[0])

    def load(on_compile: Callable[[int, int], None]) -> Upscaler:
        sr = load_model(settings, jobs=settings.slots)
        # Here, where no watchdog takes minutes of compiling for a device that hangs.
        sr.compile(on_compile)
        return sr

    return Supervisor(settings, load, device=str(device)).run()
