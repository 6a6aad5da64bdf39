"""One image over several devices of a host: the tiles of each network call, split among them.

Within a step tiles do not depend on each other, so that is exact. Each device has a replica of the
networks and a thread: torch lets other threads run while kernels do. What goes between devices is
small (a 64 x 64 tile of four channels is 64 KB in float32, its prediction as much, for milliseconds
of arithmetic), so it goes through the host: not every pair of GPUs can copy to each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch
from torch import Tensor

from models.denoiser import Denoiser, TileBatch

_HOST = torch.device("cpu")


class DataParallel:
    """In the place of a `Denoiser`: replicas of the same weights, one on each device, which all
    compute at the same time. Tiles come from the first one's, and predictions return to it."""

    def __init__(self, replicas: Sequence[Denoiser]) -> None:
        self._replicas = tuple(replicas)
        first, *others = self._replicas
        self.devices = tuple(device for replica in self._replicas for device in replica.devices)
        for replica in others:
            replica.fallbacks = first.fallbacks
        self._threads = [
            ThreadPoolExecutor(1, f"device-{number}") for number in range(len(self._replicas))
        ]

    def room(self, tiles: int) -> int:
        """Tiles of a call where each device has room for so many."""
        return self._replicas[0].room(tiles) * len(self._replicas)

    def compilations(self, tiles: int, side: int) -> list[Callable[[], None]]:
        """As of `Denoiser`, for calls of up to so many tiles in total."""
        each = -(-tiles // len(self._replicas))
        return [step for replica in self._replicas for step in replica.compilations(each, side)]

    def denoise(self, tiles: TileBatch) -> Tensor:
        """As of `Denoiser`; raises what happened on any of the devices, once all have ended."""
        # The first ones have one tile more; none is empty.
        shares = torch.arange(len(tiles)).tensor_split(min(len(tiles), len(self._replicas)))

        def call(number: int) -> Tensor:
            part = tiles.part(int(shares[number][0]), int(shares[number][-1]) + 1)
            if number == 0:
                return self._replicas[0].denoise(part)
            return self._replicas[number].denoise(part.to(_HOST)).to(_HOST)

        calls = [self._threads[number].submit(call, number) for number in range(len(shares))]
        wait(calls)
        return torch.cat([call.result().to(tiles.noisy.device) for call in calls])
