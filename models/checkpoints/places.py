"""Where weights lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path

from models.presets import Preset

__all__ = ["CONFIG", "INDEX", "WEIGHTS", "preset_folder", "weights_root"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""The tensors of a folder lie in WEIGHTS, or in several files that this one lists."""


def weights_root() -> Path:
    """Where pulled and converted weights live: STABLESR_WEIGHTS, else the user's data folder."""
    named = os.environ.get("STABLESR_WEIGHTS")
    return Path(named) if named else Path.home() / ".local" / "share" / "stablesr" / "weights"


def preset_folder(preset: Preset, root: Path | None = None) -> Path:
    """The folder of a preset's weights; it need not exist."""
    if preset.embedded:
        return Path(__file__).parents[1] / "weights" / preset.name
    return (root or weights_root()) / preset.name
