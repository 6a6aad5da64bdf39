"""Notes of absence, and what killed processes left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from models.checkpoints.files import absence_of, clear_leftovers, note_absence, replaced_folder
from models.checkpoints.pull import pull
from models.presets import Preset, get_preset
from tests.models.hub import WHOLE, Hub, files_in

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


def test_what_a_killed_process_left_is_cleared_away(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    leftover = tmp_path / ".stablesr-512.1.part"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(bytes(10))
    pull(preset, tmp_path, accept_licence=True)
    assert files_in(tmp_path) == WHOLE


def killed_in_between(folder: Path) -> None:
    """Replaces a folder in a process of its own, which is killed between the two renames."""
    child = os.fork()
    if child == 0:
        rename = Path.rename

        def once(self: Path, target: Path) -> None:
            rename(self, target)
            os.kill(os.getpid(), signal.SIGKILL)

        Path.rename = once  # type: ignore[method-assign, assignment]  # of a process that ends now
        with replaced_folder(folder) as aside:
            (aside / "config.json").write_text("new")
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_weights_that_a_killed_process_had_put_aside_are_back(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    folder = pull(preset, tmp_path, accept_licence=True)
    whole, count = (folder / "model.safetensors").read_bytes(), len(hub.requests)
    killed_in_between(folder)
    assert not folder.exists()
    assert len([p for p in tmp_path.iterdir() if p.name.endswith((".old", ".part"))]) == 2
    assert pull(preset, tmp_path, accept_licence=False) == folder
    assert len(hub.requests) == count
    assert (folder / "model.safetensors").read_bytes() == whole
    assert files_in(tmp_path) == WHOLE


def test_a_folder_that_was_replaced_is_removed_and_not_put_back(tmp_path: Path) -> None:
    folder, old = tmp_path / "a", tmp_path / ".a.1.old"
    for path, text in ((folder, "new"), (old, "old")):
        path.mkdir()
        (path / "config.json").write_text(text)
    clear_leftovers(folder)
    assert files_in(tmp_path) == ["a/config.json"]
    assert (folder / "config.json").read_text() == "new"


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with replaced_folder(folder) as aside:
        (aside / "config.json").write_text("new")
        clear_leftovers(folder)
        assert (aside / "config.json").is_file()
    assert files_in(tmp_path) == ["a/config.json"]
