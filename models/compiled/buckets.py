"""Sizes of network calls: powers of two."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["bucket_of", "buckets", "padded", "room"]


def bucket_of(tiles: int) -> int:
    """The smallest bucket that so many tiles fit into."""
    return 1 << (tiles - 1).bit_length()


def room(tiles: int) -> int:
    """The largest bucket of at most so many tiles."""
    return 1 << (tiles.bit_length() - 1)


def buckets(most: int) -> list[int]:
    """All buckets of at most `most` tiles, smallest first."""
    return [1 << power for power in range(most.bit_length())]


def padded(tiles: Tensor, size: int) -> Tensor:
    """(n, ...) -> (size, ...): the last tile again and again; its predictions are thrown away."""
    missing = size - len(tiles)
    if not missing:
        return tiles
    return torch.cat([tiles, tiles[-1:].expand(missing, *tiles.shape[1:])])
