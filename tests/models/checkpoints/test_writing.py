"""Safetensors files that are written tensor by tensor, and what killed processes left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from safetensors.torch import load_file

from models.checkpoints.containers import LazyTensor, open_checkpoint
from models.checkpoints.files import ignore
from models.checkpoints.pull import pull
from models.checkpoints.writing import (
    Form,
    clear_leftovers,
    replaced_folder,
    write_safetensors,
    write_tensors,
)
from models.presets import Preset
from tests.models.hub import WHOLE, Hub, files_in


def test_the_safetensors_library_reads_what_is_written_tensor_by_tensor(tmp_path: Path) -> None:
    # Odd sizes between wide types: the library refuses tensors that are not aligned.
    tensors = {
        "scalar": torch.tensor(2.5),
        "half": torch.arange(7).half(),
        "float": torch.linspace(-3, 3, 30).reshape(5, 6),
        "brain": torch.arange(7).bfloat16(),
        "empty": torch.empty(0, 3),
        "odd": torch.arange(3.0),
    }
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {name: t.shape for name, t in tensors.items()}, tensors.items())
    ours = {name: lazy.read() for name, lazy in open_checkpoint(path).tensors.items()}
    for loaded in (load_file(path), ours):
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[name].dtype == tensor.dtype
            assert torch.equal(loaded[name], tensor)


def test_one_file_is_written_where_all_fits_into_it(tmp_path: Path) -> None:
    tensor = torch.ones(4)
    tensors = {"a": LazyTensor(tensor.dtype, (4,), lambda: tensor)}
    files, _ = write_tensors(tmp_path, tensors, Form("float32", shard_bytes=16), ignore)
    assert [path.name for path in files] == ["model.safetensors"]


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
