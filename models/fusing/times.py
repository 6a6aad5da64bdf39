"""The time embeddings of all residual blocks as a table with a row for each timestep.

Sampling knows 1000 timesteps. What a block adds for one of them, its projection of the embedding,
is a vector. All blocks' vectors of all timesteps are less than the layers that make them (at full
size 25 million numbers against 34), so the whole table is made at once and those layers are
dropped. The bias of the convolution before the sum is in it too.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.weights import constant, wide
from models.networks.bundle import Networks
from models.networks.encoder import TimeAwareEncoder
from models.networks.unet import ModulatedUNet

__all__ = ["Columns", "TimeTable", "fuse_times"]

_TIMESTEPS = 1000


class TimeTable(nn.Module):
    """What every residual block adds at a timestep."""

    def __init__(self, rows: nn.Parameter) -> None:
        super().__init__()
        self.rows = rows
        """(timesteps, the blocks' channels one after the other)"""

    def forward(self, timestep: Tensor) -> Tensor:
        """Whole timesteps (n,) -> (n, channels of all blocks)."""
        return self.rows[timestep.long()]


class Columns(nn.Module):
    """A block's own columns of the table's row; stands where its projection stood."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__()
        self.start, self.stop = start, stop

    def forward(self, row: Tensor) -> Tensor:
        return row[:, self.start : self.stop]


def fuse_times(networks: Networks) -> None:
    """UNet and time-aware encoder."""
    for part in (networks.unet, networks.encoder):
        if part.time_table is None:
            _fuse(part)


@torch.inference_mode(False)
@torch.no_grad()
def _fuse(part: ModulatedUNet | TimeAwareEncoder) -> None:
    blocks = [m for m in part.modules() if isinstance(m, ResnetBlock2D)]
    like = blocks[0].conv1.weight
    embedded = _embedded(part.time_proj, part.time_embedding, like.device)
    rows = torch.empty((_TIMESTEPS, sum(b.out_channels for b in blocks)), dtype=like.dtype)
    rows = rows.to(like.device)
    start = 0
    for block in blocks:
        stop = start + block.out_channels
        projection = block.time_emb_proj
        assert isinstance(projection, nn.Linear)
        bias = wide(projection.bias) + wide(block.conv1.bias)
        rows[:, start:stop] = F.linear(embedded, wide(projection.weight), bias)
        block.register_module("time_emb_proj", Columns(start, stop))
        block.conv1.bias = None
        # The SiLU before the projection is in the table as well.
        block.skip_time_act = True
        start = stop
    part.time_table = TimeTable(constant(rows, like))
    del part.time_proj, part.time_embedding


def _embedded(projection: Timesteps, embedding: TimestepEmbedding, device: torch.device) -> Tensor:
    """Of every timestep, after SiLU, in float64."""
    timesteps = torch.arange(_TIMESTEPS, device=device)
    x: Tensor = projection(timesteps).to(torch.float64)
    layers: Iterable[nn.Linear] = (embedding.linear_1, embedding.linear_2)
    for layer in layers:
        x = F.silu(F.linear(x, wide(layer.weight), wide(layer.bias)))
    return x
