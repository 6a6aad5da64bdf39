"""What processes of other devices load in tests: picklable by name."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor

from models.checkpoints.folder import random_networks
from models.compiled import Denoises
from models.pipeline import StableSR
from models.spread import wire
from tests.models import narrow

__all__ = [
    "Arithmetic",
    "arithmetic",
    "leaves",
    "narrow_sr",
    "never_loaded",
    "no_weights",
    "of_narrow",
    "one_late",
]


def narrow_sr(device: torch.device) -> StableSR:
    """The same random numbers in every process."""
    torch.manual_seed(7)
    networks = random_networks(narrow.CONFIG, device, torch.float32)
    return StableSR(networks, narrow.PRESET, device, torch.float32)


def of_narrow(device: torch.device) -> Denoises:
    return narrow_sr(device).denoiser


class Arithmetic:
    """In a denoiser's place: tells which tiles it had, and fails for some timesteps."""

    wanted = False
    apart = None
    dtype = torch.bfloat16

    def __init__(self) -> None:
        self.eager_calls: Counter[str] = Counter()
        self.calls: list[int] = []

    def room(self, tiles: int) -> int:
        return tiles

    def warm(self, tiles: int, side: int) -> None:
        self.calls.append(-tiles)

    def __call__(
        self, noisy: Tensor, lr: Tensor, timesteps: Sequence[int], context: Tensor | None
    ) -> Tensor:
        self.calls.append(len(noisy))
        if 13 in timesteps:
            raise RuntimeError("a tile that cannot be predicted")
        if 14 in timesteps and len(noisy) > 1:
            raise MemoryError("no room for two")
        times = torch.tensor(timesteps).reshape(-1, 1, 1, 1)
        text = 0 if context is None else context.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
        return noisy.float() + 2 * lr.float() + times + text


def arithmetic(device: torch.device) -> Denoises:
    return Arithmetic()


def leaves(device: torch.device) -> Denoises:
    """Loads, and its process is gone before it has connected."""

    def gone(*_: object, **__: object) -> None:
        os._exit(3)

    wire.Wire.__init__ = gone  # type: ignore[method-assign]  # that of a process made for it
    return Arithmetic()


def one_late(device: torch.device) -> Denoises:
    """On cpu:0 it takes longer than processes have for connecting, here and on the other device."""
    wire.CONNECT = timedelta(seconds=1)
    if device.index == 0:
        # Time itself is what the other one must bear.
        time.sleep(3)
    return Arithmetic()


def never_loaded(device: torch.device) -> Denoises:
    """Says which process it is, and loads until that is ended."""
    print(os.getpid(), flush=True)
    threading.Event().wait()
    raise AssertionError("nobody ends the waiting")


def no_weights(device: torch.device) -> Denoises:
    raise FileNotFoundError(f"no weights for {device}")
