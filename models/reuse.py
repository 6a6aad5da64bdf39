"""An approximation, off by default: deep features that serve several steps.

What the coarse levels of the UNet compute changes little from one step to the next (the observation
of DeepCache, arXiv 2312.00858). With `Options.reuse_every = n` only every n-th step computes all of
the network; the others compute the finest level alone and take what the second level handed up at
the last full step. The modulation's features of the finest level are those of the step itself.

Which tiles belong to which step and job is the sampler's to know: a `StepRequest` carries its
tiles' share of its job's `DeepFeatures`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.arithmetic import arithmetic
from models.networks.bundle import Networks

__all__ = ["DeepFeatures", "Share", "alike", "predict_reusing"]


class DeepFeatures:
    """One job's, of its last full step: (width of the second level, h / 2, w / 2) a tile, where the
    networks compute. They go with the job's sampler."""

    def __init__(self) -> None:
        self._tiles: dict[int, Tensor] = {}

    def keep(self, start: int, deep: Tensor) -> None:
        """Of the tiles from `start` on, (n, c, h, w)."""
        self._tiles.update((start + i, tile) for i, tile in enumerate(deep))

    def of(self, start: int, stop: int) -> Tensor:
        """(stop - start, c, h, w)."""
        return torch.stack([self._tiles[number] for number in range(start, stop)])


@dataclass(frozen=True)
class Share:
    """Tiles `start` to `stop` of a job's step."""

    features: DeepFeatures
    full: bool
    """Whether this step computes them anew"""
    start: int
    stop: int

    def part(self, start: int, stop: int) -> Share:
        """Of these tiles, counted within the share."""
        return replace(self, start=self.start + start, stop=self.start + stop)


def alike(shares: Sequence[Share | None]) -> list[list[int]]:
    """Numbers of the requests with these shares that go together in one call: mostly all, as none
    shares deep features."""
    groups: dict[bool | None, list[int]] = {}
    for index, share in enumerate(shares):
        groups.setdefault(None if share is None else share.full, []).append(index)
    return list(groups.values())


@torch.inference_mode()
def predict_reusing(
    networks: Networks,
    device: torch.device,
    noisy: Tensor,
    lr: Tensor,
    timesteps: Sequence[int],
    context: Tensor | None,
    shares: Sequence[Share],
) -> Tensor:
    """As `Networks.predict`, but float32: of tiles whose shares are all full, or all not."""
    t = torch.tensor(timesteps, device=device)
    with arithmetic(device, noisy.dtype):
        if not shares[0].full:
            deep = torch.cat([share.features.of(share.start, share.stop) for share in shares])
            return networks.denoise_finest(noisy, lr, t, context, deep).float()
        out, deep = networks.denoise_keeping(noisy, lr, t, context)
    sizes = [share.stop - share.start for share in shares]
    for share, part in zip(shares, torch.split(deep, sizes), strict=True):
        share.features.keep(share.start, part)
    return out.float()
