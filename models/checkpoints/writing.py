"""Writes a folder of weights, all or nothing: its tensors as safetensors, one at a time.

A folder is written beside its place and renamed. `.NAME.*.part` is one in the making, or one that
was replaced and is being removed; `.NAME.*.old` is a whole one that makes room: between its two
renames there is no folder NAME. The process at work holds the folder's lock, which ends with it, so
that leftovers of a killed process are known. Process numbers would not do: containers share them.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from secrets import token_hex
from typing import Literal

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from torch import Tensor

from models.checkpoints.containers import LazyTensor
from models.checkpoints.files import (
    INDEX,
    OnProgress,
    WeightsProgress,
    check_room,
    is_disk_full,
)
from models.checkpoints.folder import is_finite
from models.errors import CheckpointMismatch, DiskFull

log = logging.getLogger(__name__)

_DTYPE_CODES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""What safetensors calls the types."""


@dataclass(frozen=True)
class Form:
    """How converted weights are stored."""

    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    shard_bytes: int | None = None
    """Largest size of a file of several; None writes one file."""
    text: bool = False
    """Keep the text tower, which prompts need."""

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


def write_tensors(
    folder: Path, tensors: Mapping[str, LazyTensor], form: Form, on_progress: OnProgress
) -> tuple[tuple[Path, ...], list[str]]:
    """Writes all tensors, in one file or several with an index.

    Returns:
        The files, and the names of tensors that float16 cannot hold and that were kept in float32.

    Raises:
        CheckpointMismatch: a tensor has values that are no numbers.
        DiskFull: the disk has no room.
    """
    dtype = form.torch_dtype
    sizes = {name: math.prod(t.shape) * dtype.itemsize for name, t in tensors.items()}
    position, total = 0, sum(sizes.values())
    check_room(folder, total)
    shards = split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=form.shard_bytes or total,
    )
    float32: list[str] = []

    def narrow(file: str, names: list[str]) -> Iterator[tuple[str, Tensor]]:
        nonlocal position
        for name in names:
            tensor = _narrow(name, tensors[name].read(), dtype)
            if tensor.dtype != dtype:
                float32.append(name)
            yield name, tensor
            position += sizes[name]
            on_progress(WeightsProgress("convert", file, position, total))

    for file, names in shards.filename_to_tensors.items():
        shapes = {name: tensors[name].shape for name in names}
        write_safetensors(folder / file, shapes, narrow(file, names))
    if float32:
        log.warning(
            "%d tensors have values beyond %s and are kept in float32: %s",
            *(len(float32), form.dtype, ", ".join(float32[:5])),
        )
    paths = [folder / file for file in shards.filename_to_tensors]
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        paths.append(folder / INDEX)
    return tuple(paths), float32


def _narrow(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, or in float32 where `dtype` would make infinities of it."""
    if not tensor.is_floating_point():
        raise CheckpointMismatch(f"{name} holds {tensor.dtype}, and weights are floating-point.")
    if not is_finite(tensor):
        raise CheckpointMismatch(
            f"{name} has values that are no numbers: the file is damaged, or its training failed."
        )
    narrow = tensor.to(dtype)
    return narrow if is_finite(narrow) else tensor.to(torch.float32)


def write_safetensors(
    path: Path, shapes: Mapping[str, Iterable[int]], tensors: Iterable[tuple[str, Tensor]]
) -> None:
    """Writes a safetensors file (https://github.com/huggingface/safetensors#format) of one tensor
    after the other: the library saves whole dictionaries only, which would have to be in memory.

    The header's place is kept before the first tensor, wide enough for every tensor in float32, so
    that the type of each may still be chosen when it comes.
    """
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = sum(4 * math.prod(shape) for shape in shapes.values())
    widest = {name: _entry(torch.bfloat16, shape, end, end) for name, shape in shapes.items()}
    # The library pads to 8, too: tensors begin where their numbers are aligned.
    length = -(-len(_json({**entries, **widest})) // 8) * 8
    position = 0
    with path.open("wb") as file:
        file.seek(8 + length)
        for name, tensor in _odd_sizes_last(tensors):
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            end = position + tensor.nbytes
            entries[name] = _entry(tensor.dtype, tensor.shape, position, end)
            position = end
        file.seek(0)
        file.write(length.to_bytes(8, "little"))
        file.write(_json(entries).ljust(length))
        file.flush()
        os.fsync(file.fileno())


def _odd_sizes_last(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """What follows a tensor of an odd size would not be aligned; these are tiny, and kept for the
    end, the widest first."""
    odd: list[tuple[str, Tensor]] = []
    for name, tensor in tensors:
        if tensor.nbytes % 8:
            odd.append((name, tensor))
        else:
            yield name, tensor
    yield from sorted(odd, key=lambda item: -item[1].itemsize)


def _entry(dtype: torch.dtype, shape: Iterable[int], start: int, end: int) -> object:
    return {"dtype": _DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [start, end]}


def _json(header: Mapping[str, object]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


@contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Gives a new folder beside `folder`, and puts it in its place when the block ends well.

    Raises:
        DiskFull: the disk ran full in the block.
    """
    new = folder.with_name(f".{folder.name}.{token_hex(4)}.part")
    try:
        new.mkdir(parents=True)
        with _lock(new):
            yield new
            if folder.exists():
                _replace(folder, new)
            else:
                new.rename(folder)
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(f"The disk of {folder} ran full; nothing was kept.") from error
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _replace(folder: Path, new: Path) -> None:
    """Puts `new` in the place of `folder`, or leaves that one there. `clear_leftovers` does the
    same for a process that is killed in between."""
    old = new.with_suffix(".old")
    with _lock(folder):
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
        # What is half removed must not be taken for a folder to be put back.
        old.rename(new)


@contextmanager
def _lock(folder: Path) -> Iterator[bool]:
    """Locks a folder, under whatever name it gets meanwhile; false if another process holds it.
    Some network file systems lock no folders; there every process is taken to be gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            log.warning("no lock on %s: %s", folder, error.strerror)
        yield True
    finally:
        os.close(descriptor)


def clear_leftovers(folder: Path) -> None:
    """Puts the folder back if a process was killed while it replaced it; removes what else such
    processes left. Raises OSError."""
    beside = folder.parent.glob(f".{escape(folder.name)}.*.*")
    leftovers = [p for p in beside if p.suffix in (".old", ".part") and p.is_dir()]
    # The newest old one first: it is the one to put back.
    leftovers.sort(key=lambda path: (path.suffix != ".old", -path.stat().st_mtime))
    for leftover in leftovers:
        with _lock(leftover) as is_free:
            if is_free and leftover.suffix == ".old" and not folder.exists():
                leftover.rename(folder)
                log.warning("%s was left by a process that was killed, and is back", folder)
            elif is_free:
                shutil.rmtree(leftover, ignore_errors=True)
