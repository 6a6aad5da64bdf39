"""Where the weights of a preset lie, and a note of why they do not."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from models.presets import Preset

__all__ = ["CONFIG", "INDEX", "WEIGHTS", "Absence", "preset_folder", "weights_root"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""The tensors of a folder lie in WEIGHTS, or in several files that this one lists."""


def weights_root() -> Path:
    """Where pulled and converted weights live: STABLESR_WEIGHTS, else the user's data folder."""
    folder = os.environ.get("STABLESR_WEIGHTS")
    return Path(folder or Path.home() / ".local" / "share" / "stablesr" / "weights")


def preset_folder(preset: Preset, root: Path | None = None) -> Path:
    """The folder of a preset's weights; it need not exist."""
    if preset.embedded:
        return Path(__file__).parents[1] / "weights" / preset.name
    return (root or weights_root()) / preset.name


@dataclass(frozen=True)
class Absence:
    """Why a preset's weights are not here: a note beside their place, which `stablesr weights
    prepare` leaves and a worker without weights repeats. `reason` is a clause that clients may
    read, `at` the time (ISO 8601, UTC)."""

    reason: str
    at: str

    @classmethod
    def note(cls, preset: Preset, reason: str) -> None:
        """Leaves a note in place of an older one. Raises OSError."""
        path = _note(preset)
        path.parent.mkdir(parents=True, exist_ok=True)
        absence = cls(reason, datetime.now(UTC).isoformat(timespec="seconds"))
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(absence)) + "\n")
        os.replace(part, path)

    @classmethod
    def of(cls, preset: Preset) -> Self | None:
        """The note of a preset; None when there is none."""
        try:
            return cls(**json.loads(_note(preset).read_text()))
        except FileNotFoundError:
            return None

    @staticmethod
    def forget(preset: Preset) -> None:
        """Removes the note, if there is one. Raises OSError."""
        _note(preset).unlink(missing_ok=True)


def _note(preset: Preset) -> Path:
    return weights_root() / f"{preset.name}.absent.json"
