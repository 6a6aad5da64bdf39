"""Network calls of one image alone, when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.autoencoding import Changes
from models.calls import Calls
from models.sampling import StepRequest


class Network:
    """Has room for `room` tiles; keeps how many each call had."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tiles: list[int] = []

    def __call__(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        tiles = sum(len(request) for request in requests)
        self.tiles.append(tiles)
        if tiles > self.room:
            raise torch.OutOfMemoryError("no room")
        return [request.noisy + request.lr for request in requests]


def request(tiles: int) -> StepRequest:
    noisy, lr = torch.randn(2, tiles, 4, 8, 8)
    return StepRequest(noisy, lr, 500, torch.zeros(tiles, 1, 1), 0, 1)


def test_calls_are_halved_until_they_fit_and_stay_small() -> None:
    network, changes = Network(room=3), Changes()
    calls = Calls(network, 8, changes)
    requests = [request(5), request(3)]
    for _ in range(2):
        for found, asked in zip(calls(requests), requests, strict=True):
            assert torch.equal(found, asked.noisy + asked.lr)
    assert calls.limit == 2
    assert network.tiles == [8, 4, 2, 2, 1, 2, 1, 2, 2, 1, 2, 1]
    assert changes.counts == {"tile_batch": 2}


def test_with_room_there_is_one_call() -> None:
    network = Network(room=8)
    Calls(network, 8, Changes())([request(5), request(3)])
    assert network.tiles == [8]


def test_a_tile_that_does_not_fit_alone_is_an_error() -> None:
    changes = Changes()
    with pytest.raises(torch.OutOfMemoryError):
        Calls(Network(room=0), 2, changes)([request(2)])
    assert changes.counts == {"tile_batch": 1}


def test_other_errors_are_not_tried_again() -> None:
    def broken(requests: Sequence[StepRequest]) -> list[Tensor]:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    changes = Changes()
    with pytest.raises(RuntimeError, match="illegal"):
        Calls(broken, 4, changes)([request(3)])
    assert not changes.counts
