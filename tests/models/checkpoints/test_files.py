"""Notes of absence."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.checkpoints.files import absence_of, note_absence
from models.presets import get_preset
from tests.models.hub import files_in

PRESET, OTHER = get_preset("stablesr-512"), get_preset("stablesr-turbo")


def test_a_note_is_read_back_until_it_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path / "weights"))
    assert absence_of(PRESET) is None
    note_absence(PRESET, "no network")
    note_absence(PRESET, "no licence")
    assert absence_of(PRESET) == "no licence"
    assert absence_of(OTHER) is None
    assert files_in(tmp_path) == ["weights/stablesr-512.absent.json"]
    note_absence(PRESET, None)
    note_absence(PRESET, None)
    assert absence_of(PRESET) is None
