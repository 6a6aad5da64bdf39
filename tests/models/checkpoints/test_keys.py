"""The released inventories against the networks, on the meta device."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoints.containers import Checkpoint, LazyTensor
from models.checkpoints.keys import SCHEDULE_KEYS, config_of, our_tensors, released_names
from models.config import EncoderConfig, ModelConfig, TextConfig, UNetConfig
from tests.models.released import idle_names, meta_tensors, ours, to_released

GOLDEN = Path(__file__).parents[2] / "golden"


def inventory(size: str) -> tuple[ModelConfig, dict[str, list[int]]]:
    """Sizes of the networks, and the shapes of both files."""
    with gzip.open(GOLDEN / f"keys_{size}.json.gz") as packed:
        loaded: dict[str, dict[str, list[int]]] = json.load(packed)
    diffusion, autoencoder = loaded["state_dict"], loaded["cfw_state_dict"]
    return config_of(diffusion, autoencoder), {**diffusion, **autoencoder}


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_every_released_tensor_has_one_place_and_every_place_one_tensor(size: str) -> None:
    config, shapes = inventory(size)
    meta = meta_tensors(config)
    names = released_names(meta, config)
    # The empty prompt's embedding is computed once and stored by us, not by the released file.
    assert names.keys() == meta.keys() - {"context"}
    originals = {original for (original,) in names.values()}
    assert sorted([*originals, *idle_names(config)]) == sorted(shapes.keys() - SCHEDULE_KEYS)


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_the_way_back_gives_every_released_shape(size: str) -> None:
    config, shapes = inventory(size)
    for tensors in to_released(meta_tensors(config), config):
        for name, tensor in tensors.items():
            assert list(tensor.shape) == shapes[name], name


def file_of(tensors: Mapping[str, Tensor]) -> Checkpoint:
    def lazy(tensor: Tensor) -> LazyTensor:
        return LazyTensor(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    return Checkpoint(Path("a.ckpt"), {name: lazy(tensor) for name, tensor in tensors.items()})


def test_values_survive_the_way_there_and_back() -> None:
    config, _ = inventory("tiny")
    tensors = ours(config)
    diffusion, autoencoder = to_released(tensors, config)
    names, meta = released_names(tensors, config), meta_tensors(config)
    read = our_tensors(file_of(diffusion | autoencoder), names, meta, config.encoder.heads)
    assert read.tensors.keys() == tensors.keys() - {"context"}
    for name, lazy in read.tensors.items():
        assert lazy.shape == tuple(tensors[name].shape)
        assert torch.equal(lazy.read(), tensors[name]), name


def test_the_full_inventory_gives_the_sizes_of_the_released_model() -> None:
    config, _ = inventory("full")
    assert config.unet == UNetConfig()
    assert config.encoder == EncoderConfig()
    assert config.text == TextConfig()
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
