"""Writes the tensors of a folder as safetensors, one at a time, in one file or in several.

The format (https://github.com/huggingface/safetensors#format) is a length of 8 bytes, a JSON header
of that length, and the tensors one after the other. The library of that name saves whole
dictionaries only; a file of gigabytes has to be written without holding it.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from models.checkpoints.containers import LazyTensor
from models.checkpoints.files import OnProgress, WeightsProgress, check_room
from models.checkpoints.folder import is_finite
from models.checkpoints.places import INDEX, WEIGHTS
from models.errors import CheckpointMismatch

__all__ = ["Form", "SafetensorsWriter", "write_tensors"]

log = logging.getLogger(__name__)

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.bool: "BOOL",
}


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


class SafetensorsWriter:
    """Writes a file tensor by tensor, in any order; as a context, which ends with the header.

    The header's place is kept before the first tensor, wide enough for every tensor in float32,
    so that the type of each may still be chosen when it comes.

    Args:
        path: the file to write; not atomic, the caller renames.
        shapes: of all tensors that will come, by name.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Iterable[int]]) -> None:
        self.path = path
        self._shapes = {name: list(shape) for name, shape in shapes.items()}
        self._entries: dict[str, dict[str, object]] = {}
        self._unaligned: list[tuple[str, Tensor]] = []
        end = sum(4 * math.prod(shape) for shape in self._shapes.values())
        widest = {n: _entry(torch.bfloat16, s, end, end) for n, s in self._shapes.items()}
        # The library pads to 8, too: tensors begin where their numbers are aligned.
        self._length = -(-len(_json(widest)) // 8) * 8
        self._position = 0

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        self._file.seek(8 + self._length)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Adds a tensor."""
        if tensor.nbytes % 8:
            # Kept for the end: what follows it would not be aligned. These are tiny.
            self._unaligned.append((name, tensor))
        else:
            self._append(name, tensor)

    def _append(self, name: str, tensor: Tensor) -> None:
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        self._file.write(data.data)
        end = self._position + tensor.nbytes
        self._entries[name] = _entry(tensor.dtype, self._shapes[name], self._position, end)
        self._position = end

    def _finish(self) -> None:
        # The widest first: each begins at a multiple of its own width.
        for name, tensor in sorted(self._unaligned, key=lambda item: -item[1].itemsize):
            self._append(name, tensor)
        missing = self._shapes.keys() - self._entries.keys()
        if missing:
            raise ValueError(f"tensors that never came: {', '.join(sorted(missing)[:5])}.")
        self._file.seek(0)
        self._file.write(self._length.to_bytes(8, "little"))
        self._file.write(_json(self._entries).ljust(self._length))
        self._file.flush()
        os.fsync(self._file.fileno())


def _entry(dtype: torch.dtype, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [start, end]}


def _json(entries: Mapping[str, object]) -> bytes:
    header = {"__metadata__": {"format": "pt"}, **entries}
    return json.dumps(header, separators=(",", ":")).encode()


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
    sizes = {name: math.prod(t.shape) * form.dtype.itemsize for name, t in tensors.items()}
    done, total = 0, sum(sizes.values())
    check_room(folder, total)
    shards = _shards(sizes, form.shard_bytes)
    float32: list[str] = []
    for file, names in shards.items():
        with SafetensorsWriter(folder / file, {n: tensors[n].shape for n in names}) as writer:
            for name in names:
                tensor = _narrow(name, tensors[name].read(), form.dtype)
                if tensor.dtype != form.dtype:
                    float32.append(name)
                writer.write(name, tensor)
                done += sizes[name]
                on_progress(WeightsProgress("convert", file, done, total))
    if float32:
        log.warning(
            "%d tensors have values beyond %s and are kept in float32: %s",
            *(len(float32), form.name, ", ".join(float32[:5])),
        )
    paths = [folder / file for file in shards]
    if form.shard_bytes is not None:
        weight_map = {name: file for file, names in shards.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        paths.append(folder / INDEX)
    return tuple(paths), float32


def _shards(sizes: Mapping[str, int], limit: int | None) -> dict[str, list[str]]:
    """Names of tensors by file, of at most `limit` bytes each; a larger tensor has its own."""
    if limit is None:
        return {WEIGHTS: list(sizes)}
    shards: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": s for i, s in enumerate(shards, 1)}


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
