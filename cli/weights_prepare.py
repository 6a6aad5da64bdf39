"""`stablesr weights prepare`: the weights of STABLESR_PRESET, fetched before a worker starts.

What keeps them away is a line in the log and a note for the worker (`models.checkpoints.files`),
not a failure: the worker is not ready and repeats the reason to its clients, and the next start of
the stack tries again.
"""

from __future__ import annotations

import signal
import sys
import time
from types import FrameType

import structlog

from jobs.logs import configure_logging
from jobs.settings import Settings
from models.checkpoints.files import WeightsProgress, note_absence, weights_root
from models.checkpoints.folder import open_folder
from models.checkpoints.pull import pull
from models.errors import CheckpointError, DiskFull, DownloadFailed, LicenceNotAccepted, ModelError
from models.presets import get_preset

log = structlog.get_logger(__name__)


def prepare(settings: Settings) -> None:
    """Puts the weights of `settings.preset` into place, or a note that says why they are not there.

    SIGTERM ends the process with 143 and leaves no weights half-written.
    """
    configure_logging(settings)
    signal.signal(signal.SIGTERM, _end)
    preset = get_preset(settings.preset)
    if preset.embedded:
        log.info("weights come with the package", preset=preset.name)
        return
    licence = preset.licence.partition(" (")[0]  # without what is said of it in brackets
    try:
        folder = pull(
            preset,
            weights_root(),
            # By its name: what is accepted for one preset may not be what another has.
            accept_licence=(settings.accept_licence or "").casefold() == licence.casefold(),
            on_progress=_Progress(preset.name),
        )
        open_folder(folder)
        note_absence(preset, None)
    # An unforeseen error must not keep the worker from starting either.
    except Exception as error:
        reason = _reason(licence, error)
        log.warning(
            "weights are not there",
            preset=preset.name,
            reason=reason,
            detail=str(error),
            licence=preset.licence,
            licence_url=preset.licence_url,
            exc_info=None if isinstance(error, (ModelError, OSError)) else error,
        )
        try:
            note_absence(preset, reason)
        except OSError as failure:
            log.warning("no note for the worker", preset=preset.name, detail=str(failure))
    else:
        log.info("weights are there", preset=preset.name, folder=str(folder))


def _reason(licence: str, error: Exception) -> str:
    """A clause for clients, who need not know hosts and folders."""
    match error:
        case LicenceNotAccepted():
            accept = f'STABLESR_ACCEPT_LICENCE="{licence}" would accept it'
            return f"its licence is not accepted ({accept})"
        case DownloadFailed():
            return "its weights could not be downloaded"
        case DiskFull():
            return "its weights do not fit on the disk"
        case CheckpointError():
            return "its weights cannot be used"
    return "its weights could not be put in place"


class _Progress:
    """Logs the start and the end of each part of the work, and every 30 seconds in between."""

    def __init__(self, preset: str) -> None:
        self._preset = preset
        self._part = ("", "")
        self._next = 0.0

    def __call__(self, now: WeightsProgress) -> None:
        part = (now.stage, now.name)
        if part == self._part and now.position < now.total and time.monotonic() < self._next:
            return
        self._part, self._next = part, time.monotonic() + 30
        log.info(
            "preparing weights",
            preset=self._preset,
            stage=now.stage,
            name=now.name,
            percent=round(100 * now.position / now.total) if now.total else None,
            gigabytes=round(now.total / 1e9, 2),
        )


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
