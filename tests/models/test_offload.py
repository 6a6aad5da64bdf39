"""Which networks are on the device when; tensors without numbers stand for a device's."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from models.checkpoints.folder import random_networks
from models.networks.bundle import Networks
from models.offload import Offload
from tests.models import narrow

DEVICE = torch.device("meta")
WAIT_S = 20


@pytest.fixture
def networks() -> Networks:
    return random_networks(narrow.CONFIG, torch.device("cpu"), torch.float32)


def places(module: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in module.parameters()}


def test_one_part_at_a_time_is_on_the_device(networks: Networks) -> None:
    before = {name: p.clone() for name, p in networks.named_parameters()}
    offload = Offload(networks, DEVICE)
    assert places(networks) == {"cpu"}
    with offload.on_device("autoencoder"):
        assert places(networks.autoencoder) == {"meta"}
        assert places(networks.unet) | places(networks.encoder) == {"cpu"}
    with offload.on_device("denoiser"):
        assert places(networks.unet) | places(networks.encoder) == {"meta"}
        assert places(networks.autoencoder) == {"cpu"}
    # What came back from the device is what was there all the time.
    with offload.on_device("autoencoder"):
        for name, parameter in networks.named_parameters():
            if not name.startswith("autoencoder."):
                assert torch.equal(parameter, before[name])


def test_a_part_that_is_there_is_not_moved_again(networks: Networks) -> None:
    offload = Offload(networks, DEVICE)
    seen = set()
    for _ in range(5):
        with offload.on_device("denoiser"):
            seen.add(next(networks.unet.parameters()))
    assert len(seen) == 1


def test_the_other_part_comes_when_the_call_in_flight_has_ended(networks: Networks) -> None:
    offload = Offload(networks, DEVICE)
    order: list[str] = []
    asks = threading.Event()

    def decode() -> None:
        asks.set()
        with offload.on_device("autoencoder"):
            order.append("decode")
            assert places(networks.unet) == {"cpu"}

    with ThreadPoolExecutor(1) as pool:
        with offload.on_device("denoiser"):
            decoding = pool.submit(decode)
            assert asks.wait(WAIT_S)
            assert places(networks.unet) == {"meta"}
            order.append("denoise")
        decoding.result(WAIT_S)
    assert order == ["denoise", "decode"]


def test_a_part_that_does_not_fit_leaves_the_device_empty(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    offload = Offload(networks, DEVICE)
    with offload.on_device("autoencoder"):
        pass
    moves = 0

    def full(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        nonlocal moves
        moves += 1
        if moves > 3:
            raise torch.OutOfMemoryError("no room")
        return torch.empty_like(tensor, device=device)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", full)
        with pytest.raises(torch.OutOfMemoryError), offload.on_device("denoiser"):
            pass
    assert places(networks) == {"cpu"}
    assert offload.there is None
    with offload.on_device("denoiser"):
        assert places(networks.unet) == {"meta"}
