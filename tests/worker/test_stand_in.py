"""When a substitute has become one too many."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.checkpoints.places import Absence
from models.errors import CheckpointMismatch, WeightsNotFound
from models.presets import get_preset
from worker.stand_in import StandIn

WANTED = get_preset("stablesr-512")
MISSING = WeightsNotFound("There are no weights.")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the wanted weights would be."""
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path))
    return tmp_path / WANTED.name


def put(folder: Path) -> None:
    aside = folder.with_suffix(".aside")
    aside.mkdir()
    (aside / "config.json").write_text("{}")
    aside.rename(folder)


def test_missing_weights_are_missing_for_the_reason_that_was_left() -> None:
    stand_in = StandIn.after(MISSING, WANTED.name)
    assert stand_in.reason() == "its weights are not on the worker's machine"
    for reason in ("nobody accepted the licence", "the hub does not answer"):
        Absence.note(WANTED, reason)
        assert stand_in.reason() == reason


def test_unfit_weights_are_not_explained_by_an_old_note(folder: Path) -> None:
    Absence.note(WANTED, "nobody accepted the licence")
    put(folder)
    stand_in = StandIn.after(CheckpointMismatch("Wrong shapes."), WANTED.name)
    assert stand_in.reason() == "its weights on the worker's machine cannot be used"


def test_it_is_over_when_the_weights_come(folder: Path) -> None:
    stand_in = StandIn.after(MISSING, WANTED.name)
    assert not stand_in.over()
    put(folder)
    assert stand_in.over()


def test_unfit_weights_that_stay_do_not_end_it_but_others_do(folder: Path) -> None:
    put(folder)
    stand_in = StandIn.after(CheckpointMismatch("Wrong shapes."), WANTED.name)
    assert not stand_in.over()
    folder.rename(folder.with_suffix(".old"))
    assert not stand_in.over()
    put(folder)
    assert stand_in.over()
