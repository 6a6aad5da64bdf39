"""Why a preset's weights are not on this machine: a note beside the place where they would be.

`stablesr weights prepare` leaves it, and a worker that finds no weights repeats it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from models.checkpoints.places import weights_root
from models.presets import Preset

__all__ = ["Absence"]


def _path(preset: Preset) -> Path:
    return weights_root() / f"{preset.name}.absent.json"


@dataclass(frozen=True)
class Absence:
    """`reason` is a clause that clients may read, `at` the time (ISO 8601, UTC)."""

    reason: str
    at: str

    @classmethod
    def note(cls, preset: Preset, reason: str) -> None:
        """Leaves a note in place of an older one. Raises OSError."""
        path = _path(preset)
        path.parent.mkdir(parents=True, exist_ok=True)
        absence = cls(reason, datetime.now(UTC).isoformat(timespec="seconds"))
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(asdict(absence)) + "\n")
        os.replace(aside, path)

    @classmethod
    def of(cls, preset: Preset) -> Self | None:
        """The note of a preset; None when there is none."""
        try:
            text = _path(preset).read_text()
        except FileNotFoundError:
            return None
        return cls(**json.loads(text))

    @staticmethod
    def forget(preset: Preset) -> None:
        """Removes the note, if there is one. Raises OSError."""
        _path(preset).unlink(missing_ok=True)
