"""Writes a folder of weights aside, tensor by tensor, and puts it in place when it is whole."""

from __future__ import annotations

import errno
import logging
import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from models.checkpoints.leftovers import beside, holding
from models.checkpoints.pieces import Piece
from models.checkpoints.places import INDEX, WEIGHTS
from models.checkpoints.progress import Listener, WeightsProgress
from models.checkpoints.safetensors_file import SafetensorsWriter
from models.checkpoints.shards import shard_name, split, write_index
from models.errors import CheckpointMismatch, DiskFull

__all__ = ["Form", "check_room", "folder_aside", "is_finite", "write_tensors"]

log = logging.getLogger(__name__)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Form:
    """How converted weights are stored."""

    dtype: torch.dtype = torch.float16
    shard_bytes: int | None = None
    """Largest size of a file; None writes one file."""
    text: bool = False
    """Keep the text tower, which prompts need."""

    @classmethod
    def named(cls, dtype: str, shard_bytes: int | None = None, text: bool = False) -> Self:
        """With the type by its name: float16, bfloat16 or float32."""
        dtypes = {str(d).removeprefix("torch."): d for d in _DTYPES}
        return cls(dtypes[dtype], shard_bytes, text)

    @property
    def name(self) -> str:
        """The type's, such as float16."""
        return str(self.dtype).removeprefix("torch.")


def check_room(folder: Path, needed: int) -> None:
    """Whether `needed` bytes fit on the disk that `folder` lies on, or will lie on.

    Raises:
        DiskFull: they do not.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise DiskFull(
            f"The disk of {folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are "
            "needed."
        )


@contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Gives a new folder beside `folder`, and puts it in its place when the block ends well.

    Raises:
        DiskFull: the disk ran full in the block.
    """
    aside, old = beside(folder)
    try:
        aside.mkdir(parents=True)
        with holding(aside):
            yield aside
            _put(aside, folder, old)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"The disk of {folder} ran full; nothing was kept.") from error
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _put(aside: Path, folder: Path, old: Path) -> None:
    """Puts a folder in the place of another, or leaves that one there. `clear_leftovers` does the
    same for a process that is killed in between."""
    if not folder.exists():
        aside.rename(folder)
        return
    with holding(folder):
        folder.rename(old)
        try:
            aside.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
        # What is half removed must not be taken for a folder to be put back.
        old.rename(aside)


def write_tensors(
    folder: Path, pieces: Mapping[str, Piece], form: Form, progress: Listener
) -> tuple[tuple[Path, ...], list[str]]:
    """Writes all tensors, in one file or several with an index.

    Returns:
        The files, and the names of tensors that float16 cannot hold and that were kept in float32.

    Raises:
        CheckpointMismatch: a tensor has values that are no numbers.
        DiskFull: the disk has no room.
    """
    sizes = {name: math.prod(p.shape) * form.dtype.itemsize for name, p in pieces.items()}
    done, total = 0, sum(sizes.values())
    check_room(folder, total)
    shards = split(sizes, form.shard_bytes)
    files = [shard_name(i + 1, len(shards)) for i in range(len(shards))]
    if form.shard_bytes is None:
        files = [WEIGHTS]
    kept: list[str] = []
    for file, names in zip(files, shards, strict=True):
        with SafetensorsWriter(folder / file, {n: pieces[n].shape for n in names}) as writer:
            for name in names:
                tensor = _narrowed(name, pieces[name].read(), form.dtype)
                if tensor.dtype != form.dtype:
                    kept.append(name)
                writer.write(name, tensor)
                done += sizes[name]
                progress(WeightsProgress("convert", file, done, total))
    if kept:
        log.warning(
            "%d tensors have values beyond %s and are kept in float32: %s",
            *(len(kept), form.name, ", ".join(kept[:5])),
        )
    if form.shard_bytes is not None:
        write_index(folder / INDEX, dict(zip(files, shards, strict=True)), total)
        files.append(INDEX)
    return tuple(folder / file for file in files), kept


def _narrowed(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, or in float32 where `dtype` would make infinities of it."""
    if not tensor.is_floating_point():
        raise CheckpointMismatch(f"{name} holds {tensor.dtype}, and weights are floating-point.")
    if not is_finite(tensor):
        raise CheckpointMismatch(
            f"{name} has values that are no numbers: the file is damaged, or its training failed."
        )
    narrow = tensor.to(dtype)
    return narrow if is_finite(narrow) else tensor.to(torch.float32)


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite; without a mask of the tensor's size."""
    if tensor.numel() == 0:
        return True
    return all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))
