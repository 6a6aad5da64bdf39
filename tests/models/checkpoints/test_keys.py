"""The released inventories against the networks, on the meta device."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.checkpoints.inventory import config_of
from models.checkpoints.keys import (
    SCHEDULE_KEYS,
    Entry,
    autoencoder_entries,
    diffusion_entries,
    from_released,
    to_released,
)
from models.config import EncoderConfig, ModelConfig, TextConfig, UNetConfig
from models.errors import CheckpointMismatch
from models.networks.bundle import Networks

GOLDEN = Path(__file__).parents[2] / "golden"

Inventory = dict[str, dict[str, list[int]]]


def inventory(size: str) -> Inventory:
    with gzip.open(GOLDEN / f"keys_{size}.json.gz") as packed:
        loaded: Inventory = json.load(packed)
    return loaded


def entries(config: ModelConfig) -> list[Entry]:
    return [*diffusion_entries(config), *autoencoder_entries(config)]


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_every_released_tensor_has_one_place_and_every_place_one_tensor(size: str) -> None:
    released = inventory(size)
    shapes = {**released["state_dict"], **released["cfw_state_dict"]}
    config = config_of(released["state_dict"], released["cfw_state_dict"])
    table = entries(config)
    assert sorted(e.name for e in table) == sorted(shapes.keys() - SCHEDULE_KEYS)

    with torch.device("meta"):
        networks = Networks(config, first_stage="whole")
    ours: dict[str, Tensor] = {}
    for entry in table:
        tensor = torch.empty(shapes[entry.name], device="meta")
        mapped = from_released(entry, tensor, config.encoder.heads)
        assert not ours.keys() & mapped.keys()
        ours.update(mapped)
    # The empty prompt's embedding is computed once and stored by us, not by the released file.
    wanted = {k: v.shape for k, v in networks.state_dict().items() if k != "context"}
    assert {k: v.shape for k, v in ours.items()} == wanted


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_the_way_back_gives_every_released_shape(size: str) -> None:
    released = inventory(size)
    shapes = {**released["state_dict"], **released["cfw_state_dict"]}
    config = config_of(released["state_dict"], released["cfw_state_dict"])
    with torch.device("meta"):
        ours = Networks(config, first_stage="whole").state_dict()
    for entry in (e for e in entries(config) if e.ours):
        back = to_released(entry, ours, config.encoder.heads)
        assert list(back.shape) == shapes[entry.name], entry.name


def test_values_survive_the_way_there_and_back() -> None:
    released = inventory("tiny")
    shapes = {**released["state_dict"], **released["cfw_state_dict"]}
    config = config_of(released["state_dict"], released["cfw_state_dict"])
    for entry in (e for e in entries(config) if e.ours):
        tensor = torch.randn(shapes[entry.name])
        mapped = from_released(entry, tensor, config.encoder.heads)
        back = to_released(entry, mapped, config.encoder.heads)
        assert torch.equal(back, tensor), entry.name


def test_the_full_inventory_gives_the_sizes_of_the_released_model() -> None:
    released = inventory("full")
    config = config_of(released["state_dict"], released["cfw_state_dict"])
    assert config.unet == UNetConfig()
    assert config.encoder == EncoderConfig()
    assert config.text == TextConfig()
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_swapped_files_are_named_as_the_likely_mistake() -> None:
    released = inventory("full")
    with pytest.raises(CheckpointMismatch, match="swapped"):
        config_of(released["cfw_state_dict"], released["state_dict"])
