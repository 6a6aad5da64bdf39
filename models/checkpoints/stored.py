"""Tensors that lie in a file and are read one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["MAX_TENSOR_BYTES", "Checkpoint", "StoredTensor", "as_tensor", "read_at"]

MAX_TENSOR_BYTES = 2**30
"""The largest tensor of the released files has 202 MB; what is far above is no weight."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies, and how it is read."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    """Reads it, contiguous and on the host.

    Raises:
        CheckpointUnreadable: the file ends before the tensor does.
    """


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file (or a folder) by name; none of them is in memory."""

    path: Path
    tensors: Mapping[str, StoredTensor]
    others: tuple[str, ...] = ()
    """Names that stand beside the tensors' and hold something else."""
    foreign: tuple[str, ...] = ()
    """Names of the classes and functions in the file that have nothing to do with tensors."""
    files: tuple[Path, ...] = field(default=())
    """What was read."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def read_at(path: Path, start: int, count: int) -> bytearray:
    """`count` bytes of a file, or fewer where it ends before."""
    buffer = bytearray(count)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        view, done = memoryview(buffer), 0
        while done < count and (n := file.readinto(view[done:])):
            done += n
        view.release()
    del buffer[done:]
    return buffer


def as_tensor(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The bytes as a tensor that shares their memory."""
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(shape)
