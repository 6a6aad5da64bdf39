"""Pulling a preset from a hub: what it leaves, the licence, no room, other processes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from models.checkpoints.files import WeightsProgress, clear_leftovers, replaced_folder
from models.checkpoints.folder import verify
from models.checkpoints.places import Absence, preset_folder
from models.checkpoints.pull import pull
from models.errors import CheckpointError, DiskFull, LicenceNotAccepted
from models.presets import PRESETS, Preset, Release
from tests.models.hub import Hub
from tests.models.pulling import NAMES, WHOLE, left


def test_a_pull_leaves_converted_weights_and_nothing_else(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    seen: list[WeightsProgress] = []
    folder = pull(preset, tmp_path, accept_licence=True, on_progress=seen.append)
    assert folder == tmp_path / "stablesr-512"
    assert left(tmp_path) == WHOLE
    record = verify(folder).record
    assert record is not None
    assert preset.release is not None
    assert [(f.name, f.sha256) for f in record.sources] == [
        (f.name, f.sha256) for f in preset.release.files
    ]
    ends = [(now.stage, now.name) for now in seen if now.done == now.total]
    assert ends[:5] == [
        ("download", NAMES[0]),
        ("check", NAMES[0]),
        ("download", NAMES[1]),
        ("check", NAMES[1]),
        ("convert", "model.safetensors"),
    ]


def test_weights_that_are_here_are_not_pulled_again(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    pull(preset, tmp_path, accept_licence=True)
    asked = len(hub.requests)
    assert pull(preset, tmp_path, accept_licence=False) == tmp_path / "stablesr-512"
    assert len(hub.requests) == asked
    pull(preset, tmp_path, accept_licence=True, again=True, keep=True)
    assert len(hub.requests) == 2 * asked
    assert left(tmp_path) == sorted([*(f".downloads/{name}" for name in NAMES), *WHOLE])
    # What was kept is checked, and not downloaded again.
    pull(preset, tmp_path, accept_licence=True, again=True)
    assert len(hub.requests) == 2 * asked
    assert left(tmp_path) == WHOLE


def test_tiny_comes_with_the_package(tmp_path: Path) -> None:
    assert pull(PRESETS["tiny"], tmp_path, accept_licence=False) == preset_folder(PRESETS["tiny"])


def test_nothing_is_asked_of_the_hub_before_the_licence_is_accepted(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    with pytest.raises(LicenceNotAccepted, match=r"S-Lab License 1\.0 .*, https://github"):
        pull(preset, tmp_path, accept_licence=False)
    assert hub.requests == []
    assert left(tmp_path) == []


def test_a_disk_without_room_is_told_before_the_download(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(DiskFull, match=r"has 0\.0 GB free, and 0\.0 GB are needed"):
        pull(preset, tmp_path, accept_licence=True)
    assert hub.requests == []


def test_files_that_do_not_convert_leave_no_folder(
    hub: Hub, preset: Preset, contents: dict[str, bytes], tmp_path: Path
) -> None:
    assert preset.release is not None
    diffusion, autoencoder = preset.release.files
    swapped = Release(
        replace(autoencoder, name=diffusion.name), replace(diffusion, name=autoencoder.name)
    )
    hub.files = {NAMES[0]: contents[NAMES[1]], NAMES[1]: contents[NAMES[0]]}
    with pytest.raises(CheckpointError, match="swapped"):
        pull(replace(preset, release=swapped), tmp_path, accept_licence=True)
    assert left(tmp_path) == sorted(f".downloads/{name}" for name in NAMES)


def test_of_two_pulls_at_once_one_works_and_the_other_waits(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    downloading, waiting = Event(), Event()

    def hold() -> None:
        downloading.set()
        assert waiting.wait(60)

    def second(now: WeightsProgress) -> None:
        assert now.stage == "wait"
        waiting.set()

    hub.before = hold
    folders: list[Path] = []
    first = Thread(target=lambda: folders.append(pull(preset, tmp_path, accept_licence=True)))
    first.start()
    assert downloading.wait(60)
    folders.append(pull(preset, tmp_path, accept_licence=True, on_progress=second))
    first.join()
    assert folders == [tmp_path / "stablesr-512"] * 2
    assert [len(hub.starts(name)) for name in NAMES] == [1, 1]


def test_what_a_killed_process_left_is_cleared_away(
    hub: Hub, preset: Preset, tmp_path: Path
) -> None:
    leftover = tmp_path / ".stablesr-512.1.part"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(bytes(10))
    pull(preset, tmp_path, accept_licence=True)
    assert left(tmp_path) == WHOLE


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
    whole, asked = (folder / "model.safetensors").read_bytes(), len(hub.requests)
    killed_in_between(folder)
    assert not folder.exists()
    assert len([p for p in tmp_path.iterdir() if p.name.endswith((".old", ".part"))]) == 2
    assert pull(preset, tmp_path, accept_licence=False) == folder
    assert len(hub.requests) == asked
    assert (folder / "model.safetensors").read_bytes() == whole
    assert left(tmp_path) == WHOLE


def test_a_folder_that_was_replaced_is_removed_and_not_put_back(tmp_path: Path) -> None:
    folder, old = tmp_path / "a", tmp_path / ".a.1.old"
    for path, text in ((folder, "new"), (old, "old")):
        path.mkdir()
        (path / "config.json").write_text(text)
    clear_leftovers(folder)
    assert left(tmp_path) == ["a/config.json"]
    assert (folder / "config.json").read_text() == "new"


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with replaced_folder(folder) as aside:
        (aside / "config.json").write_text("new")
        clear_leftovers(folder)
        assert (aside / "config.json").is_file()
    assert left(tmp_path) == ["a/config.json"]


def test_every_released_preset_tells_where_its_files_are_and_under_what_licence() -> None:
    released_presets = [p for p in PRESETS.values() if not p.embedded]
    assert len(released_presets) == 4
    for preset in released_presets:
        release = preset.release
        assert release is not None
        assert release.repository == "Iceclear/StableSR"
        assert [f.size for f in release.files] == [
            6_310_000_000 if preset.name == "stablesr-face" else 6_480_000_000,
            960_000_000,
        ]
        assert (preset.native == 768) == (preset.name == "stablesr-768v")
    assert {p.name for p in released_presets if p.release and not p.release.autoencoder.sha256} == {
        "stablesr-face"
    }


def test_a_note_of_absence_is_no_reason_not_to_pull(
    hub: Hub, preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STABLESR_WEIGHTS", str(tmp_path))
    Absence.note(preset, "no network")
    pull(preset, tmp_path, accept_licence=True)
    assert left(tmp_path) == sorted([*WHOLE, "stablesr-512.absent.json"])
