"""The note in place of weights."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from models.checkpoints.places import Absence
from models.presets import get_preset

PRESET, OTHER = get_preset("stablesr-512"), get_preset("stablesr-turbo")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def test_a_note_is_read_back_until_it_is_forgotten(root: Path) -> None:
    assert Absence.of(PRESET) is None
    Absence.note(PRESET, "no network")
    Absence.note(PRESET, "no licence")
    found = Absence.of(PRESET)
    assert found is not None
    assert found.reason == "no licence"
    age = datetime.now(UTC) - datetime.fromisoformat(found.at)
    assert abs(age.total_seconds()) < 60
    assert Absence.of(OTHER) is None
    assert [path.name for path in root.iterdir()] == ["stablesr-512.absent.json"]
    Absence.forget(PRESET)
    Absence.forget(PRESET)
    assert Absence.of(PRESET) is None
