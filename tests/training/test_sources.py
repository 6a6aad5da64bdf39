"""What the stages learn from, and what is kept of it in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.small_run import ENCODER, settings_of
from training.config import RunExists
from training.run import train


def test_kept_latents_of_other_settings_are_refused(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, encoder=ENCODER)
    train("encoder", settings, tmp_path / "out", resume=False, max_steps=1)
    other = settings_of(tmp_path, seed=4, encoder=ENCODER)
    with pytest.raises(RunExists, match="other settings or weights"):
        train("encoder", other, tmp_path / "out", resume=True)
