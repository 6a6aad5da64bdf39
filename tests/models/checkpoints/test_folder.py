"""Folders of weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models.checkpoints.files import preset_folder
from models.checkpoints.folder import load_folder, random_networks, save_folder
from models.errors import CheckpointMismatch
from models.networks.bundle import Networks
from models.presets import PRESETS
from tests.models.released import SMALL
from training.initial_weights import TINY

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def networks() -> Networks:
    return random_networks(SMALL, CPU, torch.float32)


@pytest.fixture
def folder(networks: Networks, tmp_path: Path) -> Path:
    save_folder(networks, tmp_path / "weights", torch.float32)
    return tmp_path / "weights"


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in change.items():
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_a_saved_folder_loads_as_it_was(networks: Networks, folder: Path) -> None:
    loaded = load_folder(folder, CPU, torch.float32)
    assert loaded.config == SMALL
    tensors = loaded.state_dict()
    for name, tensor in networks.state_dict().items():
        assert torch.equal(tensors[name], tensor), name
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_loaded_weights_do_not_lie_in_the_file(folder: Path) -> None:
    """Pages of a mapped file count as free memory, while plans add the weights to what is held."""
    loaded = load_folder(folder, CPU, torch.float32)
    maps = Path("/proc/self/maps").read_text()
    assert str(folder) not in maps
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, {"unet.conv_in.bias": None})
    with pytest.raises(CheckpointMismatch, match=r"missing unet\.conv_in\.bias"):
        load_folder(folder, CPU, torch.float32)


def test_a_left_over_tensor_is_named(folder: Path) -> None:
    rewrite(folder, {"unet.extra": torch.zeros(1)})
    with pytest.raises(CheckpointMismatch, match=r"left over unet\.extra"):
        load_folder(folder, CPU, torch.float32)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    rewrite(folder, {"unet.conv_in.bias": torch.zeros(3)})
    with pytest.raises(CheckpointMismatch, match=r"conv_in\.bias has shape \(3,\) instead of"):
        load_folder(folder, CPU, torch.float32)


def test_the_embedded_weights_fit_in_25_megabytes_and_are_half_precision() -> None:
    folder = preset_folder(PRESETS["tiny"])
    file = folder / "model.safetensors"
    assert file.stat().st_size < 25e6
    tensors = load_file(file)
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert all(bool(t.isfinite().all()) for t in tensors.values())
    described = json.loads((folder / "config.json").read_text())
    assert described["unet"] == json.loads(json.dumps(TINY.to_json()))["unet"]
