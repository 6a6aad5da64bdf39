"""The worker as a program: `main(settings)` returns its exit code.

0   asked to end
1   not started: the last log line says why
70  a call stalled (`worker.watchdog`); start it again
71  the device failed (`worker.supervisor`); start it again
"""

from __future__ import annotations

import structlog

from jobs.errors import JobsError
from jobs.logs import configure_logging
from jobs.settings import Settings
from models.errors import ModelError
from models.pipeline import StableSR
from worker.device import choose_device, choose_dtype
from worker.errors import NotStarted
from worker.model import Upscaler
from worker.supervisor import Supervisor

__all__ = ["main"]

log = structlog.get_logger(__name__)


def main(settings: Settings) -> int:
    """Serve `settings.preset` until SIGTERM or SIGINT."""
    configure_logging(settings)
    try:
        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device)

        def load() -> Upscaler:
            return StableSR.from_preset(settings.preset, device, dtype)

        return Supervisor(settings, load, device=str(device)).run()
    except (NotStarted, ModelError, JobsError) as error:
        log.error("worker not started", reason=str(error))
        return 1
