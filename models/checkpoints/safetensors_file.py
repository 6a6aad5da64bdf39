"""Safetensors files, tensor by tensor: the header, where each tensor lies, and writing in a stream.

The format (https://github.com/huggingface/safetensors#format) is a length of 8 bytes, a JSON header
of that length, and the tensors one after the other. The library of that name saves whole
dictionaries only; a file of gigabytes has to be written without holding it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from models.checkpoints.stored import (
    MAX_TENSOR_BYTES,
    Checkpoint,
    StoredTensor,
    as_tensor,
    read_at,
)
from models.errors import CheckpointUnreadable

__all__ = ["SafetensorsWriter", "open_safetensors"]

_MAX_HEADER_BYTES = 100_000_000
"""The library's own limit."""

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def open_safetensors(path: Path) -> Checkpoint:
    """The tensors of a safetensors file.

    Raises:
        CheckpointUnreadable: the file is cut off or damaged.
    """
    end = path.stat().st_size
    length = int.from_bytes(read_at(path, 0, 8), "little")
    if length > min(end - 8, _MAX_HEADER_BYTES):
        raise CheckpointUnreadable(
            f"{path} was cut off or is damaged: its header should have {length} bytes, and the "
            f"file has {end}; get the file again."
        )
    try:
        header = json.loads(read_at(path, 8, length))
        header.pop("__metadata__", None)
        tensors = {name: _stored(path, name, x, 8 + length, end) for name, x in header.items()}
    # Of whatever else the JSON may hold; a RecursionError is one of nested lists.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointUnreadable(
            f"{path} is damaged: its header makes no sense ({error!r:.200}); get the file again."
        ) from error
    return Checkpoint(path, tensors, files=(path,))


def _stored(
    path: Path, name: str, described: Mapping[str, object], data: int, end: int
) -> StoredTensor:
    dtype = _DTYPES.get(str(described["dtype"]))
    if dtype is None:
        raise CheckpointUnreadable(
            f"{path}: {name} has the type {described['dtype']!r}; known are {', '.join(_DTYPES)}."
        )
    shape, (first, last) = _sizes(described["shape"]), _sizes(described["data_offsets"])
    size = math.prod(shape) * dtype.itemsize
    if size != last - first:
        raise CheckpointUnreadable(
            f"{path} is damaged: {name} of shape {shape} has {size} bytes, and {last - first} are "
            "kept for it; get the file again."
        )
    if size > MAX_TENSOR_BYTES:
        raise CheckpointUnreadable(
            f"{path}: {name} of shape {shape} is larger than any tensor of StableSR."
        )
    if data + last > end:
        raise CheckpointUnreadable(
            f"{path} was cut off: {name} ends at byte {data + last}, and the file has {end}; get "
            "the file again."
        )
    return StoredTensor(dtype, shape, partial(_read, path, name, data + first, size, dtype, shape))


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(n) is int and 0 <= n < 2**63 for n in value):
        raise TypeError(f"{value!r:.80} is no list of sizes")
    return tuple(value)


def _read(
    path: Path, name: str, start: int, size: int, dtype: torch.dtype, shape: tuple[int, ...]
) -> Tensor:
    data = read_at(path, start, size)
    if len(data) < size:
        raise CheckpointUnreadable(f"{path} was cut off while it was read, before {name}.")
    return as_tensor(data, dtype, shape)


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
        self._late: list[tuple[str, Tensor]] = []
        widest = sum(4 * math.prod(shape) for shape in self._shapes.values())
        longest = {n: _entry(torch.bfloat16, s, widest, widest) for n, s in self._shapes.items()}
        # The library pads to 8, too: tensors begin where their numbers are aligned.
        self._length = -(-len(_json(longest)) // 8) * 8
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
            self._late.append((name, tensor))
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
        for name, tensor in sorted(self._late, key=lambda late: -late[1].itemsize):
            self._append(name, tensor)
        missing = self._shapes.keys() - self._entries.keys()
        if missing:
            raise ValueError(f"tensors that never came: {', '.join(sorted(missing)[:5])}.")
        header = _json(self._entries).ljust(self._length)
        self._file.seek(0)
        self._file.write(self._length.to_bytes(8, "little") + header)
        self._file.flush()
        os.fsync(self._file.fileno())


def _entry(dtype: torch.dtype, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}


def _json(entries: Mapping[str, object]) -> bytes:
    header = {"__metadata__": {"format": "pt"}, **entries}
    return json.dumps(header, separators=(",", ":")).encode()
